"""BLIP on LAVIS: its own ``BlipITM``, processors and checkpoint file.

It is for those who want the paper's code path, and needs the packages of ``requirements-lavis.txt``.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from aks.errors import UserError, error_message
from aks.labels import Question
from aks.scorers.blip import BlipScorer
from aks.scorers.preprocess import preprocess_with_lavis
from aks.scorers.weights import find_file, load_strict, read_state_dict

# LAVIS's configurations name two files there. The width of the vision tower tells them apart.
SOURCE = "https://storage.googleapis.com/sfr-vision-language-research/BLIP/models"
BASE_CHECKPOINT = "model_base_retrieval_coco.pth"
MODEL_TYPES = {1024: "large", 768: "base"}


def import_lavis() -> None:
    """Import LAVIS, and undo what that does to decord in the whole process.

    Raises:
        UserError: LAVIS or something it needs is not installed.
    """
    try:
        with warnings.catch_warnings():  # LAVIS imports by timm's old names
            warnings.simplefilter("ignore")
            import lavis.models  # noqa: F401
    except Exception as error:  # a missing package, or a torchvision built for another torch
        raise UserError(
            f"--backend lavis: LAVIS cannot be imported ({error_message(error)}); "
            "install requirements-lavis.txt"
        ) from None
    import decord

    # LAVIS makes decord return torch tensors everywhere; the frame readers expect decord's own arrays.
    decord.bridge.set_bridge("native")


class LavisBlipScorer(BlipScorer):
    """LAVIS's ``BlipITM``; interface, features and scores are those of :class:`aks.scorers.blip.BlipScorer`.

    The checkpoint is LAVIS's ``.pth`` file, large or base, a path or a name in ``./checkpoints``. LAVIS loads
    the tokenizer ``bert-base-uncased`` by itself, from a folder of that name in the working directory or from
    the model hub.
    """

    image_encoder = None  # the model has it
    default_checkpoint = "model_large_retrieval_coco.pth"

    def _load(self) -> Any:
        import_lavis()
        from lavis.processors.blip_processors import BlipCaptionProcessor, BlipImageEvalProcessor

        # The error message names a published file, even if the checkpoint is something else, say a hub name.
        name = Path(self.checkpoint).name
        path = find_file(
            self.checkpoint,
            source=f"{SOURCE}/{BASE_CHECKPOINT if name == BASE_CHECKPOINT else self.default_checkpoint}",
        )
        self.preprocessor = partial(preprocess_with_lavis, BlipImageEvalProcessor(image_size=384))
        self.caption_processor = BlipCaptionProcessor()
        return _load_model(path)

    def fingerprint(self) -> dict[str, Any]:
        """The settings of BLIP, and the backend."""
        return {**super().fingerprint(), "backend": "lavis"}

    @torch.no_grad()
    def encode_frames(self, inputs: torch.Tensor) -> torch.Tensor:
        """Model inputs to vision tokens (n, 577, width), or with ``itc`` to projections (n, 256)."""
        inputs = inputs.to(device=self.device, dtype=self.dtype)
        tokens = self.model.visual_encoder.forward_features(inputs)
        return self.model.vision_proj(tokens[:, 0]) if self.head == "itc" else tokens

    @torch.no_grad()
    def encode_question(self, question: Question) -> torch.Tensor:
        """Token ids of a question, (length,), or with ``itc`` its projection, (256,)."""
        model = self.model
        text = model.tokenizer(
            self.caption_processor(question.text),
            truncation=True,
            max_length=model.max_txt_len,
            return_tensors="pt",
        ).to(self.device)
        if self.head == "itm":
            text.input_ids[0, 0] = model.tokenizer.enc_token_id
            return text.input_ids[0]
        output = model.text_encoder(
            text.input_ids, attention_mask=text.attention_mask, return_dict=True, mode="text"
        )
        return model.text_proj(output.last_hidden_state[0, 0])

    def _match(self, tokens: torch.Tensor, questions: Sequence[torch.Tensor]) -> torch.Tensor:
        columns = []
        for ids in questions:
            output = self.model.text_encoder(
                ids.expand(len(tokens), -1),
                attention_mask=torch.ones(len(tokens), len(ids), device=self.device, dtype=torch.long),
                encoder_hidden_states=tokens,
                encoder_attention_mask=torch.ones(tokens.shape[:2], device=self.device, dtype=torch.long),
                return_dict=True,
            )
            logits = self.model.itm_head(output.last_hidden_state[:, 0])
            columns.append(logits.float().softmax(dim=-1)[:, 1])
        return torch.stack(columns, dim=1)


def _load_model(path: Path) -> Any:
    """LAVIS's model of the file's size, with its weights."""
    from lavis.models.blip_models.blip_image_text_matching import BlipITM
    from lavis.models.med import XBertEncoder
    from lavis.models.vit import VisionTransformerEncoder
    from omegaconf import OmegaConf
    from transformers.modeling_utils import no_init_weights

    state = read_state_dict(path)
    width = state.get("visual_encoder.cls_token", torch.empty(0)).shape[-1]
    model_type = MODEL_TYPES.get(width)
    if model_type is None:
        raise UserError(f"{path}: is not LAVIS's BLIP image-text matching, base or large")
    config = OmegaConf.load(BlipITM.default_config_path(model_type)).model
    try:
        # BlipITM.from_config would load the file itself and ignore keys that do not fit. Random weights would
        # take seconds to draw, and load_strict replaces every one.
        with no_init_weights():
            model = BlipITM(
                image_encoder=VisionTransformerEncoder.from_config(config),
                text_encoder=XBertEncoder.from_config(config),
                embed_dim=config.embed_dim,
            )
    except OSError:
        raise UserError(
            "--backend lavis: no BERT tokenizer; put vocab.txt of bert-base-uncased into ./bert-base-uncased/"
        ) from None
    load_strict(model, state, path)
    return model.eval().requires_grad_(False)
