"""Qwen's video models for the tests: small random checkpoints, and what a model was shown."""

from __future__ import annotations

import functools
import gc
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from evaluation_setup import ROOT, read_frame_indices, write_byte_tokenizer
from model_setup import _byte_letters, drawing, randomise
from qwen_recorder import Call, recording
from qwen_vl_utils import vision_process
from tokenizers.decoders import ByteLevel
from transformers import GenerationMixin

SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
VOCABULARY = [*map(chr, _byte_letters()), *SPECIAL_TOKENS]
IDS = {token: VOCABULARY.index(token) for token in SPECIAL_TOKENS}
# What the published templates make of text, images and videos, without tools and numbering.
CHAT_TEMPLATE = """\
{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}\
{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>\
{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>\
{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
TEXT = {"vocab_size": len(VOCABULARY), "hidden_size": 32, "intermediate_size": 64, **LAYERS}
MROPE = {"rope_type": "default", "type": "mrope", "mrope_section": [2, 3, 3]}
TOKENS = {
    "bos_token_id": IDS["<|endoftext|>"],
    "eos_token_id": IDS["<|im_end|>"],
    "pad_token_id": IDS["<|endoftext|>"],
}
VISION_TOKENS = {
    "vision_start_token_id": IDS["<|vision_start|>"],
    "vision_end_token_id": IDS["<|vision_end|>"],
    "image_token_id": IDS["<|image_pad|>"],
    "video_token_id": IDS["<|video_pad|>"],
}


def has_qwen3() -> bool:
    """Whether transformers knows Qwen3-VL; 4.57 does, the pinned version does not."""
    return hasattr(transformers, "Qwen3VLForConditionalGeneration")


@dataclass(frozen=True)
class Qwen:
    """One of lmms-eval's Qwen models and our subclass of it.

    Attributes:
        name: ours, also of the module; lmms-eval's, but for the ending of a chat class.
        ours: our class.
        upstreams: lmms-eval's class.
        patch_size: side of an image patch in pixels.
        arguments: model arguments on a CPU.
        flags: the command's flags.
    """

    name: str
    ours: str
    upstreams: str
    patch_size: int = 14
    arguments: str = "device_map=cpu"
    flags: tuple[str, ...] = ()

    @property
    def is_chat(self) -> bool:
        return self.name.endswith("_chat")

    @property
    def checkpoint(self) -> str:
        """The name of a checkpoint's folder; a chat class runs the same as the simple one."""
        return self.name.removesuffix("_chat")

    def kind(self, upstreams: bool = False) -> type:
        """The class: ours or lmms-eval's."""
        if upstreams:
            folder = "chat" if self.is_chat else "simple"
            module = importlib.import_module(f"lmms_eval.models.{folder}.{self.checkpoint}")
            return getattr(module, self.upstreams)
        return getattr(importlib.import_module(f"evaluation.{self.name}"), self.ours)

    def create(self, checkpoint: Path, *arguments: str, upstreams: bool = False) -> Any:
        """The model, made of an argument string as lmms-eval makes it."""
        text = ",".join([f"pretrained={checkpoint}", self.arguments, *arguments])
        return self.kind(upstreams).create_from_arg_string(text, {"batch_size": "1", "device": "cpu"})


QWEN2 = Qwen("qwen2_vl", "Qwen2VL", "Qwen2_VL")
# By default the two enlarge frames to 256 tokens; with min_pixels small frames stay small.
QWEN2_5 = Qwen(
    "qwen2_5_vl", "Qwen2p5VL", "Qwen2_5_VL", 14, "device_map=cpu,min_pixels=3136", ("--force_simple",)
)
QWEN3 = Qwen("qwen3_vl", "Qwen3VL", "Qwen3_VL", 16, "device_map=cpu,min_pixels=3136", ("--force_simple",))
QWEN2_5_CHAT = replace(QWEN2_5, name="qwen2_5_vl_chat", ours="Qwen2p5VLChat", flags=())

_SMALL = {"depth": 2, "hidden_size": 32, "num_heads": 2}
# Of each checkpoint: how its classes in transformers begin; sizes of two small layers of text and of vision.
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "qwen2_vl": ("Qwen2VL", {"rope_scaling": MROPE}, {**_SMALL, "embed_dim": 32, "mlp_ratio": 2}),
    "qwen2_5_vl": (
        "Qwen2_5_VL",
        {"rope_scaling": MROPE},
        {**_SMALL, "intermediate_size": 64, "out_hidden_size": 32, "fullatt_block_indexes": [1]},
    ),
    "qwen3_vl": (
        "Qwen3VL",
        {"head_dim": 16, "rope_scaling": {"rope_type": "default", "mrope_section": [2, 3, 3]}},
        {
            **_SMALL, "intermediate_size": 64, "out_hidden_size": 32,
            "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
        },
    ),
}  # fmt: skip


