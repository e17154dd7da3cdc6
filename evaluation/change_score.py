"""Merge a selection into a label file: writes include_frame_idx.json beside it, for the evaluation tasks.

    python evaluation/change_score.py --dataset_name longvideobench \
        --base_score_path ./selected_frames/longvideobench/blip --score_type selected_frames
    python evaluation/change_score.py --dataset_name videomme --base_score_path selected_frames/videomme/clip

Every entry gets its keyframes (frame_idx) and where they come from (frame_budget, frame_source,
frame_sha256, label_file, label_sha256). The label file itself is never changed.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from anywhere

from aks import errors
from aks.arguments import ArgumentParser
from aks.errors import UserError
from aks.jsonio import read_json, write_json
from aks.labels import DATASETS, LabelSet, load_labels
from aks.score_lists import read_number_lists
from aks.selected_frames import file_beside

MERGED_LABELS = "include_frame_idx.json"


def main() -> None:
    """Read and check everything, then write the merged labels whole."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--base_anno_path", default="./datasets", help="folder of the data sets' folders")
    parser.add_argument(
        "--base_score_path", default="./selected_frames/longvideobench/blip", help="folder of the selection"
    )
    parser.add_argument("--dataset_name", default="longvideobench", help=f"one of {', '.join(DATASETS)}")
    parser.add_argument(
        "--score_type", default="selected_frames", help="the selection's file name without .json"
    )
    parser.add_argument("--label_file", help="labels to merge into (default: the data set's own file)")
    parser.add_argument("--output", help=f"file to write (default: {MERGED_LABELS} beside the label file)")
    parser.add_argument(
        "--budget",
        type=int,
        help="frames a question was selected for (default: selection.json's record, or the longest list)",
    )
    args = parser.parse_args()
    dataset = args.dataset_name.lower()
    labels = load_labels(dataset, Path(args.base_anno_path) / dataset, args.label_file or None)
    selection = read_selection(Path(args.base_score_path) / f"{args.score_type}.json", labels, args.budget)
    merge(labels, selection, Path(args.output) if args.output else labels.path.with_name(MERGED_LABELS))


@dataclass(frozen=True)
class Selection:
    """Keyframes of every question of a label file."""

    path: Path  # the file they came from
    sha256: str  # digest of its bytes
    budget: int  # frames a question they were selected for
    rows: list[list[int]]  # ascending frame indices, a list a question in label order


def read_selection(path: Path, labels: LabelSet, budget: int | None = None) -> Selection:
    """Read a selection, ours or a released one, and check that it belongs to the labels.

    Args:
        path: ``selected_frames.json`` or a file of its format.
        labels: the label file it should be for.
        budget: frames a question; None for what selection.json beside it records, or the longest list.

    Raises:
        UserError: unreadable, for other labels, longer than the budget, or no ascending frame indices.
    """
    rows = read_number_lists(path)
    if len(rows) != len(labels.questions):
        raise UserError(
            f"{path}: {len(rows)} selections, but {labels.path} has {len(labels.questions)} entries; "
            "both must be of the same label file"
        )
    record = load_record(path)
    scored_by = record.get("scored_by")
    made_for = scored_by.get("label_sha256") if isinstance(scored_by, dict) else None
    if made_for is not None and made_for != labels.sha256:
        raise UserError(
            f"{path}: was made for another label file than {labels.path} "
            f"(SHA-256 {str(made_for)[:12]}, here {labels.sha256[:12]}); merge it into that one, "
            "or score this one"
        )
    longest = max(map(len, rows))
    budget = record.get("max_num_frames", longest) if budget is None else budget
    if not isinstance(budget, int) or budget < 1 or longest > budget:
        raise UserError(
            f"{path}: its longest selection has {longest} frames, the budget is {budget}; "
            "check --budget and selection.json beside it"
        )
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    frame_indices = [parse_frame_indices(path, entry, row) for entry, row in enumerate(rows)]
    return Selection(path, sha256, budget, frame_indices)


def load_record(selection: Path) -> Mapping[str, Any]:
    """frame_select.py's record of this selection; empty where the selection comes from elsewhere."""
    if (path := file_beside(selection, "selection.json")) is None:
        return {}
    record = read_json(path)
    if not isinstance(record, dict):
        raise UserError(f"{path}: holds {type(record).__name__}, not the record of a selection")
    return record


def parse_frame_indices(selection: Path, entry: int, row: np.ndarray) -> list[int]:
    """One question's frame indices as integers (released selections hold whole floats)."""
    frame_indices = row.astype(np.int64)
    if (frame_indices != row).any() or (frame_indices < 0).any() or (np.diff(frame_indices) <= 0).any():
        raise UserError(f"{selection}: entry {entry} is not a list of ascending frame numbers")
    return frame_indices.tolist()


def merge(labels: LabelSet, selection: Selection, output: Path) -> None:
    """Write the label entries with their keyframes, and say how many questions are short of the budget.

    Raises:
        UserError: the output is the label file itself, or cannot be written.
    """
    if output.resolve() == labels.path.resolve():
        raise UserError(
            f"{output}: is the label file itself, which is never changed; choose another --output"
        )
    origin = {
        "frame_budget": selection.budget,
        "frame_source": str(selection.path),
        "frame_sha256": selection.sha256,
        "label_file": labels.path.name,
        "label_sha256": labels.sha256,
    }
    entries = zip(labels.entries, selection.rows, strict=True)
    write_json(output, [{**entry, "frame_idx": row, **origin} for entry, row in entries])
    count = len(selection.rows)
    short = sum(len(row) < selection.budget for row in selection.rows)
    empty = sum(not row for row in selection.rows)
    print(f"wrote {output}: {count} questions, {selection.budget} frames each at most, from {selection.path}")
    print(f"{short} of {count} questions have fewer than {selection.budget} keyframes")
    if empty:
        print(
            f"{empty} of them have none and cannot be evaluated on keyframes (their video failed in step 1?)"
        )


if __name__ == "__main__":
    errors.run_main(main)
