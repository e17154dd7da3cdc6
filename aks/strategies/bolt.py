"""BOLT: frames at equal steps of the cumulated, sharpened relevance.

Source: Liu et al., "BOLT: Boost Large Vision-Language Model Without Training for Long-form Video
Understanding", CVPR 2025, inverse transform sampling; github.com/sming256/BOLT, ``select_frames.py``, commit
8a9ba45. Its scripts sharpen by the power 3 on VideoMME and MLVU, and 2.5 on LongVideoBench.
"""

from __future__ import annotations

import numpy as np

from aks.strategies.fill import fill


def select_bolt(scores: np.ndarray, budget: int, *, power: float = 3.0, **_: object) -> np.ndarray:
    """Inverse transform sampling at ``budget`` equally spaced quantiles.

    The original shows a frame twice in which two quantiles lie. Here the best other frames take the place of
    such repetitions. Where all scores are equal it divides by zero; here every frame weighs the same. Of one
    frame its quantile is 1, past the last frame where rounding makes the sum less; here it is the median.

    Args:
        scores: normalized relevance, (n,).
        budget: number of keyframes, at most n.
        power: above 1 it sharpens the scores, below 1 it flattens them; above 0.

    Raises:
        ValueError: ``power`` out of range.
    """
    if not power > 0:
        raise ValueError(f"power is {power}; it must be above 0")
    weights = scores**power if scores.any() else np.ones(len(scores))
    cumulated = np.cumsum(weights / weights.sum())
    quantiles = np.linspace(1 / budget, 1 - 1 / budget, budget) if budget > 1 else [0.5]
    return fill(np.searchsorted(cumulated, quantiles), scores, budget)
