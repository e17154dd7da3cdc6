"""LLaVA-OneVision (lmms-eval's ``llava_onevision``) on selected keyframes; the rest is upstream's."""

from __future__ import annotations

from typing import Any

import numpy as np
from lmms_eval.models.simple import llava_onevision as upstream

from evaluation.frame_policy import EvaluationError, read_frames
from evaluation.keyframe_mixin import KeyframeMixin
from evaluation.mm_utils import StopOnKeywords, model_name_for

upstream.KeywordsStoppingCriteria = StopOnKeywords


class LlavaOneVision(KeyframeMixin, upstream.Llava_OneVision):
    """``use_topk=True`` shows the keyframes; otherwise exactly upstream's uniform frames."""

    def __init__(self, pretrained: str, **kwargs: Any) -> None:
        """Upstream's arguments and ours; the class is chosen by the checkpoint's config, not its folder."""
        kwargs.setdefault("model_name", model_name_for(pretrained))
        super().__init__(pretrained=pretrained, **kwargs)

    def refuse(self, arguments: dict[str, Any]) -> None:
        """The other decode backend samples on its own."""
        backend = arguments.get("video_decode_backend", "decord")
        if backend != "decord":
            raise EvaluationError(f"model argument video_decode_backend={backend}: only decord is supported")

    def load_video(self, video_path: str | list[str], max_frames_num: int) -> np.ndarray:
        """Frames (n, height, width, 3) uint8."""
        if self.document is None:
            raise EvaluationError("only generate_until knows which question a video is loaded for")
        path = video_path if isinstance(video_path, str) else video_path[0]
        numbers = self.showing.keyframes(self.document)
        if numbers is None:  # upstream's uniform rule is also the released code's for short selections
            return self.load_uniform_frames(super().load_video, path, max_frames_num)
        frames, _ = read_frames(path, numbers, self.document)
        return frames.pixels
