"""SeViLA's localizer: how strongly a frame makes Flan-T5 say "yes" to "is this a good frame?".

ViT-g and a Q-Former turn a frame into 32 vectors, whatever the question. T5 reads them together with the
question; the score is its logit of "yes" at the first decoding step. The model is transformers'
``Blip2ForConditionalGeneration`` with SeViLA's weights between vision tower and T5, run as LAVIS runs it:

- T5's activation is the exact GELU. (transformers' configuration of Flan-T5 has the tanh form.)
- The layer norm behind the vision tower uses an epsilon of 1e-5, those inside it 1e-6.
- T5 decodes one step. (The original generates up to 30 tokens and reads the scores of the first.)
- T5's parameters are bfloat16, but its residual stream is float32, as the frames' vectors are.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aks.errors import UserError
from aks.labels import Question
from aks.scorers.attention import fuse_attention
from aks.scorers.base import Scorer
from aks.scorers.blip import clean_caption
from aks.scorers.preprocess import SquarePreprocessor
from aks.scorers.sevila_weights import (
    DEFAULT_CHECKPOINT,
    TIED_KEYS,
    check_localizer,
    find_localizer,
    pop_lavis_weights,
    to_lavis_names,
)
from aks.scorers.weights import check_keys, load_component, read_state_dict, resolve_checkpoint, weight_files

DEFAULT_BASE = "Salesforce/blip2-flan-t5-xl"
TRUNCATIONS = ("paper", "keep_prompt")
ENDING = "Is this a good frame can answer the question?"  # the paper's spelling
FRAME_PREFIX = "Frame: "
MAX_TOKENS = 77  # SeViLA's max_txt_len
YES_ID = 4273  # "▁yes" in T5's vocabulary

_LN_VISION_EPS = 1e-5  # LAVIS's ln_vision is a plain LayerNorm
_VISION_EPS = 1e-6  # LAVIS's ViT-g
_DECODER_START_ID = 0  # T5 starts decoding with its padding token


def prompt_text(question: Question) -> str:
    """The paper's prompt for a question, before cleaning; ``Candidate:`` needs a question with options."""
    options = f" Candidate: {question.options_prompt}" if question.options_prompt else ""
    return f"Question: {question.text}{options}. {ENDING}"


def prompt_ids(tokenizer: Any, question: Question, truncation: str) -> list[int]:
    """Token ids of a question's prompt, at most 77 with the closing ``</s>``.

    Args:
        tokenizer: T5's.
        question: the question; its options belong to the prompt.
        truncation: ``paper`` cuts the end at 50 words, then at 77 tokens, so that a long question loses the
            sentence that asks for yes or no. ``keep_prompt`` drops the last words before that sentence until
            both limits hold, and changes nothing where they hold already.
    """
    text = clean_caption(prompt_text(question))
    if truncation == "paper":
        return tokenizer(text, truncation=True, max_length=MAX_TOKENS).input_ids
    ids = tokenizer(text).input_ids
    ending = clean_caption(ENDING).split(" ")
    if text.endswith(" ".join(ending)) and len(ids) <= MAX_TOKENS:
        return ids
    words = clean_caption(prompt_text(question), max_words=sys.maxsize).split(" ")[: -len(ending)]
    for kept in range(len(text.split(" ")) - len(ending), -1, -1):
        ids = tokenizer(" ".join([*words[:kept], *ending])).input_ids
        if len(ids) <= MAX_TOKENS:
            break
    return ids


def part_dtypes(dtype: torch.dtype | None, device: torch.device) -> dict[str, torch.dtype]:
    """The type of each part of the model: ``vision``, ``qformer`` and ``t5``.

    None stands for the original's mix: on CUDA the linear layers of the vision tower in float16 (on a CPU in
    float32), the Q-Former in float32, T5 in bfloat16.

    Raises:
        UserError: the type is float16, whose range T5's activations exceed.
    """
    if dtype == torch.float16:
        raise UserError(
            "--dtype float16: SeViLA's T5 overflows in it; use bfloat16 or float32, or leave it out"
        )
    if dtype is not None:
        return dict.fromkeys(("vision", "qformer", "t5"), dtype)
    vision = torch.float16 if device.type == "cuda" else torch.float32
    return {"vision": vision, "qformer": torch.float32, "t5": torch.bfloat16}


