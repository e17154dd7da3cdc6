"""Rules of other authors give the original code's frames; the maximiser is the best of all selections."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from selection_setup import features_for

from aks.selection import STRATEGIES, judge_and_split, options_of, select_positions
from aks.strategies.maximum import coverage, levels_of, objective

SCORES = [0.002, 0.124, 0.218, 0.0, 0.003, 0.8, 0.0, 0.002, 0.853, 0.241, 0.05, 0.134]
SCORES += [0.291, 0.021, 0.003, 0.489, 0.301, 0.135, 0.545, 0.166, 0.944, 0.009, 0.17, 0.113]


def chosen(strategy: str, budget: int, scores=SCORES, **options: float) -> list[int]:
    features = features_for(strategy, len(scores))
    return select_positions(scores, budget, strategy=strategy, options=options, features=features).tolist()


@pytest.mark.parametrize(
    ("strategy", "options", "budget", "original"),
    [
        # inverse_transform_sampling of BOLT, commit 8a9ba45; with the power 3 it repeats 8 and 20.
        ("bolt", {"power": 1}, 6, [5, 8, 12, 15, 18, 20]),
        ("bolt", {}, 6, [5, 8, 16, 20]),
        # select_candidates of framesieve 0.2.0, "nms".
        ("nms", {}, 6, [5, 8, 12, 15, 18, 20]),
        ("nms", {}, 3, [8, 15, 20]),
    ],
)
def test_a_rule_chooses_the_frames_of_the_original_code(strategy, options, budget, original):
    found = chosen(strategy, budget, **options)
    assert set(original) <= set(found) and len(found) == budget
    others = [position for position in np.argsort(np.negative(SCORES)).tolist() if position not in original]
    assert found == sorted(original + others[: budget - len(original)])  # the best ones fill the budget


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_rule_fills_the_smallest_budgets(strategy):
    rng = np.random.default_rng(6)
    for num in range(1, 60):
        for budget in (1, 2, 3):
            found = chosen(strategy, budget, rng.random(num))
            assert len(set(found)) == len(found) == min(budget, num) and set(found) <= set(range(num))
    if strategy == "bolt":  # one frame is where half of the relevance has been
        assert chosen("bolt", 1, [0.0, 0.1, 1.0, 0.9, 0.9, 0.0]) == [3]


def naive_coverage(positions: list[int], num_candidates: int, levels: int) -> int:
    """Minus the differences between the halves of every bin, level by level."""
    bins, penalty = [range(num_candidates)], 0
    for _ in range(levels):
        halves = [(part[: len(part) // 2], part[len(part) // 2 :]) for part in bins]
        counts = [[len(set(positions) & set(half)) for half in pair] for pair in halves]
        penalty += sum(abs(left - right) for left, right in counts)
        bins = [half for pair in halves for half in pair]
    return -penalty


def test_the_maximum_is_the_best_of_all_selections():
    rng = np.random.default_rng(3)
    for case in range(300):
        num, depth = int(rng.integers(1, 11)), int(rng.integers(0, 5))
        budget = int(rng.integers(1, num + 1))
        scores = rng.integers(0, 5, num) / 4 if case % 3 == 0 else rng.random(num)
        scores[rng.integers(num)], weight = 1.0, float(rng.choice([0, 0.05, 0.3, 2]))
        if num > 1:
            scores[np.argmin(scores)] = 0.0  # normalized as they are
        levels = levels_of(budget, depth)
        found = select_positions(
            scores, budget, strategy="maximum", max_depth=depth, options={"weight": weight}
        )
        values = []
        for positions in combinations(range(num), budget):
            penalty = naive_coverage(positions, num, levels)
            assert coverage(np.array(positions), num, levels) == penalty
            values.append(sum(scores[list(positions)]) + weight * penalty)
        if num > 1:
            assert objective(scores, found, weight, levels) == pytest.approx(max(values))
        assert len(found) == budget


@pytest.mark.parametrize("weight", [0, 0.02, 0.1, 0.5, 10])
def test_no_other_rule_beats_the_maximum(weight):
    rng = np.random.default_rng(1)
    for _ in range(5):
        scores = rng.random(400) ** 8
        scores = (scores - scores.min()) / (scores.max() - scores.min())
        settings = {"weight": weight, "levels": levels_of(32, 5)}
        best = objective(scores, np.array(chosen("maximum", 32, scores, weight=weight)), **settings)
        for strategy in set(STRATEGIES) - {"maximum"}:
            other = objective(scores, np.array(chosen(strategy, 32, scores)), **settings)
            assert other <= best + 1e-9, strategy


def test_the_weight_goes_from_the_best_scores_to_equal_bins():
    scores = np.random.default_rng(2).random(320)
    assert chosen("maximum", 64, scores, weight=0) == chosen("top", 64, scores)
    assert np.bincount(np.array(chosen("maximum", 64, scores, weight=1000)) // 10).tolist() == [2] * 32


def test_gumbel_draws_as_the_softmax_says():
    scores, temperature, draws = np.array([0.0, 0.4, 1.0]), 0.5, 4000
    counts = np.bincount(
        [chosen("gumbel", 1, scores, temperature=temperature, seed=seed)[0] for seed in range(draws)]
    )
    expected = np.exp(scores / temperature)
    expected /= expected.sum()
    assert np.abs(counts / draws - expected).max() < 4 * np.sqrt(0.25 / draws)
    assert chosen("gumbel", 6, temperature=0) == chosen("top", 6)
    assert chosen("gumbel", 6, seed=1) == chosen("gumbel", 6, seed=1) != chosen("gumbel", 6, seed=2)


def test_algorithm_1_gives_every_segment_the_same_share():
    # The second half stays whole, the first one is split to the end.
    scores = np.full(80, 0.6)
    scores[40:] = np.where(np.arange(40) < 10, 1.0, 0.0)
    segments = judge_and_split(scores, 10, 0.7, -100, 3)
    assert [depth for *_, depth in segments] == [3, 3, 3, 3, 1]
    positions = select_positions(scores, 10, t1=0.7, max_depth=3, quota="algorithm1")
    counts = [((start <= positions) & (positions < stop)).sum() for start, stop, _ in segments]
    assert counts == [2, 2, 2, 2, 2]
    released = select_positions(scores, 10, t1=0.7, max_depth=3, quota="released")
    assert [((a <= released) & (released < b)).sum() for a, b, _ in segments] == [1, 1, 1, 1, 5]


def test_released_is_another_name_of_paper():
    scores = np.random.default_rng(5).random(100)
    for budget in (16, 48):
        rows = [select_positions(scores, budget, quota=quota).tolist() for quota in ("released", "paper")]
        assert rows[0] == rows[1] and len(rows[0]) < budget


@pytest.mark.parametrize(
    ("strategy", "options", "words"),
    [
        ("ada", {"seed": 1}, "option 'seed': strategy ada has no options"),
        ("bolt", {"seed": 1}, "option 'seed': strategy bolt has power"),
        ("bolt", {"power": 0}, "power is 0"),
        ("nms", {"window": -1}, "window is -1"),
        ("gumbel", {"seed": 1.5}, "seed is 1.5; it must be a whole number"),
        ("gumbel", {"seed": float("inf")}, "seed is inf"),
        ("gumbel", {"temperature": float("inf")}, "temperature is inf"),
        ("maximum", {"weight": float("nan")}, "weight is nan"),
        ("apart", {"distance": -1}, "distance is -1"),
    ],
)
def test_a_wrong_option_is_named(strategy, options, words):
    with pytest.raises(ValueError, match=words):
        chosen(strategy, 2, **options)


def test_a_window_beyond_the_video_leaves_the_best_frame_and_those_that_fill_the_budget():
    assert chosen("nms", 3, window=1e308) == chosen("apart", 3, distance=1e308) == chosen("top", 3)


def test_frames_apart_are_the_best_that_keep_their_distance():
    """Of every selection that keeps the distance, none has a better first frame, second frame, and so on."""
    rng = np.random.default_rng(4)
    for _ in range(100):
        num, budget, distance = int(rng.integers(1, 12)), int(rng.integers(1, 4)), int(rng.integers(0, 5))
        scores = rng.permutation(num) / max(1, num - 1)  # no two are equal
        kept = [
            sorted(scores[list(positions)], reverse=True)
            for size in range(1, min(budget, num) + 1)
            for positions in combinations(range(num), size)
            if size == 1 or np.diff(positions).min() >= distance
        ]
        found = scores[chosen("apart", budget, scores, distance=distance)]
        best = max(kept)
        assert found.size == min(budget, num) and set(best) <= set(found)
        others = sorted(set(scores) - set(best), reverse=True)
        assert set(found) == {*best, *others[: found.size - len(best)]}  # the best others fill the budget
    assert chosen("apart", 6, distance=1.5) == chosen("apart", 6, distance=2) != chosen("apart", 6)


def test_options_have_defaults():
    assert options_of("gumbel") == {"temperature": 0.1, "seed": 0}
    assert options_of("ada") == {}
