"""LongVideoBench on a local label file; text and subtitles are lmms-eval's own."""

import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

if Path(__file__).resolve().parents[1].name == "tasks":
    raise SystemExit(
        f"error: {__file__} is a file of Adaptive Keyframe Sampling; it does not replace lmms-eval's. "
        "Get that back (git checkout, or pip install --force-reinstall --no-deps lmms-eval==VERSION), then "
        "run evaluation/swap_in.py install in the project"
    )
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lmms_eval.tasks.longvideobench.utils import (
    compute_frame_timestamps,
    insert_subtitles_into_frames,
    load_video,
    longvideobench_doc_to_text,
)

from aks.errors import VideoError
from aks.video.codec_log import reset_decoder_globals
from aks.video.reader import Video
from evaluation import task
from evaluation.errors import EvaluationError
from evaluation.frame_policy import parse_frame_idx, read_frames

UNIFORM_PICTURES = 16  # upstream's longvideobench_val_i

dataset_kwargs = task.dataset_kwargs("longvideobench", "validation")
metadata = task.metadata("longvideobench")
process_docs = task.longvideobench_docs
process_docs_uniform_pictures = task.longvideobench_docs_with_pictures("uniform")
process_docs_keyframe_pictures = task.longvideobench_docs_with_pictures("keyframes")


def doc_to_visual_v(doc: Mapping[str, Any]) -> list[str]:
    """The video's path; the model chooses the frames."""
    return [task.video_path("longvideobench", doc)]


def doc_to_visual_i(doc: Mapping[str, Any]) -> list[Image.Image]:
    """The frames shown as pictures: the keyframes, or upstream's 16 uniform frames."""
    path = task.video_path("longvideobench", doc)
    if doc["pictures"] == "keyframes":
        frames, _ = read_frames(path, _keyframes(doc), doc)
        return [Image.fromarray(pixels) for pixels in frames.pixels]
    reset_decoder_globals()
    try:
        return load_video(path, doc["duration"], UNIFORM_PICTURES)
    except Exception as error:  # whatever decord raises
        raise EvaluationError(f"{path}: cannot be read: {error}", doc) from None


def doc_to_text_i(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, str]) -> str:
    """Pictures and subtitles in the order of their times, then the question."""
    if doc["pictures"] == "keyframes":
        path = task.video_path("longvideobench", doc)
        times_s = _times_s(path, tuple(_keyframes(doc).tolist()), doc["id"])
    else:
        times_s = compute_frame_timestamps(doc["duration"], UNIFORM_PICTURES)
    interleaved = insert_subtitles_into_frames(
        times_s, _subtitles(doc), doc["starting_timestamp_for_subtitles"], doc["duration"]
    )
    question = longvideobench_doc_to_text(doc, {**lmms_eval_specific_kwargs, "pre_prompt": ""})
    return f"{lmms_eval_specific_kwargs['pre_prompt']}{interleaved}\n{question}"


def _keyframes(doc: Mapping[str, Any]) -> np.ndarray:
    frame_indices = parse_frame_idx(doc)
    if not len(frame_indices):
        raise EvaluationError("its selection is empty; mend it or drop the question", doc)
    return frame_indices


@cache
def _times_s(path: str, frame_indices: tuple[int, ...], question: str) -> list[float]:
    try:
        with Video(path) as video:
            if frame_indices[-1] >= video.num_frames:
                raise VideoError(
                    f"keyframe {frame_indices[-1]} lies beyond the video's {video.num_frames} frames"
                )
            return video.times_s(frame_indices).tolist()
    except VideoError as error:
        raise EvaluationError(f"question {question}: {path}: {error}") from None


def _subtitles(doc: Mapping[str, Any]) -> list[dict[str, Any]]:
    path = task.subtitle_folder("longvideobench") / doc["subtitle_path"]
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise EvaluationError(
            f"{path}: subtitle file not found; put it there or name the folder: "
            "AKS_LONGVIDEOBENCH_SUBTITLES=..."
        ) from None
    except ValueError:
        raise EvaluationError(f"{path}: not JSON; fetch the data set's subtitles again") from None
