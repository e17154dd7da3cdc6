"""Prompts in Qwen's chat format, and their tokens with a placeholder for each picture or video.

The formats have the names that lmms-eval's argument ``conv_template`` takes. The paper's scripts use
``chatml_direct`` for LLaVA-Video; LLaVA-OneVision's default in lmms-eval is ``qwen_1_5``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from typing import Any

import torch

IGNORE_INDEX = -100  # of labels that count for no loss
IMAGE_TOKEN_INDEX = -200  # stands for a picture or video among token ids
IMAGE_TOKEN = "<image>"
IMAGE_PATCH_TOKEN = "<im_patch>"


class SeparatorStyle(enum.Enum):
    """How turns are told apart. Upstream asks whether a format is ``TWO``, which ends at ``sep2``."""

    TWO = enum.auto()
    CHATML = enum.auto()  # a line break after a role and after a turn
    MPT = enum.auto()  # roles bring their line break, turns have none


@dataclass
class Conversation:
    """A chat so far, as lmms-eval's LLaVA classes use it.

    Attributes:
        system: the first turn.
        roles: what begins a turn of the user, and one of the model.
        sep_style: how turns are joined.
        sep: what ends a turn; a generation stops at it.
        sep2: not used by Qwen's formats; upstream reads it.
        messages: role and text of each turn; the text None for one that is to be generated.
    """

    system: str
    roles: tuple[str, str]
    sep_style: SeparatorStyle
    sep: str = "<|im_end|>"
    sep2: str | None = None
    messages: list[list[str | None]] = field(default_factory=list)

    def copy(self) -> Conversation:
        """The same chat, for more turns."""
        return replace(self, messages=[list(message) for message in self.messages])

    def append_message(self, role: str, text: str | None) -> None:
        """Add a turn."""
        self.messages.append([role, text])

    def get_prompt(self) -> str:
        """The whole chat as the model reads it."""
        line_break = "\n" if self.sep_style is SeparatorStyle.CHATML else ""
        end = self.sep + line_break
        turns = [f"{role}{line_break}{text + end if text else ''}" for role, text in self.messages]
        return "".join([self.system, end, *turns])


def _chatml(system: str) -> Conversation:
    roles = ("<|im_start|>user", "<|im_start|>assistant")
    return Conversation(f"<|im_start|>system\n{system}", roles, SeparatorStyle.CHATML)


conv_templates = {
    "chatml_direct": Conversation(
        "<|im_start|>system\nAnswer the questions.",
        ("<|im_start|>user\n", "<|im_start|>assistant\n"),
        SeparatorStyle.MPT,
    ),
    "qwen_1_5": _chatml("You are a helpful assistant."),
    "qwen_2": _chatml("You are a helpful assistant."),
    "qwen_2_5": _chatml("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
}


def tokenizer_image_token(
    prompt: str, tokenizer: Any, image_token_index: int = IMAGE_TOKEN_INDEX, return_tensors: str | None = None
) -> torch.Tensor | list[int]:
    """Token ids of a prompt, (length,), with ``image_token_index`` at each ``<image>``.

    Each text between two placeholders is tokenized alone, as in training. Qwen's tokenizer has no token for
    the beginning of a text, which would otherwise come again with every part.
    """
    first, *others = (tokenizer(text).input_ids for text in prompt.split(IMAGE_TOKEN))
    ids = list(first)
    for part in others:
        ids += [image_token_index, *part]
    return torch.tensor(ids, dtype=torch.long) if return_tensors == "pt" else ids
