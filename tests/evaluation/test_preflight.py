"""Checks before an evaluation starts: a checkpoint that the machine's GPUs cannot hold."""

from __future__ import annotations

import json

import pytest
import torch

from evaluation import preflight


@pytest.mark.parametrize(
    ("gibibytes", "fits"), [((24, 12.1), True), ((24, 11.9), False), ((11.9, 24), False)]
)
def test_weights_need_a_fifth_more_memory_than_their_size_on_every_gpu(
    monkeypatch, tmp_path, gibibytes, fits
):
    class Device:
        def __init__(self, index: int) -> None:
            self.total_memory = int(gibibytes[index] * 2**30)

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    for index in range(2):
        with (tmp_path / f"model-{index}.safetensors").open("wb") as file:
            file.truncate(5 * 2**30)  # a sparse file
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", Device)
    problems = preflight.check_checkpoint("qwen2_vl", str(tmp_path), gpus=2)
    expected = f"{tmp_path}: 10 GiB of weights need 12 GiB on each GPU, the smallest has 12; use a larger one"
    assert problems == ([] if fits else [expected])
    assert preflight.check_checkpoint("qwen2_vl", str(tmp_path), gpus=0) == []
