"""LLaVA for the tests: small random checkpoints, and lmms-eval's two models over them.

They run on LLaVA-NeXT where it is installed, or its folder is on PYTHONPATH, and on transformers elsewhere.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_setup import ROOT, read_frame_indices, write_byte_tokenizer
from llava_recorder import Call, attach
from model_setup import randomise
from safetensors.torch import save_file
from transformers import (
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
    StoppingCriteria,
)

from evaluation.llava_implementation import NEXT, choose

TESTS = Path(__file__).resolve().parent
TOWER = "aks-tests/siglip-tiny-patch14-384"  # a hub name, so that LLaVA-NeXT takes its SigLIP class
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAVA_NEXT = choose() == NEXT
# The tower's sizes, SigLIP's last layer included, which LLaVA leaves out.
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "image_size": 384,
    "patch_size": 14,
}
CONFIG = {
    "architectures": ["LlavaQwenForCausalLM"],
    "model_type": "llava_qwen",
    "vocab_size": 256 + len(SPECIAL_TOKENS) + 5,  # a few more than tokens, as in the published checkpoints
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "bos_token_id": 256,
    "eos_token_id": 258,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    # As in the published checkpoints, except for the tower's name and size.
    "mm_vision_tower": TOWER,
    "vision_config": VISION,
    "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
    "mm_hidden_size": 16,
    "mm_projector_type": "mlp2x_gelu",
    "mm_patch_merge_type": "spatial_unpad",
    "mm_newline_position": "grid",
    "mm_spatial_pool_mode": "bilinear",
    "mm_spatial_pool_stride": 2,
    "mm_resampler_type": None,
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "mm_vision_select_layer": -2,
    "use_mm_proj": True,
    "add_faster_video": False,
    "image_aspect_ratio": "anyres_max_9",
    "image_grid_pinpoints": [[384 * i, 384 * j] for i in range(1, 7) for j in range(1, 7)],
    "tokenizer_model_max_length": 32768,
    "tokenizer_padding_side": "right",
}
# The published checkpoints' entries; a quarter of all tokens end an answer, so that the tests are quick.
GENERATION = {
    "attn_implementation": "flash_attention_2",
    "bos_token_id": 256,
    "pad_token_id": 256,
    "do_sample": True,
    "eos_token_id": [258, *range(0, 256, 4)],
    "repetition_penalty": 1.05,
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.8,
}


def write_checkpoint(
    folder: Path, hub: Path | None = None, device: str = "cpu", tokens: int = 0, **entries: Any
) -> Path:
    """A random LLaVA of two small layers over Qwen2, in two shards, in bfloat16.

    Args:
        folder: is made.
        hub: a cache of the model hub, for LLaVA-NeXT, which reads the tower's sizes there.
        device: where the weights are drawn.
        tokens: the tokenizer's, at least; the model's vocabulary is cut to them.
        entries: replace those of ``config.json``.
    """
    from evaluation.llava_on_transformers.checkpoint import build_model

    folder.mkdir(parents=True)
    config = {**CONFIG, **entries}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    write_byte_tokenizer(folder, SPECIAL_TOKENS, tokens)
    model = build_model(folder, config, "sdpa", "eager").to_empty(device=device)
    randomise(model)
    with torch.no_grad():
        model.model.image_newline += torch.linspace(-1, 1, config["hidden_size"], device=device)
    norm = "model.vision_tower.vision_tower.vision_model.post_layernorm."  # published, and not used
    width = config["vision_config"]["hidden_size"]
    state = {**model.state_dict(), f"{norm}weight": torch.ones(width), f"{norm}bias": torch.ones(width)}
    names, index = sorted(state), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        tensors = {name: state[name].to(torch.bfloat16).contiguous() for name in part}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    if hub is not None and LLAVA_NEXT and not hub.exists():
        cached = hub / ("models--" + TOWER.replace("/", "--"))
        snapshot = cached / "snapshots" / ("0" * 40)
        (cached / "refs").mkdir(parents=True)
        (cached / "refs/main").write_text(snapshot.name)
        SiglipVisionModel(SiglipVisionConfig(**VISION)).save_pretrained(snapshot)
    return folder


@contextmanager
def offline(hub: Path, datasets_cache: Path) -> Iterator[None]:
    """Let this process read the hub's files from ``hub`` alone and keep data sets in ``datasets_cache``."""
    import datasets.config
    import huggingface_hub.constants
    import transformers.utils.hub

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.utils.hub, "TRANSFORMERS_CACHE", str(hub), raising=False)
        patch.setattr(transformers.utils.hub, "_is_offline_mode", True, raising=False)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", datasets_cache)
        patch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
        yield


