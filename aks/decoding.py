"""A video's candidate frames as model inputs, in this process or in one of its own.

:func:`decode` does the work. :func:`serve` is the life of a decoding process, which :mod:`aks.pool`
starts: it needs no torch, has no model, and ends when its parent does.
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
from aks.outscores import file_bytes
from aks.preparing import Preparer
from aks.video import Frames, Video, estimate_candidates

PARTIAL = "partial"
SLOTS = 2  # batches a decoding process may be ahead of the model
CHUNK_FRAMES = 4  # decoded frames held at a time: 100 MB at 4K
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


@dataclass(frozen=True)
class Header:
    """What opening a video told.

    Attributes:
        fps: average frame rate, frames a second.
        num_frames: frames in the video.
        video_bytes: size of its file.
        decoder: which reader decodes it.
        count: number of candidate frames.
        is_divisible: whether several processes may decode a part each.
        is_edited: whether frames are numbered as a player shows them, not as decord counts them.
    """

    fps: float
    num_frames: int
    video_bytes: int | None
    decoder: str
    count: int
    is_divisible: bool = False
    is_edited: bool = False

    @property
    def duration_s(self) -> float:
        """Length of the video in seconds."""
        return self.num_frames / self.fps


@dataclass(frozen=True)
class Batch:
    """Neighbouring candidate frames.

    Attributes:
        at: place of the first one among the video's decoded candidates.
        numbers: frame numbers, (n,) int64.
        times_s: presentation times in seconds, (n,) float64.
        inputs: what the scorer's preparer made of them, (n, 3, side, side).
        is_divisible: whether what is left of the video may still be divided, see :class:`Header`.
    """

    at: int
    numbers: np.ndarray
    times_s: np.ndarray
    inputs: np.ndarray
    is_divisible: bool = False


@dataclass
class Span:
    """Candidates of a video to decode, by their places: from ``first`` up to ``stop``, None for the end.

    ``stop`` may be lowered while they are decoded. Both lie between batches.
    """

    first: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class Done:
    """The end of a video.

    Attributes:
        lost: numbers of candidate frames that cannot be decoded; only with ``on_corrupt="partial"``.
        reason: why.
    """

    lost: list[int] = field(default_factory=list)
    reason: str = ""


@dataclass(frozen=True)
class Manner:
    """How videos are decoded, alike for all videos of a run.

    Attributes:
        preparer: makes a frame a model input.
        decoder: ``auto``, ``decord`` or ``pyav``.
        batch_frames: frames in a batch.
        on_corrupt: ``skip``: a frame that cannot be decoded fails the video; ``partial``: it is left out.
    """

    preparer: Preparer
    decoder: str
    batch_frames: int
    on_corrupt: str

    def empty_batch(self) -> np.ndarray:
        """Room for a batch of model inputs."""
        black = self.preparer(np.zeros((32, 32, 3), dtype=np.uint8))
        return np.empty((self.batch_frames, *black.shape), dtype=black.dtype)


def describe(video: Video) -> Header:
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
    return Header(
        video.fps, video.num_frames, size, video.decoder, count, video.is_divisible, video.is_edited
    )


# Gives the array that the next batch's inputs are put into.
Room = Callable[[], np.ndarray]


def decode(
    path: Path, manner: Manner, room: Room, span: Span | None = None
) -> Iterator[Header | Batch | Done]:
    """Decode a video: a header, batches, the end.

    Args:
        path: the video.
        manner: how.
        room: see :data:`Room`.
        span: only these candidates, of a divisible video; None for all.

    Raises:
        VideoError: it cannot be decoded.
    """
    span = span or Span()
    partial = manner.on_corrupt == PARTIAL
    with Video(path, manner.decoder, partial=partial) as video:
        header = describe(video)
        # Where frames may be lost, the places of the others follow from all before them.
        yield replace(header, is_divisible=header.is_divisible and not partial)
        candidates, lost, reasons = video.candidates(), [], []
        if partial:
            frames = _readable(video, candidates, lost, reasons)
        else:
            frames = ((video, chunk) for chunk in video.read(candidates[span.first :], CHUNK_FRAMES))
        yield from _batches(frames, manner, room, span)
        if len(lost) == len(candidates):
            raise VideoError(f"no frame can be decoded: {reasons[0]}")
        if video.announced_frames > video.num_frames:
            step = video.stride_frames
            lost.extend(range(len(candidates) * step, video.announced_frames // step * step, step))
            reasons.append(video.cut_short())
        yield Done(lost, reasons[0] if lost else "")


def _batches(
    frames: Iterator[tuple[Video, Frames]], manner: Manner, room: Room, span: Span
) -> Iterator[Batch]:
    at = span.first
    numbers: list[int] = []
    times: list[float] = []
    inputs = None
    for video, chunk in frames:
        for number, time_s, pixels in zip(chunk.numbers, chunk.times_s, chunk.pixels, strict=True):
            if inputs is None:
                inputs = room()
            inputs[len(numbers)] = manner.preparer(pixels)
            numbers.append(number)
            times.append(time_s)
            if len(numbers) == manner.batch_frames:
                yield Batch(at, np.array(numbers), np.array(times), inputs, video.is_divisible)
                at += len(numbers)
                numbers, times, inputs = [], [], None
                if at == span.stop:
                    return
    if inputs is not None:
        yield Batch(at, np.array(numbers), np.array(times), inputs[: len(numbers)])


def _readable(
    video: Video, candidates: np.ndarray, lost: list[int], reasons: list[str]
) -> Iterator[tuple[Video, Frames]]:
    """The candidates that can be decoded; the others' numbers go to ``lost``, the reason to ``reasons``."""
    done = 0
    try:
        for frames in video.read(candidates, CHUNK_FRAMES):
            yield video, frames
            done += len(frames.numbers)
        return
    except VideoError as error:
        reasons.append(str(error))
    found = set()
    with contextlib.suppress(VideoError):
        for frames in video.salvage(candidates[done:]):
            yield video, frames
            found.update(frames.numbers.tolist())
    lost.extend(number for number in candidates[done:].tolist() if number not in found)


