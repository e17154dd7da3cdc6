"""Labels of LVBench, MLVU and Video-MME-v2 as they are published, for two videos of numbered frames."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evaluation_setup import write_labels, write_numbered_video

FRAMES = {"a": 400, "b": 90}  # of each video, at 30 a second
MLVU_TASKS = ("plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning")


def lvbench_lines() -> list[dict[str, Any]]:
    """A line a video; its questions have their options within them."""
    return [
        {
            "key": video,
            "type": kind,
            "video_info": {"duration_minutes": FRAMES[video] / 30 / 60, "fps": 30.0},
            "qa": [
                {
                    "uid": str(number + index),
                    "question": f"LVBench {video}{index}: what?\n(A) blocks\n(B) a cat\n(C) a dog\n(D) a car",
                    "answer": "ABCD"[index],
                    "question_type": types,
                    "time_reference": reference,
                }
                for index, (types, reference) in enumerate(
                    [
                        (["key information retrieval"], "00:01-00:02"),
                        (["event understanding", "reasoning"], "0:00:00-0:00:03"),
                    ]
                )
            ],
        }
        for video, kind, number in (("a", "cartoon", 50), ("b", "sport", 60))
    ]


def write_lvbench_labels(folder: Path) -> Path:
    path = folder / "video_info.meta.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lvbench_lines()))
    return path


def mlvu_files() -> dict[str, list[dict[str, Any]]]:
    """The seven files of ``MLVU/json``, with a question each and two for the first task."""
    return {
        f"{number}_{task}": [
            {
                "video": "b.mp4",
                "duration": 3,
                "question": f"MLVU {task}{index}: what is it?",
                "candidates": ["a cat", "blocks", "a dog", "a car"],
                "answer": "blocks",
                "question_type": "findNeedle" if task == "needle" else task,
            }
            for index in range(2 if number == 1 else 1)
        ]
        for number, task in enumerate(MLVU_TASKS, 1)
    }


def write_mlvu_files(folder: Path) -> Path:
    for name, entries in mlvu_files().items():
        write_labels(folder / f"{name}.json", entries)
    return folder


def videomme_v2_rows() -> list[dict[str, Any]]:
    """Two groups of four questions, one a video."""
    groups = [("a", "relevance", "[1, 2, 3, 4]"), ("b", "logic", "[1, [2, 3], 4]")]
    texts = ("a cat", "a dog", "blocks", "a car", "a bus", "a bee", "a tree", "nothing")
    options = "\n".join(f"{letter}. {text}." for letter, text in zip("ABCDEFGH", texts, strict=True))
    return [
        {
            "video_id": video,
            "url": "https://www.example.org/watch",
            "question_id": f"{video}-{number}",
            "question": f"V2 {video}{number}: what is it?",
            "options": options,
            "answer": "CDCH"[number - 1],
            "group_type": group_type,
            "group_structure": structure,
            "level": level,
            "second_head": f"head {level}",
            "third_head": "third",
        }
        for level, (video, group_type, structure) in enumerate(groups, 1)
        for number in range(1, 5)
    ]


def write_videos(folder: Path) -> dict[str, Path]:
    """The folder of each data set's videos."""
    for name, count in FRAMES.items():
        write_numbered_video(folder / f"{name}.mp4", count)
    mlvu = folder / "mlvu"
    for name in mlvu_files():
        (mlvu / name).mkdir(parents=True)
        (mlvu / name / "b.mp4").symlink_to(folder / "b.mp4")
    return {"lvbench": folder, "mlvu": mlvu, "videomme_v2": folder}
