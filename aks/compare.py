"""Compare selection rules on scores whose questions have labelled evidence, without a language model.

    %(prog)s --dataset_name longvideobench --score_path outscores/longvideobench/blip/scores.json
    %(prog)s --dataset_name custom --label_file labels.json --score_path scores.json --rules ada top uniform

Every rule that runs on scores alone selects 8, 16, 32 and 64 frames a question: recall of the evidence and
the other measures of aks.quality, with 95 % intervals over videos, and the differences from ADA and from
uniform sampling on the same questions. comparison.csv holds all figures, comparison.md the tables; plots show
recall by budget, and ADA's by depth and threshold.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from aks import errors
from aks.arguments import ArgumentParser, at_least
from aks.cli import add_dataset_flags
from aks.comparison_tables import markdown, small_table
from aks.console import progress
from aks.evidence import TOLERANCES_S, evidence_in_seconds, has_evidence
from aks.jsonio import make_folder, write_atomically, write_csv
from aks.labels import Question, load_labels
from aks.plots import plot_budgets, plot_choices, plot_grid
from aks.quality import compare, groupings_of, measure_all
from aks.score_lists import infer_stride, read_candidate_times, read_scores
from aks.selected_frames import SelectedFrames, check_count
from aks.selection import STRATEGIES, needs_features, select_positions

BUDGETS = (8, 16, 32, 64)
PICTURED_BUDGET = 16
REFERENCES = ("ada", "uniform")
SETTINGS = ("t1", "t2", "max_depth")  # of a rule that are no options of its own
DEPTHS, THRESHOLDS = range(1, 7), (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the paper's table


@dataclass(frozen=True)
class Case:
    """Questions with scores: what rules are compared on.

    Attributes:
        questions: ``index`` is a question's place in these lists.
        scores: by question (n,) float64.
        frames: by question the candidates' frame indices, (n,) int64.
        times_s: by question their times in seconds, (n,) float64.
    """

    questions: list[Question]
    scores: list[np.ndarray]
    frames: list[np.ndarray]
    times_s: list[np.ndarray]


@dataclass(frozen=True)
class Rule:
    """A strategy with settings; ``name`` is as it was given: ``bolt`` or ``bolt,power=2``."""

    name: str
    strategy: str
    settings: dict[str, Any]

    def select(self, scores: np.ndarray, budget: int) -> np.ndarray:
        """Positions among the candidates, ascending."""
        return select_positions(scores, budget, strategy=self.strategy, **self.settings)


def parse_rule(text: str) -> Rule:
    """An argparse type: STRATEGY, or STRATEGY,NAME=VALUE,... with its options, t1, t2 or max_depth."""
    strategy, *pairs = text.split(",")
    settings: dict[str, Any] = {"options": {}}
    try:
        for pair in pairs:
            name, _, value = pair.partition("=")
            try:
                (settings if name in SETTINGS else settings["options"])[name] = float(value)
            except ValueError:
                raise ValueError(f"{pair!r} is not NAME=VALUE with a number") from None
        if strategy in STRATEGIES and needs_features(strategy):
            raise ValueError("it needs more than scores")
        rule = Rule(text, strategy, settings)
        rule.select(np.zeros(1), 1)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}; such as bolt or bolt,power=2") from None
    return rule


def default_rules() -> list[str]:
    """Every strategy that needs scores alone, and ADA also with the paper's other settings."""
    names = [name for name in STRATEGIES if not needs_features(name)]
    names.insert(names.index("ada") + 1, "ada,t1=0.2,max_depth=4")
    return names


