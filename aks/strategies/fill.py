"""Fills a selection up to the budget; for rules that may choose fewer frames."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def fill(chosen: Iterable[int], scores: np.ndarray, budget: int) -> np.ndarray:
    """The positions chosen and the best other ones, up to the budget; of equal scores the earlier.

    Args:
        chosen: positions, at most ``budget`` different ones.
        scores: relevance, (n,).
        budget: number of keyframes, at most n.

    Returns:
        Positions, (budget,) int64 ascending.
    """
    is_chosen = np.zeros(len(scores), dtype=bool)
    is_chosen[list(chosen)] = True
    others = np.flatnonzero(~is_chosen)
    best = others[np.argsort(-scores[others], kind="stable")]
    is_chosen[best[: budget - is_chosen.sum()]] = True
    return np.flatnonzero(is_chosen)
