"""CLIP: cosine of frame and question features, with any checkpoint in the transformers layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from aks.labels import Question
from aks.scorers.base import Scorer
from aks.scorers.preprocess import preprocess_with_transformers
from aks.scorers.weights import load_component, load_pretrained, resolve_checkpoint


def cosine(features: torch.Tensor, questions: Sequence[torch.Tensor]) -> np.ndarray:
    """Cosines of frame vectors (n, d) and question vectors (d,), (questions, n), in float32."""
    frames = torch.nn.functional.normalize(features.float(), dim=-1)
    texts = torch.nn.functional.normalize(torch.stack(list(questions)).float(), dim=-1)
    return (texts @ frames.T).double().cpu().numpy()


def pil_image_processor(model: str) -> type:
    """The image processor of ``CLIP`` or ``Siglip`` that resizes with PIL, in transformers 4 and 5.

    From transformers 5 on, ``CLIPImageProcessor`` resizes with torchvision, which must then be installed;
    some 0.5 % of its values differ by a grey level.
    """
    import transformers

    old = f"{model}ImageProcessor"
    return getattr(transformers, f"{old}Pil", None) or getattr(transformers, old)


def projected(output: Any) -> torch.Tensor:
    """The result of ``get_*_features``: transformers 4 returns the tensor, 5 an object that holds it."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


class ClipScorer(Scorer):
    """Cosines of CLIP's projected frame and question vectors; the default checkpoint's have 512 values.

    The checkpoint is a hub name or a folder in the transformers layout.
    """

    name = "clip"
    default_checkpoint = "openai/clip-vit-base-patch32"

    def __init__(self, checkpoint: str | None, device: torch.device, dtype: torch.dtype | None) -> None:
        self.checkpoint = checkpoint or self.default_checkpoint
        self.device, self.dtype = device, dtype or torch.float32
        self._load_half = self._open()
        self._text_model = self._load_half(without="vision").to(device=self.device, dtype=self.dtype)

    def _open(self) -> Callable[..., Any]:
        """Load tokenizer and preprocessor; return what loads one half of the model."""
        from transformers import AutoTokenizer, CLIPConfig, CLIPModel

        folder = resolve_checkpoint(
            self.checkpoint,
            model_type="clip",
            needs=[
                ("tokenizer.json", "vocab.json"),
                ("tokenizer.json", "merges.txt"),
                ("preprocessor_config.json", "processor_config.json"),
            ],
        )
        config = load_component(CLIPConfig.from_pretrained, folder, "configuration")
        self.max_tokens = config.text_config.max_position_embeddings  # 77
        self.tokenizer = load_component(AutoTokenizer.from_pretrained, folder, "tokenizer")
        # It resizes the shorter side by PIL's bicubic filter and crops the centre: (3, 224, 224).
        processor = load_component(pil_image_processor("CLIP").from_pretrained, folder, "image processor")
        self.preprocessor = partial(preprocess_with_transformers, processor)
        return partial(load_pretrained, CLIPModel, folder, config)

    @cached_property
    def image_encoder(self) -> Any:
        """The model without its text tower."""
        return self._load_half(without="text").to(device=self.device, dtype=self.dtype)

    @torch.no_grad()
    def encode_frames(self, inputs: torch.Tensor) -> torch.Tensor:
        """Model inputs to projected image features (n, d), not normalized."""
        inputs = inputs.to(device=self.device, dtype=self.dtype)
        return projected(self.image_encoder.get_image_features(pixel_values=inputs))

    @torch.no_grad()
    def encode_question(self, question: Question) -> torch.Tensor:
        """The question's projected text features, (512,); text beyond 77 tokens is cut."""
        tokens = self.tokenizer(
            question.text, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.device)
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        return projected(self._text_model.get_text_features(input_ids=ids, attention_mask=mask))[0]

    def score(self, features: torch.Tensor, questions: Sequence[torch.Tensor]) -> np.ndarray:
        """Cosines, (questions, frames)."""
        return cosine(features.to(self.device), questions)
