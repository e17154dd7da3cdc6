"""Qwen2-VL (lmms-eval's ``qwen2_vl``) on selected keyframes; everything but the frames is upstream's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import decord
import numpy as np
from lmms_eval.models.simple.qwen2_vl import Qwen2_VL

from evaluation.frame_policy import EvaluationError, question_id
from evaluation.keyframe_mixin import KeyframeMixin
from evaluation.qwen2_load_video import KeyframePath, wrap_readers


class QwenKeyframes(KeyframeMixin):
    """What the Qwen models share: paths that carry frame numbers, and a count of the videos really read."""

    frames_argument = "max_num_frames"
    patch_size = 14
    endings: tuple[str, ...] = (".mp4", ".avi", ".mov")  # of the files that upstream reads

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Upstream's arguments and ours."""
        wrap_readers()
        self._expected: list[KeyframePath] = []
        super().__init__(*args, **kwargs)

    def reads(self, path: str) -> bool:
        """Whether upstream reads a file of this name; it passes over others and answers without the video."""
        return path.endswith(self.endings)

    def check_video(self, path: str, numbers: np.ndarray | None) -> str | None:
        """As for every model, and its name."""
        if not self.reads(path):
            return (
                f"{path}: lmms-eval's {type(self).__name__} reads only {', '.join(self.endings)}; convert it"
            )
        return super().check_video(path, numbers)

    def wrap_visuals(self, doc: Mapping[str, Any], visuals: list[Any]) -> list[Any]:
        """Paths with the document's frames; pictures as they are."""
        return [self._with_frames(visual, doc) if isinstance(visual, str) else visual for visual in visuals]

    def _with_frames(self, path: str, doc: Mapping[str, Any]) -> KeyframePath:
        video = KeyframePath(path)
        video.doc, video.patch_size = doc, self.patch_size
        video.frame_indices = self.showing.keyframes(doc)
        video.refill = self.showing.budget if self.showing.refills(doc) else None
        self._expected.append(video)
        video.taken = lambda: self._forget(video)
        return video

    def _forget(self, video: KeyframePath) -> None:
        # By identity: two questions about one video are equal as texts.
        self._expected = [other for other in self._expected if other is not video]

    def _ask(self, requests: list[Any]) -> list[Any]:
        try:
            return super()._ask(requests)
        except decord.DECORDError as error:  # upstream opens every video itself first
            video, reason = self._expected[-1], str(error).strip().splitlines()[0]
        raise EvaluationError(
            f"question {question_id(video.doc)}: {video}: cannot be opened by lmms-eval's decord: {reason}; "
            "convert it to H.264"
        )

    def after_generate(self, count: int) -> None:
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
