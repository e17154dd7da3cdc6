"""Loads lmms-lab's LLaVA checkpoints; the files' headers are checked before any weight is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import dispatch_model, infer_auto_device_map, init_empty_weights
from accelerate.utils import get_balanced_memory
from safetensors import safe_open
from torch import nn
from tqdm import tqdm
from transformers import GenerationConfig, Qwen2TokenizerFast, SiglipVisionConfig

from aks.errors import UserError
from aks.scorers.weights import load_component, resolve_checkpoint, weight_files
from evaluation.errors import EvaluationError
from evaluation.llava_on_transformers.config import MODEL_TYPES, read_config, tower_sizes
from evaluation.llava_on_transformers.model import LlavaQwenConfig, LlavaQwenForCausalLM
from evaluation.llava_on_transformers.pictures import ImageProcessor
from evaluation.llava_on_transformers.prompts import IMAGE_PATCH_TOKEN

ATTENTIONS = ("eager", "sdpa", "flash_attention_2")
DTYPES = ("float16", "bfloat16", "float32")
# The norm that follows the vision tower; the checkpoints hold it, LLaVA does not use it.
UNUSED = "model.vision_tower.vision_tower.vision_model.post_layernorm."
# Entries of config.json that Qwen2's class must not take for its own. LLaVA-NeXT ignores rope_scaling.
FOREIGN = ("model_type", "architectures", "torch_dtype", "dtype", "rope_scaling", "transformers_version")
REMEDY = "fetch the checkpoint again (checkpoints/README.md)"


def load_pretrained_model(
    model_path: str,
    model_base: None = None,
    model_name: str = "",
    *,
    device_map: str | Mapping[str, Any] = "auto",
    torch_dtype: str = "float16",
    attn_implementation: str = "sdpa",
    tower_attention: str = "eager",
    overwrite_config: Mapping[str, Any] | None = None,
    multimodal: bool = True,
) -> tuple[Any, LlavaQwenForCausalLM, ImageProcessor, int]:
    """A checkpoint's tokenizer, model and image processor; called as LLaVA-NeXT's function of this name.

    Args:
        model_path: folder or hub name.
        model_base: None; LoRA adapters are not supported.
        model_name: not looked at; ``config.json`` says which model it is.
        device_map: a device such as ``cuda:0``, ``auto`` for all GPUs (or the CPU), or accelerate's mapping.
        torch_dtype: ``float16``, ``bfloat16`` or ``float32``, of all weights.
        attn_implementation: the language model's, one of ``ATTENTIONS``.
        tower_attention: the vision tower's; ``eager`` is what LLaVA-NeXT computes, to the bit.
        overwrite_config: replaces entries of ``config.json``.
        multimodal: True; a LLaVA without its pictures is not supported.

    Returns:
        Tokenizer, model, image processor, and the most tokens a prompt may have.

    Raises:
        EvaluationError: the checkpoint is wrong or incomplete, or an argument is not supported; one line.
    """
    for name, value, choices in (
        ("model_base", model_base, (None,)),
        ("multimodal", multimodal, (True,)),
        ("torch_dtype", torch_dtype, DTYPES),
        ("attn_implementation", attn_implementation, ATTENTIONS),
        ("tower_attention", tower_attention, ATTENTIONS),
    ):
        if value not in choices:
            raise EvaluationError(f"model argument {name}={value}: use {' or '.join(map(str, choices))}")
    try:
        folder = find_checkpoint(model_path)
        config = read_config(folder, overwrite_config)
        # By its class: newer versions take model_type "llava" for another tokenizer's.
        tokenizer = load_component(Qwen2TokenizerFast.from_pretrained, folder, "tokenizer")
        model = build_model(folder, config, attn_implementation, tower_attention)
        sources = find_weights(model, folder)
        devices = _place(model, device_map, getattr(torch, torch_dtype))
        _load(model, sources, devices, getattr(torch, torch_dtype))
    except UserError as error:
        raise EvaluationError(str(error)) from None
    model.tie_weights()
    if config.get("mm_use_im_patch_token", True):
        tokenizer.add_tokens([IMAGE_PATCH_TOKEN], special_tokens=True)
    _cut_vocabulary(model, len(tokenizer), folder)
    if len(set(devices.values())) == 1:
        model.to(next(iter(devices.values())))  # buffers; the weights are there
    else:
        dispatch_model(model, devices)
    return (
        tokenizer,
        model,
        ImageProcessor(),
        config.get("max_sequence_length", model.config.max_position_embeddings),
    )


def find_checkpoint(name: str) -> Path:
    """The local folder of a checkpoint; a hub name is looked for in ./checkpoints, then on the hub.

    Raises:
        UserError: there is none, a file is missing, or it is another model's.
    """
    needs = [("tokenizer.json", "vocab.json"), ("tokenizer.json", "merges.txt")]
    return resolve_checkpoint(name, model_type=MODEL_TYPES, needs=needs)


def build_model(
    folder: Path, config: dict[str, Any], attention: str, tower_attention: str
) -> LlavaQwenForCausalLM:
    """The model without weights: its parameters are on torch's "meta" device, which holds none."""
    config = {"mm_spatial_pool_mode": "bilinear", **config}  # lmms-eval's default, for want of an entry
    entries = {name: value for name, value in config.items() if name not in FOREIGN}
    model_config = LlavaQwenConfig(**entries, attn_implementation=attention)
    tower_config = SiglipVisionConfig(**tower_sizes(config), attn_implementation=tower_attention)
    try:
        with init_empty_weights(include_buffers=False):
            model = LlavaQwenForCausalLM(model_config, tower_config)
    except ImportError as error:  # transformers looks for flash-attn
        raise EvaluationError(f"attn_implementation={attention}: {error}; use sdpa") from None
    if (folder / "generation_config.json").is_file():
        model.generation_config = load_component(
            GenerationConfig.from_pretrained, folder, "generation_config.json"
        )
    return model.eval().requires_grad_(False)


