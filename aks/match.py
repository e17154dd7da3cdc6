"""How good a video's best match is: its E-value, the expected number of chance hits.

Scores of different questions are on different scales: the best of a video may be no better than what its
question gets anywhere. So the same question is scored on other footage. The E-value, a measure of searches
in sequence databases (Karlin and Altschul, PNAS 1990), says how many frames are expected to score at least as
high as the video's best, among as many frames of other footage as the video has candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TAIL = 0.1  # the share of the background whose scores fit the tail
MIN_FRAMES = 100  # of a background: ten in the tail
STANDS_OUT = 0.1  # the best threshold for conse on the needles of seeds 0 to 3 (benchmarks/match.py)


@dataclass(frozen=True)
class Match:
    """The best score of a video for a question, beside the scores of other footage.

    Attributes:
        expected: how many frames of other footage, as many as the video has candidates, score as high as the
            best: the smaller the better. An upper bound, too, of the chance that there is one.
        background_frames: frames that this is judged by.
    """

    expected: float
    background_frames: int

    @property
    def stands_out(self) -> bool:
        """Whether the video holds something for this question that other footage seldom does."""
        return self.expected <= STANDS_OUT

    @property
    def verdict(self) -> str:
        """The same in words."""
        verdict = "the best stands out" if self.stands_out else "nothing stands out for this question"
        return f"{verdict}: as many frames of other footage hold {self.expected:.2g} that score as high"


def compare_scores(scores: np.ndarray, background: np.ndarray, num_candidates: int | None = None) -> Match:
    """Judge the best of a video's scores by those of other footage.

    The expected number is the number of candidates times the share p of the background that scores as high.
    Among the best tenth of the background, where few frames are left to count, scores are taken to be
    exponentially distributed (peaks over a threshold; Pickands, Annals of Statistics 1975, with the shape 0
    of light tails).

    Args:
        scores: of the candidates of the video, (n,).
        background: of the background's frames for the same question, (m,).
        num_candidates: where only some were scored, the best among them (``fast``), how many there are;
            None for n. Counting those that were scored would take a search's best for a random draw's.

    Raises:
        ValueError: the background has fewer than :data:`MIN_FRAMES` frames, or there is no score.
    """
    if not len(scores) or len(background) < MIN_FRAMES:
        raise ValueError(f"{len(scores)} and {len(background)} scores; 1 and {MIN_FRAMES} are needed")
    best, tail_start = scores.max(), np.quantile(background, 1 - TAIL)
    share = (background >= min(best, tail_start)).mean()
    if best > tail_start:
        mean_excess = (background[background >= tail_start] - tail_start).mean()
        share *= np.exp(-(best - tail_start) / mean_excess) if mean_excess else 0.0
    return Match(float((num_candidates or len(scores)) * share), len(background))
