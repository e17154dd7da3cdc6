"""Qwen2.5-VL by lmms-eval's chat class, which it runs by default, on selected keyframes."""

from __future__ import annotations

from evaluation.chat import ChatKeyframes
from evaluation.qwen2_vl import QwenKeyframes
from evaluation.upstream import import_model


class Qwen2p5VLChat(ChatKeyframes, QwenKeyframes, import_model("qwen2_5_vl", "chat").Qwen2_5_VL):
    """``use_topk=True`` shows the keyframes; otherwise exactly upstream's uniform frames."""

    rule_arguments = ("fps",)

    def reads(self, path: str) -> bool:
        """Upstream reads files of every name."""
        return True
