"""The command line of every script: help that ends with examples, and wrong flags named in one line."""

from __future__ import annotations

import argparse
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from aks.errors import UserError, nearest, program


class HelpFormatter(argparse.HelpFormatter):
    """Fills paragraphs to the terminal's width, keeps lists and examples, states the defaults of flags."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip("\n").split("\n\n")
        return "\n\n".join(
            part if part.startswith((" ", "- ")) else textwrap.fill(" ".join(part.split()), width)
            for part in paragraphs
        )

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help
        if action.nargs == 0 or action.default in (None, [], argparse.SUPPRESS) or "(default" in (text or ""):
            return text
        return f"{text} (default: %(default)s)" if text else "(default: %(default)s)"


class ArgumentParser(argparse.ArgumentParser):
    """Names the program as it was called, shows examples last, and reports a wrong flag in one line.

    Args:
        description: a module's docstring. Its indented lines are the examples, in which ``%(prog)s`` stands
            for the program.
        options: of :class:`argparse.ArgumentParser`.
    """

    def __init__(self, description: str | None = None, **options: Any) -> None:
        name = program()
        paragraphs = (description or "").replace("``", "").strip("\n").split("\n\n")
        examples = [part for part in paragraphs if part.startswith("    ")]
        command = f"python {name}" if name.endswith(".py") else name
        epilog = "\n\n".join(["examples:", *examples]).replace("%(prog)s", command)
        settings = {
            "prog": name,
            "description": "\n\n".join(part for part in paragraphs if part not in examples),
            "epilog": epilog if examples else None,
            "formatter_class": HelpFormatter,
            "allow_abbrev": False,
        }
        super().__init__(**{**settings, **options})

    def parse_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """The flags' values.

        Raises:
            UserError: a flag is wrong; names it, and the nearest one that there is.
        """
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].partition("=")[0]
            known = [name for action in self._actions for name in action.option_strings]
            self.error(f"unrecognized argument {unknown[0]}{nearest(flag, known)}")
        return parsed

    def error(self, message: str) -> NoReturn:
        """Raise a UserError instead of printing the usage."""
        message = message.removeprefix("argument ")
        # argparse of Python 3.11 hands a wrong choice and the right ones over in no other way.
        if match := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)$", message):
            message += nearest(match[1], [name.strip("'") for name in match[2].split(", ")])
        raise UserError(f"{message} (see --help)")


def at_least(minimum: float, kind: type = int) -> Callable[[str], float]:
    """An argparse type: a number of a kind that is no less than a minimum."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not minimum <= value < math.inf:
            noun = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text}: must be {noun}, {minimum:g} or more")
        return value

    return parse
