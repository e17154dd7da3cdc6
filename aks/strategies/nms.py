"""Non-maximum suppression: the best frames that keep a distance from one another.

Source: framesieve 0.2.0 (Apache-2.0), ``select_candidates`` in ``framesieve/search.py``, strategy ``nms``.
"""

from __future__ import annotations

import math

import numpy as np

from aks.strategies.apart import best_apart
from aks.strategies.fill import fill


def select_nms(scores: np.ndarray, budget: int, *, window: float = 0.5, **_: object) -> np.ndarray:
    """Take the best frame, leave out its neighbours, and so on; then the best of those left out.

    Args:
        scores: normalized relevance, (n,).
        budget: number of keyframes, at most n.
        window: how far a frame reaches to each side, as a share of the distance of uniform frames. With 0.5,
            the original's, frames that are left out are needed only where chosen ones lie unevenly.

    Raises:
        ValueError: ``window`` out of range.
    """
    if not 0 <= window < math.inf:
        raise ValueError(f"window is {window}; it must be a number, 0 or more")
    reach = int(min(window * (len(scores) - 1) / budget, len(scores)))  # in candidates
    return fill(best_apart(scores, budget, reach), scores, budget)
