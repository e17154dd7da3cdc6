"""Sources of videos: one in this process, and a pool of decoding processes that work on several at once.

Both yield ``(job, event)`` pairs, see :mod:`aks.extraction.decoding`, and take ``cancel(job)`` at any time;
of a cancelled video no further event comes.

A decoding process is at most ``PREFETCH_BATCHES`` batches ahead of the model, so memory is bounded whatever
the videos. A process that dies or exceeds its time limit is replaced. One that finds no video left takes over
half of what another one still has to do. The processes are fresh interpreters (not forks of a process with
threads or CUDA), share a socket and unnamed memory with this one, and end with it, even by SIGKILL.

No library found covers this: a time limit that ends a decoder hanging in C while the others go on, batches in
shared memory with back-pressure, and several processes on one long video. (A DataLoader ends with the first
worker that dies; pools of futures, pebble and loky among them, hand over whole results by pickling.)
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from aks.errors import UserError, VideoError
from aks.extraction.decoding import DecodeSpec, EndOfVideo, FrameBatch, FrameRange, VideoInfo, decode
from aks.extraction.worker_process import PREFETCH_BATCHES, shared_buffers
from aks.labels import VideoJob
from aks.video.reader import estimate_candidates

logger = logging.getLogger(__name__)

POLL_INTERVAL_S = 0.5  # between two looks at the time limits
HEADER_TIMEOUT_S = 20.0  # for reading a header
START_TIMEOUT_S = 180.0  # for a process to start, from a slow network disk and on loaded cores
KILL_TIMEOUT_S = 10.0  # for a killed process to end; one that waits for a dead disk does not
EXIT_TIMEOUT_S = 5.0  # for a process that has closed its connection to end by itself
MIN_SPLIT_FRAMES = 64  # candidates that a process must have left for another one to take half of them
# The default time limit of a video: a slow, loaded machine needs so much for a film at 4K, and to open it.
VIDEO_TIMEOUT_S, VIDEO_TIMEOUT_PER_SECOND = 60.0, 4.0
_START = (
    "import sys; sys.path[:] = {path!r}; "
    "from aks.extraction.worker_process import worker_main; worker_main({parent}, *{ends})"
)


class Restarted:
    """The process that decoded a video died: discard the video's results, it starts again."""


Event = VideoInfo | FrameBatch | EndOfVideo | Restarted | VideoError


def make_decoder(
    spec: DecodeSpec, num_workers: int, video_timeout_s: float | None
) -> WorkerPool | SerialSource:
    """A pool of decoding processes; without any, a decoder in this process."""
    if num_workers:
        return WorkerPool(spec, num_workers, video_timeout_s)
    inputs = spec.empty_batch()
    return SerialSource(
        lambda job: decode(job.path, spec, lambda: inputs), lambda job: estimate_candidates(job.path)
    )


class SerialSource(contextlib.AbstractContextManager):
    """Reads one video after another in this process, where nothing can end a decoder that hangs.

    Args:
        read: yields the events of a video, or raises a VideoError.
        count: the number of a video's candidates, or an estimate; 0 where unknown.
    """

    def __init__(self, read: Callable[[VideoJob], Iterator[Any]], count: Callable[[VideoJob], int]) -> None:
        self._read, self._count = read, count
        self._cancelled: set[str] = set()

    def __exit__(self, *_: object) -> None:
        pass

    def count_frames(self, jobs: list[VideoJob]) -> dict[str, int]:
        """The number of each video's candidates, or an estimate; 0 where unknown."""
        return {job.name: self._count(job) for job in jobs}

    def run(self, jobs: Iterator[VideoJob]) -> Iterator[tuple[VideoJob, Any]]:
        """Read the videos."""
        for job in jobs:
            try:
                for event in self._read(job):
                    yield job, event
                    if job.name in self._cancelled:
                        break
            except UserError:  # a mistake that concerns every video, such as a decoder that is not installed
                raise
            except VideoError as error:
                yield job, error
            except Exception as error:  # whatever one video causes, the next one gets its chance
                yield job, VideoError(f"{type(error).__name__}: {error}")

    def cancel(self, job: VideoJob) -> None:
        """Stop reading a video."""
        self._cancelled.add(job.name)


