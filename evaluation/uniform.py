"""Uniform frames by the rules of lmms-eval's models, computed without them.

Upstream's code (lmms-eval, qwen-vl-utils, transformers) chooses the uniform frames that a model is shown; a
change here does not change them. The rules are restated for VideoMME's prompts, which hold the subtitles of
these frames, and compared with upstream's frames in tests/evaluation/test_tasks.py. ``uniform_linspace`` also
chooses the frames that :mod:`evaluation.frame_policy` reads in place of a short selection.

Each rule takes a video's number of frames, its rate in frames a second and the budget of frames, and gives
frame indices, (n,) int64 ascending.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch


def uniform_linspace(num_frames: int, budget: int) -> np.ndarray:
    """``budget`` frames from the first to the last, (budget,) int64; short videos repeat frames.

    LLaVA-OneVision's rule in lmms-eval. The released code also shows these frames in place of a short
    selection.
    """
    return np.linspace(0, num_frames - 1, budget, dtype=int).astype(np.int64)


def uniform_one_a_second(num_frames: int, fps: float, budget: int) -> np.ndarray:
    """A frame a second; or ``budget`` frames from first to last, where that is fewer.

    LLaVA-Video's rule in lmms-eval at its default of one frame a second.
    """
    every_second = np.arange(0, num_frames, max(1, round(fps)))
    return every_second if len(every_second) <= budget else uniform_linspace(num_frames, budget)


def uniform_qwen2(num_frames: int, fps: float, budget: int) -> np.ndarray:
    """qwen-vl-utils' two frames a second (4 to 768 of them), evenly thinned to the budget.

    Qwen2-VL's rule in lmms-eval. A video of one frame gives none, because qwen-vl-utils cannot sample it.
    """
    num_read = min(min(max(num_frames / fps * 2, 4), min(768, num_frames) // 2 * 2), num_frames)
    sampled = _rounded_linspace(num_frames, int(num_read) // 2 * 2)
    if not len(sampled):
        return sampled
    return sampled[np.unique(np.linspace(0, len(sampled) - 1, budget, dtype=int))]


def uniform_qwen2_5(num_frames: int, fps: float, budget: int) -> np.ndarray:
    """As ``uniform_qwen2``, but always with the last frame, so that a budget of one shows two.

    Qwen2.5-VL's rule in lmms-eval.
    """
    frame_indices = uniform_qwen2(num_frames, fps, budget)
    return np.union1d(frame_indices, [num_frames - 1]) if len(frame_indices) else frame_indices


def uniform_qwen2_5_chat(num_frames: int, fps: float, budget: int) -> np.ndarray:
    """As many frames as the budget and the video allow, less one where that is odd, from first to last.

    The rule of Qwen2.5-VL's chat class in lmms-eval, where the video has two frames at least.
    """
    return _rounded_linspace(num_frames, min(budget, num_frames) // 2 * 2 or 2)


def uniform_qwen3(num_frames: int, fps: float, budget: int) -> np.ndarray:
    """As many frames as the budget and the video allow, an even number, from first to last.

    Qwen3-VL's rule in lmms-eval.
    """
    return _rounded_linspace(num_frames, round(min(budget, num_frames) / 2) * 2)


def uniform_internvl(num_frames: int, fps: float, budget: int) -> np.ndarray:
    """The middle frame of each of ``budget`` equal parts; none of a video that has fewer frames.

    transformers' rule for InternVL, which refuses such a video.
    """
    if num_frames < budget:
        return np.empty(0, dtype=np.int64)
    # In float32, as transformers computes them.
    return torch.arange(num_frames / budget / 2, num_frames, num_frames / budget).long().numpy()


def _rounded_linspace(num_frames: int, count: int) -> np.ndarray:
    # In float32, as qwen-vl-utils computes its positions with torch; float64 would round some otherwise.
    return torch.linspace(0, num_frames - 1, count).round().long().numpy()


# By the names that datasets/videomme/videomme_w_subtitle.yaml uses.
UNIFORM_RULES: dict[str, Callable[[int, float, int], np.ndarray]] = {
    "linspace": lambda num_frames, fps, budget: uniform_linspace(num_frames, budget),
    "one_a_second": uniform_one_a_second,
    "qwen2": uniform_qwen2,
    "qwen2_5": uniform_qwen2_5,
    "qwen2_5_chat": uniform_qwen2_5_chat,
    "qwen3": uniform_qwen3,
    "internvl": uniform_internvl,
}
