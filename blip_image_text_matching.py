"""BLIP image-text matching for a LAVIS checkout, with one more head, which returns the pairs' embedding.

Put this file in place of ``lavis/models/blip_models/blip_image_text_matching.py``, or import it where LAVIS
is installed. Either way LAVIS's ``load_model("blip_image_text_matching", ...)`` then builds the class below
from the same configurations and checkpoints. Its heads, for n images and n texts:

    ``itm``    (n, 2) logits of the pairs; softmax, column 1, is the probability of a match
    ``itc``    (n, n) cosines of projected images and texts
    ``itm-e``  (n, 768) [ENC] vectors after cross-attention with the images, which ``itm`` classifies. Such a
               vector depends on its text and cannot score another question.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lavis.common.registry import registry
from lavis.models.blip_models.blip import BlipBase
from lavis.models.med import XBertEncoder
from lavis.models.vit import VisionTransformerEncoder
from torch import nn

HEADS = ("itm", "itc", "itm-e")


class BlipITM(BlipBase):
    """BLIP's two towers with a matching and a contrastive head; model types ``base`` and ``large``.

    Args:
        image_encoder: vision transformer with a ``vision_width``.
        text_encoder: BERT with cross-attention.
        embed_dim: width of the contrastive projections.
        max_txt_len: most tokens of a text; the rest is cut.
    """

    PRETRAINED_MODEL_CONFIG_DICT = {  # noqa: RUF012 (LAVIS's name and type)
        "base": "configs/models/blip_itm_base.yaml",
        "large": "configs/models/blip_itm_large.yaml",
    }

    def __init__(
        self,
        image_encoder: nn.Module,
        text_encoder: nn.Module,
        embed_dim: int = 256,
        max_txt_len: int = 35,
    ) -> None:
        """Join the towers; parameter names are those of LAVIS's checkpoints."""
        super().__init__()
        self.tokenizer = self.init_tokenizer()
        self.visual_encoder = image_encoder
        self.text_encoder = text_encoder
        self.max_txt_len = max_txt_len
        text_width = text_encoder.config.hidden_size
        self.vision_proj = nn.Linear(image_encoder.vision_width, embed_dim)
        self.text_proj = nn.Linear(text_width, embed_dim)
        self.itm_head = nn.Linear(text_width, 2)

    @classmethod
    def from_config(cls, cfg: Any = None) -> BlipITM:
        """The model and weights that a LAVIS configuration names."""
        model = cls(
            VisionTransformerEncoder.from_config(cfg),
            XBertEncoder.from_config(cfg),
            embed_dim=cfg.get("embed_dim", 256),
            max_txt_len=cfg.get("max_txt_len", 35),
        )
        model.load_checkpoint_from_config(cfg)
        return model

    def forward(self, samples: dict[str, Any], match_head: str = "itm") -> torch.Tensor:
        """Score or embed pairs.

        Args:
            samples: ``image`` (n, 3, side, side) and ``text_input``, n texts.
            match_head: one of ``HEADS``.
        """
        if match_head not in HEADS:
            raise ValueError(f"match_head {match_head!r}: use one of {', '.join(HEADS)}")
        image_tokens = self.visual_encoder.forward_features(samples["image"])
        text = self.tokenizer(
            samples["text_input"],
            padding="longest",
            truncation=True,
            max_length=self.max_txt_len,
            return_tensors="pt",
        ).to(image_tokens.device)
        if match_head == "itc":
            return self._contrast(image_tokens, text.input_ids, text.attention_mask)
        bound = self._bind(image_tokens, text.input_ids, text.attention_mask)
        return bound if match_head == "itm-e" else self.itm_head(bound)

    def itm_rank(
        self,
        image_embeds: torch.Tensor,
        image_atts: torch.Tensor,
        encoder_input_ids: torch.Tensor,
        match_head: str = "itm",
    ) -> torch.Tensor:
        """Rank texts that begin with a prompt of three tokens, which LAVIS's Img2Prompt needs.

        Args:
            image_embeds: vision tokens (n, 577, width).
            image_atts: their mask.
            encoder_input_ids: padded token ids (n, length).
            match_head: ``itm`` (probabilities (n,)) or ``itc`` (cosines (n, n)).
        """
        ids = encoder_input_ids[:, 3:].clone()
        mask = (ids != self.tokenizer.pad_token_id).long()
        if match_head == "itc":
            ids[:, 0] = self.tokenizer.cls_token_id
            return self._contrast(image_embeds, ids, mask)
        return self.itm_head(self._bind(image_embeds, ids, mask, image_atts)).softmax(dim=1)[:, 1]

    def _bind(
        self,
        image_tokens: torch.Tensor,
        ids: torch.Tensor,
        mask: torch.Tensor,
        image_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The texts' [ENC] vectors (n, width) after cross-attention with their images."""
        if image_mask is None:
            image_mask = torch.ones(image_tokens.shape[:-1], dtype=torch.long, device=image_tokens.device)
        ids = ids.clone()
        ids[:, 0] = self.tokenizer.enc_token_id
        output = self.text_encoder(
            ids,
            attention_mask=mask,
            encoder_hidden_states=image_tokens,
            encoder_attention_mask=image_mask,
            return_dict=True,
        )
        return output.last_hidden_state[:, 0]

    def _contrast(self, image_tokens: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Cosines (images, texts) of the two projections."""
        output = self.text_encoder(ids, attention_mask=mask, return_dict=True, mode="text")
        images = F.normalize(self.vision_proj(image_tokens[:, 0]), dim=-1)
        texts = F.normalize(self.text_proj(output.last_hidden_state[:, 0]), dim=-1)
        return images @ texts.T


def compute_gradcam(
    model: BlipITM,
    visual_input: torch.Tensor,
    text_input: Sequence[str],
    tokenized_text: Any,
    block_num: int = 6,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Show which image patches make a text match: attention maps weighted by their positive gradients.

    LAVIS's PNP-VQA and Img2Prompt import this function from this module.

    Args:
        model: matching model.
        visual_input: images (n, 3, side, side).
        text_input: n texts.
        tokenized_text: the texts, tokenized; ``attention_mask`` (n, length) is used.
        block_num: text layer whose cross-attention is read.

    Returns:
        For each image the maps (length + 1, rows, columns) of [ENC], of the mean over the text's tokens, and
        of every later token; and the ``itm`` logits (n, 2).
    """
    attention = model.text_encoder.encoder.layer[block_num].crossattention.self
    attention.save_attention = True
    output = model({"image": visual_input, "text_input": text_input}, match_head="itm")
    model.zero_grad()
    output[:, 1].sum().backward()

    with torch.no_grad():
        mask = tokenized_text.attention_mask
        # (n, heads, length, 1 + patches): drop the image's [CLS], weigh, average the heads
        weighted = attention.get_attention_map() * attention.get_attn_gradients().clamp(min=0)
        maps = (weighted[..., 1:] * mask[:, None, :, None]).mean(dim=1)
        maps = maps.unflatten(-1, (int(maps.shape[-1] ** 0.5), -1)).cpu()
        results = []
        for tokens, length in zip(maps, (mask.sum(dim=1) - 2).tolist(), strict=True):  # less [ENC], [SEP]
            mean = tokens[1 : length + 1].sum(dim=0, keepdim=True) / length
            results.append(torch.cat([tokens[:1], mean, tokens[1:]]))
    return results, output


# registry.register_model would refuse a name that LAVIS's own class has taken already.
registry.mapping["model_name_mapping"]["blip_image_text_matching"] = BlipITM

if not __name__.startswith("lavis."):
    import decord

    # Importing LAVIS makes decord return torch tensors in the whole process. LAVIS's readers need that; where
    # this file lies outside LAVIS, other readers expect decord's own arrays.
    decord.bridge.set_bridge("native")
