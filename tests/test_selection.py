"""Selection against an independent, naive reading of the method, and its general promises."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from selection_setup import features_for

from aks import select_keyframes
from aks.labels import load_labels
from aks.score_lists import read_number_lists
from aks.selection import (
    STRATEGIES,
    allocate_frames,
    find_segments,
    judge_and_split,
    normalize,
    select_positions,
)

# The naive reading: plain lists, level by level, as the method is described.


def naive_ada(scores, frames, budget, ratio, t1, t2, all_depth):
    """The method's five steps on plain lists. Quotas are cut to whole numbers, as published code does."""
    count = int(len(scores) / ratio)
    s = [scores[k * ratio] for k in range(count)]
    f = [frames[k * ratio] for k in range(count)]
    if count < budget:
        return f, None
    low, high = min(s), max(s)
    s = [(x - low) / (high - low) if high > low else 0.0 for x in s]
    level = [(list(zip(s, f, strict=True)), 0)]
    final = []
    while level:
        below = []
        for segment, depth in level:
            values = [x for x, _ in segment]
            best = sorted(values, reverse=True)[:budget]
            keep = False
            if values:
                keep = np.mean(best) - np.mean(values) > t1 and np.std(values) > t2
            if keep or depth >= all_depth:
                final.append((segment, depth))
            else:
                half = len(segment) // 2
                below += [(segment[:half], depth + 1), (segment[half:], depth + 1)]
        level = below
    chosen = []
    for segment, depth in final:
        quota = int(budget / 2**depth)
        ranked = sorted(segment, key=lambda pair: -pair[0])  # stable: the earlier of equals first
        chosen += [frame for _, frame in ranked[:quota]]
    return sorted(chosen), final


def naive_full(scores, frames, budget, ratio, t1, t2, all_depth):
    """The same, the lost fractions handed out: largest remainder first, of equal ones by score."""
    chosen, final = naive_ada(scores, frames, budget, ratio, t1, t2, all_depth)
    if final is None or len(chosen) == budget:
        return chosen
    chosen = set(chosen)
    queue = []
    for segment, depth in final:
        remainder = budget / 2**depth - int(budget / 2**depth)
        rest = sorted((pair for pair in segment if pair[1] not in chosen), key=lambda pair: -pair[0])
        if remainder > 0 and rest:
            queue.append((remainder, rest[0]))
    queue.sort(key=lambda item: (-item[0], -item[1][0], item[1][1]))
    for _, (_, frame) in queue:
        if len(chosen) < budget:
            chosen.add(frame)
    return sorted(chosen)