def read_case(args: argparse.Namespace) -> Case:
    """The labels and scores that the flags name, but for questions without candidates.

    Raises:
        UserError: they do not fit one another.
    """
    labels = load_labels(args.dataset_name, args.dataset_path, args.label_file)
    frame_path = args.frame_path or args.score_path.with_name("frames.json")
    scores, frames = read_scores(args.score_path, frame_path)
    check_count(args.score_path, scores, labels)
    times = read_candidate_times(frame_path, frames)
    if times is None:  # one candidate a second
        times = [row / (infer_stride(row) or np.nan) for row in frames]
    kept = [index for index, row in enumerate(frames) if len(row)]
    if empty := len(frames) - len(kept):
        print(f"{empty} questions left out: they have no candidates (their video failed)")
    questions = [replace(labels.questions[index], index=place) for place, index in enumerate(kept)]
    return Case(questions, *([rows[index] for index in kept] for rows in (scores, frames, times)))


def select(case: Case, rule: Rule, budget: int) -> list[SelectedFrames]:
    """A rule's frames of every question."""
    selection = []
    for scores, frames, times in zip(case.scores, case.frames, case.times_s, strict=True):
        chosen = rule.select(scores, budget)
        selection.append(SelectedFrames(frames[chosen], times[chosen], infer_stride(frames)))
    return selection


def compare_rules(case: Case, rules: Sequence[Rule], budgets: Sequence[int]) -> list[dict[str, Any]]:
    """A record for each budget, group, measure and rule.

    It is that of :func:`aks.quality.compare` with ``budget``, but the difference from each rule of
    :data:`REFERENCES`, such as ``difference_ada``, ``difference_ada_low`` and ``difference_ada_high``.

    Raises:
        UserError: no question has evidence.
    """
    groupings = groupings_of(case.questions)
    records = []
    found = {}
    pairs = list(itertools.product(budgets, rules))
    for budget, rule in progress(iterable=pairs, unit="rule", desc="rules", delay=2):
        found[budget, rule.name] = measure_all(case.questions, select(case, rule, budget), TOLERANCES_S)
    for budget in budgets:
        measured = {rule.name: found[budget, rule.name] for rule in rules}
        merged: dict[tuple[str, ...], dict[str, Any]] = {}
        for reference in REFERENCES:
            for record in compare(case.questions, measured, reference, groupings):
                key = tuple(record[name] for name in ("grouping", "group", "measure", "selection"))
                row = merged.setdefault(key, {"budget": budget})
                for name, value in record.items():
                    row[name.replace("difference", f"difference_{reference}")] = value
        records.extend(merged.values())
    if not any(record["measure"].startswith("recall") for record in records):
        raise errors.UserError("no question has evidence that can be measured; see --label_file")
    return records


def recall_grids(case: Case, budget: int) -> dict[str, np.ndarray]:
    """ADA's mean recall over depth and threshold, (depths, thresholds), by the measure's name."""
    grids: dict[str, np.ndarray] = {}
    shape = len(DEPTHS), len(THRESHOLDS)
    for cell in progress(iterable=list(np.ndindex(shape)), unit="setting", desc="ada", delay=2):
        rule = Rule("ada", "ada", {"max_depth": DEPTHS[cell[0]], "t1": THRESHOLDS[cell[1]]})
        measured = measure_all(case.questions, select(case, rule, budget), TOLERANCES_S)
        for name, values in measured.items():
            if name.startswith("recall"):
                grids.setdefault(name, np.full(shape, np.nan))[cell] = np.nanmean(values)
    return grids


def add_flags(parser: argparse.ArgumentParser, output: Path) -> None:
    """Add the flags of :func:`report`."""
    what = parser.add_argument_group("comparison")
    what.add_argument(
        "--rules", type=parse_rule, nargs="+", help="STRATEGY or STRATEGY,NAME=VALUE,...: only these"
    )
    what.add_argument(
        "--budgets", type=at_least(1), nargs="+", default=list(BUDGETS), help="keyframes a question"
    )
    where = parser.add_argument_group("output")
    where.add_argument("--output", type=Path, default=output, help="folder for the tables and plots")
    where.add_argument(
        "--picture", type=Path, help="draw a question's scores and each rule's choice to this PNG"
    )
    where.add_argument("--pictured", help="the question's id (default: the first with evidence)")


