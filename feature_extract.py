"""Step 1: videos and questions to relevance scores, one score a candidate frame.

Writes scores.json, frames.json and times.json under <output_file>/<dataset_name>/<model>/. A run that
was stopped goes on where it stopped when the same command is given again.
"""

from __future__ import annotations

import sys
from pathlib import Path

from aks import cli, errors
from aks.outscores import RunFolder


def main() -> int:
    """Score, then say what was done; 1 if a video failed."""
    parser = cli.parser(__doc__, output="./outscores")
    parser.add_argument("--blip_head", help="blip: itm (default, the paper's) or itc")
    parser.add_argument("--features", help="score the features stored in this folder; no video is needed")
    parser.add_argument(
        "--allow_missing",
        action="store_true",
        help="write the files although videos failed; empty lists for them",
    )
    args = parser.parse_args()
    labels = cli.load_question_set(args)

    from aks.extraction import extract
    from aks.features import FeatureStore

    store = FeatureStore.open(Path(args.features)) if args.features else None
    scorer = cli.load_scorer(args)
    run = RunFolder(Path(args.output_file) / args.dataset_name / args.extract_feature_model)
    summary = extract(
        labels,
        scorer,
        run,
        decoder=args.decoder,
        batch_frames=args.batch_size,
        allow_missing=args.allow_missing,
        features=store,
    )
    cli.report(summary, "scored")
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
    sys.stdout.flush()
    return 1 if summary.failures else 0


if __name__ == "__main__":
    errors.run(main)
