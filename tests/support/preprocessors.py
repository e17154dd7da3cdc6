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
    """Resize a frame to (3, 8, 8)."""
    return np.asarray(Image.fromarray(pixels).resize((8, 8)), dtype=np.float32).transpose(2, 0, 1)


def preprocess_slowly(pixels: np.ndarray) -> np.ndarray:
    """Resize a frame so slowly that other processes get a share of the work."""
    time.sleep(0.002)
    return preprocess_small(pixels)


@dataclass(frozen=True)
class FaultyPreprocessor:
    """Hangs or dies at frames 48 pixels wide, as a broken decoder would.

    Attributes:
        fault: ``hang``, or the name of the signal that ends the process.
        marker: a file that the first such frame creates; while it exists, such frames are preprocessed.
            None: every such frame is at fault.
    """

    fault: str
    marker: Path | None = None

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        if pixels.shape[1] == 48 and not (self.marker and self.marker.exists()):
            if self.marker:
                self.marker.touch()
            if self.fault == "hang":
                time.sleep(1000)
            os.kill(os.getpid(), signal.Signals[self.fault])
        return preprocess_small(pixels)
