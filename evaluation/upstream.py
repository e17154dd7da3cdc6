"""lmms-eval's model classes, wherever the installed version keeps them: 0.3.0 and newer.

From 0.4 on models stand in ``lmms_eval.models.simple``, before that in ``lmms_eval.models``.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType


def import_model(name: str) -> ModuleType:
    """lmms-eval's module of a model."""
    has_simple = importlib.util.find_spec("lmms_eval.models.simple") is not None
    return importlib.import_module(f"lmms_eval.models.{'simple.' if has_simple else ''}{name}")
