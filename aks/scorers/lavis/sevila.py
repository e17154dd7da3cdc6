"""SeViLA's localizer on LAVIS: its BLIP-2, its processors, and the ``sevila.py`` of this project.

Interface and scores are those of :class:`aks.scorers.sevila.SevilaScorer`. It is for those who want the
paper's code path, and needs the packages of ``requirements-lavis.txt``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aks.errors import UserError, error_message
from aks.labels import Question
from aks.scorers.base import Scorer
from aks.scorers.lavis.blip import import_lavis
from aks.scorers.preprocess import preprocess_with_lavis
from aks.scorers.sevila import check_truncation, part_dtypes, prompt_ids, prompt_text
from aks.scorers.sevila_weights import DEFAULT_CHECKPOINT, check_localizer, find_localizer
from aks.scorers.weights import read_state_dict

DEFAULT_T5 = "google/flan-t5-xl"


class LavisSevilaScorer(Scorer):
    """The LAVIS model ``sevila``; features and scores are those of :class:`~aks.scorers.sevila.SevilaScorer`.

    LAVIS loads ViT-g and Flan-T5 by itself. It also reads the configuration and tokenizer of
    ``bert-base-uncased``, from a folder of that name in the working directory or from the model hub.

    Args:
        checkpoint: ``sevila_pretrained.pth``, the file or a folder that holds it, or a whole model saved
            here or on LAVIS; None for the published one.
        device: where the model runs.
        dtype: float32 or bfloat16 for all parts; None for the original's mix.
        t5_model: hub name or folder of Flan-T5-XL.
        truncation: ``paper`` or ``keep_prompt``, see :func:`aks.scorers.sevila.prompt_ids`.

    Raises:
        UserError: LAVIS is not installed or lacks a part, unknown truncation, float16, or weights that
            cannot be used.
    """

    name = "sevila"

    def __init__(
        self,
        checkpoint: str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        *,
        t5_model: str = DEFAULT_T5,
        truncation: str = "paper",
    ) -> None:
        """Load LAVIS's parts, then the checkpoint."""
        self.truncation = check_truncation(truncation)
        self.device = torch.device(device)
        self.precision = part_dtypes(dtype, self.device)
        self.dtype = self.precision["t5"]
        self.checkpoint = str(checkpoint or DEFAULT_CHECKPOINT)
        self.t5_model = t5_model
        import_lavis()
        from lavis.processors.blip_processors import BlipCaptionProcessor, BlipImageEvalProcessor

        path = find_localizer(checkpoint)
        self._model = self._load_model(path)
        self.preprocessor = partial(preprocess_with_lavis, BlipImageEvalProcessor(image_size=224))
        self.caption_processor = BlipCaptionProcessor()

    def fingerprint(self) -> dict[str, Any]:
        """The settings of every scorer, T5's name, each part's type, the truncation, and the backend."""
        precision = {part: str(dtype).removeprefix("torch.") for part, dtype in self.precision.items()}
        return {
            **super().fingerprint(),
            "t5_model": self.t5_model,
            "precision": precision,
            "truncation": self.truncation,
            "backend": "lavis",
        }

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

    @torch.no_grad()
    def score(self, features: torch.Tensor, questions: Sequence[torch.Tensor]) -> np.ndarray:
        """Logits of "yes" at the first decoding step, (questions, frames)."""
        scores = np.empty((len(questions), len(features)))
        for row, ids in enumerate(questions):
            for start in range(0, len(features), self.frames_per_pass):
                frames = slice(start, start + self.frames_per_pass)
                logits = self._model.score_frames(features[frames].to(self.device), ids)
                scores[row, frames] = logits.double().cpu().numpy()
        return scores

    def _load_model(self, path: Path) -> Any:
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
