"""Keeps answers on disk as they are given, so that a killed evaluation goes on where it stopped.

lmms-eval keeps nothing until its last question. With the model argument ``answers=FOLDER`` every process
appends its answers to ``FOLDER/rank<n>.jsonl``, one JSON line each. A later run skips a question whose answer
is there for the same prompt, frames, video, weights, arguments and package versions. Videos and weights are
known by path, size and time of change: one that was moved or touched counts as another. A change of this
project's own code does not count: delete the folder after one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# The packages that make prompts, frames and answers; not every model needs all of them.
PACKAGES = ("lmms-eval", "transformers", "torch", "torchvision", "qwen-vl-utils", "llava", "av", "decord")


class AnswerCache:
    """The answers of one model so far.

    Args:
        folder: where they are kept; made when the first one comes.
        rank: this process's number.
        identity: all that changes an answer besides the question, as JSON values.
    """

    def __init__(self, folder: Path, rank: int, identity: Mapping[str, Any]) -> None:
        """Read the answers that any process of an earlier run has left."""
        self._path = folder / f"rank{rank}.jsonl"
        self._identity = {**identity, "versions": {package: _version(package) for package in PACKAGES}}
        self._answers: dict[str, str] = {}
        for path in sorted(folder.glob("rank*.jsonl")):
            for line in path.read_bytes().split(b"\n"):
                try:
                    entry = json.loads(line)
                    self._answers[entry["key"]] = entry["answer"]
                except (ValueError, LookupError, TypeError):
                    continue  # empty, or cut when its process was killed: the question is asked again

    def key(self, prompt: str, visuals: list[Any], frames: list[Any] | None, arguments: Any) -> str:
        """Digest of all that changes an answer.

        Args:
            prompt: with what tells its question from another of the same text.
            visuals: paths of videos; other objects count for nothing.
            frames: frame indices shown, and how they are read; None for uniform frames.
            arguments: of the generation.
        """
        files = [file_fingerprint(Path(visual)) for visual in visuals if isinstance(visual, str)]
        facts = [self._identity, prompt, files, frames, arguments]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()

    def get(self, key: str) -> str | None:
        """An answer given before, or None."""
        return self._answers.get(key)

    def add(self, answers: Mapping[str, str]) -> None:
        """Keep answers by key; they are on disk when this returns."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # A line begins with its line break, so that a line cut by a kill does not swallow the next one.
        lines = "".join(f"\n{json.dumps({'key': key, 'answer': text})}" for key, text in answers.items())
        with self._path.open("a", encoding="utf-8") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        self._answers.update(answers)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def file_fingerprint(path: Path) -> list[Any]:
    """The path, and name, size and time of the file or of all files of the folder, if it is there."""
    files = sorted(entry for entry in path.iterdir() if entry.is_file()) if path.is_dir() else [path]
    return [str(path), [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]]