class WorkerPool(contextlib.AbstractContextManager):
    """Decodes several videos at once, in processes of their own.

    Args:
        spec: how videos are decoded.
        num_workers: number of processes, 1 or more.
        video_timeout_s: seconds that decoding one video may take; None for 60 and four times its length.
    """

    def __init__(self, spec: DecodeSpec, num_workers: int, video_timeout_s: float | None = None) -> None:
        """Start nothing yet; processes start with the first videos."""
        self._spec, self._video_timeout_s = spec, video_timeout_s
        self._empty_batch = spec.empty_batch()
        self._workers: list[_Worker | None] = [None] * num_workers
        self._can_start_helpers = True

    def __exit__(self, *_: object) -> None:
        for worker in filter(None, self._workers):
            worker.kill()
        self._workers = [None] * len(self._workers)

    def count_frames(self, jobs: list[VideoJob]) -> dict[str, int]:
        """Estimate each video's candidates; 0 where reading its header tells nothing, hangs or crashes."""
        counts = dict.fromkeys((job.name for job in jobs), 0)
        for job, event in self._run(iter(jobs), lambda job: (job.path,), lambda worker: HEADER_TIMEOUT_S):
            if isinstance(event, int):
                counts[job.name] = event
        return counts

    def run(self, jobs: Iterator[VideoJob]) -> Iterator[tuple[VideoJob, Event]]:
        """Decode the videos, several at once; the batches of a long one may come in any order."""
        return self._run(jobs, lambda job: (job.path, FrameRange()), self._video_timeout)

    def cancel(self, job: VideoJob) -> None:
        """End the processes that work on a video."""
        for worker in self._workers_on(job):
            self._terminate(worker)

    def _video_timeout(self, worker: _Worker) -> float:
        if self._video_timeout_s is not None:
            return self._video_timeout_s
        return VIDEO_TIMEOUT_S + VIDEO_TIMEOUT_PER_SECOND * max(worker.job.expected_frames, worker.duration_s)

    def _run(
        self,
        jobs: Iterator[VideoJob],
        request: Callable[[VideoJob], tuple],
        timeout: Callable[[_Worker], float],
    ) -> Iterator[tuple[VideoJob, Event | int]]:
        restarting: list[VideoJob] = []
        restarted: set[str] = set()
        while True:
            self._assign_idle(jobs, restarting, request)
            busy = {worker.connection: worker for worker in self._workers if worker and worker.job}
            if not busy:
                return
            ready = wait(list(busy), timeout=POLL_INTERVAL_S)
            for connection in ready:
                worker = busy[connection]
                job = worker.job
                if job is None:  # cancelled since
                    continue
                try:
                    event = worker.receive()
                except (EOFError, ConnectionResetError):
                    cause = self._terminate(worker, EXIT_TIMEOUT_S)
                    self.cancel(job)
                    if job.name in restarted:
                        yield job, VideoError(f"the decoding process died twice at it ({cause})")
                    else:
                        logger.debug("%s: the decoding process died (%s); starting again", job.name, cause)
                        restarted.add(job.name)
                        restarting.append(job)
                        yield job, Restarted()
                    continue
                # A process that has finished its range does not end a video on which others still work.
                if event is None or (isinstance(event, EndOfVideo) and self._workers_on(job)):
                    continue
                if isinstance(event, UserError):  # a mistake that concerns every video
                    raise event
                if isinstance(event, VideoError):
                    self.cancel(job)
                yield job, event
                if isinstance(event, FrameBatch) and worker.job is job:
                    worker.release_buffer()
            for connection, worker in busy.items():
                # What a process has sent while the model was at work is not late.
                if connection in ready or worker.job is None or connection.poll():
                    continue
                if worker.startup_timed_out():
                    raise UserError(
                        f"a decoding process has not started within {START_TIMEOUT_S:.0f} s; --workers 0 "
                        "decodes in the main process"
                    )
                seconds, limit = worker.decode_seconds(), timeout(worker)
                if seconds > limit:
                    job, last = worker.job, worker.last_frame
                    self.cancel(job)
                    where = f"after frame {last}" if last is not None else "before the first frame"
                    yield (
                        job,
                        VideoError(
                            f"time limit: given up {where}, {seconds:.0f} s of decoding; --video_timeout "
                            f"sets the limit (here {limit:g} s)"
                        ),
                    )

    def _assign_idle(
        self, jobs: Iterator[VideoJob], restarting: list[VideoJob], request: Callable[[VideoJob], tuple]
    ) -> None:
        """Give every idle process a video, or half of what another one has left; start processes."""
        for index, worker in enumerate(self._workers):
            if worker is not None and worker.job is not None:
                continue
            job = restarting.pop() if restarting else next(jobs, None)
            busiest = None if job else self._busiest()
            if job is None and (busiest is None or not (worker or self._can_start_helpers)):
                return
            try:
                worker = worker or _Worker(self._spec, self._empty_batch)
            except UserError:
                if job is None:  # the owner of the video finishes alone
                    self._can_start_helpers = False
                    return
                raise
            self._workers[index] = worker
            if job is None:
                worker.take_half_of(busiest)
            else:
                worker.assign(job, request(job))

    def _workers_on(self, job: VideoJob) -> list[_Worker]:
        return [worker for worker in self._workers if worker is not None and worker.job is job]

    def _busiest(self) -> _Worker | None:
        """The process with most candidates left, among those whose rest is worth sharing."""
        divisible = [worker for worker in self._workers if worker and worker.split_point() is not None]
        return max(divisible, key=_Worker.num_remaining, default=None)

    def _terminate(self, worker: _Worker, patience_s: float = 0) -> str:
        """End a process and forget it; return how it ended, in words.

        Raises:
            UserError: the process could not start.
        """
        self._workers[self._workers.index(worker)] = None
        worker.job = None
        status = worker.kill(patience_s)
        if status > 0 and not worker.is_ready:
            raise UserError(
                f"a decoding process cannot start (exit status {status}, see above); --workers 0 decodes in "
                "the main process"
            )
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"


