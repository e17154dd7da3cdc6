"""LLaVA-Video (lmms-eval's ``llava_vid``) on selected keyframes; everything but the frames is upstream's."""

from __future__ import annotations

from typing import Any

import numpy as np
from lmms_eval.models.simple import llava_vid as upstream

from evaluation.frame_policy import EvaluationError, read_frames, uniform_linspace
from evaluation.keyframe_mixin import KeyframeMixin
from evaluation.mm_utils import StopOnKeywords, model_name_for

upstream.KeywordsStoppingCriteria = StopOnKeywords


class LlavaVid(KeyframeMixin, upstream.LlavaVid):
    """``use_topk=True`` shows the keyframes; otherwise exactly upstream's uniform frames."""

    rule_arguments = ("video_fps", "force_sample")

    def __init__(self, pretrained: str, **kwargs: Any) -> None:
        """Upstream's arguments and ours; the class is chosen by the checkpoint's config, not its folder."""
        upstream.get_model_name_from_path = model_name_for
        super().__init__(pretrained=pretrained, **kwargs)

    def refuse(self, arguments: dict[str, Any]) -> None:
        """The other decode backends swallow errors or sample on their own."""
        backend = arguments.get("video_decode_backend", "decord")
        if backend != "decord":
            raise EvaluationError(f"model argument video_decode_backend={backend}: only decord is supported")
        if self.showing.use_topk and arguments.get("add_time_instruction"):
            raise EvaluationError(
                "model argument add_time_instruction=True tells the model of uniformly sampled frames; "
                "it does not go with use_topk=True"
            )

    def load_video(
        self, video_path: str, max_frames_num: int, fps: int, force_sample: bool = False
    ) -> tuple[np.ndarray, str, float]:
        """Frames (n, height, width, 3) uint8, their times as text, the video's length in seconds."""
        if self.document is None:
            raise EvaluationError("only generate_until knows which question a video is loaded for")
        numbers = self.showing.keyframes(self.document)
        if numbers is not None:
            frames, video = read_frames(video_path, numbers, self.document)
        elif self.showing.refills(self.document):
            frames, video = read_frames(
                video_path, lambda video: uniform_linspace(video.num_frames, max_frames_num), self.document
            )
        else:
            return self.load_uniform_frames(super().load_video, video_path, max_frames_num, fps, force_sample)
        times = ",".join(f"{time:.2f}s" for time in frames.times_s)
        return frames.pixels, times, video.num_frames / video.fps
