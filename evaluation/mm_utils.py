"""Guards around LLaVA-NeXT's ``llava.mm_utils`` and lmms-eval's LLaVA classes; no file of theirs is replaced.

``StopOnKeywords`` ends a generation where a keyword was generated. LLaVA-NeXT's own criterion compares
tensors in a condition, which fails for keywords of several tokens. ``model_name_for`` names a checkpoint
so that LLaVA-NeXT's builder picks the class that the checkpoint's config asks for.
"""

from __future__ import annotations

if __name__.startswith("llava."):
    raise SystemExit(
        f"error: {__file__} is a file of Adaptive Keyframe Sampling; it does not replace LLaVA-NeXT's. "
        "Get that back (git checkout), then run evaluation/swap_in.py install in the project"
    )

import json
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteria

from evaluation.errors import EvaluationError

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
    """Stops when the newest tokens are those of a keyword; for batches of one.

    Args:
        keywords: texts to stop at.
        tokenizer: the model's.
        input_ids: the prompt, (1, length). It is not used: LLaVA-NeXT generates from embeddings, so that a
            criterion sees the new tokens only.
    """

    def __init__(self, keywords: list[str], tokenizer: Any, input_ids: torch.Tensor) -> None:
        """Tokenize the keywords; empty ones are left out, because they would stop at once."""
        self.keywords = []
        for keyword in filter(None, keywords):
            ids = tokenizer(keyword).input_ids
            if len(ids) > 1 and ids[0] == tokenizer.bos_token_id:
                ids = ids[1:]
            self.keywords.append(torch.tensor(ids))

    def __call__(self, output_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> bool:
        """Whether the tokens generated so far, (1, n), end with a keyword."""
        tokens = output_ids[0].cpu()
        return any(torch.equal(tokens[-len(ids) :], ids) for ids in self.keywords)


def model_name_for(pretrained: str) -> str:
    """The name by which LLaVA-NeXT's builder loads the class that a checkpoint's config asks for.

    The builder looks for "llava" and "qwen" in the folder's name. It would load a Qwen checkpoint in
    ``checkpoints/llava_video_7b`` as another model, silently.

    Raises:
        EvaluationError: the config is none, or asks for no class of LLaVA-NeXT.
    """
    path = Path(pretrained) / "config.json"
    if not path.is_file():
        return Path(pretrained).name  # a hub name: the builder's rule, as upstream applies it
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        stated, architectures = config.get("model_type"), config.get("architectures")
    except (ValueError, AttributeError):
        raise EvaluationError(f"{path}: not a model's configuration; fetch the checkpoint again") from None
    model_type = stated
    if stated == "llava":  # lmms-lab's published checkpoints say so, and conversions of other LLaVAs
        model_type = next((kind for name, kind in MODEL_TYPES.items() if architectures == [name]), None)
    if model_type not in MODEL_TYPES.values():
        raise EvaluationError(
            f"{path}: model_type is {stated!r} with architectures {architectures}, none that LLaVA-NeXT "
            f"loads ({', '.join(MODEL_TYPES.values())}); fetch lmms-lab's checkpoint, not a conversion"
        )
    return model_type
