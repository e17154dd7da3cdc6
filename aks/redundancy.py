"""How alike the frames of a selection are: the mean cosine of their stored features, over all pairs."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from aks.labels import LabelSet
from aks.selection import unit_vectors


def redundancy_of(vectors: np.ndarray) -> float:
    """The mean cosine of all pairs of vectors (n, d): 1 where all are alike; NaN for fewer than two."""
    num = len(vectors)
    if num < 2:
        return np.nan
    units = unit_vectors(vectors).astype(np.float64)
    # The square of the sum holds every pair twice, and every vector with itself.
    return float(((units.sum(axis=0) ** 2).sum() - (units**2).sum()) / (num * (num - 1)))


def positions_of(frames: np.ndarray, stored: np.ndarray, take_nearest: bool) -> np.ndarray | None:
    """Where frame numbers (n,) stand among stored ones (m,), both ascending, m at least 1.

    With ``take_nearest`` the nearest stored frame, of two the earlier, stands for one that is not stored, and
    none counts twice.
    Otherwise the result is None where a frame is not stored.
    """
    nearest = np.abs(stored[:, None] - frames).argmin(axis=0)
    if take_nearest:
        return np.unique(nearest)
    return nearest if np.array_equal(stored[nearest], frames) else None


def measure_redundancy(
    folder: Path,
    labels: LabelSet,
    selections: Mapping[str, Sequence[np.ndarray]],
    take_nearest: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """The redundancy of each question's selected frames, for each selection, (questions,).

    NaN where features of the video or of a frame are not stored, or fewer than two frames are selected.

    Args:
        folder: stored features.
        labels: the questions.
        selections: by name each question's frame numbers.
        take_nearest: names of selections whose frames need be no candidates, see :func:`positions_of`.

    Raises:
        UserError: the features are no vectors, another data set's, or damaged.
    """
    from aks.extraction.feature_store import FeatureStore  # imports torch, which takes seconds

    store = FeatureStore.open(folder)
    store.check_labels(labels)
    read = functools.lru_cache(maxsize=1)(store.read_vectors)  # a video's questions are mostly neighbours
    found = {name: np.full(len(labels.questions), np.nan) for name in selections}
    for question in labels.questions:
        if not store.has_part(question.video):
            continue
        stored, vectors = read(question.video)
        for name, rows in selections.items():
            positions = positions_of(rows[question.index], stored, name in take_nearest)
            if positions is not None:
                found[name][question.index] = redundancy_of(vectors[positions])
    return found
