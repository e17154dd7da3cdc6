"""SeViLA's localizer: how strongly a frame makes Flan-T5 say "yes" to "is this a good frame?".

A frame becomes 32 vectors that know no question (ViT-g, then a Q-Former); T5 reads them together with
the question, and the score is its logit of "yes" at the first decoding step. The model is transformers'
``Blip2ForConditionalGeneration`` with SeViLA's weights in its middle, run as LAVIS runs its own:

- T5's activation is the exact GELU (transformers' configuration of Flan-T5: the tanh form);
- the layer norm behind the vision tower uses 1e-5, those inside it 1e-6;
- the original generates up to 30 tokens to read the scores of the first: here one decoder step;
- T5 lives in bfloat16, but its residual stream is float32, as the frames' vectors are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from aks.scorers.weights import (
    LOCAL_ROOT,
    check_keys,
    find_file,
    load_component,
    read_state_dict,
    resolve_checkpoint,
    weight_files,
)

DEFAULT_CHECKPOINT = "sevila_pretrained.pth"
REPOSITORY = "Shoubin/SeViLA"  # where the file is published
DEFAULT_BASE = "Salesforce/blip2-flan-t5-xl"
TRUNCATIONS = ("paper", "keep_prompt")
ENDING = "Is this a good frame can answer the question?"  # the paper's spelling
FRAME_PREFIX = "Frame: "
MAX_TOKENS = 77  # SeViLA's max_txt_len
YES_ID = 4273  # "▁yes" in T5's vocabulary
FRAMES_PER_PASS = 16  # bounds the memory of a pass of T5

_LN_VISION_EPS = 1e-5  # LAVIS's ln_vision is a plain LayerNorm
_VISION_EPS = 1e-6  # LAVIS's ViT-g
_DECODER_START_ID = 0  # T5 starts decoding with its padding token

# LAVIS's names beside transformers': of the parts (the first that fits), and of what is inside them.
_PARTS = (
    ("ln_vision_loc.", "vision_model.post_layernorm."),
    ("visual_encoder.", "vision_model."),
    ("query_tokens_loc", "query_tokens"),
    ("Qformer_loc.bert.embeddings.LayerNorm.", "qformer.layernorm."),
    ("Qformer_loc.bert.", "qformer."),
    ("t5_proj_loc.", "language_projection."),
    ("t5_model.", "language_model."),
)
_INSIDE = {
    "vision_model.": (
        ("cls_token", "embeddings.class_embedding"),
        ("pos_embed", "embeddings.position_embedding"),
        ("patch_embed.proj.", "embeddings.patch_embedding."),
        ("blocks.", "encoder.layers."),
        (".norm1.", ".layer_norm1."),
        (".norm2.", ".layer_norm2."),
        (".attn.qkv.", ".self_attn.qkv."),
        (".attn.proj.", ".self_attn.projection."),
    ),
    "qformer.": (("attention.self.", "attention.attention."),),
}
_QKV_BIAS = ".attn.qkv.bias"  # in LAVIS two parameters: q_bias and v_bias, the key's is always 0
# T5's shared embedding once more; some files have the copies.
TIED_KEYS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def prompt_text(question: Question) -> str:
    """The paper's prompt of a question, before cleaning; without ``Candidate:`` where it has no options."""
    options = f" Candidate: {question.options_prompt}" if question.options_prompt else ""
    return f"Question: {question.text}{options}. {ENDING}"


