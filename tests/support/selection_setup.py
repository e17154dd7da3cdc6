"""Frame vectors that change as a film's do, for the selection's tests; the same on every machine."""

from __future__ import annotations

import numpy as np

from aks.selection import needs_features


def film_vectors(num_frames: int) -> np.ndarray:
    """Vectors (num_frames, 16) that drift and flicker, of different lengths."""
    steps, columns = np.arange(num_frames)[:, None], np.arange(1, 17)
    return np.sin(0.02 * steps * columns + columns**2) + 0.5 * np.cos(steps * columns**2)


def features_for(strategy: str, num_frames: int) -> np.ndarray | None:
    """What a strategy needs beside the scores."""
    return film_vectors(num_frames) if needs_features(strategy) else None
