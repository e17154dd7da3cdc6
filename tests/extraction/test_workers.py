"""One long video, decoded by several processes: every frame once, and the files of one process."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from extraction_setup import ToyScorer, children, write_labels
from media import scenes, write_video
from preprocessors import slowly

from aks import VideoError
from aks.extraction.api import extract, find_keyframes, store_features
from aks.extraction.decoding import DecodeSpec, EndOfVideo, FrameBatch, VideoInfo
from aks.extraction.feature_store import FeatureStore
from aks.extraction.workers import Restarted, SerialDecoder, WorkerPool
from aks.labels import Question, VideoJob
from aks.run_dir import RunDir
from aks.video.reader import Video

FRAMES = 800  # at 2 a second: 400 candidates


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    return write_video(path, frames=FRAMES, fps=2, size=(64, 48), gop=50, draw=scenes(1))


def spec(on_corrupt="skip", batch_frames=8, decoder="auto", preprocessor=slowly):
    return DecodeSpec(preprocessor, decoder, batch_frames, on_corrupt)


def collect(source, path, jobs=1):
    """All events of a video, as (name, event), batches copied."""
    run = source.run(iter([VideoJob(f"{number}", path) for number in range(jobs)]))
    return [(job.name, copied(event)) for job, event in run]


def copied(event):
    return replace(event, inputs=event.inputs.copy()) if isinstance(event, FrameBatch) else event


def helpers(pool):
    """The processes that have taken over a part of a video."""
    return [worker for worker in pool._workers if worker is not None and worker._is_helper]


def check_whole(events, expected):
    """The same batches, in whatever order, between the same header and the same end."""
    (header, *batches, done), (_, *others, _) = ([event for _, event in all_] for all_ in (events, expected))
    assert isinstance(header, VideoInfo) and done == EndOfVideo()
    batches.sort(key=lambda batch: batch.offset)
    assert [batch.offset for batch in batches] == [batch.offset for batch in others]
    for batch, other in zip(batches, others, strict=True):
        np.testing.assert_array_equal(batch.frame_indices, other.frame_indices)
        np.testing.assert_array_equal(batch.times_s, other.times_s)
        np.testing.assert_array_equal(batch.inputs, other.inputs)


@pytest.fixture(scope="module")
def expected(film):
    with SerialDecoder(spec()) as source:
        return collect(source, film)


def test_one_process_decodes_no_more_of_a_cancelled_video(film):
    with SerialDecoder(spec()) as source:
        jobs = [VideoJob("0", film), VideoJob("1", film)]
        run = source.run(iter(jobs))
        next(run)
        source.cancel(jobs[0])
        assert next(run)[0] is jobs[1]


@pytest.mark.parametrize("workers", [2, 5])
def test_processes_without_a_video_take_parts_of_anothers(film, expected, workers):
    with WorkerPool(spec(), workers) as pool:
        events = collect(pool, film)
        assert sum(worker is not None for worker in pool._workers) == workers
    check_whole(events, expected)
    places = [event.offset for _, event in events if isinstance(event, FrameBatch)]
    assert places != sorted(places)


def test_whole_videos_come_first(film, expected):
    with WorkerPool(spec(), 2) as pool:
        events = collect(pool, film, jobs=3)
    for number in range(3):
        check_whole([item for item in events if item[0] == str(number)], expected)
    by_name = {
        name: [e.offset for n, e in events if n == name and isinstance(e, FrameBatch)]
        for name in ("0", "1", "2")
    }
    assert by_name["0"] == sorted(by_name["0"]) and by_name["1"] == sorted(by_name["1"])
    assert by_name["2"] != sorted(by_name["2"])


@pytest.mark.parametrize("batch_frames", [1, 7, 50])
def test_batches_are_the_same_whatever_their_size(film, batch_frames):
    config = spec(batch_frames=batch_frames)
    with SerialDecoder(config) as alone, WorkerPool(config, 3) as pool:
        check_whole(collect(pool, film), collect(alone, film))


def test_a_killed_helper_costs_its_video_one_more_try(film, expected):
    with WorkerPool(spec(), 3) as pool:
        events, killed = [], False
        for job, event in pool.run(iter([VideoJob("0", film)])):
            if isinstance(event, Restarted):
                events = []
                continue
            events.append((job.name, copied(event)))
            if helpers(pool) and not killed:
                killed = True
                os.kill(helpers(pool)[0]._process.pid, signal.SIGKILL)
        assert killed
    check_whole(events, expected)


def test_a_cancelled_video_is_left_by_all_and_the_next_one_goes_on(film, expected):
    with WorkerPool(spec(), 3) as pool:
        job = VideoJob("0", film)
        run = pool.run(iter([job]))
        while not helpers(pool):
            next(run)
        pool.cancel(job)
        assert not list(run)
        assert all(worker is None or worker.job is None for worker in pool._workers)
        check_whole(collect(pool, film), expected)


def test_damage_that_a_helper_meets_is_told_once(film, tmp_path):
    data = bytearray(film.read_bytes())
    at = int(len(data) * 0.8)
    data[at : at + 4000] = bytes(4000)
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(data)
    with WorkerPool(spec(decoder="pyav"), 3) as pool:
        events = collect(pool, bad)
    last = events[-1][1]
    assert isinstance(last, VideoError)
    assert sum(isinstance(event, VideoError | EndOfVideo) for _, event in events) == 1


def test_where_frames_may_be_lost_one_process_reads_all(film):
    with WorkerPool(spec("partial"), 3) as pool:
        events = collect(pool, film)
        assert sum(worker is not None for worker in pool._workers) == 1
    places = [event.offset for _, event in events if isinstance(event, FrameBatch)]
    assert places == sorted(places)


def test_a_helper_that_hangs_ends_the_video_in_time(film):
    with WorkerPool(spec(), 2, video_timeout_s=3) as pool:
        stopped, last = False, None
        for _, event in pool.run(iter([VideoJob("0", film)])):
            last = event
            if helpers(pool) and helpers(pool)[0].is_ready and not stopped:
                stopped = True
                os.kill(helpers(pool)[0]._process.pid, signal.SIGSTOP)
        assert stopped and isinstance(last, VideoError) and "time limit" in str(last)
        assert all(worker is None or worker.job is None for worker in pool._workers)


@pytest.mark.parametrize("mixed", [False, True])
def test_scores_and_features_are_those_of_one_process(film, tmp_path, mixed):
    labels = write_labels(film.parent, [film.name])
    files = []
    for workers in (0, 4):
        run = RunDir(tmp_path / f"{workers}")
        scorer = ToyScorer(preprocessor=slowly)
        assert extract(
            labels, scorer, run, workers=workers, batch_frames=8, batch_across_videos=mixed
        ).complete
        store = FeatureStore(tmp_path / f"features {workers}", "float16")
        store_features(labels, scorer, store, workers=workers, batch_frames=8, batch_across_videos=mixed)
        (part,) = store.run.parts.glob("*.safetensors")
        files.append([(run.folder / "scores.json").read_bytes(), part.read_bytes()])
    assert files[0] == files[1]


def test_find_keyframes_with_processes_finds_the_same(film):
    question = Question(0, "q", "", "Which ones?")
    with Video(film) as video:
        alone = find_keyframes(video, question, ToyScorer(), 8)
        assert alone == find_keyframes(video, question, ToyScorer(preprocessor=slowly), 8, workers=3)


def test_find_keyframes_begins_anew_where_a_process_dies(film):
    question, killed = Question(0, "q", "", "Which ones?"), []

    class Killing(ToyScorer):
        def encode_frames(self, inputs):
            if not killed:
                killed.extend(children(os.getpid()))
                os.kill(killed[-1], signal.SIGKILL)
            return super().encode_frames(inputs)

    with Video(film) as video:
        alone = find_keyframes(video, question, ToyScorer(), 8)
        assert alone == find_keyframes(video, question, Killing(preprocessor=slowly), 8, workers=1)
    assert killed


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
        check_whole(collect(pool, film), expected)
        assert (
            len(os.listdir("/proc/self/fd")) == before + 2
        )  # connection and memory of the process that started
    assert len(started) == 2