def prompt_ids(tokenizer: Any, question: Question, truncation: str) -> list[int]:
    """Token ids of a question's prompt, at most 77 with the closing ``</s>``.

    Args:
        tokenizer: T5's.
        question: the question; its options belong to the prompt.
        truncation: ``paper`` cuts the end, at 50 words, then at 77 tokens, so that a long question loses
            the sentence that asks for yes or no; ``keep_prompt`` drops the last words before that
            sentence until both limits hold, and changes nothing where they do.
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


def check_truncation(truncation: str) -> str:
    """The option itself.

    Raises:
        UserError: it is neither ``paper`` nor ``keep_prompt``.
    """
    if truncation not in TRUNCATIONS:
        raise UserError(f"--truncation {truncation}: use one of {', '.join(TRUNCATIONS)}")
    return truncation


def part_dtypes(dtype: torch.dtype | None, device: torch.device) -> dict[str, torch.dtype]:
    """Type of each part: ``vision``, ``qformer`` and ``t5``.

    None is the original's mix: the vision tower in float16 on CUDA (its linear layers; float32 on a
    CPU), the Q-Former in float32, T5 in bfloat16.

    Raises:
        UserError: float16, in which T5's activations exceed the largest number.
    """
    if dtype == torch.float16:
        raise UserError("--dtype float16: SeViLA's T5 overflows in it; use bfloat16, float32 or none")
    if dtype is not None:
        return dict.fromkeys(("vision", "qformer", "t5"), dtype)
    vision = torch.float16 if device.type == "cuda" else torch.float32
    return {"vision": vision, "qformer": torch.float32, "t5": torch.bfloat16}


def find_localizer(checkpoint: str | None) -> Path:
    """The file ``sevila_pretrained.pth``, downloaded if need be.

    Args:
        checkpoint: the file, a folder that holds it, or a file name in ``./checkpoints``; None for the
            published one, from ``./checkpoints`` or the model hub.

    Raises:
        UserError: there is no such file.
    """
    path = Path(checkpoint or DEFAULT_CHECKPOINT)
    if path.is_dir():
        if not (path / DEFAULT_CHECKPOINT).is_file():
            raise UserError(f"{path}: has no {DEFAULT_CHECKPOINT}; download it from {REPOSITORY}")
        return path / DEFAULT_CHECKPOINT
    if checkpoint is None and not path.is_file() and not (LOCAL_ROOT / path).is_file():
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(REPOSITORY, DEFAULT_CHECKPOINT))
        except Exception as error:  # the hub client raises many unrelated types
            raise UserError(
                f"{path}: not in {LOCAL_ROOT}, and the model hub did not give it ({type(error).__name__}); "
                f"on a machine with access run: hf download {REPOSITORY} {path} "
                f"--local-dir {LOCAL_ROOT}"
            ) from None
    return find_file(str(path), source=f"{DEFAULT_CHECKPOINT} of {REPOSITORY}")


def check_localizer(
    state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], where: str | Path
) -> None:
    """Refuse a file that is not SeViLA's.

    It must have the localizer. It may have the answerer, which goes unused, and the vision tower and
    T5, each whole or not at all; T5's copied embeddings alone, which training leaves behind, are nothing.

    Args:
        state: the file's tensors.
        own: the model's, under LAVIS's names.
        where: the file, for the message.

    Raises:
        UserError: a key is missing, surplus or misshapen.
    """
    present = {key.split(".", 1)[0] for key in state if not key.endswith(TIED_KEYS)}
    localizer = {key for key in own if "_loc" in key}
    whole = {key for key in own if not key.endswith(TIED_KEYS) and key.split(".", 1)[0] in present}
    answerer = {key.replace("_loc", "", 1) for key in localizer}
    check_keys(
        where,
        missing=(localizer | whole) - state.keys(),
        unexpected=state.keys() - own.keys() - answerer,
        mismatched=[key for key in own.keys() & state.keys() if own[key].shape != state[key].shape],
    )


class SevilaScorer(Scorer):
    """SeViLA's localizer; features are 32 vectors of T5's width a frame, scores are logits of "yes".

    Args:
        checkpoint: ``sevila_pretrained.pth``: the file, or a folder that holds it; None for the published
            one. A whole model saved from LAVIS serves, too, with its own vision tower and T5.
        device: where the model runs.
        dtype: float32 or bfloat16 for all of it; None for the original's mix, see :func:`part_dtypes`.
            T5's parameters pass through bfloat16 even on their way to float32, as in LAVIS.
        base: hub name or folder of BLIP-2 with Flan-T5-XL in the transformers layout, for the vision
            tower, T5 and the tokenizer; None for ``checkpoint`` where that is such a folder, else for
            Salesforce's.
        truncation: ``paper`` or ``keep_prompt``, see :func:`prompt_ids`.

    Attributes:
        base: hub name or folder that was used.
        precision: type of each part.
        side: width and height of a model input in pixels, 224.

    Raises:
        UserError: unknown truncation, float16, or weights that cannot be used.
    """

    name = "sevila"

    def __init__(
        self,
        checkpoint: str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        *,
        base: str | None = None,
        truncation: str = "paper",
    ) -> None:
        """Load the checkpoint and the base."""
        from transformers import Blip2Config, T5TokenizerFast

        self.truncation = check_truncation(truncation)
        self.device = torch.device(device)
        self.precision = part_dtypes(dtype, self.device)
        self.dtype = self.precision["t5"]
        self.checkpoint = str(checkpoint or DEFAULT_CHECKPOINT)
        if base is None and (Path(self.checkpoint) / "config.json").is_file():
            base = self.checkpoint
        self.base = base or DEFAULT_BASE

        path = find_localizer(checkpoint)
        folder = resolve_checkpoint(
            self.base, model_type="blip-2", needs=[("tokenizer.json", "spiece.model")]
        )
        config = load_component(Blip2Config.from_pretrained, folder, "configuration")
        kind = config.text_config.model_type
        if kind != "t5":
            raise UserError(f"{folder / 'config.json'}: another model: its language model is {kind}, not t5")
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

    def fingerprint(self) -> dict[str, Any]:
        """The base's settings, where vision tower and T5 came from, each part's type, and truncation."""
        precision = {part: str(kind).removeprefix("torch.") for part, kind in self.precision.items()}
        return {
            **super().fingerprint(),
            "base": self.base,
            "precision": precision,
            "truncation": self.truncation,
        }

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All weights under SeViLA's names, to save with ``torch.save`` and load here or on LAVIS."""
        return _to_lavis_names(self._model.state_dict())

    @torch.no_grad()
    def encode_frames(self, inputs: torch.Tensor) -> torch.Tensor:
        """Model inputs (n, 3, 224, 224) to T5 inputs (n, 32, 2048), whatever the question."""
        model, vision, kind = self._model, self.precision["vision"], self.precision["qformer"]
        half = vision == torch.float16
        with torch.autocast(self.device.type, dtype=torch.float16, enabled=half):
            inputs = inputs.to(device=self.device, dtype=torch.float32 if half else vision)
            tokens = model.vision_model(pixel_values=inputs).last_hidden_state
        hidden = model.qformer(
            query_embeds=model.query_tokens.expand(len(tokens), -1, -1),
            encoder_hidden_states=tokens.to(kind),
        ).last_hidden_state
        return model.language_projection(hidden)

    def encode_question(self, question: Question) -> torch.Tensor:
        """Token ids of the question's prompt, (length,), at most 77."""
        return torch.tensor(prompt_ids(self.tokenizer, question, self.truncation), device=self.device)

    @torch.no_grad()
    def score(self, features: torch.Tensor, questions: Sequence[torch.Tensor]) -> np.ndarray:
        """Logits of "yes" at the first decoding step, (questions, frames)."""
        # Copied at once: every copy waits for the GPU.
        scores = torch.empty(len(questions), len(features), dtype=torch.float64, device=self.device)
        for row, ids in enumerate(questions):
            for start in range(0, len(features), FRAMES_PER_PASS):
                frames = features[start : start + FRAMES_PER_PASS].to(self.device)
                logits = self._yes_logits(frames, ids)
                scores[row, start : start + FRAMES_PER_PASS] = logits.double()
        return scores.cpu().numpy()

    def _yes_logits(self, frames: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """The logit of "yes" for T5 inputs (n, 32, width) and one prompt's token ids, (n,)."""
        t5 = self._model.language_model
        embed = t5.get_input_embeddings()
        # bfloat16 words beside float32 frames become float32; T5's own layers stay in bfloat16.
        kind = torch.promote_types(embed.weight.dtype, frames.dtype)
        before, after = (embed(tokens).to(kind).expand(len(frames), -1, -1) for tokens in (self._prefix, ids))
        inputs = torch.cat([before, frames.to(kind), after], dim=1)
        return t5(
            inputs_embeds=inputs,
            attention_mask=torch.ones(inputs.shape[:2], dtype=torch.long, device=self.device),
            decoder_input_ids=torch.full((len(frames), 1), _DECODER_START_ID, device=self.device),
            use_cache=False,
        ).logits[:, 0, YES_ID]

    def _load_model(self, path: Path, folder: Path, config: Any) -> Any:
        """The model with the checkpoint's weights, and the base's where the checkpoint has none."""
        from transformers import Blip2ForConditionalGeneration

        with torch.device("meta"):  # shapes alone; the weights come converted, tensor by tensor
            model = load_component(lambda _: Blip2ForConditionalGeneration(config), folder, "configuration")
        model.vision_model.post_layernorm.eps = _LN_VISION_EPS
        own = model.state_dict()
        state = read_state_dict(path)
        check_localizer(state, _to_lavis_names(own), path)
        loaded = {name: self._convert(name, value) for name, value in _pop_lavis_weights(state, own)}
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
        """The wanted tensors of the base, shard by shard; every key of it must belong to the model."""
        loaded, surplus, misshapen = {}, [], []
        for file in weight_files(folder):
            shard = read_state_dict(file)
            for name in list(shard):
                value = shard.pop(name)
                if name not in own:
                    surplus.append(name)
                elif value.shape != own[name].shape:
                    misshapen.append(name)
                elif name in wanted:
                    loaded[name] = self._convert(name, value)
        # A misshapen tensor is there, though of no use.
        missing = wanted - loaded.keys() - set(misshapen)
        check_keys(folder, missing=missing, unexpected=surplus, mismatched=misshapen)
        return loaded

    def _convert(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """A weight in the type it is kept in, on the device; never the file's own memory."""
        if name.startswith("language_model."):
            value = value.to(torch.bfloat16)
        return value.to(device=self.device, dtype=self._stored_type(name), copy=True)

    def _stored_type(self, name: str) -> torch.dtype:
        """The type a weight is kept in."""
        if name.startswith("language_model."):
            return self.precision["t5"]
        if not name.startswith("vision_model."):
            return self.precision["qformer"]
        # LAVIS keeps norms and embeddings in float32, and with them the residual stream: transformers
        # would make it float16 if the patch embedding were. Autocast runs that in float16 anyway.
        linear = name.startswith("vision_model.encoder.") and "layer_norm" not in name
        vision = self.precision["vision"]
        return torch.float32 if vision == torch.float16 and not linear else vision


def _lavis_name(name: str) -> str:
    """LAVIS's name of one of transformers' parameters."""
    theirs, ours = next(pair for pair in _PARTS if name.startswith(pair[1]))
    rest = name.removeprefix(ours)
    for new, old in _INSIDE.get(ours, ()):
        rest = rest.replace(old, new)
    return theirs + rest


def _to_lavis_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict in transformers' names as LAVIS has it."""
    renamed = {}
    for name, value in state.items():
        key = _lavis_name(name)
        if key.endswith(_QKV_BIAS):
            stem = key.removesuffix("qkv.bias")
            renamed[f"{stem}q_bias"], _, renamed[f"{stem}v_bias"] = value.chunk(3)
        else:
            renamed[key] = value
    return renamed


def _pop_lavis_weights(
    state: dict[str, torch.Tensor], names: Iterable[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Those of ``names`` that a state dict of LAVIS has, with their tensors, which leave it."""
    for name in names:
        key = _lavis_name(name)
        stem = key.removesuffix("qkv.bias")
        if key.endswith(_QKV_BIAS) and f"{stem}q_bias" in state:
            query, value = state.pop(f"{stem}q_bias"), state.pop(f"{stem}v_bias")
            yield name, torch.cat([query, torch.zeros_like(query), value])
        elif key in state and not name.endswith(TIED_KEYS):
            yield name, state.pop(key)
