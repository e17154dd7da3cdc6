"""``fast``: a part of the candidates is looked at, with the scores of the full pass."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from extraction_setup import ToyScorer
from media import picture, write_video

from aks.extraction import coarse_to_fine
from aks.extraction.coarse_to_fine import around_peaks, nearest_to_entries
from aks.extraction.feature_cache import cached_videos
from aks.extraction.keyframes import find_in_file
from aks.video.reader import CandidateRule, Video


class CountingScorer(ToyScorer):
    """Counts the frames that it encodes."""

    num_encoded = 0

    def encode_frames(self, inputs):
        self.num_encoded += len(inputs)
        return super().encode_frames(inputs)


def draw(number: int, width: int, height: int) -> np.ndarray:
    """Dark moving blocks, brighter and brighter towards frame 333, which is white; frame 103 is nearly so."""
    distance = 3 if number == 103 else abs(number - 333)
    return 255 - ((255 - picture(number, width, height)) * min(1, distance / 24)).astype(np.uint8)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("film") / "film.mp4", frames=400, fps=5, gop=30, draw=draw)


ALL = {"rule": CandidateRule(5), "strategy": "top"}  # all 400 frames are candidates


@pytest.mark.parametrize(
    "settings",
    [
        ALL,
        {**ALL, "workers": 2},
        {**ALL, "rule": CandidateRule(5, 10, 75)},
        {**ALL, "strategy": "mdp3"},
        {**ALL, "decoder": "pyav"},  # which decodes all frames, and gives those that are asked for
    ],
)
def test_scores_are_those_of_the_full_pass_at_what_was_looked_at(video, settings):
    questions, scorer = ["?", "?????", "Where?"], CountingScorer()
    info, found = find_in_file(video, questions, scorer, 8, fast=True, **settings)
    same, full = find_in_file(video, questions, ToyScorer(), 8, **settings)
    assert info == same
    for some, every in zip(found, full, strict=True):
        positions = np.searchsorted(every.curve.frame_indices, some.curve.frame_indices)
        assert len(positions) == scorer.num_encoded < 0.6 * info.num_candidates
        for name in ("frame_indices", "times_s", "scores"):
            assert (getattr(some.curve, name) == getattr(every.curve, name)[positions]).all()
        scores = dict(zip(some.curve.frame_indices.tolist(), some.curve.scores.tolist(), strict=True))
        assert [scores[k.frame_index] for k in some.keyframes] == [k.score for k in some.keyframes]
        assert len(some.keyframes) == 8


def test_a_peak_that_rises_slowly_is_found_to_the_frame_and_one_between_the_looks_is_not(video):
    settings = {"rule": CandidateRule(5), "strategy": "top"}
    _, (full,) = find_in_file(video, ["?"], ToyScorer(), 2, **settings)
    _, (found,) = find_in_file(video, ["?"], ToyScorer(), 2, fast=True, **settings)
    best = full.curve.frame_indices[full.curve.scores.argsort()[::-1]]
    assert best[0] == 333 and 103 in best[:8]
    assert 333 in [keyframe.frame_index for keyframe in found.keyframes]
    with Video(video) as film:
        looked_at_first = nearest_to_entries(film.entry_distances(np.arange(400)))
    assert 103 not in looked_at_first and 103 not in found.curve.frame_indices


def test_kept_features_of_all_are_used_and_those_of_some_are_not_kept(video, tmp_path, monkeypatch):
    monkeypatch.setenv("AKS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AKS_CACHE_GB", "1")
    scorer = CountingScorer()
    _, (first,) = find_in_file(video, ["?"], scorer, 8, fast=True, cache=True, **ALL)
    assert len(first.curve.scores) == scorer.num_encoded < 400 and cached_videos() == []
    _, full = find_in_file(video, ["?"], scorer, 8, cache=True, **ALL)
    count = scorer.num_encoded
    _, found = find_in_file(video, ["?"], scorer, 8, fast=True, cache=True, **ALL)
    assert scorer.num_encoded == count and len(found[0].curve.scores) == 400
    assert found[0].keyframes == full[0].keyframes


def test_where_the_grid_has_too_few_frames_all_are_looked_at(video):
    for budget, expected in ((100, False), (101, True)):
        _, (found,) = find_in_file(video, ["?"], ToyScorer(), budget, fast=True, **ALL)
        assert (len(found.curve.scores) == 400) == expected and len(found.keyframes) == budget
    for settings in ({**ALL, "ratio": 2}, {"rule": CandidateRule(5, positions=(1, 2))}):
        with pytest.raises(ValueError, match="fast and ratio, or positions, do not go together"):
            find_in_file(video, ["?"], ToyScorer(), 8, fast=True, **settings)


def test_the_grid_takes_the_frame_of_every_cell_that_is_decoded_first():
    assert coarse_to_fine.CELL == 4
    distances = np.array([0, 9, 9, 9, 3, 2, 0, 1, 2, 2, 2, 2, 7, 1])
    assert nearest_to_entries(distances).tolist() == [0, 6, 8, 13]


def test_around_peaks():
    coarse, flat = np.array([0, 6, 8, 13]), [1.0, 1, 1, 1]
    assert around_peaks(coarse, np.array([[1.0, 3, 2, 1]]), 1).tolist() == [1, 2, 3, 4, 5, 7]
    assert around_peaks(coarse, np.array([[1.0, 3, 2, 4]]), 1).tolist() == [9, 10, 11, 12]
    both = around_peaks(coarse, np.array([[9.0, 3, 2, 1], [1, 2, 3, 4]]), 1)
    assert both.tolist() == [1, 2, 3, 4, 5, 9, 10, 11, 12]
    assert around_peaks(coarse, np.array([flat]), 1).tolist() == [1, 2, 3, 4, 5]
    assert around_peaks(coarse, np.array([flat]), 4).tolist() == [1, 2, 3, 4, 5, 7, 9, 10, 11, 12]
    assert around_peaks(np.arange(3), torch.rand(1, 3).numpy(), 3).tolist() == []


def test_the_command_says_how_much_it_looked_at(video, tmp_path, run_script):
    flags = ["--fast", "--fps", "0.5", "--budget", "2", "--json", "--no_cache", "--device", "cpu"]
    done = run_script("keyframes.py", video, "Where is the cat?", *flags)
    document = json.loads(done.stdout)
    (facts,) = document["videos"]
    assert document["fast"] and facts["num_candidates"] == 40 and 10 < facts["num_scored"] < 30
    share = f"{facts['num_scored']} of 40 candidates ({facts['num_scored'] / 40:.0%})"
    assert f"--fast: {video}: looked at {share}\n" in done.stderr
    assert len(document["questions"][0]["keyframes"]) == 2
