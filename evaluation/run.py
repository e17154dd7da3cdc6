"""One row of the paper's table, from selected frames to results; the scripts in evaluation/scripts/ call it.

    python evaluation/run.py --model llava_vid --dataset longvideobench --frames aks

Checks everything that can be checked before the weights load, merges the selection into a copy of the labels
beside the results, runs lmms-eval on every GPU (or the CPU), and fails unless results were written. Every
option can also be given as an environment variable of the same name in capitals (MAX_FRAMES=32 LIMIT=10 ...);
which ones were is said first.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from anywhere

from aks import errors
from aks.errors import UserError
from aks.jsonio import write_json
from aks.labels import LabelSet, find_video, load_labels, read_entries
from evaluation import task
from evaluation.change_score import Selection, merge, read_selection
from evaluation.evaluator import evaluate, results_files

ROOT = Path(__file__).resolve().parent.parent
Result = TypeVar("Result")

LLAVA_SOURCE = "pip install --no-deps -r requirements-llava-nodeps.txt"


@dataclass(frozen=True)
class Model:
    """How lmms-eval runs one model.

    Attributes:
        checkpoints: where its weights are looked for, in this order; none for a model that brings its own.
        max_frames: frames a question, in the paper.
        frames_argument: lmms-eval's name for it.
        arguments: other model arguments, as in the released scripts.
        cpu_arguments: model arguments without a GPU.
        package: what must be importable, and how to get it.
        flags: flags for lmms-eval.
    """

    checkpoints: tuple[str, ...]
    max_frames: int
    frames_argument: str
    arguments: tuple[str, ...] = ()
    cpu_arguments: tuple[str, ...] = ()
    package: tuple[str, str] | None = None
    flags: tuple[str, ...] = ()


QWEN_UTILS = ("qwen_vl_utils", "pip install -c constraints.txt -r requirements-eval.txt")
MODELS = {
    "llava_vid": Model(
        ("./checkpoints/llava_video_7b", "./checkpoints/LLaVA-Video-7B-Qwen2"),
        64,
        "max_frames_num",
        ("conv_template=chatml_direct", "video_decode_backend=decord", "overwrite=False"),
        ("device_map=auto", "torch_dtype=bfloat16"),
        ("llava.model.builder", LLAVA_SOURCE),
    ),
    "llava_onevision": Model(
        ("./checkpoints/llava-onevision-qwen2-7b-ov",),
        32,
        "max_frames_num",
        (),
        ("device_map=auto",),
        ("llava.model.builder", LLAVA_SOURCE),
    ),
    "qwen2_vl": Model(
        ("./checkpoints/Qwen2-VL-7B-Instruct",), 32, "max_num_frames", (), ("device_map=cpu",), QWEN_UTILS
    ),
    "qwen2_5_vl": Model(
        ("./checkpoints/Qwen2.5-VL-7B-Instruct",),
        32,
        "max_num_frames",
        ("device_map=cuda",),
        ("device_map=cpu",),
        QWEN_UTILS,
        # lmms-eval would take its own chat class, which knows nothing of keyframes.
        ("--force_simple",),
    ),
    "qwen3_vl": Model(
        ("./checkpoints/Qwen3-VL-8B-Instruct",),
        32,
        "max_num_frames",
        ("device_map=cuda",),
        ("device_map=cpu",),
        QWEN_UTILS,
        ("--force_simple",),
    ),
    "conse_qa": Model((), 32, "max_frames_num"),
}
TASKS = {
    "longvideobench": "longvideobench_val_v_aks",
    "videomme": "videomme_aks",
    "custom": "custom_aks",
}
WEIGHTS = ("*.safetensors", "*.bin")
MEMORY_SHARE = 1.2  # of the weights' size, for activations and 32 to 64 frames' keys and values


def parse_arguments() -> argparse.Namespace:
    """Flags, each with an environment variable as its default."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )

    defaults: dict[str, str | None] = {}

    def option(name: str, help: str, default: str | None = None) -> None:
        parser.add_argument(f"--{name}", help=help)
        defaults[name] = default

    option("model", f"one of {', '.join(MODELS)}")
    option("dataset", f"one of {', '.join(TASKS)}")
    option("frames", "aks (the selected keyframes) or uni (the model's own uniform frames)")
    option("checkpoint", "weights: a folder or a hub name (default: the model's folder in ./checkpoints)")
    option("max_frames", "frames a question (default: the paper's)")
    option("selection", "aks: the selected frames (default: in ./selected_frames/<dataset>/blip)")
    option("labels", "the label file (default: the data set's own in ./datasets/<dataset>)")
    option("videos", "the folder of the videos (default: the data set's own)")
    option("short_selection", "aks: strict shows short selections as they are, paper refills them", "strict")
    option("output", "folder for the results (default: <results>/<model>/<dataset>_<frames>_<max_frames>)")
    option("results", "folder for the results of all rows (default: ./results)", "./results")
    option("gpus", "how many GPUs, 0 for the CPU (default: all)")
    option("limit", "only the first questions, for a try")
    option("model_args", "more model arguments for lmms-eval, comma-separated")
    parser.add_argument("--check_only", action="store_true", help="check the inputs and stop")
    args = parser.parse_args()
    taken = []
    for name, default in defaults.items():
        if getattr(args, name) is None:
            value = os.environ.get(name.upper())  # an empty one counts as none
            setattr(args, name, value or default)
            taken += [f"{name.upper()}={shlex.quote(value)}"] if value else []
    if taken:
        print(f"taken from the environment: {' '.join(taken)}", file=sys.stderr)
    return args


