"""Step 1 when things go wrong: decoders that hang or die, damaged videos, a full disk, Ctrl-C."""

from __future__ import annotations

import errno
import json
import os
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
from extraction_setup import ToyScorer, alive, children, results, start, wait_until, write_labels
from media import everything, write_video
from preprocessors import Trouble

from aks import UserError
from aks.extraction import workers
from aks.extraction.api import extract, store_features
from aks.extraction.decoding import DecodeSpec, EndOfVideo, FrameBatch, decode
from aks.extraction.feature_store import FeatureStore
from aks.labels import load_labels
from aks.run_dir import RunDir

VIDEOS = ["one.mp4", "bad.mp4", "two.mp4", "three.mp4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four videos of three candidates each; bad.mp4 is 48 pixels wide, see Trouble."""
    made = tmp_path_factory.mktemp("faults")
    for name in VIDEOS:
        write_video(made / name, frames=30, fps=10, size=(48 if name == "bad.mp4" else 64, 48))
    return made


@pytest.fixture
def labels(folder):
    return write_labels(folder, VIDEOS)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_decoder_that_hangs_costs_its_video_alone(labels, tmp_path, workers):
    run = RunDir(tmp_path / "out")
    summary = extract(labels, ToyScorer(preprocessor=Trouble("hang")), run, workers=workers, video_timeout=1)
    assert (summary.scored, [f["video"] for f in summary.failures]) == (3, ["bad.mp4"])
    reason = summary.failures[0]["reason"]
    assert "time limit: given up before the first frame" in reason and "(here 1 s)" in reason
    assert json.loads((run.folder / "failures.json").read_text()) == summary.failures
    assert not children(os.getpid())
    assert not list(run.parts.glob("*.lock"))


def test_waiting_for_the_model_does_not_count_as_decoding(labels, tmp_path):
    scorer = ToyScorer(batch_s=0.4)
    summary = extract(labels, scorer, RunDir(tmp_path / "out"), workers=2, video_timeout=1, batch_frames=1)
    assert (summary.scored, summary.failures) == (4, [])


def test_a_decoder_that_dies_twice_is_listed_with_its_signal(labels, tmp_path):
    summary = extract(labels, ToyScorer(preprocessor=Trouble("SIGSEGV")), RunDir(tmp_path / "out"), workers=2)
    assert summary.scored == 3
    assert summary.failures[0]["reason"] == "the decoding process died twice at it (SIGSEGV)"


def test_a_decoder_that_dies_once_is_tried_again_with_the_same_result(labels, tmp_path):
    plain, mended = RunDir(tmp_path / "plain"), RunDir(tmp_path / "mended")
    extract(labels, ToyScorer(), plain)
    scorer = ToyScorer(preprocessor=Trouble("SIGKILL", tmp_path / "marker"))
    summary = extract(labels, scorer, mended, workers=2, batch_frames=1)
    assert (summary.scored, summary.failures) == (4, [])
    assert results(plain) == results(mended)


def test_a_decoding_process_that_cannot_start_is_one_line(labels, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(
        "aks.extraction.workers._START", "import sys; sys.exit('no such library') # {path} {parent} {ends}"
    )
    with pytest.raises(UserError, match=r"cannot start \(exit status 1, see above\); --workers 0"):
        extract(labels, ToyScorer(), RunDir(tmp_path / "out"), workers=1)
    assert "no such library" in capfd.readouterr().err


def damage(path, first: float, last: float) -> None:
    """Overwrite a part of an MP4's picture data, given as shares of it."""
    data = bytearray(path.read_bytes())
    start, end = data.find(b"mdat") + 4, data.rfind(b"moov") - 4
    a, b = (start + int((end - start) * share) for share in (first, last))
    data[a:b] = b"\0" * (b - a)
    path.write_bytes(data)


@pytest.mark.parametrize("workers", [0, 2])
def test_of_a_damaged_video_what_can_be_read_is_scored_where_asked_for(tmp_path, workers):
    write_video(tmp_path / "whole.mp4", frames=200, fps=10, gop=10)
    shutil.copy(tmp_path / "whole.mp4", tmp_path / "hurt.mp4")
    damage(tmp_path / "hurt.mp4", 0.4, 0.6)
    entries = [{"video": name, "question": "Where?"} for name in ("whole.mp4", "hurt.mp4")]
    (tmp_path / "labels.json").write_text(json.dumps(entries))
    labels = load_labels("custom", label_file=tmp_path / "labels.json")
    run = RunDir(tmp_path / "out")
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
    # Away from the damage both videos show the same pictures; what is left has the same times and scores.
    columns = zip(whole.frames, whole.times_s, whole.scores["0"], strict=True)
    intact = {row for row in columns if not 70 <= row[0] <= 130}
    assert len({score for _, _, score in intact}) > 10
    assert intact <= set(zip(part.frames, part.times_s, part.scores["1"], strict=True))

    again = extract(labels, ToyScorer(), run, workers=workers)  # nothing to do; the loss is still told
    assert (again.reused, again.partial) == (2, summary.partial)
    told_from_features_as_from_the_video(labels, tmp_path, part)


def test_of_a_video_that_is_cut_short_what_is_there_is_scored_where_asked_for(tmp_path):
    whole = write_video(
        tmp_path / "whole.mp4", frames=200, fps=10, container_options={"movflags": "faststart"}
    )
    data = whole.read_bytes()
    (tmp_path / "half.mp4").write_bytes(data[: len(data) * 6 // 10])
    labels, run = write_labels(tmp_path, ["half.mp4"]), RunDir(tmp_path / "out")
    (failure,) = extract(labels, ToyScorer(), run, workers=1).failures
    assert failure["reason"].startswith("cut short: ")
    (loss,) = extract(labels, ToyScorer(), run, workers=1, on_corrupt="partial").partial
    part = run.read_part("half.mp4")
    assert 5 <= len(part.frames) < 20 and part.frames + part.lost_frames == list(range(0, 200, 10))
    assert loss["reason"] == failure["reason"]
    told_from_features_as_from_the_video(labels, tmp_path, part)


def told_from_features_as_from_the_video(labels, tmp_path, part):
    """Features stored of a damaged video, scored without it and its note: the same loss is told."""
    store = FeatureStore(tmp_path / "store", "float32")
    store_features(labels, ToyScorer(), store, on_corrupt="partial")
    store.run.failure_path(part.video).unlink()
    run = RunDir(tmp_path / "from features")
    (loss,) = extract(labels, ToyScorer(), run, features=FeatureStore.open(store.folder)).partial
    again = run.read_part(part.video)
    assert (again.frames, again.lost_frames) == (part.frames, part.lost_frames)
    assert again.lost_reason == loss["reason"] == part.lost_reason
    assert loss["lost_frames"] == part.lost_frames


def test_where_no_process_can_start_the_limits_are_named(labels, tmp_path, monkeypatch):
    def refuse(_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "memfd_create", refuse)
    with pytest.raises(
        UserError, match=r"a decoding process cannot start: Too many open files .*--workers 0"
    ):
        extract(labels, ToyScorer(), RunDir(tmp_path / "out"), workers=1)


def test_a_process_that_never_starts_ends_the_run_but_not_one_that_started_unseen(
    labels, tmp_path, monkeypatch
):
    class SlowAtFirst(ToyScorer):
        def encode_frames(self, inputs):
            time.sleep(self.batch_s)
            self.batch_s = 0
            return super().encode_frames(inputs)

    monkeypatch.setattr(workers, "START_TIMEOUT_S", 6.0)
    # The model's first batch takes longer than that; meanwhile the second process starts.
    run = RunDir(tmp_path / "out")
    assert extract(labels, SlowAtFirst(batch_s=7), run, workers=2, batch_frames=3).scored == 4
    monkeypatch.setattr(workers, "_START", "import time; time.sleep(60) # {path!r} {parent} {ends}")
    with pytest.raises(UserError, match=r"has not started within 6 s; --workers 0"):
        extract(labels, ToyScorer(), RunDir(tmp_path / "other"), workers=1)


def test_a_folder_of_videos_that_is_not_there_is_one_mistake(labels, tmp_path):
    away = replace(labels, video_root=tmp_path / "away")
    for make in (extract, lambda *rest: store_features(*rest[:2], FeatureStore(tmp_path / "f", "float16"))):
        with pytest.raises(UserError, match=r"away: no such folder on .*--dataset_path"):
            make(away, ToyScorer(), RunDir(tmp_path / "out"))


def test_where_all_is_finished_no_video_is_needed(labels, tmp_path):
    run = RunDir(tmp_path / "out")
    extract(labels, ToyScorer(), run)
    expected = results(run)
    (run.folder / "scores.json").unlink()
    away = replace(labels, video_root=tmp_path / "away")
    assert extract(away, ToyScorer(), run).complete
    assert results(run) == expected


def test_who_reads_only_the_beginning_of_the_output_sees_no_traceback(tmp_path):
    script = tmp_path / "talk.py"
    script.write_text(
        "from aks import errors\ndef main():\n    while True: print('line' * 1000)\nerrors.run_main(main)\n"
    )
    command = f"{sys.executable} {script} | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.stderr == "" and done.stdout.split("\n")[1] == "0"


def test_a_full_gpu_is_one_line(run_script, tmp_path):
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


def test_of_a_damaged_video_with_open_groups_the_frames_left_are_the_right_ones(tmp_path):
    options = {"x264-params": "open-gop=1:bframes=3:b-adapt=0:keyint=20:scenecut=0"}
    path = write_video(tmp_path / "v.mp4", frames=300, fps=10, options=options)
    whole = everything(path)
    damage(path, 0.4, 0.5)
    spec = DecodeSpec(lambda pixels: pixels, "auto", 1, "partial")
    seen, lost = [], []
    for event in decode(path, spec, lambda: np.empty((1, 64, 96, 3), np.uint8)):
        if isinstance(event, FrameBatch):
            seen.append(int(event.frame_indices[0]))
            if not 90 <= seen[-1] <= 190:
                np.testing.assert_array_equal(event.inputs[0], whole[seen[-1]])
        elif isinstance(event, EndOfVideo):
            lost = event.missing_frames
    assert sorted(seen + lost) == list(range(0, 300, 10))
    assert lost and min(seen) == 0 and max(seen) == 290


def test_a_full_disk_is_told_and_finished_parts_are_kept(labels, tmp_path, monkeypatch):
    run, sync = RunDir(tmp_path / "out"), os.fsync

    def full(file):
        if list(run.parts.glob("[!.]*.json")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"cannot be written: No space left on device; finished work"):
            extract(labels, ToyScorer(), run, workers=2)
    assert len(list(run.parts.iterdir())) == 1  # a part; no lock, no temporary file
    assert not children(os.getpid())
    assert extract(labels, ToyScorer(), run, workers=2).scored == 3


@pytest.mark.parametrize("times", [1, 2])
def test_interrupted_once_it_stops_in_good_order_and_twice_at_once(labels, folder, tmp_path, times):
    out = tmp_path / "out"
    process = start(folder, out, batch_s=1 if times == 1 else 20, workers=2, batch_frames=1)
    parts = out / "parts"
    wait_until(lambda: list(parts.glob("*.lock" if times == 2 else "[!.]*.json")))
    wait_until(lambda: children(process.pid))
    workers = children(process.pid)
    os.kill(process.pid, signal.SIGINT)
    if times == 2:
        os.kill(process.pid, signal.SIGINT)
    assert process.wait(10) == 130
    wait_until(lambda: not any(map(alive, workers)), 5)
    if times == 1:
        assert process.stderr.read().splitlines()[-1].startswith("interrupted; finished work is kept")
        assert [path.suffix for path in parts.iterdir()] == [".json"] * len(list(parts.iterdir()))
    assert extract(labels, ToyScorer(), RunDir(out), batch_frames=1).complete


def test_no_process_is_left_when_the_main_one_is_killed(labels, folder, tmp_path):
    process = start(folder, tmp_path / "out", batch_s=1, workers=2, batch_frames=1)
    wait_until(lambda: len(children(process.pid)) == 2)
    workers = children(process.pid)
    maps = [Path(f"/proc/{worker}/maps") for worker in workers]
    wait_until(lambda: all("memfd:aks-batches" in file.read_text() for file in maps))  # they have begun
    os.kill(workers[0], signal.SIGSTOP)  # even one that is stuck
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(alive, workers)), 5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--workers", "-1"], "--workers: -1: must be a whole number, 0 or more"),
        (["--workers", "0", "--video_timeout", "9"], "--video_timeout needs --workers 1 or more"),
        (["--video_timeout", "nan"], "--video_timeout: nan: must be a number, 0.001 or more"),
        (["--on_corrupt", "guess"], "--on_corrupt: invalid choice: 'guess' (choose from"),
        (["--shard", "0/2"], "--shard 0/2: must be I/N"),
        (
            ["--engine", "ray", "--device", "cuda:1"],
            "--device cuda:1: Ray gives every actor a GPU of its own",
        ),
        (["--shard", "3/2"], "--shard 3/2: must be I/N"),
    ],
)
def test_a_wrong_flag_is_one_line(run_script, arguments, words):
    done = run_script("feature_extract.py", *arguments)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


def test_interrupted_twice_it_ends_in_the_middle_of_what_does_not_heed_the_first():
    code = (
        "import time; from aks import errors\n"
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
