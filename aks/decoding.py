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
from dataclasses import dataclass, field
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
        is_edited: whether frames are numbered as a player shows them, not as decord counts them.
    """

    fps: float
    num_frames: int
    video_bytes: int | None
    decoder: str
    count: int
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
    """

    at: int
    numbers: np.ndarray
    times_s: np.ndarray
    inputs: np.ndarray


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
    return Header(video.fps, video.num_frames, size, video.decoder, count, video.is_edited)


# Gives the array that the next batch's inputs are put into.
Room = Callable[[], np.ndarray]


def decode(
    path: Path, manner: Manner, room: Room, part: int = 0, parts: int = 1
) -> Iterator[Header | Batch | Done]:
    """Decode a video, or one of several equal parts of it: a header, batches, the end.

    Args:
        path: the video.
        manner: how.
        room: see :data:`Room`.
        part: which part, from 0. Where a part cannot be decoded alone, the first one is the whole video and
            the others are empty.
        parts: how many there are; 1 with ``on_corrupt="partial"``.

    Raises:
        VideoError: it cannot be decoded.
    """
    partial = manner.on_corrupt == PARTIAL
    with Video(path, manner.decoder, partial=partial) as video:
        header = describe(video)
        yield header
        if not video.is_divisible:
            part, parts = part and 1, 1
        batches = -(-header.count // manner.batch_frames)
        first, stop = (batches * index // parts * manner.batch_frames for index in (part, part + 1))
        candidates, lost, reasons = video.candidates()[first:stop], [], []
        if not len(candidates):
            yield Done()
            return
        if partial:
            frames = _readable(video, candidates, lost, reasons)
        else:
            frames = video.read(candidates, CHUNK_FRAMES)
        yield from _batches(frames, manner, room, first)
        if len(lost) == len(candidates):
            raise VideoError(f"no frame can be decoded: {reasons[0]}")
        if video.announced_frames > video.num_frames:
            step = video.stride_frames
            lost.extend(range(len(candidates) * step, video.announced_frames // step * step, step))
            reasons.append(video.cut_short())
        yield Done(lost, reasons[0] if lost else "")


def _batches(frames: Iterator[Frames], manner: Manner, room: Room, at: int) -> Iterator[Batch]:
    numbers: list[int] = []
    times: list[float] = []
    inputs = None
    for chunk in frames:
        for number, time_s, pixels in zip(chunk.numbers, chunk.times_s, chunk.pixels, strict=True):
            if inputs is None:
                inputs = room()
            inputs[len(numbers)] = manner.preparer(pixels)
            numbers.append(number)
            times.append(time_s)
            if len(numbers) == manner.batch_frames:
                yield Batch(at, np.array(numbers), np.array(times), inputs)
                at += len(numbers)
                numbers, times, inputs = [], [], None
    if inputs is not None:
        yield Batch(at, np.array(numbers), np.array(times), inputs[: len(numbers)])


def _readable(video: Video, candidates: np.ndarray, lost: list[int], reasons: list[str]) -> Iterator[Frames]:
    """The candidates that can be decoded; the others' numbers go to ``lost``, the reason to ``reasons``."""
    done = 0
    try:
        for frames in video.read(candidates, CHUNK_FRAMES):
            yield frames
            done += len(frames)
        return
    except VideoError as error:
        reasons.append(str(error))
    found = set()
    with contextlib.suppress(VideoError):
        for frames in video.salvage(candidates[done:]):
            yield frames
            found.update(frames.numbers.tolist())
    lost.extend(number for number in candidates[done:].tolist() if number not in found)


def serve(parent: int, connection: int, memory: int) -> None:
    """Decode what the parent process asks for until it closes the connection.

    Args:
        parent: its process id; when it dies, by whatever signal, the kernel ends this process.
        connection: file descriptor of a socket. From the parent: a :class:`Manner`, then ``(path, part,
            parts)`` to decode (or ``(path,)`` for its estimated length), and ``None`` for a batch it has
            consumed. To the parent: ``(message, seconds worked on it so far)``.
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

    def room() -> np.ndarray:
        nonlocal returned, began
        waiting = time.monotonic()
        while used - returned == SLOTS:
            connection.recv()
            returned += 1
        began += time.monotonic() - waiting  # waiting is no work
        return slots[used % SLOTS]

    while True:
        job = connection.recv()
        if job is None:
            returned += 1
            continue
        began = time.monotonic()
        try:
            if len(job) == 1:
                connection.send((estimate_candidates(*job), 0.0))
                continue
            path, part, parts = job
            for event in decode(path, manner, room, part, parts):
                if isinstance(event, Batch):
                    used += 1
                    event = (event.at, event.numbers, event.times_s)
                connection.send((event, time.monotonic() - began))
        except VideoError as error:
            connection.send((error, time.monotonic() - began))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:  # one video's, whatever it is; the process goes on with the next
            connection.send((VideoError(f"{type(error).__name__}: {error}"), time.monotonic() - began))