def main() -> int:
    """Check, merge, evaluate, verify."""
    args = parse_arguments()
    for name, known in (("model", MODELS), ("dataset", TASKS), ("frames", ("aks", "uni"))):
        if getattr(args, name) not in known:
            raise UserError(f"--{name} {getattr(args, name)}: use one of {', '.join(known)}")
    model = MODELS[args.model]
    max_frames = whole_number("max_frames", args.max_frames, 1) or model.max_frames
    limit = whole_number("limit", args.limit, 1)
    gpus = whole_number("gpus", args.gpus, 0)
    gpus = count_gpus() if gpus is None else gpus
    if not model.checkpoints:  # small enough for one, and not made to be spread
        gpus = min(gpus, 1)
    checkpoint = args.checkpoint or first_existing(model.checkpoints)
    row = f"{args.model}/{args.dataset}_{args.frames}_{max_frames}"
    output = Path(args.output) if args.output else Path(args.results) / row

    problems: list[str] = []
    labels = checked(problems, lambda: load_labels(args.dataset, None, args.labels))
    selection = None
    if args.frames == "aks":
        path = selection_path(args.selection, args.dataset, max_frames)
        selection = checked(problems, lambda: checked_selection(path, labels, max_frames))
        if args.short_selection not in ("strict", "paper"):
            problems.append(f"--short_selection {args.short_selection}: use strict or paper")
    for name, text in (("output", str(output)), ("checkpoint", checkpoint or "")):
        if "," in text or "=" in text:
            problems.append(
                f"--{name} {text}: lmms-eval takes a comma or = for the end of a value; rename it"
            )
    if labels is not None and (problem := task.check_questions(labels)):
        problems.append(problem)
    problems += check_videos(labels, args.videos, limit)
    problems += check_checkpoint(args.model, checkpoint, gpus)
    problems += check_packages(model)
    if problems:
        for problem in problems:
            print(f"error: {problem}", file=sys.stderr)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError(f"{count} above; nothing was evaluated")
    assert labels is not None
    questions = min(limit or len(labels.questions), len(labels.questions))
    if args.check_only:
        print(f"{args.model} on {args.dataset}, {args.frames}: {questions} questions, inputs are fine")
        return 0

    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output}: cannot be created: {error.strerror}; check --output") from None
    # Beside the results, so that evaluations of several selections at once do not mix; and as a plain list,
    # because the reader of Hugging Face datasets takes fewer forms of a label file than aks.labels.
    if selection is not None:
        label_file = output / "include_frame_idx.json"
        merge(labels, selection, label_file)
    else:
        label_file = output / "labels.json"
        write_json(label_file, read_entries(labels.path))
    environment = task_environment(args, label_file, labels)
    command = lmms_eval_command(args, model, checkpoint, max_frames, gpus, limit, output, selection)
    print("$ " + shlex.join(command), flush=True)
    known = results_files(output)
    status = subprocess.run(command, env=environment).returncode
    if status:
        print(f"error: lmms-eval ended with status {status}; see its messages above", file=sys.stderr)
        return 1
    # lmms-eval also ends with status 0 when it failed.
    return evaluate(output, questions, known)


