"""BLIP, the paper's scorer: the probability that a frame and a question match, as in LAVIS's ``BlipITM``.

The model is transformers' ``BlipForImageTextRetrieval``. Its own ``forward`` differs from LAVIS in ways that
move the scores, so this scorer calls the model's parts as LAVIS does:

- The first text token is [ENC] for the matching head. (transformers leaves [CLS]; logits move by 4e-2.)
- The vision tower's layer norms use an epsilon of 1e-6. (transformers uses 1e-5; logits move by 8e-5.)
- The question is cleaned like a caption and cut at 50 words, then at 35 tokens.
- A frame is squashed to a square by PIL's bicubic filter, without cropping.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from aks.errors import UserError
from aks.labels import Question
from aks.scorers.attention import fuse_attention
from aks.scorers.base import Scorer
from aks.scorers.clip import cosine
from aks.scorers.preprocess import SquarePreprocessor
from aks.scorers.weights import load_component, load_pretrained, resolve_checkpoint

HEADS = ("itm", "itc")
MAX_WORDS = 50  # LAVIS's caption processor
MAX_TOKENS = 35  # LAVIS's max_txt_len, for both model sizes
ENC_TOKEN_ID = 30523  # bert-base-uncased has 30522 tokens; LAVIS adds [DEC], then [ENC]
VISION_EPS = 1e-6  # LAVIS's vision transformer
# Bounds the memory of one pass of the text encoder: 16 frames and 8 questions of full length take about
# 0.5 GB in float32.
TOKENS_PER_PASS = 8 * MAX_TOKENS

_PUNCTUATION = str.maketrans(dict.fromkeys('.!"()*#:;~', " "))


def clean_caption(text: str, max_words: int = MAX_WORDS) -> str:
    """Clean a text as LAVIS's caption processor does.

    Letters become lower case, the marks ``.!"()*#:;~`` become spaces, runs of white space become one space,
    and at most ``max_words`` words stay. Words end at single spaces only, as in LAVIS.
    """
    text = re.sub(r"\s{2,}", " ", text.lower().translate(_PUNCTUATION))
    return " ".join(text.rstrip("\n").strip(" ").split(" ")[:max_words])


class BlipScorer(Scorer):
    """BLIP's image-text matching or contrastive scores.

    With the head ``itm`` a frame's features are the vision tower's tokens, (577, 1024) with the large model,
    and scores are probabilities. With ``itc`` the features are 256 projected values, and scores are cosines.

    Args:
        checkpoint: hub name or folder in the transformers layout, large or base.
        blip_head: ``itm`` (cross-attention, the paper's) or ``itc`` (cosine of projections).
    """

    name = "blip"
    default_checkpoint = "Salesforce/blip-itm-large-coco"

    def __init__(
        self, checkpoint: str | None, device: torch.device, dtype: torch.dtype | None, blip_head: str = "itm"
    ) -> None:
        if blip_head not in HEADS:
            raise UserError(f"--blip_head {blip_head}: use one of {', '.join(HEADS)}")
        self.checkpoint = checkpoint or self.default_checkpoint
        self.device, self.dtype, self.head = device, dtype or torch.float32, blip_head
        self.model = self._load().to(device=self.device, dtype=self.dtype)

    def _load(self) -> Any:
        """Load tokenizer, preprocessor and what scores; return the latter."""
        from transformers import AutoTokenizer, BlipConfig, BlipForImageTextRetrieval

        folder = resolve_checkpoint(
            self.checkpoint, model_type="blip", needs=[("vocab.txt", "tokenizer.json")]
        )
        config = load_component(BlipConfig.from_pretrained, folder, "configuration")
        vocabulary = config.text_config.vocab_size
        if vocabulary != ENC_TOKEN_ID + 1:
            raise UserError(
                f"{folder / 'config.json'}: text vocabulary of {vocabulary} tokens, not {ENC_TOKEN_ID + 1}: "
                "another model than BLIP image-text matching"
            )
        config.vision_config.layer_norm_eps = VISION_EPS
        self.preprocessor = SquarePreprocessor(config.vision_config.image_size)
        self.tokenizer = load_component(AutoTokenizer.from_pretrained, folder, "tokenizer")
        self._load_half = partial(load_pretrained, BlipForImageTextRetrieval, folder, config)
        return self._load_half(without="vision")

    @cached_property
    def image_encoder(self) -> Any:
        """The vision tower and its projection."""
        model = self._load_half(without="text")
        if self.device.type == "cuda":
            fuse_attention(model.vision_model)
        return model.to(device=self.device, dtype=self.dtype)

    def fingerprint(self) -> dict[str, Any]:
        """The settings of every scorer, and the head."""
        return {**super().fingerprint(), "blip_head": self.head}

    @torch.no_grad()
    def encode_frames(self, inputs: torch.Tensor) -> torch.Tensor:
        """Model inputs to vision tokens (n, 577, width), or with ``itc`` to projections (n, 256)."""
        inputs = inputs.to(device=self.device, dtype=self.dtype)
        tokens = self.image_encoder.vision_model(pixel_values=inputs).last_hidden_state
        return self.image_encoder.vision_proj(tokens[:, 0]) if self.head == "itc" else tokens

    @torch.no_grad()
    def encode_question(self, question: Question) -> torch.Tensor:
        """Token ids of a question, (length,), or with ``itc`` its projection, (256,)."""
        ids = self.tokenizer(
            clean_caption(question.text), truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).input_ids.to(self.device)
        if self.head == "itm":
            ids[0, 0] = ENC_TOKEN_ID
            return ids[0]
        text_encoder = self.model.text_encoder
        hidden = text_encoder.encoder(text_encoder.embeddings(ids)).last_hidden_state
        return self.model.text_proj(hidden[0, 0])

    @torch.no_grad()
    def score(self, features: torch.Tensor, questions: Sequence[torch.Tensor]) -> np.ndarray:
        """Probability of a match (``itm``) or cosine (``itc``), (questions, frames)."""
        if self.head == "itc":
            return cosine(features.to(self.device), questions)
        # The scores stay on the device until all are there, because every copy waits for the GPU.
        scores = torch.empty(len(questions), len(features), dtype=torch.float64, device=self.device)
        for start in range(0, len(features), self.frames_per_pass):
            frames = slice(start, start + self.frames_per_pass)
            tokens = features[frames].to(device=self.device, dtype=self.dtype)
            for group in _token_batches([len(ids) for ids in questions]):
                scores[group, frames] = self._match(tokens, questions[group]).T.double()
        return scores.cpu().numpy()

    def _match(self, tokens: torch.Tensor, questions: Sequence[torch.Tensor]) -> torch.Tensor:
        """Probabilities of a match, (frames, questions)."""
        logits = self.model.itm_head(self._cross_encode(tokens, questions))
        return logits.float().softmax(dim=-1)[..., 1]

    @torch.no_grad()
    def cross_encode(self, tokens: torch.Tensor, questions: Sequence[torch.Tensor]) -> torch.Tensor:
        """The [ENC] vector of each frame and question after cross-attention, (n, questions, 768).

        Args:
            tokens: vision tokens (n, 577, width).
            questions: token ids of each question, (length,).
        """
        groups = _token_batches([len(ids) for ids in questions])
        return torch.cat([self._cross_encode(tokens, questions[group]) for group in groups], dim=1)

    def _cross_encode(self, tokens: torch.Tensor, questions: Sequence[torch.Tensor]) -> torch.Tensor:
        """As :meth:`cross_encode`, in one pass.

        The questions form one sequence. A mask hides each from the others, and each counts its own positions.
        So the costly part, keys and values of a frame's 577 tokens in 12 layers, is computed once for all.
        """
        ids = torch.cat(list(questions))
        lengths = torch.tensor([len(question) for question in questions], device=self.device)
        owner = torch.repeat_interleave(torch.arange(len(questions), device=self.device), lengths)
        starts = torch.cumsum(lengths, 0) - lengths
        positions = torch.arange(len(ids), device=self.device) - starts[owner]
        attention_mask = torch.zeros(len(ids), len(ids), device=self.device, dtype=self.dtype)
        # -10000 is BERT's own; its exp() is 0 in every type.
        attention_mask[owner[:, None] != owner[None, :]] = -10000.0

        text_encoder = self.model.text_encoder
        hidden = text_encoder.embeddings(ids[None], position_ids=positions[None])
        hidden = text_encoder.encoder(
            hidden.expand(len(tokens), -1, -1),
            attention_mask=attention_mask[None, None],
            encoder_hidden_states=tokens,
        ).last_hidden_state
        return hidden[:, starts]


def _token_batches(lengths: Sequence[int]) -> Iterator[slice]:
    """Divide questions into runs of at most ``TOKENS_PER_PASS`` tokens, or of one longer question."""
    start, tokens = 0, 0
    for index, length in enumerate(lengths):
        if tokens and tokens + length > TOKENS_PER_PASS:
            yield slice(start, index)
            start, tokens = index, 0
        tokens += length
    if tokens:
        yield slice(start, len(lengths))
