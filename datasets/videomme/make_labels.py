"""Converts VideoMME's official parquet to videomme.json, the label file that feature_extract.py reads.

    python datasets/videomme/make_labels.py test-00000-of-00001.parquet

Needs pyarrow (requirements-dev.txt).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # started as a script from anywhere
    sys.path.append(str(ROOT))

from aks import errors  # noqa: E402
from aks.jsonio import write_json  # noqa: E402

# In the order of the published label file.
COLUMNS = (
    "video_id",
    "duration",
    "domain",
    "sub_category",
    "url",
    "videoID",
    "question_id",
    "task_type",
    "question",
    "options",
    "answer",
)


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


def read_entries(parquet: Path) -> list[dict[str, Any]]:
    """The label entries of a parquet file, in its order.

    Raises:
        UserError: the file is missing or not VideoMME's.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise errors.UserError("reading parquet needs pyarrow; run: pip install pyarrow") from None
    try:
        schema = pyarrow.parquet.read_schema(parquet)
        missing = [column for column in COLUMNS if column not in schema.names]
        if missing:
            raise errors.UserError(f"{parquet}: has no column {missing[0]!r}; is it VideoMME's?")
        entries = pyarrow.parquet.read_table(parquet, columns=list(COLUMNS)).to_pylist()
    except FileNotFoundError:
        raise errors.UserError(f"{parquet}: file not found") from None
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        line = str(error).splitlines()[0]
        raise errors.UserError(f"{parquet}: cannot be read as parquet: {line}") from None
    if not entries:
        raise errors.UserError(f"{parquet}: holds no questions")
    first_use: dict[str, int] = {}
    for index, entry in enumerate(entries):
        for column in COLUMNS:
            if entry[column] in (None, "", b"", []):
                raise errors.UserError(f"{parquet}: row {index} has no {column!r}")
            try:
                entry[column] = (_texts if column == "options" else _text)(entry[column])
            except (ValueError, RecursionError) as error:
                raise errors.UserError(f"{parquet}: row {index}, {column!r}: {error}") from None
        if first_use.setdefault(entry["question_id"], index) != index:
            raise errors.UserError(f"{parquet}: row {index} repeats question_id {entry['question_id']!r}")
    return [{column: entry[column] for column in COLUMNS} for entry in entries]


def main() -> None:
    """Convert one file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("parquet", type=Path, help="test-00000-of-00001.parquet of lmms-lab/Video-MME")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "videomme.json")
    args = parser.parse_args()
    entries = read_entries(args.parquet)
    write_json(args.output, entries)
    print(f"wrote {args.output}: {len(entries)} questions on {len({e['videoID'] for e in entries})} videos")


if __name__ == "__main__":
    errors.run_main(main)
