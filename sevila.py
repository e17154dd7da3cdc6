"""SeViLA's localizer for LAVIS: the model ``sevila``, which scores frames with ``generate_score``.

Use it in one of two ways:

- in a SeViLA checkout (a fork of LAVIS), in place of ``lavis/models/sevila_models/sevila.py``;
- beside an installed ``salesforce-lavis``: ``import sevila`` registers the model.

Then ``load_model_and_preprocess("sevila", "pretrain_flant5xl", ...)`` works as for LAVIS's own models.
ViT-g and Flan-T5-XL load as for LAVIS's BLIP-2. The localizer's weights, ``sevila_pretrained.pth``, come from
the configuration's ``finetuned``, else from ``sevila_checkpoints/`` or ``checkpoints/`` in the working
directory, else from the web. This file scores frames; SeViLA's answerer and training need SeViLA's own file.

It runs from Python 3.8 and torch 1.13 on, as SeViLA's environment has them, and needs nothing but LAVIS.
"""

from __future__ import annotations

import logging
import os

import torch
from lavis.common.dist_utils import download_cached_file
from lavis.common.registry import registry
from lavis.common.utils import is_url
from lavis.models.blip2_models.blip2_t5 import Blip2T5

CHECKPOINT_URL = "https://huggingface.co/Shoubin/SeViLA/resolve/main/sevila_pretrained.pth"
CHECKPOINT_PATHS = ("sevila_checkpoints/sevila_pretrained.pth", "checkpoints/sevila_pretrained.pth")


