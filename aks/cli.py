"""What the extraction scripts share: flags, loading, and the closing report."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from aks.benchmarks import DATASETS, LabelSet, load_labels
from aks.errors import UserError

if TYPE_CHECKING:  # torch takes seconds to load; a label mistake should not wait for it
    from aks.extraction import Summary
    from aks.scorers import Scorer

MODELS = ("blip", "clip", "sevila", "conse")
# Flags that only some scorers take; passed on where given.
SCORER_OPTIONS = ("blip_head", "truncation", "sevila_base")


def parser(description: str | None, output: str) -> argparse.ArgumentParser:
    """The documented flags with the reference's defaults, and those of ours that both scripts have.

    Args:
        description: the script's.
        output: default of ``--output_file``.
    """
    made = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--dataset_name", default="longvideobench", help=f"one of {', '.join(DATASETS)}")
    made.add_argument(
        "--dataset_path",
        help="folder of the data set (default: ./datasets/<dataset_name>; custom: the labels')",
    )
    made.add_argument("--label_file", help="a label file in place of the data set's own (needed for custom)")
    made.add_argument("--extract_feature_model", default="blip", help=f"one of {', '.join(MODELS)}")
    made.add_argument(
        "--checkpoint", help="weights: a hub name, a folder, or SeViLA's file (default: the model's own)"
    )
    made.add_argument("--output_file", default=output, help="folder for the results")
    made.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    made.add_argument("--dtype", help="float32, float16 or bfloat16 (default: the original's precision)")
    made.add_argument(
        "--backend",
        default="transformers",
        help="transformers, or lavis: the original code of blip and sevila",
    )
    made.add_argument("--truncation", help="sevila: paper (default), or keep_prompt for long questions")
    made.add_argument(
        "--sevila_base", help="sevila: folder or hub name of its ViT and T5 (BLIP-2 Flan-T5-XL)"
    )
    made.add_argument("--batch_size", type=int, default=16, help="frames decoded and encoded at a time")
    made.add_argument("--decoder", default="auto", help="auto, decord or pyav")
    return made


def load_question_set(args: argparse.Namespace) -> LabelSet:
    """Check the plain flags, then read the label file."""
    if args.batch_size < 1:
        raise UserError(f"--batch_size {args.batch_size}: must be 1 or more")
    return load_labels(args.dataset_name, args.dataset_path, args.label_file)


def load_scorer(args: argparse.Namespace) -> Scorer:
    """Check the decoder, then load the scorer with the options that were given."""
    from aks.scorers import create_scorer
    from aks.video import check_decoder

    check_decoder(args.decoder)
    given = {name: getattr(args, name, None) for name in SCORER_OPTIONS}
    options = {name.removeprefix("sevila_"): value for name, value in given.items() if value is not None}
    return create_scorer(
        args.extract_feature_model,
        checkpoint=args.checkpoint,
        device=args.device,
        dtype=args.dtype,
        backend=args.backend,
        **options,
    )


def report(summary: Summary, done: str) -> None:
    """Say what was done, and name every video that failed."""
    print(
        f"{summary.videos} videos: {summary.scored} {done} now, {summary.reused} finished before, "
        f"{len(summary.failures)} failed"
    )
    for failure in summary.failures:
        print(f"  failed: {failure['video']} ({len(failure['questions'])} questions): {failure['reason']}")
