"""``fast``: a video's keyframes by looking at some of its candidates only.

First one candidate of every :data:`CELL` is scored, the one that takes the least decoding; then all those
around the highest peaks of each question's curve::

    cells       |. . x .|x . . .|. . . x|. x . .|. . x .|    x: the candidate nearest behind its key frame
    scores           1   2           7     3         1
    also scored            x x x x x   x                     between the peak's neighbours

Selection then sees what was scored, and nothing else. (On a curve that is filled in between, ADA found no
more of the evidence.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from aks.extraction.decoding import VideoInfo, probe
from aks.video.reader import CandidateRule, Video

CELL = 4  # candidates; 8 finds two thirds as much with 8 keyframes, 2 leaves half of the work


@dataclass(frozen=True)
class Scored:
    """Candidates of a video and their scores.

    Attributes:
        info: what the video is, and how many candidates it has.
        frame_indices: of those that were scored, (n,) int64 ascending.
        times_s: (n,) float64.
        scores: (questions, n) float64.
        features: (n, d) float32 for strategies that compare frames, else None.
    """

    info: VideoInfo
    frame_indices: np.ndarray
    times_s: np.ndarray
    scores: np.ndarray
    features: np.ndarray | None


def probe_candidates(path: Path, rule: CandidateRule, decoder: str) -> tuple[VideoInfo, np.ndarray]:
    """What a video is, and its candidates' :meth:`~aks.video.reader.Video.entry_distances`, (n,).

    Raises:
        VideoError: the video has no candidate or cannot be read.
    """
    with Video(path, decoder) as video:
        return probe(video, rule), video.entry_distances(video.candidates(rule))


def score_some(
    info: VideoInfo,
    distances: np.ndarray,
    rule: CandidateRule,
    budget: int,
    score: Callable[[CandidateRule], Scored],
) -> Scored:
    """Score some of a video's candidates, see above.

    Args:
        info, distances: what :func:`probe_candidates` gives.
        rule: the candidates.
        budget: keyframes wanted a question; so many peaks of each are looked at more closely. Where the grid
            has fewer frames, all candidates are scored.
        score: scores the candidates of a rule.
    """
    if info.num_candidates < CELL * budget:
        return score(rule)
    coarse = nearest_to_entries(distances)
    first = score(replace(rule, positions=tuple(coarse.tolist())))
    fine = around_peaks(coarse, first.scores, budget)
    if not len(fine):
        return replace(first, info=info)
    second = score(replace(rule, positions=tuple(fine.tolist())))
    order = np.argsort(np.concatenate([first.frame_indices, second.frame_indices]))

    def merge(one: np.ndarray, other: np.ndarray, axis: int = 0) -> np.ndarray:
        return np.concatenate([one, other], axis=axis).take(order, axis=axis)

    return Scored(
        info,
        merge(first.frame_indices, second.frame_indices),
        merge(first.times_s, second.times_s),
        merge(first.scores, second.scores, axis=1),
        None if first.features is None else merge(first.features, second.features),
    )


def nearest_to_entries(distances: np.ndarray) -> np.ndarray:
    """Of every :data:`CELL` candidates the position of the one with the least distance; ascending.

    Args:
        distances: see :meth:`aks.video.reader.Video.entry_distances`, (n,).
    """
    starts = range(0, len(distances), CELL)
    return np.array([start + int(distances[start : start + CELL].argmin()) for start in starts])


def around_peaks(coarse: np.ndarray, scores: np.ndarray, num_peaks: int) -> np.ndarray:
    """Positions between each peak and its neighbours on the grid, ascending, without those of the grid.

    Args:
        coarse: positions of the grid, (n,) ascending.
        scores: of the grid, (questions, n).
        num_peaks: of each question the highest are taken: scores that no neighbour exceeds.
    """
    wanted: set[int] = set()
    for row in scores:
        padded = np.pad(row, 1, constant_values=-np.inf)
        peaks = np.flatnonzero((row >= padded[:-2]) & (row >= padded[2:]))
        for peak in peaks[np.argsort(-row[peaks], kind="stable")][:num_peaks]:
            wanted.update(range(coarse[max(peak - 1, 0)], coarse[min(peak + 1, len(coarse) - 1)]))
    return np.array(sorted(wanted.difference(coarse.tolist())), dtype=np.int64)
