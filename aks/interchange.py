"""Selections from and to the files of other tools.

    %(prog)s export videoitg selected_frames.json frames.jsonl --dataset_name videomme
    %(prog)s import videoitg results.jsonl selected_frames.json --dataset_name videomme --max_num_frames 32

Formats: ``videoitg``, the ``frame_indices_jsonl`` of VideoITG's models for lmms-eval, a line a question,
``{"doc_id": position in the label file, "index": [frame numbers]}``; ``kfs``, KFS-Bench's list of
``{"id": question id, "frame_timestamps": [seconds]}``; ``csv``, a row a keyframe with question, video, frame
and time.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aks import errors
from aks.arguments import ArgumentParser, at_least
from aks.cli import add_dataset_flags
from aks.entries import decode_text, read_entries, read_label_bytes
from aks.errors import UserError, nearest_file
from aks.jsonio import write_atomically
from aks.labels import LabelSet, load_labels
from aks.score_lists import check_frame_numbers, write_selection
from aks.selected_frames import read_lists, read_times

Rows = list[list[int]]


def export_videoitg(labels: LabelSet, frames: Rows, times_s: Sequence[np.ndarray] | None) -> str:
    """Source: github.com/NVlabs/VideoITG, README, "Frame indices file"."""
    lines = ({"doc_id": index, "index": row} for index, row in enumerate(frames))
    return "".join(json.dumps(line) + "\n" for line in lines)


def export_kfs(labels: LabelSet, frames: Rows, times_s: Sequence[np.ndarray] | None) -> str:
    """Times as step 1 recorded them."""
    if times_s is None:
        raise UserError("kfs holds times: it needs selected_times.json beside selected_frames.json")
    pairs = zip(labels.questions, times_s, strict=True)
    return json.dumps([{"id": question.id, "frame_timestamps": row.tolist()} for question, row in pairs])


def export_csv(labels: LabelSet, frames: Rows, times_s: Sequence[np.ndarray] | None) -> str:
    """One row a keyframe; the time is empty where it is unknown."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["question", "video", "frame", "time_s"])
    for question, row in zip(labels.questions, frames, strict=True):
        times = [""] * len(row) if times_s is None else times_s[question.index].tolist()
        writer.writerows([question.id, question.video, *pair] for pair in zip(row, times, strict=True))
    return text.getvalue()


def import_videoitg(path: Path, labels: LabelSet, frame_path: Path | None) -> Iterator[tuple[int, Any]]:
    """Frame numbers in the file's order, which in VideoITG's own results begins with the best."""
    for entry in read_entries(path):
        yield entry.get("doc_id"), entry.get("index")


def import_kfs(path: Path, labels: LabelSet, frame_path: Path | None) -> Iterator[tuple[int, Any]]:
    """The candidates nearest to the times; of two equally near the earlier."""
    if frame_path is None:
        raise UserError("kfs holds times: name step 1's frames.json with times.json beside it (--frame_path)")
    frames = check_frame_numbers(frame_path, read_lists(frame_path, labels))
    times = read_lists(frame_path.with_name("times.json"), labels)
    positions = {question.id: question.index for question in labels.questions}
    for entry in read_entries(path):
        index, wanted = positions.get(str(entry.get("id")), -1), entry.get("frame_timestamps")
        if index >= 0 and is_times(wanted):
            num_frames, num_times = len(frames[index]), len(times[index])
            if not 0 < num_frames == num_times:
                raise UserError(
                    f"{frame_path}: question {labels.questions[index].id} has {num_frames} candidates and "
                    f"{num_times} times, but keyframes in {path}"
                )
            distances = np.abs(times[index][None] - np.array(wanted, dtype=np.float64)[:, None])
            wanted = frames[index][distances.argmin(axis=1)].tolist()
        yield index, wanted


def is_times(value: Any) -> bool:
    """Whether a value is a list of finite numbers, at least one."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(time_s, int | float) and abs(time_s) < np.inf for time_s in value)
    )


def import_csv(path: Path, labels: LabelSet, frame_path: Path | None) -> Iterator[tuple[int, Any]]:
    """Rows of any order; columns other than ``question`` and ``frame`` are not read."""
    positions = {question.id: question.index for question in labels.questions}
    rows: dict[int, list[int]] = {question.index: [] for question in labels.questions}
    reader = csv.DictReader(io.StringIO(decode_text(path, read_label_bytes(path))))
    if missing := {"question", "frame"}.difference(reader.fieldnames or ()):
        raise UserError(f"{path}: its first line names no column {min(missing)!r}")
    for row in reader:
        index, frame = positions.get(row.get("question") or "", -1), row.get("frame") or ""
        rows.setdefault(index, []).append(int(frame) if frame.isdecimal() else -1)
    yield from rows.items()


FORMATS = {
    "videoitg": (export_videoitg, import_videoitg),
    "kfs": (export_kfs, import_kfs),
    "csv": (export_csv, import_csv),
}


def collect(path: Path, labels: LabelSet, entries: Iterator[tuple[int, Any]], budget: int | None) -> Rows:
    """The frame numbers of every question, ascending; the first ``budget`` of each list where it is given.

    Raises:
        UserError: an entry is of no question, comes twice, or holds something else; a question has none.
    """
    rows: dict[int, list[int]] = {}
    for number, (index, frames) in enumerate(entries):
        if type(index) is not int or not 0 <= index < len(labels.questions):
            raise UserError(f"{path}: entry {number} is of no question in {labels.path}")
        if index in rows:
            raise UserError(f"{path}: question {labels.questions[index].id} comes twice")
        if not isinstance(frames, list) or not all(type(frame) is int and frame >= 0 for frame in frames):
            raise UserError(f"{path}: question {labels.questions[index].id}: {frames!r} is no list of frames")
        rows[index] = sorted(set(frames[:budget]))
    missing = [question.id for question in labels.questions if question.index not in rows]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} questions of {labels.path} are missing, {missing[0]} is the first"
        )
    return [rows[question.index] for question in labels.questions]


def main() -> None:
    """Convert one file."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("direction", choices=("export", "import"), help="to or from the other tool's file")
    parser.add_argument("format", choices=FORMATS, help="the other tool's")
    parser.add_argument("source", type=Path, help="the file to read")
    parser.add_argument("target", type=Path, help="the file to write")
    add_dataset_flags(parser)
    importing = parser.add_argument_group("import")
    importing.add_argument("--frame_path", type=Path, help="kfs: frames.json of step 1")
    importing.add_argument(
        "--max_num_frames", type=at_least(1), help="the first so many of each list (default: all)"
    )
    args = parser.parse_args()
    labels = load_labels(args.dataset_name, args.dataset_path, args.label_file)
    if not args.source.is_file():
        raise UserError(f"{args.source}: file not found{nearest_file(args.source)}")
    export_rows, import_rows = FORMATS[args.format]
    if args.direction == "export":
        frames = check_frame_numbers(args.source, read_lists(args.source, labels))
        times = read_times(args.source, labels, frames)
        text = export_rows(labels, [row.tolist() for row in frames], times)
        write_atomically(args.target, lambda path: path.write_text(text, encoding="utf-8"))
    else:
        entries = import_rows(args.source, labels, args.frame_path)
        frames = collect(args.source, labels, entries, args.max_num_frames)
        write_selection(args.target, frames)
    print(f"wrote {args.target}: {len(frames)} questions, {sum(map(len, frames))} keyframes")
    if empty := sum(len(row) == 0 for row in frames):
        print(f"{empty} questions have no keyframes")


if __name__ == "__main__":
    errors.run_main(main)
