"""Gumbel top-k: frames drawn without replacement, each as likely as its softmax says.

Source: Zhang et al., "Q-Frame: Query-aware Frame Selection and Multi-Resolution Adaptation for Video-LLMs",
ICCV 2025, section 3.2; github.com/xiaomi-research/q-frame, ``TextImageMatching`` in
``lmms_eval/models/qwen2_vl_w_qframe.py``, commit 1b08494. Its resolutions are not part of a selection.
"""

from __future__ import annotations

import math

import numpy as np


def select_gumbel(
    scores: np.ndarray, budget: int, *, temperature: float = 0.1, seed: int = 0, **_: object
) -> np.ndarray:
    """The ``budget`` largest of score / temperature plus Gumbel noise.

    The original divides the encoder's raw products by its temperature; here scores are 0 to 1, whatever the
    scorer.

    Args:
        scores: normalized relevance, (n,).
        budget: number of keyframes, at most n.
        temperature: 0 gives the best scores; the higher it is, the more alike all frames are.
        seed: of the noise; equal seeds give equal frames.

    Raises:
        ValueError: ``temperature`` or ``seed`` out of range.
    """
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; it must be a number, 0 or more")
    if not (0 <= seed < math.inf and seed == int(seed)):
        raise ValueError(f"seed is {seed}; it must be a whole number, 0 or more")
    noise = np.random.default_rng(int(seed)).gumbel(size=len(scores))
    return np.sort(np.argsort(-(scores + temperature * noise), kind="stable")[:budget])
