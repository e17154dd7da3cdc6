"""Decoding processes: several videos decoded at once, each batch handed over in shared memory.

A process is at most ``PREFETCH_BATCHES`` batches ahead, so memory is bounded whatever the videos; it is replaced
when it dies or hangs. One that finds no video left takes over half of what another still has to do. The
processes are fresh ones (no fork of a process with threads or CUDA), share nothing but a socket and an
unnamed piece of memory with this one, and end with it, even by SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from mmap import mmap
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np

from aks.errors import UserError, VideoError
from aks.extraction.decoding import (
    PREFETCH_BATCHES,
    DecodeSpec,
    EndOfVideo,
    FrameBatch,
    FrameRange,
    VideoInfo,
    decode,
)
from aks.video.reader import estimate_candidates

POLL_INTERVAL_S = 0.5  # how often time limits are looked at
PROBE_LIMIT_S = 20.0  # to read a header
START_LIMIT_S = 180.0  # for a process to start, from a slow network disk and on loaded cores
KILL_LIMIT_S = 10.0  # for one to end when killed; one that waits for a dead disk does not
MIN_SPLIT_FRAMES = 64  # candidates that one process must have left for another to take half of them
# Without one given: what a slow, loaded machine needs for a film at 4K, and some time to open it.
LIMIT_S, LIMIT_PER_SECOND = 60.0, 4.0
_START = (
    "import sys; sys.path[:] = {path!r}; "
    "from aks.extraction.decoding import worker_main; worker_main({parent}, *{ends})"
)


class Restarted:
    """The process that decoded a video died: what came of it is void, it starts anew."""


Event = VideoInfo | FrameBatch | EndOfVideo | Restarted | VideoError
# Yields a video's name and what became of it; is sent True where the video shall be given up.
Events = Generator[tuple[str, Event], bool, None]


@dataclass(frozen=True)
class VideoJob:
    """A video to decode: its name, its file, and its estimated length in seconds (0: unknown)."""

    name: str
    path: Path
    duration_s: float = 0.0


class SerialDecoder:
    """Decodes one video after another in this process; the same events as :class:`WorkerPool`."""

    def __init__(self, spec: DecodeSpec) -> None:
        """Decode as the spec says."""
        self._spec = spec

    def __enter__(self) -> SerialDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def count_frames(self, jobs: list[VideoJob]) -> dict[str, int]:
        """Candidates of each video by its header; 0 where it does not tell."""
        return {job.name: estimate_candidates(job.path) for job in jobs}

    def run(self, jobs: Iterator[VideoJob]) -> Events:
        """Decode the videos."""
        inputs = self._spec.empty_batch()
        for job in jobs:
            try:
                for event in decode(job.path, self._spec, lambda: inputs):
                    if (yield job.name, event):
                        break
            except VideoError as error:
                yield job.name, error


class WorkerPool:
    """Decodes several videos at once.

    Args:
        spec: how to decode.
        workers: number of processes, 1 or more.
        limit_s: seconds that decoding one video may take; None for 60 and four times its length.
    """

    def __init__(self, spec: DecodeSpec, workers: int, limit_s: float | None = None) -> None:
        """Start nothing yet; processes start with the first videos."""
        self._spec, self._limit_s = spec, limit_s
        self._blank = spec.empty_batch()
        self._workers: list[_Worker | None] = [None] * workers

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            if worker is not None:
                worker.kill()
        self._workers = [None] * len(self._workers)

    def count_frames(self, jobs: list[VideoJob]) -> dict[str, int]:
        """Candidates of each video by its header; 0 where it does not tell, or hangs, or crashes."""
        found = {job.name: 0 for job in jobs}
        for name, event in self._run(iter(jobs), lambda job: (job.path,), lambda worker: PROBE_LIMIT_S):
            if isinstance(event, int):
                found[name] = event
        return found

    def run(self, jobs: Iterator[VideoJob]) -> Events:
        """Decode the videos, several at once; the batches of a long one may come in any order."""
        return self._run(jobs, lambda job: (job.path, FrameRange()), self._limit)

    def _limit(self, worker: _Worker) -> float:
        if self._limit_s is not None:
            return self._limit_s
        return LIMIT_S + LIMIT_PER_SECOND * max(worker.job.duration_s, worker.duration_s)

    def _run(
        self,
        jobs: Iterator[VideoJob],
        request: Callable[[VideoJob], object],
        limit: Callable[[_Worker], float],
    ) -> Events:
        again: list[VideoJob] = []  # whose process died
        tried: set[str] = set()
        while True:
            for index, worker in enumerate(self._workers):
                if worker is None or worker.job is None:
                    job = again.pop() if again else next(jobs, None)
                    busiest = None if job else self._busiest()
                    if job is None and busiest is None:
                        break
                    try:
                        worker = worker or _Worker(self._spec, self._blank)
                    except UserError:
                        if job is None:  # it goes without help
                            break
                        raise
                    self._workers[index] = worker
                    if job is None:
                        worker.take_half_of(busiest)
                    else:
                        worker.assign(job, request(job))
            busy = {w.connection: w for w in self._workers if w is not None and w.job is not None}
            if not busy:
                return
            ready = wait(list(busy), timeout=POLL_INTERVAL_S)
            for connection in ready:
                worker = busy[connection]
                job = worker.job
                if job is None:  # buried since
                    continue
                try:
                    event = worker.receive()
                except (EOFError, ConnectionResetError):
                    cause = self._terminate(worker, patience_s=5)
                    self._cancel_video(job)
                    if job.name in tried:
                        yield job.name, VideoError(f"the decoding process died twice at it ({cause})")
                    else:
                        tried.add(job.name)
                        if not (yield job.name, Restarted()):
                            again.append(job)
                    continue
                if event is None or (isinstance(event, EndOfVideo) and self._workers_on(job)):
                    continue
                if isinstance(event, VideoError):
                    self._cancel_video(job)
                if (yield job.name, event):
                    self._cancel_video(job)
                elif isinstance(event, FrameBatch):
                    worker.release_buffer()
            for connection, worker in busy.items():
                # What it has sent while the model worked is not late.
                if connection in ready or worker.job is None or connection.poll():
                    continue
                if worker.startup_timed_out():
                    raise UserError(
                        f"a decoding process has not started within {START_LIMIT_S:.0f} s; --workers 0 "
                        "decodes in the main process"
                    )
                spent = worker.decode_seconds()
                if spent > limit(worker):
                    job, most = worker.job, limit(worker)
                    self._cancel_video(job)
                    at = f"after frame {worker.last}" if worker.last is not None else "before the first frame"
                    yield (
                        job.name,
                        VideoError(
                            f"time limit: given up {at}, {spent:.0f} s of decoding; --video_timeout sets "
                            f"the limit (here {most:g} s)"
                        ),
                    )

    def _workers_on(self, job: VideoJob) -> list[_Worker]:
        """The processes that are at a video."""
        return [worker for worker in self._workers if worker is not None and worker.job is job]

    def _busiest(self) -> _Worker | None:
        """The process with the most left to do, if that is worth sharing."""
        sharing = [
            worker for worker in self._workers if worker is not None and worker.split_point() is not None
        ]
        return max(sharing, key=_Worker.remaining, default=None)

    def _cancel_video(self, job: VideoJob) -> None:
        for worker in self._workers_on(job):
            self._terminate(worker)

    def _terminate(self, worker: _Worker, patience_s: float = 0) -> str:
        """End a process, or see how it ended by itself, and forget it; how it ended, in words."""
        self._workers[self._workers.index(worker)] = None
        worker.job = None
        status = worker.kill(patience_s)
        if status > 0 and not worker.ready:
            raise UserError(
                f"a decoding process cannot start (exit status {status}, see above); --workers 0 decodes in "
                "the main process"
            )
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"


class _Worker:
    """One decoding process, and the video it is at."""

    def __init__(self, spec: DecodeSpec, blank: np.ndarray) -> None:
        try:
            self._start(blank)
        except OSError as error:
            raise UserError(
                f"a decoding process cannot start: {error.strerror} (limits of processes, open files or "
                "memory: ulimit -a); --workers 0 decodes in the main process"
            ) from None
        self.job: VideoJob | None = None
        self._header: VideoInfo | None = None
        self._next, self._stop = 0, 0  # places of candidates: the first not received, the first not to do
        self._helps = False
        self.ready = False
        self._started = time.monotonic()
        self._received = 0
        self._send(spec)

    def _start(self, blank: np.ndarray) -> None:
        ours, theirs = socket.socketpair()
        memory = os.memfd_create("aks-batches")
        os.ftruncate(memory, PREFETCH_BATCHES * blank.nbytes)
        shared = np.frombuffer(mmap(memory, PREFETCH_BATCHES * blank.nbytes), dtype=blank.dtype)
        self._slots = shared.reshape(PREFETCH_BATCHES, *blank.shape)
        ends = (theirs.fileno(), memory)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START.format(path=sys.path, parent=os.getpid(), ends=ends)],
            pass_fds=ends,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            process_group=0,  # Ctrl-C is for the main process alone
        )
        theirs.close()
        os.close(memory)
        self.connection = Connection(ours.detach())

    def _send(self, message: object) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died; the next receive tells
            self.connection.send(message)

    def assign(self, job: VideoJob, request: object) -> None:
        """Let it work on a video."""
        self.job, self.last, self.duration_s = job, None, 0.0
        self._header, self._next, self._stop, self._helps = None, 0, 0, False
        self._worked_s, self._since = 0.0, time.monotonic()
        self._send(request)

    def remaining(self) -> int:
        """Candidates of its span that have not come yet."""
        return self._stop - self._next

    def split_point(self) -> int | None:
        """A place between batches that halves what is left, and is not reached yet; None if there is none."""
        if self.job is None or self._header is None or self.remaining() < MIN_SPLIT_FRAMES:
            return None
        size = len(self._slots[0])
        # It may have filled all slots, and learns where to stop when it asks for the next.
        place = self._next + max(PREFETCH_BATCHES + 1, -(-self.remaining() // (2 * size))) * size
        return place if place < self._stop else None

    def take_half_of(self, other: _Worker) -> None:
        """Take over the second half of what another has to do."""
        place = other.split_point()
        self.assign(other.job, (other.job.path, FrameRange(place, other._stop)))
        self._header, self._next, self._stop, self._helps = other._header, place, other._stop, True
        self.duration_s = other.duration_s
        other._stop = place
        other._send(place)

    def receive(self) -> Event | int | None:
        """Its next message; None for one without meaning to the outside.

        Raises:
            EOFError, ConnectionResetError: it died.
        """
        message, self._worked_s = self.connection.recv()
        self._since = time.monotonic()
        if message == "ready":
            self.ready = True
            return None
        if isinstance(message, VideoInfo):
            if self._helps and message == self._header:
                return None
            if self._helps:
                return VideoError("the file changes while it is read")
            self.duration_s = message.duration_s
            if message.is_seekable:
                self._header, self._stop = message, message.count
        elif isinstance(message, tuple):
            at, numbers, times, is_seekable = message
            if not is_seekable:  # any more: its reader has failed, and the next one cannot jump
                self._header = None
            self.last, self._next = int(numbers[-1]), at + len(numbers)
            message = FrameBatch(
                at, numbers, times, self._slots[self._received % PREFETCH_BATCHES][: len(numbers)]
            )
            self._received += 1
        else:
            self.job = None
        return message

    def release_buffer(self) -> None:
        """The last batch is consumed: its memory may be filled again."""
        self._send(None)

    def startup_timed_out(self) -> bool:
        """Whether something is wrong with its start, not with its video."""
        return not self.ready and time.monotonic() - self._started > START_LIMIT_S

    def decode_seconds(self) -> float:
        """Seconds it has worked on the video, not counting those in which it waited for the model."""
        return self._worked_s + time.monotonic() - self._since if self.ready else 0.0

    def kill(self, patience_s: float = 0) -> int:
        """End it, after a while in which it may end by itself; its exit status."""
        self.connection.close()
        try:
            return self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
        try:
            return self._process.wait(KILL_LIMIT_S)
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL  # it will
