"""What LLaVA-Video and LLaVA-OneVision share: keyframes, and the choice of the code that answers."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any, ClassVar

from aks.errors import UserError
from evaluation.errors import EvaluationError
from evaluation.keyframe_mixin import KeyframeMixin
from evaluation.llava_implementation import NEXT, TRANSFORMERS, choose
from evaluation.mm_utils import model_name_for


class LlavaKeyframes(KeyframeMixin):
    """KeyframeMixin for LLaVA; also chooses whose code answers, LLaVA-NeXT's or transformers'.

    It stands before lmms-eval's LLaVA class in the bases.

    Attributes:
        upstream: the module of lmms-eval's class.
    """

    upstream: ClassVar[ModuleType]

    def __init__(self, pretrained: str, tower_attention: str | None = None, **kwargs: Any) -> None:
        """Take upstream's arguments and ours, and say which implementation runs.

        Args:
            pretrained: the checkpoint, a folder or a hub name.
            tower_attention: on transformers, how the vision tower computes its attention: ``eager`` (the
                default, as LLaVA-NeXT), ``sdpa`` or ``flash_attention_2``.
            kwargs: upstream's, and KeyframeMixin's.
        """
        implementation = choose()
        if implementation == TRANSFORMERS:
            from evaluation.llava_on_transformers.checkpoint import find_checkpoint

            model_name_for(pretrained)  # tells another model's configuration best
            try:
                pretrained = str(find_checkpoint(pretrained))
            except UserError as error:
                raise EvaluationError(str(error)) from None
            self.upstream.load_pretrained_model = functools.partial(
                self.upstream.load_pretrained_model, tower_attention=tower_attention or "eager"
            )
        elif tower_attention is not None:
            raise EvaluationError(
                f"model argument tower_attention={tower_attention}: only LLAVA=transformers has it"
            )
        super().__init__(pretrained=pretrained, **kwargs)
        self._identity |= {"implementation": implementation, "tower_attention": tower_attention}
        name = "LLaVA-NeXT's package llava" if implementation == NEXT else "transformers, without LLaVA-NeXT"
        self._log(f"LLaVA runs on {name} (LLAVA={implementation})")

    def validate_model_args(self, arguments: dict[str, Any]) -> None:
        """Refuse decode backends that sample on their own, and on transformers prompts of other models."""
        backend = arguments.get("video_decode_backend", "decord")
        if backend != "decord":
            raise EvaluationError(f"model argument video_decode_backend={backend}: only decord is supported")
        if choose() == TRANSFORMERS:
            from evaluation.llava_on_transformers.prompts import conv_templates

            name = arguments.get("conv_template", self.upstream_default("conv_template"))
            if name not in conv_templates:
                raise EvaluationError(
                    f"model argument conv_template={name}: use {', '.join(conv_templates)}; the paper's is "
                    "chatml_direct for LLaVA-Video, qwen_1_5 for LLaVA-OneVision"
                )
