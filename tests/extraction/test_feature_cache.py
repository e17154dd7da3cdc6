"""The cache of frame features: a later question decodes and encodes nothing, and is answered alike."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import forkserver
import numpy as np
import pytest
import torch
from conftest import ROOT
from extraction_setup import PYTHON_PATH, ToyScorer
from media import write_video
from model_setup import save_blip, save_tiny_clip, save_tiny_siglip, tiny_blip

import aks
from aks.extraction import feature_cache
from aks.extraction.batching import FeatureBatch
from aks.extraction.feature_cache import CacheEntry
from aks.extraction.keyframes import find_in_file
from aks.scorers.weights import weights_identity
from aks.video.reader import CandidateRule


class CountingScorer(ToyScorer):
    """Counts the frames that it encodes; gives features of a type."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.kind, self.num_encoded = dtype, 0

    def encode_frames(self, inputs):
        self.num_encoded += len(inputs)
        return (super().encode_frames(inputs) / 3).to(self.kind)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AKS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AKS_CACHE_GB", "1")
    return tmp_path / "cache"


def curve(video, scorer, question="Where?", **settings):
    """Frames, times and scores to the bit, and the keyframes."""
    info, (found,) = find_in_file(video, [question], scorer, 3, cache=True, **settings)
    rows = (found.curve.frame_indices, found.curve.times_s, found.curve.scores)
    return info.fps, info.num_frames, found.keyframes, [row.tobytes() for row in rows]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_later_question_encodes_nothing_and_has_the_scores_of_no_cache(clips, dtype):
    scorer, video = CountingScorer(dtype), clips / "one.mp4"
    settings = {"rule": CandidateRule(12), "batch_frames": 8, "strategy": "mdp3"}
    plain = curve(video, CountingScorer(dtype), "Which one?", **settings)
    feature_cache.clear()
    curve(video, scorer, **settings, workers=2)
    count = scorer.num_encoded
    assert count == 62
    assert curve(video, scorer, "Which one?", **settings) == plain
    assert scorer.num_encoded == count


def test_conse_s_scores_from_the_cache_are_those_without_it_for_the_command_too(clips, cache, run_script):
    scorer, video = aks.load_scorer("conse"), clips / "one.mp4"
    questions, rows = ["Where is the cat?", "Who opens the door?"], []
    for settings in ({}, {"cache": True}, {"cache": True}):
        found = aks.keyframes(video, questions, 3, scorer=scorer, fps=5, **settings)
        rows.append([(each.keyframes, each.curve.scores.tobytes()) for each in found])
    assert rows[0] == rows[1] == rows[2] and len(feature_cache.cached_videos()) == 1

    flags = ["--fps", "5", "--budget", "3", "--device", "cpu", "--json", "--verbose"]
    done = run_script("keyframes.py", video, *questions, *flags)
    assert "one.mp4: features of an earlier question" in done.stderr
    document = json.loads(done.stdout)
    scores = [[row["score"] for row in entry["keyframes"]] for entry in document["questions"]]
    assert scores == [[keyframe.score for keyframe in keyframes] for keyframes, _ in rows[0]]
    assert document["videos"] == [{"video": str(video), "fps": 25.0, "num_frames": 125, "duration_s": 5.0}]
    lines = run_script("-m", "aks", "cache").stdout.splitlines()
    assert len(lines) == 2 and lines[0].endswith("MB  conse    one")
    assert lines[1] == f"{cache}: 1 videos, 0.00 of at most 1 GB (AKS_CACHE_GB)"
    assert run_script("-m", "aks", "cache", "--clear").stdout == f"{cache}: 1 videos deleted\n"
    assert feature_cache.cached_videos() == []


@pytest.mark.parametrize("name", ["conse", "blip", "clip", "siglip"])
def test_a_later_question_loads_no_image_encoder(clips, tmp_path, name):
    save = {"clip": save_tiny_clip, "siglip": save_tiny_siglip}
    save["blip"] = lambda folder: save_blip(tiny_blip(image_size=32), folder)
    checkpoint = None if name == "conse" else str(save[name](tmp_path / name))
    video = clips / "one.mp4"
    whole = aks.load_scorer(name, checkpoint=checkpoint)
    _, (expected,) = find_in_file(video, ["Which one?"], whole, 3)
    for is_first in (True, False):
        scorer = aks.load_scorer(name, checkpoint=checkpoint, with_image_encoder=False)
        assert curve(video, scorer, "Which one?")[3][2] == expected.curve.scores.tobytes()
        assert ("image_encoder" in vars(scorer)) == is_first
    parts = [part for part in vars(scorer).values() if isinstance(part, torch.nn.Module)]
    names = [name for part in parts for name, _ in part.named_parameters()]
    assert names and not [name for name in names if "vision_model" in name]


