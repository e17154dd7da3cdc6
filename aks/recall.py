"""Evidence recall: how much of the labelled evidence a selection has in view. No language model.

For a question it is the share of its evidence positions that have a selected frame within a
tolerance; for a group of questions the mean of that. Beside it stands uniform sampling at the same
budget. As a command::

    python -m aks.recall --dataset_name longvideobench --selected_frames selected_frames.json
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aks import errors
from aks.jsonio import read_json, write_json
from aks.labels import LabelSet, Question, load_labels
from aks.score_lists import check_frame_numbers, infer_stride, read_number_lists

TOLERANCES_S = (1.0, 3.0, 5.0)


def evidence_recall(
    selected: Sequence[float] | np.ndarray, evidence: Sequence[tuple[float, float]], tolerance: float
) -> float:
    """Share of evidence with a selected position within ``tolerance``, all in one unit.

    >>> evidence_recall([0, 48], [(50, 60), (100, 100)], tolerance=24)
    0.5

    Args:
        selected: selected positions, (n,).
        evidence: (first, last) positions; a selected one between them is at distance 0.
        tolerance: greatest distance that counts.

    Raises:
        ValueError: there is no evidence.
    """
    if not len(evidence):
        raise ValueError("recall needs at least one piece of evidence")
    return float(_found(selected, evidence, tolerance).mean())


def _found(
    selected: Sequence[float] | np.ndarray, evidence: Sequence[tuple[float, float]], tolerance: float
) -> np.ndarray:
    """Which pieces of evidence have a selected position within the tolerance, (n,) bool."""
    at = np.asarray(selected, dtype=np.float64)
    first, last = np.asarray(evidence, dtype=np.float64).T
    distance = np.maximum(first[:, None] - at, at - last[:, None]).min(axis=1, initial=np.inf)
    return distance <= tolerance


def uniform_frames(duration_s: float, stride_frames: int, budget: int) -> np.ndarray:
    """Uniform sampling in frame numbers, (min(budget, whole seconds),) int64, at least one.

    ``int(duration * stride / m) * i`` for ``m = min(budget, int(duration))``: the rule by which the
    published recall figures were computed.
    """
    count = max(1, min(budget, int(duration_s)))
    return int(duration_s * stride_frames / count) * np.arange(count)


def uniform_times(duration_s: float, budget: int) -> np.ndarray:
    """Uniform sampling in seconds, (min(budget, whole seconds),) float64, at least one."""
    count = max(1, min(budget, int(duration_s)))
    return duration_s / count * np.arange(count)


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


@dataclass(frozen=True)
class _Evidence:
    """Evidence of a question and selections in one unit, ``per_second`` units a second."""

    evidence: tuple[tuple[float, float], ...]
    selected: np.ndarray
    uniform: np.ndarray | None
    per_second: float


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

    Evidence in frame numbers is compared with frame numbers (a second is one candidate stride), and
    evidence in seconds with the selected frames' times; a question may have both.

    Args:
        questions: of the label file.
        frames: selected frame numbers, one array a question.
        budget: frames that uniform sampling may use.
        strides: candidate stride of each question's video in frames; None guesses it by
            :func:`infer_stride`, which is for selections that come without their candidates.
        times_s: selected frames' times, one array a question; needed for evidence in seconds.
        tolerances_s: tolerances in seconds.

    Returns:
        A row a group in the order of their names (numbers by value), the row ``all`` last; and the number of
        questions left out because their stride is unknown (fewer than two selected frames).

    Raises:
        ValueError: no question has evidence, evidence in seconds comes without ``times_s``, or one of several
            groups is named ``all``.
    """
    cases: dict[str, list[list[_Evidence]]] = {}
    unknown = 0
    for question in questions:
        selected, of_question = frames[question.index], []
        if question.evidence_frames:
            stride = strides[question.index] if strides is not None else infer_stride(selected)
            if not stride:
                unknown += 1
                continue
            uniform = None
            if question.duration_s is not None:
                uniform = uniform_frames(question.duration_s, stride, budget)
            of_question.append(_Evidence(question.evidence_frames, selected, uniform, stride))
        if question.evidence_times_s:
            if times_s is None:
                raise ValueError("evidence in seconds needs the selected frames' times")
            uniform = None
            if question.duration_s is not None:
                uniform = uniform_times(question.duration_s, budget)
            of_question.append(_Evidence(question.evidence_times_s, times_s[question.index], uniform, 1))
        if of_question:
            cases.setdefault(question.group, []).append(of_question)
    if not cases and unknown:
        raise ValueError("too few frames are selected to tell any video's stride; give --frame_path")
    if not cases:
        raise ValueError("no question has evidence positions")
    rows = [_row(group, cases[group], tolerances_s) for group in sorted(cases, key=_group_order)]
    if len(rows) > 1:
        if "all" in cases:
            raise ValueError("a group is named 'all', as the row of all groups is; rename it")
        rows.append(_row("all", [case for group in cases.values() for case in group], tolerances_s))
    return rows, unknown


