"""Step 1 under faults: decoders that hang or die, damaged videos, a full disk, Ctrl-C."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from extraction_setup import (
    PYTHON_PATH,
    ToyScorer,
    child_pids,
    finished_parts,
    is_running,
    load_custom,
    results,
    start_extraction,
    wait_until,
    write_labels,
)
from media import everything, picture, write_video
from preprocessors import FaultyPreprocessor

import aks.video
from aks import UserError
from aks.extraction import worker_handle
from aks.extraction.api import extract, store_features
from aks.extraction.decoding import DecodeSpec, EndOfVideo, FrameBatch, decode
from aks.extraction.feature_store import FeatureStore
from aks.run_dir import RunDir

VIDEOS = ["one.mp4", "bad.mp4", "two.mp4", "three.mp4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four videos of three candidates each; bad.mp4 is 48 pixels wide, see FaultyPreprocessor."""
    folder = tmp_path_factory.mktemp("faults")
    for name in VIDEOS:
        write_video(folder / name, frames=30, fps=10, size=(48 if name == "bad.mp4" else 64, 48))
    return folder


@pytest.fixture
def labels(folder):
    return write_labels(folder, VIDEOS)


@pytest.mark.parametrize(
    ("num_workers", "video_timeout", "limit"),
    [(1, 1, "1 s"), (2, None, "2.4 s")],  # by default 60 s and four times the video's 3 s; here a 30th of it
)
def test_a_decoder_that_hangs_costs_only_its_video(
    labels, run, monkeypatch, num_workers, video_timeout, limit
):
    for name in ("TIMEOUT_S", "TIMEOUT_PER_SECOND"):
        monkeypatch.setattr(aks.video, name, getattr(aks.video, name) / 30)
    scorer = ToyScorer(preprocessor=FaultyPreprocessor("hang"))
    summary = extract(labels, scorer, run, workers=num_workers, video_timeout=video_timeout)
    assert (summary.scored, [f["video"] for f in summary.failures]) == (3, ["bad.mp4"])
    reason = summary.failures[0]["reason"]
    assert "time limit: given up before the first frame" in reason and f"(here {limit})" in reason
    assert json.loads((run.folder / "failures.json").read_text()) == summary.failures
    assert not child_pids(os.getpid())
    assert not list(run.parts.glob("*.lock"))


def test_waiting_for_the_model_does_not_count_as_decoding(labels, tmp_path):
    scorer = ToyScorer(batch_s=0.4)
    summary = extract(labels, scorer, RunDir(tmp_path / "out"), workers=2, video_timeout=1, batch_frames=1)
    assert (summary.scored, summary.failures) == (4, [])


def test_a_video_at_which_decoders_die_twice_is_listed_with_the_signal(labels, tmp_path):
    summary = extract(
        labels, ToyScorer(preprocessor=FaultyPreprocessor("SIGSEGV")), RunDir(tmp_path / "out"), workers=2
    )
    assert summary.scored == 3
    assert summary.failures[0]["reason"] == "the decoding process died twice at it (SIGSEGV)"


def test_after_one_death_of_its_decoder_a_video_is_retried_with_the_same_result(labels, tmp_path):
    run, undisturbed = RunDir(tmp_path / "out"), RunDir(tmp_path / "undisturbed")
    extract(labels, ToyScorer(), undisturbed)
    scorer = ToyScorer(preprocessor=FaultyPreprocessor("SIGKILL", tmp_path / "marker"))
    summary = extract(labels, scorer, run, workers=2, batch_frames=1)
    assert (summary.scored, summary.failures) == (4, [])
    assert results(run) == results(undisturbed)


def test_a_decoding_process_that_exits_at_its_start_ends_the_run(labels, tmp_path, monkeypatch, capfd):
    code = "import sys; sys.exit('no such library') # {path} {parent} {ends}"
    monkeypatch.setattr(worker_handle, "_START", code)
    with pytest.raises(UserError, match=r"cannot start \(exit status 1, see above\); --workers 0"):
        extract(labels, ToyScorer(), RunDir(tmp_path / "out"), workers=1)
    assert "no such library" in capfd.readouterr().err