def test_some_candidates_are_not_taken_for_all(clips, cache):
    scorer, video = CountingScorer(), clips / "one.mp4"
    _, (some,) = find_in_file(video, ["?"], scorer, 2, rule=CandidateRule(positions=(1, 3)), cache=True)
    _, (found,) = find_in_file(video, ["?"], scorer, 2, cache=True)
    assert (len(some.curve.scores), len(found.curve.scores), scorer.num_encoded) == (2, 5, 7)


@pytest.mark.parametrize("name", ["a", "ab", "a" * 20, "a" * 41])  # the header's length moves the features
def test_kept_features_lie_in_memory_as_new_ones(clips, tmp_path, name):
    scorer, video = CountingScorer(), tmp_path / f"{name}.mp4"
    shutil.copy(clips / "one.mp4", video)
    curve(video, scorer)
    entry = CacheEntry(video, scorer, CandidateRule(), "auto")
    batches = [event for event in entry.open().read(entry.name, 2) if isinstance(event, FeatureBatch)]
    assert len(batches) == 3
    assert [batch.features.data_ptr() % 64 for batch in batches] == [0, 0, 0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_cache_of_another_user_s_costs_no_answer(clips, monkeypatch, caplog):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to others
        cache, video = Path(folder, "cache"), Path(folder, "film.mp4")
        os.chmod(folder, 0o755)
        monkeypatch.setenv("AKS_CACHE", str(cache))
        shutil.copy(clips / "one.mp4", video)
        plain = curve(video, CountingScorer())
        for mode, num_visible in ((0o755, 1), (0o700, 0)):
            cache.chmod(mode)
            os.seteuid(65534)
            try:
                feature_cache.evict(0)
                assert feature_cache.clear() == 0
                assert len(feature_cache.cached_videos()) == num_visible
                assert curve(video, CountingScorer()) == plain
            finally:
                os.seteuid(0)
    assert "are not kept for the next question" in caplog.text and "Permission denied" in caplog.text


def test_what_changes_the_features_is_encoded_anew(clips, tmp_path, monkeypatch):
    video = tmp_path / "film.mp4"
    shutil.copy(clips / "one.mp4", video)
    scorer = CountingScorer()

    def is_encoded(**settings) -> bool:
        before = scorer.num_encoded
        curve(video, scorer, **settings)
        return scorer.num_encoded > before

    assert is_encoded() and not is_encoded()
    assert is_encoded(rule=CandidateRule(2)) and is_encoded(rule=CandidateRule(1, 1)) and not is_encoded()
    scorer.checkpoint = str(tmp_path / "weights")
    (tmp_path / "weights").write_text("one")
    assert is_encoded() and not is_encoded()
    (tmp_path / "weights").write_text("other")
    assert is_encoded() and not is_encoded()
    os.utime(video, (1, 1))
    assert is_encoded() and not is_encoded()
    write_video(video, frames=100, fps=25)
    assert is_encoded() and not is_encoded()


def test_the_videos_not_used_for_the_longest_time_are_deleted(clips, tmp_path, monkeypatch, caplog):
    def kept() -> set[str]:
        return {video.path.name.partition("-")[0] for video in feature_cache.cached_videos()}

    videos = [tmp_path / f"{name}.mp4" for name in "abc"]
    for age, video in zip((300, 200, 100), videos, strict=True):
        shutil.copy(clips / "one.mp4", video)
        curve(video, CountingScorer())
        (new,) = [part for part in feature_cache.cached_videos() if part.path.name.startswith(video.stem)]
        os.utime(new.path, (time.time() - age,) * 2)
    assert kept() == {"a", "b", "c"}
    curve(videos[0], CountingScorer())  # used again: now b is the oldest
    size = feature_cache.cached_videos()[0].num_bytes
    monkeypatch.setenv("AKS_CACHE_GB", str(3.5 * size / 1e9))
    shutil.copy(clips / "one.mp4", tmp_path / "d.mp4")
    curve(tmp_path / "d.mp4", CountingScorer())
    assert kept() == {"a", "c", "d"}
    monkeypatch.setenv("AKS_CACHE_GB", "0.000001")
    curve(videos[1], CountingScorer())
    assert kept() == {"a", "c", "d"} and "AKS_CACHE_GB sets the limit" in caplog.text
    monkeypatch.setenv("AKS_CACHE_GB", "0")
    scorer = CountingScorer()
    curve(videos[0], scorer)
    assert scorer.num_encoded == 5 and feature_cache.clear() == 3 and kept() == set()
    monkeypatch.setenv("AKS_CACHE_GB", "much")
    with pytest.raises(aks.UserError, match="AKS_CACHE_GB=much: must be a number"):
        curve(videos[0], scorer)


def test_a_damaged_file_and_a_folder_that_cannot_be_written_cost_no_answer(clips, cache, monkeypatch, caplog):
    scorer, video = CountingScorer(), clips / "one.mp4"
    expected = curve(video, scorer)
    (part,) = feature_cache.cached_videos()
    part.path.write_bytes(part.path.read_bytes()[:-9])
    assert curve(video, scorer) == expected and scorer.num_encoded == 10
    assert f"{part.path}: a damaged file of the cache; the video is encoded anew" in caplog.text
    assert curve(video, scorer) == expected and scorer.num_encoded == 10
    monkeypatch.setenv("AKS_CACHE", str(clips / "one.mp4/cache"))
    assert curve(video, scorer) == expected and scorer.num_encoded == 15
    assert "Not a directory (AKS_CACHE names another folder)" in caplog.text


@pytest.mark.parametrize(
    "content", ["", '{"stored_dtype": "int3"}', '{"stored_dtype": "float32", "weights": []}']
)
def test_a_damaged_record_is_mended(clips, cache, caplog, content):
    scorer = CountingScorer()
    expected = [curve(clips / name, scorer) for name in ("one.mp4", "two.mp4")]
    (record,) = cache.glob("*/run.json")
    whole = record.read_text()
    record.write_text(content)
    changed = clips / "sub/three.mkv"  # not kept yet
    for _ in range(2):
        curve(changed, scorer)
        assert scorer.num_encoded == 12
        assert caplog.text.count("a damaged file of the cache; it is written anew") == 1
    assert record.read_text() == whole
    assert curve(clips / "one.mp4", scorer) == expected[0] and scorer.num_encoded == 12  # kept all the time


def test_an_interrupted_video_leaves_no_file_and_starts_again(tmp_path, cache, caplog):
    video = write_video(tmp_path / "film [é].mp4", frames=200, fps=5)
    code = (
        "import sys, extraction_setup as s; from aks.extraction.keyframes import find_in_file\n"
        "class Slow(s.ToyScorer):\n"
        "    def encode_frames(self, inputs):\n"
        "        print('encoding', flush=True)\n"
        "        return super().encode_frames(inputs)\n"
        "Slow.__module__, Slow.__qualname__ = 'extraction_setup', 'ToyScorer'\n"
        "find_in_file(sys.argv[1], ['Where?'], Slow(0.3), 3, cache=True)"
    )
    environment = {**os.environ, "PYTHONPATH": PYTHON_PATH}
    command = [forkserver.python("torch"), "-c", code, video]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE) as process:
        for _ in range(2):
            assert process.stdout.readline() == b"encoding\n"
        (temporary,) = cache.glob("*/videos/.film*")  # the process that writes it is in the file's name
        pid = int(temporary.name.split("-")[-2])
        os.kill(pid, signal.SIGKILL)
    while Path(
        f"/proc/{pid}"
    ).exists():  # The fork server forgets dead processes when it is asked for another.
        subprocess.run([forkserver.python("torch"), "-c", ""], check=True)
    assert feature_cache.cached_videos() == []
    curve(video, ToyScorer())
    assert f"{video}: an earlier call was interrupted; encoding it from the start" in caplog.text
    assert not temporary.exists() and len(feature_cache.cached_videos()) == 1

    class Interrupting(ToyScorer):
        def encode_frames(self, inputs):
            if list(cache.glob("*/videos/.film*")):
                raise KeyboardInterrupt
            return super().encode_frames(inputs)

    with pytest.raises(KeyboardInterrupt):
        curve(video, Interrupting(), rule=CandidateRule(2))
    assert "its features are not kept; the next call starts anew" in caplog.text
    caplog.clear()

    class Failing(Interrupting):
        def score(self, features, questions):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        curve(video, Failing())
    assert "not kept" not in caplog.text
    assert not list(cache.glob("*/videos/.film*"))


