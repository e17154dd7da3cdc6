"""SeViLA's localizer on LAVIS: its BLIP-2, its processors, and the ``sevila.py`` of this project.

It is for those who want the paper's code path, and needs the packages of ``requirements-lavis.txt``.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from aks.errors import UserError, error_message
from aks.labels import Question
from aks.scorers.base import Scorer
from aks.scorers.lavis.blip import import_lavis
from aks.scorers.preprocess import preprocess_with_lavis
from aks.scorers.sevila import SevilaScorer, prompt_ids, prompt_text
from aks.scorers.sevila_weights import check_localizer, find_localizer
from aks.scorers.weights import read_state_dict

DEFAULT_T5 = "google/flan-t5-xl"


class LavisSevilaScorer(SevilaScorer):
    """The LAVIS model ``sevila``; interface, features and scores are those of :class:`SevilaScorer`.

    LAVIS loads ViT-g and Flan-T5 by itself. It also reads the configuration and tokenizer of
    ``bert-base-uncased``, from a folder of that name in the working directory or from the model hub.

    Args:
        checkpoint: ``sevila_pretrained.pth``, the file or a folder that holds it, or a whole model saved
            from LAVIS; None for the published one.
        dtype: float32 or bfloat16 for all parts; None for the original's mix.
        t5_model: hub name or folder of Flan-T5-XL.
        truncation: ``paper`` or ``keep_prompt``, see :func:`aks.scorers.sevila.prompt_ids`.
    """

    def __init__(
        self,
        checkpoint: str | None,
        device: torch.device,
        dtype: torch.dtype | None,
        t5_model: str = DEFAULT_T5,
        truncation: str = "paper",
    ) -> None:
        self._configure(checkpoint, device, dtype, truncation)
        self.t5_model = t5_model
        import_lavis()
        from lavis.processors.blip_processors import BlipCaptionProcessor, BlipImageEvalProcessor

        self._model = self._load_lavis(find_localizer(checkpoint))
        self.preprocessor = partial(preprocess_with_lavis, BlipImageEvalProcessor(image_size=224))
        self.caption_processor = BlipCaptionProcessor()

    def fingerprint(self) -> dict[str, Any]:
        """The settings of every scorer, T5's name, each part's type, the truncation, and the backend."""
        own = {"t5_model": self.t5_model, **self._own_settings(), "backend": "lavis"}
        return {**Scorer.fingerprint(self), **own}

    @torch.no_grad()
    def encode_frames(self, inputs: torch.Tensor) -> torch.Tensor:
        """Model inputs (n, 3, 224, 224) to T5 inputs (n, 32, 2048), whatever the question."""
        dtype = self.precision["vision"]
        if dtype == torch.float16:  # autocast converts the inputs of the layers in float16
            dtype = torch.float32
        return self._model.encode_frames(inputs.to(device=self.device, dtype=dtype))

    def encode_question(self, question: Question) -> torch.Tensor:
        """Token ids of the question's prompt, (1, length), at most 77."""
        if self.truncation == "paper":
            return self._model.tokenize(self.caption_processor(prompt_text(question)))
        ids = prompt_ids(self._model.t5_tokenizer, question, self.truncation)
        return torch.tensor([ids], device=self.device)

    def _yes_logits(self, frames: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return self._model.score_frames(frames, ids)

    def _load_lavis(self, path: Path) -> Any:
        """LAVIS's model with the file's weights."""
        try:
            import sevila
        except ModuleNotFoundError as error:
            raise UserError(
                f"--backend lavis: {error.name} cannot be imported; run from the folder of this project, "
                "which holds sevila.py"
            ) from None
        state = read_state_dict(path)
        half = self.precision["vision"] == torch.float16
        try:
            model = sevila.SeViLA(t5_model=self.t5_model, vit_precision="fp16" if half else "fp32")
        except Exception as error:  # LAVIS's downloads and transformers raise many unrelated types
            raise UserError(
                f"--backend lavis: LAVIS cannot load what SeViLA starts from: ViT-g, {self.t5_model}, "
                f"bert-base-uncased ({error_message(error)[:200]})"
            ) from None
        own = model.state_dict()
        check_localizer(state, own, path)
        model.load_state_dict({key: state[key] for key in own.keys() & state.keys()}, strict=False)
        if self.precision["t5"] == self.precision["vision"]:  # one type for all parts
            model.to(self.dtype)
            model.ln_vision_loc.float()  # LAVIS's layer norm computes in float32 and needs such weights
        return model.to(self.device).eval().requires_grad_(False)