def whole_number(name: str, text: str | None, least: int) -> int | None:
    """A flag or environment variable as a number; None where it is not given."""
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise UserError(f"--{name} {text}: must be a whole number, {least} or more")
    return int(text)


def checked(problems: list[str], attempt: Callable[[], Result]) -> Result | None:
    """The result of an attempt; a user's mistake becomes one more problem."""
    try:
        return attempt()
    except UserError as error:
        # The readers name the flags of the extraction scripts.
        problems.append(str(error).replace("check --dataset_path or --label_file", "or give --labels"))
        return None


def first_existing(places: Sequence[str]) -> str | None:
    """The first place where something is; the first of all where nothing is; None of none."""
    return next((place for place in places if Path(place).exists()), next(iter(places), None))


def selection_path(given: str | None, dataset: str, max_frames: int) -> Path:
    """The selected frames: as given, or where the paper's files and ours lie."""
    if given:
        return Path(given)
    candidates = [
        f"./selected_frames_{max_frames}/{dataset}/blip/selected_frames.json",
        f"./selected_frames/{dataset}/blip/{dataset}_{max_frames}.json",  # the released files for 32 frames
        f"./selected_frames/{dataset}/blip/selected_frames.json",
    ]
    return Path(next(filter(os.path.exists, candidates), candidates[-1]))


def checked_selection(path: Path, labels: LabelSet | None, max_frames: int) -> Selection | None:
    """The selection, checked against the labels and the number of frames."""
    if labels is None:
        if not path.exists():
            raise UserError(
                f"{path}: no selected frames; make them with frame_select.py, or give --selection"
            )
        return None
    selection = read_selection(path, labels)
    if selection.budget != max_frames:
        raise UserError(
            f"{path}: selected for {selection.budget} frames a question, the model is to show {max_frames}; "
            "give the selection that fits (--selection), or --max_frames"
        )
    return selection


def check_videos(labels: LabelSet | None, folder: str | None, limit: int | None) -> list[str]:
    """All videos that are missing, in one line."""
    if labels is None:
        return []
    root = Path(folder) if folder else labels.video_root
    wanted = {question.video: None for question in labels.questions[:limit]}
    missing = [video for video in wanted if not find_video(labels.dataset, root, video).is_file()]
    if not missing:
        return []
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    return [
        f"{root}: {len(missing)} of {len(wanted)} videos are not there ({', '.join(missing[:5])}{more}); "
        "put them there or name their folder with --videos"
    ]


def check_checkpoint(name: str, checkpoint: str | None, gpus: int) -> list[str]:
    """What is wrong with the weights, before gigabytes of them are loaded."""
    if checkpoint is None:
        return []
    folder = Path(checkpoint)
    if not folder.exists():
        owner = checkpoint.partition("/")[0]
        if re.fullmatch(r"\w[\w.-]*/[\w.-]+", checkpoint) and not Path(owner).exists():
            return []  # a hub name, which transformers fetches
        return [f"{checkpoint}: no checkpoint there; see checkpoints/README.md, or give --checkpoint"]
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = config["model_type"]
    except (OSError, ValueError, LookupError, TypeError):
        return [f"{folder}: config.json is missing or not a model's; fetch the checkpoint again"]
    problems = []
    expected = {"llava_vid": "llava", "llava_onevision": "llava"}.get(name, name)
    if not str(kind).startswith(expected):
        problems.append(f"{folder}: holds a {kind} model, {name} needs {expected}; check --checkpoint")
    tower = config.get("mm_vision_tower") or ""
    if expected == "llava" and "siglip" in tower and os.path.exists(tower):
        problems.append(
            f"{folder}/config.json: mm_vision_tower {tower} exists as a folder; LLaVA-NeXT then takes the "
            "CLIP class and fails with a size mismatch; rename the folder and let the tower come from the "
            "hub's cache"
        )
    size = sum(path.stat().st_size for pattern in WEIGHTS for path in folder.glob(pattern))
    if not size:
        problems.append(f"{folder}: no weights ({' or '.join(WEIGHTS)}); fetch the checkpoint again")
    elif gpus and size * MEMORY_SHARE > gpu_memory():
        problems.append(
            f"{folder}: {size / 2**30:.0f} GiB of weights need {size * MEMORY_SHARE / 2**30:.0f} GiB on "
            f"each GPU, the smallest has {gpu_memory() / 2**30:.0f}; use a larger one"
        )
    return problems


