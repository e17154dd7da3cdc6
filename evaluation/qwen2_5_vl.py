"""Qwen2.5-VL (lmms-eval's ``qwen2_5_vl``, run with ``--force_simple``) on selected keyframes."""

from __future__ import annotations

from lmms_eval.models.simple.qwen2_5_vl import Qwen2_5_VL

from evaluation.qwen2_vl import QwenKeyframes


class Qwen2p5VL(QwenKeyframes, Qwen2_5_VL):
    """``use_topk=True`` shows the keyframes; otherwise exactly upstream's uniform frames."""