def test_where_no_process_can_start_the_system_s_reason_is_named(labels, tmp_path, monkeypatch):
    def refuse(_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "memfd_create", refuse)
    expected = r"a decoding process cannot start: Too many open files .*--workers 0"
    with pytest.raises(UserError, match=expected):
        extract(labels, ToyScorer(), RunDir(tmp_path / "out"), workers=1)


@pytest.mark.slow
@pytest.mark.long  # it waits for limits of time
def test_only_a_process_that_does_not_start_ends_the_run_not_a_busy_model(labels, tmp_path, monkeypatch, run):
    class SlowAtFirst(ToyScorer):
        def encode_frames(self, inputs):
            time.sleep(self.batch_s)
            self.batch_s = 0
            return super().encode_frames(inputs)

    monkeypatch.setattr(worker_handle, "START_TIMEOUT_S", 6.0)
    # The model's first batch takes longer than the limit. The second process starts meanwhile, unobserved.
    assert extract(labels, SlowAtFirst(batch_s=7), run, workers=2, batch_frames=3).scored == 4
    monkeypatch.setattr(worker_handle, "_START", "import time; time.sleep(60) # {path!r} {parent} {ends}")
    with pytest.raises(UserError, match=r"has not started within 6 s; --workers 0"):
        extract(labels, ToyScorer(), RunDir(tmp_path / "other"), workers=1)


def damage(path, begin: float, end: float) -> None:
    """Overwrite the coded frames of an MP4 file from one share of them to another, such as 0.4 to 0.6."""
    data = bytearray(path.read_bytes())
    first, last = data.find(b"mdat") + 4, data.rfind(b"moov") - 4
    begin, end = (first + int((last - first) * share) for share in (begin, end))
    data[begin:end] = bytes(end - begin)
    path.write_bytes(data)


def check_loss_from_features(labels, part, tmp_path):
    """Scores from the stored features of a damaged video come with the same report of lost frames."""
    store = FeatureStore(tmp_path / "store", "float32")
    store_features(labels, ToyScorer(), store, on_corrupt="partial")
    store.failure_path(part.video).unlink()
    run = RunDir(tmp_path / "from features")
    (loss,) = extract(labels, ToyScorer(), run, features=FeatureStore.open(store.folder)).partial
    from_features = run.read_part(part.video)
    assert (from_features.frames, from_features.lost_frames) == (part.frames, part.lost_frames)
    assert from_features.lost_reason == loss["reason"] == part.lost_reason
    assert loss["lost_frames"] == part.lost_frames


@pytest.mark.parametrize("workers", [0, 2])
def test_on_request_the_readable_frames_of_a_damaged_video_are_scored(tmp_path, workers):
    def brighter(number: int, width: int, height: int) -> np.ndarray:
        """So much from second to second that each has a score of its own, whatever the encoder."""
        return picture(0, width, height) // 2 + number // 2

    write_video(tmp_path / "whole.mp4", frames=200, fps=10, gop=10, draw=brighter)
    shutil.copy(tmp_path / "whole.mp4", tmp_path / "hurt.mp4")
    damage(tmp_path / "hurt.mp4", 0.4, 0.6)
    entries = [{"video": name, "question": "Where?"} for name in ("whole.mp4", "hurt.mp4")]
    (tmp_path / "labels.json").write_text(json.dumps(entries))
    labels, run = load_custom(tmp_path), RunDir(tmp_path / "out")
    summary = extract(labels, ToyScorer(), run, workers=workers)
    assert [f["video"] for f in summary.failures] == ["hurt.mp4"]

    summary = extract(labels, ToyScorer(), run, workers=workers, on_corrupt="partial")
    assert (summary.scored, summary.failures, summary.complete) == (1, [], True)
    (loss,) = summary.partial
    part, whole = run.read_part("hurt.mp4"), run.read_part("whole.mp4")
    assert loss["video"] == "hurt.mp4" and loss["lost_frames"] == part.lost_frames
    assert 2 <= len(part.lost_frames) <= 8 and part.lost_reason == loss["reason"] != ""
    assert sorted(part.frames + part.lost_frames) == whole.frames == list(range(0, 200, 10))
    assert loss["scored_frames"] == len(part.frames)
    assert json.loads((run.folder / "failures.json").read_text()) == [loss]
    assert "lost_frames" not in run.part_path("whole.mp4").read_text()
    # Far from the damage, the frames, times and scores are those of the whole video.
    (expected,), (scores,) = whole.scores.values(), part.scores.values()
    rows = set(zip(whole.frames, whole.times_s, expected, strict=True))
    intact = {row for row in rows if not 70 <= row[0] <= 130}
    assert len({score for _, _, score in intact}) > 10
    assert intact <= set(zip(part.frames, part.times_s, scores, strict=True))

    finished = extract(labels, ToyScorer(), run, workers=workers)  # nothing to do; the loss is still reported
    assert (finished.reused, finished.partial) == (2, summary.partial)
    check_loss_from_features(labels, part, tmp_path)


