"""One decoding process as the main process sees it: what it works on, what came of it, how long it took.

The program that runs there is :mod:`aks.extraction.worker_process`. The two share a socket and unnamed memory
with the latest batches.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.connection import Connection

import numpy as np

from aks.errors import UserError, VideoError
from aks.extraction.decoding import DecodeSpec, EndOfVideo, FrameBatch, FrameRange, VideoInfo
from aks.extraction.worker_process import PREFETCH_BATCHES, shared_buffers
from aks.labels import VideoJob

START_TIMEOUT_S = 180.0  # for a process to start, from a slow network disk and on loaded cores
KILL_TIMEOUT_S = 10.0  # for a killed process to end; one that waits for a dead disk does not
MIN_SPLIT_FRAMES = 64  # candidates that a process must have left for another one to take half of them
_START = (
    "import sys; sys.path[:] = {path!r}; "
    "from aks.extraction.worker_process import worker_main; worker_main({parent}, *{ends})"
)


class Worker:
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

    def take_half_of(self, other: Worker) -> None:
        """Take over the second half of what another process has to do."""
        start = other.split_point()
        self.assign(other.job, (other.job.path, FrameRange(start, other._stop)))
        self._info, self._next, self._stop, self._is_helper = other._info, start, other._stop, True
        self.duration_s = other.duration_s
        other._stop = start
        other._send(start)

    def receive(self) -> VideoInfo | FrameBatch | EndOfVideo | VideoError | UserError | int | None:
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

    def check_start(self) -> None:
        """Raise a UserError if the process itself does not start, which is not its video's fault."""
        if not self.is_ready and time.monotonic() - self._started > START_TIMEOUT_S:
            raise UserError(
                f"a decoding process has not started within {START_TIMEOUT_S:.0f} s; --workers 0 decodes in "
                "the main process"
            )

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
