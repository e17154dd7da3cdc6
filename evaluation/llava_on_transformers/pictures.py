"""Frames and pictures to SigLIP's pixels, whole, padded to a square, or in tiles (LLaVA's "anyres").

The preprocessing is SigLIP's: bicubic resize to 384 x 384 by Pillow, then -1 to 1. It is done here, because
transformers' class for it has another name and other defaults from version to version.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from evaluation.errors import EvaluationError
from evaluation.llava_on_transformers.config import max_tiles

SIZE = 384  # pixels along a side
GREY = (127, 127, 127)  # the mean of the pixels, around a picture that is padded to a square
# Every grey level's value for the model, rounded step by step to float32 as transformers' functions round it.
LEVELS = ((np.arange(256) * (1 / 255)).astype(np.float32) - np.float32(0.5)) / np.float32(0.5)


class ImageProcessor:
    """SigLIP's preprocessing behind the two names that lmms-eval's LLaVA classes use."""

    image_mean = (0.5, 0.5, 0.5)

    def preprocess(
        self, images: Image.Image | Iterable[Image.Image | np.ndarray], return_tensors: str = "pt"
    ) -> dict[str, torch.Tensor]:
        """Pictures of any size to ``pixel_values`` (n, 3, 384, 384) float32, from -1 to 1.

        Args:
            images: a picture, or several; arrays are (height, width, 3) uint8.
            return_tensors: ``pt``, the only form.
        """
        pictures = [images] if isinstance(images, Image.Image) else images
        pixels = np.stack([_resize(picture) for picture in pictures])
        # The layout in memory decides how a convolution rounds: channel by channel, as LLaVA-NeXT's.
        channels_first = np.ascontiguousarray(LEVELS[pixels].transpose(0, 3, 1, 2))
        return {"pixel_values": torch.from_numpy(channels_first)}


def _resize(picture: Image.Image | np.ndarray) -> np.ndarray:
    if not isinstance(picture, Image.Image):
        picture = Image.fromarray(np.asarray(picture))
    return np.asarray(picture.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def process_images(
    images: Sequence[Image.Image], image_processor: ImageProcessor, config: Any
) -> torch.Tensor | list[torch.Tensor]:
    """The pixels of a question's pictures, by the configuration's ``image_aspect_ratio``.

    Args:
        images: pictures of any size.
        image_processor: theirs.
        config: has ``image_aspect_ratio``, and for tiles ``image_grid_pinpoints``.

    Returns:
        ``pad``: (n, 3, 384, 384). ``anyres`` and ``anyres_max_N``: the whole picture and its tiles, a tensor
        (1 + tiles, 3, 384, 384) a picture; stacked where all have the same number of tiles.

    Raises:
        EvaluationError: another ``image_aspect_ratio``.
    """
    images = [image.convert("RGB") for image in images]
    mode = config.image_aspect_ratio
    if mode == "pad":
        return image_processor.preprocess([_pad_to_square(image) for image in images])["pixel_values"]
    if mode != "anyres" and max_tiles(str(mode)) is None:
        raise EvaluationError(
            f"image_aspect_ratio is {mode!r} in the checkpoint's config.json; only pad, anyres and "
            "anyres_max_N are supported for pictures"
        )
    pixels = [
        image_processor.preprocess([image, *_tiles(image, config.image_grid_pinpoints)])["pixel_values"]
        for image in images
    ]
    return torch.stack(pixels) if len({len(tiles) for tiles in pixels}) == 1 else pixels


def _pad_to_square(image: Image.Image) -> Image.Image:
    side = max(image.size)
    square = Image.new("RGB", (side, side), GREY)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _tiles(image: Image.Image, pinpoints: Any) -> list[Image.Image]:
    """A picture's tiles of 384 x 384 pixels, row by row; black around it where its shape does not fit."""
    columns, rows = tile_grid(image.size, pinpoints)
    width, height = columns * SIZE, rows * SIZE
    if width / image.width < height / image.height:
        fitted = (width, min(math.ceil(image.height * (width / image.width)), height))
    else:
        fitted = (min(math.ceil(image.width * (height / image.height)), width), height)
    canvas = Image.new("RGB", (width, height))
    canvas.paste(image.resize(fitted), ((width - fitted[0]) // 2, (height - fitted[1]) // 2))
    return [
        canvas.crop((left, top, left + SIZE, top + SIZE))
        for top in range(0, height, SIZE)
        for left in range(0, width, SIZE)
    ]


def tile_grid(size: tuple[int, int], pinpoints: Any) -> tuple[int, int]:
    """Columns and rows of tiles for a picture: the grid that keeps most of its pixels and wastes fewest.

    Args:
        size: width and height in pixels.
        pinpoints: the configuration's ``image_grid_pinpoints``: a list of widths and heights in pixels, its
            text, or a range of grids such as ``(1x1),...,(6x6)``.
    """
    width, height = size
    best, best_grid = (-1, 0), (1, 1)
    for grid_width, grid_height in _grids(pinpoints):
        scale = min(grid_width / width, grid_height / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        value = (kept, kept - grid_width * grid_height)
        if value > best:
            best, best_grid = value, (grid_width // SIZE, grid_height // SIZE)
    return best_grid


def _grids(pinpoints: Any) -> list[tuple[int, int]]:
    """Every grid's width and height in pixels."""
    if isinstance(pinpoints, str) and "x" in pinpoints:
        ends = [(int(columns), int(rows)) for columns, rows in re.findall(r"\((\d+)x(\d+)\)", pinpoints)]
        (first_column, first_row), (last_column, last_row) = ends[0], ends[-1]
        return [
            (column * SIZE, row * SIZE)
            for column in range(first_column, last_column + 1)
            for row in range(first_row, last_row + 1)
        ]
    return ast.literal_eval(pinpoints) if isinstance(pinpoints, str) else pinpoints


def crop_padding(features: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The part of tiled features (channels, height, width) that shows the picture, not what pads it.

    Args:
        features: of all tiles, joined.
        size: the picture's width and height in pixels.
    """
    (width, height), (full_height, full_width) = size, features.shape[1:]
    if width / height > full_width / full_height:
        margin = (full_height - int(height * (full_width / width))) // 2
        return features[:, margin : full_height - margin]
    margin = (full_width - int(width * (full_height / height))) // 2
    return features[:, :, margin : full_width - margin]
