"""SigLIP: cosine of frame and question features, with any SigLIP or SigLIP 2 of one resolution.

SigLIP's own score is the sigmoid of a scaled and shifted cosine. It orders the frames of a question as the
cosine does, but is nearly 0 for most of them. Retrieval, and rules that select by SigLIP such as mDP3, use
the cosine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from aks.errors import UserError
from aks.labels import Question
from aks.scorers.clip import ClipScorer, pil_image_processor, projected
from aks.scorers.preprocess import square_preprocessor_of
from aks.scorers.weights import load_component, load_pretrained, resolve_checkpoint


def _load_tokenizer(folder: Path) -> Any:
    """The tokenizer that the folder names: SigLIP's, or Gemma's for SigLIP 2.

    Raises:
        ImportError: the packages that read SigLIP's ``spiece.model`` are not installed; names them.
        ValueError: that file is damaged.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except ImportError:
        raise ImportError("run: pip install sentencepiece protobuf") from None
    if tokenizer is False:  # transformers gives this where the file is no message of protobuf
        raise ValueError("damaged spiece.model; download it again")
    return tokenizer


class SiglipScorer(ClipScorer):
    """Cosines of SigLIP's frame and question vectors; the default checkpoint's have 1,152 values.

    The checkpoint is a hub name or a folder in the transformers layout. SigLIP 2 of one resolution is the
    same kind of model with another tokenizer; its NaFlex variant is another model.
    """

    name = "siglip"
    default_checkpoint = "google/siglip-so400m-patch14-384"

    def _open(self) -> Callable[..., Any]:
        from transformers import SiglipConfig, SiglipModel

        folder = resolve_checkpoint(
            self.checkpoint,
            model_type="siglip",
            needs=[
                ("spiece.model", "tokenizer.json"),
                ("tokenizer_config.json",),
                ("preprocessor_config.json", "processor_config.json"),
            ],
        )
        config = load_component(SiglipConfig.from_pretrained, folder, "configuration")
        self.max_tokens = config.text_config.max_position_embeddings  # 64
        self.tokenizer = load_component(_load_tokenizer, folder, "tokenizer")
        # It squashes the frame to a square, by PIL's bicubic or (SigLIP 2) bilinear filter: (3, 384, 384).
        processor = load_component(pil_image_processor("Siglip").from_pretrained, folder, "image processor")
        side = config.vision_config.image_size
        if dict(processor.size) != {"height": side, "width": side}:
            raise UserError(
                f"{folder}: its image processor makes pictures of {dict(processor.size)}, its model reads "
                f"{side} x {side}; download it again"
            )
        self.preprocessor = square_preprocessor_of(processor, side)
        return partial(load_pretrained, SiglipModel, folder, config)

    @torch.no_grad()
    def encode_question(self, question: Question) -> torch.Tensor:
        """The question's text features, (1152,); text beyond 64 tokens is cut.

        The models were trained on lower-case text, which only SigLIP 1's tokenizer makes by itself in every
        version of transformers. They were also trained on text padded to 64 tokens without an attention mask,
        and read the vector off the last of them: shorter input would give another vector.
        """
        tokens = self.tokenizer(
            question.text.lower(),
            padding="max_length",
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        )
        return projected(self._text_model.get_text_features(input_ids=tokens["input_ids"].to(self.device)))[0]
