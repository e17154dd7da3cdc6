"""Who hands out a Ray run's videos: a process of its own, which needs nothing of the models."""

from __future__ import annotations


class Desk:
    """Hands out the videos and collects what the actors tell; an actor itself, beside the main process."""

    def __init__(self) -> None:
        """Nothing is to be done yet."""
        self.open([])

    def open(self, names: list[str]) -> None:
        """Begin anew with these videos, the last one first."""
        self._queue = names
        self._given: dict[str, list[str]] = {}
        self._counts: dict[str, tuple[int, int]] = {}
        self._lines: list[str] = []

    def take(self, token: str) -> str | None:
        """The next video for an actor."""
        if not self._queue:
            return None
        name = self._queue.pop()
        self._given.setdefault(token, []).append(name)
        return name

    def count(self, token: str, frames: int, more: int) -> None:
        """An actor has done so many frames, and found its videos to have so many more than was thought."""
        self._counts[token] = frames, more

    def say(self, line: str) -> None:
        """A line for the user."""
        self._lines.append(line)

    def look(self) -> tuple[int, int, list[str]]:
        """Frames done, frames more than thought, lines since the last look."""
        lines, self._lines = self._lines, []
        frames, more = map(sum, zip((0, 0), *self._counts.values(), strict=True))
        return frames, more, lines

    def given(self, token: str) -> list[str]:
        """The videos that an actor was given."""
        return self._given.get(token, [])

    def back(self, token: str, names: list[str], frames: int) -> None:
        """An actor died: these videos anew, of the others it has done so many frames."""
        self._queue.extend(names)
        self._given[token] = []
        self._counts[token] = frames, self._counts.get(token, (0, 0))[1]
