"""What a report shows of a question: its candidates, its keyframes, and how uniform frames compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aks.evidence import evidence_distances, evidence_in_seconds, found_within
from aks.labels import Question
from aks.plots import HIT_S
from aks.score_lists import infer_stride
from aks.selected_frames import SelectedFrames, uniform_of
from aks.selection import find_segments, normalize


@dataclass(frozen=True)
class Comparison:
    """One measure of the keyframes and of as many uniform frames.

    Attributes:
        keyframes, uniform: seconds from a place of the evidence to the nearest frame, the mean over the
            places; without evidence the frames' mean score, 0 to 1 over the video.
        by_evidence: which of the two.
    """

    keyframes: float
    uniform: float
    by_evidence: bool

    @property
    def gain(self) -> float:
        """By how much the keyframes are better."""
        return self.uniform - self.keyframes if self.by_evidence else self.keyframes - self.uniform


@dataclass(frozen=True)
class ReportedQuestion:
    """A question about a video, and what was selected for it.

    Attributes:
        question: text, and what its label states.
        video: the file.
        frame_indices, times_s, scores: all candidates, (n,) each; times in seconds.
        positions: the keyframes among them, (k,) int64 ascending.
        is_near: which keyframes are within a second of labelled evidence, (k,) bool.
        segments_s: (first, last) seconds of each part of the timeline that has its own keyframes.
        uniform_s: times of as many uniform frames.
        evidence_s: (first, last) seconds of each place of the evidence.
        comparison: with uniform frames; None without a keyframe.
    """

    question: Question
    video: Path
    frame_indices: np.ndarray
    times_s: np.ndarray
    scores: np.ndarray
    positions: np.ndarray
    is_near: np.ndarray
    segments_s: list[tuple[float, float]]
    uniform_s: np.ndarray
    evidence_s: list[tuple[float, float]]
    comparison: Comparison | None

    @property
    def best(self) -> list[int]:
        """The keyframes' frame indices, the best score first."""
        order = np.argsort(-self.scores[self.positions], kind="stable")
        return self.frame_indices[self.positions[order]].tolist()


def report_question(
    question: Question,
    video: Path,
    frame_indices: np.ndarray,
    times_s: np.ndarray,
    scores: np.ndarray,
    selected: Sequence[int] | np.ndarray,
    rule: Mapping[str, Any] | None,
) -> ReportedQuestion:
    """Gather what the report shows.

    Args:
        question: text, options and evidence.
        video: the file.
        frame_indices, times_s, scores: the candidates, (n,) each.
        selected: frame indices of the keyframes, ascending.
        rule: ``budget`` and the other arguments of :func:`aks.selection.find_segments`; None where the rule
            is not known: no segments are shown.

    Raises:
        ValueError: a keyframe is no candidate.
    """
    positions = np.searchsorted(frame_indices, selected)
    for frame, position in zip(selected, positions, strict=True):
        if position == len(frame_indices) or frame_indices[position] != frame:
            raise ValueError(f"keyframe {frame} is none of the scored frames")
    stride = infer_stride(frame_indices)
    chosen = SelectedFrames(frame_indices[positions], times_s[positions], stride)
    uniform_s, comparison = np.empty(0), None
    pairs = evidence_distances(question, chosen) if len(times_s) else []
    if len(positions):
        budget = len(positions)
        # Even in time: with ``fast`` the candidates that were looked at are not.
        even_s = np.linspace(times_s[0], times_s[-1], budget)
        even_frames = np.interp(even_s, times_s, frame_indices).round().astype(np.int64)
        uniform = uniform_of(question, stride, budget) or SelectedFrames(even_frames, even_s, stride)
        uniform_s = uniform.times_s
        if pairs:
            means = [_mean_distance_s(each) for each in (pairs, evidence_distances(question, uniform))]
        else:
            relevance = normalize(scores)
            means = [relevance[positions].mean(), np.interp(uniform_s, times_s, relevance).mean()]
        comparison = Comparison(float(means[0]), float(means[1]), bool(pairs))
    return ReportedQuestion(
        question,
        video,
        frame_indices,
        times_s,
        scores,
        positions,
        found_within(pairs, HIT_S, axis=0) if pairs else np.zeros(len(positions), dtype=bool),
        _segments_s(times_s, scores, rule) if rule and len(times_s) else [],
        uniform_s,
        evidence_in_seconds(question, frame_indices, times_s),
        comparison,
    )


def _mean_distance_s(pairs: Sequence[tuple[np.ndarray, float]]) -> float:
    return float(np.concatenate([rows.min(axis=1) / per_second for rows, per_second in pairs]).mean())


def _segments_s(
    times_s: np.ndarray, scores: np.ndarray, rule: Mapping[str, Any]
) -> list[tuple[float, float]]:
    """A segment ends where the next begins, the last one with the last candidate."""
    found = find_segments(scores, **rule)
    return [(times_s[start], times_s[min(stop, len(times_s) - 1)]) for start, stop, _ in found]


def largest_gains(
    reported: Sequence[ReportedQuestion], count: int = 10
) -> tuple[list[ReportedQuestion], list[ReportedQuestion]]:
    """Where the keyframes are ahead of uniform frames the most, and where uniform frames are.

    Questions with evidence are compared by it; those without count only where none has any.
    """
    compared = [row for row in reported if row.comparison is not None]
    with_evidence = [row for row in compared if row.comparison.by_evidence]
    ranked = sorted(with_evidence or compared, key=lambda row: -row.comparison.gain)
    ahead = [row for row in ranked if row.comparison.gain > 0][:count]
    behind = [row for row in reversed(ranked) if row.comparison.gain < 0][:count]
    return ahead, behind