class _Worker:
    """One decoding process and the range of a video that it decodes.

    Attributes:
        job: the video it works on; None while it is idle.
        is_ready: whether it has started.
        last_frame: number of the last frame received; None before the first one.
        duration_s: length of the video in seconds; 0 until it is open.
    """

    def __init__(self, spec: DecodeSpec, empty_batch: np.ndarray) -> None:
        try:
            self._start(empty_batch)
        except OSError as error:
            raise UserError(
                f"a decoding process cannot start: {error.strerror} (limits of processes, open files or "
                "memory: ulimit -a); --workers 0 decodes in the main process"
            ) from None
        self.job: VideoJob | None = None
        self.is_ready = False
        self._info: VideoInfo | None = None  # of a video that may be split
        self._next, self._stop = 0, 0  # candidates: the next one to receive, the first one not to decode
        self._is_helper = False  # whether another process opened the video
        self._started = time.monotonic()
        self._num_received = 0  # batches
        self._send(spec)

    def _start(self, empty_batch: np.ndarray) -> None:
        own_end, its_end = socket.socketpair()
        memory = os.memfd_create("aks-batches")
        os.ftruncate(memory, PREFETCH_BATCHES * empty_batch.nbytes)
        self._buffers = shared_buffers(memory, empty_batch)
        ends = (its_end.fileno(), memory)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START.format(path=sys.path, parent=os.getpid(), ends=ends)],
                pass_fds=ends,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                process_group=0,  # Ctrl-C reaches the main process alone
            )
        finally:
            its_end.close()
            os.close(memory)
        self.connection = Connection(own_end.detach())

    def _send(self, message: object) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died; receive() finds out
            self.connection.send(message)

    def assign(self, job: VideoJob, request: tuple) -> None:
        """Let the process work on a video."""
        self.job, self.last_frame, self.duration_s = job, None, 0.0
        self._info, self._next, self._stop, self._is_helper = None, 0, 0, False
        self._seconds_worked, self._seconds_updated = 0.0, time.monotonic()
        self._send(request)

    def num_remaining(self) -> int:
        """Candidates of its range that it has not delivered yet."""
        return self._stop - self._next

    def split_point(self) -> int | None:
        """A candidate between batches that halves the rest of its range; None where none is worth it."""
        if self.job is None or self._info is None or self.num_remaining() < MIN_SPLIT_FRAMES:
            return None
        size = len(self._buffers[0])
        # The process may have filled all its buffers, and learns of an earlier stop only at the next one.
        half = max(PREFETCH_BATCHES + 1, -(-self.num_remaining() // (2 * size))) * size
        return self._next + half if self._next + half < self._stop else None

    def take_half_of(self, other: _Worker) -> None:
        """Take over the second half of what another process has to do."""
        start = other.split_point()
        self.assign(other.job, (other.job.path, FrameRange(start, other._stop)))
        self._info, self._next, self._stop, self._is_helper = other._info, start, other._stop, True
        self.duration_s = other.duration_s
        other._stop = start
        other._send(start)

    def receive(self) -> Event | UserError | int | None:
        """The next event of its video, or an estimate; None for a message that concerns nobody else.

        Raises:
            EOFError, ConnectionResetError: the process died.
        """
        message, self._seconds_worked = self.connection.recv()
        self._seconds_updated = time.monotonic()
        if message == "ready":
            self.is_ready = True
            return None
        if isinstance(message, VideoInfo):
            if self._is_helper and message == self._info:
                return None
            if self._is_helper:
                return VideoError("the file changes while it is read")
            self.duration_s = message.duration_s
            if message.is_seekable:
                self._info, self._stop = message, message.num_candidates
        elif isinstance(message, tuple):
            offset, frame_indices, times_s, is_seekable = message
            if not is_seekable:  # any more: sparse decoding has failed, and sequential decoding cannot jump
                self._info = None
            self.last_frame, self._next = int(frame_indices[-1]), offset + len(frame_indices)
            inputs = self._buffers[self._num_received % PREFETCH_BATCHES][: len(frame_indices)]
            message = FrameBatch(offset, frame_indices, times_s, inputs)
            self._num_received += 1
        else:  # the end of the video, or its failure
            self.job = None
        return message

    def release_buffer(self) -> None:
        """Let the process overwrite the memory of the batch received last."""
        self._send(None)

    def startup_timed_out(self) -> bool:
        """Whether the process itself does not start, which is not its video's fault."""
        return not self.is_ready and time.monotonic() - self._started > START_TIMEOUT_S

    def decode_seconds(self) -> float:
        """Seconds of work on its video, without those in which it waited for the model."""
        return self._seconds_worked + time.monotonic() - self._seconds_updated if self.is_ready else 0.0

    def kill(self, patience_s: float = 0) -> int:
        """End the process, after some seconds in which it may end by itself; return its exit status."""
        self.connection.close()
        try:
            return self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
        try:
            return self._process.wait(KILL_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL  # it ends as soon as the disk answers
