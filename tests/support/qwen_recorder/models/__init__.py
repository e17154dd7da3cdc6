"""Records every generation in this process; brings no model itself."""

import os
from pathlib import Path

import torch
from transformers import GenerationMixin

import qwen_recorder

AVAILABLE_MODELS: dict[str, str] = {}


def keep(call: qwen_recorder.Call) -> None:
    folder = Path(os.environ["AKS_RECORDED_CALLS"])
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(vars(call), folder / f"{len(list(folder.iterdir())):04}.pt")


GenerationMixin.generate = qwen_recorder.recording(keep)
if "AKS_TESTS_STAY_ON_CPU" in os.environ:
    qwen_recorder.stay_on_cpu()
