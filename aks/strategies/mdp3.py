"""mDP3: relevant frames that differ from one another, by a determinantal point process over segments.

Source: Sun et al., "MDP3: A Training-free Approach for List-wise Frame Selection in Video-LLMs", ICCV 2025,
and its released code (``mdp3_frame_selector.py``), whose objective and segments these are.
"""

from __future__ import annotations

import math

import numpy as np

BANDWIDTHS = 2.0 ** np.arange(-3, 2)  # of the five Gaussians that make up the kernel
MIN_RESIDUAL = 1e-10  # a frame with less of its own, of 5, is a copy of the frames chosen


def kernel(cosines: np.ndarray) -> np.ndarray:
    """The sum of Gaussians of the distance of two unit vectors, 0 to 5, from their cosine; any shape."""
    return np.exp((np.minimum(cosines, 1)[..., None] - 1) / BANDWIDTHS).sum(axis=-1)


def extend_greedily(
    similarity: np.ndarray, log_relevance: np.ndarray, conditions: np.ndarray, num_steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Frames of a segment, best first, after each of several frames of the segments before.

    The determinant grows by what a frame has that those chosen do not have: its residual in the Cholesky
    decomposition, which is kept up to date for all frames at once.

    Args:
        similarity: kernel of the segment's frames, (m, m).
        log_relevance: of the segment's frames, (m,).
        conditions: kernel of the earlier frames with the segment's, (k, m); zeros where there is none.
        num_steps: how many to choose, at most m.

    Returns:
        The frames, (k, num_steps), and what each adds to the objective, likewise.
    """
    rows = np.arange(len(conditions))
    columns = np.zeros((len(conditions), num_steps + 1, len(similarity)))  # of the decompositions
    columns[:, 0] = conditions / math.sqrt(len(BANDWIDTHS))
    residuals = similarity.diagonal() - columns[:, 0] ** 2
    is_free = np.ones(residuals.shape, dtype=bool)
    chosen = np.empty((len(conditions), num_steps), dtype=np.int64)
    gains = np.empty(chosen.shape)
    for step in range(num_steps):
        gain = log_relevance + np.log(np.maximum(residuals, MIN_RESIDUAL))
        best = np.where(is_free, gain, -np.inf).argmax(axis=1)
        chosen[:, step], gains[:, step] = best, gain[rows, best]
        is_free[rows, best] = False
        before = columns[:, : step + 1]
        shared = np.einsum("ks,ksm->km", before[rows, :, best], before)
        root = np.sqrt(np.maximum(residuals[rows, best], MIN_RESIDUAL))
        columns[:, step + 1] = (similarity[best] - shared) / root[:, None]
        residuals -= columns[:, step + 1] ** 2
    return chosen, gains


def select_mdp3(
    scores: np.ndarray,
    budget: int,
    *,
    features: np.ndarray,
    raw_scores: np.ndarray,
    diversity: float = 0.2,
    segment: float = 0,
    **_: object,
) -> np.ndarray:
    """The frames with the largest ``2 / diversity`` times log relevance, plus log determinant of similarity.

    Within a segment frames are added greedily, given the last frame chosen before it. Dynamic programming
    shares the budget out among the segments. Relevance is the kernel of question and frame, which depends on
    the cosine of their vectors alone: the question's vector is not needed where the scores are such cosines.
    The original asks with the options and halves of long prompts; here the question is what the scorer reads.

    Args:
        scores: not used; their scale is lost.
        budget: number of keyframes, at most n.
        features: unit vectors of the frames, (n, d).
        raw_scores: cosines of the question's vector and the frames', (n,).
        diversity: the paper's lambda, above 0: how much diversity counts against relevance.
        segment: candidates a segment. 0 for the released code's: 32, or 128 for more than 32 keyframes. It
            takes memory for its square, 8 bytes each.

    Raises:
        ValueError: ``diversity`` or ``segment`` out of range, or scores that are no cosines.
    """
    if not 0 < diversity < math.inf:
        raise ValueError(f"diversity is {diversity}; it must be above 0")
    if not (0 <= segment < math.inf and segment == int(segment)):
        raise ValueError(f"segment is {segment}; it must be a whole number, 0 or more")
    if np.abs(raw_scores).max() > 1 + 1e-6:
        raise ValueError("mdp3 needs cosines as scores: those of siglip, clip, conse, or blip with itc")
    size = int(segment) or (32 if budget <= 32 else 128)
    vectors = features.astype(np.float64)
    log_relevance = 2 / diversity * np.log(kernel(raw_scores))

    # For 0, 1, ... frames of the segments so far: the objective, the last frame, and by segment how many
    # frames the segments before it have, and which frames it can add.
    values, last = np.zeros(1), np.full(1, -1)
    history: list[tuple[np.ndarray, np.ndarray]] = []
    for start in range(0, len(scores), size):
        own = vectors[start : start + size]
        similarity = kernel(own @ own.T)
        np.fill_diagonal(similarity, len(BANDWIDTHS))  # of a vector of zeros, too
        conditions = kernel(vectors[last] @ own.T)
        conditions[0] = 0.0  # no frame yet
        num_steps = min(budget, len(own))
        chosen, gains = extend_greedily(
            similarity, log_relevance[start : start + size], conditions, num_steps
        )
        # As in the released code, a segment's value counts the frame it follows, unless it adds none.
        follows = log_relevance[last] + math.log(len(BANDWIDTHS))
        follows[0] = 0.0
        totals = np.concatenate(
            [values[:, None], (values + follows)[:, None] + np.cumsum(gains, axis=1)], axis=1
        )
        most = min(budget, start + len(own))
        values, before, previous_last = np.full(most + 1, -np.inf), np.zeros(most + 1, dtype=np.int64), last
        last = np.full(most + 1, -1)
        for count, row in enumerate(totals):
            row = row[: most + 1 - count]
            better = np.flatnonzero(row > values[count : count + len(row)])
            ends = np.concatenate([[previous_last[count]], start + np.maximum.accumulate(chosen[count])])
            values[count + better], before[count + better] = row[better], count
            last[count + better] = ends[better]
        history.append((before, start + chosen))

    found: list[int] = []
    for before, chosen in reversed(history):
        count = int(before[budget - len(found)])
        found += chosen[count, : budget - len(found) - count].tolist()
    return np.array(sorted(found), dtype=np.int64)
