"""LLaVA-Video (lmms-eval's ``llava_vid``) on selected keyframes; everything but the frames is upstream's."""

from __future__ import annotations

if __name__.startswith("lmms_eval."):
    raise SystemExit(
        f"error: {__file__} is a file of Adaptive Keyframe Sampling; it does not replace lmms-eval's. "
        "Get that back (git checkout, or pip install --force-reinstall --no-deps lmms-eval==VERSION), then "
        "run evaluation/swap_in.py install in the project"
    )

from typing import Any

import numpy as np

from evaluation.errors import EvaluationError
from evaluation.frame_policy import read_frames
from evaluation.llava_implementation import import_upstream
from evaluation.llava_keyframes import LlavaKeyframes
from evaluation.mm_utils import StopOnKeywords, model_name_for

upstream = import_upstream("llava_vid")
upstream.KeywordsStoppingCriteria = StopOnKeywords


class LlavaVid(LlavaKeyframes, upstream.LlavaVid):
    """``use_topk=True`` shows the keyframes; otherwise exactly upstream's uniform frames."""

    upstream = upstream
    rule_arguments = ("video_fps", "force_sample")

    def __init__(self, pretrained: str, **kwargs: Any) -> None:
        """Take upstream's arguments and ours; the checkpoint's config tells the class, not its folder."""
        upstream.get_model_name_from_path = model_name_for
        super().__init__(pretrained=pretrained, **kwargs)

    def validate_model_args(self, arguments: dict[str, Any]) -> None:
        """Refuse untrue prompts, and what LlavaKeyframes refuses."""
        super().validate_model_args(arguments)
        if self.policy.use_topk and arguments.get("add_time_instruction"):
            raise EvaluationError(
                "model argument add_time_instruction=True tells the model of uniformly sampled frames; "
                "it does not go with use_topk=True"
            )

    def load_video(
        self, video_path: str, max_frames_num: int, fps: int, force_sample: bool = False
    ) -> tuple[np.ndarray, str, float]:
        """Frames (n, height, width, 3) uint8, their times as text, the video's length in seconds."""
        shown = self.policy.frames_to_read(self.document)
        if shown is None:
            return self.load_uniform_frames(super().load_video, video_path, max_frames_num, fps, force_sample)
        frames, video = read_frames(video_path, shown, self.document)
        times = ",".join(f"{time_s:.2f}s" for time_s in frames.times_s)
        return frames.pixels, times, video.num_frames / video.fps
