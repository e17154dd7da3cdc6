"""Stands in for LLaVA-NeXT's package ``llava``, for what lmms-eval's LLaVA classes import from it."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

from transformers import AutoConfig, PretrainedConfig

from evaluation.llava_on_transformers import checkpoint, model, pictures, prompts
from evaluation.mm_utils import StopOnKeywords


class LlavaConfig(PretrainedConfig):
    """LLaVA over Llama, which lmms-eval registers; its checkpoints are refused."""

    model_type = "llava_llama"


def get_model_name_from_path(model_path: str) -> str:
    """The last part of a checkpoint's path or hub name."""
    return model_path.rstrip("/").rsplit("/", 1)[-1]


MEMBERS = {
    "llava": {},
    "llava.constants": {
        "IGNORE_INDEX": prompts.IGNORE_INDEX,
        "IMAGE_TOKEN_INDEX": prompts.IMAGE_TOKEN_INDEX,
        "DEFAULT_IMAGE_TOKEN": prompts.IMAGE_TOKEN,
        "DEFAULT_IMAGE_PATCH_TOKEN": prompts.IMAGE_PATCH_TOKEN,
        "DEFAULT_IM_START_TOKEN": "<im_start>",
        "DEFAULT_IM_END_TOKEN": "<im_end>",
    },
    "llava.conversation": {
        "SeparatorStyle": prompts.SeparatorStyle,
        "conv_templates": prompts.conv_templates,
    },
    "llava.mm_utils": {
        "KeywordsStoppingCriteria": StopOnKeywords,
        "get_model_name_from_path": get_model_name_from_path,
        "process_images": pictures.process_images,
        "tokenizer_image_token": prompts.tokenizer_image_token,
    },
    "llava.model": {},
    "llava.model.builder": {"load_pretrained_model": checkpoint.load_pretrained_model},
    "llava.model.language_model": {},
    "llava.model.language_model.llava_llama": {"LlavaConfig": LlavaConfig},
    "llava.model.language_model.llava_qwen": {
        "LlavaQwenConfig": model.LlavaQwenConfig,
        "LlavaQwenForCausalLM": model.LlavaQwenForCausalLM,
    },
}


def install() -> None:
    """Make ``import llava`` find these functions in this process, before lmms-eval imports them."""
    for name, members in MEMBERS.items():
        module = ModuleType(name, __doc__)
        module.__spec__ = ModuleSpec(name, None)
        module.__path__ = []  # a package, so that its modules are looked for in sys.modules
        vars(module).update(members)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    # As LLaVA-NeXT on import: lmms-eval reads a checkpoint's configuration by its model_type.
    AutoConfig.register(model.LlavaQwenConfig.model_type, model.LlavaQwenConfig, exist_ok=True)
