"""Evidence recall: how much of the labelled evidence a selection shows, measured without a language model.

A question's recall is the share of its evidence positions that have a selected frame within a tolerance; a
group's recall is the mean over its questions. Uniform sampling at the same budget is measured beside it.

    %(prog)s --dataset_name longvideobench --selected_frames selected_frames.json
    %(prog)s --dataset_name custom --label_file labels.json --selected_frames chosen.json --tolerances 1 5
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from aks import errors
from aks.arguments import ArgumentParser, at_least
from aks.cli import add_dataset_flags
from aks.evidence import TOLERANCES_S, Pairs, evidence_distances, found_within, group_order, has_evidence
from aks.jsonio import write_json
from aks.labels import Question, load_labels
from aks.score_lists import check_frame_numbers, infer_stride
from aks.selected_frames import SelectedFrames, read_lists, read_strides, read_times, uniform_of


@dataclass(frozen=True)
class Recall:
    """Recall of a group of questions.

    Attributes:
        group: the group's name; ``all`` for every question.
        questions: how many questions it holds.
        selected: tolerance in seconds to recall of the selection.
        uniform: likewise of uniform sampling at the same budget; empty where durations are unknown.
    """

    group: str
    questions: int
    selected: dict[float, float]
    uniform: dict[float, float]


def recall_table(
    questions: Sequence[Question],
    frames: Sequence[np.ndarray],
    budget: int,
    *,
    strides: Sequence[int] | None = None,
    times_s: Sequence[np.ndarray] | None = None,
    tolerances_s: Sequence[float] = TOLERANCES_S,
) -> tuple[list[Recall], int]:
    """Recall by group and over all questions that have evidence.

    Evidence in frame indices is compared with frame indices (a second is one candidate stride), evidence in
    seconds with the selected frames' times. A question may have both.

    Args:
        questions: of the label file.
        frames: selected frame indices, one array a question.
        budget: frames that uniform sampling may use.
        strides: candidate stride of each question's video in frames; None infers it from the selected
            frames by :func:`infer_stride`, for selections that come without their candidates.
        times_s: selected frames' times, one array a question; needed for evidence in seconds.
        tolerances_s: tolerances in seconds.

    Returns:
        One row for each group, in the order of their names (numbers by value), then the row ``all``; and the
        number of questions left out because their stride is unknown (fewer than two selected frames).

    Raises:
        ValueError: no question has evidence, evidence in seconds comes without ``times_s``, or one of several
            groups is named ``all``.
    """
    by_group: dict[str, list[tuple[Pairs, Pairs]]] = {}
    unknown = 0
    for question in questions:
        if not has_evidence(question):
            continue
        if question.evidence_times_s and times_s is None:
            raise ValueError("evidence in seconds needs the selected frames' times")
        row = frames[question.index]
        stride = infer_stride(row) if strides is None else strides[question.index]
        times = np.full(len(row), np.nan) if times_s is None else times_s[question.index]
        selected = evidence_distances(question, SelectedFrames(row, times, stride))
        if not selected:
            unknown += 1
            continue
        uniform = uniform_of(question, stride, budget)
        distances = selected, evidence_distances(question, uniform) if uniform else []
        by_group.setdefault(question.group, []).append(distances)
    if not by_group and unknown:
        raise ValueError("too few frames are selected to tell any video's stride; give --frame_path")
    if not by_group:
        raise ValueError("no question has evidence positions")
    rows = [_row(group, by_group[group], tolerances_s) for group in sorted(by_group, key=group_order)]
    if len(rows) > 1:
        if "all" in by_group:
            raise ValueError("a group is named 'all', as the row of all groups is; rename it")
        rows.append(_row("all", list(chain.from_iterable(by_group.values())), tolerances_s))
    return rows, unknown


def _row(group: str, questions: list[tuple[Pairs, Pairs]], tolerances_s: Sequence[float]) -> Recall:
    """Mean recall of a group; without uniform sampling's where a question's duration is unknown."""
    selected, uniform = zip(*questions, strict=True)

    def mean_recall(of: Sequence[Pairs]) -> dict[float, float]:
        return {t: float(np.mean([found_within(pairs, t).mean() for pairs in of])) for t in tolerances_s}

    return Recall(group, len(questions), mean_recall(selected), mean_recall(uniform) if all(uniform) else {})


def format_table(rows: Sequence[Recall]) -> str:
    """The table as text: groups down, tolerances across, the selection's recall beside uniform's."""
    tolerances = list(rows[0].selected)
    width = max(5, *(len(row.group) for row in rows))
    head = "".join(f"  within {tolerance:g} s".ljust(20) for tolerance in tolerances)
    lines = [
        " " * (width + 11) + head.rstrip(),
        "group".ljust(width) + "  questions" + "  selected  uniform " * len(tolerances),
    ]
    for row in rows:
        cells = "".join(
            f"{row.selected[t]:10.3f}" + (f"{row.uniform[t]:9.3f} " if row.uniform else f"{'-':>9} ")
            for t in tolerances
        )
        lines.append(f"{row.group.ljust(width)}  {row.questions:9d}{cells}".rstrip())
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    """The command's flags."""
    parser = ArgumentParser(__doc__)
    source = parser.add_argument_group("what to measure")
    source.add_argument("--selected_frames", required=True, help="a selection, ours or the released ones")
    source.add_argument("--frame_path", help="frames.json of step 1: states each video's stride")
    add_dataset_flags(parser)
    measure = parser.add_argument_group("measure")
    measure.add_argument(
        "--max_num_frames", type=at_least(1), help="uniform's budget (default: the longest selection)"
    )
    measure.add_argument(
        "--tolerances",
        type=at_least(0, float),
        nargs="+",
        default=list(TOLERANCES_S),
        help="tolerances in seconds",
    )
    parser.add_argument("--output_file", help="also write the table to this JSON file")
    return parser.parse_args()


def main() -> None:
    """Print one selection's recall table, and what is missing in it."""
    args = parse_arguments()
    labels = load_labels(args.dataset_name, args.dataset_path, args.label_file)
    path = Path(args.selected_frames)
    frames = check_frame_numbers(path, read_lists(path, labels))
    strides, times = read_strides(args.frame_path, path, labels), read_times(path, labels, frames)
    times_path = path.with_name("selected_times.json")
    budget = args.max_num_frames or max(map(len, frames))
    try:
        rows, unknown = recall_table(
            labels.questions, frames, budget, strides=strides, times_s=times, tolerances_s=args.tolerances
        )
    except ValueError as error:
        raise errors.UserError(
            f"{labels.path}: {error}"
            if times or "times" not in str(error)
            else f"{times_path}: {error}; select with times.json beside frames.json"
        ) from None
    print(format_table(rows))
    if strides is None and any(question.evidence_frames for question in labels.questions):
        print("candidate strides are guessed from the selected frames; --frame_path states them")
    if unknown:
        print(f"{unknown} questions left out: too few frames to tell the stride; give --frame_path")
    if not all(row.uniform for row in rows):
        print("uniform needs the label file to state every video's duration in seconds")
    if args.output_file:
        write_json(Path(args.output_file), [vars(row) for row in rows], indent=2)


if __name__ == "__main__":
    errors.run_main(main)
