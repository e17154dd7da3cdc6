"""What keyframes.py --fast finds, and how long it takes, beside looking at all candidates.

    python benchmarks/fast.py --video talk.mp4 "a bicycle"

compares both on the films of needles.py, by their stored scores, and searches a video of one's own both ways.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from needles import ROOT, SEEDS, make_case

from aks import errors
from aks.arguments import ArgumentParser, at_least
from aks.compare import Case
from aks.evidence import distances
from aks.scorers import SCORERS
from aks.selection import select_positions

if TYPE_CHECKING:
    from aks.extraction.keyframes import Curve

TOLERANCE_S = 1.0


def compare_on_films(case: Case, folder: Path, budget: int) -> dict[str, float]:
    """Means over the questions: the share that is looked at, recall within 1 s, keyframes in common."""
    from aks.extraction.coarse_to_fine import Scored, probe_candidates, score_some
    from aks.video.reader import EVERY_SECOND, CandidateRule

    probe_once, rows = lru_cache(probe_candidates), []
    for question, scores, frames, times in zip(
        case.questions, case.scores, case.frames, case.times_s, strict=True
    ):
        info, entry_distances = probe_once(folder / question.video, EVERY_SECOND, "auto")

        def score(rule: CandidateRule, columns: tuple = (frames, times, scores[None])) -> Scored:
            at = slice(None) if rule.positions is None else list(rule.positions)
            return Scored(None, *(column[..., at] for column in columns), None)

        some = score_some(info, entry_distances, EVERY_SECOND, budget, score)
        chosen = select_positions(scores, budget)
        found = select_positions(some.scores[0], budget)
        by_fast = set(some.frame_indices[found].tolist())
        evenly = select_positions(scores, budget, strategy="uniform")
        evidence = question.evidence_times_s
        lengths_s = np.array([last - first for first, last in evidence])
        hits = [
            distances(seconds, evidence).min(axis=1) <= TOLERANCE_S
            for seconds in (times[chosen], some.times_s[found], times[evenly])
        ]
        is_long = lengths_s >= 2
        rows.append(
            {
                "looked at": len(some.frame_indices) / len(frames),
                "in common": len(by_fast.intersection(frames[chosen].tolist())) / budget,
                **dict(zip(("all", "fast", "uniform"), map(np.mean, hits), strict=True)),
                "all, 2 s or longer": hits[0][is_long].mean() if is_long.any() else np.nan,
                "fast, 2 s or longer": hits[1][is_long].mean() if is_long.any() else np.nan,
            }
        )
    return {name: float(np.nanmean([row[name] for row in rows])) for name in rows[0]}


def time_both(args: argparse.Namespace) -> Iterator[dict[str, float | str]]:
    """A row for a pass over all candidates, and one for each budget's fast pass, as they come."""
    from aks.extraction.keyframes import find_in_file
    from aks.scorers.base import load_scorer

    scorer = load_scorer(args.extract_feature_model, checkpoint=args.checkpoint, device=args.device)

    def search(budget: int, fast: bool) -> tuple[Curve, float, float]:
        started, used = time.monotonic(), sum(os.times()[:4])
        settings = {"fast": fast, "workers": args.workers}
        _, (found,) = find_in_file(args.video, [args.question], scorer, budget, **settings)
        return found.curve, time.monotonic() - started, sum(os.times()[:4]) - used

    full, *seconds = search(1, False)
    yield dict(zip(("pass", "seconds", "of processors"), ("all", *seconds), strict=True))
    for budget in args.budgets:
        some, *fast_seconds = search(budget, True)
        frames = [
            set(curve.frame_indices[select_positions(curve.scores, budget)].tolist())
            for curve in (full, some)
        ]
        yield {
            "pass": f"fast, {budget} frames",
            "seconds": fast_seconds[0],
            "of processors": fast_seconds[1],
            "all / fast": seconds[0] / fast_seconds[0],
            "of processors: all / fast": seconds[1] / fast_seconds[1],
            "looked at": len(some.scores) / len(full.scores),
            "in common": len(frames[0] & frames[1]) / budget,
        }


def parse_arguments() -> argparse.Namespace:
    """The command's flags."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("question", nargs="?", default="a rabbit", help="about the video")
    parser.add_argument("--video", type=Path, help="search this one both ways (default: films alone)")
    parser.add_argument("--budgets", type=at_least(1), nargs="+", default=[8, 32])
    parser.add_argument("--seeds", type=at_least(0), nargs="*", default=list(SEEDS), help="two films each")
    parser.add_argument("--workers", type=at_least(0), default=0, help="decoding processes")
    parser.add_argument("--extract_feature_model", default="conse", choices=SCORERS)
    parser.add_argument("--checkpoint")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sources", type=Path, default=ROOT / "demo/work/sources", help="for downloads")
    parser.add_argument("--photos", type=Path, help="photos and captions in the place of Tux Paint's stamps")
    parser.add_argument("--output", type=Path, default=ROOT / "results/needles")
    return parser.parse_args()


def main() -> None:
    """Print the tables."""
    args = parse_arguments()
    if args.seeds:
        case = make_case(args)
        rows = [compare_on_films(case, args.output, budget) for budget in args.budgets]
        print(
            f"| {len(case.questions)} questions | " + " | ".join(f"{b} frames" for b in args.budgets) + " |"
        )
        print("|---|" + "---|" * len(rows))
        for name in rows[0]:
            label = name if name in ("looked at", "in common") else f"recall within 1 s: {name}"
            print(f"| {label} | " + " | ".join(f"{row[name]:.3f}" for row in rows) + " |")
    if args.video:
        for row in time_both(args):
            cells = [f"{name} {value:.3g}" for name, value in row.items() if name != "pass"]
            print(f"{row['pass']}: " + ", ".join(cells), flush=True)


if __name__ == "__main__":
    errors.run_main(main)
