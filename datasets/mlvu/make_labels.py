"""Converts MLVU's seven published JSON files to mlvu.json, the label file that feature_extract.py reads.

    python datasets/mlvu/make_labels.py MLVU/json
    python datasets/mlvu/make_labels.py MLVU/json --output labels.json

The entries get the fields of lmms-eval's copy: the options stand in the question, the answer is a letter. Of
several equal options the last counts as the right one, as in MLVU's own evaluation. Questions without a text,
or whose answer is none of the options, are left out and named.
"""

import sys
from pathlib import Path
from string import ascii_uppercase
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # started as a script from anywhere

from aks import errors
from aks.arguments import ArgumentParser
from aks.entries import LabelEntry, read_entries
from aks.errors import UserError
from aks.jsonio import write_json

# The multiple-choice tasks; a task's file and the folder of its videos are called so, behind its number.
TASKS = ("plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning")


def main() -> None:
    """Convert one folder."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("folder", type=Path, help="with 1_plotQA.json to 7_topic_reasoning.json of MLVU/MVLU")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("mlvu.json"))
    args = parser.parse_args()
    entries, left_out = [], []
    for number, task in enumerate(TASKS, 1):
        path = args.folder / f"{number}_{task}.json"
        if not path.is_file():
            raise UserError(f"{path}: file not found; name MLVU's folder of label files")
        for index, data in enumerate(read_entries(path)):
            entry = LabelEntry(path, index, data, data.get("video"))
            if data.get("question") and data.get("answer") in entry.texts("candidates", required=True):
                entries.append(convert(entry, f"{task}_{index}", path.stem, task))
            else:
                left_out.append(entry.where)
    write_json(args.output, entries)
    videos = {entry["video_name"] for entry in entries}
    print(f"wrote {args.output}: {len(entries)} questions on {len(videos)} videos")
    if left_out:
        print(f"left out, because the question is empty or no option its answer: {'; '.join(left_out)}")


def convert(entry: LabelEntry, question_id: str, folder: str, task: str) -> dict[str, Any]:
    """One published entry in the fields of lmms-eval's copy."""
    candidates = entry.texts("candidates", required=True)
    options = [f"({letter}) {option}" for letter, option in zip(ascii_uppercase, candidates, strict=False)]
    right = max(index for index, option in enumerate(candidates) if option == entry.data["answer"])
    return {
        "question_id": question_id,
        "video_name": f"{folder}/{entry.text('video')}",
        "duration": entry.number("duration"),
        "question": "\n".join([entry.text("question").strip(), *options]),
        "candidates": candidates,
        "answer": ascii_uppercase[right],
        "task_type": task,
    }


if __name__ == "__main__":
    errors.run_main(main)
