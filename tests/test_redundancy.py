"""Redundancy of selections: by hand, from stored features, beside the other measures of the command."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from extraction_setup import ToyScorer, load_custom
from selection_setup import film_vectors

import aks
from aks.extraction.api import store_features
from aks.extraction.feature_store import FeatureStore
from aks.redundancy import measure_redundancy, positions_of, redundancy_of
from aks.selection import unit_vectors

VIDEOS = ["one.mp4", "two.mp4", "one.mp4", "two.mp4", "sub/three.mkv"]
SECONDS, STRIDES = [5, 3, 5, 3, 4], [25, 24, 25, 24, 12]
ENTRIES = [
    {"id": f"q{index}", "video": video, "question": "?", "duration": seconds}
    for index, (video, seconds) in enumerate(zip(VIDEOS, SECONDS, strict=True))
]
ONE = [0, 25, 100]  # of the candidates 0, 25, 50, 75, 100
TWO = [0, 48]  # of 0, 24, 48


@pytest.fixture(scope="module")
def world(clips, tmp_path_factory):
    """A folder with the features of two of three videos, and two selections."""
    folder = tmp_path_factory.mktemp("world")
    for name in ("one.mp4", "two.mp4", "sub"):
        (folder / name).symlink_to(clips / name)
    (folder / "labels.json").write_text(json.dumps(ENTRIES[:4]))
    store_features(load_custom(folder), ToyScorer(), FeatureStore(folder / "store", "float32"))
    (folder / "labels.json").write_text(json.dumps(ENTRIES))
    (folder / "a.json").write_text(json.dumps([ONE, TWO, [0, 26], [24], [0, 12]]))
    (folder / "b.json").write_text(json.dumps([[50, 75, 100], [0, 24], ONE, TWO, [0, 12]]))
    frames = [(stride * np.arange(n)).tolist() for n, stride in zip(SECONDS, STRIDES, strict=True)]
    (folder / "frames.json").write_text(json.dumps(frames))
    return folder


def mean_cosine(folder, video: str, frames: list[int]) -> float:
    stored, vectors = FeatureStore.open(folder / "store").read_vectors(video)
    units = unit_vectors(vectors[[stored.tolist().index(frame) for frame in frames]])
    return np.mean([a @ b for a, b in itertools.combinations(units, 2)])


def test_known_values():
    assert redundancy_of(np.array([[1, 0], [0, 3], [0, 0.5]])) == pytest.approx(1 / 3)
    assert redundancy_of(np.array([[1.0, 2], [-2, -4]])) == pytest.approx(-1)
    assert redundancy_of(np.ones((50, 8))) == pytest.approx(1)
    assert np.isnan(redundancy_of(np.ones((1, 8))))
    units = unit_vectors(film_vectors(30))
    pairs = [a @ b for a, b in itertools.combinations(units, 2)]
    assert redundancy_of(film_vectors(30)) == pytest.approx(np.mean(pairs), abs=1e-6)


@pytest.mark.parametrize(
    ("frames", "exact", "nearest"),
    [
        ([0, 48], [0, 2], [0, 2]),
        ([24, 59], None, [1, 2]),
        ([61, 200], None, [3, 4]),
        ([37, 45], None, [2]),
        ([12], None, [0]),
        ([], [], []),
    ],
)
def test_frames_are_found_among_the_stored_ones(frames, exact, nearest):
    frames, stored = np.array(frames, dtype=np.int64), np.arange(0, 120, 24)
    found = positions_of(frames, stored, take_nearest=False)
    assert (found if found is None else found.tolist()) == exact
    assert positions_of(frames, stored, take_nearest=True).tolist() == nearest


def test_what_is_not_stored_is_not_measured(world):
    rows = {name: list(map(np.array, json.loads((world / f"{name}.json").read_text()))) for name in "ab"}
    found = measure_redundancy(world / "store", load_custom(world), rows, take_nearest=["b"])
    expected = [mean_cosine(world, "one.mp4", ONE), mean_cosine(world, "two.mp4", TWO)]
    np.testing.assert_allclose(found["a"], [*expected, np.nan, np.nan, np.nan], atol=1e-6)
    assert np.isfinite(found["b"]).tolist() == [True] * 4 + [False]


def test_the_command_measures_it_beside_the_others(world, run_script):
    flags = ["--dataset_name", "custom", "--label_file", "labels.json", "--frame_path", "frames.json"]
    flags += ["--features", "store", "--selected_frames", "a=a.json", "b=b.json"]
    done = run_script("-m", "aks.quality", *flags, cwd=world)
    assert done.returncode == 0, done.stderr
    assert "redundancy: 3 questions left out" in done.stdout
    assert "all questions (2 questions, 2 videos)" in done.stdout
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("  redundancy")]
    # Of one.mp4 uniform sampling takes 0, 41 and 82.
    pairs = [([0, 50, 75], [0, 24, 48]), (ONE, TWO), ([50, 75, 100], [0, 24])]
    values = [
        (mean_cosine(world, "one.mp4", one) + mean_cosine(world, "two.mp4", two)) / 2 for one, two in pairs
    ]
    assert [line[1:3] for line in lines] == [
        [name, f"{value:.3f}"] for name, value in zip(["uniform", "a", "b"], values, strict=True)
    ]
    assert lines[2][5] == f"{values[2] - values[0]:+.3f}"


def test_a_mistake_is_one_line(world, run_script):
    flags = ["--dataset_name", "custom", "--label_file", "labels.json", "--selected_frames", "a=a.json"]
    done = run_script("-m", "aks.quality", *flags, "--features", "absent", cwd=world)
    assert done.returncode == 2 and "absent/run.json" in done.stderr and done.stderr.count("\n") == 1
    labels = replace(load_custom(world), dataset="videomme")
    with pytest.raises(aks.UserError, match="features of custom, not of videomme"):
        measure_redundancy(world / "store", labels, {})
