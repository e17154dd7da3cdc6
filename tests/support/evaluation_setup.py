"""Setting up evaluations: videos that say which frame is which, label files, merged selections, runs."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import forkserver
import numpy as np
import pytest
from media import write_video

from evaluation import change_score

ROOT = Path(__file__).resolve().parents[2]
STARTUP = Path(__file__).resolve().parent / "startup"  # on the path of commands: what they do first
COLUMNS, ROWS = 5, 4  # blocks of a numbered picture
NUMBER_BITS, CHECK_BITS, CHECK_MODULUS = 12, 6, 61

# Nothing may be fetched; read when the libraries are first imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")


def numbered_picture(number: int, width: int, height: int) -> np.ndarray:
    """A picture whose black and white blocks spell its number, (height, width, 3) uint8.

    Five by four blocks: one white, twelve bits of the number, six of a check sum, one black.
    """
    assert 0 <= number < 2**NUMBER_BITS
    check = number % CHECK_MODULUS
    bits = [1, *_bits(number, NUMBER_BITS), *_bits(check, CHECK_BITS), 0]
    blocks = np.array(bits, dtype=np.uint8).reshape(ROWS, COLUMNS) * 255
    rows = np.arange(height) * ROWS // height
    columns = np.arange(width) * COLUMNS // width
    return np.repeat(blocks[rows][:, columns, None], 3, axis=2)


def read_number(pixels: Any) -> int:
    """The number that a picture spells, whatever codec, resizing and normalising did to it.

    Args:
        pixels: (height, width, 3) or (3, height, width), an array or a tensor of any scale.

    Raises:
        AssertionError: it spells none.
    """
    picture = np.asarray(pixels.float().numpy() if hasattr(pixels, "float") else pixels, dtype=np.float64)
    grey = picture.mean(axis=0 if picture.shape[0] == 3 else 2)
    height, width = grey.shape
    middle = [
        [
            grey[
                int((row + 0.3) * height / ROWS) : int((row + 0.7) * height / ROWS) + 1,
                int((column + 0.3) * width / COLUMNS) : int((column + 0.7) * width / COLUMNS) + 1,
            ].mean()
            for column in range(COLUMNS)
        ]
        for row in range(ROWS)
    ]
    levels = np.array(middle).ravel()
    white, black = levels[0], levels[-1]
    share = (levels - black) / (white - black)
    assert white > black and (np.minimum(abs(share), abs(share - 1)) < 0.25).all(), "not a numbered picture"
    bits = share > 0.5
    number = _number(bits[1 : 1 + NUMBER_BITS])
    assert _number(bits[1 + NUMBER_BITS : -1]) == number % CHECK_MODULUS, "a picture mixed of several"
    return number


def read_numbers(frames: Any) -> list[int]:
    """The numbers of several pictures."""
    return [read_number(frame) for frame in frames]


def _bits(value: int, count: int) -> list[int]:
    return [value >> place & 1 for place in reversed(range(count))]


def _number(bits: np.ndarray) -> int:
    return int("".join("01"[int(bit)] for bit in bits), 2)


def write_numbered_video(
    path: Path, frames: int, fps: int = 30, size: tuple[int, int] = (160, 128), **options: Any
) -> Path:
    """An H.264 video whose frames spell their numbers; ``options`` as for ``media.write_video``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_video(path, frames=frames, fps=fps, size=size, draw=numbered_picture, **options)


def write_longvideobench_labels(folder: Path, videos: Sequence[str], **fields: Any) -> Path:
    """``lvb_val.json`` with one question a video name, in the real file's fields; the answer is A.

    ``fields`` replace those of every entry.
    """
    entries = [
        {
            "video_id": Path(video).stem,
            "question": f"What is shown in part {at}?",
            "question_wo_referring_query": "What is shown?",
            "candidates": ["black and white blocks", "a rabbit", "a rocket", "nothing at all"],
            "correct_choice": 0,
            "position": [0],
            "topic_category": "NP-News-Programs",
            "question_category": "S2E",
            "level": "L1-Perception",
            "id": f"q{at}",
            "video_path": video,
            "subtitle_path": f"{Path(video).stem}_en.json",
            "duration_group": 600,
            "starting_timestamp_for_subtitles": 0,
            "duration": 30.0,
            "view_count": 1,
            **fields,
        }
        for at, video in enumerate(videos)
    ]
    return write_labels(folder / "lvb_val.json", entries)


