"""Rules that compare frames: the original code's frames, invariances, and where features come from."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from conftest import check_mistake
from extraction_setup import ToyScorer, load_custom
from selection_setup import film_vectors

import aks
from aks.extraction.api import extract, store_features
from aks.extraction.feature_store import FeatureStore
from aks.run_dir import RunDir
from aks.selection import select_positions, unit_vectors

VECTORS = film_vectors(60)
QUESTION = VECTORS[41] + VECTORS[9] + 5 * np.cos(3 * np.arange(1, 17))
COSINES = unit_vectors(VECTORS) @ (QUESTION / np.linalg.norm(QUESTION))
RULES = ("mdp3", "segment_adaptive")


def chosen(strategy, budget, scores=COSINES, features=VECTORS, ratio=1, **options):
    positions = select_positions(
        scores, budget, strategy=strategy, features=features, ratio=ratio, options=options
    )
    return positions.tolist()


LAST_21 = list(range(39, 60))


@pytest.mark.parametrize(
    ("strategy", "options", "budget", "original"),
    [
        # _select_frames_fast of mdp3_frame_selector.py, which cuts after 32 frames, or 128 for more than 32.
        ("mdp3", {}, 6, [33, 36, 37, 38, 41, 42]),
        ("mdp3", {"segment": 8}, 6, [33, 36, 38, 41, 48, 59]),
        ("mdp3", {"segment": 8, "diversity": 1}, 6, [11, 22, 38, 41, 48, 59]),
        ("mdp3", {"segment": 60, "diversity": 1}, 6, [33, 36, 38, 41, 48, 52]),
        ("mdp3", {"segment": 16, "diversity": 1}, 12, [11, 22, 33, 36, 38, 40, 41, 42, 47, 52, 53, 59]),
        ("mdp3", {}, 40, [2, 3, 6, 8, 9, 10, 11, 13, 17, 22, 29, *range(31, 39), *LAST_21]),
        # select_candidates of framesieve 0.2.0, "segment_adaptive".
        ("segment_adaptive", {}, 4, [33, 36, 38, 41]),
        ("segment_adaptive", {"factor": 1}, 6, [2, 6, 33, 41, 52, 53]),
        ("segment_adaptive", {"factor": 2}, 6, [33, 38, 41, 42, 52, 53]),
        ("segment_adaptive", {"factor": 0.5}, 6, [2, 6, 33, 34, 38, 41]),
        ("segment_adaptive", {"factor": 0.01}, 6, [33, 36, 37, 38, 40, 41]),
    ],
)
def test_a_rule_chooses_the_frames_of_the_original_code(strategy, options, budget, original):
    assert chosen(strategy, budget, **options) == original


def test_mdp3_cuts_a_longer_video_after_128_frames_for_more_than_32_keyframes():
    vectors = film_vectors(150)
    cosines = unit_vectors(vectors) @ (QUESTION / np.linalg.norm(QUESTION))
    original = [33, 36, 37, 40, 41, 42, 48, 52, 53, 59, 73, 75, 77, 80, 96, 107, 110, 115, 117, 119, 121, 122]
    original += [124, *range(126, 137), 138, 141]
    assert chosen("mdp3", 36, cosines, vectors, diversity=1) == original


@pytest.mark.parametrize("strategy", RULES)
def test_lengths_and_axes_of_the_vectors_do_not_count(strategy):
    rng = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(rng.normal(size=(16, 16)))
    turned = VECTORS @ rotation * rng.uniform(0.1, 9, size=(60, 1))
    assert chosen(strategy, 9, features=turned) == chosen(strategy, 9)


@pytest.mark.parametrize("strategy", RULES)
@pytest.mark.parametrize("features", [np.zeros((60, 16)), np.ones((60, 1))], ids=["zeros", "alike"])
def test_frames_that_do_not_differ_are_chosen_by_their_scores(strategy, features):
    found = chosen(
        strategy, 9, features=features, **({"segment": 60} if strategy == "mdp3" else {"factor": 60})
    )
    assert found == chosen("top", 9, features=None)


@pytest.mark.parametrize(
    ("strategy", "options"), [("mdp3", {"diversity": 5}), ("segment_adaptive", {"factor": 1})]
)
def test_a_ratio_thins_the_features_too(strategy, options):
    thinned = chosen(strategy, 7, COSINES[::3], VECTORS[::3], **options)
    assert chosen(strategy, 7, ratio=3, **options) == [3 * position for position in thinned]
    assert chosen(strategy, 7, COSINES[::3], VECTORS[:20], **options) != thinned


def test_mdp3_shows_no_frame_twice_while_there_are_others():
    twice = np.repeat(VECTORS[:10], 2, axis=0)
    found = chosen("mdp3", 10, np.repeat(COSINES[:10], 2), twice)
    assert found == list(range(0, 20, 2))  # the earlier of each two


def test_mdp3_weighs_relevance_by_the_cosines_themselves():
    # The normalized scores are the same: where cosines hardly differ, diversity counts more.
    assert chosen("mdp3", 6, COSINES / 100) != chosen("mdp3", 6)
    with pytest.raises(ValueError, match="mdp3 needs cosines as scores"):
        chosen("mdp3", 6, COSINES * 100)


def test_segments_are_cut_where_the_picture_changes():
    shots = np.eye(4)[[0] * 20 + [1] * 5 + [2] * 30 + [3] * 5]
    scores = np.linspace(0, 1, 60)
    assert chosen("segment_adaptive", 4, scores, shots, factor=1) == [19, 24, 54, 59]
    assert chosen("segment_adaptive", 4, scores, shots, factor=1e308) == [56, 57, 58, 59]


@pytest.mark.parametrize(
    ("strategy", "change", "words"),
    [
        ("mdp3", {"features": None}, "mdp3 needs the frames' features: feature_extract_store.py stores them"),
        ("top", {}, "strategy top does not use features"),
        ("mdp3", {"features": VECTORS[:-1]}, r"shape \(59, 16\); 60 vectors are needed"),
        ("mdp3", {"features": VECTORS[:, 0]}, r"shape \(60,\)"),
        ("segment_adaptive", {"features": VECTORS * np.nan}, "features must be finite"),
        ("mdp3", {"diversity": 0}, "diversity is 0"),
        ("mdp3", {"segment": 1.5}, "segment is 1.5"),
        ("segment_adaptive", {"factor": 0}, "factor is 0"),
    ],
)
def test_a_bad_argument_is_named(strategy, change, words):
    with pytest.raises(ValueError, match=words):
        chosen(strategy, 6, **change)


# The command.

ENTRIES = [
    {"id": "a", "video": "one.mp4", "question": "Where?"},
    {"id": "b", "video": "sub/three.mkv", "question": "Who is there?"},
    {"id": "c", "video": "one.mp4", "question": "What colour is it?"},
]


@pytest.fixture(scope="module")
def world(clips, tmp_path_factory):
    """A folder with labels, the scores of two videos, and their features in float16."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "labels.json").write_text(json.dumps(ENTRIES))
    for name in ("one.mp4", "sub"):
        (folder / name).symlink_to(clips / name)
    labels = load_custom(folder)
    store_features(labels, ToyScorer(), FeatureStore(folder / "store", "float16"))
    extract(labels, ToyScorer(), RunDir(folder / "scores"))
    return folder


