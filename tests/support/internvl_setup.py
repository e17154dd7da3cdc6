"""InternVL3.5 for the tests: a small random checkpoint in transformers' own format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from evaluation_setup import read_frame_indices, write_byte_tokenizer
from model_setup import _byte_letters, drawing, randomise
from qwen_recorder import Call

ROLES = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *ROLES.values())
VOCABULARY = [*map(chr, _byte_letters()), *SPECIAL_TOKENS]
# What the published template makes of text, images and videos.
CHAT_TEMPLATE = """\
{% for message in messages %}<|im_start|>{{ message.role }}
{% for part in message.content %}{% if part.type == 'image' %}<IMG_CONTEXT>
{% elif part.type == 'video' %}<video>
{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
SIZE = 56  # of a frame as the model takes it, pixels
PATCH = 14


def has_internvl() -> bool:
    """Whether transformers knows InternVL; 4.52 does, the pinned version does not."""
    return hasattr(transformers, "InternVLForConditionalGeneration")


TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "vocab_size": len(VOCABULARY), "head_dim": 16,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def write_checkpoint(
    folder: Path,
    text: dict[str, Any] = TEXT,
    vision: dict[str, Any] = VISION,
    frame_size: int = SIZE,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Path:
    """A random model with the real processor classes and a token a byte.

    Args:
        folder: is made.
        text: sizes of the language model; two small layers by default.
        vision: sizes of the vision tower, likewise.
        frame_size: side of a frame as the model takes it, pixels.
        device: where the weights are drawn.
        dtype: theirs.
    """
    folder.mkdir(parents=True)
    write_byte_tokenizer(folder, SPECIAL_TOKENS)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "extra_special_tokens": ROLES}))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    size = {"height": frame_size, "width": frame_size}
    tokens_per_frame = (frame_size // PATCH // 2) ** 2
    processor = transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessorFast(size=size),
        tokenizer=tokenizer,
        # The frames are RGB already; the torchvision that loads beside a CPU torch cannot convert them.
        video_processor=transformers.InternVLVideoProcessor(size=size, do_convert_rgb=False),
        image_seq_length=tokens_per_frame,
        chat_template=CHAT_TEMPLATE,
    )
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = transformers.InternVLConfig(
        vision_config={**vision, "image_size": [frame_size] * 2, "patch_size": [PATCH] * 2},
        text_config={**text, "model_type": "qwen3", "bos_token_id": None, **ends},
        image_token_id=VOCABULARY.index("<IMG_CONTEXT>"),
        image_seq_length=tokens_per_frame,
    )
    with drawing(device, dtype):
        model = transformers.InternVLForConditionalGeneration(config)
    randomise(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def frames_of(call: Call) -> list[int]:
    """The indices of the frames that a model was shown."""
    return read_frame_indices(call.inputs["pixel_values"])


def answer_nothing(model: torch.nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
    """A ``generate`` that ends at once."""
    end = torch.tensor([[VOCABULARY.index("<|im_end|>")]])
    return torch.cat([inputs["input_ids"], end], dim=1)
