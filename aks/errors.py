"""The errors of this project, and how a command ends: with one line and a status, without a traceback."""

from __future__ import annotations

import argparse
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

OUT_OF_MEMORY = (
    "the GPU's memory does not suffice; try a smaller --batch_size, or --dtype float16; finished work is kept"
)


class UserError(Exception):
    """A mistake the user can mend; its text is one line naming file, entry and remedy (exit status 2)."""


class VideoError(Exception):
    """One video cannot be read; its text is the reason. The other videos go on (exit status 1)."""


def program() -> str:
    """The program as it was called: ``frame_select.py``, ``python -m aks.recall`` or ``aks select``."""
    name = os.path.basename(sys.argv[0])
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    is_module = spec is not None and name == f"{spec.name.rpartition('.')[2]}.py"
    return f"python -m {spec.name}" if is_module else name


class ArgumentParser(argparse.ArgumentParser):
    """Names the program as it was called, and reports a wrong flag in one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"prog": program(), **options})

    def error(self, message: str) -> NoReturn:
        """Raise a UserError instead of printing the usage."""
        raise UserError(f"{message.removeprefix('argument ')} (see --help)")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Appends the default to the help of each flag that has one and does not state it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.nargs == 0 or action.default is None or "(default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


def run_main(main: Callable[[], int | None]) -> None:
    """Run a script's ``main`` and end the process with its status.

    0 (or None) is success, 1 means that some videos failed, 2 a user's mistake (one line on standard error
    names it), 130 an interrupted run, whose finished work is kept (unless the
    KeyboardInterrupt has a text that says otherwise).
    """
    _end_at_second_interrupt()
    for stream in (sys.stdout, sys.stderr):  # a file name may not fit the terminal's encoding
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except BrokenPipeError:  # the program that reads the output (head, less) has ended
        sys.stderr.close()
        status = 0
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        print(f"error: {OUT_OF_MEMORY} ({str(error).split('. ')[0]})", file=sys.stderr)
        status = 2
    except KeyboardInterrupt as error:
        consequence = str(error) or "finished work is kept, run the same command to go on"
        print(f"interrupted; {consequence}", file=sys.stderr)
        status = 130
    sys.exit(status)


def error_message(error: BaseException) -> str:
    """The message of an exception of a library or the operating system, in one line."""
    text = str(getattr(error, "strerror", None) or error).strip().split("\n")[0]
    text = re.sub(r"^\[[\d:]+\] \S+: ", "", text)  # decord puts the time and a source line in front
    return text.rstrip(" .:") or type(error).__name__


def is_out_of_memory(error: Exception) -> bool:
    """Whether the error is torch's for a full GPU; its name tells, without loading torch."""
    return type(error).__name__ == "OutOfMemoryError"


def _end_at_second_interrupt() -> None:
    """Let a second Ctrl-C end the process at once, also in the middle of a model's long computation.

    The first one stops it in good order, as soon as Python code runs again.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return  # the signal is ignored, as under nohup
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def watch() -> None:
        count = 0
        while received := os.read(reading, 1):
            count += received[0] == signal.SIGINT
            if count == 2:
                os._exit(130)

    threading.Thread(target=watch, daemon=True).start()