def find_weights(model: nn.Module, folder: Path) -> dict[Path, list[str]]:
    """The names of the model's weights by the file that holds them, after a look at the files' headers.

    Args:
        model: whose parameters are wanted, and of which shape.
        folder: with safetensors or PyTorch files, one or several.

    Raises:
        UserError: a weight is missing, of another shape, or none of the model's; one line with the file, the
            entry and the remedy.
    """
    wanted = {name: tuple(value.shape) for name, value in model.named_parameters()}
    sources: dict[Path, list[str]] = {}
    for path in weight_files(folder):
        for name, shape in _shapes(path):
            if name.startswith(UNUSED):
                continue
            if name not in wanted:
                raise UserError(f"{path}: {name} is no weight of LLaVA over Qwen2 with SigLIP; {REMEDY}")
            if shape != wanted[name]:
                raise UserError(
                    f"{path}: {name} has the shape {shape}, config.json asks for {wanted[name]}; {REMEDY}"
                )
            sources.setdefault(path, []).append(name)
    found = {name for names in sources.values() for name in names}
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    if missing := sorted(wanted.keys() - found - tied):
        more = f" and {len(missing) - 1} more weights are" if len(missing) > 1 else " is"
        raise UserError(f"{folder}: {missing[0]}{more} in none of its weight files; {REMEDY}")
    return sources


def _shapes(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every entry's name and shape, from the file's header."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                yield name, tuple(file.get_slice(name).get_shape())
    else:
        for name, value in _open_bin(path).items():
            yield name, tuple(value.shape)


def _open_bin(path: Path) -> dict[str, torch.Tensor]:
    """A PyTorch file's tensors, which are read from the disk where they are used."""
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # zip, pickle and tensor errors alike
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path}: cannot be read as weights ({reason}); {REMEDY}") from None


def _place(model: nn.Module, device_map: str | Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The device of each module by its name; ``{"": device}`` where it is one."""
    if isinstance(device_map, Mapping):
        return dict(device_map)
    if device_map not in ("auto", "balanced", "balanced_low_0", "sequential"):
        return {"": device_map}
    if not torch.cuda.is_available():
        return {"": "cpu"}
    modules = model._no_split_modules
    memory = None
    if device_map != "sequential":
        low_0 = device_map == "balanced_low_0"
        memory = get_balanced_memory(model, dtype=dtype, low_zero=low_0, no_split_module_classes=modules)
    devices = infer_auto_device_map(model, memory, modules, dtype=dtype)
    if "disk" in devices.values():
        raise EvaluationError(
            f"device_map={device_map}: GPUs and memory do not hold the model; use larger ones"
        )
    return devices


def _load(
    model: nn.Module, sources: Mapping[Path, list[str]], devices: Mapping[str, Any], dtype: torch.dtype
) -> None:
    """Read the weights one by one, each straight onto its device."""
    for path, names in tqdm(sources.items(), desc="weights", unit="file", disable=len(sources) == 1):
        handles: dict[Any, Any] = {}
        tensors = None if path.suffix == ".safetensors" else _open_bin(path)
        for name in names:
            # The innermost of those that the weight is, or is in; "" is the whole model.
            owners = (owner for owner in devices if not owner or f"{name}.".startswith(f"{owner}."))
            device = devices[max(owners, key=len)]
            if tensors is not None:
                value = tensors[name].to(device, dtype)
            else:
                if device not in handles:
                    handles[device] = safe_open(path, framework="pt", device=str(torch.device(device)))
                value = handles[device].get_tensor(name).to(dtype)
            module, _, parameter = name.rpartition(".")
            setattr(model.get_submodule(module), parameter, nn.Parameter(value, requires_grad=False))


def _cut_vocabulary(model: LlavaQwenForCausalLM, size: int, folder: Path) -> None:
    """Leave out the rows of embedding and output that no token has, as LLaVA-NeXT does; without a copy."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if len(embedding.weight) < size:
        raise EvaluationError(
            f"{folder}: the tokenizer has {size} tokens, embed_tokens {len(embedding.weight)}; {REMEDY}"
        )
    embedding.weight = nn.Parameter(embedding.weight[:size], requires_grad=False)
    embedding.num_embeddings = size
    if model.config.tie_word_embeddings:
        head.weight = embedding.weight
    else:
        head.weight = nn.Parameter(head.weight[:size], requires_grad=False)
    head.out_features = size
    model.config.vocab_size = size