def serve(parent: int, connection: int, memory: int) -> None:
    """Decode what the parent process asks for until it closes the connection.

    Args:
        parent: its process id; when it dies, by whatever signal, the kernel ends this process.
        connection: file descriptor of a socket. From the parent: a :class:`Manner`, then ``(path, Span)``
            to decode (or ``(path,)`` for its estimated length), ``None`` for a batch it has consumed, and a
            number: where the span shall stop now. To the parent: ``(message, seconds worked on it so far)``.
        memory: file descriptor of the memory that batches are handed over in, ``SLOTS`` in turn.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C ends
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is done
        _serve(Connection(connection), memory)


def _serve(connection: Connection, memory: int) -> None:
    manner: Manner = connection.recv()
    blank = manner.empty_batch()
    shared = np.frombuffer(mmap(memory, SLOTS * blank.nbytes), dtype=blank.dtype)
    slots = shared.reshape(SLOTS, *blank.shape)
    connection.send(("ready", 0.0))
    used = 0  # slots handed over in all, and of those, given back
    returned = 0
    began = 0.0
    span = Span()

    def room() -> np.ndarray:
        nonlocal returned, began
        waiting = time.monotonic()
        while used - returned == SLOTS or connection.poll():
            message = connection.recv()
            if message is None:
                returned += 1
            else:
                span.stop = message
        began += time.monotonic() - waiting  # waiting is no work
        return slots[used % SLOTS]

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
            for event in decode(path, manner, room, span):
                if isinstance(event, Batch):
                    used += 1
                    event = (event.at, event.numbers, event.times_s, event.is_divisible)
                connection.send((event, time.monotonic() - began))
        except VideoError as error:
            connection.send((error, time.monotonic() - began))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:  # one video's, whatever it is; the process goes on with the next
            connection.send((VideoError(f"{type(error).__name__}: {error}"), time.monotonic() - began))
