"""A video's candidate frames as model inputs, in this process or in one of its own.

:func:`decode` does the work. :func:`worker_main` is the life of a decoding process, which
:mod:`aks.extraction.workers` starts: it needs no torch, has no model, and ends when its parent does.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from mmap import mmap
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from aks.errors import VideoError
from aks.run_dir import file_bytes
from aks.scorers.preprocess import Preprocessor
from aks.video.reader import DecodedFrames, Video, estimate_candidates

PARTIAL = "partial"
PREFETCH_BATCHES = 2  # batches a decoding process may be ahead of the model
CHUNK_FRAMES = 4  # decoded frames held at a time: 100 MB at 4K
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


@dataclass(frozen=True)
class VideoInfo:
    """What opening a video told.

    Attributes:
        fps: average frame rate, frames a second.
        num_frames: frames in the video.
        video_bytes: size of its file.
        decoder: which reader decodes it.
        count: number of candidate frames.
        is_seekable: whether several processes may decode a part each.
        is_edited: whether frames are numbered as a player shows them, not as decord counts them.
    """

    fps: float
    num_frames: int
    video_bytes: int | None
    decoder: str
    count: int
    is_seekable: bool = False
    is_edited: bool = False

    @property
    def duration_s(self) -> float:
        """Length of the video in seconds."""
        return self.num_frames / self.fps


@dataclass(frozen=True)
class FrameBatch:
    """Neighbouring candidate frames.

    Attributes:
        offset: place of the first one among the video's decoded candidates.
        frame_indices: frame numbers, (n,) int64.
        times_s: presentation times in seconds, (n,) float64.
        inputs: what the scorer's preprocessor made of them, (n, 3, side, side).
        is_seekable: whether what is left of the video may still be divided, see :class:`VideoInfo`.
    """

    offset: int
    frame_indices: np.ndarray
    times_s: np.ndarray
    inputs: np.ndarray
    is_seekable: bool = False


@dataclass
class FrameRange:
    """Candidates of a video to decode, by their places: from ``first`` up to ``stop``, None for the end.

    ``stop`` may be lowered while they are decoded. Both lie between batches.
    """

    first: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class EndOfVideo:
    """The end of a video.

    Attributes:
        missing_frames: numbers of candidate frames that cannot be decoded; only with ``on_corrupt="partial"``.
        reason: why.
    """

    missing_frames: list[int] = field(default_factory=list)
    reason: str = ""


@dataclass(frozen=True)
class DecodeSpec:
    """How videos are decoded, alike for all videos of a run.

    Attributes:
        preprocessor: makes a frame a model input.
        decoder: ``auto``, ``decord`` or ``pyav``.
        batch_frames: frames in a batch.
        on_corrupt: ``skip``: a frame that cannot be decoded fails the video; ``partial``: it is left out.
    """

    preprocessor: Preprocessor
    decoder: str
    batch_frames: int
    on_corrupt: str

    def empty_batch(self) -> np.ndarray:
        """BufferProvider for a batch of model inputs."""
        black = self.preprocessor(np.zeros((32, 32, 3), dtype=np.uint8))
        return np.empty((self.batch_frames, *black.shape), dtype=black.dtype)


def probe(video: Video) -> VideoInfo:
    """The header of an open video.

    Raises:
        VideoError: it is too short to have a candidate.
    """
    count = len(video.candidates())
    if not count:
        raise VideoError(
            f"too short: {video.num_frames} frames at {video.fps:g} a second, one candidate frame needs "
            f"{video.stride_frames}"
        )
    size = file_bytes(video.path)
    return VideoInfo(
        video.fps, video.num_frames, size, video.decoder, count, video.is_seekable, video.is_edited
    )


# Gives the array that the next batch's inputs are put into.
BufferProvider = Callable[[], np.ndarray]


def decode(
    path: Path, spec: DecodeSpec, next_buffer: BufferProvider, span: FrameRange | None = None
) -> Iterator[VideoInfo | FrameBatch | EndOfVideo]:
    """Decode a video: a header, batches, the end.

    Args:
        path: the video.
        spec: how.
        next_buffer: see :data:`BufferProvider`.
        span: only these candidates, of a divisible video; None for all.

    Raises:
        VideoError: it cannot be decoded.
    """
    span = span or FrameRange()
    partial = spec.on_corrupt == PARTIAL
    with Video(path, spec.decoder, partial=partial) as video:
        header = probe(video)
        # Where frames may be lost, the places of the others follow from all before them.
        yield replace(header, is_seekable=header.is_seekable and not partial)
        candidates, lost, reasons = video.candidates(), [], []
        if partial:
            frames = _decode_partial(video, candidates, lost, reasons)
        else:
            frames = ((video, chunk) for chunk in video.read(candidates[span.first :], CHUNK_FRAMES))
        yield from _batches(frames, spec, next_buffer, span)
        if len(lost) == len(candidates):
            raise VideoError(f"no frame can be decoded: {reasons[0]}")
        if video.header_num_frames > video.num_frames:
            step = video.stride_frames
            lost.extend(range(len(candidates) * step, video.header_num_frames // step * step, step))
            reasons.append(video.truncation_message())
        yield EndOfVideo(lost, reasons[0] if lost else "")


def _batches(
    frames: Iterator[tuple[Video, DecodedFrames]],
    spec: DecodeSpec,
    next_buffer: BufferProvider,
    span: FrameRange,
) -> Iterator[FrameBatch]:
    at = span.first
    numbers: list[int] = []
    times: list[float] = []
    inputs = None
    for video, chunk in frames:
        for number, time_s, pixels in zip(chunk.frame_indices, chunk.times_s, chunk.pixels, strict=True):
            if inputs is None:
                inputs = next_buffer()
            inputs[len(numbers)] = spec.preprocessor(pixels)
            numbers.append(number)
            times.append(time_s)
            if len(numbers) == spec.batch_frames:
                yield FrameBatch(at, np.array(numbers), np.array(times), inputs, video.is_seekable)
                at += len(numbers)
                numbers, times, inputs = [], [], None
                if at == span.stop:
                    return
    if inputs is not None:
        yield FrameBatch(at, np.array(numbers), np.array(times), inputs[: len(numbers)])


def _decode_partial(
    video: Video, candidates: np.ndarray, lost: list[int], reasons: list[str]
) -> Iterator[tuple[Video, DecodedFrames]]:
    """The candidates that can be decoded; the others' numbers go to ``lost``, the reason to ``reasons``."""
    done = 0
    try:
        for frames in video.read(candidates, CHUNK_FRAMES):
            yield video, frames
            done += len(frames.frame_indices)
        return
    except VideoError as error:
        reasons.append(str(error))
    found = set()
    with contextlib.suppress(VideoError):
        for frames in video.read_partial(candidates[done:]):
            yield video, frames
            found.update(frames.frame_indices.tolist())
    lost.extend(number for number in candidates[done:].tolist() if number not in found)


