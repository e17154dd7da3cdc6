"""Evidence recall: how much of the labelled evidence a selection shows, measured without a language model.

A question's recall is the share of its evidence positions that have a selected frame within a tolerance; a
group's recall is the mean over its questions. Uniform sampling at the same budget is measured beside it. As
a command::

    python -m aks.recall --dataset_name longvideobench --selected_frames selected_frames.json
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aks import errors
from aks.cli import at_least
from aks.jsonio import read_json, write_json
from aks.labels import LabelSet, Question, load_labels
from aks.score_lists import check_frame_numbers, infer_stride, read_number_lists

TOLERANCES_S = (1.0, 3.0, 5.0)


def evidence_found(
    selected: Sequence[float] | np.ndarray, evidence: Sequence[tuple[float, float]], tolerance: float
) -> np.ndarray:
    """Which pieces of evidence have a selected position within ``tolerance``, (n,) bool.

    >>> evidence_found([0, 48], [(50, 60), (100, 100)], tolerance=24)
    array([ True, False])

    Args:
        selected: selected positions, in frames or in seconds.
        evidence: n (first, last) positions in the same unit; a selected one between them is at distance 0.
        tolerance: greatest distance that counts, in the same unit.
    """
    return distances(selected, evidence).min(axis=1, initial=np.inf) <= tolerance


def distances(selected: Sequence[float] | np.ndarray, evidence: Sequence[tuple[float, float]]) -> np.ndarray:
    """How far every selected position is from every piece of evidence, (pieces, positions) float64."""
    positions = np.asarray(selected, dtype=np.float64)
    first, last = np.asarray(evidence, dtype=np.float64).T[..., None]
    return np.maximum(0, np.maximum(first - positions, positions - last))


def uniform_frames(duration_s: float, stride_frames: int, budget: int) -> np.ndarray:
    """Uniform sampling in frame indices, (min(budget, whole seconds),) int64, at least one.

    The rule is ``int(duration * stride / m) * i`` for ``m = min(budget, int(duration))``, by which the
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


class _Evidence(NamedTuple):
    """A question's evidence beside two selections, all in one unit, of which ``per_second`` make a second."""

    evidence: Sequence[tuple[float, float]]
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
    by_group: dict[str, list[list[_Evidence]]] = {}
    unknown = 0
    for question in questions:
        duration_s, pieces = question.duration_s, []
        if question.evidence_frames:
            selected = frames[question.index]
            stride = infer_stride(selected) if strides is None else strides[question.index]
            if not stride:
                unknown += 1
                continue
            uniform = None if duration_s is None else uniform_frames(duration_s, stride, budget)
            pieces.append(_Evidence(question.evidence_frames, selected, uniform, stride))
        if question.evidence_times_s:
            if times_s is None:
                raise ValueError("evidence in seconds needs the selected frames' times")
            uniform = None if duration_s is None else uniform_times(duration_s, budget)
            pieces.append(_Evidence(question.evidence_times_s, times_s[question.index], uniform, 1))
        if pieces:
            by_group.setdefault(question.group, []).append(pieces)
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


def _row(group: str, questions: list[list[_Evidence]], tolerances_s: Sequence[float]) -> Recall:
    """Mean recall of a group; without uniform sampling's where a question's duration is unknown."""

    def recall(pieces: list[_Evidence], selection: str, tolerance_s: float) -> float:
        found = [
            evidence_found(getattr(p, selection), p.evidence, tolerance_s * p.per_second) for p in pieces
        ]
        return np.concatenate(found).mean()

    def mean_recall(selection: str) -> dict[float, float]:
        return {
            t: float(np.mean([recall(pieces, selection, t) for pieces in questions])) for t in tolerances_s
        }

    durations_known = all(piece.uniform is not None for pieces in questions for piece in pieces)
    return Recall(
        group, len(questions), mean_recall("selected"), mean_recall("uniform") if durations_known else {}
    )


def group_order(group: str) -> tuple[bool, float, str]:
    """Sort key of a group: numbers by their value, then names."""
    try:
        value = float(group)
    except ValueError:
        value = math.nan
    return (False, value, "") if math.isfinite(value) else (True, 0.0, group)


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
    parser = errors.ArgumentParser(
        prog="python -m aks.recall",
        description="Share of labelled evidence positions with a selected frame nearby.",
        formatter_class=errors.HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--selected_frames", required=True, help="a selection, ours or the released ones")
    parser.add_argument("--dataset_name", default="longvideobench", help="longvideobench or custom")
    parser.add_argument("--dataset_path", help="folder of the data set")
    parser.add_argument("--label_file", help="a label file in place of the data set's own")
    parser.add_argument("--frame_path", help="frames.json of step 1: states each video's stride")
    parser.add_argument(
        "--max_num_frames", type=at_least(1), help="uniform's budget (default: the longest selection)"
    )
    parser.add_argument(
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


def read_strides(frame_path: str | None, selection: Path, labels: LabelSet) -> list[int] | None:
    """Each question's candidate stride, from frames.json or the selection's record; None without either."""
    if frame_path:
        path = Path(frame_path)
        return [infer_stride(row) for row in check_frame_numbers(path, read_lists(path, labels))]
    record = selection.with_name("selection.json")
    if selection.name != "selected_frames.json" or not record.exists():
        return None
    content = read_json(record)
    strides = content.get("strides") if isinstance(content, dict) else None
    whole = isinstance(strides, list) and all(type(stride) is int and stride >= 0 for stride in strides)
    if not whole or len(strides) != len(labels.questions):
        raise errors.UserError(
            f"{record}: its strides are not {len(labels.questions)} whole numbers; run frame_select.py again"
        )
    return strides


def read_times(path: Path, labels: LabelSet, frames: list[np.ndarray]) -> list[np.ndarray] | None:
    """The selected frames' times in seconds, where frame_select.py left them beside the selection."""
    times_path = path.with_name("selected_times.json")
    if path.name != "selected_frames.json" or not times_path.exists():
        return None
    times = read_lists(times_path, labels)
    if [len(row) for row in times] != [len(row) for row in frames]:
        raise errors.UserError(f"{times_path}: does not fit {path}; run frame_select.py again")
    return times


def read_lists(path: Path, labels: LabelSet) -> list[np.ndarray]:
    """The lists of a file that must hold one for each question of the labels."""
    rows = read_number_lists(path)
    if len(rows) != len(labels.questions):
        raise errors.UserError(
            f"{path} holds {len(rows)} questions and {labels.path} {len(labels.questions)}; "
            "they must belong together"
        )
    return rows


if __name__ == "__main__":
    errors.run_main(main)
