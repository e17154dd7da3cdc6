"""The checks before a run: find what is wrong with its inputs before gigabytes are loaded."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aks.errors import UserError
from aks.labels import LabelSet, find_video, load_labels
from aks.presets import PAPER
from evaluation import task
from evaluation.change_score import Selection, read_selection
from evaluation.llava_implementation import MODELS as LLAVA_MODELS
from evaluation.llava_implementation import NEXT, choose
from evaluation.llava_on_transformers.config import find_problem

WEIGHTS = ("*.safetensors", "*.bin")
MEMORY_FACTOR = 1.2  # of the weights' size: activations, and keys and values of 32 to 64 frames, come on top
# By the models whose names differ; "internvl_chat" brings code of its own.
MODEL_TYPES = dict.fromkeys(LLAVA_MODELS, "llava") | {
    "qwen2_5_vl_chat": "qwen2_5_vl",
    "internvl3_5": "internvl",
}
LMMS_EVAL = ("lmms_eval", "pip install --no-deps -r requirements-eval-nodeps.txt")


def check_inputs(
    args: argparse.Namespace, package: tuple[str, str] | None
) -> tuple[LabelSet | None, Selection | None, list[str]]:
    """Read labels and selection, and check them with all other inputs of a run.

    Args:
        args: run.py's flags.
        package: the model's package that must be importable, and the command that installs it.

    Returns:
        The labels, the selection (None for uniform frames), and a line for each problem; where there are any,
        labels and selection may be missing.
    """
    problems: list[str] = []
    labels = selection = None
    with collect_problem(problems):
        labels = load_labels(args.dataset, None, args.labels)
    if args.frames == "aks":
        with collect_problem(problems):
            selection = check_selection(args, labels)
        if args.short_selection not in ("strict", "paper"):
            problems.append(f"--short_selection {args.short_selection}: use strict or paper")
    for name, text in (("output", str(args.output)), ("checkpoint", args.checkpoint or "")):
        if "," in text or "=" in text:
            problems.append(
                f"--{name} {text}: lmms-eval takes a comma or = for the end of a value; rename it"
            )
    if labels is not None:
        if problem := task.check_questions(labels):
            problems.append(problem)
        problems += check_videos(labels, args.videos, args.limit)
    if args.model in LLAVA_MODELS:
        with collect_problem(problems):
            choose()
    if args.gpus and args.gpus > (num_gpus := count_gpus()):
        problems.append(f"--gpus {args.gpus}: this machine has {num_gpus}; leave it out, or 0 for the CPU")
    if args.checkpoint:
        problems += check_checkpoint(args.model, args.checkpoint, args.gpus)
    problems += [
        f"the package {name} is not installed; run: {remedy}"
        for name, remedy in (LMMS_EVAL, *([package] if package else []))
        if not is_importable(name)
    ]
    return labels, selection, problems


@contextlib.contextmanager
def collect_problem(problems: list[str]) -> Iterator[None]:
    """Add a user's mistake in the block to the problems, so that the other checks follow all the same."""
    try:
        yield
    except UserError as error:
        # The readers of labels name the flags of the extraction scripts.
        problems.append(
            str(error)
            .replace("check --dataset_path or --label_file", "see datasets/README.md, or give --labels")
            .replace("--dataset_name custom needs --label_file", "--dataset custom needs --labels")
        )


def check_selection(args: argparse.Namespace, labels: LabelSet | None) -> Selection | None:
    """The selection, checked against the labels and the number of frames; None without labels.

    Raises:
        UserError: it is not there or does not fit.
    """
    usual = [
        f"./selected_frames_{args.max_frames}/{args.dataset}/blip/selected_frames.json",
        # The released files for 32 frames.
        f"./selected_frames/{args.dataset}/blip/{args.dataset}_{args.max_frames}.json",
        f"./selected_frames/{args.dataset}/blip/selected_frames.json",
    ]
    path = Path(args.selection or next(filter(os.path.exists, usual), usual[-1]))
    if args.selection and labels is None and not path.exists():
        raise UserError(f"{path}: file not found; check --selection")
    if not args.selection and not path.exists():
        preset = " --preset paper" if args.dataset in PAPER else ""
        raise UserError(
            f"{path}: no selected frames; give --selection, or make them: python frame_select.py "
            f"--dataset_name {args.dataset} --max_num_frames {args.max_frames}{preset} "
            f"--output_file selected_frames_{args.max_frames}"
        )
    if labels is None:
        return None
    selection = read_selection(path, labels)
    if selection.budget != args.max_frames:
        raise UserError(
            f"{path}: selected for {selection.budget} frames a question, the model is to show "
            f"{args.max_frames}; give the selection that fits (--selection), or --max_frames"
        )
    return selection


