"""The progress bar of long work, rate and estimate, and lines beside it, on standard error."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress(**options: Any) -> tqdm:
    """A tqdm bar; where standard error is no terminal it prints a line a minute instead of ten a second."""
    return tqdm(mininterval=0.1 if sys.stderr.isatty() else 60, **options)


def log(line: str) -> None:
    """Print a line above the bars that are shown."""
    tqdm.write(line, file=sys.stderr)
