"""Checks before an evaluation starts: a checkpoint that the GPUs cannot hold, or LLaVA cannot run."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from aks import UserError
from evaluation import llava_implementation, preflight


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


@pytest.mark.parametrize(
    ("model", "model_type", "fits"),
    [
        ("qwen2_5_vl", "qwen2_5_vl", True),
        ("qwen2_5_vl_chat", "qwen2_5_vl", True),
        ("qwen2_5_vl_chat", "qwen2_vl", False),
        ("qwen3_vl", "qwen3_vl_moe", True),
        ("internvl3_5", "internvl", True),
        ("internvl3_5", "internvl_chat", False),
    ],
)
def test_a_checkpoint_of_another_model_is_named(tmp_path, model, model_type, fits):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    expected = f"{tmp_path}: holds a {model_type} model, {model} needs "
    problems = preflight.check_checkpoint(model, str(tmp_path), gpus=0)
    assert [problem[: len(expected)] for problem in problems] == ([] if fits else [expected])


LLAVA_VIDEO = {  # what of the published configuration is looked at
    "model_type": "llava",
    "architectures": ["LlavaQwenForCausalLM"],
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
    "mm_projector_type": "mlp2x_gelu",
    "mm_patch_merge_type": "spatial_unpad",
    "mm_newline_position": "grid",
    "mm_spatial_pool_mode": "bilinear",
}


@pytest.mark.parametrize(
    ("implementation", "entries", "expected"),
    [
        ("transformers", {}, None),
        ("next", {}, None),
        ("transformers", {"mm_vision_tower": "{folder}"}, None),
        ("next", {"mm_vision_tower": "{folder}"}, "exists as a folder; LLaVA-NeXT then takes the CLIP class"),
        ("next", {"mm_projector_type": "linear"}, None),
        ("transformers", {"mm_projector_type": "linear"}, "mm_projector_type is 'linear'; only 'mlp2x_gelu'"),
    ],
)
def test_llavas_configuration_is_checked_for_what_will_run_it(
    monkeypatch, tmp_path, implementation, entries, expected
):
    folder = tmp_path / "siglip-so400m-patch14-384"
    folder.mkdir()
    config = LLAVA_VIDEO | {name: value.format(folder=folder) for name, value in entries.items()}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(preflight, "choose", lambda: implementation)
    problems = preflight.check_checkpoint("llava_vid", str(folder), gpus=0)
    assert len(problems) == (expected is not None)
    assert expected is None or expected in problems[0]


@pytest.mark.parametrize(
    ("asked", "installed", "expected"),
    [
        ("", False, "transformers"),
        ("", True, "next"),
        ("transformers", True, "transformers"),
        ("next", True, "next"),
        ("next", False, "LLAVA=next: LLaVA-NeXT's package llava is not installed; run: pip install"),
        ("both", True, "LLAVA=both: use next or transformers"),
    ],
)
def test_the_variable_chooses_the_implementation(monkeypatch, tmp_path, asked, installed, expected):
    (tmp_path / "llava/model").mkdir(parents=True)
    (tmp_path / "llava/__init__.py").touch()
    if installed:
        (tmp_path / "llava/model/builder.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "llava", raising=False)
    monkeypatch.setenv("LLAVA", asked)
    choose = llava_implementation.choose.__wrapped__  # without its cache
    if expected in ("next", "transformers"):
        assert choose() == expected
    else:
        with pytest.raises(UserError) as refused:
            choose()
        assert expected in str(refused.value)
