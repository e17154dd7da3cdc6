"""Keyframe selection from one video's relevance scores: uniform, TOP, BIN and ADA (the paper's section 3.3).

Every strategy is one function in :data:`STRATEGIES`; those of other authors are in :mod:`aks.strategies`. It
returns *positions* among the candidate frames; :func:`select_keyframes` turns positions into frame indices.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from aks.strategies.apart import select_apart
from aks.strategies.bolt import select_bolt
from aks.strategies.fill import fill
from aks.strategies.gumbel import select_gumbel
from aks.strategies.maximum import select_maximum
from aks.strategies.mdp3 import select_mdp3
from aks.strategies.nms import select_nms
from aks.strategies.segment_adaptive import select_segment_adaptive

QUOTAS = ("full", "released", "algorithm1", "paper")  # paper is an older name of released
NEVER_WHOLE = (np.inf, np.inf)  # thresholds that no segment exceeds: BIN
MAX_DEPTH = 32  # 2**32 bins, far more than any video has candidates; the paper goes up to 6


def judge_and_split(
    scores: np.ndarray, budget: int, t1: float, t2: float, max_depth: int
) -> list[tuple[int, int, int]]:
    """Split the timeline as the scores ask for (the paper's Algorithm 1).

    Judge: where a segment's best scores stand far above its mean, the segment stays whole, so that its best
    frames can all be taken (relevance). Split: elsewhere it is halved, so that each half gets frames of its
    own (coverage), and the halves are judged again.

    Args:
        scores: normalized relevance, (n,), 0 to 1, n at least 1.
        budget: number of keyframes wanted, ``M`` in the paper.
        t1: a segment stays whole if its ``s_top - s_all`` exceeds this, ``s_thr`` in the paper.
        t2: a segment stays whole only if its standard deviation exceeds this, too; the released code's, not
            in the paper. A negative value, as by default, switches it off.
        max_depth: most halvings, ``L`` in the paper.

    Returns:
        The final segments in order of time, none empty: (start, stop, depth) holds the candidates
        ``start <= position < stop``, after ``depth`` halvings.
    """

    def split(start: int, stop: int, depth: int) -> list[tuple[int, int, int]]:
        if start == stop:
            return []
        if depth == max_depth:
            return [(start, stop, depth)]
        segment = scores[start:stop]
        # The best scores are as many as the whole budget, not the segment's share of it, and they are added
        # best first: the released code does both, and with ``t1 = 0`` the last bit of a sum decides.
        best = np.sort(segment)[::-1][:budget]
        s_top, s_all = best.sum() / len(best), segment.sum() / len(segment)  # mean() takes twice the time
        if s_top - s_all > t1 and segment.std() > t2:
            return [(start, stop, depth)]
        middle = (start + stop) // 2
        return split(start, middle, depth + 1) + split(middle, stop, depth + 1)

    return split(0, len(scores), 0)


def allocate_frames(
    scores: np.ndarray, segments: Sequence[tuple[int, int, int]], budget: int, quota: str
) -> np.ndarray:
    """Take from each segment its ``budget / 2**depth`` best candidates; of equal scores the earlier.

    The released code drops the fraction of a quota that is not whole (``quota="released"``): a budget of 16
    at depth 5 selects nothing. ``quota="full"`` spends the whole budget. It gives one more frame each to the
    segments with the largest fractions; of equal fractions to the segment whose next candidate scores
    higher, then to the earlier one. ``quota="algorithm1"`` is the share that the paper prints instead: the
    same for every segment, whatever its depth; frames that are left over go to the best candidates.

    Args:
        scores: normalized relevance, (n,).
        segments: what :func:`judge_and_split` returns.
        budget: number of keyframes wanted, at most n.
        quota: one of :data:`QUOTAS`.

    Returns:
        Positions, ascending, int64.
    """
    if quota == "algorithm1":
        share = budget // len(segments)
        best = [start + np.argsort(-scores[start:stop], kind="stable")[:share] for start, stop, _ in segments]
        return fill(np.concatenate(best), scores, budget)
    chosen, waiting = [], []
    for start, stop, depth in segments:
        whole, remainder = divmod(budget, 2**depth)
        best = np.argsort(-scores[start:stop], kind="stable")[: whole + 1].tolist()
        chosen += [start + offset for offset in best[:whole]]
        if remainder and whole < len(best):
            following = start + best[whole]
            # Sorts by largest fraction, then highest score, then earliest position.
            waiting.append((-remainder / 2**depth, -scores[following], following))
    if quota == "full":  # "released", or "paper", drops the fractions
        chosen += [following for *_, following in sorted(waiting)[: budget - len(chosen)]]
    return np.array(sorted(chosen), dtype=np.int64)


def select_uniform(scores: np.ndarray, budget: int, **_: object) -> np.ndarray:
    """Evenly spread positions, the first and the last included; the scores play no part."""
    return np.arange(budget) * (len(scores) - 1) // max(1, budget - 1)


def select_top(scores: np.ndarray, budget: int, **_: object) -> np.ndarray:
    """The best scores, wherever they are: relevance alone, the paper's ``lambda = 0``."""
    return np.sort(np.argsort(-scores, kind="stable")[:budget])


def select_bin(scores: np.ndarray, budget: int, *, max_depth: int, quota: str, **_: object) -> np.ndarray:
    """An equal share of each of ``2**max_depth`` bins: coverage first, ``lambda`` towards infinity."""
    segments = judge_and_split(scores, budget, *NEVER_WHOLE, max_depth)
    return allocate_frames(scores, segments, budget, quota)


def select_ada(
    scores: np.ndarray, budget: int, *, t1: float, t2: float, max_depth: int, quota: str
) -> np.ndarray:
    """Judge and split: TOP where few frames stand out, BIN where none do."""
    segments = judge_and_split(scores, budget, t1, t2, max_depth)
    return allocate_frames(scores, segments, budget, quota)


# Each is called with the normalized scores (n,), a budget of at most n, and t1, t2, max_depth and quota by
# name; it returns ascending positions (budget,) int64, fewer with the released quota alone. Keyword arguments
# with a default are options of its own. ``features``, where it takes them, are the frames' unit vectors,
# (n, d) float32, and ``raw_scores`` the scores as they were given, (n,).
STRATEGIES: dict[str, Callable[..., np.ndarray]] = {
    "uniform": select_uniform,
    "top": select_top,
    "bin": select_bin,
    "ada": select_ada,
    "maximum": select_maximum,
    "apart": select_apart,
    "bolt": select_bolt,
    "gumbel": select_gumbel,
    "nms": select_nms,
    "segment_adaptive": select_segment_adaptive,
    "mdp3": select_mdp3,
}


def options_of(strategy: str) -> dict[str, float]:
    """A strategy's own options and their defaults, such as ``seed`` where it draws at random."""
    parameters = inspect.signature(STRATEGIES[strategy]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}


def needs_features(strategy: str) -> bool:
    """Whether a strategy compares the frames by their features."""
    return "features" in inspect.signature(STRATEGIES[strategy]).parameters


def unit_vectors(features: np.ndarray) -> np.ndarray:
    """Vectors (n, d) of length 1, float32; zeros stay zeros."""
    features = np.asarray(features, dtype=np.float32)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(norms, np.finfo(np.float32).tiny)


def normalize(scores: np.ndarray) -> np.ndarray:
    """Map scores (n,) to 0..1 over the whole video; equal scores all become 0."""
    low, high = scores.min(), scores.max()
    if low == high:
        return np.zeros(len(scores))
    # Halved first: a span over the whole float range would overflow. Half of the smallest float is 0.
    span = high / 2 - low / 2
    return (scores / 2 - low / 2) / span if span > 0 else np.zeros(len(scores))


def select_positions(
    scores: Sequence[float] | np.ndarray,
    budget: int,
    *,
    strategy: str = "ada",
    ratio: int = 1,
    t1: float = 0.8,
    t2: float = -100,
    max_depth: int = 5,
    quota: str = "full",
    options: Mapping[str, float] | None = None,
    features: np.ndarray | None = None,
) -> np.ndarray:
    """Positions of the keyframes among the candidates, ascending, int64.

    Arguments and errors as for :func:`select_keyframes`.
    """
    scores = np.asarray(scores, dtype=np.float64)
    _check(scores, strategy, t1, t2, quota, budget=budget, ratio=ratio, max_depth=max_depth)
    known = options_of(strategy)
    for name in options or {}:
        if name not in known:
            raise ValueError(f"option {name!r}: strategy {strategy} has {', '.join(known) or 'no options'}")
    if features is None and needs_features(strategy):
        raise ValueError(
            f"strategy {strategy} needs the frames' features: feature_extract_store.py stores them, "
            "frame_select.py --features reads them"
        )
    if features is not None:
        _check_features(features, len(scores), strategy)
    budget, ratio, max_depth = int(budget), int(ratio), int(max_depth)
    thinned = _thinned(len(scores), ratio)
    kept = scores[thinned]
    if len(kept) < budget:
        return np.arange(len(kept)) * ratio
    select = STRATEGIES[strategy]
    settings = {"t1": t1, "t2": t2, "max_depth": max_depth, "quota": quota, **(options or {})}
    if features is not None:
        settings["features"] = unit_vectors(features[thinned])
    if "raw_scores" in inspect.signature(select).parameters:
        settings["raw_scores"] = kept
    return select(normalize(kept), budget, **settings) * ratio


def check_settings(budget: int, strategy: str = "ada", **settings: Any) -> None:
    """Refuse settings that :func:`select_positions` would refuse, before there are scores.

    Raises:
        ValueError: names the argument.
    """
    features = np.ones((1, 1)) if strategy in STRATEGIES and needs_features(strategy) else None
    # A rule checks its own options when it chooses, and it chooses nothing where all candidates fit.
    for each in (budget, 1):
        select_positions([0.0], each, strategy=strategy, features=features, **settings)


def find_segments(
    scores: Sequence[float] | np.ndarray,
    budget: int,
    *,
    strategy: str = "ada",
    ratio: int = 1,
    t1: float = 0.8,
    t2: float = -100,
    max_depth: int = 5,
    **_: object,
) -> list[tuple[int, int, int]]:
    """The final segments of which ``ada`` and ``bin`` take their keyframes.

    Arguments as for :func:`select_keyframes`.

    Returns:
        (start, stop, depth) in order of time: the candidates ``start <= position < stop``, after ``depth``
        halvings. An empty list for other strategies, and for fewer candidates than the budget.
    """
    scores = np.asarray(scores, dtype=np.float64)
    kept = scores[_thinned(len(scores), ratio)]
    if strategy not in ("ada", "bin") or len(kept) < budget:
        return []
    thresholds = (t1, t2) if strategy == "ada" else NEVER_WHOLE
    segments = judge_and_split(normalize(kept), budget, *thresholds, max_depth)
    return [(start * ratio, stop * ratio, depth) for start, stop, depth in segments]


def _thinned(num_candidates: int, ratio: int) -> slice:
    """Every ``ratio``-th candidate; those of an incomplete step at the end are left out."""
    return slice(0, num_candidates // ratio * ratio, ratio)


def select_keyframes(
    scores: Sequence[float] | np.ndarray,
    frames: Sequence[float] | np.ndarray,
    budget: int,
    *,
    strategy: str = "ada",
    ratio: int = 1,
    t1: float = 0.8,
    t2: float = -100,
    max_depth: int = 5,
    quota: str = "full",
    options: Mapping[str, float] | None = None,
    features: np.ndarray | None = None,
) -> list[int]:
    """Choose the keyframes of one video for one question.

    >>> select_keyframes([0.1, 0.9, 0.2, 0.8], frames=[0, 24, 48, 72], budget=2, strategy="top")
    [24, 72]

    Args:
        scores: relevance of each candidate frame, (n,), any scale.
        frames: frame index of each candidate, (n,), ascending.
        budget: number of keyframes wanted, 1 or more.
        strategy: ``ada`` (judge and split), ``top`` (best scores), ``bin`` (an equal share from each
            of ``2**max_depth`` bins), ``uniform`` (scores ignored), ``maximum`` (ADA's objective, exactly),
            ``apart`` (the best scores some seconds from one another), or a rule of other authors:
            ``bolt``, ``gumbel``, ``nms``, ``segment_adaptive``, ``mdp3``.
        ratio: use every ``ratio``-th candidate only.
        t1: ADA's threshold on the difference of means, in normalized scores.
        t2: ADA's threshold on the standard deviation, in normalized scores.
        max_depth: most halvings, ``L`` in the paper.
        quota: ``full`` returns exactly ``min(budget, candidates // ratio)`` frames, and so does
            ``algorithm1``; ``released`` drops the fractions of quotas as the released code does, and may
            return fewer, even none.
        options: the strategy's own, see :func:`options_of`.
        features: a vector for each candidate frame, (n, d), of any length; for strategies that need them
            (:func:`needs_features`).

    Returns:
        Ascending frame indices.

    Raises:
        ValueError: an argument out of range, lengths that differ, scores not finite, frame indices not
            whole or not ascending, or features that the strategy lacks or does not use.

    Source: Tang et al., "Adaptive Keyframe Sampling for Long Video Understanding", CVPR 2025,
    section 3.3 and Algorithm 1, with the quotas of its released code.
    """
    frame_indices = np.asarray(frames, dtype=np.float64)
    if len(frame_indices) != len(scores):
        raise ValueError(f"{len(scores)} scores for {len(frame_indices)} frames; one score a frame is needed")
    whole = np.isfinite(frame_indices) & (frame_indices == np.floor(frame_indices)) & (frame_indices >= 0)
    if not whole.all():
        raise ValueError("a frame number is not a whole number, 0 or more")
    for previous in np.flatnonzero(np.diff(frame_indices) <= 0):
        pair = frame_indices[previous : previous + 2]
        raise ValueError(f"frame numbers are not ascending: {pair[1]:.0f} follows {pair[0]:.0f}")
    settings = {"t1": t1, "t2": t2, "max_depth": max_depth, "quota": quota, "options": options}
    positions = select_positions(
        scores, budget, strategy=strategy, ratio=ratio, features=features, **settings
    )
    return frame_indices[positions].astype(np.int64).tolist()


def _check(scores: np.ndarray, strategy: str, t1: float, t2: float, quota: str, **counts: float) -> None:
    """Raise a ValueError that names the first argument out of range."""
    if scores.ndim != 1:
        raise ValueError(f"scores have {scores.ndim} dimensions; one list of numbers is needed")
    if not np.isfinite(scores).all():
        bad = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ValueError(f"score {bad} is {scores[bad]}; scores must be finite")
    for name, value in counts.items():
        least = 0 if name == "max_depth" else 1
        if value % 1 != 0 or value < least:  # also of NaN and infinity
            raise ValueError(f"{name} is {value}; it must be a whole number, {least} or more")
    if counts["max_depth"] > MAX_DEPTH:
        raise ValueError(f"max_depth is {counts['max_depth']}; {MAX_DEPTH} halvings are the most")
    if np.isnan(t1) or np.isnan(t2):
        raise ValueError("t1 and t2 must be numbers")
    for name, value, known in (("strategy", strategy, STRATEGIES), ("quota", quota, QUOTAS)):
        if value not in known:
            raise ValueError(f"{name} {value!r}: use one of {', '.join(known)}")


def _check_features(features: np.ndarray, num_frames: int, strategy: str) -> None:
    """Raise a ValueError for features that do not belong to the frames, or are of no use."""
    if not needs_features(strategy):
        raise ValueError(f"strategy {strategy} does not use features")
    if np.ndim(features) != 2 or len(features) != num_frames:
        raise ValueError(f"features have the shape {np.shape(features)}; {num_frames} vectors are needed")
    if not np.isfinite(features).all():
        raise ValueError("features must be finite")
