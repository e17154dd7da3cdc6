"""lmms-eval's model classes, wherever the installed version keeps them: 0.3.0 and newer.

From 0.4 on models stand in ``lmms_eval.models.simple``, before that in ``lmms_eval.models``.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType


def import_model(name: str, kind: str = "simple") -> ModuleType:
    """lmms-eval's module of a model, for classes of a kind: ``simple`` or ``chat``."""
    has_simple = importlib.util.find_spec("lmms_eval.models.simple") is not None
    return importlib.import_module(f"lmms_eval.models.{f'{kind}.' if has_simple else ''}{name}")