class SevilaScorer(Scorer):
    """SeViLA's localizer; features are 32 vectors of T5's width a frame, scores are logits of "yes".

    Args:
        checkpoint: ``sevila_pretrained.pth``, the file or a folder that holds it; None for the published
            one. A whole model saved from LAVIS serves, too; its own vision tower and T5 are then used.
        dtype: float32 or bfloat16 for all parts; None for the original's mix, see :func:`part_dtypes`.
            T5's parameters pass through bfloat16 even on their way to float32, as in LAVIS.
        base: hub name or folder of BLIP-2 with Flan-T5-XL in the transformers layout, for the vision
            tower, T5 and the tokenizer; None for ``checkpoint`` where that is such a folder, else for
            Salesforce's.
        truncation: ``paper`` or ``keep_prompt``, see :func:`prompt_ids`.

    Attributes:
        base: hub name or folder that was used.
        precision: type of each part.
    """

    name = "sevila"

    def __init__(
        self,
        checkpoint: str | None,
        device: torch.device,
        dtype: torch.dtype | None,
        base: str | None = None,
        truncation: str = "paper",
    ) -> None:
        from transformers import Blip2Config, T5TokenizerFast

        self._configure(checkpoint, device, dtype, truncation)
        if base is None and (Path(self.checkpoint) / "config.json").is_file():
            base = self.checkpoint
        self.base = base or DEFAULT_BASE

        path = find_localizer(checkpoint)
        folder = resolve_checkpoint(
            self.base, model_type="blip-2", needs=[("tokenizer.json", "spiece.model")]
        )
        config = load_component(Blip2Config.from_pretrained, folder, "configuration")
        found = config.text_config.model_type
        if found != "t5":
            raise UserError(f"{folder / 'config.json'}: another model: its language model is {found}, not t5")
        config.text_config.dense_act_fn = "gelu"
        config.vision_config.layer_norm_eps = _VISION_EPS
        self.preprocessor = SquarePreprocessor(config.vision_config.image_size)
        self.tokenizer = load_component(T5TokenizerFast.from_pretrained, folder, "tokenizer")
        if self.tokenizer.convert_tokens_to_ids("▁yes") != YES_ID:
            raise UserError(f"{folder}: another tokenizer than T5's: its 'yes' is not token {YES_ID}")
        prefix = self.tokenizer(FRAME_PREFIX, add_special_tokens=False, return_tensors="pt")
        self._prefix = prefix.input_ids[0].to(self.device)
        self._model = self._load_model(path, folder, config)
        if self.device.type == "cuda":
            fuse_attention(self._model.vision_model)

    def _configure(
        self, checkpoint: str | None, device: torch.device, dtype: torch.dtype | None, truncation: str
    ) -> None:
        """Check and keep the settings that both implementations have."""
        if truncation not in TRUNCATIONS:
            raise UserError(f"--truncation {truncation}: use one of {', '.join(TRUNCATIONS)}")
        self.truncation = truncation
        self.device = device
        self.precision = part_dtypes(dtype, device)
        self.dtype = self.precision["t5"]
        self.checkpoint = str(checkpoint or DEFAULT_CHECKPOINT)

    def fingerprint(self) -> dict[str, Any]:
        """The settings of every scorer, the base, each part's type, and the truncation."""
        return {**super().fingerprint(), "base": self.base, **self._own_settings()}

    def _own_settings(self) -> dict[str, Any]:
        precision = {part: str(dtype).removeprefix("torch.") for part, dtype in self.precision.items()}
        return {"precision": precision, "truncation": self.truncation}

    @torch.no_grad()
    def encode_frames(self, inputs: torch.Tensor) -> torch.Tensor:
        """Model inputs (n, 3, 224, 224) to T5 inputs (n, 32, 2048), whatever the question."""
        model, vision = self._model, self.precision["vision"]
        half = vision == torch.float16
        with torch.autocast(self.device.type, dtype=torch.float16, enabled=half):
            inputs = inputs.to(device=self.device, dtype=torch.float32 if half else vision)
            tokens = model.vision_model(pixel_values=inputs).last_hidden_state
        hidden = model.qformer(
            query_embeds=model.query_tokens.expand(len(tokens), -1, -1),
            encoder_hidden_states=tokens.to(self.precision["qformer"]),
        ).last_hidden_state
        return model.language_projection(hidden)

    def encode_question(self, question: Question) -> torch.Tensor:
        """Token ids of the question's prompt, (length,), at most 77."""
        return torch.tensor(prompt_ids(self.tokenizer, question, self.truncation), device=self.device)

    @torch.no_grad()
    def score(self, features: torch.Tensor, questions: Sequence[torch.Tensor]) -> np.ndarray:
        """Logits of "yes" at the first decoding step, (questions, frames)."""
        # The scores stay on the device until all are there, because every copy waits for the GPU.
        scores = torch.empty(len(questions), len(features), dtype=torch.float64, device=self.device)
        for row, ids in enumerate(questions):
            for start in range(0, len(features), self.frames_per_pass):
                frames = slice(start, start + self.frames_per_pass)
                scores[row, frames] = self._yes_logits(features[frames].to(self.device), ids).double()
        return scores.cpu().numpy()

    def _yes_logits(self, frames: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """The logit of "yes" for T5 inputs (n, 32, width) and one prompt's token ids, (n,)."""
        t5 = self._model.language_model
        embed = t5.get_input_embeddings()
        # bfloat16 words beside float32 frames become float32; T5's own layers stay in bfloat16.
        dtype = torch.promote_types(embed.weight.dtype, frames.dtype)
        before, after = (embed(part).to(dtype).expand(len(frames), -1, -1) for part in (self._prefix, ids))
        inputs = torch.cat([before, frames.to(dtype), after], dim=1)
        return t5(
            inputs_embeds=inputs,
            attention_mask=torch.ones(inputs.shape[:2], dtype=torch.long, device=self.device),
            decoder_input_ids=torch.full((len(frames), 1), _DECODER_START_ID, device=self.device),
            use_cache=False,
        ).logits[:, 0, YES_ID]

    def _load_model(self, path: Path, folder: Path, config: Any) -> Any:
        """The model with the checkpoint's weights, and with the base's where the checkpoint has none."""
        from transformers import Blip2ForConditionalGeneration

        with torch.device("meta"):  # no memory for weights that are replaced, already converted, below
            model = load_component(lambda _: Blip2ForConditionalGeneration(config), folder, "configuration")
        model.vision_model.post_layernorm.eps = _LN_VISION_EPS
        own = model.state_dict()
        state = read_state_dict(path)
        check_localizer(state, to_lavis_names(own), path)
        loaded = {name: self._convert(name, value) for name, value in pop_lavis_weights(state, own)}
        del state
        lacking = {name for name in own if name not in loaded and not name.endswith(TIED_KEYS)}
        if lacking:
            loaded |= self._read_base(folder, own, lacking)
        for name in own:
            if name.endswith(TIED_KEYS):
                loaded[name] = loaded["language_model.shared.weight"]
        model.load_state_dict(loaded, assign=True)
        return model.eval().requires_grad_(False)

    def _read_base(
        self, folder: Path, own: Mapping[str, torch.Tensor], wanted: set[str]
    ) -> dict[str, torch.Tensor]:
        """Read the wanted tensors of the base, shard by shard; each of its keys must belong to the model."""
        loaded, unexpected, mismatched = {}, [], []
        for file in weight_files(folder):
            shard = read_state_dict(file)
            for name in list(shard):
                value = shard.pop(name)  # freed once converted
                if name not in own:
                    unexpected.append(name)
                elif value.shape != own[name].shape:
                    mismatched.append(name)
                elif name in wanted:
                    loaded[name] = self._convert(name, value)
        missing = wanted - loaded.keys() - set(mismatched)
        check_keys(folder, missing=missing, unexpected=unexpected, mismatched=mismatched)
        return loaded

    def _convert(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Copy a weight to the device, in its part's type; the copy never shares the file's memory."""
        dtype = self.precision["qformer"]
        if name.startswith("language_model."):
            value, dtype = value.to(torch.bfloat16), self.precision["t5"]
        elif name.startswith("vision_model."):
            dtype = self.precision["vision"]
            linear = name.startswith("vision_model.encoder.") and "layer_norm" not in name
            # LAVIS keeps norms and embeddings in float32, and with them the residual stream, which in
            # transformers follows the patch embedding's type. Autocast runs that layer in float16 anyway.
            if dtype == torch.float16 and not linear:
                dtype = torch.float32
        return value.to(device=self.device, dtype=dtype, copy=True)
