"""Several processes that decode one long video: every frame once, and the same files as from one."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from extraction_setup import ToyScorer, child_pids, write_labels
from media import scenes, write_video
from preprocessors import preprocess_slowly

from aks import VideoError
from aks.extraction.api import extract, store_features
from aks.extraction.decoding import DecodeSpec, EndOfVideo, FrameBatch, VideoInfo
from aks.extraction.feature_store import FeatureStore
from aks.extraction.keyframes import find_keyframes
from aks.extraction.workers import Restarted, WorkerPool, make_decoder
from aks.labels import Question, VideoJob
from aks.run_dir import RunDir
from aks.video.reader import Video

FRAMES = 800  # at 2 a second: 400 candidates


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    return write_video(path, frames=FRAMES, fps=2, size=(64, 48), gop=50, draw=scenes(1))


def spec(on_corrupt="skip", batch_frames=8, decoder="auto", preprocessor=preprocess_slowly):
    return DecodeSpec(preprocessor, decoder, batch_frames, on_corrupt)


def collect(decoder, path, videos=1):
    """All events of a path, decoded as several videos: (video's name, event); the batches are copied."""
    events = decoder.run(iter([VideoJob(f"{index}", path) for index in range(videos)]))
    return [(job.name, copy_batch(event)) for job, event in events]


def copy_batch(event):
    """The event; a batch with a copy of its inputs, whose buffer the decoder uses again."""
    return replace(event, inputs=event.inputs.copy()) if isinstance(event, FrameBatch) else event


def offsets_of(events, name="0"):
    """The offsets of a video's batches in the order of their arrival."""
    return [event.offset for video, event in events if video == name and isinstance(event, FrameBatch)]


def helpers(pool):
    """The workers that have taken over a part of a video."""
    return [worker for worker in pool._workers if worker is not None and worker._is_helper]


def check_complete(events, expected):
    """The events hold the expected batches in any order, between one header and one end."""
    (header, *batches, end), (_, *others, _) = ([event for _, event in e] for e in (events, expected))
    assert isinstance(header, VideoInfo) and end == EndOfVideo()
    batches.sort(key=lambda batch: batch.offset)
    assert [batch.offset for batch in batches] == [batch.offset for batch in others]
    for batch, other in zip(batches, others, strict=True):
        np.testing.assert_array_equal(batch.frame_indices, other.frame_indices)
        np.testing.assert_array_equal(batch.times_s, other.times_s)
        np.testing.assert_array_equal(batch.inputs, other.inputs)


@pytest.fixture(scope="module")
def expected(film):
    with make_decoder(spec(), 0, None) as decoder:
        return collect(decoder, film)


def test_a_serial_decoder_stops_a_cancelled_video(film):
    with make_decoder(spec(), 0, None) as decoder:
        jobs = [VideoJob("0", film), VideoJob("1", film)]
        events = decoder.run(iter(jobs))
        next(events)
        decoder.cancel(jobs[0])
        assert next(events)[0] is jobs[1]


@pytest.mark.parametrize("workers", [2, pytest.param(5, marks=pytest.mark.long)])
def test_idle_workers_take_over_parts_of_a_video(film, expected, workers):
    with WorkerPool(spec(), workers) as pool:
        events = collect(pool, film)
        assert sum(worker is not None for worker in pool._workers) == workers
    check_complete(events, expected)
    assert offsets_of(events) != sorted(offsets_of(events))


def test_workers_share_a_video_only_when_no_other_is_left(film, expected):
    with WorkerPool(spec(), 2) as pool:
        events = collect(pool, film, videos=3)
    for name, is_shared in (("0", False), ("1", False), ("2", True)):
        check_complete([item for item in events if item[0] == name], expected)
        assert (offsets_of(events, name) != sorted(offsets_of(events, name))) == is_shared


@pytest.mark.parametrize(
    "batch_frames", [pytest.param(1, marks=pytest.mark.long), 7, pytest.param(50, marks=pytest.mark.long)]
)
def test_workers_give_the_batches_of_one_process_for_every_batch_size(film, batch_frames):
    config = spec(batch_frames=batch_frames)
    with make_decoder(config, 0, None) as alone, WorkerPool(config, 3) as pool:
        check_complete(collect(pool, film), collect(alone, film))


def test_a_video_restarts_after_the_death_of_a_helper(film, expected):
    with WorkerPool(spec(), 3) as pool:
        events, has_killed = [], False
        for job, event in pool.run(iter([VideoJob("0", film)])):
            if isinstance(event, Restarted):
                events = []
                continue
            events.append((job.name, copy_batch(event)))
            if helpers(pool) and not has_killed:
                has_killed = True
                os.kill(helpers(pool)[0]._process.pid, signal.SIGKILL)
        assert has_killed
    check_complete(events, expected)


def test_all_workers_leave_a_cancelled_video_and_decode_the_next(film, expected):
    with WorkerPool(spec(), 3) as pool:
        job = VideoJob("0", film)
        events = pool.run(iter([job]))
        while not helpers(pool):
            next(events)
        pool.cancel(job)
        assert not list(events)
        assert all(worker is None or worker.job is None for worker in pool._workers)
        check_complete(collect(pool, film), expected)


def test_damage_that_a_helper_finds_is_reported_once(film, tmp_path):
    data = bytearray(film.read_bytes())
    offset = int(len(data) * 0.8)
    data[offset : offset + 4000] = bytes(4000)
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(data)
    with WorkerPool(spec(decoder="pyav"), 3) as pool:
        events = [event for _, event in collect(pool, damaged)]
    assert isinstance(events[-1], VideoError)
    assert sum(isinstance(event, VideoError | EndOfVideo) for event in events) == 1


def test_one_worker_reads_a_video_whose_frames_may_be_lost(film):
    with WorkerPool(spec("partial"), 3) as pool:
        events = collect(pool, film)
        assert sum(worker is not None for worker in pool._workers) == 1
    assert offsets_of(events) == sorted(offsets_of(events))


def test_the_time_limit_ends_a_video_whose_helper_hangs(film):
    with WorkerPool(spec(), 2, video_timeout_s=3) as pool:
        has_stopped, last = False, None
        for _, event in pool.run(iter([VideoJob("0", film)])):
            last = event
            if helpers(pool) and helpers(pool)[0].is_ready and not has_stopped:
                has_stopped = True
                os.kill(helpers(pool)[0]._process.pid, signal.SIGSTOP)
        assert has_stopped and isinstance(last, VideoError) and "time limit" in str(last)
        assert all(worker is None or worker.job is None for worker in pool._workers)


@pytest.mark.parametrize("across_videos", [pytest.param(False, marks=pytest.mark.long), True])
def test_workers_give_the_scores_and_features_of_one_process(film, tmp_path, across_videos):
    labels, scorer = write_labels(film.parent, [film.name]), ToyScorer(preprocessor=preprocess_slowly)
    contents = []
    for workers in (0, 4):
        settings = {"workers": workers, "batch_frames": 8, "batch_across_videos": across_videos}
        run = RunDir(tmp_path / f"{workers}")
        assert extract(labels, scorer, run, **settings).complete
        store = FeatureStore(tmp_path / f"features {workers}", "float16")
        store_features(labels, scorer, store, **settings)
        (part,) = store.parts.glob("*.safetensors")
        contents.append([(run.folder / "scores.json").read_bytes(), part.read_bytes()])
    assert contents[0] == contents[1]


@pytest.mark.parametrize("kill", [pytest.param(False, marks=pytest.mark.long), True])
def test_find_keyframes_finds_the_same_with_workers_even_after_a_death(film, kill):
    question, killed = Question(0, "q", "", "Which ones?"), []

    class KillingScorer(ToyScorer):
        def encode_frames(self, inputs):
            if kill and not killed:
                killed.extend(child_pids(os.getpid()))
                os.kill(killed[-1], signal.SIGKILL)
            return super().encode_frames(inputs)

    with Video(film) as video:
        alone = find_keyframes(video, question, ToyScorer(), 8)
        scorer = KillingScorer(preprocessor=preprocess_slowly)
        assert find_keyframes(video, question, scorer, 8, workers=1 if kill else 3) == alone
    assert bool(killed) == kill


def test_a_helper_that_cannot_start_is_asked_for_once_and_leaves_no_open_file(film, expected, monkeypatch):
    started, popen = [], subprocess.Popen

    def start_one(*arguments, **options):
        started.append(len(os.listdir("/proc/self/fd")))
        if len(started) > 1:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return popen(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", start_one)
    with WorkerPool(spec(), 2) as pool:
        before = len(os.listdir("/proc/self/fd"))
        check_complete(collect(pool, film), expected)
        # The connection and the memory of the process that started are open.
        assert len(os.listdir("/proc/self/fd")) == before + 2
    assert len(started) == 2
