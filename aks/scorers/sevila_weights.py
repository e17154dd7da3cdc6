"""SeViLA's checkpoint: where it lies, what it must hold, and how LAVIS and transformers name its weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from aks.errors import UserError
from aks.scorers.weights import LOCAL_ROOT, check_keys, find_file, misshapen

DEFAULT_CHECKPOINT = "sevila_pretrained.pth"
REPOSITORY = "Shoubin/SeViLA"  # the hub repository that publishes the file

# Prefixes of parameter names, in transformers and in LAVIS; the first that fits counts.
PREFIXES = {
    "vision_model.post_layernorm.": "ln_vision_loc.",
    "vision_model.": "visual_encoder.",
    "query_tokens": "query_tokens_loc",
    "qformer.layernorm.": "Qformer_loc.bert.embeddings.LayerNorm.",
    "qformer.": "Qformer_loc.bert.",
    "language_projection.": "t5_proj_loc.",
    "language_model.": "t5_model.",
}
# Later parts of parameter names, likewise, by transformers' prefix.
INNER_NAMES = {
    "vision_model.": {
        "embeddings.class_embedding": "cls_token",
        "embeddings.position_embedding": "pos_embed",
        "embeddings.patch_embedding.": "patch_embed.proj.",
        "encoder.layers.": "blocks.",
        ".layer_norm1.": ".norm1.",
        ".layer_norm2.": ".norm2.",
        ".self_attn.qkv.": ".attn.qkv.",
        ".self_attn.projection.": ".attn.proj.",
    },
    "qformer.": {"attention.attention.": "attention.self."},
}
# LAVIS stores this bias as two parameters, q_bias and v_bias; the key's bias is always 0.
QKV_BIAS = ".attn.qkv.bias"
# Copies of T5's shared embedding, which some files contain.
TIED_KEYS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def find_localizer(checkpoint: str | None) -> Path:
    """Find the file ``sevila_pretrained.pth``; download it if there is none.

    Args:
        checkpoint: the file, a folder that holds it, or a file name in ``./checkpoints``; None for the
            published one, from ``./checkpoints`` or the model hub.

    Raises:
        UserError: there is no such file.
    """
    path = Path(checkpoint or DEFAULT_CHECKPOINT)
    if path.is_dir():
        if not (path / DEFAULT_CHECKPOINT).is_file():
            raise UserError(f"{path}: has no {DEFAULT_CHECKPOINT}; download it from {REPOSITORY}")
        return path / DEFAULT_CHECKPOINT
    if checkpoint is None and not path.is_file() and not (LOCAL_ROOT / path).is_file():
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(REPOSITORY, DEFAULT_CHECKPOINT))
        except Exception as error:  # the hub client raises many unrelated types
            raise UserError(
                f"{path}: not in {LOCAL_ROOT}, and the model hub did not give it ({type(error).__name__}); "
                f"on a machine with access run: hf download {REPOSITORY} {path} "
                f"--local-dir {LOCAL_ROOT}"
            ) from None
    return find_file(str(path), source=f"{DEFAULT_CHECKPOINT} of {REPOSITORY}")


def check_localizer(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], where: Path) -> None:
    """Raise if a file's tensors are not SeViLA's; ``own`` are the model's, under LAVIS's names.

    The file must hold the whole localizer. It may hold the answerer, which goes unused. It may also hold the
    vision tower and T5, each whole or not at all; copies of T5's embedding alone, which SeViLA's training
    leaves behind, do not count as a T5.

    Raises:
        UserError: a key is missing, surplus or misshapen.
    """
    localizer = {key for key in own if "_loc" in key}
    answerer = {key.replace("_loc", "", 1) for key in localizer}
    parts = {key.split(".", 1)[0] for key in state if not key.endswith(TIED_KEYS)}
    needed = {key for key in own if key.split(".", 1)[0] in parts and not key.endswith(TIED_KEYS)}
    check_keys(
        where,
        missing=(localizer | needed) - state.keys(),
        unexpected=state.keys() - own.keys() - answerer,
        mismatched=misshapen(own, state),
    )


def lavis_name(name: str) -> str:
    """LAVIS's name of one of transformers' parameters."""
    prefix = next(prefix for prefix in PREFIXES if name.startswith(prefix))
    rest = name.removeprefix(prefix)
    for inner, lavis_inner in INNER_NAMES.get(prefix, {}).items():
        rest = rest.replace(inner, lavis_inner)
    return PREFIXES[prefix] + rest


def to_lavis_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict of transformers' model with LAVIS's names."""
    renamed = {}
    for name, value in state.items():
        key = lavis_name(name)
        if key.endswith(QKV_BIAS):
            stem = key.removesuffix("qkv.bias")
            renamed[f"{stem}q_bias"], _, renamed[f"{stem}v_bias"] = value.chunk(3)
        else:
            renamed[key] = value
    return renamed


def pop_lavis_weights(
    state: dict[str, torch.Tensor], names: Iterable[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Remove from LAVIS's state dict the tensors of transformers' ``names``; yield name and tensor of each.

    Names without a tensor in the state dict are passed over.
    """
    for name in names:
        key = lavis_name(name)
        stem = key.removesuffix("qkv.bias")
        if key.endswith(QKV_BIAS) and f"{stem}q_bias" in state:
            query, value = state.pop(f"{stem}q_bias"), state.pop(f"{stem}v_bias")
            yield name, torch.cat([query, torch.zeros_like(query), value])
        elif key in state and not name.endswith(TIED_KEYS):
            yield name, state.pop(key)