def write_videomme_labels(folder: Path, videos: Sequence[str], **fields: Any) -> Path:
    """``videomme.json`` with one question a video id (no ending), in the real file's fields; answer A."""
    entries = [
        {
            "video_id": f"{at + 1:03}",
            "duration": "short",
            "domain": "Knowledge",
            "sub_category": "Astronomy",
            "url": f"https://example.org/{video}",
            "videoID": video,
            "question_id": f"{at + 1:03}-1",
            "task_type": "Object Recognition",
            "question": f"What is shown in part {at}?",
            "options": ["A. Blocks.", "B. A rabbit.", "C. A rocket.", "D. Nothing."],
            "answer": "A",
            **fields,
        }
        for at, video in enumerate(videos)
    ]
    return write_labels(folder / "videomme.json", entries)


def write_labels(path: Path, entries: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


def merge_selection(
    labels: Path,
    selection: Sequence[Sequence[float]],
    budget: int | None = None,
    dataset: str = "longvideobench",
) -> Path:
    """``include_frame_idx.json`` beside the labels, as evaluation/change_score.py writes it."""
    chosen = labels.with_name("chosen.json")
    chosen.write_text(json.dumps([list(row) for row in selection]))
    argv = ["change_score.py", "--dataset_name", dataset, "--base_score_path", str(chosen.parent)]
    argv += ["--score_type", chosen.stem, "--label_file", str(labels)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*argv, *(["--budget", str(budget)] if budget else [])])
        change_score.main()
    return labels.with_name("include_frame_idx.json")


def change_entry(labels: Path, at: int, **fields: Any) -> Path:
    """Set fields of one entry of a label file by hand; None removes a field."""
    entries = json.loads(labels.read_text(encoding="utf-8"))
    entries[at] = {key: value for key, value in {**entries[at], **fields}.items() if value is not None}
    return write_labels(labels, entries)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load_task(
    name: str, patch: pytest.MonkeyPatch, tmp_path: Path, model: str = "", **places: Path
) -> tuple[Any, list[dict[str, Any]]]:
    """A task as lmms-eval builds it, for a model, and its documents; ``places`` are AKS_ variables."""
    from lmms_eval.tasks import TaskManager, get_task_dict

    patch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets_cache"))
    for variable, place in places.items():
        patch.setenv(f"AKS_{variable}", str(place))
    folder = str(ROOT / "datasets")
    manager = TaskManager("ERROR", include_path=folder, include_defaults=False, model_name=model)
    task = get_task_dict([name], manager, "simple")[name]
    return task, list(task.dataset[task.config.test_split])


def run_lmms_eval(
    model: str,
    model_args: str,
    task: str,
    output: Path,
    *flags: str,
    labels: Path | None = None,
    videos: Path | None = None,
    python: str | None = None,
    python_path: Sequence[Path] = (),
    environment: dict[str, str] | None = None,
    timeout: int = 300,
) -> subprocess.CompletedProcess:
    """``python -m lmms_eval`` offline on the CPU, with this project as its plug-in, as a user would run it.

    Args:
        model: name of the model.
        model_args: its arguments, comma-separated.
        task: name of the task in ``datasets/``.
        output: folder for the results; also holds the caches.
        flags: more flags.
        labels: label file of the task's data set, merged or not.
        videos: folder of its videos.
        python: the command that runs it; a fork server's, where none is given.
        python_path: more folders to import from, before the project.
        environment: more environment variables.
        timeout: seconds.
    """
    dataset = task.split("_", 1)[0].upper()
    env = {
        **os.environ,
        "LMMS_EVAL_PLUGINS": "evaluation",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(output.parent / "datasets_cache"),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
        "FORCE_QWENVL_VIDEO_READER": "decord",
        **({f"AKS_{dataset}_LABELS": str(labels)} if labels else {}),
        **({f"AKS_{dataset}_VIDEOS": str(videos)} if videos else {}),
        **(environment or {}),
    }
    there = env.get("PYTHONPATH")
    env["PYTHONPATH"] = os.pathsep.join(map(str, [*python_path, STARTUP, ROOT, *([there] if there else [])]))
    command = [python or forkserver.python("lmms_eval"), "-m", "lmms_eval"]
    command += ["--model", model, "--model_args", model_args]
    command += ["--tasks", task, "--include_path", str(ROOT / "datasets"), "--batch_size", "1"]
    command += ["--device", "cpu", "--log_samples", "--output_path", str(output), *flags]
    return subprocess.run(
        command, cwd=ROOT, env=env, text=True, capture_output=True, timeout=timeout, errors="replace"
    )


def results_in(output: Path) -> list[Path]:
    """Files with results that a run wrote, none if it failed as it should."""
    return sorted(output.rglob("*_results.json"))


def samples_in(output: Path) -> list[dict[str, Any]]:
    """What ``--log_samples`` wrote, in the order of the questions."""
    files = sorted(output.rglob("*_samples_*.jsonl"))
    entries = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return sorted(entries, key=lambda entry: entry["doc_id"])
