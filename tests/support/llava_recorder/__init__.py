"""Records what lmms-eval hands to a LLaVA model, on LLaVA-NeXT or on transformers.

As a second plug-in (``LMMS_EVAL_PLUGINS=evaluation,llava_recorder``) it writes the calls into the folder
named by ``AKS_RECORDED_CALLS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass
class Call:
    """One ``model.generate``.

    Attributes:
        pixels: what the image processor was given, (n, height, width, 3) uint8.
        videos: the tensors given to ``generate``, (n, 3, height, width) each.
        prompt: the prompt's token ids, (length,).
        modalities: as given.
        stopping: the classes of the stopping criteria.
        others: the other arguments.
        answer: the new tokens' ids.
    """

    pixels: np.ndarray
    videos: list[torch.Tensor]
    prompt: torch.Tensor
    modalities: Any
    stopping: list[str]
    others: dict[str, Any]
    answer: list[int]


def attach(model: torch.nn.Module, image_processor: Any, keep: Callable[[Call], None]) -> None:
    """Let ``keep`` get every later call of this model."""
    preprocess, generate = image_processor.preprocess, model.generate
    seen: list[np.ndarray] = []

    def recording_preprocess(images, *arguments, **options):
        seen[:] = [np.array(images)]
        return preprocess(images, *arguments, **options)

    def recording_generate(*positional, **arguments):
        answer = generate(*positional, **arguments)
        prompt = positional[0] if positional else arguments.pop("inputs")
        videos, modalities = arguments.pop("images"), arguments.pop("modalities", None)
        stopping = [type(criterion).__name__ for criterion in arguments.pop("stopping_criteria", [])]
        keep(Call(seen.pop(), videos, prompt[0], modalities, stopping, arguments, answer[0].tolist()))
        return answer

    image_processor.preprocess, model.generate = recording_preprocess, recording_generate
