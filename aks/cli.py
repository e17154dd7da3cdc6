"""The flags of the extraction scripts, what they load, and their closing summary."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aks.arguments import ArgumentParser, at_least
from aks.console import configure_logging
from aks.cores import count_cores, count_local_processes, default_workers, limit_threads
from aks.errors import UserError
from aks.labels import DATASETS, LabelSet, load_labels
from aks.scorers import DTYPES, SCORERS

if TYPE_CHECKING:  # torch takes seconds to load; a label mistake should not wait for it
    from aks.extraction.api import Summary
    from aks.run_dir import RunDir
    from aks.scorers.base import Scorer


# Flags that only some scorers take; they are passed on where given.
SCORER_OPTIONS = ("blip_head", "truncation", "sevila_base")  # the scorer calls the last one ``base``


def build_parser(description: str | None, output: str) -> argparse.ArgumentParser:
    """The reference's flags with its defaults, and the flags that both extraction scripts add."""
    parser = ArgumentParser(description)
    add_dataset_flags(parser)
    add_scorer_flags(parser.add_argument_group("scorer"), "blip", "cuda")
    parser.add_argument("--output_file", default=output, help="folder for the results")
    frames = parser.add_argument_group("decoding")
    frames.add_argument(
        "--batch_size",
        type=at_least(1),
        help="frames encoded at a time (default: 16; on a GPU what fits, up to 128)",
    )
    frames.add_argument(
        "--decoder", default="auto", choices=("auto", "pyav", "decord"), help="who reads the videos"
    )
    add_worker_flags(frames)
    frames.add_argument(
        "--on_corrupt",
        default="skip",
        choices=("skip", "partial"),
        help="a video with frames that cannot be decoded: skip it, or partial: score the others",
    )
    machines = parser.add_argument_group("several machines or GPUs")
    machines.add_argument(
        "--shard", metavar="I/N", help="do only share I of N, for job arrays (torchrun sets it by itself)"
    )
    machines.add_argument(
        "--engine",
        default="local",
        choices=("local", "ray"),
        help="ray: on all GPUs or cores of a Ray cluster",
    )
    machines.add_argument(
        "--ray_address", help="cluster to join (default: RAY_ADDRESS, else one on this machine)"
    )
    machines.add_argument(
        "--ray_actors",
        type=at_least(1),
        help="models at work at a time (default: one a GPU, or one 8 cores)",
    )
    add_log_flags(parser)
    return parser


def add_dataset_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that :func:`aks.labels.load_labels` reads."""
    data = parser.add_argument_group("data set")
    data.add_argument(
        "--dataset_name", default="longvideobench", choices=DATASETS, help="whose questions and videos"
    )
    data.add_argument(
        "--dataset_path",
        help="folder of the data set (default: ./datasets/<dataset_name>; custom: the labels')",
    )
    data.add_argument("--label_file", help="a label file in place of the data set's own (needed for custom)")


def add_scorer_flags(parser: argparse._ActionsContainer, model: str, device: str | None) -> None:
    """Add the flags that :func:`load_scorer_from_args` reads, with a default model and device."""
    parser.add_argument("--extract_feature_model", default=model, choices=SCORERS, help="who scores")
    parser.add_argument(
        "--checkpoint", help="weights: a hub name, a folder, or SeViLA's file (default: the model's own)"
    )
    parser.add_argument("--device", default=device, help="cuda, cuda:N or cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="of the model (default: the original's)")
    parser.add_argument(
        "--backend",
        default="transformers",
        choices=("transformers", "lavis"),
        help="lavis: the original code of blip and sevila",
    )
    parser.add_argument("--truncation", help="sevila: paper (default), or keep_prompt for long questions")
    parser.add_argument(
        "--sevila_base", help="sevila: folder or hub name of its ViT and T5 (BLIP-2 Flan-T5-XL)"
    )


def add_own_scorer_flags(
    parser: argparse.ArgumentParser,
    title: str = "scorer, as of feature_extract.py (default: conse, without a download)",
) -> None:
    """Add the scorer's flags for one's own videos: by default conse, on a GPU if there is one."""
    scorer = parser.add_argument_group(title)
    add_scorer_flags(scorer, "conse", None)
    scorer.add_argument("--blip_head", help="blip: itm (default, the paper's) or itc")


def add_worker_flags(parser: argparse._ActionsContainer) -> None:
    """Add the flags for decoding processes and their time limit."""
    parser.add_argument(
        "--workers",
        type=at_least(0),
        help="decoding processes; 0 decodes in the main process (default: cores - 1, from 1 to 16)",
    )
    parser.add_argument(
        "--video_timeout",
        type=at_least(0.001, float),
        metavar="SECONDS",
        help="of decoding a video, then it is given up; needs workers (default: 60 + 4 x its length)",
    )


def add_log_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose the log level, for :func:`aks.console.configure_logging`."""
    group = parser.add_mutually_exclusive_group()
    level = {"dest": "log_level", "action": "store_const", "default": logging.WARNING}
    group.add_argument("--verbose", const=logging.DEBUG, help="log how each video is decoded", **level)
    group.add_argument("--quiet", const=logging.ERROR, help="no progress bars, no log lines", **level)


