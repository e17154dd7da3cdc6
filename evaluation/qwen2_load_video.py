"""Selected keyframes through qwen-vl-utils, with their true indices in the metadata.

The Qwen models hand a path to ``qwen_vl_utils.process_vision_info``, which decides on its own what to read.
Here the path is a ``KeyframePath``, a text that also carries frame indices. Every reader of qwen-vl-utils is
wrapped, so that such a path is read at its indices and any other path as before. qwen-vl-utils still resizes
the frames, limits their pixels and passes on their metadata.
"""

from __future__ import annotations

if __name__.startswith("lmms_eval."):
    raise SystemExit(
        f"error: {__file__} is a file of Adaptive Keyframe Sampling; it does not replace lmms-eval's. "
        "Get that back (git checkout, or pip install --force-reinstall --no-deps lmms-eval==VERSION), then "
        "run evaluation/swap_in.py install in the project"
    )

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from qwen_vl_utils import vision_process

from evaluation.errors import EvaluationError
from evaluation.frame_policy import KeyframePath, read_frames

QwenVideo = tuple[torch.Tensor, dict[str, Any], float]


def wrap_readers() -> None:
    """Put ``read`` in front of every reader of qwen-vl-utils, once.

    All of them, because on an error qwen-vl-utils turns to another reader, which would show uniform frames.
    """
    readers = vision_process.VIDEO_READER_BACKENDS
    for name, reader in readers.items():
        if getattr(reader, "func", None) is not read:
            readers[name] = functools.partial(read, reader)


def read(upstream: Callable[[dict[str, Any]], QwenVideo], element: dict[str, Any]) -> QwenVideo:
    """What qwen-vl-utils asks of a reader: frames (n, 3, height, width) uint8, metadata, sampling rate.

    Args:
        upstream: qwen-vl-utils' own reader.
        element: the video's part of the message; gets a limit of pixels for keyframes.

    Raises:
        EvaluationError: the video cannot be read (qwen-vl-utils would try another reader).
    """
    path = element["video"]
    if not isinstance(path, KeyframePath):
        return upstream(element)
    if path.frames is None:
        try:
            result = upstream(element)
        except Exception as error:
            raise EvaluationError(f"{path}: cannot be read: {error}", path.doc) from None
        path.num_read = len(result[0])
        return result

    decoded, video = read_frames(str(path), path.frames, path.doc)
    element["max_pixels"] = uniform_max_pixels(element, video.num_frames, video.fps, path.patch_size)
    metadata = {
        "fps": video.fps,
        "frames_indices": decoded.frame_indices.tolist(),
        "total_num_frames": video.num_frames,
        "video_backend": video.decoder,
    }
    path.num_read = len(decoded.frame_indices)
    pixels = torch.from_numpy(decoded.pixels).permute(0, 3, 1, 2)
    return pixels, metadata, len(decoded.frame_indices) / video.num_frames * video.fps


def uniform_max_pixels(element: Mapping[str, Any], num_frames: int, fps: float, patch_size: int) -> int:
    """Most pixels a frame, as qwen-vl-utils would allow them for its own uniform frames of this video.

    It divides a budget of tokens by the number of frames it reads (two a second, 768 at most), before the
    model thins them out. Divided by the number of keyframes, the budget would show them larger than uniform
    frames, and the comparison would not be one of frames alone.
    """
    factor = patch_size * vision_process.SPATIAL_MERGE_SIZE
    try:
        num_read = vision_process.smart_nframes(dict(element), total_frames=num_frames, video_fps=fps)
    except ValueError:  # fewer frames than qwen-vl-utils can sample
        num_read = vision_process.FRAME_FACTOR
    total = element.get("total_pixels", vision_process.MODEL_SEQ_LEN * factor * factor * 0.9)
    lower = element.get("min_pixels", vision_process.VIDEO_MIN_TOKEN_NUM * factor * factor)
    upper = vision_process.VIDEO_MAX_TOKEN_NUM * factor * factor
    allowed = max(min(upper, total / num_read * vision_process.FRAME_FACTOR), int(lower * 1.05))
    return min(element.get("max_pixels", allowed), allowed)
