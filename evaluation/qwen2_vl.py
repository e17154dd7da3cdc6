"""Qwen2-VL (lmms-eval's ``qwen2_vl``) on selected keyframes; everything but the frames is upstream's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmms_eval.models.simple.qwen2_vl import Qwen2_VL

from evaluation.frames import EvaluationError, question_id
from evaluation.keyframe_model import KeyframeModel
from evaluation.qwen2_load_video import VideoWithFrames, wrap_readers

READ_UPSTREAM = (".mp4", ".avi", ".mov")  # upstream passes over any other name and answers without the video


class QwenKeyframes(KeyframeModel):
    """What the Qwen models share: paths that carry frame numbers, and a count of the videos really read."""

    frames_argument = "max_num_frames"
    patch_size = 14

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Upstream's arguments and ours."""
        wrap_readers()
        self._expected: list[VideoWithFrames] = []
        super().__init__(*args, **kwargs)

    def visuals_of(self, doc: Mapping[str, Any], visuals: list[Any]) -> list[Any]:
        """Paths with the document's frames; pictures as they are."""
        return [self._with_frames(visual, doc) if isinstance(visual, str) else visual for visual in visuals]

    def _with_frames(self, path: str, doc: Mapping[str, Any]) -> VideoWithFrames:
        if not path.endswith(READ_UPSTREAM):
            raise EvaluationError(
                f"question {question_id(doc)}: {path}: lmms-eval's Qwen models read only "
                f"{', '.join(READ_UPSTREAM)} files; convert it"
            )
        video = VideoWithFrames(path)
        video.doc, video.patch_size = doc, self.patch_size
        video.numbers = self.showing.keyframes(doc)
        video.refill = self.showing.budget if self.showing.refills(doc) else None
        self._expected.append(video)
        video.taken = lambda: self._expected.remove(video)
        return video

    def after_answers(self, count: int) -> None:
        """Upstream logs a video it cannot open and answers without it: no score then.

        Raises:
            EvaluationError: naming the videos that were not shown.
        """
        if self._expected:
            missed = "; ".join(f"question {question_id(video.doc)}: {video}" for video in self._expected[:10])
            raise EvaluationError(
                f"{len(self._expected)} of {count} questions were answered without their video, which could "
                f"not be opened: {missed}"
            )


class Qwen2VL(QwenKeyframes, Qwen2_VL):
    """``use_topk=True`` shows the keyframes; otherwise exactly upstream's uniform frames."""