def check_videos(labels: LabelSet, folder: str | None, limit: int | None) -> list[str]:
    """One line that counts the missing videos of the first ``limit`` questions; empty if all are there."""
    root = Path(folder) if folder else labels.video_root
    videos = list(dict.fromkeys(question.video for question in labels.questions[:limit]))
    missing = [video for video in videos if not find_video(labels.dataset, root, video).is_file()]
    if not missing:
        return []
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    return [
        f"{root}: {len(missing)} of {len(videos)} videos are not there ({', '.join(missing[:5])}{more}); "
        "put them there or name their folder with --videos"
    ]


def check_checkpoint(model: str, checkpoint: str, gpus: int) -> list[str]:
    """What is wrong with the weights of a model, by its configuration and the size of its files."""
    folder = Path(checkpoint)
    if not folder.exists():
        owner = checkpoint.partition("/")[0]
        if re.fullmatch(r"\w[\w.-]*/[\w.-]+", checkpoint) and not Path(owner).exists():
            return []  # a hub name, which transformers fetches
        return [f"{checkpoint}: no checkpoint there; see checkpoints/README.md, or give --checkpoint"]
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_type = config["model_type"]
    except (OSError, ValueError, LookupError, TypeError):
        return [f"{folder}: config.json is missing or not a model's; fetch the checkpoint again"]
    problems = []
    expected = MODEL_TYPES.get(model, model)
    if not str(model_type).startswith(expected) or model_type == "internvl_chat":
        problems.append(f"{folder}: holds a {model_type} model, {model} needs {expected}; check --checkpoint")
    elif expected == "llava":
        problems += check_llava(folder / "config.json", config)
    size = sum(path.stat().st_size for pattern in WEIGHTS for path in folder.glob(pattern))
    if not size:
        problems.append(f"{folder}: no weights ({' or '.join(WEIGHTS)}); fetch the checkpoint again")
    elif gpus and size * MEMORY_FACTOR > gpu_memory():
        problems.append(
            f"{folder}: {size / 2**30:.0f} GiB of weights need {size * MEMORY_FACTOR / 2**30:.0f} GiB on "
            f"each GPU, the smallest has {gpu_memory() / 2**30:.0f}; use a larger one"
        )
    return problems


def check_llava(path: Path, config: dict[str, Any]) -> list[str]:
    """What is wrong with a LLaVA's configuration for the implementation that will run it."""
    try:
        implementation = choose()
    except UserError:  # told by check_inputs
        return []
    if implementation != NEXT:
        problem = find_problem(config)
        return [f"{path}: {problem}"] if problem else []
    tower = config.get("mm_vision_tower") or ""
    if "siglip" not in tower or not os.path.exists(tower):
        return []
    return [
        f"{path}: mm_vision_tower {tower} exists as a folder; LLaVA-NeXT then takes the CLIP class and fails "
        "with a size mismatch; rename the folder and let the tower come from the hub's cache"
    ]


def is_importable(name: str) -> bool:
    """Whether a module is installed; a submodule's packages are imported to find out."""
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False


def count_gpus() -> int:
    """CUDA devices of this machine."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def gpu_memory() -> float:
    """Bytes of the GPU with the least memory."""
    import torch

    devices = range(torch.cuda.device_count())
    sizes = (torch.cuda.get_device_properties(device).total_memory for device in devices)
    return min(sizes, default=math.inf)  # no GPU at all is told by check_inputs