def check_packages(model: Model) -> list[str]:
    """Packages that are not installed, with how to get them."""
    needed = [
        ("lmms_eval", "pip install --no-deps -r requirements-eval-nodeps.txt"),
        *([model.package] if model.package else []),
    ]
    problems = []
    for package, remedy in needed:
        try:
            found = importlib.util.find_spec(package) is not None
        except ImportError:
            found = False
        if not found:
            problems.append(f"the package {package.split('.')[0]} is not installed; run: {remedy}")
    return problems


def count_gpus() -> int:
    """CUDA devices of this machine."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def gpu_memory() -> int:
    """Bytes of the GPU with the least memory."""
    import torch

    return min(torch.cuda.get_device_properties(at).total_memory for at in range(torch.cuda.device_count()))


def task_environment(args: argparse.Namespace, label_file: Path, labels: LabelSet) -> dict[str, str]:
    """What the plug-in and the tasks read."""
    name = args.dataset.upper()
    videos = Path(args.videos) if args.videos else labels.video_root
    return {
        **os.environ,
        "LMMS_EVAL_PLUGINS": "evaluation",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "FORCE_QWENVL_VIDEO_READER": "decord",  # the same reader for uniform frames and keyframes
        # torchvision's reader of picture files, which nothing here uses, does not load beside a CPU torch.
        "PYTHONWARNINGS": ",".join(
            filter(None, [os.environ.get("PYTHONWARNINGS"), "ignore:Failed to load image Python extension"])
        ),
        f"AKS_{name}_LABELS": str(label_file.absolute()),
        f"AKS_{name}_VIDEOS": str(videos.absolute()),
    }


def lmms_eval_command(
    args: argparse.Namespace,
    model: Model,
    checkpoint: str | None,
    max_frames: int,
    gpus: int,
    limit: int | None,
    output: Path,
    selection: Selection | None,
) -> list[str]:
    """lmms-eval's command line: one process a GPU, or one on the CPU."""
    arguments = [f"pretrained={checkpoint}"] if checkpoint else []
    arguments += [
        *model.arguments,
        f"{model.frames_argument}={max_frames}",
        f"use_topk={selection is not None}",
    ]
    arguments.append(f"answers={output}/answers")
    if selection is not None:
        arguments += [
            f"short_selection={args.short_selection}",
            f"frames_digest=sha256-{selection.sha256[:16]}",
        ]
    if not gpus:
        arguments = last_value_wins([*arguments, *model.cpu_arguments])
    if args.model_args:
        arguments = last_value_wins([*arguments, *args.model_args.split(",")])
    launcher = [sys.executable, "-m"]
    if gpus > 1:
        launcher += ["accelerate.commands.launch", "--num_processes", str(gpus), "--multi_gpu"]
        launcher += ["--main_process_port", "0", "-m"]  # any free one
    return [
        *launcher,
        "lmms_eval",
        *("--model", args.model, "--model_args", ",".join(arguments), "--tasks", TASKS[args.dataset]),
        *("--include_path", str(ROOT / "datasets"), "--batch_size", "1", *model.flags),
        *("--log_samples", "--log_samples_suffix", args.model, "--output_path", str(output)),
        *(("--limit", str(limit)) if limit else ()),
        *(() if gpus and model.checkpoints else ("--device", "cuda" if gpus else "cpu")),
    ]


def last_value_wins(arguments: list[str]) -> list[str]:
    """name=value arguments, of which a later one replaces an earlier one of the same name."""
    return list({argument.split("=", 1)[0]: argument for argument in arguments}.values())


if __name__ == "__main__":
    errors.run_main(main)
