"""One row of the paper's table, from selected frames to results; the scripts in evaluation/scripts/ call it.

    python evaluation/run.py --model llava_vid --dataset longvideobench --frames aks
    python evaluation/run.py --model qwen2_vl --dataset videomme --frames uni --max_frames 32 --check_only

Checks everything that can be checked before the weights load, merges the selection into a copy of the labels
beside the results, runs lmms-eval on every GPU (or the CPU), and fails unless results were written. Every
option can also be given as an environment variable of the same name in capitals (MAX_FRAMES=32 LIMIT=10 ...);
which ones were is said first. LLAVA=next or LLAVA=transformers chooses the code that answers as LLaVA.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from anywhere

from aks import errors
from aks.arguments import ArgumentParser
from aks.errors import UserError
from aks.jsonio import make_folder, write_json
from aks.labels import LabelSet
from evaluation.change_score import MERGED_LABELS, Selection, merge
from evaluation.evaluator import evaluate, results_files
from evaluation.llava_implementation import MODELS as LLAVA_MODELS
from evaluation.llava_implementation import choose
from evaluation.metrics import DATASET_TASKS
from evaluation.preflight import check_inputs, count_gpus

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class ModelSpec:
    """How lmms-eval runs one model."""

    max_frames: int  # frames a question, in the paper
    frames_argument: str  # lmms-eval's name for it
    checkpoints: tuple[str, ...] = ()  # folders of its weights; none for a model that brings its own
    model_args: tuple[str, ...] = ()  # other model arguments, as in the released scripts
    cpu_model_args: tuple[str, ...] = ()  # further ones without a GPU
    package: tuple[str, str] | None = None  # what must be importable, and the command that installs it
    flags: tuple[str, ...] = ()  # lmms-eval's

    def find_checkpoint(self) -> str:
        """The first of its folders that is there; the first of all where none is."""
        return next(filter(os.path.exists, self.checkpoints), self.checkpoints[0])


LLAVA = ModelSpec(max_frames=32, frames_argument="max_frames_num", cpu_model_args=("device_map=auto",))
QWEN = ModelSpec(
    max_frames=32,
    frames_argument="max_num_frames",
    cpu_model_args=("device_map=cpu",),
    package=("qwen_vl_utils", "pip install -c constraints.txt -r requirements-eval.txt"),
)
# Without --force_simple lmms-eval would take its own chat class, which knows nothing of keyframes.
NEWER_QWEN = replace(QWEN, model_args=("device_map=cuda",), flags=("--force_simple",))
NEWER_TRANSFORMERS = "source environment.sh && environment_newer"
MODELS = {
    "llava_vid": replace(
        LLAVA,
        max_frames=64,
        checkpoints=("./checkpoints/llava_video_7b", "./checkpoints/LLaVA-Video-7B-Qwen2"),
        model_args=("conv_template=chatml_direct", "video_decode_backend=decord", "overwrite=False"),
        cpu_model_args=("device_map=auto", "torch_dtype=bfloat16"),
    ),
    # Settings whose defaults differ between versions of lmms-eval are written out.
    "llava_onevision": replace(
        LLAVA,
        checkpoints=("./checkpoints/llava-onevision-qwen2-7b-ov",),
        model_args=("conv_template=qwen_1_5",),
    ),
    "qwen2_vl": replace(
        QWEN, checkpoints=("./checkpoints/Qwen2-VL-7B-Instruct",), model_args=("max_pixels=602112",)
    ),
    "qwen2_5_vl": replace(NEWER_QWEN, checkpoints=("./checkpoints/Qwen2.5-VL-7B-Instruct",)),
    "qwen2_5_vl_chat": replace(NEWER_QWEN, checkpoints=("./checkpoints/Qwen2.5-VL-7B-Instruct",), flags=()),
    "qwen3_vl": replace(
        NEWER_QWEN,
        checkpoints=("./checkpoints/Qwen3-VL-8B-Instruct",),
        package=("transformers.models.qwen3_vl", NEWER_TRANSFORMERS),
    ),
    "internvl3_5": ModelSpec(
        max_frames=32,
        frames_argument="num_frames",
        checkpoints=("./checkpoints/InternVL3_5-8B-HF",),
        cpu_model_args=("device_map=cpu",),
        package=("transformers.models.internvl", NEWER_TRANSFORMERS),
    ),
    "conse_qa": ModelSpec(max_frames=32, frames_argument="max_frames_num"),
}
# Every flag's help and default.
OPTIONS: dict[str, tuple[str, str | None]] = {
    "model": (f"one of {', '.join(MODELS)}", None),
    "dataset": (f"one of {', '.join(DATASET_TASKS)}", None),
    "frames": ("aks (the selected keyframes) or uni (the model's own uniform frames)", None),
    "checkpoint": ("weights: a folder or a hub name (default: the model's folder in ./checkpoints)", None),
    "max_frames": ("frames a question (default: the paper's)", None),
    "selection": ("aks: the selected frames (default: in ./selected_frames/<dataset>/blip)", None),
    "labels": ("the label file (default: the data set's own in ./datasets/<dataset>)", None),
    "videos": ("the folder of the videos (default: the data set's own)", None),
    "short_selection": ("aks: strict shows short selections as they are, paper refills them", "strict"),
    "output": ("folder for the results (default: <results>/<model>/<dataset>_<frames>_<max_frames>)", None),
    "results": ("folder for the results of all rows (default: ./results)", "./results"),
    "gpus": ("how many GPUs, 0 for the CPU (default: all)", None),
    "limit": ("only the first questions, for a try", None),
    "model_args": ("more model arguments for lmms-eval, comma-separated", None),
}
# The title in --help under which a flag stands.
GROUPS = {
    **dict.fromkeys(("model", "dataset", "frames", "checkpoint", "max_frames"), "the row"),
    **dict.fromkeys(("selection", "labels", "videos", "short_selection"), "input"),
    **dict.fromkeys(("output", "results"), "output"),
    **dict.fromkeys(("gpus", "limit", "model_args"), "the run of lmms-eval"),
}


def parse_arguments(arguments: Sequence[str] | None = None, quiet: bool = False) -> argparse.Namespace:
    """Flags, else the environment variables of the same names, else the defaults; resolved for the model.

    Which settings come from the environment is said, unless ``quiet``.
    """
    parser = ArgumentParser(
        __doc__,
        argument_default=argparse.SUPPRESS,  # tells flags that are given from those that are not
    )
    groups = {title: parser.add_argument_group(title) for title in dict.fromkeys(GROUPS.values())}
    for name, (help, _) in OPTIONS.items():
        groups[GROUPS[name]].add_argument(f"--{name}", help=help)
    parser.add_argument("--check_only", action="store_true", help="check the inputs and stop")
    flags = vars(parser.parse_args(arguments))
    variables = {name: os.environ.get(name.upper()) for name in OPTIONS if name not in flags}
    taken = {name: value for name, value in variables.items() if value}  # an empty one counts as none
    if taken and not quiet:
        settings = " ".join(f"{name.upper()}={shlex.quote(value)}" for name, value in taken.items())
        print(f"taken from the environment: {settings}", file=sys.stderr)
    defaults = {name: default for name, (_, default) in OPTIONS.items()}
    args = argparse.Namespace(**{"check_only": False, **defaults, **taken, **flags})

    for name, choices in (("model", MODELS), ("dataset", DATASET_TASKS), ("frames", ("aks", "uni"))):
        if getattr(args, name) not in choices:
            given = getattr(args, name) or "is missing"
            raise UserError(f"--{name} {given}: use one of {', '.join(choices)}")
    for name, minimum in (("max_frames", 1), ("limit", 1), ("gpus", 0)):
        text = getattr(args, name)
        if text is not None:
            if not text.isascii() or not text.isdigit() or int(text) < minimum:
                raise UserError(f"--{name} {text}: must be a whole number, {minimum} or more")
            setattr(args, name, int(text))
    model = MODELS[args.model]
    args.max_frames = args.max_frames or model.max_frames
    if args.gpus is None:
        args.gpus = count_gpus()
    if not model.checkpoints:  # small enough for one GPU, and not made to be spread
        args.gpus = min(args.gpus, 1)
    if not args.checkpoint and model.checkpoints:
        args.checkpoint = model.find_checkpoint()
    row = Path(args.model, f"{args.dataset}_{args.frames}_{args.max_frames}")
    args.output = Path(args.output or args.results / row)
    return args


@errors.when_interrupted("finished answers are kept, the same command goes on with the others")
def main() -> int:
    """Check, merge, evaluate, verify."""
    args = parse_arguments()
    model = MODELS[args.model]
    labels, selection, problems = check_inputs(args, model.package)
    if labels is None or problems:
        for problem in problems:
            print(f"error: {problem}", file=sys.stderr)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError(f"{count} above; nothing was evaluated")
    num_questions = len(labels.questions[: args.limit])
    if args.check_only:
        print(f"{args.model} on {args.dataset}, {args.frames}: {num_questions} questions, inputs are fine")
        return 0

    make_folder(args.output, "--output")
    # Beside the results, so that evaluations of several selections at once do not mix; and as a plain list,
    # because Hugging Face's datasets reads fewer forms of a label file than aks.labels.
    if selection is not None:
        label_file = args.output / MERGED_LABELS
        merge(labels, selection, label_file)
    else:
        label_file = args.output / "labels.json"
        write_json(label_file, labels.entries)
    command = lmms_eval_command(args, model, selection)
    print("$ " + shlex.join(command), flush=True)
    earlier_results = results_files(args.output)
    status = subprocess.run(command, env=lmms_eval_environment(args, label_file, labels)).returncode
    if status:
        print(f"error: lmms-eval ended with status {status}; see its messages above", file=sys.stderr)
        return 1
    # lmms-eval also ends with status 0 when it failed.
    return evaluate(args.output, num_questions, earlier_results)


def lmms_eval_environment(args: argparse.Namespace, label_file: Path, labels: LabelSet) -> dict[str, str]:
    """The environment of lmms-eval, from which the plug-in and the tasks read where things are."""
    dataset = args.dataset.upper()
    videos = Path(args.videos) if args.videos else labels.video_root
    # torchvision's reader of picture files, which nothing here uses, does not load beside a CPU torch.
    no_warning = "ignore:Failed to load image Python extension"
    return {
        **os.environ,
        "LMMS_EVAL_PLUGINS": "evaluation",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "FORCE_QWENVL_VIDEO_READER": "decord",  # uniform frames, whichever readers are installed
        "PYTHONWARNINGS": ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), no_warning])),
        # lmms-eval's process must not choose another than was checked here.
        **({"LLAVA": choose()} if args.model in LLAVA_MODELS else {}),
        f"AKS_{dataset}_LABELS": str(label_file.absolute()),
        f"AKS_{dataset}_VIDEOS": str(videos.absolute()),
    }


def lmms_eval_command(args: argparse.Namespace, model: ModelSpec, selection: Selection | None) -> list[str]:
    """lmms-eval's command line: one process a GPU, or one on the CPU."""
    model_args = [f"pretrained={args.checkpoint}"] if args.checkpoint else []
    model_args += [
        *model.model_args,
        f"{model.frames_argument}={args.max_frames}",
        f"use_topk={selection is not None}",
        f"answers={args.output}/answers",
    ]
    if selection is not None:
        model_args += [
            f"short_selection={args.short_selection}",
            f"frames_digest=sha256-{selection.sha256[:16]}",
        ]
    if not args.gpus:
        model_args += model.cpu_model_args
    if args.model_args:
        model_args += args.model_args.split(",")
    # A later argument replaces an earlier one of the same name.
    model_args = list({argument.split("=", 1)[0]: argument for argument in model_args}.values())
    launcher = [sys.executable, "-m"]
    if args.gpus > 1:
        launcher += ["accelerate.commands.launch", "--num_processes", str(args.gpus), "--multi_gpu"]
        launcher += ["--main_process_port", "0", "-m"]  # 0 is any free port
    return [
        *launcher,
        "lmms_eval",
        *("--model", args.model, "--model_args", ",".join(model_args)),
        *("--tasks", DATASET_TASKS[args.dataset]),
        *("--include_path", str(ROOT / "datasets"), "--batch_size", "1", *model.flags),
        *("--log_samples", "--log_samples_suffix", args.model, "--output_path", str(args.output)),
        *(("--limit", str(args.limit)) if args.limit else ()),
        *(() if args.gpus and model.checkpoints else ("--device", "cuda" if args.gpus else "cpu")),
    ]


if __name__ == "__main__":
    errors.run_main(main)
