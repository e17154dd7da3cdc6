"""Keyframe selection: uniform, TOP, BIN and ADA (the paper's section 3, its "judge and split").

Pure functions of one video's scores. They return *positions* among the candidates, ascending;
:func:`select_keyframes` turns positions into frame numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

STRATEGIES = ("uniform", "top", "bin", "ada")
QUOTAS = ("full", "paper")
MAX_DEPTH = 32  # four billion bins; the paper uses at most 6


class Segments(NamedTuple):
    """The timeline in parts: segment i holds the candidates ``edges[i] <= position < edges[i + 1]``.

    Attributes:
        edges: ascending, from 0 to the number of candidates.
        depths: after how many halvings each segment was final.
    """

    edges: list[int]
    depths: list[int]


def normalize(scores: np.ndarray) -> np.ndarray:
    """Scores (n,) mapped to 0..1 over the whole video; equal scores all become 0."""
    low, high = scores.min(), scores.max()
    if low == high:
        return np.zeros(len(scores))
    # Halved first, so that scores near both ends of the float range do not overflow.
    span = high / 2 - low / 2
    return (scores / 2 - low / 2) / span if span > 0 else np.zeros(len(scores))


def judge_and_split(scores: np.ndarray, budget: int, t1: float, t2: float, max_depth: int) -> Segments:
    """The final segments of ADA that hold candidates (paper, Algorithm 1).

    A segment stays whole when the mean of its ``budget`` best scores exceeds its mean by more than ``t1``
    and its standard deviation exceeds ``t2``, or at ``max_depth``; otherwise it is halved. The best scores
    are counted by the whole budget, as the released code does, and are summed in its order, best first, so
    that even ``t1 = 0`` decides as it does.

    Args:
        scores: normalized relevance, (n,), 0 to 1, n at least 1.
        budget: number of keyframes wanted.
        t1: least difference of means for which a segment stays whole.
        t2: least standard deviation for which a segment stays whole.
        max_depth: most halvings.
    """
    edges, depths = [0], []

    def stays_whole(segment: np.ndarray) -> bool:
        best = np.sort(segment)[::-1][:budget]
        return _mean(best) - _mean(segment) > t1 and (t2 < 0 or segment.std() > t2)

    def split(start: int, stop: int, depth: int) -> None:
        if start == stop:
            return
        if depth == max_depth or stays_whole(scores[start:stop]):
            edges.append(stop)
            depths.append(depth)
            return
        middle = start + (stop - start) // 2
        split(start, middle, depth + 1)
        split(middle, stop, depth + 1)

    split(0, len(scores), 0)
    return Segments(edges, depths)


def _mean(values: np.ndarray) -> float:
    """``values.mean()``, the same to the last bit, in a third of its time for a few values."""
    return np.add.reduce(values) / len(values)


def allocate_frames(scores: np.ndarray, segments: Segments, budget: int, quota: str) -> np.ndarray:
    """Positions of the keyframes: from each segment its ``budget / 2**depth`` best.

    A quota that is not whole loses its fraction in the released code (``quota="paper"``: a budget of
    16 at depth 5 yields nothing). ``quota="full"`` spends the whole budget: the whole quotas first;
    then one frame each to the segments with the largest remainders (equal remainders: the segment
    whose next frame scores higher, then the earlier one). Halving keeps segments of one depth within
    one candidate of each other, so that every whole quota is there and the remainders use up the rest.

    Args:
        scores: normalized relevance, (n,).
        segments: as :func:`judge_and_split` returns them.
        budget: number of keyframes wanted, at most n.
        quota: ``full`` or ``paper``.
    """
    edges, shares = np.array(segments.edges), 2 ** np.array(segments.depths)
    start, candidates = edges[:-1], np.diff(edges)
    whole, remainder = np.divmod(budget, shares)
    labels = np.repeat(np.arange(len(start), dtype=np.min_scalar_type(len(start))), candidates)
    order = np.argsort(-scores, kind="stable")  # best first; of equal scores the earlier
    ranked = order[np.argsort(labels[order], kind="stable")]  # segment by segment; in each the best first
    ends = np.cumsum(whole)
    chosen = ranked[np.arange(ends[-1]) + np.repeat(start + whole - ends, whole)]
    if quota == "full" and len(chosen) < budget:
        waits = whole < candidates
        following = ranked[(start + whole)[waits]]
        largest = np.lexsort((following, -scores[following], -(remainder / shares)[waits]))
        chosen = np.append(chosen, following[largest[: budget - len(chosen)]])
    return np.sort(chosen)


def uniform(count: int, budget: int) -> np.ndarray:
    """``budget`` of ``count`` positions evenly spread, the first and the last included."""
    if budget == 1:
        return np.zeros(1, dtype=np.int64)
    return np.arange(budget) * (count - 1) // (budget - 1)


def select_positions(
    scores: Sequence[float] | np.ndarray,
    budget: int,
    *,
    strategy: str = "ada",
    ratio: int = 1,
    t1: float = 0.8,
    t2: float = -100,
    max_depth: int = 5,
    quota: str = "full",
) -> np.ndarray:
    """Positions of the keyframes among the candidates, ascending, (min(budget, candidates),) int64.

    Arguments as for :func:`select_keyframes`.
    """
    scores = np.asarray(scores, dtype=np.float64)
    _check(scores, strategy, t1, t2, quota, budget=budget, ratio=ratio, max_depth=max_depth)
    budget, ratio, max_depth = int(budget), int(ratio), int(max_depth)
    kept = scores[: len(scores) // ratio * ratio : ratio]
    if len(kept) < budget:
        chosen = np.arange(len(kept))
    elif strategy == "uniform":
        chosen = uniform(len(kept), budget)
    else:
        normalized = normalize(kept)
        if strategy == "top":
            segments = Segments([0, len(kept)], [0])
        else:
            never = np.inf  # no segment stays whole: pure BIN
            segments = judge_and_split(normalized, budget, never if strategy == "bin" else t1, t2, max_depth)
        chosen = allocate_frames(normalized, segments, budget, quota)
    return chosen * ratio


def select_keyframes(
    scores: Sequence[float] | np.ndarray,
    frames: Sequence[float] | np.ndarray,
    budget: int,
    *,
    strategy: str = "ada",
    ratio: int = 1,
    t1: float = 0.8,
    t2: float = -100,
    max_depth: int = 5,
    quota: str = "full",
) -> list[int]:
    """Choose the keyframes of one video for one question.

    >>> select_keyframes([0.1, 0.9, 0.2, 0.8], frames=[0, 24, 48, 72], budget=2, strategy="top")
    [24, 72]

    Args:
        scores: relevance of each candidate frame, (n,), any scale.
        frames: frame number of each candidate, (n,), ascending.
        budget: number of keyframes wanted, 1 or more.
        strategy: ``ada`` (judge and split), ``top`` (best scores), ``bin`` (an equal share from each
            of ``2**max_depth`` bins) or ``uniform`` (scores ignored).
        ratio: use every ``ratio``-th candidate only.
        t1: ADA's threshold on the difference of means, in normalized scores.
        t2: ADA's threshold on the standard deviation, in normalized scores.
        max_depth: most halvings, ``L`` in the paper.
        quota: ``full`` returns exactly ``min(budget, candidates)`` frames; ``paper`` drops the
            fractions of quotas as the released code does, and may return fewer, even none.

    Returns:
        Ascending frame numbers.

    Raises:
        ValueError: an argument out of range, lengths that differ, scores not finite, or frame
            numbers not whole or not ascending.

    Source: Tang et al., "Adaptive Keyframe Sampling for Long Video Understanding", CVPR 2025,
    section 3.3 and Algorithm 1, with the quotas of its released code.
    """
    numbers = np.asarray(frames, dtype=np.float64)
    if len(numbers) != len(scores):
        raise ValueError(f"{len(scores)} scores for {len(numbers)} frames; one score a frame is needed")
    if not np.isfinite(numbers).all() or (numbers != np.floor(numbers)).any() or (numbers < 0).any():
        raise ValueError("a frame number is not a whole number, 0 or more")
    if (np.diff(numbers) <= 0).any():
        later = int(np.flatnonzero(np.diff(numbers) <= 0)[0]) + 1
        raise ValueError(
            f"frame numbers are not ascending: {numbers[later]:.0f} follows {numbers[later - 1]:.0f}"
        )
    positions = select_positions(
        scores, budget, strategy=strategy, ratio=ratio, t1=t1, t2=t2, max_depth=max_depth, quota=quota
    )
    return numbers[positions].astype(np.int64).tolist()


def _check(scores: np.ndarray, strategy: str, t1: float, t2: float, quota: str, **counts: float) -> None:
    if scores.ndim != 1:
        raise ValueError(f"scores have {scores.ndim} dimensions; one list of numbers is needed")
    if not np.isfinite(scores).all():
        bad = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ValueError(f"score {bad} is {scores[bad]}; scores must be finite")
    for name, value in counts.items():
        least = 0 if name == "max_depth" else 1
        if value != int(value) or value < least:
            raise ValueError(f"{name} is {value}; it must be a whole number, {least} or more")
    if counts["max_depth"] > MAX_DEPTH:
        raise ValueError(f"max_depth is {counts['max_depth']}; {MAX_DEPTH} halvings are the most")
    if np.isnan(t1) or np.isnan(t2):
        raise ValueError("t1 and t2 must be numbers")
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy {strategy!r}: use one of {', '.join(STRATEGIES)}")
    if quota not in QUOTAS:
        raise ValueError(f"quota {quota!r}: use one of {', '.join(QUOTAS)}")