def test_on_request_the_frames_of_a_cut_video_are_scored(tmp_path):
    path = write_video(tmp_path / "v.mp4", frames=200, fps=10, container_options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    labels, run = write_labels(tmp_path, ["v.mp4"]), RunDir(tmp_path / "out")
    (failure,) = extract(labels, ToyScorer(), run, workers=1).failures
    assert failure["reason"].startswith("cut short: ")
    (loss,) = extract(labels, ToyScorer(), run, workers=1, on_corrupt="partial").partial
    part = run.read_part("v.mp4")
    assert 5 <= len(part.frames) < 20 and part.frames + part.lost_frames == list(range(0, 200, 10))
    assert loss["reason"] == failure["reason"]
    check_loss_from_features(labels, part, tmp_path)


@pytest.mark.parametrize("run_step", [extract, store_features])
def test_an_absent_video_folder_is_one_mistake(labels, tmp_path, run_step):
    labels = replace(labels, video_root=tmp_path / "absent")
    output = RunDir(tmp_path / "out") if run_step is extract else FeatureStore(tmp_path / "out", "float16")
    with pytest.raises(UserError, match=r"absent: no such folder on .*--dataset_path"):
        run_step(labels, ToyScorer(), output)


def test_a_reader_that_closes_the_output_early_causes_no_traceback(tmp_path):
    script = tmp_path / "print_forever.py"
    script.write_text(
        "from aks import errors\ndef main():\n    while True: print('line' * 1000)\nerrors.run_main(main)\n"
    )
    command = f"{sys.executable} {script} | head -1; echo ${{PIPESTATUS[0]}}"
    env = {**os.environ, "PYTHONPATH": PYTHON_PATH}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=env)
    assert done.stderr == "" and done.stdout.split("\n")[1] == "0"


def test_full_gpu_memory_is_reported_in_one_line(run_script, tmp_path):
    script = tmp_path / "full.py"
    script.write_text(
        "import torch\nfrom aks import errors\n"
        "def main():\n"
        "    raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 9 GiB.')\n"
        "errors.run_main(main)\n"
    )
    done = run_script(script)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "the GPU's memory does not suffice" in done.stderr and "(CUDA out of memory)" in done.stderr


def test_readable_frames_of_a_damaged_video_with_open_groups_keep_their_indices(tmp_path):
    options = {"x264-params": "open-gop=1:bframes=3:b-adapt=0:keyint=20:scenecut=0"}
    path = write_video(tmp_path / "v.mp4", frames=300, fps=10, options=options)
    whole = everything(path)
    damage(path, 0.4, 0.5)
    spec = DecodeSpec(lambda pixels: pixels, "auto", 1, "partial")
    found, lost = [], []
    for event in decode(path, spec, lambda: np.empty((1, 64, 96, 3), np.uint8)):
        if isinstance(event, FrameBatch):
            found.append(index := int(event.frame_indices[0]))
            if not 90 <= index <= 190:
                np.testing.assert_array_equal(event.inputs[0], whole[index])
        elif isinstance(event, EndOfVideo):
            lost = event.missing_frames
    assert sorted(found + lost) == list(range(0, 300, 10))
    assert lost and min(found) == 0 and max(found) == 290


