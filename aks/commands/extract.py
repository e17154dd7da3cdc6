"""Step 1: videos and questions to relevance scores, one score a candidate frame.

Writes scores.json, frames.json and times.json under <output_file>/<dataset_name>/<model>/. A run that
was stopped goes on where it stopped when the same command is given again.

    %(prog)s --dataset_name longvideobench --extract_feature_model blip --device cuda
    %(prog)s --dataset_name custom --label_file labels.json --extract_feature_model conse --device cpu
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from aks import cli, errors
from aks.run_dir import RunDir


@errors.when_interrupted("finished videos are kept, the same command goes on with the others")
def main() -> int:
    """Score, then say what was done; 1 if a video failed."""
    parser = cli.build_parser(__doc__, output="./outscores")
    step = parser.add_argument_group("this step alone")
    step.add_argument("--blip_head", help="blip: itm (default, the paper's) or itc")
    step.add_argument("--features", help="score the features stored in this folder; no video is needed")
    step.add_argument(
        "--allow_missing",
        action="store_true",
        help="write the files although videos failed; empty lists for them",
    )
    args = parser.parse_args()
    labels = cli.load_labels_from_args(args)

    from aks.extraction.api import extract, finish
    from aks.extraction.feature_store import FeatureStore

    store = FeatureStore.open(Path(args.features)) if args.features else None
    run = RunDir(Path(args.output_file).absolute() / args.dataset_name / args.extract_feature_model)
    work = functools.partial(extract, labels, run=run, features=store)
    if args.engine == "ray":
        scored = cli.run_on_ray(args, labels, run, work)
        summary = finish(labels, run, labels.jobs, scored, args.allow_missing)
    else:
        summary = work(
            cli.load_scorer_from_args(args), allow_missing=args.allow_missing, **cli.decode_settings(args)
        )
    status = cli.print_summary(summary, "scored")
    if summary.complete:
        print(
            f"wrote {run.folder}/scores.json, frames.json and times.json ({len(labels.questions)} questions)"
        )
        if summary.empty_questions:
            print(f"  {summary.empty_questions} questions of failed videos have empty lists")
    elif not summary.unfinished:
        print(
            f"scores.json not written: see {run.folder}/failures.json; mend the videos and run again, or add "
            "--allow_missing"
        )
    else:
        print("scores.json not written yet: the process that finishes the last video writes it")
    sys.stdout.flush()
    return status
