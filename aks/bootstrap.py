"""Intervals of a mean over questions of which several are about one video."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES, SEED = 10_000, 0


def bootstrap_interval(
    differences: Sequence[float] | np.ndarray, clusters: Sequence[str] | None = None
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a mean, from 10,000 resamples with a fixed seed.

    Args:
        differences: one value a question, (n,).
        clusters: each question's cluster (its video), which is resampled whole; None resamples questions.

    Returns:
        Lower and upper end, in the unit of ``differences``.
    """
    values = np.asarray(differences, dtype=np.float64)
    cluster_index = np.arange(len(values))
    if clusters is not None:
        cluster_index = np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums = np.stack([np.bincount(cluster_index, weights=values), np.bincount(cluster_index)])
    # Clusters of equal sum and size are interchangeable. One multinomial draw says how often each kind of
    # cluster comes, which is much quicker than drawing every cluster.
    kinds, counts = np.unique(sums, axis=1, return_counts=True)
    drawn = np.random.default_rng(SEED).multinomial(sums.shape[1], counts / sums.shape[1], size=RESAMPLES)
    totals, sizes = (drawn @ kinds.T).T
    low, high = np.percentile(totals / sizes, [2.5, 97.5])
    return float(low), float(high)


class VideoBootstrap:
    """Intervals of several means over the same questions, from one set of resamples.

    Args:
        clusters: each question's cluster (its video), which is resampled whole.
    """

    def __init__(self, clusters: Sequence[str]) -> None:
        self._index = np.unique(np.asarray(clusters), return_inverse=True)[1]
        sizes = np.bincount(self._index)
        drawn = np.random.default_rng(SEED).multinomial(
            len(sizes), np.full(len(sizes), 1 / len(sizes)), size=RESAMPLES
        )
        self._drawn = drawn.astype(np.float64)
        self._sizes = self._drawn @ sizes

    def interval(self, values: np.ndarray) -> tuple[float, float]:
        """Lower and upper end of the 95 % percentile interval of the mean of (n,) values."""
        totals = self._drawn @ np.bincount(self._index, weights=values)
        low, high = np.percentile(totals / self._sizes, [2.5, 97.5])
        return float(low), float(high)