@pytest.fixture
def select(world, tmp_path, run_script):
    """Run the command on the scores; returns the finished process."""

    def run(*flags):
        files = ["--score_path", world / "scores/scores.json", "--output_file", tmp_path / "sel"]
        return run_script("frame_select.py", *files, "--dataset_name", "custom", *flags)

    return run


def test_the_command_hands_each_question_its_video_s_features(world, tmp_path, select):
    labels = ["--label_file", world / "labels.json"]
    done = select("--strategy", "mdp3", "--max_num_frames", 2, "--features", world / "store", *labels)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "sel/custom/blip"
    store, expected = FeatureStore.open(world / "store"), []
    for entry, scores in zip(ENTRIES, json.loads((world / "scores/scores.json").read_text()), strict=True):
        frames, vectors = store.read_vectors(entry["video"])
        assert vectors.dtype == np.float32 and vectors.shape == (len(frames), 192)
        expected.append(aks.select_keyframes(scores, frames, 2, strategy="mdp3", features=vectors))
    assert json.loads((folder / "selected_frames.json").read_text()) == expected
    record = json.loads((folder / "selection.json").read_text())
    assert record["options"] == {"diversity": 0.2, "segment": 0}
    assert record["features"] == json.loads((world / "store/run.json").read_text())


def no_frame_0(folder):
    rows = json.loads((folder / "scores/frames.json").read_text())
    (folder / "scores/frames.json").write_text(json.dumps([[row[0] + 1, *row[1:]] for row in rows]))