@dataclass(frozen=True)
class Llava:
    """One of lmms-eval's LLaVA models and our subclass of it.

    Attributes:
        name: lmms-eval's.
        ours: our class.
        upstreams: lmms-eval's class.
        arguments: model arguments, as evaluation/run.py gives them on a CPU.
    """

    name: str
    ours: str
    upstreams: str
    arguments: str

    def create(self, checkpoint: Path, *arguments: str, upstreams: bool = False) -> Any:
        """The model, made of an argument string as lmms-eval makes it."""
        module, name = (self.upstreams if upstreams else self.ours).rsplit(".", 1)
        kind = getattr(importlib.import_module(module), name)
        # The default, eager, is what test_llava_on_transformers.py tests; this one takes half the time.
        quick = [] if LLAVA_NEXT or upstreams else ["tower_attention=sdpa"]
        text = ",".join([f"pretrained={checkpoint}", self.arguments, *quick, *arguments])
        return kind.create_from_arg_string(text, {"batch_size": "1", "device": "cpu"})


LLAVAS = [
    Llava(
        "llava_vid",
        "evaluation.llava_vid.LlavaVid",
        "lmms_eval.models.simple.llava_vid.LlavaVid",
        "conv_template=chatml_direct,torch_dtype=bfloat16,device_map=auto,overwrite=False",
    ),
    Llava(
        "llava_onevision",
        "evaluation.llava_onevision.LlavaOneVision",
        "lmms_eval.models.simple.llava_onevision.Llava_OneVision",
        "device_map=auto",
    ),
]


class Evaluation:
    """One evaluation in this process, by lmms-eval's own evaluator, and what reached the model in it.

    Attributes:
        model: lmms-eval's.
        calls: every ``generate``, in their order.
        results: what the evaluator returned.
    """

    def __init__(self, model: Any, name: str) -> None:
        self.model, self.name = model, name
        self.calls: list[Call] = []
        self.results: dict[str, Any] = {}
        attach(model.model, model._image_processor, self.calls.append)

    def run(self, task: str = "longvideobench_val_v_aks") -> Evaluation:
        from lmms_eval.evaluator import simple_evaluate
        from lmms_eval.tasks import TaskManager

        tasks = TaskManager(include_path=str(ROOT / "datasets"), include_defaults=False, model_name=self.name)
        self.results = simple_evaluate(self.model, tasks=[task], task_manager=tasks, batch_size=1)
        return self

    def by_question(self) -> dict[int, Call]:
        """The calls by the question's index in the label file."""
        calls = {question_of(call, self.model.tokenizer): call for call in self.calls}
        assert len(calls) == len(self.calls), "a question was asked twice"
        return calls

    def shown(self) -> dict[int, list[int]]:
        """The indices of the frames that the model was shown, by question."""
        return {question: frames_of(call) for question, call in self.by_question().items()}


def question_of(call: Call, tokenizer: Any) -> int:
    """Which question of ``evaluation_setup``'s label files a call asks."""
    return int(text_of(call, tokenizer).split("What is shown in part ")[1].split("?")[0])


def text_of(call: Call, tokenizer: Any) -> str:
    """A call's prompt, with <image> where the video or a picture goes."""
    tokens = call.prompt.tolist()
    return "".join("<image>" if token < 0 else tokenizer.decode([token]) for token in tokens)


def frames_of(call: Call) -> list[int]:
    """The indices of the frames in the one tensor that a model was shown as a video."""
    (video,) = call.videos
    assert call.modalities in ("video", ["video"])
    assert video.ndim == 4 and video.shape[1] == 3
    frame_indices = read_frame_indices(video)
    assert read_frame_indices(call.pixels) == frame_indices
    return frame_indices


def force_tokens(tokens: list[int]) -> Callable[[StoppingCriteria], list[int]]:
    """A function that generates these tokens with a real model, as far as a stopping criterion lets it.

    It generates from embeddings, as LLaVA-NeXT does, so that a criterion sees the new tokens only.
    """
    config = Qwen2Config(
        vocab_size=256 + len(SPECIAL_TOKENS), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    prompt = torch.zeros(1, 30, config.hidden_size)

    def force_next(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, tokens[input_ids.shape[1]]] = 0
        return forced

    def generate(criterion: StoppingCriteria) -> list[int]:
        return model.generate(
            inputs_embeds=prompt,
            attention_mask=torch.ones(prompt.shape[:2], dtype=torch.long),
            pad_token_id=256,
            do_sample=False,
            max_new_tokens=len(tokens),
            logits_processor=[force_next],
            stopping_criteria=[criterion],
        )[0].tolist()

    return generate


def use_labels(patch: pytest.MonkeyPatch, dataset: str, labels: Path, videos: Path) -> None:
    """Set the environment variables that tell the tasks where things are."""
    patch.setenv(f"AKS_{dataset.upper()}_LABELS", str(labels))
    patch.setenv(f"AKS_{dataset.upper()}_VIDEOS", str(videos))


os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