def check_flags(args: argparse.Namespace) -> None:
    """Refuse wrong flags before anything slow.

    Raises:
        UserError: one lacks the flag that it belongs to, or names no PNG file.
    """
    if args.pictured and not args.picture:
        raise errors.UserError("--pictured goes with --picture, which names the file")
    if args.picture and args.picture.suffix != ".png":
        raise errors.UserError(f"--picture {args.picture}: name a file that ends in .png")


def report(case: Case, args: argparse.Namespace, command: Sequence[str]) -> None:
    """Compare the rules, print the small table, write tables and plots.

    Raises:
        UserError: no question has evidence, or not the pictured one; a file cannot be written.
    """
    rules = args.rules or [parse_rule(name) for name in default_rules()]
    names = [rule.name for rule in rules]
    rules = [parse_rule(name) for name in REFERENCES if name not in names] + rules
    with_evidence = {question.id: i for i, question in enumerate(case.questions) if has_evidence(question)}
    if args.pictured and args.pictured not in with_evidence:
        raise errors.UserError(f"--pictured {args.pictured}: no question with evidence has this id")
    if not with_evidence:
        raise errors.UserError("no question has evidence; see --label_file")
    folder = args.output
    for new in [folder, *([args.picture.parent] if args.picture else [])]:
        make_folder(new, "--output and --picture")
    budgets = sorted(set(args.budgets))
    records = compare_rules(case, rules, budgets)
    asked = next(record for record in records if record["measure"].startswith("recall"))
    if unknown := sum(map(has_evidence, case.questions)) - asked["questions"]:
        print(f"{unknown} questions left out: too few candidates to tell the stride")
    title = (
        f"{asked['questions']} questions with evidence on {asked['videos']} videos: `{shlex.join(command)}`"
    )
    text = markdown(title, records, REFERENCES)
    write_csv(folder / "comparison.csv", dict.fromkeys(name for r in records for name in r), records)
    write_atomically(folder / "comparison.md", lambda path: path.write_text(text, encoding="utf-8"))
    plot_budgets(folder / "recall_by_budget.png", records)
    grids = recall_grids(case, budgets[-1])
    grids = {f"{name}, {budgets[-1]} frames": grid for name, grid in grids.items()}
    plot_grid(folder / "depth_threshold.png", grids, DEPTHS, THRESHOLDS, "{:.3f}")
    print(small_table(records, REFERENCES))
    if args.picture:
        index = with_evidence[args.pictured] if args.pictured else next(iter(with_evidence.values()))
        question, scores, frames = (row[index] for row in (case.questions, case.scores, case.frames))
        times_s = case.times_s[index]
        evidence_s = evidence_in_seconds(question, frames, times_s)
        chosen = {rule.name: rule.select(scores, PICTURED_BUDGET) for rule in rules}
        title = f"{question.text} {PICTURED_BUDGET} frames a rule; green: where it is seen, red: found"
        plot_choices(args.picture, title, times_s, scores, evidence_s, chosen)
        print(f"wrote {args.picture}")
    print(f"wrote comparison.csv, comparison.md and the plots to {folder}")


def parse_arguments() -> argparse.Namespace:
    """The command's flags."""
    parser = ArgumentParser(__doc__)
    source = parser.add_argument_group("scores")
    source.add_argument("--score_path", type=Path, required=True, help="scores.json, anybody's")
    source.add_argument("--frame_path", type=Path, help="(default: frames.json beside the scores)")
    add_dataset_flags(parser)
    add_flags(parser, Path("results/comparison"))
    return parser.parse_args()


def main() -> None:
    """Compare all rules on the scores that the flags name."""
    args = parse_arguments()
    check_flags(args)
    report(read_case(args), args, [*errors.program().split(), *sys.argv[1:]])


if __name__ == "__main__":
    errors.run_main(main)
