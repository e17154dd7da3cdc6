"""The program of a decoding process, which :mod:`aks.extraction.workers` starts.

It imports neither torch nor a model, so that it starts in a third of a second and takes 50 MB.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from mmap import mmap
from multiprocessing.connection import Connection

import numpy as np

from aks.errors import UserError, VideoError
from aks.extraction.decoding import DecodeSpec, FrameBatch, FrameRange, decode
from aks.video.reader import estimate_candidates

PREFETCH_BATCHES = 2  # batches that a process may be ahead of the model
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def shared_buffers(memory: int, empty_batch: np.ndarray) -> np.ndarray:
    """Map the memory that both processes see as buffers for batches, (PREFETCH_BATCHES, n, 3, side, side)."""
    shared = np.frombuffer(mmap(memory, PREFETCH_BATCHES * empty_batch.nbytes), dtype=empty_batch.dtype)
    return shared.reshape(PREFETCH_BATCHES, *empty_batch.shape)


def worker_main(parent: int, connection: int, memory: int) -> None:
    """Decode what the parent process asks for until it closes the connection.

    Args:
        parent: the parent's process id. The kernel ends this process when the parent dies, however it dies.
        connection: file descriptor of a socket. The parent sends a :class:`DecodeSpec` first; then
            ``(path, FrameRange)`` to decode a video, or ``(path,)`` to estimate its candidates; ``None`` for
            every batch it has consumed; and a number where the range being decoded shall stop earlier. This
            process answers with ``(message, seconds of work on the video so far)``.
        memory: file descriptor of the shared memory, see :func:`shared_buffers`. Batches use the buffers in
            turn.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call above
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C ends
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is done
        _serve(Connection(connection), memory)


def _serve(connection: Connection, memory: int) -> None:
    spec: DecodeSpec = connection.recv()
    buffers = shared_buffers(memory, spec.empty_batch())
    connection.send(("ready", 0.0))
    num_sent = num_released = 0  # batches
    started = 0.0
    frame_range = FrameRange()

    def next_buffer() -> np.ndarray:
        """Wait until the parent has consumed enough, then give the next buffer."""
        nonlocal num_released, started
        wait_started = time.monotonic()
        while num_sent - num_released == PREFETCH_BATCHES or connection.poll():
            message = connection.recv()
            if message is None:
                num_released += 1
            else:
                frame_range.stop = message
        started += time.monotonic() - wait_started  # the time limit does not count waiting
        return buffers[num_sent % PREFETCH_BATCHES]

    while True:
        request = connection.recv()
        if request is None:
            num_released += 1
        if not isinstance(request, tuple):  # None, or a stop that came after its range had failed
            continue
        started = time.monotonic()
        try:
            if len(request) == 1:
                connection.send((estimate_candidates(*request), 0.0))
                continue
            path, frame_range = request
            for event in decode(path, spec, next_buffer, frame_range):
                if isinstance(event, FrameBatch):  # its inputs are in the shared memory already
                    num_sent += 1
                    event = (event.offset, event.frame_indices, event.times_s, event.is_seekable)
                connection.send((event, time.monotonic() - started))
        except (UserError, VideoError) as error:
            connection.send((error, time.monotonic() - started))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:  # whatever one video causes, the next one gets its chance
            connection.send((VideoError(f"{type(error).__name__}: {error}"), time.monotonic() - started))
