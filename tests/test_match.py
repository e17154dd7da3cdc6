"""How good a match is: the expected number by hand, and its promise on frames that are unrelated."""

from __future__ import annotations

import math

import numpy as np
import pytest

from aks.match import STANDS_OUT, Match, compare_scores


def test_the_expected_number_of_a_case_by_hand():
    background = np.arange(1000) / 1000
    found = compare_scores(np.array([0.1, 0.5, 0.3, 0.2]), background[::-1])
    # 500 of 1000 score 0.5 or more, so of four other frames two are expected to.
    assert (found.expected, found.background_frames, found.stands_out) == (2.0, 1000, False)

    # The best hundred lie above 0.8991 by 0.0504 on average, and the best score by 0.6009.
    found = compare_scores(np.full(50, 1.5), background)
    assert found.expected == pytest.approx(50 * 0.1 * math.exp(-0.6009 / 0.0504), rel=1e-9)
    assert found.stands_out and not compare_scores(np.array([0.9] * 10), background).stands_out
    assert Match(STANDS_OUT, 100).stands_out
    assert compare_scores(np.array([0.1, 0.5]), background, 40).expected == 20  # two of forty were looked at
    assert compare_scores(np.array([0.8992]), background).expected == pytest.approx(0.1, rel=0.01)


def test_scores_of_one_value_are_no_division_by_zero():
    assert compare_scores(np.array([1.0]), np.ones(200)).expected == 1.0
    assert compare_scores(np.array([1.1]), np.ones(200)).expected == 0.0


@pytest.mark.parametrize(("num_scores", "num_background"), [(0, 100), (1, 99)])
def test_too_few_scores_are_refused(num_scores, num_background):
    with pytest.raises(ValueError, match=f"{num_scores} and {num_background} scores; 1 and 100 are needed"):
        compare_scores(np.zeros(num_scores), np.zeros(num_background))


def draw_expected(rng, draw, num_frames, num_background, repeats=1, trials=2000):
    """The expected numbers of unrelated videos, in which each frame is shown so many times."""
    found = []
    for _ in range(trials):
        scores = np.repeat(draw(rng, num_frames // repeats), repeats)
        found.append(compare_scores(scores, draw(rng, num_background)).expected)
    return np.array(found)


def exponential(rng, size):
    return rng.exponential(size=size)


def normal(rng, size):
    return rng.normal(size=size)


def test_of_one_unrelated_frame_it_is_a_uniform_p_value():
    found = draw_expected(np.random.default_rng(0), exponential, 1, 500)
    for level in (0.02, 0.05, 0.2, 0.5, 0.8):
        deviation = math.sqrt(level * (1 - level) / len(found))
        assert abs((found <= level).mean() - level) < 4 * deviation


@pytest.mark.parametrize("draw", [exponential, normal])
@pytest.mark.parametrize("repeats", [1, 10])
def test_it_bounds_how_often_unrelated_videos_stand_out(draw, repeats):
    """Also where neighbouring frames are alike: terms of an expectation may depend on one another."""
    found = draw_expected(np.random.default_rng(1), draw, 300, 2000, repeats, trials=600)
    rate = (found <= STANDS_OUT).mean()
    assert rate <= STANDS_OUT + 0.03
    if repeats == 1 and draw is exponential:  # and not for nothing
        assert rate >= STANDS_OUT - 0.04


def test_what_no_other_footage_reaches_stands_out():
    rng = np.random.default_rng(2)
    background = rng.normal(size=1000)
    scores = rng.normal(size=300)
    assert not compare_scores(scores, background).stands_out
    scores[17] = 7
    assert compare_scores(scores, background).stands_out
