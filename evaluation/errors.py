"""The error that ends an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def question_id(doc: Mapping[str, Any]) -> str:
    """The document's own id, whichever field its data set keeps it in."""
    return str(doc.get("id") or doc.get("question_id") or doc.get("uid") or "without an id")


class EvaluationError(SystemExit):
    """Ends the process with one line on standard error and status 1.

    This is no ``Exception``, because upstream models catch exceptions and go on with an answer of their own,
    and lmms-eval itself catches them and ends with status 0.
    """

    def __init__(self, text: str, doc: Mapping[str, Any] | None = None) -> None:
        """Make the line.

        Args:
            text: names file, entry and remedy; its line breaks (of a decoder's message) become spaces.
            doc: the question it is about, which is named in front.
        """
        question = "" if doc is None else f"question {question_id(doc)}: "
        self.message = " ".join(f"{question}{text}".splitlines())
        super().__init__(f"error: {self.message}")
