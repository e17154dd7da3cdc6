"""AnswerCache kept as they are given, so that a killed evaluation goes on where it stopped.

lmms-eval keeps nothing until its last question. With the model argument ``answers=FOLDER`` every process
appends its answers to ``FOLDER/rank<n>.jsonl``, one JSON line each, and passes over questions whose answer
is there already: same prompt, same frames, same video, same weights and arguments, same versions.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# What makes prompts, frames and answers; not every model needs all of them.
PACKAGES = ("lmms-eval", "transformers", "torch", "torchvision", "qwen-vl-utils", "llava", "av", "decord")


class AnswerCache:
    """The answers of one model so far.

    Args:
        folder: where they are kept; made when the first one comes.
        rank: this process's number.
        identity: all that changes an answer besides the question, as JSON values.
    """

    def __init__(self, folder: Path, rank: int, identity: Mapping[str, Any]) -> None:
        """Read what any process of an earlier run has left."""
        self._path = folder / f"rank{rank}.jsonl"
        self._identity = {**identity, "versions": {package: _version(package) for package in PACKAGES}}
        self._known: dict[str, str] = {}
        for path in sorted(folder.glob("rank*.jsonl")):
            for line in path.read_bytes().split(b"\n"):
                try:
                    entry = json.loads(line)
                    self._known[entry["key"]] = entry["answer"]
                except (ValueError, LookupError, TypeError):
                    continue  # empty, or cut when its process was killed: it will be asked again

    def key(self, prompt: str, visuals: list[Any], frames: list[int] | None, arguments: Any) -> str:
        """What tells one question from another: its prompt, videos, frames, and generation arguments."""
        files = [weights_fingerprint(Path(visual)) for visual in visuals if isinstance(visual, str)]
        facts = [self._identity, prompt, files, frames, arguments]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()

    def get(self, key: str) -> str | None:
        """An answer given before, or None."""
        return self._known.get(key)

    def add(self, answers: Mapping[str, str]) -> None:
        """Keep answers by key; they are on disk when this returns."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # A line cut by a kill would swallow the next one.
        lines = "".join(f"\n{json.dumps({'key': key, 'answer': text})}" for key, text in answers.items())
        with self._path.open("a", encoding="utf-8") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        self._known.update(answers)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def weights_fingerprint(path: Path) -> list[Any]:
    """Name, size and time of a file, or of all files of a folder; just the name of anything else."""
    files = sorted(entry for entry in path.iterdir() if entry.is_file()) if path.is_dir() else [path]
    known = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return [str(path), known]