def test_nothing_but_the_cache_s_own_folders_is_deleted(tmp_path, cache, clips):
    curve(clips / "one.mp4", ToyScorer())
    for name in ("outscores/run.json", "mine.txt"):
        (cache / name).parent.mkdir(exist_ok=True)
        (cache / name).write_text("{}")
    feature_cache.clear()
    assert sorted(path.name for path in cache.iterdir()) == ["mine.txt", "outscores"]


def test_the_folder_and_the_limit_have_defaults(monkeypatch, tmp_path):
    monkeypatch.delenv("AKS_CACHE")
    monkeypatch.delenv("AKS_CACHE_GB")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert (feature_cache.cache_folder(), feature_cache.limit_bytes()) == (tmp_path / "aks/features", 10**10)
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert feature_cache.cache_folder() == Path.home() / ".cache/aks/features"


def test_weights_are_told_by_their_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints/blip").mkdir(parents=True)
    (tmp_path / "checkpoints/blip/model.safetensors").write_text("weights")
    first = weights_identity("owner/blip")
    assert first == weights_identity("checkpoints/blip") and len(first) == 1
    (tmp_path / "checkpoints/blip/model.safetensors").write_text("weights, newer")
    assert weights_identity("owner/blip") != first
    assert weights_identity("weights + others of a package") == []
    assert np.shape(weights_identity("owner/elsewhere")) == (1,)
