"""Compare selection rules on films in which the places of the evidence are known.

    python benchmarks/needles.py

makes the films, scores them as feature_extract.py does, and compares all rules by aks.compare. Films that are
made and videos that are scored are not made or scored again.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import needle_films

from aks import compare, errors
from aks.arguments import ArgumentParser, at_least
from aks.compare import Case
from aks.labels import load_labels
from aks.score_lists import read_number_lists, read_scores
from aks.scorers import SCORERS

ROOT = Path(__file__).resolve().parent.parent

SEEDS = (4, 5, 6, 7, 8, 9)  # 0 to 3 are those on which rules and their options were chosen


def make_case(args: argparse.Namespace) -> Case:
    """Make and score the films of all seeds, but for those that are there."""
    photos, source = args.photos or args.sources / "stamps", args.sources / "needles.mp4"
    if not args.photos:
        needle_films.fetch_stamps(photos)
    needle_films.read_things(photos)  # a wrong folder is told before anything slow

    from aks.cores import limit_threads
    from aks.extraction.api import extract  # imports torch, which takes seconds
    from aks.run_dir import RunDir
    from aks.scorers.base import load_scorer
    from demo.make_film import FILM, fetch

    if not source.exists():
        fetch(args.sources)
        needle_films.shrink_source(args.sources / FILM, source)
    limit_threads()
    scorer = load_scorer(args.extract_feature_model, checkpoint=args.checkpoint, device=args.device)
    case = Case([], [], [], [])
    for seed in dict.fromkeys(args.seeds):
        label_file = needle_films.make_films(args.output / f"seed_{seed}", seed, photos, source)
        labels = load_labels("custom", label_file=label_file)
        run = RunDir(label_file.parent / "outscores/custom" / scorer.name)
        if not extract(labels, scorer, run).complete:
            raise errors.UserError(f"{run.folder}/failures.json: a film cannot be scored; see there")
        for question in labels.questions:
            video = f"seed_{seed}/{question.video}"
            case.questions.append(replace(question, index=len(case.questions), video=video))
        scores, frames = read_scores(run.folder / "scores.json", run.folder / "frames.json")
        case.scores.extend(scores)
        case.frames.extend(frames)
        case.times_s.extend(read_number_lists(run.folder / "times.json"))
    return case


def parse_arguments() -> argparse.Namespace:
    """The command's flags."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--seeds", type=at_least(0), nargs="+", default=list(SEEDS), help="two films each")
    parser.add_argument("--extract_feature_model", default="conse", choices=SCORERS)
    parser.add_argument("--checkpoint")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sources", type=Path, default=ROOT / "demo/work/sources", help="for downloads")
    parser.add_argument("--photos", type=Path, help="photos and captions in the place of Tux Paint's stamps")
    compare.add_flags(parser, ROOT / "results/needles")
    return parser.parse_args()


@errors.when_interrupted("finished films and scores are kept, the same command goes on with the others")
def main() -> None:
    """Make and score the films, compare."""
    args = parse_arguments()
    compare.check_flags(args)
    compare.report(make_case(args), args, ["python", "benchmarks/needles.py", *sys.argv[1:]])


if __name__ == "__main__":
    errors.run_main(main)
