"""Batches across videos: the same scores as batches of one video each, and failures that stay alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from extraction_setup import ToyScorer, finished_parts, results, write_labels

from aks.errors import UserError, VideoError
from aks.extraction import batching
from aks.extraction.api import extract
from aks.extraction.batching import CrossVideoBatcher, FeatureBatch, PerVideoEncoder
from aks.extraction.config import DecodeConfig
from aks.extraction.decoding import EndOfVideo, FrameBatch
from aks.extraction.writers import ScoreTable
from aks.labels import Question, VideoJob
from aks.run_dir import RunDir
from aks.scorers.base import load_scorer
from aks.video.reader import Video


class CountingScorer(ToyScorer):
    """Records the size of every batch."""

    def __init__(self):
        super().__init__()
        self.batch_sizes = []

    def encode_frames(self, inputs):
        self.batch_sizes.append(len(inputs))
        return super().encode_frames(inputs)


@pytest.mark.parametrize(("frames", "workers"), [(1, 0), (7, 3), (32, 0), (32, 3)])
def test_batches_across_videos_are_full_and_give_the_same_files(
    many, names, whole, tmp_path, workers, frames
):
    labels, run, scorer = write_labels(many, names), RunDir(tmp_path / "out"), CountingScorer()
    summary = extract(labels, scorer, run, workers=workers, batch_frames=frames, batch_across_videos=True)
    assert summary.complete and summary.scored == 50
    assert results(run) == whole
    total = sum(len(json.loads(path.read_text())["frames"]) for path in run.parts.iterdir())
    assert scorer.batch_sizes == [frames] * -(-total // frames)


def test_only_the_videos_that_fail_in_a_shared_batch_are_lost(many, names, whole, tmp_path):
    with Video(many / "v03.mkv") as video:
        (frames,) = video.read([0])
    # All frames of the videos that are 128 pixels wide have a value of their own.
    bad_value = float(ToyScorer().encode_frames(ToyScorer().preprocess(frames.pixels[0])[None])[0, 5])

    class NanScorer(ToyScorer):
        def score(self, features, questions):
            scores = super().score(features, questions)
            return np.where(np.isclose(features[:, 5].numpy(), bad_value), np.nan, scores)

    labels, run = write_labels(many, names), RunDir(tmp_path / "out")
    summary = extract(labels, NanScorer(), run, workers=2, batch_frames=16, batch_across_videos=True)
    failed = {failure["video"] for failure in summary.failures}
    assert failed == set(names[3::5])
    assert summary.scored == len(names) - len(failed)
    for path in finished_parts(run):
        assert path.read_bytes() == whole[path.name]


@pytest.mark.long  # toy models show the same
def test_a_real_model_s_scores_depend_neither_on_workers_nor_on_shared_batches(clips, tmp_path):
    labels, scorer = write_labels(clips, ["one.mp4", "two.mp4", "sub/three.mkv"]), load_scorer("conse")

    def run_with(name, **settings):
        run = RunDir(tmp_path / name)
        assert extract(labels, scorer, run, batch_frames=4, **settings).complete
        return run

    alone = run_with("alone")
    assert results(run_with("workers", workers=3)) == results(alone)
    shared = run_with("shared", batch_across_videos=True)
    scores = [json.loads((run.folder / "scores.json").read_text()) for run in (shared, alone)]
    for shared_row, row in zip(*scores, strict=True):
        np.testing.assert_allclose(shared_row, row, atol=1e-5)


def test_on_a_cpu_videos_share_batches_only_on_request():
    scorer = ToyScorer()
    assert isinstance(DecodeConfig.for_scorer(scorer).make_encoder(scorer), PerVideoEncoder)
    config = DecodeConfig.for_scorer(scorer, batch_across_videos=True, batch_frames=72, workers=1)
    assert isinstance(config.make_encoder(scorer), CrossVideoBatcher)
    assert config.make_decoder(scorer)._spec.batch_frames == 16
    assert config.frames_together == 64  # whole batches of the decoder's


def frame_batch(count: int, offset: int = 0, level: float = 0) -> FrameBatch:
    """A batch of frames of one brightness."""
    inputs = np.full((count, 3, 8, 8), level, np.float32)
    return FrameBatch(offset, np.arange(offset, offset + count), np.zeros(count), inputs)


A, B = (VideoJob(name, Path(name)) for name in "ab")


def test_when_gpu_memory_runs_out_the_error_offers_a_smaller_batch():
    class SmallGpu(ToyScorer):
        def encode_frames(self, inputs):
            raise torch.cuda.OutOfMemoryError

    batcher = CrossVideoBatcher(SmallGpu(), 4)
    with pytest.raises(UserError, match="out of GPU memory with 4 frames in a pass; use --batch_size 2"):
        list(batcher.encode([(A, frame_batch(4))]))


def test_a_discarded_video_is_not_emitted():
    batcher, batch = CrossVideoBatcher(ToyScorer(), 4), frame_batch(3)

    def events():
        yield from [(A, batch), (B, batch), (B, EndOfVideo()), (A, EndOfVideo())]
        batcher.discard(A)

    emitted = list(batcher.encode(events()))
    assert [job for job, _ in emitted] == [B, B]
    assert len(emitted[0][1].frame_indices) == 3  # a whole batch


def test_a_restarted_video_is_emitted_once():
    batcher = CrossVideoBatcher(ToyScorer(), 4)

    def events():
        yield A, frame_batch(3)
        batcher.discard(A)
        yield from [(A, frame_batch(3, level=255)), (A, EndOfVideo())]

    (_, batch), (_, end) = batcher.encode(events())
    assert (batch.features == 1).all() and end == EndOfVideo()


def test_a_video_that_fails_between_two_batches_leaves_the_others_whole():
    batcher, has_failed = CrossVideoBatcher(ToyScorer(), 4), False

    def events():
        for offset in (0, 7, 14):
            for job in (A, B):
                if not (job is A and has_failed):  # its decoder was cancelled
                    yield job, frame_batch(7, offset, level=10 * offset)

    emitted = []
    for job, batch in batcher.encode(events()):
        assert isinstance(batch, FeatureBatch) and not (job is A and has_failed)
        if job is A:
            has_failed = True
            batcher.discard(A)
        else:
            emitted.append(batch)
    assert has_failed and [batch.offset for batch in emitted] == [0, 7, 14]
    for batch in emitted:  # whole batches, each with its own pixels
        assert batch.features.shape[0] == 7
        np.testing.assert_allclose(batch.features, 10 * batch.offset / 255)


@pytest.mark.parametrize(("fitting", "frames"), [(0.3, 1), (1, 1), (47.9, 32), (64, 64), (1e9, 128)])
def test_a_batch_and_the_features_that_wait_take_at_most_half_of_the_gpu_s_free_memory(
    monkeypatch, fitting, frames
):
    """A batch is a power of two of the frames that fit."""
    feature_bytes = ToyScorer().encode_frames(torch.zeros(1, 3, 8, 8)).nbytes
    free = 2 * fitting * (10 + 16 * feature_bytes)  # a frame takes 10 bytes, and 16 videos' features wait
    memory = {"memory_allocated": 7, "max_memory_allocated": 7 + 2 * 10, "mem_get_info": (free, 9000)}
    for name, value in memory.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    assert batching.max_batch_size(ToyScorer()) == frames


class RecordingScorer(ToyScorer):
    """Records the number of frames that are scored at a time."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def score(self, features, questions):
        self.sizes.append(len(features))
        return np.stack([features.numpy()] * len(questions))  # the tests' features are their scores


