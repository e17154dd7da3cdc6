"""Qwen2.5-VL (lmms-eval's ``qwen2_5_vl``, run with ``--force_simple``) on selected keyframes."""

from __future__ import annotations

from evaluation.qwen2_vl import QwenKeyframes
from evaluation.upstream import import_model


class Qwen2p5VL(QwenKeyframes, import_model("qwen2_5_vl").Qwen2_5_VL):
    """``use_topk=True`` shows the keyframes; otherwise exactly upstream's uniform frames."""
