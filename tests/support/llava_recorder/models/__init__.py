"""Records every model that LLaVA's builder loads in this process; brings no model itself."""

import os
from pathlib import Path

import torch

import llava_recorder
from evaluation.llava_implementation import provide_llava

provide_llava()

from llava.model import builder  # noqa: E402 - there is none before

AVAILABLE_MODELS: dict[str, str] = {}

load_pretrained_model = builder.load_pretrained_model


def load_and_record(*positional, **arguments):
    loaded = load_pretrained_model(*positional, **arguments)
    folder = Path(os.environ["AKS_RECORDED_CALLS"])
    folder.mkdir(parents=True, exist_ok=True)

    def keep(call: llava_recorder.Call) -> None:
        torch.save(vars(call), folder / f"{len(list(folder.iterdir())):04}.pt")

    llava_recorder.attach(loaded[1], loaded[2], keep)
    return loaded


builder.load_pretrained_model = load_and_record
if (
    not torch.cuda.is_available()
):  # versions of lmms-eval before 0.6 move pixels to "cuda" whatever the device
    torch.Tensor.cuda = lambda tensor, *_, **__: tensor
