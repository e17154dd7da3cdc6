"""Two guards around LLaVA-NeXT's ``llava.mm_utils``; plugged in, nothing is replaced on disk.

``StopOnKeywords`` ends a generation where a keyword was generated. LLaVA-NeXT's own criterion compares
tensors in a condition, which fails for keywords of several tokens. ``model_name_for`` names a checkpoint
so that LLaVA-NeXT's builder picks the class that its config asks for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteria

from evaluation.frame_policy import EvaluationError

# The names that LLaVA-NeXT's builder tells apart, by the class each stands for.
MODEL_TYPES = {
    "LlavaQwenForCausalLM": "llava_qwen",
    "LlavaLlamaForCausalLM": "llava_llama",
    "LlavaMistralForCausalLM": "llava_mistral",
    "LlavaMixtralForCausalLM": "llava_mixtral",
    "LlavaGemmaForCausalLM": "llava_gemma",
    "LlavaQwenMoeForCausalLM": "llava_qwen_moe",
}


class StopOnKeywords(StoppingCriteria):
    """Stop when the newest tokens are a keyword's; batch size 1.

    Args:
        keywords: texts to stop at.
        tokenizer: the model's.
        input_ids: the prompt, (1, length); unused, LLaVA-NeXT generates from embeddings and returns
            new tokens only.
    """

    def __init__(self, keywords: list[str], tokenizer: Any, input_ids: torch.Tensor) -> None:
        """Tokenise the keywords; empty ones would stop at once and are left out."""
        self.keywords = []
        for keyword in filter(None, keywords):
            ids = tokenizer(keyword).input_ids
            if len(ids) > 1 and ids[0] == tokenizer.bos_token_id:
                ids = ids[1:]
            self.keywords.append(torch.tensor(ids))

    def __call__(self, output_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> bool:
        """Whether the tokens generated so far, (1, n), end with a keyword."""
        tail = output_ids[0].cpu()
        return any(torch.equal(tail[-len(ids) :], ids) for ids in self.keywords)


def model_name_for(pretrained: str) -> str:
    """The name by which LLaVA-NeXT's builder loads the class that a checkpoint's config asks for.

    The builder looks for "llava" and "qwen" in the folder's name; a Qwen checkpoint in
    ``checkpoints/llava_video_7b`` would be loaded as another model, silently.
    """
    config = Path(pretrained) / "config.json"
    if not config.is_file():
        return Path(pretrained).name  # a hub name: the builder's rule, as upstream applies it
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
        stated, classes = settings.get("model_type"), settings.get("architectures")
    except (ValueError, AttributeError):
        raise EvaluationError(f"{config}: not a model's configuration; fetch the checkpoint again") from None
    kind = stated
    if stated == "llava":  # lmms-lab's published checkpoints say so, and conversions of other LLaVAs
        kind = next((kind for name, kind in MODEL_TYPES.items() if classes == [name]), None)
    if kind not in MODEL_TYPES.values():
        raise EvaluationError(
            f"{config}: model_type is {stated!r} with architectures {classes}, none that LLaVA-NeXT loads "
            f"({', '.join(MODEL_TYPES.values())}); fetch lmms-lab's checkpoint, not a conversion"
        )
    return kind
