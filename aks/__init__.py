"""Adaptive Keyframe Sampling: the frames of a long video that matter for a question.

>>> import aks
>>> aks.select_keyframes([0.1, 0.9, 0.2, 0.8], frames=[0, 24, 48, 72], budget=2, strategy="top")
[24, 72]
>>> aks.keyframes("talk.mp4", "When does the speaker show a bicycle?", budget=8)  # doctest: +SKIP
[Keyframe(frame_index=1250, time_s=50.0, score=0.41), ...]

The names below are the public API. They load what they need (NumPy, torch, PyAV) when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from aks.errors import UserError, VideoError

if TYPE_CHECKING:  # type checkers do not see what __getattr__ loads
    from aks.extraction.api import extract as extract
    from aks.extraction.api import store_features as store_features
    from aks.extraction.keyframes import Curve as Curve
    from aks.extraction.keyframes import Keyframe as Keyframe
    from aks.extraction.keyframes import QuestionKeyframes as QuestionKeyframes
    from aks.extraction.keyframes import find_keyframes as find_keyframes
    from aks.extraction.keyframes import keyframes as keyframes
    from aks.labels import LabelSet as LabelSet
    from aks.labels import Question as Question
    from aks.labels import load_labels as load_labels
    from aks.run_dir import RunDir as RunDir
    from aks.scorers.base import load_scorer as load_scorer
    from aks.selection import select_keyframes as select_keyframes
    from aks.video.reader import Video as Video

_MODULES = {
    "Curve": "aks.extraction.keyframes",
    "Keyframe": "aks.extraction.keyframes",
    "LabelSet": "aks.labels",
    "Question": "aks.labels",
    "QuestionKeyframes": "aks.extraction.keyframes",
    "RunDir": "aks.run_dir",
    "Video": "aks.video.reader",
    "extract": "aks.extraction.api",
    "find_keyframes": "aks.extraction.keyframes",
    "keyframes": "aks.extraction.keyframes",
    "load_labels": "aks.labels",
    "load_scorer": "aks.scorers.base",
    "select_keyframes": "aks.selection",
    "store_features": "aks.extraction.api",
}

__all__ = ["UserError", "VideoError", "__version__", *_MODULES]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module 'aks' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value
