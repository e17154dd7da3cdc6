"""Stored features: scores without the videos, resuming, sizes, and what is refused."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from extraction_setup import ToyScorer, flags_for, load_custom
from model_setup import save_blip, save_tiny_clip, save_tiny_siglip, tiny_blip
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sevila_setup import build_world

from aks import UserError
from aks.cli import load_scorer_from_args
from aks.extraction.api import extract, store_features
from aks.extraction.feature_store import PER_QUESTION, FeatureStore, bytes_per_frame, check_free_space
from aks.run_dir import RunDir
from aks.score_lists import read_scores
from aks.scorers.base import load_scorer

ENTRIES = [
    {"id": "a", "video": "one.mp4", "question": "Where is the cat?", "options": ["on a mat", "in a tree"]},
    {"id": "b", "video": "sub/three.mkv", "question": "How many cups of coffee are on the table?"},
    {"id": "c", "video": "one.mp4", "question": "Which vehicle is red?", "options": ["a car", "a bus"]},
]
LATER = [{"id": "new", "video": "one.mp4", "question": "Is there a motorcycle in the garage?"}]
# The shape of a frame's features, and the tolerance of scores from features in half precision.
SCORERS = {
    "conse": ((384,), 2e-3),
    "clip": ((32,), 2e-3),
    "siglip": ((32,), 2e-3),
    "blip": ((577, 64), 5e-3),
    "blip itc": ((256,), 2e-3),
    "sevila": ((32, 32), 0.07),  # Its logits are bfloat16: here, a step is 1/16.
}


@pytest.fixture(scope="module")
def scorers(tmp_path_factory):
    """Every scorer: conse with its real weights, the others with small random ones."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    (folder / "sevila").mkdir()
    world = build_world(folder / "sevila")
    blip = str(save_blip(tiny_blip(), folder / "blip"))
    return {
        "conse": load_scorer("conse"),
        "clip": load_scorer("clip", checkpoint=str(save_tiny_clip(folder / "clip"))),
        "siglip": load_scorer("siglip", checkpoint=str(save_tiny_siglip(folder / "siglip", 2))),
        "blip": load_scorer("blip", checkpoint=blip),
        "blip itc": load_scorer("blip", checkpoint=blip, blip_head="itc"),
        "sevila": load_scorer(
            "sevila", checkpoint=str(world / "sevila_pretrained.pth"), base=str(world / "base")
        ),
    }


@pytest.fixture
def data(clips, tmp_path) -> Path:
    folder = tmp_path / "data"
    shutil.copytree(clips, folder)
    (folder / "labels.json").write_text(json.dumps(ENTRIES))
    (folder / "later.json").write_text(json.dumps(LATER))
    return folder


def scores_of(run: RunDir) -> list[np.ndarray]:
    return read_scores(run.folder / "scores.json", run.folder / "frames.json")[0]


@pytest.mark.parametrize("name", SCORERS)
def test_scores_from_features_are_those_from_the_videos(name, data, tmp_path, scorers):
    scorer, labels = scorers[name], load_custom(data)
    direct = RunDir(tmp_path / "direct")
    extract(labels, scorer, direct)
    later = RunDir(tmp_path / "later")
    extract(load_custom(data, "later.json"), scorer, later)
    stores = {}
    for dtype in ("float32", "float16", "bfloat16"):
        stores[dtype] = FeatureStore(tmp_path / dtype, dtype)
        assert store_features(labels, scorer, stores[dtype]).scored == 2
    for video in ("one.mp4", "two.mp4", "sub/three.mkv"):
        (data / video).unlink()

    shape, tolerance = SCORERS[name]
    with safe_open(stores["float16"].part_path("one.mp4"), framework="pt") as file:
        assert file.get_slice("features").get_shape() == [5, *shape]
        assert file.get_tensor("features").dtype == torch.float16
        assert file.get_tensor("frames").tolist() == [0, 25, 50, 75, 100]
        assert file.get_tensor("times_s").tolist() == [0, 1, 2, 3, 4]
    for dtype, store in stores.items():
        run = RunDir(tmp_path / f"scores {dtype}")
        summary = extract(labels, scorer, run, features=FeatureStore.open(store.folder))
        assert (summary.scored, summary.failures) == (2, [])
        if dtype == "float32":
            atol = 1e-6  # The order of a sum may depend on the place in memory.
        else:  # bfloat16 keeps three bits less than float16.
            atol = tolerance * (8 if dtype == "bfloat16" and name != "sevila" else 1)
        for scores, expected in zip(scores_of(run), scores_of(direct), strict=True):
            np.testing.assert_allclose(scores, expected, atol=atol)
        for file in ("frames.json", "times.json"):
            assert (run.folder / file).read_bytes() == (direct.folder / file).read_bytes()
    # A new question about a video that is gone.
    run = RunDir(tmp_path / "scores later")
    extract(load_custom(data, "later.json"), scorer, run, features=stores["float32"])
    np.testing.assert_allclose(scores_of(run)[0], scores_of(later)[0], atol=1e-6)