def load_labels_from_args(args: argparse.Namespace) -> LabelSet:
    """Set the log level, check the plain flags, then read the label file."""
    configure_logging(args.log_level)
    decode_settings(args)  # raises where flags contradict one another, before anything slow
    return load_labels(args.dataset_name, args.dataset_path, args.label_file)


def decode_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that say how videos are read, as :class:`aks.extraction.config.DecodeConfig` takes them.

    Raises:
        UserError: flags that contradict one another.
    """
    workers = count_workers(args)
    _check_engine(args)
    return {
        "decoder": args.decoder,
        "batch_frames": args.batch_size,
        "workers": workers,
        "video_timeout": args.video_timeout,
        "on_corrupt": args.on_corrupt,
        "shard": parse_shard(args),
    }


def count_workers(args: argparse.Namespace) -> int:
    """The number of decoding processes, by its flag or by this machine's cores.

    Raises:
        UserError: a time limit without workers.
    """
    if args.video_timeout is not None and args.workers == 0:
        raise UserError("--video_timeout needs --workers 1 or more: only a process of its own can be ended")
    if args.workers is not None:
        return args.workers
    num_processes = count_local_processes() if torchrun_rank() else 1
    return default_workers(count_cores() // num_processes)


def _check_engine(args: argparse.Namespace) -> None:
    if args.engine != "ray" and (args.ray_address is not None or args.ray_actors is not None):
        raise UserError("--ray_address and --ray_actors go with --engine ray")
    if args.engine == "ray" and (args.shard is not None or torchrun_rank()):
        raise UserError("--engine ray shares the videos out by itself: leave --shard and torchrun away")
    if args.engine == "ray" and ":" in args.device:
        raise UserError(f"--device {args.device}: Ray gives every actor a GPU of its own; say cuda")


def run_on_ray(args: argparse.Namespace, labels: LabelSet, run: RunDir, work: Callable[..., Summary]) -> int:
    """Process the videos on a Ray cluster; return how many were scored.

    ``work`` processes some videos: it is called on the actors with the scorer, ``videos`` and the decode
    settings.
    """
    from aks.extraction import ray_runner

    ray_runner.connect(args.ray_address)
    plan = ray_runner.plan_actors(args.device.split(":")[0], args.ray_actors)
    settings = decode_settings(args)
    if args.workers is None:
        settings["workers"] = default_workers(plan.cpus)
    make_scorer = functools.partial(load_scorer_from_args, args)
    return ray_runner.run(labels, run, make_scorer, functools.partial(work, **settings), plan)


def torchrun_rank() -> tuple[int, int, int] | None:
    """Rank, world size and local rank where torchrun started this process."""
    try:
        rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    except (KeyError, ValueError):
        return None
    return rank, size, local


def parse_shard(args: argparse.Namespace) -> tuple[int, int] | None:
    """The share of the videos that this process works on, from 1, and the number of shares.

    Raises:
        UserError: there is no such share.
    """
    rank, world_size, _ = torchrun_rank() or (0, 1, 0)
    if args.shard is None:
        return (rank + 1, world_size) if world_size > 1 else None
    if world_size > 1:
        raise UserError("--shard: torchrun shares the videos out by itself; leave it away")
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", args.shard)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard {args.shard}: must be I/N, a share I from 1 to N")
    return int(match[1]), int(match[2])


def load_scorer_from_args(args: argparse.Namespace, with_image_encoder: bool = True) -> Scorer:
    """Load the scorer with the options that were given, by default on a GPU if there is one.

    Stored features need no image encoder.
    """
    from aks.scorers.base import default_device, load_scorer

    limit_threads()
    options = {
        name.removeprefix("sevila_"): value
        for name in SCORER_OPTIONS
        if (value := getattr(args, name, None)) is not None
    }
    device = args.device or default_device()
    if (rank := torchrun_rank()) and device == "cuda":  # each process takes one GPU, or the CPU without GPUs
        device = f"cuda:{rank[2]}" if default_device() == "cuda" else "cpu"
    return load_scorer(
        args.extract_feature_model,
        checkpoint=args.checkpoint,
        device=device,
        dtype=args.dtype,
        backend=args.backend,
        with_image_encoder=with_image_encoder and not getattr(args, "features", None),
        **options,
    )


def print_summary(summary: Summary, done: str) -> int:
    """Print what was done and every video that failed or lacks frames; return the exit status.

    Under torchrun only the process that resolves the last video reports failures by its status, because
    torchrun ends all processes as soon as one fails.
    """
    print(
        f"{summary.videos} videos: {summary.scored} {done} now, {summary.reused} finished before, "
        f"{len(summary.failures)} failed"
    )
    for failure in summary.failures:
        print(f"  failed: {failure['video']} ({len(failure['questions'])} questions): {failure['reason']}")
    for record in summary.partial:
        num_missing, num_scored = len(record["lost_frames"]), record["scored_frames"]
        print(
            f"  partial: {record['video']} ({len(record['questions'])} questions): {num_missing} of "
            f"{num_missing + num_scored} candidate frames lost: {record['reason']}"
        )
    if summary.unfinished:
        print(f"  {summary.unfinished} videos are not finished yet: other processes' share, or in work there")
    if torchrun_rank():
        return 1 if not summary.unfinished and summary.any_failed else 0
    return 1 if summary.failures else 0
