"""Sets up evaluations: videos whose frames spell their index, label files, merged selections, runs."""

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
from model_setup import _byte_letters

from evaluation import change_score, insert_frame_num

ROOT = Path(__file__).resolve().parents[2]
# On the path of commands; its sitecustomize.py runs first in each.
STARTUP = Path(__file__).resolve().parent / "startup"
COLUMNS, ROWS = 5, 4  # blocks of a numbered frame
INDEX_BITS, CHECK_BITS, CHECK_MODULUS = 12, 6, 61

QUESTIONS = {  # of the LLaVA and Qwen tests: video and keyframes of each
    0: ("long.mp4", [0, 31, 257, 512, 600, 601, 1023, 1099]),
    1: ("long.mp4", [1, 2, 3, 5, 8, 13, 21, 34]),
    2: ("short.mp4", [149]),
    3: ("long.mp4", [7, 300, 1000]),
    4: ("few.mp4", [0, 1, 2, 3, 4]),
}
VIDEOS = [video for video, _ in QUESTIONS.values()]
KEYFRAMES = [keyframes for _, keyframes in QUESTIONS.values()]

# Nothing may be fetched. The libraries read these when they are first imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")


def numbered_frame(frame_index: int, width: int, height: int) -> np.ndarray:
    """A frame whose black and white blocks spell its index, (height, width, 3) uint8.

    Five by four blocks: one white, twelve bits of the index, six of a check sum, one black.
    """
    assert 0 <= frame_index < 2**INDEX_BITS
    check = frame_index % CHECK_MODULUS
    bits = [1, *_bits(frame_index, INDEX_BITS), *_bits(check, CHECK_BITS), 0]
    blocks = np.array(bits, dtype=np.uint8).reshape(ROWS, COLUMNS) * 255
    rows = np.arange(height) * ROWS // height
    columns = np.arange(width) * COLUMNS // width
    return np.repeat(blocks[rows][:, columns, None], 3, axis=2)


def read_frame_index(pixels: Any) -> int:
    """The index that a frame spells, whatever codec, resizing and normalizing did to it.

    Args:
        pixels: (height, width, 3) or (3, height, width), an array or a tensor of any scale.

    Raises:
        AssertionError: it spells none, or is a mix of frames.
    """
    frame = np.asarray(pixels.float().numpy() if hasattr(pixels, "float") else pixels, dtype=np.float64)
    grey = frame.mean(axis=0 if frame.shape[0] == 3 else 2)
    height, width = grey.shape
    centers = [
        [
            grey[
                int((row + 0.3) * height / ROWS) : int((row + 0.7) * height / ROWS) + 1,
                int((column + 0.3) * width / COLUMNS) : int((column + 0.7) * width / COLUMNS) + 1,
            ].mean()
            for column in range(COLUMNS)
        ]
        for row in range(ROWS)
    ]
    levels = np.array(centers).ravel()
    white, black = levels[0], levels[-1]
    brightness = (levels - black) / (white - black)
    assert white > black and (np.minimum(abs(brightness), abs(brightness - 1)) < 0.25).all(), (
        "not a numbered frame"
    )
    bits = brightness > 0.5
    frame_index = _number(bits[1 : 1 + INDEX_BITS])
    assert _number(bits[1 + INDEX_BITS : -1]) == frame_index % CHECK_MODULUS, "a mix of several frames"
    return frame_index


def read_frame_indices(frames: Any) -> list[int]:
    """The indices that several frames spell."""
    return [read_frame_index(frame) for frame in frames]


def _bits(value: int, count: int) -> list[int]:
    return [value >> bit & 1 for bit in reversed(range(count))]


def _number(bits: np.ndarray) -> int:
    return int("".join("01"[int(bit)] for bit in bits), 2)


