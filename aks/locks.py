"""Locks by which the processes that share a run's folder process each video once.

A process locks ``<video>.lock``, beside the video's part, with ``flock``. The kernel, or the file server,
releases the lock when the process ends, however it ends. Locks only save work: two processes on the same
video would write the same part.

The ``filelock`` package is not used: where a file system has no locks it falls back to files that a killed
process leaves behind, and its video would stay locked. Without locks, two processes may do the same video
twice, nothing worse.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import time
from pathlib import Path
from typing import IO

from aks.errors import UserError
from aks.run_dir import RunDir

logger = logging.getLogger(__name__)

# A file server keeps the locks of a machine that died for a while: NFS 4 for 90 s by default.
MAX_WAIT_S = 120.0
POLL_INTERVAL_S = 0.5


class VideoLocks(contextlib.AbstractContextManager):
    """The locks of this process on a run's videos; the end of the context releases them all."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._held: dict[str, IO[bytes]] = {}

    def __exit__(self, *_: object) -> None:
        for video in list(self._held):
            self.release(video)
        for path in self._run.parts.glob("*.lock"):  # of killed processes: nobody holds them
            with contextlib.suppress(UserError):
                if file := _lock(path):
                    _unlock(path, file)

    def acquire(self, video: str) -> bool:
        """Lock a video; False where another process works on it. True where the file system has no locks.

        Raises:
            UserError: the lock file cannot be written.
        """
        if file := _lock(self._path(video)):
            self._held[video] = file
        return file is not None

    def release(self, video: str) -> None:
        """Unlock a video that is finished or has failed."""
        if file := self._held.pop(video, None):
            _unlock(self._path(video), file)

    def wait(self, videos: list[str]) -> None:
        """Wait until other processes have let go of these videos, for at most :data:`MAX_WAIT_S`."""
        deadline = time.monotonic() + MAX_WAIT_S
        locked = [video for video in videos if not self._is_free(video)]
        if locked:
            logger.warning(
                "%d videos are in work in other runs; waiting for at most %g s", len(locked), MAX_WAIT_S
            )
        while locked and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL_S)
            locked = [video for video in locked if not self._is_free(video)]

    def _is_free(self, video: str) -> bool:
        if self._run.has_part(video) or not self._path(video).exists():
            return True
        is_free = self.acquire(video)
        self.release(video)
        return is_free

    def _path(self, video: str) -> Path:
        return self._run.part_path(video).with_suffix(".lock")


def _lock(path: Path) -> IO[bytes] | None:
    try:
        file = open(path, "ab")  # noqa: SIM115 - open as long as the lock is held
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    with contextlib.suppress(OSError):
        os.fchmod(file.fileno(), 0o666)  # for runs of other users
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_locked = os.fstat(file.fileno()).st_nlink > 0  # else its owner has just removed it
    except BlockingIOError:
        is_locked = False
    except OSError as error:
        # Without locks on this file system, runs at the same time may score a video twice, to the same part.
        is_locked = error.errno != errno.ESTALE  # which says on NFS that its owner has just removed it
    if is_locked:
        return file
    file.close()
    return None


def _unlock(path: Path, file: IO[bytes]) -> None:
    # The file is removed before the lock is released: a process that opens it in between sees that it is
    # gone. In the other order two processes could each hold a lock, one of them on the removed file.
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
    file.close()
