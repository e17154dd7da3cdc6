"""Segments cut where the picture changes most: the best frame of each of the best segments.

Source: framesieve 0.2.0 (Apache-2.0), ``select_candidates`` in ``framesieve/search.py``, strategy
``segment_adaptive``, with ``FrameIndex.cut_into`` in ``framesieve/index.py``.
"""

from __future__ import annotations

import itertools
import math

import numpy as np


def select_segment_adaptive(
    scores: np.ndarray, budget: int, *, features: np.ndarray, factor: float = 8.0, **_: object
) -> np.ndarray:
    """Take the best frame of every segment before the second best of any, the best segment's first.

    Args:
        scores: normalized relevance, (n,).
        budget: number of keyframes, at most n.
        features: unit vectors of the frames, (n, d).
        factor: segments a keyframe; above 0. With 1 every segment gives one frame, with many the best scores
            win. Cuts are where neighbouring frames are least alike; of equal ones the earlier.

    Raises:
        ValueError: ``factor`` out of range.
    """
    if not 0 < factor < math.inf:
        raise ValueError(f"factor is {factor}; it must be above 0")
    num_segments = max(1, round(min(factor * budget, len(scores))))
    likeness = np.einsum("nd,nd->n", features[:-1], features[1:])
    cuts = np.argsort(likeness, kind="stable")[: num_segments - 1] + 1
    bounds = [0, *np.sort(cuts).tolist(), len(scores)]
    ranks, best = np.empty(len(scores), dtype=np.int64), np.empty(len(scores))
    for start, stop in itertools.pairwise(bounds):
        ranks[start + np.argsort(-scores[start:stop], kind="stable")] = np.arange(stop - start)
        best[start:stop] = scores[start:stop].max()
    return np.sort(np.lexsort([-best, ranks])[:budget])