def score_list(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    if kind == "blip":  # mostly near 0, a few spikes near 1
        return rng.random(n) ** 20
    if kind == "clip":  # a slow drift around .25
        return 0.25 + np.cumsum(rng.normal(size=n)) * 0.003
    if kind == "sevila":  # negative logits in bf16 steps
        return np.round(-rng.random(n) * 10 * 16) / 16
    if kind == "ties":
        return rng.integers(0, 4, n) / 4
    if kind == "constant":
        return np.full(n, rng.normal())
    if kind == "needle":
        scores = np.zeros(n)
        scores[rng.integers(n)] = 1
        return scores
    raise AssertionError(kind)


KINDS = ("blip", "clip", "sevila", "ties", "constant", "needle")


@pytest.mark.parametrize("kind", KINDS)
def test_selection_equals_the_naive_reading(kind):
    rng = np.random.default_rng(KINDS.index(kind))
    losses = 0
    for trial in range(250):
        n = int(rng.integers(1, 4001 if trial % 25 == 0 else 300))
        budget = int(rng.integers(1, 129))
        ratio = int(rng.choice([1, 1, 2, 3]))
        t1 = float(rng.choice([-0.1, 0.0, 0.1, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0]))
        t2 = float(rng.choice([-100, 0, 0.05, 0.2]))
        depth = int(rng.integers(0, 7))
        scores = score_list(kind, n, rng).tolist()
        frames = (np.arange(n) * 24).tolist()
        case = f"{kind} n={n} budget={budget} ratio={ratio} t1={t1} t2={t2} depth={depth}"
        options = {"ratio": ratio, "t1": t1, "t2": t2, "max_depth": depth}

        paper, _ = naive_ada(scores, frames, budget, ratio, t1, t2, depth)
        assert select_keyframes(scores, frames, budget, quota="paper", **options) == paper, case
        ours = select_keyframes(scores, frames, budget, **options)
        assert ours == naive_full(scores, frames, budget, ratio, t1, t2, depth), case
        assert set(paper) <= set(ours), case
        losses += len(paper) < len(ours)
    assert losses  # the trials reach both sides: whole quotas, and quotas that lose fractions


def all_differences(scores, budget, max_depth):
    """Difference of means and standard deviation of every possible segment, by (start, stop, depth)."""
    found = {}

    def visit(start, stop, depth):
        part = scores[start:stop]
        if len(part):
            difference = np.sort(part)[::-1][:budget].mean() - part.mean()
            found[start, stop, depth] = difference, part.std()
            if depth < max_depth:
                middle = start + len(part) // 2
                visit(start, middle, depth + 1)
                visit(middle, stop, depth + 1)

    visit(0, len(scores), 0)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_thresholds_decide_to_the_last_bit(kind):
    """Thresholds at, just below and just above the difference or deviation of one of the segments."""
    rng = np.random.default_rng(len(KINDS) + KINDS.index(kind))
    for trial in range(60):
        n = int(rng.integers(1, 2001 if trial % 20 == 0 else 200))
        budget, depth = int(rng.integers(1, 65)), int(rng.integers(0, 6))
        scores = normalize(score_list(kind, n, rng))
        found = all_differences(scores, budget, depth)
        differences, deviations = np.array(list(found.values())).T
        picked = rng.choice(differences, 4)
        thresholds = [*picked, *np.nextafter(picked, -9), *np.nextafter(picked, 9)]
        for t1 in [*thresholds, 0.0, 1e-17, -1e-17, 1e-9, -1.0, np.inf, -np.inf]:
            for t2 in (-100, 0.0, rng.choice(deviations)):
                expected, reached = [], {(0, n, 0)}
                for segment, (difference, deviation) in found.items():  # parents before their halves
                    start, stop, level = segment
                    if segment not in reached:
                        continue
                    if level == depth or (difference > t1 and deviation > t2):
                        expected.append(segment)
                    else:
                        middle = start + (stop - start) // 2
                        reached |= {(start, middle, level + 1), (middle, stop, level + 1)}
                case = f"{kind} n={n} budget={budget} t1={t1!r} t2={t2!r} depth={depth}"
                assert judge_and_split(scores, budget, t1, t2, depth) == sorted(expected), case


@pytest.mark.parametrize(("budget", "depth", "left"), [(16, 5, 0), (48, 5, 32), (8, 3, 8), (12, 3, 8)])
def test_paper_quota_loses_fractions_and_the_default_does_not(budget, depth, left):
    scores, frames = np.linspace(0, 1, 640), np.arange(640)
    options = {"t1": 2.0, "max_depth": depth}  # nothing passes the judge: all segments at full depth
    assert len(select_keyframes(scores, frames, budget, quota="paper", **options)) == left
    assert len(select_keyframes(scores, frames, budget, **options)) == budget


def test_a_lone_spike_keeps_the_timeline_whole_and_flat_scores_split_it():
    spike = np.zeros(1000)
    spike[[700, 705, 710, 715]] = 1.0
    assert judge_and_split(spike, 4, 0.8, -100, 5) == [(0, 1000, 0)]
    assert select_positions(spike, 4).tolist() == [700, 705, 710, 715]
    flat = np.zeros(1000)
    quarters = [(0, 250, 2), (250, 500, 2), (500, 750, 2), (750, 1000, 2)]
    assert judge_and_split(flat, 4, 0.8, -100, 2) == quarters
    assert select_positions(flat, 4, max_depth=2).tolist() == [0, 250, 500, 750]


def test_the_defaults_are_the_paper_s():
    frames = list(range(1000))
    for floor, expected in ((0.195, [700, 705, 710, 715]), (0.199, [1, 31, 62, 700])):
        scores = np.full(1000, floor)
        scores[0], scores[[700, 705, 710, 715]] = 0.0, 1.0
        difference = scores[[700, 705, 710, 715]].mean() - scores.mean()
        assert abs(difference - 0.8) < 0.003  # on either side of t1: kept whole, or split into 32 bins
        assert select_positions(scores, 4).tolist() == expected
        assert select_keyframes(scores, frames, 4) == expected


def test_constant_scores_give_the_same_as_any_equal_scores():
    for value in (0.0, -3.5, 1e300, 5e-324):
        with np.errstate(all="raise"):
            assert (
                select_positions(np.full(100, value), 8).tolist()
                == select_positions(np.ones(100), 8).tolist()
            )


def test_scores_at_both_ends_of_the_float_range_do_not_overflow():
    scores = np.array([-1.7e308, 0.0, 1.7e308])
    assert normalize(scores).tolist() == [0.0, 0.5, 1.0]
    assert select_positions(scores, 1, strategy="top").tolist() == [2]


def test_scores_too_close_for_a_float_to_tell_apart_count_as_equal():
    assert normalize(np.array([0, 5e-324])).tolist() == [0.0, 0.0]


def test_equal_remainders_go_to_the_segment_with_the_better_next_frame():
    scores = np.array([0, 0.2, 0, 0.9, 0, 0.1, 0, 0.8], dtype=float)
    segments = judge_and_split(scores, 2, 2.0, -100, 2)
    assert segments == [(0, 2, 2), (2, 4, 2), (4, 6, 2), (6, 8, 2)]
    assert allocate_frames(scores, segments, 2, "full").tolist() == [3, 7]


def test_uniform_spans_the_video_and_ignores_scores():
    rng = np.random.default_rng(0)
    first = select_positions(rng.random(100), 5, strategy="uniform")
    assert first.tolist() == [0, 24, 49, 74, 99]
    assert select_positions(rng.random(100), 5, strategy="uniform").tolist() == first.tolist()
    assert select_positions(rng.random(100), 1, strategy="uniform").tolist() == [0]


def test_bin_takes_an_equal_share_of_every_bin():
    scores = np.random.default_rng(1).random(320)
    chosen = select_positions(scores, 64, strategy="bin", max_depth=5)
    assert np.bincount(chosen // 10).tolist() == [2] * 32


def test_top_takes_the_best_and_the_earlier_of_equals():
    assert select_positions([1, 3, 3, 3, 0], 2, strategy="top").tolist() == [1, 2]


@pytest.mark.parametrize("ratio", [1, 3])
@pytest.mark.parametrize("t1", [0.2, 0.45, 0.9])
def test_the_segments_are_those_of_which_the_keyframes_were_taken(ratio, t1):
    scores = np.random.default_rng(7).random(301) ** 3
    _, final = naive_ada(scores.tolist(), list(range(301)), 16, ratio, t1, -100, 4)
    expected = sorted((segment[0][1], segment[-1][1] + ratio, depth) for segment, depth in final if segment)
    settings = {"ratio": ratio, "t1": t1, "max_depth": 4}
    assert find_segments(scores, 16, **settings, quota="full") == expected
    equal = find_segments(scores, 16, strategy="bin", **settings)
    assert {depth for *_, depth in equal} == {4} and equal[0][0] == 0 and equal[-1][1] == 301 // ratio * ratio
    assert find_segments(scores, 16, strategy="top", **settings) == []
    assert find_segments(scores, 301 // ratio + 1, **settings) == []  # all are selected: nothing is split


def test_a_strategy_is_one_function_and_one_entry(monkeypatch):
    def select_last(scores, budget, **_):
        assert scores.max() == 1  # normalized
        return np.arange(len(scores))[-budget:]

    monkeypatch.setitem(STRATEGIES, "last", select_last)
    assert select_keyframes([3, 9, 6, 5], [0, 24, 48, 72], 2, strategy="last", t1=0.1) == [48, 72]


finite = st.floats(allow_nan=False, allow_infinity=False)
arguments = st.fixed_dictionaries(
    {
        "strategy": st.sampled_from(list(STRATEGIES)),
        "ratio": st.integers(1, 4),
        "t1": st.sampled_from([0.0, 0.2, 0.5, 0.8]),
        "t2": st.sampled_from([-100.0, 0.1]),
        "max_depth": st.integers(0, 6),
    }
)


@settings(max_examples=150, deadline=None)
@given(scores=st.lists(finite, max_size=200), budget=st.integers(1, 128), options=arguments)
def test_selection_is_sorted_unique_and_of_the_exact_size(scores, budget, options):
    frames = [7 * position for position in range(len(scores))]
    if options["strategy"] == "mdp3":  # which takes cosines
        scores = np.tanh(scores)
    features = features_for(options["strategy"], len(scores))
    chosen = select_keyframes(scores, frames, budget, features=features, **options)
    kept = frames[:: options["ratio"]][: len(scores) // options["ratio"]]
    assert len(chosen) == min(budget, len(kept))
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(kept)
    assert all(type(number) is int for number in chosen)


@settings(max_examples=150, deadline=None)
@given(
    scores=st.lists(st.integers(-1000, 1000), min_size=1, max_size=200),
    budget=st.integers(1, 64),
    scale=st.integers(1, 1000),
    shift=st.integers(-(10**6), 10**6),
    quota=st.sampled_from(["full", "released", "algorithm1"]),
    options=arguments,
)
def test_selection_does_not_change_under_positive_affine_maps(scores, budget, scale, shift, quota, options):
    # Whole numbers, so that the map itself is exact.
    assume(options["strategy"] != "mdp3")  # which takes cosines
    mapped = [scale * score + shift for score in scores]
    options["features"] = features_for(options["strategy"], len(scores))
    before = select_positions(scores, budget, quota=quota, **options)
    assert select_positions(mapped, budget, quota=quota, **options).tolist() == before.tolist()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"budget": 0}, "budget is 0"),
        ({"budget": 2.5}, "budget is 2.5"),
        ({"ratio": 0}, "ratio is 0"),
        ({"max_depth": -1}, "max_depth is -1"),
        ({"max_depth": 99}, "max_depth is 99"),
        ({"t1": float("nan")}, "t1"),
        ({"strategy": "best"}, "'best'"),
        ({"quota": "half"}, "'half'"),
        ({"scores": [0.0, float("nan")]}, "score 1 is nan"),
        ({"scores": [float("inf"), 0.0]}, "score 0 is inf"),
        ({"scores": [1.0]}, "1 scores for 2 frames"),
        ({"frames": [24, 0]}, "0 follows 24"),
        ({"frames": [0, 0]}, "0 follows 0"),
        ({"frames": [0, 1.5]}, "whole number"),
    ],
)
def test_a_bad_argument_is_named(change, words):
    call = {"scores": [0.1, 0.2], "frames": [0, 24], "budget": 1, **change}
    with pytest.raises(ValueError, match=words):
        select_keyframes(**call)


