"""Compare selection rules on films in which the places of the evidence are known.

    python benchmarks/needles.py                                # makes films, scores them, compares all rules
    python benchmarks/needles.py --score_path outscores/longvideobench/blip/scores.json \\
        --dataset_name longvideobench                           # the same comparison of anybody's scores

Every rule that runs on scores alone selects 8, 16, 32 and 64 frames a question: recall of the evidence and
the other measures of aks.quality, with 95 % intervals over videos, and the differences from ADA and from
uniform sampling on the same questions. needles.csv holds all figures, needles.md the tables. Films that are
made and videos that are scored are not made or scored again.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import needle_films
import needle_report

from aks import errors
from aks.cli import at_least
from aks.evidence import TOLERANCES_S
from aks.labels import DATASETS, Question, load_labels
from aks.quality import compare, measure_all
from aks.score_lists import infer_stride, read_number_lists, read_scores
from aks.scorers import SCORERS
from aks.selected_frames import SelectedFrames
from aks.selection import STRATEGIES, needs_features, select_positions

ROOT = Path(__file__).resolve().parent.parent

SEEDS = (4, 5, 6, 7, 8, 9)  # 0 to 3 are those on which rules and their options were chosen
BUDGETS = (8, 16, 32, 64)
PICTURED_BUDGET = 16
REFERENCES = ("ada", "uniform")
SETTINGS = ("t1", "t2", "max_depth")  # of a rule that are no options of its own


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
        for name, value in (pair.split("=") for pair in pairs):
            (settings if name in SETTINGS else settings["options"])[name] = float(value)
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
    """The labels and scores that the flags name.

    Raises:
        UserError: they do not fit one another.
    """
    labels = load_labels(args.dataset_name, args.dataset_path, args.label_file)
    frame_path = args.frame_path or args.score_path.with_name("frames.json")
    scores, frames = read_scores(args.score_path, frame_path)
    if len(scores) != len(labels.questions):
        raise errors.UserError(
            f"{args.score_path} holds {len(scores)} questions and {labels.path} {len(labels.questions)}; "
            "they must belong together"
        )
    time_path = frame_path.with_name("times.json")
    if time_path.exists():
        times = read_number_lists(time_path)
        if [len(row) for row in times] != [len(row) for row in frames]:
            raise errors.UserError(
                f"{time_path}: does not fit {frame_path}; both must come from the same run"
            )
    else:  # one candidate a second
        times = [row / (infer_stride(row) or np.nan) for row in frames]
    return Case(labels.questions, scores, frames, times)


def make_case(args: argparse.Namespace) -> Case:
    """Make and score the films of all seeds, but for those that are there."""
    from aks.cores import limit_threads
    from aks.extraction.api import extract
    from aks.run_dir import RunDir
    from aks.scorers.base import load_scorer
    from demo.make_film import FILM, fetch

    photos, source = args.photos or args.sources / "stamps", args.sources / "needles.mp4"
    if not args.photos:
        needle_films.fetch_stamps(photos)
    if not source.exists():
        fetch(args.sources)
        needle_films.shrink_source(args.sources / FILM, source)
    limit_threads()
    scorer = load_scorer(args.extract_feature_model, checkpoint=args.checkpoint, device=args.device)
    case = Case([], [], [], [])
    for seed in args.seeds:
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
    groupings = {name: [getattr(q, name) for q in case.questions] for name in ("group", "category")}
    groupings = {name: groups for name, groups in groupings.items() if len(set(groups)) > 1}
    records = []
    for budget in budgets:
        measured = {
            rule.name: measure_all(case.questions, select(case, rule, budget), TOLERANCES_S) for rule in rules
        }
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


def parse_arguments() -> argparse.Namespace:
    """The command's flags."""
    parser = errors.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--rules", type=parse_rule, nargs="+", help="STRATEGY or STRATEGY,NAME=VALUE,...: only these"
    )
    parser.add_argument("--budgets", type=at_least(1), nargs="+", default=list(BUDGETS))
    parser.add_argument("--output", type=Path, default=ROOT / "results/needles")
    films = parser.add_argument_group("films")
    films.add_argument("--seeds", type=at_least(0), nargs="+", default=list(SEEDS), help="two films each")
    films.add_argument("--extract_feature_model", default="conse", choices=SCORERS)
    films.add_argument("--checkpoint")
    films.add_argument("--device", default="cpu")
    films.add_argument("--sources", type=Path, default=ROOT / "demo/work/sources", help="for downloads")
    films.add_argument("--photos", type=Path, help="photos and captions in the place of Tux Paint's stamps")
    films.add_argument(
        "--picture", type=Path, help="draw a question's scores and each rule's choice to this PNG"
    )
    films.add_argument("--pictured", help="the question's id (default: the first)")
    given = parser.add_argument_group("scores of one's own, without films")
    given.add_argument("--score_path", type=Path)
    given.add_argument("--frame_path", type=Path, help="(default: frames.json beside the scores)")
    given.add_argument("--dataset_name", default="custom", choices=DATASETS)
    given.add_argument("--dataset_path")
    given.add_argument("--label_file")
    return parser.parse_args()


def main() -> None:
    """Make or read the scores, compare, print the small table, write the files."""
    args = parse_arguments()
    if not args.score_path and (args.frame_path or args.label_file or args.dataset_path):
        raise errors.UserError("--frame_path, --label_file and --dataset_path go with --score_path")
    if args.pictured and not args.picture:
        raise errors.UserError("--pictured goes with --picture, which names the file")
    rules = args.rules or [parse_rule(name) for name in default_rules()]
    names = [rule.name for rule in rules]
    rules = [parse_rule(name) for name in REFERENCES if name not in names] + rules
    case = read_case(args) if args.score_path else make_case(args)
    ids = [question.id for question in case.questions]
    with_evidence = [q.id for q in case.questions if q.evidence_times_s or q.evidence_frames]
    if args.pictured and args.pictured not in with_evidence:
        raise errors.UserError(f"--pictured {args.pictured}: no question with evidence has this id")
    records = compare_rules(case, rules, args.budgets)
    command = shlex.join(["python", "benchmarks/needles.py", *sys.argv[1:]])
    videos = len({question.video for question in case.questions})
    title = f"`{command}`: {len(case.questions)} questions on {videos} videos."
    needle_report.write_tables(args.output, title, records, REFERENCES)
    print(needle_report.small_table(records, REFERENCES))
    if args.picture:
        index = ids.index(args.pictured or with_evidence[0])
        question, scores, frames = (row[index] for row in (case.questions, case.scores, case.frames))
        stride = infer_stride(frames) or 1
        evidence_s = [
            *question.evidence_times_s,
            *((first / stride, last / stride) for first, last in question.evidence_frames),
        ]
        chosen = {rule.name: rule.select(scores, PICTURED_BUDGET) for rule in rules}
        title = f"{question.text} {PICTURED_BUDGET} frames a rule; green: where it is seen, red: found"
        needle_report.draw(args.picture, title, case.times_s[index], scores, evidence_s, chosen)
        print(f"wrote {args.picture}")
    print(f"wrote {args.output}/needles.csv and needles.md")


if __name__ == "__main__":
    errors.run_main(main)