def another_data_set(folder):
    record = folder / "store/run.json"
    record.write_text(record.read_text().replace('"custom"', '"videomme"'))


def patches(folder):
    store = FeatureStore(folder / "store", "float32")
    scorer = ToyScorer()
    scorer.encode_frames = lambda inputs: inputs.flatten(2)
    shutil.rmtree(folder / "store")
    store_features(load_custom(folder), scorer, store)


MISTAKES = {
    "no features": (["--strategy", "mdp3"], None, "strategy mdp3 needs the frames' features"),
    "not used": (["--features", "store"], None, "strategy ada does not use features"),
    "labels": (["--label_file", "labels.json"], None, "--label_file go with --features"),
    "other frames": ([], no_frame_0, "entry 0 (a): its frames are not those of"),
    "a video less": (
        [],
        lambda folder: FeatureStore.open(folder / "store").part_path("one.mp4").unlink(),
        "one",
    ),
    "a question less": (
        [],
        lambda folder: (folder / "labels.json").write_text(json.dumps(ENTRIES[:2])),
        "labels.json holds 2 questions and",
    ),
    "another data set": (
        [],
        another_data_set,
        "features of videomme, not of custom",
    ),
    "patches": ([], patches, "3 x 64 values a frame"),
    "no store": ([], lambda folder: shutil.rmtree(folder / "store"), "store"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_reported_in_one_line(world, tmp_path, run_script, mistake):
    flags, spoil, words = MISTAKES[mistake]
    folder = shutil.copytree(world, tmp_path / "world", symlinks=True)
    if spoil:
        spoil(folder)
    flags = flags or ["--strategy", "mdp3", "--features", "store", "--label_file", "labels.json"]
    done = run_script(
        "frame_select.py",
        "--score_path",
        "scores/scores.json",
        "--dataset_name",
        "custom",
        *flags,
        cwd=folder,
    )
    check_mistake(done, words)
    assert not (folder / "selected_frames").exists()


def test_one_video_s_keyframes_are_compared_by_the_scorer_s_own_features(world):
    scorer, labels = ToyScorer(), load_custom(world)
    with aks.Video(world / "one.mp4") as video:
        found = aks.find_keyframes(video, labels.questions[0], scorer, 2, strategy="mdp3", batch_frames=2)
    frames, vectors = FeatureStore.open(world / "store").read_vectors("one.mp4")
    scores = json.loads((world / "scores/scores.json").read_text())[labels.questions[0].index]
    expected = aks.select_keyframes(scores, frames, 2, strategy="mdp3", features=vectors)
    assert [keyframe.frame_index for keyframe in found] == expected
    scorer.encode_frames = lambda inputs: inputs.flatten(2)
    with pytest.raises(aks.UserError, match="strategy mdp3 with toy: 3 x 64 values a frame"):
        aks.keyframes(world / "one.mp4", "Where?", 2, scorer=scorer, strategy="mdp3")