def _row(group: str, cases: list[list[_Evidence]], tolerances_s: Sequence[float]) -> Recall:
    def mean(which: str, tolerance: float) -> float:
        found = [
            [_found(getattr(c, which), c.evidence, tolerance * c.per_second) for c in of_question]
            for of_question in cases
        ]
        return float(np.mean([np.concatenate(pieces).mean() for pieces in found]))

    known = all(case.uniform is not None for of_question in cases for case in of_question)
    return Recall(
        group,
        len(cases),
        {tolerance: mean("selected", tolerance) for tolerance in tolerances_s},
        {tolerance: mean("uniform", tolerance) for tolerance in tolerances_s} if known else {},
    )


def _group_order(group: str) -> tuple[bool, float, str]:
    try:
        value = float(group)
    except ValueError:
        value = math.nan
    return (False, value, "") if math.isfinite(value) else (True, 0.0, group)


def format_table(rows: Sequence[Recall]) -> str:
    """A table for people: groups down, tolerances across, selection beside uniform."""
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
    parser = errors.ArgumentParser(
        prog="python -m aks.recall",
        description="Share of labelled evidence positions with a selected frame nearby.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--selected_frames", required=True, help="a selection, ours or the released ones")
    parser.add_argument("--dataset_name", default="longvideobench", help="longvideobench or custom")
    parser.add_argument("--dataset_path", help="folder of the data set")
    parser.add_argument("--label_file", help="a label file in place of the data set's own")
    parser.add_argument("--frame_path", help="frames.json of step 1: states each video's stride")
    parser.add_argument(
        "--max_num_frames", type=int, help="uniform's budget (default: the longest selection)"
    )
    parser.add_argument(
        "--tolerances", type=float, nargs="+", default=list(TOLERANCES_S), help="tolerances in seconds"
    )
    parser.add_argument("--output_file", help="also write the table to this JSON file")
    return parser.parse_args()


def main() -> None:
    """Print the table of one selection."""
    args = parse_arguments()
    if args.max_num_frames is not None and args.max_num_frames < 1:
        raise errors.UserError(f"--max_num_frames {args.max_num_frames}: must be 1 or more")
    for tolerance in args.tolerances:
        if not 0 <= tolerance < math.inf:
            raise errors.UserError(f"--tolerances {tolerance:g}: must be a number, 0 or more")
    labels = load_labels(args.dataset_name, args.dataset_path, args.label_file)
    path = Path(args.selected_frames)
    frames = check_frame_numbers(path, _for_labels(path, labels))
    strides, times = _strides(args.frame_path, path, labels), None
    times_path = path.with_name("selected_times.json")
    if path.name == "selected_frames.json" and times_path.exists():
        times = _for_labels(times_path, labels)
        if [len(row) for row in times] != [len(row) for row in frames]:
            raise errors.UserError(f"{times_path}: does not fit {path}; run frame_select.py again")
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


def _strides(frame_path: str | None, selection: Path, labels: LabelSet) -> list[int] | None:
    """Each question's stride, by frames.json or the record beside a selection; None if neither tells."""
    if frame_path:
        path = Path(frame_path)
        return [infer_stride(row) for row in check_frame_numbers(path, _for_labels(path, labels))]
    record = selection.with_name("selection.json")
    if selection.name != "selected_frames.json" or not record.exists():
        return None
    made = read_json(record)
    strides = made.get("strides") if isinstance(made, dict) else None
    whole = isinstance(strides, list) and all(type(stride) is int and stride >= 0 for stride in strides)
    if not whole or len(strides) != len(labels.questions):
        raise errors.UserError(
            f"{record}: its strides are not {len(labels.questions)} whole numbers; run frame_select.py again"
        )
    return strides


def _for_labels(path: Path, labels: LabelSet) -> list[np.ndarray]:
    rows = read_number_lists(path)
    if len(rows) != len(labels.questions):
        raise errors.UserError(
            f"{path} holds {len(rows)} questions and {labels.path} {len(labels.questions)}; "
            "they must belong together"
        )
    return rows


if __name__ == "__main__":
    errors.run_main(main)