def write_checkpoint(
    folder: Path,
    qwen: Qwen,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Path:
    """A random model with the real processor classes and a token a byte.

    Args:
        folder: is made.
        qwen: which model.
        text: sizes of the language model; two small layers by default.
        vision: sizes of the vision tower, likewise.
        device: where the weights are drawn.
        dtype: theirs.
    """
    folder.mkdir(parents=True)
    write_tokenizer(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prefix, small_text, small_vision = KINDS[qwen.checkpoint]
    text = {**TEXT, **TOKENS, **(text or small_text)}
    sizes = {"text_config": text} if qwen is QWEN3 else text
    config = getattr(transformers, f"{prefix}Config")(
        **sizes, **VISION_TOKENS, vision_config=vision or small_vision
    )
    with drawing(device, dtype):
        model = getattr(transformers, f"{prefix}ForConditionalGeneration")(config)
    processors = {"image_processor": transformers.Qwen2VLImageProcessor(patch_size=qwen.patch_size)}
    if qwen is QWEN3:
        processors["video_processor"] = transformers.Qwen3VLVideoProcessor()
    elif has_qwen3():  # so new a transformers has separate processors for videos
        processors["video_processor"] = transformers.Qwen2VLVideoProcessor()
    processor = getattr(transformers, f"{prefix}Processor")(
        **processors, tokenizer=tokenizer, chat_template=CHAT_TEMPLATE
    )
    randomise(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


write_tokenizer = functools.partial(write_byte_tokenizer, special_tokens=SPECIAL_TOKENS)


@contextmanager
def recorded(generate: Callable[..., torch.Tensor] | None = None) -> Iterator[list[Call]]:
    """Collect the calls of every model's ``generate`` in the block; ``generate`` replaces it, if given."""
    calls: list[Call] = []
    with pytest.MonkeyPatch.context() as patch:
        if generate is not None:
            patch.setattr(GenerationMixin, "generate", generate)
        patch.setattr(GenerationMixin, "generate", recording(calls.append))
        yield calls


def answer_nothing(model: torch.nn.Module, **inputs: Any) -> torch.Tensor:
    """A ``generate`` that ends at once, for inputs too large to be computed in a test."""
    end = torch.tensor([[IDS["<|im_end|>"]]])
    return torch.cat([inputs["input_ids"], end], dim=1)


def evaluate(model: Any, name: str, task: str) -> dict[str, Any]:
    """An evaluation of one task, or several with commas, in this process by lmms-eval's own evaluator."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    tasks = TaskManager("ERROR", include_path=str(ROOT / "datasets"), include_defaults=False, model_name=name)
    gc.freeze()  # lmms-eval collects garbage at its end, slowly among a million objects of imported modules
    try:
        return simple_evaluate(model, tasks=task.split(","), task_manager=tasks, batch_size=1)
    finally:
        gc.unfreeze()


def prompt_of(call: Call) -> str:
    """The text that a model was given, special tokens by name."""
    tokens = call.inputs["input_ids"][0].tolist()
    return ByteLevel().decode([VOCABULARY[token] for token in tokens])


def question_of(call: Call) -> int:
    """Which question of ``evaluation_setup``'s label files a call asks."""
    return int(prompt_of(call).split("What is shown in part ")[1].split("?")[0])


def video_of(call: Call, patch_size: int = 14) -> torch.Tensor:
    """The video that reached a model, put together from its patches, (n, 3, height, width)."""
    ((pairs, rows, columns),) = call.inputs["video_grid_thw"].tolist()
    return _unpatched(call.inputs["pixel_values_videos"], pairs, rows, columns, patch_size)


def images_of(call: Call, patch_size: int = 14) -> list[torch.Tensor]:
    """The images that reached a model, (3, height, width) each."""
    grids = call.inputs["image_grid_thw"]
    parts = call.inputs["pixel_values"].split(grids.prod(dim=1).tolist())
    return [_unpatched(part, *grid, patch_size)[0] for part, grid in zip(parts, grids.tolist(), strict=True)]


def _unpatched(patches: torch.Tensor, pairs: int, rows: int, columns: int, size: int) -> torch.Tensor:
    # A patch is two frames deep; patches come in squares of two by two, which the model merges.
    blocks = patches.float().reshape(pairs, rows // 2, columns // 2, 2, 2, 3, 2, size, size)
    frames = blocks.permute(0, 6, 5, 1, 3, 7, 2, 4, 8)
    return frames.reshape(2 * pairs, 3, rows * size, columns * size)


def frames_of(call: Call, patch_size: int = 14) -> list[int]:
    """The indices of the frames that a model was shown; it takes them in pairs, so an odd last one twice."""
    return read_frame_indices(video_of(call, patch_size))


def in_pairs(frame_indices: list[int]) -> list[int]:
    """Frame indices as a model is shown them: an odd last one twice."""
    return frame_indices + frame_indices[len(frame_indices) - len(frame_indices) % 2 :]


def upstream_readers() -> dict[str, Callable[..., Any]]:
    """qwen-vl-utils' own readers, unwrapped if they are wrapped."""
    return {
        name: getattr(reader, "args", (reader,))[0]
        for name, reader in vision_process.VIDEO_READER_BACKENDS.items()
    }
