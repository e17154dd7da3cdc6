"""Converts labels that are published as parquet to the label files that feature_extract.py reads."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from aks import errors
from aks.arguments import ArgumentParser
from aks.jsonio import write_json


def convert(
    description: str | None,
    output: Path,
    columns: Sequence[str],
    video: str,
    lists: Collection[str] = (),
    optional: Collection[str] = (),
) -> None:
    """The command of a data set's ``make_labels.py``: one parquet file to one label file.

    Args:
        description: for ``--help``.
        output: the label file, where ``--output`` names no other.
        columns: of the parquet file, in the order that the entries' fields shall have.
        video: the column that tells one video from another.
        lists: the columns that hold lists of texts; the others hold a text each.
        optional: the columns in which a cell may be empty; it becomes null.
    """
    parser = ArgumentParser(description)
    parser.add_argument("parquet", type=Path, help="the published file")
    parser.add_argument("--output", type=Path, default=output)
    args = parser.parse_args()
    entries = read_entries(args.parquet, columns, lists, optional)
    write_json(args.output, entries)
    print(f"wrote {args.output}: {len(entries)} questions on {len({e[video] for e in entries})} videos")


def read_entries(
    parquet: Path, columns: Sequence[str], lists: Collection[str], optional: Collection[str]
) -> list[dict[str, Any]]:
    """The label entries of a parquet file, in its order; arguments as for :func:`convert`.

    Raises:
        UserError: the file is missing or holds something else; says what.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise errors.UserError("reading parquet needs pyarrow; run: pip install pyarrow") from None
    try:
        schema = pyarrow.parquet.read_schema(parquet)
        missing = [column for column in columns if column not in schema.names]
        if missing:
            raise errors.UserError(f"{parquet}: has no column {missing[0]!r}; is it this data set's?")
        entries = pyarrow.parquet.read_table(parquet, columns=list(columns)).to_pylist()
    except FileNotFoundError:
        raise errors.UserError(f"{parquet}: file not found") from None
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        line = str(error).splitlines()[0]
        raise errors.UserError(f"{parquet}: cannot be read as parquet: {line}") from None
    if not entries:
        raise errors.UserError(f"{parquet}: holds no questions")
    first_use: dict[str, int] = {}
    for index, entry in enumerate(entries):
        for column in columns:
            if entry[column] in (None, "", b"", []):
                if column not in optional:
                    raise errors.UserError(f"{parquet}: row {index} has no {column!r}")
                entry[column] = None
                continue
            try:
                entry[column] = (_texts if column in lists else _text)(entry[column])
            except (ValueError, RecursionError) as error:
                raise errors.UserError(f"{parquet}: row {index}, {column!r}: {error}") from None
        if first_use.setdefault(entry["question_id"], index) != index:
            raise errors.UserError(f"{parquet}: row {index} repeats question_id {entry['question_id']!r}")
    return [{column: entry[column] for column in columns} for entry in entries]


def _text(value: Any) -> str:
    """The text of a cell, which may hold it as bytes, or an id as a number."""
    if isinstance(value, bytes):
        value = value.decode()
    if type(value) is int:
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _texts(value: Any) -> list[str]:
    """The texts of a cell, which holds them as a list or as JSON text."""
    if isinstance(value, str | bytes):
        value = json.loads(value)
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is no list")
    return [_text(item) for item in value]