def test_an_interrupted_store_resumes_and_lists_a_bad_video(data, tmp_path):
    (data / "bad.mp4").write_text("no video")
    (data / "labels.json").write_text(
        json.dumps([*ENTRIES, {"id": "x", "video": "bad.mp4", "question": "?"}])
    )
    store = FeatureStore(tmp_path / "store", "float16")
    summary = store_features(load_custom(data), ToyScorer(), store)
    assert (summary.scored, [f["video"] for f in summary.failures]) == (2, ["bad.mp4"])
    mtime = store.part_path("one.mp4").stat().st_mtime_ns
    store.part_path("sub/three.mkv").unlink()
    summary = store_features(load_custom(data), ToyScorer(), store)
    assert (summary.scored, summary.reused) == (1, 1)
    assert store.part_path("one.mp4").stat().st_mtime_ns == mtime
    assert not list(store.folder.rglob(".*"))
    summary = extract(load_custom(data), ToyScorer(), RunDir(tmp_path / "out"), features=store)
    assert "no stored features" in summary.failures[0]["reason"]


def test_a_further_label_file_adds_its_videos(data, tmp_path):
    store = FeatureStore(tmp_path / "store", "float16")
    (data / "first.json").write_text(json.dumps(ENTRIES[:1]))
    store_features(load_custom(data, "first.json"), ToyScorer(), store)
    (stored,) = store.parts.glob("*.safetensors")
    content = stored.read_bytes()
    summary = store_features(load_custom(data), ToyScorer(), store)
    assert (summary.scored, summary.reused) == (1, 1)
    assert stored.read_bytes() == content and len(list(store.parts.glob("*.safetensors"))) == 2


def test_features_of_another_video_of_the_same_name_are_refused(data, tmp_path):
    labels, store = load_custom(data), FeatureStore(tmp_path / "store", "float16")
    store_features(labels, ToyScorer(), store)
    shutil.copy(data / "two.mp4", data / "one.mp4")
    with pytest.raises(UserError, match=r"made from another one\.mp4"):
        store_features(labels, ToyScorer(), store)
    with pytest.raises(UserError, match=r"made from another one\.mp4"):
        extract(labels, ToyScorer(), RunDir(tmp_path / "out"), features=store)
    assert not (tmp_path / "out").exists()  # refused before the work


