"""Which code answers as LLaVA: LLaVA-NeXT's package, or this project's on transformers; what both share.

The environment variable ``LLAVA`` chooses ``next`` or ``transformers``. Without it LLaVA-NeXT runs where it
is installed, else transformers. Importing this module does not import either.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from aks.errors import UserError
from evaluation.errors import EvaluationError
from evaluation.upstream import import_model

NEXT, TRANSFORMERS = "next", "transformers"
INSTALL_NEXT = "pip install --no-deps -r requirements-llava-nodeps.txt"
MODELS = ("llava_vid", "llava_onevision")  # lmms-eval's names


@functools.cache
def choose() -> str:
    """``next`` or ``transformers``.

    Raises:
        UserError: ``LLAVA`` is neither, or asks for LLaVA-NeXT where that is not installed.
    """
    asked = os.environ.get("LLAVA", "")
    if asked not in ("", NEXT, TRANSFORMERS):
        raise UserError(f"LLAVA={asked}: use next or transformers, or leave it unset")
    if asked == TRANSFORMERS:
        return TRANSFORMERS
    spec = importlib.util.find_spec("llava")
    folders = (spec.submodule_search_locations or []) if spec else []
    # Other packages have the name, too. Importing it to see takes ten seconds.
    if any((Path(folder) / "model/builder.py").is_file() for folder in folders):
        return NEXT
    if asked == NEXT:
        raise UserError(f"LLAVA=next: LLaVA-NeXT's package llava is not installed; run: {INSTALL_NEXT}")
    return TRANSFORMERS


def provide_llava() -> str:
    """Make ``import llava`` work in this process, whichever implementation it is; returns its name.

    Raises:
        EvaluationError: as :func:`choose`; one line.
    """

    try:
        chosen = choose()
    except UserError as error:
        raise EvaluationError(str(error)) from None
    if chosen == TRANSFORMERS and in_use() is None:
        from evaluation.llava_on_transformers.package import install

        install()
    return chosen


def import_upstream(name: str) -> ModuleType:
    """lmms-eval's module of a LLaVA model, which imports ``llava`` by name."""
    provide_llava()
    return import_model(name)


def in_use() -> str | None:
    """The implementation that this process has imported; None before one is."""
    return choose() if "llava.model.builder" in sys.modules else None