def worker_main(parent: int, connection: int, memory: int) -> None:
    """Decode what the parent process asks for until it closes the connection.

    Args:
        parent: its process id; when it dies, by whatever signal, the kernel ends this process.
        connection: file descriptor of a socket. From the parent: a :class:`DecodeSpec`, then ``(path,
            FrameRange)`` to decode (or ``(path,)`` for its estimated length), ``None`` for a batch it has consumed, and a
            number: where the span shall stop now. To the parent: ``(message, seconds worked on it so far)``.
        memory: file descriptor of the memory that batches are handed over in, ``PREFETCH_BATCHES`` in turn.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C ends
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is done
        _worker_loop(Connection(connection), memory)


def _worker_loop(connection: Connection, memory: int) -> None:
    spec: DecodeSpec = connection.recv()
    blank = spec.empty_batch()
    shared = np.frombuffer(mmap(memory, PREFETCH_BATCHES * blank.nbytes), dtype=blank.dtype)
    slots = shared.reshape(PREFETCH_BATCHES, *blank.shape)
    connection.send(("ready", 0.0))
    used = 0  # slots handed over in all, and of those, given back
    returned = 0
    began = 0.0
    span = FrameRange()

    def next_buffer() -> np.ndarray:
        nonlocal returned, began
        waiting = time.monotonic()
        while used - returned == PREFETCH_BATCHES or connection.poll():
            message = connection.recv()
            if message is None:
                returned += 1
            else:
                span.stop = message
        began += time.monotonic() - waiting  # waiting is no work
        return slots[used % PREFETCH_BATCHES]

    while True:
        job = connection.recv()
        if job is None:
            returned += 1
        if not isinstance(job, tuple):  # or where to stop, of a span that has failed meanwhile
            continue
        began = time.monotonic()
        try:
            if len(job) == 1:
                connection.send((estimate_candidates(*job), 0.0))
                continue
            path, span = job
            for event in decode(path, spec, next_buffer, span):
                if isinstance(event, FrameBatch):
                    used += 1
                    event = (event.offset, event.frame_indices, event.times_s, event.is_seekable)
                connection.send((event, time.monotonic() - began))
        except VideoError as error:
            connection.send((error, time.monotonic() - began))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:  # one video's, whatever it is; the process goes on with the next
            connection.send((VideoError(f"{type(error).__name__}: {error}"), time.monotonic() - began))