def test_features_of_another_model_precision_or_checkpoint_are_refused(data, tmp_path, scorers):
    labels, store = load_custom(data), FeatureStore(tmp_path / "store", "float32")
    store_features(labels, scorers["blip"], store)
    refusals = {
        "scorer 'blip' stored, 'clip' now": scorers["clip"],
        "blip_head 'itm' stored, 'itc' now": scorers["blip itc"],
        "dtype 'float32' stored, 'bfloat16' now": load_scorer(
            "blip", checkpoint=scorers["blip"].checkpoint, dtype="bfloat16"
        ),
    }
    for words, scorer in refusals.items():
        with pytest.raises(UserError, match=words):
            extract(labels, scorer, RunDir(tmp_path / "out"), features=store)
        with pytest.raises(UserError, match="made with other settings"):
            store_features(labels, scorer, store)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "damage",
    ["truncated", "header only", "empty", "text", "another video's", "frames", "times_s", "features"],
)
def test_a_damaged_file_is_named(damage, data, tmp_path):
    labels, store = load_custom(data), FeatureStore(tmp_path / "store", "float32")
    store_features(labels, ToyScorer(), store)
    path = store.part_path("sub/three.mkv")
    content = path.read_bytes()
    if damage in ("frames", "times_s", "features"):  # one column shorter than the others
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        save_file({**tensors, damage: tensors[damage][1:].clone()}, path, metadata)
    else:
        path.write_bytes(
            {
                "truncated": content[:-1],
                "header only": content[:200],
                "empty": b"",
                "text": b"no features here, only text",
                "another video's": store.part_path("one.mp4").read_bytes(),
            }[damage]
        )
    with pytest.raises(UserError, match=r"three\.mkv\.safetensors: damaged") as caught:
        extract(labels, ToyScorer(), RunDir(tmp_path / "out"), features=store)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_features_that_do_not_fit_the_disk_are_refused_before_the_work(data, tmp_path, scorers, monkeypatch):
    needed = bytes_per_frame(scorers["blip"], torch.float16)
    assert needed == 577 * 64 * 2 + 16
    check_free_space(tmp_path / "not/yet/there", needed)
    with pytest.raises(UserError, match=r"need about 1000000\.0 GB"):
        check_free_space(tmp_path, 10**15)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    store = FeatureStore(tmp_path / "store", "float16")
    with pytest.raises(UserError, match="--feature_dtype float16"):
        store_features(load_custom(data), scorers["clip"], store)
    # 20 frames: enough for one a second of these ten seconds, not for 25.
    free = 20 * bytes_per_frame(scorers["clip"], torch.float16)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(free, 0, free))
    with pytest.raises(UserError, match="--feature_dtype float16"):
        store_features(load_custom(data), scorers["clip"], FeatureStore(tmp_path / "25", "float16"), fps=25)
    assert not list(store.parts.iterdir())


def test_a_value_beyond_half_precision_is_a_failure_not_an_infinity(data, tmp_path, scorers, monkeypatch):
    scorer = scorers["clip"]
    encode = scorer.encode_frames
    monkeypatch.setattr(scorer, "encode_frames", lambda inputs: encode(inputs) * 1e9)
    store = FeatureStore(tmp_path / "store", "float16")
    summary = store_features(load_custom(data), scorer, store)
    assert all("does not fit float16" in failure["reason"] for failure in summary.failures)
    assert len(summary.failures) == 2 and not list(store.parts.glob("*.safetensors"))


def test_question_bound_vectors_score_no_other_question(data, tmp_path, scorers):
    labels, scorer = load_custom(data), scorers["blip"]
    store = FeatureStore(tmp_path / "store", "float32", PER_QUESTION)
    store_features(labels, scorer, store)
    path = store.part_path("one.mp4")
    vectors = load_file(path)["features"]
    assert vectors.shape[:2] == (5, 2)
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["questions"]) == ["a", "c"]
    # The matching head turns these vectors into probabilities, which are the scores.
    direct = RunDir(tmp_path / "direct")
    extract(labels, scorer, direct)
    probabilities = scorer.model.itm_head(vectors).softmax(dim=-1)[..., 1].T
    np.testing.assert_allclose(probabilities.numpy(), np.array(scores_of(direct)[:3:2]), atol=1e-5)
    with pytest.raises(UserError, match="question-bound vectors, which score no other question"):
        extract(labels, scorer, RunDir(tmp_path / "out"), features=FeatureStore.open(store.folder))


def test_the_commands_store_features_and_score_without_the_videos(data, tmp_path, scorers, run_script):
    direct = RunDir(tmp_path / "direct")
    extract(load_custom(data), scorers["conse"], direct)
    flags = [*flags_for(data, tmp_path / "f"), "--feature_dtype", "float16"]
    done = run_script("feature_extract_store.py", *flags, fresh=True)
    assert done.returncode == 0, done.stderr
    assert "2 videos: 2 stored now" in done.stdout
    for video in ("one.mp4", "sub/three.mkv"):
        (data / video).unlink()
    flags = [*flags_for(data, tmp_path / "o"), "--features", tmp_path / "f/custom/conse"]
    done = run_script("feature_extract.py", *flags)
    assert done.returncode == 0, done.stderr
    assert FeatureStore.open(tmp_path / "f/custom/conse").dtype == torch.float16
    for scores, expected in zip(
        scores_of(RunDir(tmp_path / "o/custom/conse")), scores_of(direct), strict=True
    ):
        np.testing.assert_allclose(scores, expected, atol=SCORERS["conse"][1])


