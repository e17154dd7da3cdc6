"""Qwen3-VL (lmms-eval's ``qwen3_vl``, run with ``--force_simple``) on selected keyframes.

It needs transformers 4.57 or newer (requirements-newer.txt). The prompt tells the frames' times, which come
from the true indices in the metadata. lmms-eval's chat class shows the same pixels and the same prompt.
"""

from __future__ import annotations

from typing import Any

from evaluation.qwen2_vl import QwenKeyframes
from evaluation.upstream import import_model

Upstream = import_model("qwen3_vl").Qwen3_VL


class Qwen3VL(QwenKeyframes, Upstream):
    """``use_topk=True`` shows the keyframes; otherwise exactly upstream's uniform frames."""

    patch_size = 16
    prefetches = hasattr(Upstream, "_preprocess_chunk")  # older versions do not
    rule_arguments = ("fps", "total_pixels")
    extensions = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpeg", ".mpg")

    def reads(self, path: str) -> bool:
        """Whether upstream reads a file of this name, in capital or small letters."""
        return path.lower().endswith(self.extensions)

    def _preprocess_chunk(self, chunk: Any) -> Any:
        """What upstream's thread loads while the question before is answered."""
        inputs = super()._preprocess_chunk(chunk)
        self.tracker.loaded()
        return inputs
