"""Decodes a video into batches of model inputs, and defines what every decoder hands to the pipeline.

A decoder yields, for each video: one :class:`VideoInfo`, then :class:`FrameBatch` after :class:`FrameBatch`,
then :class:`EndOfVideo`; or a :class:`~aks.errors.VideoError` where the video cannot be read.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from aks.errors import VideoError
from aks.scorers.preprocess import Preprocessor
from aks.video.files import file_bytes
from aks.video.reader import EVERY_SECOND, CandidateRule, DecodedFrames, Video

MAX_DECODED_FRAMES = 4  # held at a time, before preprocessing: 100 MB at 4K


@dataclass(frozen=True)
class VideoInfo:
    """What opening a video tells.

    Attributes:
        fps: average frame rate in frames a second.
        num_frames: frames in the video.
        video_bytes: size of its file; None where it is not at hand.
        decoder: name of the backend that decodes it.
        num_candidates: number of candidate frames.
        is_seekable: whether several processes may decode a range of it each.
        is_edited: whether an edit list hides stored frames; decord would number them, too.
    """

    fps: float
    num_frames: int
    video_bytes: int | None
    decoder: str
    num_candidates: int
    is_seekable: bool = False
    is_edited: bool = False

    @property
    def duration_s(self) -> float:
        """Length of the video in seconds."""
        return self.num_frames / self.fps


@dataclass(frozen=True)
class FrameBatch:
    """Neighbouring candidate frames of one video.

    Attributes:
        offset: index of the first of them among the video's decoded candidates.
        frame_indices: their frame numbers in the video, (n,) int64.
        times_s: their presentation times in seconds, (n,) float64.
        inputs: what the scorer's preprocessor made of them, (n, 3, side, side). The decoder may overwrite
            this memory as soon as the next event is asked for.
        is_seekable: whether the rest of the video may still be split, see :class:`VideoInfo`.
    """

    offset: int
    frame_indices: np.ndarray
    times_s: np.ndarray
    inputs: np.ndarray
    is_seekable: bool = False


@dataclass(frozen=True)
class EndOfVideo:
    """All batches of a video have been handed over.

    Attributes:
        missing_frames: numbers of candidate frames that cannot be decoded; only with
            ``on_corrupt="partial"``.
        reason: why they cannot.
    """

    missing_frames: list[int] = field(default_factory=list)
    reason: str = ""


@dataclass
class FrameRange:
    """The candidates to decode, as indices from ``start`` up to ``stop`` (None: to the end).

    Another process may take over the second half: ``stop`` is then lowered while this one decodes. Both ends
    lie between batches.
    """

    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class DecodeSpec:
    """How all videos of a run are decoded; ``decoder`` and ``on_corrupt`` as of ``DecodeConfig``.

    ``on_corrupt="partial"`` goes with the candidates of a whole video alone.
    """

    preprocessor: Preprocessor
    decoder: str
    batch_frames: int
    on_corrupt: str
    rule: CandidateRule = EVERY_SECOND

    def empty_batch(self) -> np.ndarray:
        """Uninitialised memory for the inputs of one batch."""
        black = self.preprocessor(np.zeros((32, 32, 3), dtype=np.uint8))
        return np.empty((self.batch_frames, *black.shape), dtype=black.dtype)


def probe(video: Video, rule: CandidateRule) -> VideoInfo:
    """Describe an open video.

    Raises:
        VideoError: the video has no candidate.
    """
    num_candidates = len(video.candidates(rule))
    if not num_candidates:
        if video.num_frames >= rule.stride(video.fps):
            start, end = f"{rule.start_s:g}", f"{rule.end_s:g}"
            span = f"from {start} to {end} s" if rule.end_s < math.inf else f"from {start} s on"
            duration_s = video.num_frames / video.fps
            raise VideoError(f"no candidate frame {span}; the video is {duration_s:.3f} s long")
        raise VideoError(
            f"too short: {video.num_frames} frames at {video.fps:g} a second, one candidate frame needs "
            f"{rule.stride(video.fps)}"
        )
    return VideoInfo(
        fps=video.fps,
        num_frames=video.num_frames,
        video_bytes=file_bytes(video.path),
        decoder=video.decoder,
        num_candidates=num_candidates,
        is_seekable=video.is_seekable,
        is_edited=video.is_edited,
    )


def decode(
    path: Path,
    spec: DecodeSpec,
    next_buffer: Callable[[], np.ndarray],
    frame_range: FrameRange | None = None,
) -> Iterator[VideoInfo | FrameBatch | EndOfVideo]:
    """Decode a video: its description, its batches, its end.

    Args:
        path: the video.
        spec: how it is decoded.
        next_buffer: gives the array that the inputs of the next batch are written to.
        frame_range: the candidates of a seekable video to decode; None for all.

    Raises:
        VideoError: the video cannot be decoded.
    """
    frame_range = frame_range or FrameRange()
    partial = spec.on_corrupt == "partial"
    with Video(path, spec.decoder, partial=partial) as video:
        info = probe(video, spec.rule)
        # Where frames may be missing, a batch's offset depends on all batches before it.
        yield replace(info, is_seekable=info.is_seekable and not partial)
        candidates, missing, reasons = video.candidates(spec.rule), [], []
        if partial:
            chunks = _decode_partial(video, candidates, missing, reasons)
        else:
            chunks = video.read(candidates[frame_range.start :], MAX_DECODED_FRAMES)
        yield from _batches(video, chunks, spec, next_buffer, frame_range)
        if len(missing) == len(candidates):
            raise VideoError(f"no frame can be decoded: {reasons[0]}")
        if video.header_num_frames > video.num_frames:  # a file that is cut short
            stride = spec.rule.stride(video.fps)
            missing.extend(
                range(len(candidates) * stride, video.header_num_frames // stride * stride, stride)
            )
            reasons.append(video.truncation_message())
        yield EndOfVideo(missing, reasons[0] if missing else "")


def _batches(
    video: Video,
    chunks: Iterator[DecodedFrames],
    spec: DecodeSpec,
    next_buffer: Callable[[], np.ndarray],
    frame_range: FrameRange,
) -> Iterator[FrameBatch]:
    """Preprocess decoded frames and gather them into batches."""
    offset = frame_range.start
    indices: list[int] = []
    times: list[float] = []
    inputs = None
    for chunk in chunks:
        for index, time_s, pixels in zip(chunk.frame_indices, chunk.times_s, chunk.pixels, strict=True):
            if inputs is None:
                inputs = next_buffer()
            inputs[len(indices)] = spec.preprocessor(pixels)
            indices.append(index)
            times.append(time_s)
            if len(indices) == spec.batch_frames:
                yield FrameBatch(offset, np.array(indices), np.array(times), inputs, video.is_seekable)
                offset += len(indices)
                indices, times, inputs = [], [], None
                if offset == frame_range.stop:
                    return
    if inputs is not None:
        yield FrameBatch(offset, np.array(indices), np.array(times), inputs[: len(indices)])


def _decode_partial(
    video: Video, candidates: np.ndarray, missing: list[int], reasons: list[str]
) -> Iterator[DecodedFrames]:
    """Decode the candidates that can be decoded; add the others to ``missing`` and why to ``reasons``."""
    num_done = 0
    try:
        for frames in video.read(candidates, MAX_DECODED_FRAMES):
            yield frames
            num_done += len(frames.frame_indices)
        return
    except VideoError as error:
        reasons.append(str(error))
    found = set()
    with contextlib.suppress(VideoError):
        for frames in video.read_partial(candidates[num_done:]):
            yield frames
            found.update(frames.frame_indices.tolist())
    missing.extend(index for index in candidates[num_done:].tolist() if index not in found)
