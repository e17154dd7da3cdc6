"""The interface of all relevance scorers: frames and questions in, a score for each pair out.

Every scorer works in the same steps, so that a video is decoded and encoded once, however many questions are
asked about it::

    pixels --preprocess--> model input --encode_frames--> features --+
                                                                     +--score--> (questions, frames)
    question -------------------------encode_question----------------+

``preprocess`` runs on the CPU. Its ``preprocessor`` needs no model, so that decoding processes can run it.
``encode_frames`` is the expensive step and never sees a question, so that its features can be stored.
"""

from __future__ import annotations

import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch

from aks.errors import UserError
from aks.labels import Question
from aks.scorers import DTYPES, LAVIS_SCORERS, SCORERS
from aks.scorers.preprocess import Preprocessor


class Scorer(ABC):
    """Base of all scorers.

    A scorer's constructor takes ``checkpoint`` (None for its default), ``device``, ``dtype`` (None for its
    original's), and the scorer's own options by name. It raises a UserError for a wrong option, and for
    weights that cannot be used.

    Attributes:
        name: the scorer's name on the command line.
        checkpoint: hub name, folder or file the weights came from.
        device: where ``encode_frames`` and ``score`` run.
        dtype: floating type of the model's parameters and features.
        preprocessor: what ``preprocess`` does, as a function of NumPy arrays that can be pickled.
    """

    name: ClassVar[str]
    checkpoint: str
    device: torch.device
    dtype: torch.dtype
    preprocessor: Preprocessor

    @property
    def frames_per_pass(self) -> int:
        """Frames that ``score`` takes at a time; more would take more memory.

        On a GPU small passes are bound by the launches of kernels: SeViLA's T5 takes 66 ms for 16 frames and
        154 ms for 128.
        """
        return 128 if self.device.type == "cuda" else 16

    def fingerprint(self) -> dict[str, Any]:
        """Everything that changes a score, as JSON values; a run records it beside the scores."""
        return {
            "scorer": self.name,
            "checkpoint": self.checkpoint,
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    @cached_property
    def image_encoder(self) -> Any:
        """What ``encode_frames`` alone needs of the model, loaded when it is first asked for.

        Stored features are scored without it. None where the constructor loads all.

        Raises:
            UserError: its weights cannot be used.
        """
        return None

    def preprocess(self, pixels: np.ndarray) -> torch.Tensor:
        """One decoded frame, (height, width, 3) uint8 RGB, to one CPU model input (3, side, side)."""
        return torch.from_numpy(self.preprocessor(pixels))

    @abstractmethod
    def encode_frames(self, inputs: torch.Tensor) -> torch.Tensor:
        """A batch of model inputs (n, 3, side, side) to features (n, ...) on ``device``."""

    @abstractmethod
    def encode_question(self, question: Question) -> Any:
        """What ``score`` needs of a question; computed once for each question."""

    @abstractmethod
    def score(self, features: torch.Tensor, questions: Sequence[Any]) -> np.ndarray:
        """Features (n, ...) and encoded questions to scores, (len(questions), n) float64."""


def resolve_device(device: str) -> torch.device:
    """``cpu``, ``cuda`` or ``cuda:N`` as a torch device.

    Raises:
        UserError: this machine has no such device.
    """
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise UserError(f"--device {device}: not a device; use cpu, cuda or cuda:0") from None
    if resolved.type not in ("cpu", "cuda"):
        raise UserError(f"--device {device}: use cpu, cuda or cuda:0")
    if resolved.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise UserError(f"--device {device}: this machine has no usable CUDA device; use --device cpu")
        if (resolved.index or 0) >= count:
            raise UserError(f"--device {device}: this machine has {count} CUDA device(s), numbered from 0")
    return resolved


def default_device() -> str:
    """``cuda`` where there is a GPU, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_scorer(
    name: str,
    *,
    checkpoint: str | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    backend: str = "transformers",
    with_image_encoder: bool = True,
    **options: Any,
) -> Scorer:
    """Load a scorer by name.

    Args:
        name: ``blip``, ``clip``, ``siglip``, ``sevila`` or ``conse``.
        checkpoint: hub name, folder or file of the weights; None for the scorer's default.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``float32``, ``float16`` or ``bfloat16``; None for the precision of the scorer's
            original (float32; SeViLA keeps its T5 in bfloat16).
        backend: ``transformers``, or ``lavis`` for the original implementation of blip and sevila.
        with_image_encoder: False leaves the image encoder unloaded until the first frame, see
            :attr:`Scorer.image_encoder`; what is wrong with its weights is told then.
        options: the scorer's own keyword arguments (``blip_head``; ``truncation``, ``base``).

    Raises:
        UserError: unknown name, device, dtype or backend, an option the scorer does not have, or weights
            that cannot be loaded.
    """
    if name not in SCORERS:
        raise UserError(f"--extract_feature_model {name}: unknown model; use one of {', '.join(SCORERS)}")
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: use one of {', '.join(DTYPES)}")
    if backend not in ("transformers", "lavis"):
        raise UserError(f"--backend {backend}: use transformers or lavis")
    scorers = LAVIS_SCORERS if backend == "lavis" else SCORERS
    if name not in scorers:
        raise UserError(f"--backend lavis has no {name}; it has {', '.join(scorers)}")
    resolved_device = resolve_device(device)
    # cuDNN's convolutions would round float32 to TF32's 10 bits; scores would differ from a CPU's by 2e-4.
    torch.backends.cudnn.allow_tf32 = False
    scorer_class = pkgutil.resolve_name(scorers[name])
    accepted = inspect.signature(scorer_class).parameters
    for option in options:
        if option not in accepted:
            flag = "sevila_base" if option == "base" else option
            raise UserError(f"--{flag} does not go with the {name} scorer ({backend})")
    torch_dtype = None if dtype is None else getattr(torch, dtype)
    scorer = scorer_class(checkpoint=checkpoint, device=resolved_device, dtype=torch_dtype, **options)
    if with_image_encoder:
        _ = scorer.image_encoder
    return scorer
