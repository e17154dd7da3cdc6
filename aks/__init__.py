"""Adaptive Keyframe Sampling: the frames of a long video that matter for a question.

>>> import aks
>>> aks.select_keyframes([0.1, 0.9, 0.2, 0.8], frames=[0, 24, 48, 72], budget=2, strategy="top")
[24, 72]
"""

from aks.errors import UserError, VideoError
from aks.selection import select_keyframes

__all__ = ["UserError", "VideoError", "__version__", "select_keyframes"]
__version__ = "0.1.0"