QUESTIONS = [Question(0, "0", "a", "What is red?"), Question(1, "1", "a", "What is blue?")]


def features_at(offset: int, count: int) -> FeatureBatch:
    """A batch whose features are the positions of its frames, whose numbers are ten times those."""
    positions = torch.arange(offset, offset + count, dtype=torch.float64)
    return FeatureBatch(offset, 10 * positions.long().numpy(), positions.numpy() / 2, positions)


@pytest.mark.parametrize(("together", "sizes"), [(1, [16] * 4 + [5]), (32, [32, 32, 5]), (128, [69])])
def test_neighbouring_frames_are_scored_together_in_whatever_order_they_come(together, sizes):
    scorer = RecordingScorer()
    table = ScoreTable(scorer, QUESTIONS, 80, together)
    for offset, count in [(32, 16), (0, 16), (64, 5), (48, 16), (16, 16)]:
        table.add(features_at(offset, count))
    frame_indices, times_s, scores = table.result()
    assert sorted(scorer.sizes, reverse=True) == sizes
    assert frame_indices.tolist() == list(range(0, 690, 10))
    assert times_s.tolist() == [i / 2 for i in range(69)]
    assert scores.tolist() == [list(range(69))] * 2


@pytest.mark.parametrize("position", [17, 35])  # among frames scored while others come, and at the end
def test_among_frames_scored_together_the_bad_one_is_named(position):
    table = ScoreTable(RecordingScorer(), QUESTIONS, 40, 32)

    def add_all():
        for offset in (16, 0, 32):
            batch = features_at(offset, 16 if offset < 32 else 8)
            batch.features[batch.features == position] = np.nan
            table.add(batch)
        table.result()

    with pytest.raises(VideoError, match=f"nan for frame {10 * position}, question 0"):
        add_all()
