"""Qwen3-VL (lmms-eval's ``qwen3_vl``, run with ``--force_simple``) on selected keyframes.

It needs transformers 4.57 or newer in an environment of its own; the pinned version has no Qwen3-VL. The
prompt tells the frames' times, which come from the true indices in the metadata.
"""

from __future__ import annotations

from lmms_eval.models.simple.qwen3_vl import Qwen3_VL

from evaluation.qwen2_vl import QwenKeyframes


class Qwen3VL(QwenKeyframes, Qwen3_VL):
    """``use_topk=True`` shows the keyframes; otherwise exactly upstream's uniform frames."""

    patch_size = 16
    rule_arguments = ("fps", "total_pixels")
    extensions = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpeg", ".mpg")

    def reads(self, path: str) -> bool:
        """Whether upstream reads a file of this name, in capital or small letters."""
        return path.lower().endswith(self.extensions)
