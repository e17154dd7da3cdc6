"""The models that lmms-eval 0.6 and newer find by themselves where this project is installed.

An entry point of the group ``lmms_eval.models`` names :func:`manifests` (pyproject.toml). The models have
names of their own, ``llava_vid_aks`` beside lmms-eval's ``llava_vid``: the installation changes no model.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

SUFFIX = "_aks"


def manifests() -> list[ModelManifest]:
    """A manifest for each model in ``evaluation/models``.

    The evaluation belongs to a checkout (``pip install --no-deps -e .``); an installation without it has no
    models. lmms-eval drops the models of every other package where an entry point raises, so nothing raises.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    root = Path(__file__).resolve().parent.parent
    if not (root / "evaluation/models").is_dir():
        return []
    if str(root) not in sys.path:
        sys.path.append(str(root))  # at the end, where it hides no other package
    spec = importlib.util.find_spec("evaluation")
    if spec is None or Path(spec.origin or "").resolve() != root / "evaluation/__init__.py":
        warnings.warn(
            f"another package named evaluation hides {root / 'evaluation'}: no model ends in {SUFFIX}",
            stacklevel=2,
        )
        return []
    from evaluation.models import AVAILABLE_MODELS

    return [
        ModelManifest(f"{name}{SUFFIX}", simple_class_path=f"evaluation.models.{name}.{class_name}")
        for name, class_name in AVAILABLE_MODELS.items()
    ]