@pytest.mark.long  # the command and the vectors are tested apart
def test_the_command_stores_question_bound_vectors(data, tmp_path, run_script):
    checkpoint = save_blip(tiny_blip(), tmp_path / "blip")
    flags = [*flags_for(data, tmp_path / "f", "blip"), "--checkpoint", checkpoint, "--blip_features", "itm-e"]
    done = run_script("feature_extract_store.py", *flags)
    assert done.returncode == 0, done.stderr
    store = FeatureStore.open(tmp_path / "f/custom/blip-itm-e-question-bound")
    assert (store.kind, store.dtype_name) == (PER_QUESTION, "float32")
    with store.open_part("one.mp4") as file:
        assert file.get_slice("features").get_shape()[:2] == [5, 2]  # frames, and questions about them
        assert json.loads(file.metadata()["questions"]) == ["a", "c"]


def test_scores_from_rounded_and_from_exact_features_do_not_mix(data, tmp_path):
    labels, runs = load_custom(data), {}
    for dtype in ("float32", "bfloat16"):
        store = FeatureStore(tmp_path / dtype, dtype)
        store_features(labels, ToyScorer(), store)
        runs[dtype] = RunDir(tmp_path / f"scores {dtype}")
        extract(labels, ToyScorer(), runs[dtype], features=store)
    extract(labels, ToyScorer(), runs["float32"])  # These scores are exact, too.
    with pytest.raises(UserError, match="features None there, 'bfloat16' now"):
        extract(labels, ToyScorer(), runs["float32"], features=store)
    with pytest.raises(UserError, match="features 'bfloat16' there, None now"):
        extract(labels, ToyScorer(), runs["bfloat16"])
    half = ToyScorer()
    half.dtype = torch.bfloat16  # Its features lose nothing in bfloat16.
    extract(labels, half, RunDir(tmp_path / "half scores"))
    for dtype in ("float32", "bfloat16"):
        store = FeatureStore(tmp_path / f"half {dtype}", dtype)
        store_features(labels, half, store)
        assert extract(labels, half, RunDir(tmp_path / "half scores"), features=store).reused == 2


def test_features_of_another_data_set_type_or_kind_are_refused(data, tmp_path):
    labels, store = load_custom(data), FeatureStore(tmp_path / "store", "float32")
    store_features(labels, ToyScorer(), store)
    other = replace(labels, dataset="videomme")
    with pytest.raises(UserError, match="features of custom, not of videomme"):
        extract(other, ToyScorer(), RunDir(tmp_path / "out"), features=store)
    for words, settings, other_labels, decode in [
        ("dataset 'custom' there, 'videomme' now", ["float32"], other, {}),
        ("stored_dtype 'float32' there, 'float16' now", ["float16"], labels, {}),
        ("kind 'frame' there, 'question-bound itm-e' now", ["float32", PER_QUESTION], labels, {}),
        ("decoder None there, 'decord' now", ["float32"], labels, {"decoder": "decord"}),
    ]:
        with pytest.raises(UserError, match=words):
            FeatureStore(store.folder, *settings).open_for(ToyScorer(), other_labels, decode)
    bound = FeatureStore(tmp_path / "bound", "float32", PER_QUESTION)
    bound.open_for(ToyScorer(), labels, {})
    with pytest.raises(UserError, match="label_sha256"):
        bound.open_for(ToyScorer(), load_custom(data, "later.json"), {})


@pytest.mark.parametrize(("features", "is_loaded"), [(None, True), ("features", False)])
def test_stored_features_are_scored_without_the_image_encoder(features, is_loaded):
    flags = {"extract_feature_model": "conse", "checkpoint": None, "device": "cpu", "dtype": None}
    args = argparse.Namespace(**flags, backend="transformers", features=features)
    assert ("image_encoder" in vars(load_scorer_from_args(args))) == is_loaded
