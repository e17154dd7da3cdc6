"""Qwen's chat format, in the two spellings of the evaluations."""

import enum
from dataclasses import dataclass, field, replace

SeparatorStyle = enum.Enum("SeparatorStyle", "SINGLE TWO MPT CHATML")


@dataclass
class Conversation:
    roles: tuple[str, str]
    system: str
    sep_style: SeparatorStyle
    after_role: str = ""
    after_turn: str = ""
    sep: str = "<|im_end|>"
    sep2: str | None = None
    messages: list[list] = field(default_factory=list)

    def copy(self):
        return replace(self, messages=[list(message) for message in self.messages])

    def append_message(self, role, text):
        self.messages.append([role, text])

    def get_prompt(self):
        turns = [
            f"{role}{self.after_role}" + (f"{text}{self.sep}{self.after_turn}" if text else "")
            for role, text in self.messages
        ]
        return f"{self.system}{self.sep}{self.after_turn}" + "".join(turns)


conv_templates = {
    "chatml_direct": Conversation(
        ("<|im_start|>user\n", "<|im_start|>assistant\n"),
        "<|im_start|>system\nAnswer the questions.",
        SeparatorStyle.MPT,
    ),
    "qwen_1_5": Conversation(
        ("<|im_start|>user", "<|im_start|>assistant"),
        "<|im_start|>system\nYou are a helpful assistant.",
        SeparatorStyle.CHATML,
        after_role="\n",
        after_turn="\n",
    ),
}
