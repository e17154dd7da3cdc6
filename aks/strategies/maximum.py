"""The paper's objective, relevance plus coverage, and the selection that maximizes it exactly.

Source: Tang et al., "Adaptive Keyframe Sampling for Long Video Understanding", CVPR 2025, section 3.2: choose
I to maximize the sum of the scores plus lambda times the coverage c(I), an estimate of Ripley's K-function by
bins that are halved again and again. ADA only approximates it.
"""

from __future__ import annotations

import math

import numpy as np


def levels_of(budget: int, max_depth: int) -> int:
    """How often the timeline is halved: the paper's ``L``, at most the logarithm of the budget."""
    return min(max_depth, math.ceil(math.log2(budget)))


def coverage(positions: np.ndarray, num_candidates: int, levels: int) -> int:
    """Coverage c(I) of a selection: minus the sum of ``|m_left - m_right|`` over all halved bins; at most 0.

    Args:
        positions: ascending positions of the selected candidates, (m,).
        num_candidates: candidates of the video.
        levels: how often bins are halved, from the whole timeline on.
    """

    def penalty(start: int, stop: int, level: int) -> int:
        if level == levels:
            return 0
        middle = (start + stop) // 2
        left, right = (
            np.count_nonzero((a <= positions) & (positions < b)) for a, b in ((start, middle), (middle, stop))
        )
        return abs(left - right) + penalty(start, middle, level + 1) + penalty(middle, stop, level + 1)

    return -penalty(0, num_candidates, 0)


def objective(scores: np.ndarray, positions: np.ndarray, weight: float, levels: int) -> float:
    """The paper's objective of a selection: the sum of its scores plus ``weight`` times its coverage."""
    return float(scores[positions].sum() + weight * coverage(positions, len(scores), levels))


def select_maximum(
    scores: np.ndarray, budget: int, *, max_depth: int, weight: float = 0.1, **_: object
) -> np.ndarray:
    """The selection of ``budget`` frames with the largest objective, by dynamic programming over the bins.

    How many frames a bin gets is all that its parent has to know about it: the best value for each number
    follows from those of its halves. Of equal values the one with fewer frames in the earlier half wins.

    Args:
        scores: normalized relevance, (n,).
        budget: number of keyframes, at most n.
        max_depth: most halvings, ``L`` in the paper.
        weight: of the coverage, ``lambda`` in the paper, 0 or more. With 0 the best scores win.

    Raises:
        ValueError: ``weight`` out of range.
    """
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight is {weight}; it must be a number, 0 or more")
    levels = levels_of(budget, max_depth)
    # By bin, (start, stop, level): the frames of its earlier half, for each number of frames of the bin.
    in_left: dict[tuple[int, int, int], np.ndarray] = {}

    def best_values(start: int, stop: int, level: int) -> np.ndarray:
        """The best value of a bin for 0, 1, ... frames, as many as there are candidates or the budget."""
        most = min(budget, stop - start)
        if level == levels or stop - start < 2:
            # A bin of one candidate has an empty half, and so a penalty at every level below.
            halvings = levels - level if stop - start == 1 else 0
            relevance = np.concatenate([[0], np.cumsum(-np.sort(-scores[start:stop])[:most])])
            return relevance - weight * halvings * np.arange(most + 1)
        middle = (start + stop) // 2
        left, right = best_values(start, middle, level + 1), best_values(middle, stop, level + 1)
        values, choice = np.full(most + 1, -np.inf), np.zeros(most + 1, dtype=np.int64)
        for count, value in enumerate(left.tolist()):
            others = np.arange(min(len(right), most + 1 - count))
            totals = count + others
            found = value + right[others] - weight * np.abs(count - others)
            is_better = found > values[totals]
            values[totals[is_better]], choice[totals[is_better]] = found[is_better], count
        in_left[start, stop, level] = choice
        return values

    def positions(start: int, stop: int, level: int, count: int) -> list[int]:
        if (start, stop, level) not in in_left:
            return (start + np.argsort(-scores[start:stop], kind="stable")[:count]).tolist()
        middle, left = (start + stop) // 2, int(in_left[start, stop, level][count])
        return positions(start, middle, level + 1, left) + positions(middle, stop, level + 1, count - left)

    best_values(0, len(scores), 0)
    return np.array(sorted(positions(0, len(scores), 0, budget)), dtype=np.int64)
