"""What a LLaVA checkpoint's ``config.json`` asks for, and whether this model does that; needs no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from aks.errors import UserError

ARCHITECTURE = "LlavaQwenForCausalLM"
MODEL_TYPES = ("llava", "llava_qwen")  # lmms-lab's published checkpoints say the first, their code the second
SIDE = 27  # patches along a side of a picture: 384 pixels in patches of 14
TOWER = "siglip-so400m-patch14-384"
# SigLIP so400m's sizes, as its own config.json on the model hub has them.
TOWER_CONFIG = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
NEWLINE_POSITIONS = ("grid", "frame", "one_token", "no_token")
POOL_MODES = ("bilinear", "average", "max")
# Entry to the values that are supported, the first one's absence included where None is among them.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_patch_merge_type": ("spatial_unpad",),
    "mm_newline_position": (None, *NEWLINE_POSITIONS),
    "mm_spatial_pool_mode": (None, *POOL_MODES),
    # LLaVA-NeXT builds a resampler of the second type, but never calls it.
    "mm_resampler_type": (None, "spatial_pool"),
    "add_faster_video": (None, False),
    "mm_use_im_start_end": (None, False),
}
REMEDY = "fetch lmms-lab's checkpoint, or use LLaVA-NeXT (requirements-llava-nodeps.txt, LLAVA=next)"


def read_config(folder: Path, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A checkpoint's ``config.json`` with the overrides of the model's arguments, checked.

    Raises:
        UserError: it is no configuration, or asks for something that is not supported; one line names the
            file, the entry and the remedy.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict):
        raise UserError(f"{path}: missing, or not a model's configuration; fetch the checkpoint again")
    config |= overrides or {}
    if problem := find_problem(config):
        raise UserError(f"{path}: {problem}")
    return config


def find_problem(config: Mapping[str, Any]) -> str | None:
    """What of a configuration is not supported, with the remedy; None where all of it is."""
    model_type, architectures = config.get("model_type"), config.get("architectures")
    if "text_config" in config:
        return f"text_config: the checkpoint is a conversion for transformers' own classes; {REMEDY}"
    if model_type not in MODEL_TYPES or (architectures or [ARCHITECTURE]) != [ARCHITECTURE]:
        return (
            f"model_type is {model_type!r} with architectures {architectures}; only {ARCHITECTURE}, LLaVA "
            f"over Qwen2, is supported; {REMEDY}"
        )
    for entry, values in SUPPORTED.items():
        value = config.get(entry)
        if value not in values:
            supported = " or ".join(repr(value) for value in values if value is not None)
            return f"{entry} is {value!r}; only {supported} is supported; {REMEDY}"
    return _find_tower_problem(config)


def _find_tower_problem(config: Mapping[str, Any]) -> str | None:
    tower, sizes = config.get("mm_vision_tower"), config.get("vision_config")
    if sizes is None:
        if PurePosixPath(str(tower)).name != TOWER:
            return f"mm_vision_tower is {tower!r}; only google/{TOWER} is supported; {REMEDY}"
        return None
    if not isinstance(sizes, dict) or set(TOWER_CONFIG) - set(sizes):
        return f"vision_config lacks {', '.join(sorted(set(TOWER_CONFIG) - set(sizes or {})))}; {REMEDY}"
    if (sizes["image_size"], sizes["patch_size"]) != (384, 14):
        return (
            f"vision_config: pictures of {sizes['image_size']} pixels in patches of {sizes['patch_size']}; "
            f"only 384 and 14 are supported; {REMEDY}"
        )
    return None


def tower_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The vision tower's sizes: SigLIP so400m's, unless ``vision_config`` states those of a smaller SigLIP.

    LLaVA reads the features before SigLIP's last layer, and its checkpoints do not hold that layer.
    """
    sizes = {**TOWER_CONFIG, **(config.get("vision_config") or {})}
    return {**sizes, "num_hidden_layers": sizes["num_hidden_layers"] - 1}


def max_tiles(image_aspect_ratio: str) -> int | None:
    """N of ``anyres_max_N``, the area in tiles beyond which a picture's features are shrunk; else None."""
    found = re.match(r"anyres_max_(\d+)", image_aspect_ratio)
    return int(found[1]) if found else None
