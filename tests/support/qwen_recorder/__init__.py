"""Records what reaches a Qwen model: the inputs of every ``generate``.

As a second plug-in (``LMMS_EVAL_PLUGINS=evaluation,qwen_recorder``) it writes the calls into the folder
named by ``AKS_RECORDED_CALLS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BatchFeature, GenerationMixin


@dataclass
class Call:
    """One ``model.generate``.

    Attributes:
        inputs: its arguments: the prompt's token ids, the patches of videos and pictures, their grids.
        answer: the token ids that came back, prompt included, (1, length).
    """

    inputs: dict[str, Any]
    answer: torch.Tensor


def recording(keep: Callable[[Call], None]) -> Callable[..., torch.Tensor]:
    """``GenerationMixin.generate``, but ``keep`` gets every call."""
    generate = GenerationMixin.generate

    def recorded(model: torch.nn.Module, **inputs: Any) -> torch.Tensor:
        answer = generate(model, **inputs)
        keep(Call(dict(inputs), answer))
        return answer

    return recorded


def stay_on_cpu() -> None:
    """Let inputs that a class moves to "cuda" stay where they are, on a machine without GPUs.

    lmms-eval 0.3.0's Qwen2-VL does so whatever the device of its model.
    """
    move = BatchFeature.to

    def to(self: BatchFeature, *arguments: Any, **options: Any) -> BatchFeature:
        return move(self, *("cpu" if argument == "cuda" else argument for argument in arguments), **options)

    if not torch.cuda.is_available():
        BatchFeature.to = to