class SeViLA(Blip2T5):
    """BLIP-2 with Flan-T5 whose Q-Former was trained to tell frames that answer a question.

    Args:
        kwargs: those of LAVIS's ``Blip2T5``: ``img_size``, ``vit_precision``, ``num_query_token``,
            ``t5_model`` and so on.
    """

    PRETRAINED_MODEL_CONFIG_DICT = {  # noqa: RUF012 (LAVIS's convention)
        "pretrain_flant5xl": "configs/models/blip2/blip2_pretrain_flant5xl.yaml",
    }
    # SeViLA's own values. They replace the configuration's max_txt_len.
    max_tokens = 77
    frame_prefix = "Frame: "
    yes_id = 4273

    def __init__(self, **kwargs) -> None:
        """Build LAVIS's BLIP-2 (which loads ViT-g and T5); the localizer's weights come after."""
        super().__init__(**kwargs)
        # Blip2T5 builds the same parts as the localizer has. The checkpoint names them with "_loc".
        for name in ("Qformer", "query_tokens", "t5_proj", "ln_vision"):
            part = getattr(self, name)
            delattr(self, name)
            setattr(self, name + "_loc", part)

    @classmethod
    def from_config(cls, cfg):  # noqa: ANN001
        """LAVIS's constructor from a model configuration (an OmegaConf node or a dict)."""
        model = cls(
            img_size=cfg.get("image_size", 224),
            drop_path_rate=cfg.get("drop_path_rate", 0),
            use_grad_checkpoint=cfg.get("use_grad_checkpoint", False),
            vit_precision=cfg.get("vit_precision", "fp16"),
            freeze_vit=cfg.get("freeze_vit", True),
            num_query_token=cfg.get("num_query_token", 32),
            t5_model=cfg.get("t5_model", "google/flan-t5-xl"),
        )
        local = [path for path in CHECKPOINT_PATHS if os.path.isfile(path)]
        model.load_checkpoint(cfg.get("finetuned") or (local[0] if local else CHECKPOINT_URL))
        return model

    def load_checkpoint(self, url_or_filename: str) -> None:
        """Load ``sevila_pretrained.pth`` or a saved state dict of this model, as a path or a URL.

        Raises:
            RuntimeError: no such file, a parameter of the localizer is missing or of another shape, or
                a name is neither this model's nor the answerer's. One line, with the names.
        """
        path = url_or_filename
        if is_url(path):
            path = download_cached_file(path, check_hash=False, progress=True)
        if not os.path.isfile(path):
            raise RuntimeError(f"{path}: no such checkpoint")
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("model", state)
        own = self.state_dict()
        # Buffers may be missing, and so may vision tower and T5, which LAVIS has loaded already.
        needed = {key for key in own if "_loc" in key and not key.endswith("position_ids")}
        answerer = {key.replace("_loc", "", 1) for key in own if "_loc" in key}
        problems = {
            "missing": needed - set(state),
            "unexpected": set(state) - set(own) - answerer,
            "of another shape": {key for key in own if key in state and state[key].shape != own[key].shape},
        }
        found = [f"{kind}: {', '.join(sorted(keys)[:3])}" for kind, keys in problems.items() if keys]
        if found:
            raise RuntimeError(f"{path}: not SeViLA's weights ({'; '.join(found)})")
        self.load_state_dict({key: state[key] for key in state if key in own}, strict=False)
        logging.info("loaded the localizer from %s", path)

    def encode_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames (n, 3, 224, 224) to T5 inputs (n, 32, T5's width), for any question."""
        # LAVIS loads the vision tower in float16 for CUDA; on a CPU it must be in float32.
        half = self.visual_encoder.patch_embed.proj.weight.dtype == torch.float16
        with torch.autocast(frames.device.type, dtype=torch.float16, enabled=half):
            tokens = self.visual_encoder(frames)
        tokens = self.ln_vision_loc(tokens)
        hidden = self.Qformer_loc.bert(
            query_embeds=self.query_tokens_loc.expand(len(tokens), -1, -1),
            encoder_hidden_states=tokens,
            encoder_attention_mask=torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device),
            return_dict=True,
        ).last_hidden_state
        return self.t5_proj_loc(hidden)

    def tokenize(self, text: str) -> torch.Tensor:
        """A cleaned prompt to token ids (1, length), cut at 77."""
        tokens = self.t5_tokenizer(text, truncation=True, max_length=self.max_tokens, return_tensors="pt")
        return tokens.input_ids.to(self.device)

    def score_frames(self, features: torch.Tensor, text_ids: torch.Tensor) -> torch.Tensor:
        """Logit of "yes" at the first decoding step, (n,) float32.

        Args:
            features: what ``encode_frames`` returns, (n, 32, T5's width).
            text_ids: token ids of one prompt, (1, length).
        """
        prefix = self.t5_tokenizer(self.frame_prefix, add_special_tokens=False, return_tensors="pt").input_ids
        before, after = (
            self.t5_model.encoder.embed_tokens(ids.to(features.device)).expand(len(features), -1, -1)
            for ids in (prefix, text_ids)
        )
        # bfloat16 words beside float32 frames become float32; T5's own layers stay in bfloat16.
        inputs = torch.cat([before, features, after], dim=1)
        start = self.t5_model.config.decoder_start_token_id
        logits = self.t5_model(
            inputs_embeds=inputs,
            attention_mask=torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device),
            decoder_input_ids=torch.full((len(features), 1), start, dtype=torch.long, device=inputs.device),
            return_dict=True,
        ).logits
        return logits[:, 0, self.yes_id].float()

    @torch.no_grad()
    def generate_score(self, samples: dict, frames_per_pass: int = 32) -> torch.Tensor:
        """Relevance of every frame to its video's question: the logit of "yes".

        Args:
            samples: ``video``, preprocessed frames (videos, frames, 3, 224, 224); ``loc_input``, the cleaned
                prompt, one text for all videos or a list with one for each.
            frames_per_pass: frames that are scored at once, which bounds the memory.

        Returns:
            (videos, frames) float32, on the model's device.
        """
        videos, texts = samples["video"], samples["loc_input"]
        if isinstance(texts, str):
            texts = [texts] * len(videos)
        if len(texts) != len(videos):
            raise ValueError(f"{len(videos)} videos but {len(texts)} texts in loc_input")
        scores = []
        for frames, text in zip(videos, texts):  # noqa: B905 (Python 3.8)
            ids = self.tokenize(text)
            parts = frames.to(self.device).split(frames_per_pass)
            scores.append(torch.cat([self.score_frames(self.encode_frames(part), ids) for part in parts]))
        return torch.stack(scores)

    def forward(self, samples: dict) -> torch.Tensor:
        """Call ``generate_score``."""
        return self.generate_score(samples)

    def generate(self, *args, **kwargs) -> None:
        """Raise an error: answering questions needs SeViLA's own model."""
        raise NotImplementedError("this model scores frames; for SeViLA's answers use SeViLA's own sevila.py")

    predict_answers = generate


# registry.register_model would refuse a name that a checkout's own class has taken already.
registry.mapping["model_name_mapping"]["sevila"] = SeViLA

if not __name__.startswith("lavis."):
    import decord

    # Importing LAVIS makes decord return torch tensors in the whole process. LAVIS's readers need that; where
    # this file lies outside LAVIS, other readers expect decord's own arrays.
    decord.bridge.set_bridge("native")