def test_a_full_disk_ends_the_run_and_finished_parts_are_kept(labels, tmp_path, monkeypatch):
    run, sync = RunDir(tmp_path / "out"), os.fsync

    def full(file):
        if finished_parts(run):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"cannot be written: No space left on device; finished work"):
            extract(labels, ToyScorer(), run, workers=2)
    assert len(list(run.parts.iterdir())) == 1  # a part; no lock, no temporary file
    assert not child_pids(os.getpid())
    assert extract(labels, ToyScorer(), run, workers=2).scored == 3


def test_features_that_fill_the_disk_end_the_run_and_leave_no_temporary_file(labels, tmp_path):
    store = FeatureStore(tmp_path / "store", "float32")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"one\.mp4\.safetensors: cannot be written: File too large"):
            store_features(labels, ToyScorer(), store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(store.parts.iterdir())
    assert store_features(labels, ToyScorer(), store).scored == 4


@pytest.mark.slow
@pytest.mark.parametrize("interrupts", [1, 2])
def test_one_interrupt_ends_a_run_in_order_and_two_at_once(labels, folder, run, interrupts):
    batch_s = 0.4 if interrupts == 1 else 20
    process = start_extraction(folder, run.folder, batch_s, workers=2, batch_frames=1)
    wait_until(lambda: finished_parts(run) if interrupts == 1 else list(run.parts.glob("*.lock")))
    wait_until(lambda: child_pids(process.pid))
    decoders = child_pids(process.pid)
    for _ in range(interrupts):
        os.kill(process.pid, signal.SIGINT)
    assert process.wait(10) == 130
    wait_until(lambda: not any(map(is_running, decoders)), 5)
    if interrupts == 1:
        assert process.stderr.read().splitlines()[-1] == "interrupted; run the same command again"
        assert {path.suffix for path in run.parts.iterdir()} == {".json"}
    assert extract(labels, ToyScorer(), run, batch_frames=1).complete


def test_decoding_processes_end_when_the_main_process_is_killed(labels, folder, tmp_path):
    process = start_extraction(folder, tmp_path / "out", batch_s=1, workers=2, batch_frames=1)
    wait_until(lambda: len(child_pids(process.pid)) == 2)
    decoders = child_pids(process.pid)
    maps = [Path(f"/proc/{pid}/maps") for pid in decoders]
    wait_until(lambda: all("memfd:aks-batches" in file.read_text() for file in maps))  # They decode.
    os.kill(decoders[0], signal.SIGSTOP)  # One of them is stuck.
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(is_running, decoders)), 5)


def test_a_second_interrupt_ends_code_that_ignores_the_first():
    code = (
        "import signal, time; from aks import errors\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in background jobs
        "def main():\n"
        "    while True:\n"
        "        try: print(1, flush=True); time.sleep(60)\n"
        "        except KeyboardInterrupt: pass\n"
        "errors.run_main(main)"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            for _ in range(2):
                assert process.stdout.readline() == "1\n"
                process.send_signal(signal.SIGINT)
            assert process.wait(10) == 130
        finally:
            process.kill()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_decoder_that_is_not_installed_ends_the_run_and_fails_no_video(
    labels, tmp_path, monkeypatch, workers
):
    (tmp_path / "decord.py").write_text("raise ImportError")
    monkeypatch.syspath_prepend(tmp_path)  # decoding processes get this path, too
    monkeypatch.delitem(sys.modules, "decord", raising=False)
    run = RunDir(tmp_path / "out")
    with pytest.raises(UserError, match="decord is not installed"):
        extract(labels, ToyScorer(), run, decoder="decord", workers=workers)
    assert not list(run.parts.glob("*.failure"))
    assert not child_pids(os.getpid())
