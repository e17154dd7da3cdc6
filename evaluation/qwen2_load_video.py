"""Selected keyframes through qwen-vl-utils, with their true indices in the metadata.

The Qwen models hand a path to ``qwen_vl_utils.process_vision_info``, which decides on its own what to read.
Here the path is a ``KeyframePath``, a text that also carries the frame numbers; every one of
qwen-vl-utils' readers is wrapped, so that such a path is read at its numbers and any other path as
before. Resizing, pixel budget and metadata stay qwen-vl-utils'.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from qwen_vl_utils import vision_process

from evaluation.frame_policy import EvaluationError, question_id, read_frames, uniform_linspace

QwenVideo = tuple[torch.Tensor, dict[str, Any], float]


class KeyframePath(str):
    """A video's path that knows which question it is for and which frames to show.

    Attributes:
        doc: the question.
        frame_indices: frame numbers, (n,) int64; None for upstream's own uniform frames.
        refill: uniform frames instead of a selection shorter than this (``short_selection=paper``).
        patch_size: side of the model's image patches in pixels, of which the pixel budget is counted.
        taken: called when the frames have been read.
    """

    doc: Mapping[str, Any]
    frame_indices: np.ndarray | None
    refill: int | None
    patch_size: int
    taken: Callable[[], None]


def wrap_readers() -> None:
    """Put ``read`` in front of every reader of qwen-vl-utils, once.

    All of them: on an error qwen-vl-utils turns to another one, which would show uniform frames.
    """
    readers = vision_process.VIDEO_READER_BACKENDS
    for name, reader in readers.items():
        if getattr(reader, "func", None) is not read:
            readers[name] = functools.partial(read, reader)


def read(upstream: Callable[[dict[str, Any]], QwenVideo], element: dict[str, Any]) -> QwenVideo:
    """What qwen-vl-utils asks of a reader: frames (n, 3, height, width) uint8, metadata, sampling rate.

    Raises:
        EvaluationError: the video cannot be read (qwen-vl-utils would try another reader).
    """
    video = element["video"]
    if not isinstance(video, KeyframePath):
        return upstream(element)
    if video.frame_indices is None and video.refill is None:
        try:
            reading = upstream(element)
        except Exception as error:
            raise EvaluationError(
                f"question {question_id(video.doc)}: {video}: cannot be read: {error}"
            ) from None
        video.taken()
        return reading

    choose = video.frame_indices
    if choose is None:
        choose = lambda opened: uniform_linspace(opened.num_frames, video.refill)  # noqa: E731
    frames, opened = read_frames(str(video), choose, video.doc)
    element["max_pixels"] = uniform_max_pixels(element, opened.num_frames, opened.fps, video.patch_size)
    metadata = {
        "fps": opened.fps,
        "frames_indices": frames.frame_indices.tolist(),
        "total_num_frames": opened.num_frames,
        "video_backend": opened.decoder,
    }
    video.taken()
    pixels = torch.from_numpy(frames.pixels).permute(0, 3, 1, 2)
    return pixels, metadata, len(frames.frame_indices) / opened.num_frames * opened.fps


def uniform_max_pixels(element: Mapping[str, Any], num_frames: int, fps: float, patch_size: int) -> int:
    """Most pixels a frame, as qwen-vl-utils would allow them for its own uniform frames of this video.

    It divides a budget of tokens by the number of frames it reads (at two a second up to 768), before the
    model thins them out. Fewer keyframes would be shown larger, and the comparison with uniform frames
    would not be one of frames alone.
    """
    factor = patch_size * vision_process.SPATIAL_MERGE_SIZE
    try:
        count = vision_process.smart_nframes(dict(element), total_frames=num_frames, video_fps=fps)
    except ValueError:  # fewer frames than qwen-vl-utils can sample
        count = vision_process.FRAME_FACTOR
    total = element.get("total_pixels", vision_process.MODEL_SEQ_LEN * factor * factor * 0.9)
    least = element.get("min_pixels", vision_process.VIDEO_MIN_TOKEN_NUM * factor * factor)
    most = vision_process.VIDEO_MAX_TOKEN_NUM * factor * factor
    allowed = max(min(most, total / count * vision_process.FRAME_FACTOR), int(least * 1.05))
    return min(element.get("max_pixels", allowed), allowed)
