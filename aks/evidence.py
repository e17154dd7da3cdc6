"""How near selected frames are to labelled evidence."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from aks.labels import Question
from aks.selected_frames import SelectedFrames

Pairs = list[tuple[np.ndarray, float]]  # what evidence_distances gives
TOLERANCES_S = (1.0, 3.0, 5.0)


def distances(selected: Sequence[float] | np.ndarray, evidence: Sequence[tuple[float, float]]) -> np.ndarray:
    """How far every selected position is from every piece of evidence, (pieces, positions) float64."""
    positions = np.asarray(selected, dtype=np.float64)
    first, last = np.asarray(evidence, dtype=np.float64).T[..., None]
    return np.maximum(0, np.maximum(first - positions, positions - last))


def has_evidence(question: Question) -> bool:
    """Whether the label says where the evidence is."""
    return bool(question.evidence_times_s or question.evidence_frames)


def evidence_distances(question: Question, selected: SelectedFrames) -> Pairs:
    """Distances (pieces, frames) of the evidence in frames, and of that in seconds, with units a second.

    A second is one candidate stride for evidence in frames. Empty where there is no evidence, or where the
    stride or the times that it needs are unknown.
    """
    if question.evidence_frames and not selected.stride:
        return []
    if question.evidence_times_s and not np.isfinite(selected.times_s).all():
        return []
    found = []
    if question.evidence_frames:
        found.append((distances(selected.frames, question.evidence_frames), float(selected.stride)))
    if question.evidence_times_s:
        found.append((distances(selected.times_s, question.evidence_times_s), 1.0))
    return found


def evidence_in_seconds(
    question: Question, frame_indices: np.ndarray, times_s: np.ndarray
) -> list[tuple[float, float]]:
    """A question's evidence as (first, last) seconds; that in frames by the candidates' times, (n,) each."""
    if not len(frame_indices):
        return list(question.evidence_times_s)
    in_frames = [tuple(np.interp(ends, frame_indices, times_s)) for ends in question.evidence_frames]
    return [*question.evidence_times_s, *in_frames]


def found_within(pairs: Pairs, tolerance_s: float, axis: int = 1) -> np.ndarray:
    """Which pieces of evidence have a selected frame within a tolerance, (pieces,) bool.

    Args:
        pairs: what :func:`evidence_distances` gives.
        tolerance_s: in seconds.
        axis: 0 tells which frames are so near to any piece, (frames,).
    """
    found = [rows.min(axis=axis, initial=np.inf) <= tolerance_s * per_second for rows, per_second in pairs]
    return np.concatenate(found) if axis else np.any(found, axis=0)


def group_order(group: str) -> tuple[bool, float, str]:
    """Sort key of a group: numbers by their value, then names."""
    try:
        value = float(group)
    except ValueError:
        value = math.nan
    return (False, value, "") if math.isfinite(value) else (True, 0.0, group)
