"""Preprocessors for the tests. Decoding processes import this module, so it must load fast."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image


def preprocess_small(pixels: np.ndarray) -> np.ndarray:
    """A frame to (3, 8, 8)."""
    return np.asarray(Image.fromarray(pixels).resize((8, 8)), dtype=np.float32).transpose(2, 0, 1)


def slowly(pixels: np.ndarray) -> np.ndarray:
    """The same, so slowly that other processes get a share of the work."""
    time.sleep(0.002)
    return preprocess_small(pixels)


@dataclass(frozen=True)
class Trouble:
    """A preprocessor that hangs or dies at frames 48 pixels wide, as a broken decoder would.

    Attributes:
        kind: ``hang``, or the name of the signal that ends the process.
        marker: a file, made at the first such frame; later ones pass. None for trouble at every such frame.
    """

    kind: str
    marker: Path | None = None

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        if pixels.shape[1] == 48 and not (self.marker and self.marker.exists()):
            if self.marker:
                self.marker.touch()
            if self.kind == "hang":
                time.sleep(1000)
            os.kill(os.getpid(), signal.Signals[self.kind])
        return preprocess_small(pixels)
