"""The best frames that keep a fixed distance from one another.

A rule of this project, not of the paper. Frames a second apart mostly show the same, so TOP spends several
frames on one place. The distance, a few seconds, is the same for every budget: a small budget goes to the
places with the best scores; a large one has frames left over, which spread over the rest of the video.
"""

from __future__ import annotations

import math

import numpy as np

from aks.strategies.fill import fill


def best_apart(scores: np.ndarray, budget: int, reach: int) -> list[int]:
    """At most ``budget`` positions: the best, then the best more than ``reach`` away from it, and so on."""
    is_free = np.ones(len(scores), dtype=bool)
    chosen: list[int] = []
    for position in np.argsort(-scores, kind="stable").tolist():
        if is_free[position]:
            chosen.append(position)
            is_free[max(0, position - reach) : position + reach + 1] = False
            if len(chosen) == budget:
                break
    return chosen


def select_apart(scores: np.ndarray, budget: int, *, distance: float = 5, **_: object) -> np.ndarray:
    """Take the best frame, leave out those near it, and so on; then the best of those left out.

    Args:
        scores: normalized relevance, (n,).
        budget: number of keyframes, at most n.
        distance: least distance of two frames, in candidates, of which there is about one a second. 0 and 1
            give the best scores.

    Raises:
        ValueError: ``distance`` out of range.
    """
    if not 0 <= distance < math.inf:
        raise ValueError(f"distance is {distance}; it must be a number, 0 or more")
    reach = min(max(math.ceil(distance) - 1, 0), len(scores))
    return fill(best_apart(scores, budget, reach), scores, budget)
