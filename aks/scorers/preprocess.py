"""From a decoded frame to a model's input, on the CPU: what scorers share with the decoding processes.

NumPy and PIL alone, no torch: a decoding process then starts in a third of a second and takes 50 MB.
Everything here can be pickled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

# One frame, (height, width, 3) uint8 RGB, to one model input, (3, side, side) float32.
Preprocessor = Callable[[np.ndarray], np.ndarray]

CONSE_SIDE = 260  # EfficientNet-Lite2's input, pixels
CONSE_MARGIN = 32  # its evaluation crop: the short side is resized to side + margin first
# CLIP's, which BLIP was trained with.
PIXEL_MEAN = np.array((0.48145466, 0.4578275, 0.40821073), dtype=np.float32).reshape(3, 1, 1)
PIXEL_STD = np.array((0.26862954, 0.26130258, 0.27577711), dtype=np.float32).reshape(3, 1, 1)
# What each of a channel's 256 values becomes, (3, 256) float32: a look-up gives the bits of the arithmetic
# without its five passes over the frame.
_NORMALIZED = ((np.arange(256, dtype=np.float32) / np.float32(255) - PIXEL_MEAN) / PIXEL_STD)[:, 0]


def preprocess_conse(pixels: np.ndarray) -> np.ndarray:
    """A frame to (3, 260, 260): short side to 292, centre crop, -1..1."""
    height, width = pixels.shape[:2]
    scale = (CONSE_SIDE + CONSE_MARGIN) / min(height, width)
    # The crop's box in source pixels: resizing only what is kept gives the same picture sooner.
    half = CONSE_SIDE / scale / 2
    box = (width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half)
    image = Image.fromarray(pixels).resize((CONSE_SIDE, CONSE_SIDE), Image.Resampling.BICUBIC, box=box)
    values = np.asarray(image).transpose(2, 0, 1).astype(np.float32)
    return (values - np.float32(127)) / np.float32(128)


@dataclass(frozen=True)
class SquarePreprocessor:
    """A frame to (3, side, side), squashed by PIL's bicubic filter; to the bit as LAVIS does it."""

    side: int

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Prepare one frame."""
        image = Image.fromarray(pixels).resize((self.side, self.side), Image.Resampling.BICUBIC)
        values = np.asarray(image)
        inputs = np.empty((3, self.side, self.side), dtype=np.float32)
        for channel, normalized in enumerate(_NORMALIZED):
            normalized.take(values[..., channel], out=inputs[channel], mode="clip")  # the mode without a copy
        return inputs


def preprocess_with_transformers(processor: Any, pixels: np.ndarray) -> np.ndarray:
    """A frame by an image processor of transformers."""
    # Named, because a frame 3 pixels high would pass for channels first.
    batch = processor(pixels, return_tensors="np", input_data_format="channels_last")
    return np.asarray(batch["pixel_values"])[0]


def preprocess_with_lavis(processor: Any, pixels: np.ndarray) -> np.ndarray:
    """A frame by an image processor of LAVIS."""
    return processor(Image.fromarray(pixels)).numpy()
