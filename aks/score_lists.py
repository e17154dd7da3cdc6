"""The lists of numbers in ``scores.json``, ``frames.json`` and such, written by this project or by others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import simdjson

from aks.errors import UserError
from aks.jsonio import read_json, write_json

MAX_FRAME = 2**53  # the last whole number before floats skip some


def read_scores(score_path: Path, frame_path: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Read and check ``scores.json`` and ``frames.json``, ours or anybody's in the reference's format.

    Both are JSON lists of lists, one a question: of finite numbers, and of ascending whole numbers, which may
    be written as floats.

    Returns:
        Per question: scores (n,) float64, and frame numbers (n,) int64.

    Raises:
        UserError: a file is missing or malformed; names the file and the entry.
    """
    scores, frames = read_number_lists(score_path), read_number_lists(frame_path)
    if len(scores) != len(frames):
        raise UserError(
            f"{score_path} holds {len(scores)} questions and {frame_path} {len(frames)}; "
            "both must come from the same run"
        )
    for index, (score, frame) in enumerate(zip(scores, frames, strict=True)):
        if len(score) != len(frame):
            raise UserError(
                f"{score_path}: entry {index} has {len(score)} scores, but {len(frame)} frames in "
                f"{frame_path}; both must come from the same run"
            )
    return scores, check_frame_numbers(frame_path, frames)


def read_candidate_times(frame_path: Path, frames: list[np.ndarray]) -> list[np.ndarray] | None:
    """The candidates' times in seconds, (n,) float64 each, where step 1 left times.json beside frames.json.

    Raises:
        UserError: it is malformed, or of other frames.
    """
    path = frame_path.with_name("times.json")
    if not path.exists():
        return None
    times = read_number_lists(path)
    if [len(row) for row in times] != [len(row) for row in frames]:
        raise UserError(f"{path}: does not fit {frame_path}; both must come from the same run")
    return times


def infer_stride(frames: np.ndarray) -> int:
    """Frames from one candidate to the next, inferred from some candidates' frame numbers, (n,).

    Candidates are multiples of the stride, so it is their greatest common divisor. That is right also where
    candidates are missing, or only some dozen scattered ones are selected. It is wrong where all of them
    share a factor. 0 for fewer than two frames.
    """
    return int(np.gcd.reduce(frames.astype(np.int64))) if len(frames) > 1 else 0


def check_frame_numbers(path: Path, rows: list[np.ndarray]) -> list[np.ndarray]:
    """Check that a file's frame numbers, (n,) a question, are whole and ascend; return them as int64.

    Raises:
        UserError: names file, entry and position.
    """
    for index, row in enumerate(rows):
        bad = np.flatnonzero((np.floor(row) != row) | (row < 0) | (row > MAX_FRAME))
        if len(bad):
            raise UserError(
                f"{path}: entry {index}, position {bad[0]}: {row[bad[0]]:g} is no frame number (0, 1, 2, ...)"
            )
        falls = np.flatnonzero(row[1:] <= row[:-1])
        if len(falls):
            position = int(falls[0]) + 1
            raise UserError(
                f"{path}: entry {index}, position {position}: frame {row[position]:.0f} follows "
                f"{row[position - 1]:.0f}; frame numbers must ascend"
            )
    return [row.astype(np.int64) for row in rows]


def write_selection(path: Path, rows: list[list[int]]) -> None:
    """Write a selection that comes from elsewhere: a JSON list of keyframes a question.

    Raises:
        UserError: another selection's record or times would be taken for those of this one.
    """
    if path.name == "selected_frames.json":
        for other in ("selection.json", "selected_times.json"):
            if path.with_name(other).exists():
                raise UserError(f"{path}: {other} beside it is of another selection; name another folder")
    write_json(path, rows)


def read_number_lists(path: Path) -> list[np.ndarray]:
    """A JSON list of lists of finite numbers, as float64 arrays.

    Raises:
        UserError: the file is missing or something else; names the entry.
    """
    try:
        return _read_fast(path)
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError):  # simdjson's many complaints
        return _read_carefully(path)


def _read_fast(path: Path) -> list[np.ndarray]:
    """Read number lists straight into arrays, in a seventh of json's time; raise where that might differ."""
    text = path.read_bytes()
    rows = [np.frombuffer(row.as_buffer(of_type="d")) for row in simdjson.Parser().parse(text)]
    if text.count(b"[") != 1 + len(rows):
        raise ValueError("as_buffer flattens lists in a list")
    return rows


def _read_carefully(path: Path) -> list[np.ndarray]:
    """Read number lists entry by entry, and name what is wrong."""
    rows = read_json(path)
    if not isinstance(rows, list):
        raise UserError(f"{path}: holds {type(rows).__name__}, not a list of lists (one a question)")
    return [_numbers(path, index, row) for index, row in enumerate(rows)]


def _numbers(path: Path, index: int, row: Any) -> np.ndarray:
    if not isinstance(row, list):
        raise UserError(f"{path}: entry {index} is {type(row).__name__}, not a list of numbers")
    # NumPy would read true as 1 and "2" as 2.
    if not set(map(type, row)) <= {int, float}:
        position = next(i for i, value in enumerate(row) if type(value) not in (int, float))
        raise UserError(f"{path}: entry {index}, position {position}: {row[position]!r} is no number")
    try:
        array = np.array(row, dtype=np.float64)
    except OverflowError:
        raise UserError(f"{path}: entry {index}: holds a number too large for a float") from None
    finite = np.isfinite(array)
    if not finite.all():
        position = int(np.flatnonzero(~finite)[0])
        raise UserError(f"{path}: entry {index}, position {position}: {array[position]} is no finite number")
    return array
