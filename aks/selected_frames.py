"""Selections as files hold them, with times and strides, and uniform frames to compare them with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aks import errors
from aks.jsonio import read_json
from aks.labels import LabelSet, Question
from aks.score_lists import check_frame_numbers, infer_stride, read_number_lists


@dataclass(frozen=True)
class SelectedFrames:
    """One question's selection in the units of its evidence.

    Attributes:
        frames: frame indices, (n,).
        times_s: seconds from the start, (n,).
        stride: candidates' distance in frames, 0 where it is unknown.
    """

    frames: np.ndarray
    times_s: np.ndarray
    stride: int


def read_selection(path: Path, labels: LabelSet, strides: Sequence[int] | None) -> list[SelectedFrames]:
    """A selection's frames with their times: recorded ones, else one candidate a second.

    Args:
        path: the selection.
        labels: its questions.
        strides: each question's candidate stride, 0 or None to guess it from the selected frames.

    Raises:
        UserError: it is missing or broken, or does not fit the labels.
    """
    rows = check_frame_numbers(path, read_lists(path, labels))
    times = read_times(path, labels, rows)
    selection = []
    for index, row in enumerate(rows):
        stride = (strides and strides[index]) or infer_stride(row)
        selection.append(SelectedFrames(row, times[index] if times else row / (stride or np.nan), stride))
    return selection


def read_strides(frame_path: str | None, selection: Path, labels: LabelSet) -> list[int] | None:
    """Each question's candidate stride, from frames.json or the selection's record; None without either.

    Raises:
        UserError: a file is missing or broken, or does not fit the labels.
    """
    if frame_path:
        path = Path(frame_path)
        return [infer_stride(row) for row in check_frame_numbers(path, read_lists(path, labels))]
    if (record := file_beside(selection, "selection.json")) is None:
        return None
    content = read_json(record)
    strides = content.get("strides") if isinstance(content, dict) else None
    whole = isinstance(strides, list) and all(type(stride) is int and stride >= 0 for stride in strides)
    if not whole or len(strides) != len(labels.questions):
        raise errors.UserError(
            f"{record}: its strides are not {len(labels.questions)} whole numbers; run frame_select.py again"
        )
    return strides


def file_beside(selection: Path, name: str) -> Path | None:
    """A file that frame_select.py left beside a selection; None for a selection from elsewhere."""
    path = selection.with_name(name)
    return path if selection.name == "selected_frames.json" and path.exists() else None


def read_times(path: Path, labels: LabelSet, frames: list[np.ndarray]) -> list[np.ndarray] | None:
    """The selected frames' times in seconds, where frame_select.py left them beside the selection.

    Raises:
        UserError: they do not fit the labels or the frames.
    """
    if (times_path := file_beside(path, "selected_times.json")) is None:
        return None
    times = read_lists(times_path, labels)
    if [len(row) for row in times] != [len(row) for row in frames]:
        raise errors.UserError(f"{times_path}: does not fit {path}; run frame_select.py again")
    return times


def read_lists(path: Path, labels: LabelSet) -> list[np.ndarray]:
    """The lists of a file that must hold one for each question of the labels.

    Raises:
        UserError: it is missing or broken, or holds more or fewer.
    """
    rows = read_number_lists(path)
    check_count(path, rows, labels)
    return rows


def check_count(path: Path, rows: Sequence[np.ndarray], labels: LabelSet) -> None:
    """Refuse a file whose lists are not as many as the questions of the labels.

    Raises:
        UserError: names both files.
    """
    if len(rows) != len(labels.questions):
        raise errors.UserError(
            f"{path} holds {len(rows)} questions and {labels.path} {len(labels.questions)}; "
            "they must belong together"
        )


def with_strides(rows: Sequence[SelectedFrames], strides: Sequence[int]) -> list[SelectedFrames]:
    """A selection that takes the strides which it does not tell, and the times by them, from the others."""
    return [
        row
        if row.stride
        else SelectedFrames(
            row.frames,
            row.times_s if np.isfinite(row.times_s).all() else row.frames / (stride or np.nan),
            stride,
        )
        for row, stride in zip(rows, strides, strict=True)
    ]


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


def uniform_of(question: Question, stride: int, budget: int) -> SelectedFrames | None:
    """Uniform sampling of a question's video; None where its duration is unknown."""
    if question.duration_s is None:
        return None
    frames = uniform_frames(question.duration_s, stride or 1, budget)
    return SelectedFrames(frames, uniform_times(question.duration_s, budget), stride)


def uniform_selection(labels: LabelSet, strides: Sequence[int], budget: int) -> list[SelectedFrames] | None:
    """Uniform sampling of every question's video; None where a duration is unknown."""
    rows = [uniform_of(*pair, budget) for pair in zip(labels.questions, strides, strict=True)]
    return None if any(row is None for row in rows) else rows
