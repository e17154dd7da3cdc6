"""InternVL3.5 for the tests: a small random checkpoint in transformers' own format."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from evaluation_setup import read_frame_indices, write_byte_tokenizer
from model_setup import _byte_letters, randomise
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
TOKENS_PER_FRAME = (SIZE // PATCH // 2) ** 2


def has_internvl() -> bool:
    """Whether transformers knows InternVL; 4.52 does, the pinned version does not."""
    return hasattr(transformers, "InternVLForConditionalGeneration")


def write_checkpoint(folder: Path) -> Path:
    """A random model of two small layers with the real processor classes and a token a byte."""
    folder.mkdir(parents=True)
    write_byte_tokenizer(folder, SPECIAL_TOKENS)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "extra_special_tokens": ROLES}))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    size = {"height": SIZE, "width": SIZE}
    processor = transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessorFast(size=size),
        tokenizer=tokenizer,
        # The frames are RGB already; the torchvision that loads beside a CPU torch cannot convert them.
        video_processor=transformers.InternVLVideoProcessor(size=size, do_convert_rgb=False),
        image_seq_length=TOKENS_PER_FRAME,
        chat_template=CHAT_TEMPLATE,
    )
    text = {
        "model_type": "qwen3", "vocab_size": len(VOCABULARY), "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
        "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": [SIZE, SIZE], "patch_size": [PATCH, PATCH],
    }  # fmt: skip
    config = transformers.InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=VOCABULARY.index("<IMG_CONTEXT>"),
        image_seq_length=TOKENS_PER_FRAME,
    )
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
