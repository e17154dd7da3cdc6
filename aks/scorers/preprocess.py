"""Preprocessing of decoded frames to model inputs, on the CPU.

This module needs NumPy and PIL alone, not torch, so that a decoding process starts in a third of a second and
takes 50 MB. Every preprocessor can be pickled, because it travels to those processes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

# transformers and LAVIS import torchvision, whose reader of image files does not load beside a CPU build of
# torch. Nothing here uses that reader, so its warning would only alarm. A decoding process may import them,
# too; the preprocessor that it is sent brings this module first.
warnings.filterwarnings("ignore", message="Failed to load image Python extension")

# One frame, (height, width, 3) uint8 RGB, to one model input, (3, side, side) float32.
Preprocessor = Callable[[np.ndarray], np.ndarray]

CONSE_SIDE = 260  # EfficientNet-Lite2's input, pixels
CONSE_MARGIN = 32  # of EfficientNet-Lite's evaluation crop: the short side becomes side + margin first
# CLIP's mean and deviation, with which BLIP was trained, too.
PIXEL_MEAN = np.array((0.48145466, 0.4578275, 0.40821073), dtype=np.float32).reshape(3, 1, 1)
PIXEL_STD = np.array((0.26862954, 0.26130258, 0.27577711), dtype=np.float32).reshape(3, 1, 1)
# The normalized value of each of a channel's 256 levels, (3, 256) float32. Looking values up gives the same
# bits as the arithmetic, without its five passes over the frame.
_NORMALIZED = ((np.arange(256, dtype=np.float32) / np.float32(255) - PIXEL_MEAN) / PIXEL_STD)[:, 0]


def preprocess_conse(pixels: np.ndarray) -> np.ndarray:
    """A frame to (3, 260, 260): short side to 292, centre crop, values -1 to 1."""
    height, width = pixels.shape[:2]
    scale = (CONSE_SIDE + CONSE_MARGIN) / min(height, width)
    # The crop in source pixels: resizing only what the crop keeps gives the same pixels in less time.
    half = CONSE_SIDE / scale / 2
    box = (width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half)
    image = Image.fromarray(pixels).resize((CONSE_SIDE, CONSE_SIDE), Image.Resampling.BICUBIC, box=box)
    values = np.asarray(image).transpose(2, 0, 1).astype(np.float32)
    return (values - np.float32(127)) / np.float32(128)


@dataclass(frozen=True, eq=False)  # arrays have no equality of one value
class SquarePreprocessor:
    """A frame to (3, side, side), squashed to a square; by default the same bits as LAVIS's.

    Attributes:
        side: of the square, in pixels.
        resample: PIL's filter.
        normalized: the value of each of a channel's 256 levels, (3, 256) float32.
    """

    side: int
    resample: int = Image.Resampling.BICUBIC
    normalized: np.ndarray = field(default_factory=lambda: _NORMALIZED, repr=False)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Preprocess one frame."""
        values = np.asarray(Image.fromarray(pixels).resize((self.side, self.side), self.resample))
        inputs = np.empty((3, self.side, self.side), dtype=np.float32)
        for channel, normalized in enumerate(self.normalized):
            # The mode "raise" would copy the output; no value is out of range.
            normalized.take(values[..., channel], out=inputs[channel], mode="clip")
        return inputs


def preprocess_with_transformers(processor: Any, pixels: np.ndarray) -> np.ndarray:
    """A frame by an image processor of transformers."""
    # The format is stated because transformers takes a frame 3 pixels high for one with the channels first.
    batch = processor(pixels, return_tensors="np", input_data_format="channels_last")
    return np.asarray(batch["pixel_values"])[0]


def square_preprocessor_of(processor: Any, side: int) -> SquarePreprocessor:
    """What an image processor of transformers does that squashes frames: the same bits, without transformers.

    A decoding process that needs transformers takes seconds to start. The processor itself tells the values
    of the 256 levels, by a picture that has them all and the right size already.
    """
    levels = (np.arange(side * side) % 256).astype(np.uint8).reshape(side, side, 1).repeat(3, axis=2)
    values = preprocess_with_transformers(processor, levels).reshape(3, -1)
    return SquarePreprocessor(side, int(processor.resample), values[:, :256].copy())


def preprocess_with_lavis(processor: Any, pixels: np.ndarray) -> np.ndarray:
    """A frame by an image processor of LAVIS."""
    return processor(Image.fromarray(pixels)).numpy()
