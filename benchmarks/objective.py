"""How far TOP, BIN and ADA are from the maximum of the paper's objective, relevance + lambda * coverage.

    python benchmarks/objective.py --score_path demo/work/outscores/custom/conse/scores.json \\
        --label_file demo/work/labels.json --max_num_frames 16

A row a lambda: how much the score of each selected frame would have to rise to make up for the objective that
a rule leaves, on average over the questions; 0 is the maximum, found by dynamic programming. With labels that
say where the evidence is, also the maximum's evidence recall, and the rules' in the last line.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from aks import errors
from aks.arguments import ArgumentParser, at_least
from aks.jsonio import write_json
from aks.labels import load_labels
from aks.recall import recall_table
from aks.score_lists import read_number_lists, read_scores
from aks.selection import normalize, select_positions
from aks.strategies.maximum import levels_of, objective

RULES = ("top", "bin", "ada")


def main() -> None:
    """Select by every rule and lambda, print the table."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--score_path", type=Path, required=True, help="scores.json, frames.json beside it")
    parser.add_argument("--label_file", help="labels of one's own, for recall; times.json beside the scores")
    parser.add_argument("--max_num_frames", type=at_least(1), default=64)
    parser.add_argument("--all_depth", type=at_least(0), default=5)
    parser.add_argument("--t1", type=float, default=0.8)
    parser.add_argument("--weights", type=float, nargs="+", default=[0, 0.02, 0.05, 0.1, 0.2, 0.5, 1])
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    args = parser.parse_args()
    budget, levels = args.max_num_frames, levels_of(args.max_num_frames, args.all_depth)
    scores, frames = read_scores(args.score_path, args.score_path.with_name("frames.json"))
    settings = {"t1": args.t1, "max_depth": args.all_depth}
    long_enough = [index for index, row in enumerate(scores) if len(row) >= budget]
    labels = load_labels("custom", label_file=args.label_file) if args.label_file else None
    times = read_number_lists(args.score_path.with_name("times.json")) if labels else None

    def recall(chosen: list[np.ndarray]) -> str:
        rows, _ = recall_table(
            labels.questions,
            [row[positions] for row, positions in zip(frames, chosen, strict=True)],
            budget,
            times_s=[row[positions] for row, positions in zip(times, chosen, strict=True)],
        )
        return f"{rows[-1].selected[1.0]:.3f}"

    by_rule = {
        rule: [select_positions(row, budget, strategy=rule, **settings) for row in scores] for rule in RULES
    }
    print(f"{len(long_enough)} questions with at least {budget} candidates, {levels} levels")
    print(
        "lambda   " + "".join(f"{rule:>9}" for rule in RULES) + ("   recall of the maximum" if labels else "")
    )
    records = []
    for weight in args.weights:
        options = {"weight": weight}
        best = [
            select_positions(row, budget, strategy="maximum", options=options, **settings) for row in scores
        ]
        record: dict[str, object] = {"lambda": weight}
        for rule in RULES:
            gaps = []
            for index in long_enough:
                normalized = normalize(scores[index])
                most, own = (
                    objective(normalized, row[index], weight, levels) for row in (best, by_rule[rule])
                )
                gaps.append((most - own) / budget)
            record[rule] = float(np.mean(gaps)) if gaps else None
        if labels:
            record["recall"] = recall(best)
        records.append(record)
        cells = "".join(f"{record[rule]:9.4f}" for rule in RULES)
        print(f"{weight:<9g}{cells}" + (f"{record['recall']:>12}" if labels else ""), flush=True)
    if labels:
        print("recall within 1 s: " + ", ".join(f"{rule} {recall(by_rule[rule])}" for rule in RULES))
    if args.out:
        write_json(args.out, records, indent=1)


if __name__ == "__main__":
    errors.run_main(main)
