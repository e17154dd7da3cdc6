"""Claims: what the processes on one folder tell one another, so that each video is scored once.

A claim is a small file beside the part, ``<video>.claim``: host, process, its start, and a time of
change that its owner renews every minute. A claim is void when its process is gone from this host, or
when it has not been renewed for five minutes. Claims only save work: two processes at the same video
would write the same part.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aks.errors import UserError
from aks.outscores import RunFolder, host_identity, read_json, server_time, write_json

RENEWED_S = 60.0
VOID_AFTER_S = 300.0
WATCHED_S = 1.0


class Claims:
    """The claims of this process on a run's videos; a context manager that gives them all up at its end."""

    def __init__(self, run: RunFolder, token: str | None = None) -> None:
        """Nothing is claimed yet; the token, one of this process alone, marks what will be."""
        self._run = run
        self._token = token or uuid.uuid4().hex
        self._held: set[Path] = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> Claims:
        """Renew what is held from now on."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Give all claims up."""
        self._end.set()
        for path in list(self._held):
            self._give_up(path)

    def take(self, video: str) -> bool:
        """Claim a video; False where another process is at work on it.

        Raises:
            UserError: the claim cannot be written.
        """
        path = self._path(video)
        pid = os.getpid()
        mine = {"host": host_identity(), "pid": pid, "started": _started(pid), "token": self._token}
        with self._alone():
            if path.exists():
                if self._is_live(path):
                    return False
                write_json(path, mine)
            else:
                write_json(path, mine, keep_existing=True)
        if _read(path).get("token") != self._token:  # no lock on this file system, another was faster
            return False
        self._held.add(path)
        return True

    def give_up(self, video: str) -> None:
        """The video is finished, or has failed."""
        self._give_up(self._path(video))

    def _give_up(self, path: Path) -> None:
        self._held.discard(path)
        if _read(path).get("token") == self._token:  # not taken over while this process was asleep
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    @staticmethod
    def drop(run: RunFolder, token: str) -> None:
        """Remove the claims of a process that is known to have ended, on whatever host."""
        for path in run.parts.glob("*.claim"):
            if _read(path).get("token") == token:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    def sweep(self, videos: list[str]) -> None:
        """Remove the claims of ended processes on finished videos."""
        for video in videos:
            path = self._path(video)
            if path.exists() and not self._is_live(path):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    def settle(self, videos: list[str], say: Callable[[str], object]) -> None:
        """Wait until each claim of another host has been renewed, which shows that it lives, or is void.

        Args:
            videos: names of videos that are not finished.
            say: tells the user why nothing happens.
        """
        seen = {}
        for path in map(self._path, videos):
            with contextlib.suppress(OSError):
                if _read(path).get("host") != host_identity() and self._is_live(path):
                    seen[path] = path.stat().st_mtime
        if seen:
            say(
                f"{len(seen)} videos are claimed by processes on other machines; waiting for a sign of life "
                f"of these, at most {VOID_AFTER_S:.0f} s"
            )
        while seen:
            time.sleep(WATCHED_S)
            for path, renewed in list(seen.items()):
                try:
                    is_clear = path.stat().st_mtime != renewed or not self._is_live(path)
                except OSError:  # given up
                    is_clear = True
                if is_clear:
                    del seen[path]

    def _path(self, video: str) -> Path:
        return self._run.part_path(video).with_suffix(".claim")

    def _is_live(self, path: Path) -> bool:
        claim = _read(path)
        if "token" not in claim:  # given up meanwhile, or damaged
            return False
        if claim.get("host") == host_identity():
            return claim.get("started") is not None and _started(claim.get("pid")) == claim["started"]
        try:
            age = server_time(path.parent) - path.stat().st_mtime
        except OSError:
            return False
        return age < VOID_AFTER_S

    def _renew(self) -> None:
        while not self._end.wait(RENEWED_S):
            for path in list(self._held):
                with contextlib.suppress(OSError):
                    os.utime(path)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """While one process decides whether a claim is void, the others wait; without locks, they race."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                file = stack.enter_context(open(self._run.folder / "run.json", "r+b"))
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _read(path: Path) -> dict[str, Any]:
    try:
        claim = read_json(path)
    except UserError:
        return {}
    return claim if isinstance(claim, dict) else {}


def _started(pid: Any) -> str | None:
    """When a process started, in clock ticks since the host did; None for one that has ended."""
    try:
        state, *fields = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()
    except (OSError, TypeError, ValueError):
        return None
    return None if state in "ZX" else fields[18]
