"""Step 1: videos and questions to relevance scores, one score a candidate frame.

Writes scores.json, frames.json and times.json under <output_file>/<dataset_name>/<model>/. A run that
was stopped goes on where it stopped when the same command is given again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from aks import errors
from aks.benchmarks import DATASETS, load_labels
from aks.outscores import RunFolder

MODELS = ("blip", "clip", "sevila", "conse")


def parse_arguments() -> argparse.Namespace:
    """The documented flags with the reference's defaults, and ours."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--dataset_name", default="longvideobench", help=f"one of {', '.join(DATASETS)}")
    parser.add_argument(
        "--dataset_path",
        help="folder of the data set (default: ./datasets/<dataset_name>; custom: the labels')",
    )
    parser.add_argument(
        "--label_file", help="a label file in place of the data set's own (needed for custom)"
    )
    parser.add_argument("--extract_feature_model", default="blip", help=f"one of {', '.join(MODELS)}")
    parser.add_argument("--checkpoint", help="weights: a hub name or a folder (default: the model's own)")
    parser.add_argument("--output_file", default="./outscores", help="folder for the scores")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--dtype", help="float32, float16 or bfloat16 (default: the original's precision)")
    parser.add_argument("--batch_size", type=int, default=16, help="frames decoded and encoded at a time")
    parser.add_argument("--decoder", default="auto", help="auto, decord or pyav")
    parser.add_argument(
        "--allow_missing",
        action="store_true",
        help="write the files although videos failed; empty lists for them",
    )
    return parser.parse_args()


def main() -> int:
    """Score, then say what was done; 1 if a video failed."""
    args = parse_arguments()
    if args.batch_size < 1:
        raise errors.UserError(f"--batch_size {args.batch_size}: must be 1 or more")
    labels = load_labels(args.dataset_name, args.dataset_path, args.label_file)

    from aks.extraction import extract  # torch takes seconds to load; label mistakes come first
    from aks.scorers import create_scorer
    from aks.video import check_decoder

    check_decoder(args.decoder)
    scorer = create_scorer(
        args.extract_feature_model, checkpoint=args.checkpoint, device=args.device, dtype=args.dtype
    )
    run = RunFolder(Path(args.output_file) / args.dataset_name / args.extract_feature_model)
    summary = extract(
        labels,
        scorer,
        run,
        decoder=args.decoder,
        batch_frames=args.batch_size,
        allow_missing=args.allow_missing,
    )
    print(
        f"{summary.videos} videos: {summary.scored} scored now, {summary.reused} finished before, "
        f"{len(summary.failures)} failed"
    )
    for failure in summary.failures:
        print(f"  failed: {failure['video']} ({len(failure['questions'])} questions): {failure['reason']}")
    if summary.complete:
        print(
            f"wrote {run.folder}/scores.json, frames.json and times.json ({len(labels.questions)} questions)"
        )
        if summary.empty_questions:
            print(f"  {summary.empty_questions} questions of failed videos have empty lists")
    else:
        print(
            f"scores.json not written: see {run.folder}/failures.json; mend the videos and run again, or add "
            "--allow_missing"
        )
    return 1 if summary.failures else 0


if __name__ == "__main__":
    errors.run(main)
