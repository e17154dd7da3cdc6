"""Qwen2-VL (lmms-eval's ``qwen2_vl``) on selected keyframes; everything but the frames is upstream's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import decord
import numpy as np
from lmms_eval.models.simple.qwen2_vl import Qwen2_VL

from evaluation.frame_policy import EvaluationError, question_id
from evaluation.keyframe_mixin import MAX_PROBLEMS, KeyframeMixin
from evaluation.qwen2_load_video import KeyframePath, wrap_readers


class QwenKeyframes(KeyframeMixin):
    """What the Qwen models share: paths that carry frame indices, and a list of the videos not yet read."""

    frames_argument = "max_num_frames"
    patch_size = 14  # side of an image patch in pixels
    extensions: tuple[str, ...] = (".mp4", ".avi", ".mov")  # of the files that upstream reads

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take upstream's arguments and ours."""
        wrap_readers()
        self._unread: list[KeyframePath] = []
        super().__init__(*args, **kwargs)

    def reads(self, path: str) -> bool:
        """Whether upstream reads a file of this name; it skips others and answers without the video."""
        return path.endswith(self.extensions)

    def check_video(self, path: str, frame_indices: np.ndarray | None) -> str | None:
        """What is wrong with a video or its name before it is decoded, or None."""
        if not self.reads(path):
            extensions = ", ".join(self.extensions)
            return f"{path}: lmms-eval's {type(self).__name__} reads only {extensions}; convert it"
        return super().check_video(path, frame_indices)

    def wrap_visuals(self, doc: Mapping[str, Any], visuals: list[Any]) -> list[Any]:
        """Paths with the document's frames; pictures as they are."""
        return [self._with_frames(visual, doc) if isinstance(visual, str) else visual for visual in visuals]

    def _with_frames(self, path: str, doc: Mapping[str, Any]) -> KeyframePath:
        video = KeyframePath(path)
        video.doc, video.patch_size = doc, self.patch_size
        video.frame_indices = self.policy.keyframes(doc)
        video.uniform_count = self.policy.budget if self.policy.uses_uniform_fallback(doc) else None

        def mark_read() -> None:
            # By identity, because the paths of two questions about one video are equal.
            self._unread = [other for other in self._unread if other is not video]

        video.on_read = mark_read
        self._unread.append(video)
        return video

    def _ask_upstream(self, requests: list[Any]) -> list[Any]:
        try:
            return super()._ask_upstream(requests)
        except decord.DECORDError as error:  # upstream opens every video itself first
            video, reason = self._unread[-1], str(error).strip().splitlines()[0]
        raise EvaluationError(
            f"{video}: cannot be opened by lmms-eval's decord: {reason}; convert it to H.264", video.doc
        )

    def after_generate(self, count: int) -> None:
        """Refuse a score where upstream logged that it cannot open a video and answered without it.

        Raises:
            EvaluationError: naming the videos that were not shown.
        """
        if self._unread:
            unread = [f"question {question_id(video.doc)}: {video}" for video in self._unread[:MAX_PROBLEMS]]
            raise EvaluationError(
                f"{len(self._unread)} of {count} questions were answered without their video, which could "
                f"not be opened: {'; '.join(unread)}"
            )


class Qwen2VL(QwenKeyframes, Qwen2_VL):
    """``use_topk=True`` shows the keyframes; otherwise exactly upstream's uniform frames."""
