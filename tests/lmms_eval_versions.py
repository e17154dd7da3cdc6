"""Whether the same frames, prompts and answers come out of every lmms-eval from 0.3.0 on.

    python tests/lmms_eval_versions.py [FOLDER] [--versions 0.3.0 0.5.0] [--models llava_vid ...] [--swap_in]

Installs each version into FOLDER (kept) or a temporary one. Each answers the same questions with small random
checkpoints, on keyframes and on uniform frames, as the installed version does, which is the judge. Compared
is what reaches ``generate``, pixels and prompt, and what comes out. With ``--swap_in`` each answers as plain
lmms-eval after ``evaluation/swap_in.py install``, by its own names of tasks, and every file must be as before
after ``restore``. A version may also be the folder of a checkout. Not one of the tests: it installs packages,
and takes minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUPPORT = ROOT / "tests/support"
sys.path[:0] = [str(ROOT), str(SUPPORT)]

# Needed by older versions only.
OLDER_NEEDS = (
    "sqlitedict==2.1.0",
    "hf_transfer==0.1.9",
    "openai==2.9.0",
    "sniffio==1.3.1",
    "jiter==0.12.0",
    "distro==1.9.0",
)
VERSIONS = ("0.3.0", "0.5.0")
BUDGET = 8
VIDEOS = {"long.mp4": 1100, "short.mp4": 150}
KEYFRAMES = [[0, 31, 257, 512, 600, 601, 1023, 1099], [1, 2, 3, 5, 8, 13, 21, 34], [0, 40, 149]]
QUESTION_VIDEOS = ["long.mp4", "long.mp4", "short.mp4"]
BENCHMARKS = {"longvideobench": "longvideobench_val_v_aks", "videomme": "videomme_aks"}


def install(version: str, folder: Path) -> Path:
    """The folder with that version and what it needs besides."""
    if Path(version).is_dir():
        return Path(version).absolute()
    target = folder / version
    if not target.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target]
        subprocess.run([*pip, f"lmms-eval=={version}", *OLDER_NEEDS], check=True)
    return target


def write_world(folder: Path) -> None:
    """Videos that spell their frame numbers, labels with keyframes, small checkpoints."""
    from evaluation_setup import (
        merge_selection,
        write_longvideobench_labels,
        write_numbered_video,
        write_videomme_labels,
    )
    from llava_setup import write_checkpoint
    from qwen_setup import QWEN2
    from qwen_setup import write_checkpoint as write_qwen

    for name, count in VIDEOS.items():
        write_numbered_video(folder / "videos" / name, count)
    stems = [Path(name).stem for name in QUESTION_VIDEOS]
    labels = write_longvideobench_labels(folder / "longvideobench", QUESTION_VIDEOS)
    merge_selection(labels, KEYFRAMES, BUDGET)
    merge_selection(write_videomme_labels(folder / "videomme", stems), KEYFRAMES, BUDGET, "videomme")
    write_checkpoint(folder / "llava", folder / "hub")
    write_qwen(folder / "qwen2_vl", QWEN2)


# Model arguments, and the plug-in that records the calls.
MODELS = {
    "llava_vid": (
        "pretrained={folder}/llava,conv_template=chatml_direct,torch_dtype=bfloat16,device_map=auto,"
        "overwrite=False,max_frames_num=8",
        "llava_recorder",
    ),
    "llava_onevision": ("pretrained={folder}/llava,device_map=auto,max_frames_num=8", "llava_recorder"),
    # min_pixels is qwen-vl-utils' own least size, since 0.3.0 does not know the argument.
    "qwen2_vl": (
        "pretrained={folder}/qwen2_vl,device_map=auto,min_pixels=100352,max_num_frames=8",
        "qwen_recorder",
    ),
    "conse_qa": ("max_frames_num=8", None),
}


def run(
    model: str, benchmark: str, use_topk: bool, folder: Path, version: Path | None, swap_in: bool = False
) -> dict[str, dict[str, str]]:
    """What reached the model in one run, and its answers, by question; digests of pixels and prompts.

    With ``swap_in`` this project is swapped in for the run, and taken out afterwards.
    """
    from evaluation_setup import run_lmms_eval, samples_in

    arguments, recorder = MODELS[model]
    output = (
        folder / "runs" / f"{version.name if version else 'installed'}-{model}-{benchmark}-{use_topk}/out"
    )
    calls = output.parent / "calls"
    shutil.rmtree(output.parent, ignore_errors=True)  # an earlier run's
    output.mkdir(parents=True)
    task = BENCHMARKS[benchmark]
    with swapped_in(version) if swap_in else contextlib.nullcontext():
        done = run_lmms_eval(
            model,
            f"{arguments.format(folder=folder)}"
            + (f",use_topk={use_topk}" if use_topk or not swap_in else ""),
            task.removesuffix("_aks") if swap_in else task,
            output,
            labels=folder / benchmark / "include_frame_idx.json",
            videos=folder / "videos",
            python=sys.executable,
            python_path=[*([version] if version else []), SUPPORT],
            environment={
                "LMMS_EVAL_PLUGINS": ",".join(filter(None, [not swap_in and "evaluation", recorder])),
                "AKS_RECORDED_CALLS": str(calls),
                "HF_HUB_CACHE": str(folder / "hub"),
                "AKS_TESTS_STAY_ON_CPU": "1",  # Qwen2-VL's inputs, which the class moves to a GPU
            },
            swapped_in=version if swap_in else None,
        )
    (output.parent / "log.txt").write_text(done.stdout + done.stderr)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
    metric = "lvb_acc" if benchmark == "longvideobench" else "videomme_perception_score"
    answers = {}
    if not (samples := samples_in(output)):
        raise RuntimeError(f"no samples, see {output.parent / 'log.txt'}")
    for sample in samples:
        scored = sample.get(metric) or sample["videomme_percetion_score"]
        answer = sample["filtered_resps"]  # a list of one in older versions
        answers[str(scored.get("id") or scored["question_id"])] = (
            answer if isinstance(answer, str) else answer[0]
        )
    return {"answers": answers, "calls": digests(calls, recorder)}


@contextlib.contextmanager
def swapped_in(version: Path) -> Iterator[None]:
    """This project in the files of an lmms-eval; raises where it leaves one changed."""
    before = file_digests(version / "lmms_eval")
    for command in ("install", "verify", "restore"):
        if command == "restore":
            yield
        done = subprocess.run(
            [sys.executable, ROOT / "evaluation/swap_in.py", command, version], text=True, capture_output=True
        )
        if done.returncode:
            raise RuntimeError(f"swap_in.py {command}: {done.stdout}{done.stderr}")
    if file_digests(version / "lmms_eval") != before:
        raise RuntimeError("swap_in.py restore leaves files changed")


def file_digests(package: Path) -> dict[str, str]:
    """A digest of every file of a package but Python's caches, by path."""
    return {
        str(path.relative_to(package)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def digests(calls: Path, recorder: str | None) -> dict[str, str]:
    """A digest of the tensors of every recorded call, in their order."""
    import torch

    found = {}
    for path in sorted(calls.glob("*.pt")):
        call = torch.load(path, weights_only=False)
        if recorder == "llava_recorder":
            tensors = {
                "pixels": call["videos"],
                "prompt": [call["prompt"]],
                "ids": [torch.tensor(call["answer"])],
            }
        else:
            inputs = call["inputs"]
            tensors = {
                "pixels": [inputs["pixel_values_videos"], inputs["video_grid_thw"]],
                "prompt": [inputs["input_ids"]],
                "ids": [call["answer"]],
            }
        for name, values in tensors.items():
            digest = hashlib.sha256()
            for value in values:
                digest.update(value.float().numpy().tobytes())
            found[f"{path.stem} {name}"] = digest.hexdigest()
    return found


def main() -> int:
    """Run all versions, print a line for each; 1 where one differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--versions", nargs="+", default=VERSIONS)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument(
        "--swap_in", action="store_true", help="after swap_in.py install, by upstream's names"
    )
    args = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    differs = False
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "qwen2_vl").exists():
            write_world(folder)
        versions = [install(version, folder) for version in args.versions]
        for model in args.models:
            for benchmark in BENCHMARKS:
                for use_topk in (True, False):
                    judge = run(model, benchmark, use_topk, folder, None)
                    for version in versions:
                        try:
                            found = run(model, benchmark, use_topk, folder, version, args.swap_in)
                            other = [
                                k
                                for part in judge
                                for k in judge[part]
                                if found[part].get(k) != judge[part][k]
                            ]
                            outcome = f"differs: {', '.join(other)}" if other else "the same"
                        except (RuntimeError, KeyError) as error:
                            outcome = f"fails: {error}"
                        differs |= outcome != "the same"
                        frames = "keyframes" if use_topk else "uniform"
                        print(f"{version.name} {model} {benchmark} {frames}: {outcome}", flush=True)
    return int(differs)


if __name__ == "__main__":
    sys.exit(main())