def write_numbered_video(
    path: Path, frames: int, fps: int = 30, size: tuple[int, int] = (160, 128), **options: Any
) -> Path:
    """An H.264 video whose frames spell their indices; ``options`` as for ``media.write_video``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_video(path, frames=frames, fps=fps, size=size, draw=numbered_frame, **options)


def write_longvideobench_labels(folder: Path, videos: Sequence[str], **fields: Any) -> Path:
    """``lvb_val.json`` with one question a video name, in the real file's fields; the answer is A.

    ``fields`` replace those of every entry.
    """
    entries = [
        {
            "video_id": Path(video).stem,
            "question": f"What is shown in part {index}?",
            "question_wo_referring_query": "What is shown?",
            "candidates": ["black and white blocks", "a rabbit", "a rocket", "nothing at all"],
            "correct_choice": 0,
            "position": [0],
            "topic_category": "NP-News-Programs",
            "question_category": "S2E",
            "level": "L1-Perception",
            "id": f"q{index}",
            "video_path": video,
            "subtitle_path": f"{Path(video).stem}_en.json",
            "duration_group": 600,
            "starting_timestamp_for_subtitles": 0,
            "duration": 30.0,
            "view_count": 1,
            **fields,
        }
        for index, video in enumerate(videos)
    ]
    return write_labels(folder / "lvb_val.json", entries)


def write_videomme_labels(folder: Path, videos: Sequence[str], **fields: Any) -> Path:
    """``videomme.json`` with one question a video id (no extension), in the real file's fields; answer A."""
    entries = [
        {
            "video_id": f"{index + 1:03}",
            "duration": "short",
            "domain": "Knowledge",
            "sub_category": "Astronomy",
            "url": f"https://example.org/{video}",
            "videoID": video,
            "question_id": f"{index + 1:03}-1",
            "task_type": "Object Recognition",
            "question": f"What is shown in part {index}?",
            "options": ["A. Blocks.", "B. A rabbit.", "C. A rocket.", "D. Nothing."],
            "answer": "A",
            **fields,
        }
        for index, video in enumerate(videos)
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


def set_frame_num(labels: Path, use_topk: bool, frame_num: int) -> None:
    """Say in merged labels which frames the subtitles belong to, as evaluation/insert_frame_num.py does."""
    flags = ["--frame_num", str(frame_num), "--use_topk", str(use_topk), "--path", str(labels)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["insert_frame_num.py", *flags])
        insert_frame_num.main()


def write_subtitles(path: Path, lines: Sequence[tuple[float, float, str]]) -> Path:
    """Subtitles as VideoMME's own files have them: start and end in seconds, and a text each."""

    def timestamp(time_s: float) -> str:
        return f"00:{int(time_s // 60):02}:{int(time_s % 60):02},{round(time_s % 1 * 1000):03}"

    parts = [
        f'{number}\n{timestamp(start)} --> {timestamp(end)}\n<font color="white" size=".72c">{text}</font>\n'
        for number, (start, end, text) in enumerate(lines, 1)
    ]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


def link_videos(source: Path, folder: Path) -> Path:
    """A folder of links to the videos of another folder, for :func:`spoil` to replace one."""
    folder.mkdir()
    for video in source.iterdir():
        (folder / video.name).symlink_to(video)
    return folder


def spoil(video: Path, damage: str) -> Path:
    """Damage a video: ``missing``, ``text``, ``empty``, ``cut``, ``corrupt`` or ``av1``."""
    whole = video.read_bytes()
    video.unlink()
    if damage == "text":
        video.write_text("403 Forbidden\n")
    elif damage == "empty":
        video.write_bytes(b"")
    elif damage == "cut":
        video.write_bytes(whole[: len(whole) // 2])
    elif damage == "corrupt":
        video.write_bytes(corrupt(whole))
    elif damage == "av1":
        write_av1(video)
    return video


def corrupt(whole: bytes) -> bytes:
    """A video file's bytes with a hole in the middle of its frames."""
    first, last = whole.find(b"mdat"), whole.find(b"moov")
    middle = first + (last - first) // 2
    return whole[:middle] + bytes(2000) + whole[middle + 2000 :]


def write_av1(video: Path) -> Path:
    """Twenty frames in a codec that PyAV reads and decord does not."""
    return write_numbered_video(video, 20, 24, codec="libaom-av1", options={"cpu-used": "8"})


def write_byte_tokenizer(folder: Path, special_tokens: Sequence[str], tokens: int = 0) -> None:
    """Qwen2's byte-level tokenizer without merges: a token a byte, then the special tokens.

    Others that no text has follow them, up to ``tokens`` in all.
    """
    letters = [chr(code) for code in _byte_letters()]
    plain = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {
            str(id): {"content": token, "special": True, **plain}
            for id, token in enumerate(special_tokens, len(letters))
        },
        "bos_token": None,
        "unk_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }
    vocabulary = {letter: id for id, letter in enumerate(letters)}
    vocabulary |= {f"<unused {id}>": id for id in range(len(letters) + len(special_tokens), tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def change_entry(labels: Path, index: int, **fields: Any) -> Path:
    """Set fields of one entry of a label file by hand; None removes a field."""
    entries = json.loads(labels.read_text(encoding="utf-8"))
    entries[index] = {key: value for key, value in {**entries[index], **fields}.items() if value is not None}
    return write_labels(labels, entries)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load_task(
    name: str, patch: pytest.MonkeyPatch, tmp_path: Path, model: str = "", **paths: Path
) -> tuple[Any, list[dict[str, Any]]]:
    """A task as lmms-eval builds it, for a model, and its documents; ``paths`` are AKS_ variables."""
    from lmms_eval.tasks import TaskManager, get_task_dict

    patch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets_cache"))
    for variable, path in paths.items():
        patch.setenv(f"AKS_{variable}", str(path))
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
    swapped_in: Path | None = None,
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
        python: the interpreter; None for a fork server's.
        python_path: more folders to import from, before the project.
        environment: more environment variables.
        timeout: seconds.
        swapped_in: a folder with an lmms-eval that evaluation/swap_in.py has changed; nothing else tells it
            of this project.
    """
    dataset = task.split("_", 1)[0].upper()
    env = {
        **os.environ,
        "LMMS_EVAL_PLUGINS": "" if swapped_in else "evaluation",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(output.parent / "datasets_cache"),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
        "FORCE_QWENVL_VIDEO_READER": "decord",
        **({"AKS_TESTS_ALL_TASKS": "1"} if swapped_in else {}),  # its tasks are among lmms-eval's
        **({f"AKS_{dataset}_LABELS": str(labels)} if labels else {}),
        **({f"AKS_{dataset}_VIDEOS": str(videos)} if videos else {}),
        **(environment or {}),
    }
    inherited = env.get("PYTHONPATH")
    env["PYTHONPATH"] = os.pathsep.join(
        map(str, [*python_path, STARTUP, swapped_in or ROOT, *([inherited] if inherited else [])])
    )
    command = [python or forkserver.python("lmms_eval"), "-m", "lmms_eval"]
    command += ["--model", model, "--model_args", model_args]
    command += ["--tasks", task, "--batch_size", "1"]
    command += [] if swapped_in else ["--include_path", str(ROOT / "datasets")]
    command += ["--device", "cpu", "--log_samples", "--output_path", str(output), *flags]
    return subprocess.run(
        command,
        cwd=output.parent if swapped_in else ROOT,
        env=env,
        text=True,
        capture_output=True,
        timeout=timeout,
        errors="replace",
    )


def results_in(output: Path) -> list[Path]:
    """The results files that a run wrote."""
    return sorted(output.rglob("*_results.json"))


def samples_in(output: Path) -> list[dict[str, Any]]:
    """The samples that ``--log_samples`` wrote, in the order of the questions."""
    files = sorted(output.rglob("*_samples_*.jsonl"))
    entries = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return sorted(entries, key=lambda entry: entry["doc_id"])


def fail_second(patch: pytest.MonkeyPatch, owner: Any, name: str, error: Exception | None = None) -> None:
    """Let the second call of a method raise an error."""
    method, calls = getattr(owner, name), []

    def preprocess_second(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == 2:
            raise error or RuntimeError("no room for pixels")
        return method(*args, **kwargs)

    patch.setattr(owner, name, preprocess_second)
