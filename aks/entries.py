"""The JSON of label files: a list of entries, or one entry a line; and the fields of one entry."""

from __future__ import annotations

import json
import re
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from aks.errors import UserError, nearest, nearest_file

Evidence = tuple[float, float]  # first and last position, equal for a single point


def read_label_bytes(path: Path) -> bytes:
    """The content of a label file.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"{path}: label file not found; check --dataset_path or --label_file{nearest_file(path)}"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot read the label file: {error.strerror}") from None


def read_entries(path: Path) -> list[dict[str, Any]]:
    """The entries of a label file, see :func:`parse_entries`; errors as there and of a missing file."""
    return parse_entries(path, read_label_bytes(path))


def decode_text(path: Path, raw: bytes) -> str:
    """The text of a file's content.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 text (byte {error.start}); unpack it if it is compressed, or save it as UTF-8"
        ) from None


def parse_entries(path: Path, raw: bytes) -> list[dict[str, Any]]:
    """The entries of a label file, from its content: of ``.jsonl`` one a line, else a JSON list.

    NaN and infinity, which pandas writes where a value is missing, are read as null.

    Raises:
        UserError: the content is empty, not UTF-8, not JSON, or no such list; says which.
    """
    text = decode_text(path, raw)
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


class LabelEntry:
    """One entry of a label file; each of its methods reads a field.

    A value that is wrong, or missing and required, raises a UserError that names entry and field.
    """

    def __init__(self, path: Path, index: int, data: dict[str, Any], identifier: Any) -> None:
        """Wrap the entry's fields, ``data``; messages name the entry by index and identifier."""
        self.where = f"{path}: entry {index}"
        if isinstance(identifier, str | int):
            self.where += f" (id {identifier})"
        self.data = data

    def error(self, problem: str) -> UserError:
        """The error that tells what is wrong with the entry."""
        return UserError(f"{self.where}: {problem}")

    def _missing(self, key: str) -> str:
        return f"is missing{nearest(key, self.data)}"

    def text(self, key: str) -> str:
        """A text that is not empty."""
        value = self.data.get(key)
        if not isinstance(value, str) or not value.strip():
            state = self._missing(key) if key not in self.data else f"is {value!r}"
            raise self.error(f"{key!r} {state}; it must be a non-empty text")
        if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
            raise self.error(f"{key!r} is {value!r}; it holds a character that is no text")
        return value

    def texts(self, key: str, required: bool) -> tuple[str, ...]:
        """A list of texts; empty where it is missing and not required."""
        value = self.data.get(key)
        if value is None and not required:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            state = self._missing(key) if key not in self.data else "is not a list of texts"
            raise self.error(f"{key!r} {state}")
        return tuple(value)

    def split_options(self, key: str, mark: str) -> tuple[str, list[str]]:
        """The text before the options, and the options without letters, of a text with an option a line.

        Args:
            key: the field with the text.
            mark: pattern of what an option's line begins with, the letter as its group.

        Raises:
            UserError: the letters are not A, B, C and so on.
        """
        stem, *parts = re.split(f"^{mark}", self.text(key), flags=re.MULTILINE)
        letters, options = "".join(parts[::2]), parts[1::2]
        if not letters or letters != ascii_uppercase[: len(letters)]:
            found = f"options at {', '.join(letters)}" if letters else "no options"
            raise self.error(f"{key!r} has {found}; it must have a line for each of A, B and so on")
        return stem.strip(), [option.strip() for option in options]

    def identifier(self, key: str, default: int | None) -> str:
        """A text or a whole number, as text; required without a default."""
        value = self.data.get(key, default)
        if value is None and key not in self.data:
            raise self.error(f"{key!r} {self._missing(key)}; it must be a text or an integer")
        if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
            raise self.error(f"{key!r} is {value!r}; it must be a text or an integer")
        return str(value)

    def number(self, key: str | None) -> float | None:
        """A number, 0 or more; None where it is missing."""
        value = self.data.get(key)
        if value is None:
            return None
        if not _is_number(value) or value < 0:
            raise self.error(f"{key!r} is {value!r}; it must be a number, 0 or more")
        return float(value)

    def choice(self, key: str, options: tuple[str, ...]) -> int | None:
        """An answer given as index, letter or option text, as an index; None where it is missing."""
        value = self.data.get(key)
        if value is None:
            return None
        found: int | None = None
        if isinstance(value, int) and not isinstance(value, bool):
            found = value
        elif isinstance(value, str) and value in options:
            found = options.index(value)
        elif isinstance(value, str) and value.strip().isascii() and re.fullmatch("[A-Za-z]", value.strip()):
            found = ord(value.strip().upper()) - ord("A")
        if found is None or found < 0 or (options and found >= len(options)):
            raise self.error(f"answer {value!r} is no index, letter or text of its {len(options)} options")
        return found

    def group(self, key: str) -> str:
        """The name of a group; ``-`` where it is missing."""
        value = self.data.get(key)
        return "-" if value is None else str(value)

    def evidence(self, key: str) -> tuple[Evidence, ...]:
        """A list of positions, or of [first, last] pairs, as pairs."""
        value = self.data.get(key)
        if value is None:
            return ()
        if not isinstance(value, list):
            raise self.error(f"{key!r} is not a list")
        pairs = []
        for item in value:
            pair = item if isinstance(item, list) else [item, item]
            if len(pair) != 2 or not all(map(_is_number, pair)) or not 0 <= pair[0] <= pair[1]:
                raise self.error(f"{key!r} holds {item!r}; use a position or [first, last], 0 or more")
            pairs.append((float(pair[0]), float(pair[1])))
        return tuple(pairs)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e15  # also keeps whole numbers within what a float holds; false for NaN
