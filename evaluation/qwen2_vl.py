"""Qwen2-VL (lmms-eval's ``qwen2_vl``) on selected keyframes; everything but the frames is upstream's."""

from __future__ import annotations

if __name__.startswith("lmms_eval."):
    raise SystemExit(
        f"error: {__file__} is a file of Adaptive Keyframe Sampling; it does not replace lmms-eval's. "
        "Get that back (git checkout, or pip install --force-reinstall --no-deps lmms-eval==VERSION), then "
        "run evaluation/swap_in.py install in the project"
    )

from collections.abc import Mapping
from typing import Any

import decord
import numpy as np

from aks.errors import error_message
from evaluation.frame_policy import KeyframePath
from evaluation.keyframe_mixin import KeyframeMixin
from evaluation.qwen2_load_video import wrap_readers
from evaluation.upstream import import_model


class QwenKeyframes(KeyframeMixin):
    """What the Qwen models share: paths that carry frame indices."""

    frames_argument = "max_num_frames"
    patch_size = 14  # side of an image patch in pixels
    extensions: tuple[str, ...] = (".mp4", ".avi", ".mov")  # of the files that upstream reads

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take upstream's arguments and ours."""
        wrap_readers()
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
        return [
            KeyframePath.of(visual, doc, self.policy, self.patch_size) if isinstance(visual, str) else visual
            for visual in visuals
        ]

    def explain(self, error: Exception, videos: list[str]) -> str:
        """One line about what ended upstream; it opens every video by decord, before it is read."""
        if isinstance(error, decord.DECORDError):
            reason = error_message(error)
            return f"{videos[-1]}: cannot be opened by lmms-eval's decord: {reason}; convert it to H.264"
        return super().explain(error, videos)


class Qwen2VL(QwenKeyframes, import_model("qwen2_vl").Qwen2_VL):
    """``use_topk=True`` shows the keyframes; otherwise exactly upstream's uniform frames."""
