"""Passes that mix the frames of several videos: the same scores as video by video."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from extraction_setup import ToyScorer, results, write_labels

from aks.extraction import batching
from aks.extraction.api import DecodeConfig, extract
from aks.extraction.decoding import EndOfVideo, FrameBatch
from aks.run_dir import RunDir
from aks.scorers.base import load_scorer


class Counting(ToyScorer):
    """Notes the shape of every pass."""

    def __init__(self, bad_width=0.0):
        super().__init__()
        self.shapes = []

    def encode_frames(self, inputs):
        self.shapes.append(len(inputs))
        return super().encode_frames(inputs)


@pytest.mark.parametrize(("frames", "workers"), [(1, 0), (7, 3), (32, 0), (32, 3)])
def test_all_passes_are_full_and_the_files_are_the_same(many, names, whole, tmp_path, workers, frames):
    labels, run, scorer = write_labels(many, names), RunDir(tmp_path / "out"), Counting()
    summary = extract(labels, scorer, run, workers=workers, batch_frames=frames, mix=True)
    assert summary.complete and summary.scored == 50
    assert results(run) == whole
    total = sum(len(json.loads(path.read_text())["frames"]) for path in run.parts.iterdir())
    assert scorer.shapes == [frames] * -(-total // frames)


def test_a_video_that_fails_in_a_mixed_pass_costs_itself_alone(many, names, whole, tmp_path):
    class Bad(ToyScorer):
        def score(self, features, questions):
            scores = super().score(features, questions)
            return np.where(np.isclose(features[:, 5].numpy(), BAD), np.nan, scores)

    labels, run = write_labels(many, names), RunDir(tmp_path / "out")
    (many / "broken.mp4").unlink(missing_ok=True)
    victim = ToyScorer()
    with_frames = RunDir(tmp_path / "plain")
    extract(labels, victim, with_frames)
    # All frames of the videos that are 128 pixels wide have a value of their own.
    from aks.video.reader import Video

    with Video(many / "v03.mkv") as video:
        first = next(video.read([0])).pixels[0]
    BAD = float(victim.encode_frames(victim.preprocess(first)[None])[0, 5])
    summary = extract(labels, Bad(), run, workers=2, batch_frames=16, mix=True)
    failed = {failure["video"] for failure in summary.failures}
    assert failed == {name for name in names if int(name[1:3]) % 5 == 3}
    assert summary.scored == 40
    for name in set(names) - failed:
        assert run.part_path(name).read_bytes() == with_frames.part_path(name).read_bytes()


def test_a_real_models_scores_do_not_change(clips, tmp_path):
    labels, scorer = write_labels(clips, ["one.mp4", "two.mp4", "sub/three.mkv"]), load_scorer("conse")
    runs = [RunDir(tmp_path / str(mix)) for mix in (False, True)]
    for mix, run in zip((False, True), runs, strict=True):
        extract(labels, scorer, run, mix=mix, batch_frames=4)
    plain, mixed = (json.loads((run.folder / "scores.json").read_text()) for run in runs)
    for a, b in zip(plain, mixed, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_on_a_cpu_videos_are_not_mixed_unless_asked_to():
    assert DecodeConfig.on(ToyScorer()).batcher(ToyScorer()) is None
    assert DecodeConfig.on(ToyScorer(), mix=True, batch_frames=64).handed_over == 16


def test_a_gpu_that_is_too_small_is_told(tmp_path):
    class Small(ToyScorer):
        def encode_frames(self, inputs):
            raise torch.cuda.OutOfMemoryError

    batcher = batching.CrossVideoBatcher(Small(), 4)
    batch = FrameBatch(0, np.arange(4), np.arange(4.0), np.zeros((4, 3, 8, 8), np.float32))
    with pytest.raises(
        batching.UserError, match="out of GPU memory with 4 frames in a pass; use --batch_size 2"
    ):
        list(batcher.add("v.mp4", batch))


def test_a_dropped_video_is_not_delivered():
    batcher = batching.CrossVideoBatcher(ToyScorer(), 4)
    batch = FrameBatch(0, np.arange(3), np.arange(3.0), np.ones((3, 3, 8, 8), np.float32))
    ready = [
        *batcher.add("a", batch),
        *batcher.add("b", batch),
        *batcher.add("b", EndOfVideo()),
        *batcher.add("a", EndOfVideo()),
    ]
    batcher.discard("a")
    ready += batcher.flush()
    assert [name for name, _ in ready] == ["b", "b"]  # whole batches
    assert sum(len(event.frame_indices) for _, event in ready if not isinstance(event, EndOfVideo)) == 3


def test_a_video_that_fails_while_its_batch_is_divided_between_passes_costs_itself_alone():
    batcher, events = batching.CrossVideoBatcher(ToyScorer(), 4), []
    made = [
        (name, FrameBatch(at, np.arange(at, at + 7), np.zeros(7), np.full((7, 3, 8, 8), 10 * at, np.float32)))
        for at in (0, 7, 14)
        for name in "ab"
    ]
    gone = False
    for name, batch in made:
        if name == "a" and gone:
            continue  # its decoding was given up
        for ready in batcher.add(name, batch):
            assert not (gone and ready[0] == "a")
            if ready[0] == "a":
                gone = True
                batcher.discard("a")
            else:
                events.append(ready)
    events += batcher.flush()
    assert gone and [(name, event.offset) for name, event in events] == [("b", 0), ("b", 7), ("b", 14)]
    for _, event in events:  # whole batches, each with its own pixels
        assert event.features.shape[0] == 7
        np.testing.assert_allclose(event.features, 10 * event.offset / 255)


@pytest.mark.parametrize(("fitting", "frames"), [(0.3, 1), (1, 1), (47.9, 32), (64, 64), (1e9, 128)])
def test_passes_are_powers_of_two(fitting, frames):
    assert batching.power_of_two(fitting) == frames


def test_a_pass_takes_no_more_than_half_of_the_gpu_s_free_memory(monkeypatch):
    memory = {"memory_allocated": 7, "max_memory_allocated": 7 + 2 * 10, "mem_get_info": (1300, 9000)}
    for name, value in memory.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    assert batching.max_batch_size(ToyScorer()) == 64  # of 10 bytes a frame, 65 fit half of 1300
