"""The JSON of label files: a list of entries, or one entry a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aks.errors import UserError


def read_label_bytes(path: Path) -> bytes:
    """The content of a label file.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: label file not found; check --dataset_path or --label_file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read the label file: {error.strerror}") from None


def parse_entries(path: Path, raw: bytes) -> list[dict[str, Any]]:
    """The entries of a label file, from its content: of ``.jsonl`` one a line, else a JSON list.

    NaN and infinity, which pandas writes where a value is missing, are read as null.

    Raises:
        UserError: the content is empty, not UTF-8, not JSON, or no such list; says which.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 text (byte {error.start}); unpack it if it is compressed, or save it as UTF-8"
        ) from None
    if not text.strip():
        raise UserError(f"{path}: empty; it must hold a JSON list of entries")
    is_lines = path.suffix.lower() == ".jsonl"
    if is_lines and text.lstrip().startswith("["):
        raise UserError(f"{path}: holds a JSON list, not one entry a line; give it the ending .json")
    entries = _parse_lines(path, text) if is_lines else _parse_list(path, text)
    if not entries:
        raise UserError(f"{path}: holds no entries")
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise UserError(
                f"{path}: entry {index} is {type(entry).__name__}, not an object; give it named fields"
            )
    return entries


def _parse_lines(path: Path, text: str) -> list[Any]:
    entries = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entries.append(_parse_json(line))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: line {number} is not JSON: {error}") from None
    return entries


def _parse_list(path: Path, text: str) -> list[Any]:
    try:
        entries = _parse_json(text)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        if text.lstrip().startswith("{") and getattr(error, "msg", "") == "Extra data":
            raise UserError(f"{path}: holds one entry a line; give it the ending .jsonl") from None
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(entries, list):
        raise UserError(
            f"{path}: holds {type(entries).__name__}, not a list of entries (one a line: name it .jsonl)"
        )
    return entries


def _parse_json(text: str) -> Any:
    return json.loads(text, parse_constant=lambda _: None)
