"""LLaVA-OneVision (lmms-eval's ``llava_onevision``) on selected keyframes; the rest is upstream's."""

from __future__ import annotations

if __name__.startswith("lmms_eval."):
    raise SystemExit(
        f"error: {__file__} is a file of Adaptive Keyframe Sampling; it does not replace lmms-eval's. "
        "Get that back (git checkout, or pip install --force-reinstall --no-deps lmms-eval==VERSION), then "
        "run evaluation/swap_in.py install in the project"
    )

from typing import Any

import numpy as np

from evaluation.frame_policy import read_frames
from evaluation.llava_implementation import import_upstream
from evaluation.llava_keyframes import LlavaKeyframes
from evaluation.mm_utils import StopOnKeywords, model_name_for

upstream = import_upstream("llava_onevision")
upstream.KeywordsStoppingCriteria = StopOnKeywords


class LlavaOneVision(LlavaKeyframes, upstream.Llava_OneVision):
    """``use_topk=True`` shows the keyframes; otherwise exactly upstream's uniform frames."""

    upstream = upstream

    def __init__(self, pretrained: str, **kwargs: Any) -> None:
        """Take upstream's arguments and ours; the checkpoint's config tells the class, not its folder."""
        kwargs.setdefault("model_name", model_name_for(pretrained))
        kwargs.setdefault("conv_template", "qwen_1_5")  # older versions of lmms-eval have another default
        super().__init__(pretrained=pretrained, **kwargs)

    def load_video(self, video_path: str | list[str], max_frames_num: int) -> np.ndarray:
        """Frames (n, height, width, 3) uint8."""
        path = video_path if isinstance(video_path, str) else video_path[0]
        keyframes = self.policy.keyframes(self.document)
        if keyframes is None:  # upstream's uniform rule is also the released code's for short selections
            return self.load_uniform_frames(super().load_video, path, max_frames_num)
        frames, _ = read_frames(path, keyframes, self.document)
        return frames.pixels