@functools.cache
def bin_edges(num_candidates: int, depth: int) -> np.ndarray:
    """Where ``2**depth`` halves of halves of the timeline begin, and its end."""
    edges = np.array([0, num_candidates])
    for _ in range(depth):
        edges = np.sort(np.concatenate([edges, (edges[:-1] + edges[1:]) // 2]))
    return edges


def test_the_released_selections_tell_the_depths_that_made_them(reference):
    """From the released frame numbers alone: VideoMME's are of depth 5, LongVideoBench's of depth 3 at most.

    A selection is BIN at a depth if every bin holds the same number of frames. How many candidates a video
    has is not released. All of its questions must fit one number, and the last bin holds the last frames.
    """
    chosen = {}
    for dataset, name in (("longvideobench", "lvb_val.json"), ("videomme", "videomme.json")):
        labels = load_labels(dataset, label_file=reference / dataset / name)
        rows = read_number_lists(reference / dataset / "selected_frames_64.json")
        videos = [[rows[question.index] for question in job.questions] for job in labels.jobs]
        chosen[dataset] = [rows for rows in videos if all(len(row) == 64 for row in rows)]

    def is_bin(rows: list[np.ndarray], depth: int) -> bool:
        stride = np.gcd.reduce(np.concatenate(rows).astype(int))
        positions = [row / stride for row in rows]
        least = int(max(row[-1] for row in positions)) + 1
        most = least * 2**depth // (2**depth - 1) + 2
        for num_candidates in range(least, most + 1):
            edges = bin_edges(num_candidates, depth)
            share = 64 // 2**depth
            if all((np.diff(np.searchsorted(row, edges)) == share).all() for row in positions):
                return True
        return False

    assert len(chosen["videomme"]) == 814
    assert sum(is_bin(rows, 5) for rows in chosen["videomme"]) == 745  # 92 %
    single = [[row] for rows in chosen["longvideobench"] for row in rows]
    counts = [sum(is_bin(rows, depth) for rows in single) for depth in (3, 4, 5)]
    assert (len(single), counts) == (976, [235, 0, 0])
