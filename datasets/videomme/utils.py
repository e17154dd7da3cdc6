"""VideoMME on a local label file; text, subtitles, scoring and aggregation are lmms-eval's own."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if Path(__file__).resolve().parents[1].name == "tasks":
    raise SystemExit(
        f"error: {__file__} is a file of Adaptive Keyframe Sampling; it does not replace lmms-eval's. "
        "Get that back (git checkout, or pip install --force-reinstall --no-deps lmms-eval==VERSION), then "
        "run evaluation/swap_in.py install in the project"
    )
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lmms_eval.tasks.videomme.utils import (  # noqa: F401 - the yaml names them
    CATEGORIES,
    SUB_CATEGORIES,
    TASK_CATEGORIES,
    VIDEO_TYPE,
    extract_subtitles,
    videomme_aggregate_results,
    videomme_doc_to_text,
)
from lmms_eval.tasks.videomme.utils import videomme_process_results as process_results  # noqa: F401

from aks.errors import VideoError
from aks.video.reader import Video
from evaluation import task
from evaluation.errors import EvaluationError
from evaluation.frame_policy import parse_frame_idx
from evaluation.uniform import UNIFORM_RULES

CATEGORIES_BY_FIELD = {
    "duration": VIDEO_TYPE,
    "domain": CATEGORIES,
    "sub_category": SUB_CATEGORIES,
    "task_type": TASK_CATEGORIES,
}
SUBTITLE_TEXT = re.compile(r'<font color="white" size=".72c">(.*?)</font>')  # VideoMME's own .srt files
HEADING = "This video's subtitles are listed below: \n"  # upstream's
NO_SUBTITLES = "No subtitles available"  # upstream's

dataset_kwargs = task.dataset_kwargs("videomme", "test")
metadata = task.metadata("videomme")


def process_docs(dataset: Any) -> Any:
    """The label entries, checked for categories that would fail upstream's aggregation at the very end."""
    for name, known in CATEGORIES_BY_FIELD.items():
        for index, value in enumerate(dataset[name]):
            if value not in known:
                raise EvaluationError(
                    f"{task.label_file('videomme')}: entry {index}: {name} is {value!r}, which lmms-eval's "
                    f"aggregation does not know; it knows {', '.join(known)}"
                )
    return dataset


def process_docs_with_subtitles(dataset: Any) -> Any:
    """The label entries, which must say which frames their subtitles belong to."""
    return task.videomme_docs_with_subtitles(process_docs(dataset))


def doc_to_visual(doc: Mapping[str, Any]) -> list[str]:
    """The video's path; the model chooses the frames."""
    return [task.video_path("videomme", doc)]


def doc_to_text_with_subtitles(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, str]) -> str:
    """Upstream's prompt with the subtitles spoken at the frames shown.

    It ends in "The best answer is:", as in the paper and upstream.
    """
    subtitles = _subtitles(doc, lmms_eval_specific_kwargs["uniform"])
    question = videomme_doc_to_text(doc, {"post_prompt": "The best answer is:"})
    return f"{HEADING}{subtitles}\n{question}"


def _subtitles(doc: Mapping[str, Any], uniform: str) -> str:
    """Subtitle lines spoken at any of the frames shown, in the order of time, each once."""
    path = task.subtitle_folder("videomme") / (doc["videoID"] + ".srt")
    if not path.is_file():
        return NO_SUBTITLES
    video = task.video_path("videomme", doc)
    spoken, _ = extract_subtitles(video, str(path))  # (first frame, frame after the last, text)
    frame_indices = _frames_shown(doc, video, uniform)
    lines = []
    for first, end, text in spoken:
        match = SUBTITLE_TEXT.search(text)
        if match and any(first <= index < end for index in frame_indices):
            lines.append(match[1])
    return "\n".join(lines)


def _frames_shown(doc: Mapping[str, Any], path: str, uniform: str) -> list[int]:
    if doc["use_topk"]:
        return parse_frame_idx(doc).tolist()
    try:
        with Video(path) as video:
            return UNIFORM_RULES[uniform](video.num_frames, video.fps, doc["frame_num"]).tolist()
    except VideoError as error:
        raise EvaluationError(f"{path}: {error}", doc) from None
