"""A SeViLA of two layers with random weights, in every form that can be loaded, and a small LAVIS for it."""

import contextlib
import json
import os
import re
import shutil
from functools import partial
from pathlib import Path

import torch
from model_setup import bert_vocabulary, package_file, randomise
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    Blip2Config,
    Blip2ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14}
MLP_RATIO = 4.3637  # ViT-g's
QFORMER = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
T5 = {
    "vocab_size": 32128,
    "d_model": 32,
    "d_kv": 8,
    "num_heads": 4,
    "d_ff": 48,
    "num_layers": 2,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
}
T5_TOKENIZER = "tokenizer_configs/flux/tokenizer_2"
EVA_FILE = "eva.pth"


def tiny_eva(img_size=224, drop_path_rate=0.0, use_checkpoint=False, precision="fp16") -> nn.Module:
    """Replaces LAVIS's ``create_eva_vit_g`` by a small transformer with the weights of ``eva.pth``."""
    from lavis.models.eva_vit import VisionTransformer, convert_weights_to_fp16

    model = VisionTransformer(
        img_size=img_size,
        patch_size=VISION["patch_size"],
        use_mean_pooling=False,
        embed_dim=VISION["hidden_size"],
        depth=VISION["num_hidden_layers"],
        num_heads=VISION["num_attention_heads"],
        mlp_ratio=MLP_RATIO,
        qkv_bias=True,
        drop_path_rate=drop_path_rate,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_checkpoint=use_checkpoint,
    )
    if Path(EVA_FILE).is_file():
        model.load_state_dict(torch.load(EVA_FILE, weights_only=True))
    if precision == "fp16":
        convert_weights_to_fp16(model)
    return model


@contextlib.contextmanager
def small_lavis(folder: Path):
    """Change to ``folder``, where LAVIS finds a small BERT and a small ViT-g."""
    from lavis.models.blip2_models import blip2

    before, original = Path.cwd(), blip2.create_eva_vit_g
    os.chdir(folder)
    blip2.create_eva_vit_g = tiny_eva
    try:
        yield
    finally:
        blip2.create_eva_vit_g = original
        os.chdir(before)


def write_t5_tokenizer(folder: Path) -> None:
    """T5's own sentencepiece vocabulary."""
    for name in ("tokenizer.json", "special_tokens_map.json", "spiece.model"):
        shutil.copy(package_file("diffsynth", f"{T5_TOKENIZER}/{name}"), folder / name)
    config = json.loads(package_file("diffsynth", f"{T5_TOKENIZER}/tokenizer_config.json").read_text())
    del config["add_prefix_space"]  # Flan-T5 has no such key; with it transformers ignores tokenizer.json
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_parts(folder: Path) -> None:
    """Write what LAVIS loads by itself: ``google/flan-t5-xl/``, ``bert-base-uncased/`` and ``eva.pth``."""
    t5 = T5ForConditionalGeneration(T5Config(**T5))
    randomise(t5, seed=1)
    t5.save_pretrained(folder / "google/flan-t5-xl")
    write_t5_tokenizer(folder / "google/flan-t5-xl")

    BertForMaskedLM(BertConfig(vocab_size=30522, **QFORMER)).save_pretrained(folder / "bert-base-uncased")
    shutil.copy(bert_vocabulary(), folder / "bert-base-uncased" / "vocab.txt")

    eva = tiny_eva(precision="fp32")
    randomise(eva, seed=2)
    # The real file is stored in float16.
    torch.save({name: value.half().float() for name, value in eva.state_dict().items()}, folder / EVA_FILE)


def build_world(folder: Path) -> Path:
    """Write the same weights in every form.

    - ``parts/``: what LAVIS loads by itself;
    - ``sevila_pretrained.pth``: localizer and answerer, under the names of the released file;
    - ``whole.pth``: the state dict of the LAVIS model;
    - ``base/``: vision tower and T5 in transformers' layout, by a key map of the tests' own.
    """
    parts = folder / "parts"
    parts.mkdir()
    write_parts(parts)
    with small_lavis(parts):
        import sevila

        model = sevila.SeViLA(t5_model="google/flan-t5-xl", vit_precision="fp32")
    localizer = nn.ParameterDict()
    for name, value in model.state_dict().items():
        if "_loc" in name and "position_ids" not in name:
            localizer[name.replace(".", "/")] = value.clone()
    randomise(localizer, seed=3)
    state = {name.replace("/", "."): value.detach() for name, value in localizer.items()}
    answerer = {name.replace("_loc", ""): torch.randn_like(value) for name, value in state.items()}
    buffers = {"Qformer_loc.bert.embeddings.position_ids": torch.arange(512)[None]}
    torch.save({"model": {**state, **answerer, **buffers}, "epoch": 3}, folder / "sevila_pretrained.pth")
    model.load_state_dict(state, strict=False)
    torch.save(model.state_dict(), folder / "whole.pth")
    write_base(folder / "base", parts)
    return folder


def write_base(folder: Path, parts: Path) -> None:
    """BLIP-2 in transformers' layout with the vision tower and T5 of ``parts``."""
    config = Blip2Config(
        vision_config={
            **VISION,
            "intermediate_size": int(VISION["hidden_size"] * MLP_RATIO),
            "image_size": 224,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
            "qkv_bias": True,
        },
        qformer_config={
            **QFORMER,
            "encoder_hidden_size": VISION["hidden_size"],
            "cross_attention_frequency": 2,
        },
        text_config={**T5, "model_type": "t5"},
        num_query_tokens=32,
    )
    model = Blip2ForConditionalGeneration(config)
    eva = torch.load(parts / EVA_FILE, weights_only=True)
    vision = {}
    for name in model.vision_model.state_dict():
        if name.startswith("post_layernorm"):
            continue
        block = re.fullmatch(r"encoder\.layers\.(\d+)\.(.*)", name)
        if block is None:
            vision[name] = eva[
                {
                    "embeddings.class_embedding": "cls_token",
                    "embeddings.position_embedding": "pos_embed",
                    "embeddings.patch_embedding.weight": "patch_embed.proj.weight",
                    "embeddings.patch_embedding.bias": "patch_embed.proj.bias",
                }[name]
            ]
            continue
        index, part = block.groups()
        module, kind = part.rsplit(".", 1)
        if part == "self_attn.qkv.bias":
            query, value = (eva[f"blocks.{index}.attn.{letter}_bias"] for letter in "qv")
            vision[name] = torch.cat([query, torch.zeros_like(query), value])
            continue
        source = {
            "layer_norm1": "norm1",
            "layer_norm2": "norm2",
            "self_attn.qkv": "attn.qkv",
            "self_attn.projection": "attn.proj",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
        }[module]
        vision[name] = eva[f"blocks.{index}.{source}.{kind}"]
    model.vision_model.load_state_dict(vision, strict=False)
    t5 = T5ForConditionalGeneration.from_pretrained(parts / "google/flan-t5-xl")
    model.language_model.load_state_dict(t5.state_dict())
    model.save_pretrained(folder)
    write_t5_tokenizer(folder)


def bf16_steps(scores: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """How many bfloat16 steps lie between two scores."""

    def rank(values: torch.Tensor) -> torch.Tensor:
        bits = values.to(torch.bfloat16).view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return (rank(scores) - rank(expected)).abs()
