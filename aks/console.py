"""Progress bars and log lines of the commands, on standard error."""

from __future__ import annotations

import logging
import sys
from typing import Any

from tqdm import tqdm


class _Bar(tqdm):
    """A bar of which nothing is seen before its delay is over, whatever asks for it."""

    def refresh(self, *args: Any, **options: Any) -> None:
        """Show the bar anew; tqdm asks for it after log lines, too, without regard to the delay."""
        # A hidden bar has no clock.
        if not self.disable and (self.delay <= 0 or self._time() - self.start_t >= self.delay):
            super().refresh(*args, **options)


class _AboveBars(logging.Handler):
    """Prints log lines above the progress bars that are shown."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def configure_logging(level: int = logging.WARNING) -> None:
    """Print this project's log lines of a level and above to standard error.

    Only commands do this. A program that imports the library configures ``logging.getLogger("aks")`` itself.
    """
    logger = logging.getLogger("aks")
    if not any(isinstance(handler, _AboveBars) for handler in logger.handlers):
        logger.addHandler(_AboveBars())
    logger.setLevel(level)


def progress(**options: Any) -> tqdm:
    """A tqdm bar, which ``--quiet`` hides.

    Where standard error is no terminal it prints a line a minute, the first after a minute.
    """
    is_quiet = logging.getLogger("aks").getEffectiveLevel() > logging.WARNING
    options["disable"] = options.get("disable", False) or is_quiet
    if not sys.stderr.isatty():
        options |= {"mininterval": 60, "delay": 60}
    return _Bar(**options)
