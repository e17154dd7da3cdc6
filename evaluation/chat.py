"""Chat classes of lmms-eval, which are asked with messages instead of a prompt and its visuals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from evaluation.keyframe_mixin import KeyframeMixin

Message = Mapping[str, Any]  # its "content" is a list of texts, pictures and videos


class ChatKeyframes(KeyframeMixin):
    """KeyframeMixin for a chat class, which is asked with messages; stands before it in the bases."""

    # A plug-in registers simple classes alone. lmms-eval asks the class whether it is one, and then the model
    # how it is to be asked.
    is_simple = property(lambda self: False)

    def parse_request(self, request: Any) -> tuple[str, Any, Callable[..., Any], Any, str, str]:
        """Prompt, generation's arguments, what makes the messages, and document number, task and split."""
        prompt, load, generation_arguments, *document = request.arguments
        return prompt, generation_arguments, load, *document

    def visuals_in(self, loaded: list[Message]) -> list[Any]:
        """The videos' paths and the pictures, in their order."""
        return [part["url"] for part in _visual_parts(loaded)]

    def replace_visuals(self, loaded: list[Message], visuals: list[Any]) -> list[Message]:
        """The messages with other visuals."""
        for part, visual in zip(_visual_parts(loaded), visuals, strict=True):
            part["url"] = visual
        return loaded


def _visual_parts(messages: list[Message]) -> list[dict[str, Any]]:
    return [part for message in messages for part in message["content"] if part["type"] in ("image", "video")]
