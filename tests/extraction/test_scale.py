"""Step 1 on many videos: kills, shards, several processes on one folder, and a set of odd videos."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT
from extraction_setup import (
    PYTHON_PATH,
    ToyScorer,
    child_pids,
    finished_parts,
    flags_for,
    results,
    start_extraction,
    wait_until,
    write_labels,
)
from media import rotate, write_bad_files, write_video
from test_faults import damage
from tqdm import tqdm

from aks import UserError, locks
from aks.extraction import sharding
from aks.extraction.api import extract, store_features
from aks.extraction.feature_store import FeatureStore
from aks.jsonio import _host, write_json
from aks.locks import VideoLocks
from aks.run_dir import RunDir


def fork(work) -> int:
    """Call a function in a fork of this process, which starts at once; return the fork's process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    with contextlib.suppress(BaseException):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        # Forks share tqdm's default lock: one that is killed while holding it would block this process.
        tqdm.set_lock(threading.RLock())
        work()
        status = 0
    os._exit(status)


@pytest.mark.slow
def test_kills_lose_only_what_was_in_flight(many, names, whole, tmp_path):
    labels, run = write_labels(many, names), RunDir(tmp_path / "out")
    rng = random.Random(3)

    def mtimes():
        return {path: path.stat().st_mtime_ns for path in finished_parts(run)}

    for attempt in range(20 if "AKS_TESTS_LONG" in os.environ else 6):
        before = mtimes()
        pid = fork(lambda workers=attempt % 2: extract(labels, ToyScorer(0.02), run, workers=workers))
        count = len(before) + rng.randrange(min(4, 1 + len(names) - len(before)))
        wait_until(lambda count=count: len(finished_parts(run)) >= count)
        time.sleep(rng.uniform(0, 0.2))
        decoders = child_pids(pid)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        wait_until(lambda decoders=decoders: not any(Path(f"/proc/{d}").exists() for d in decoders), 10)
        after = mtimes()
        assert before.items() <= after.items()  # No finished video is scored again.
        in_flight = [p for p in run.parts.glob("*.lock") if not p.with_suffix(".json").exists()]
        assert len(in_flight) <= 1  # one for each decoding process
        if len(after) == len(names):
            for path in list(after)[::2]:  # so that the next run has work
                path.unlink()
    extract(labels, ToyScorer(), run, workers=2)
    assert results(run) == whole
    assert not list(run.folder.rglob(".*"))


@pytest.mark.long  # the commands' own code is tested apart from kills
def test_a_killed_command_goes_on_where_it_stopped(clips, tmp_path):
    write_labels(clips, ["one.mp4", "two.mp4", "sub/three.mkv"])

    def command(name):
        return [sys.executable, ROOT / "feature_extract.py", *flags_for(clips, tmp_path / name)]

    killed, undisturbed = (RunDir(tmp_path / name / "custom/conse") for name in ("killed", "undisturbed"))
    with subprocess.Popen(command("killed")) as process:
        wait_until(lambda: finished_parts(killed))
        process.kill()
    before = len(finished_parts(killed))
    for name, scored, kept in (("killed", 3 - before, before), ("undisturbed", 3, 0)):
        done = subprocess.run(command(name), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert f"{scored} scored now, {kept} finished before, 0 failed" in done.stdout
    assert results(killed) == results(undisturbed)


@pytest.mark.slow
def test_two_shards_and_a_killed_decoder_give_the_files_of_one_process(many, names, whole, run):
    write_labels(many, names)
    shards = [start_extraction(many, run.folder, 0.01, workers=2, shard=(number, 2)) for number in (1, 2)]
    wait_until(lambda: finished_parts(run) and child_pids(shards[0].pid))
    os.kill(child_pids(shards[0].pid)[0], signal.SIGKILL)
    summaries = [json.loads(shard.communicate(timeout=120)[0]) for shard in shards]
    assert [(s["videos"], s["scored"], s["failures"]) for s in summaries] == [(25, 25, [])] * 2
    assert any(s["complete"] for s in summaries)
    assert results(run) == whole


def test_processes_on_one_folder_share_the_videos_and_those_of_a_killed_one(many, names, whole, tmp_path):
    labels, run = write_labels(many, names), RunDir(tmp_path / "out")
    run.parts.mkdir(parents=True)
    reports = [tmp_path / f"report {index}" for index in range(3)]

    def work(report):
        summary = extract(labels, ToyScorer(batch_s=0.03), run, workers=1)
        report.write_text(str(summary.scored))

    pids = [fork(lambda report=report: work(report)) for report in reports]
    wait_until(lambda: len(finished_parts(run)) > 5)
    os.kill(pids[2], signal.SIGKILL)
    finished = len(finished_parts(run))
    for pid in pids:
        os.waitpid(pid, 0)
    scored = [int(report.read_text()) for report in reports[:2]]
    assert all(scored) and 50 - finished - 2 <= sum(scored) <= 50
    assert results(run) == whole


def test_a_lock_holds_until_its_process_releases_it_or_dies(tmp_path, monkeypatch):
    run = RunDir(tmp_path)
    run.open_or_create({})
    with VideoLocks(run) as first, VideoLocks(run) as second:
        assert first.acquire("v.mp4") and not second.acquire("v.mp4") and second.acquire("w.mp4")
        first.release("v.mp4")
        assert second.acquire("v.mp4")

        def release_and_lock(*arguments, flock=fcntl.flock):
            second.release("v.mp4")  # between the first one's opening and locking of the file
            flock(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(fcntl, "flock", release_and_lock)
            assert not first.acquire("v.mp4")  # else both could hold a file of this name
        assert first.acquire("v.mp4") and not second.acquire("v.mp4")
        with VideoLocks(run):
            pass
        assert list(run.parts.glob("v.mp4.lock"))  # The end of a third one does not remove it.
        acquired = []

        def acquire_and_unlink(path, unlink=Path.unlink, **options):
            acquired.append(second.acquire("v.mp4"))
            unlink(path, **options)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", acquire_and_unlink)
            first.release("v.mp4")
        assert acquired == [False]  # else the first would remove the second one's lock file
    assert not list(run.parts.iterdir())

    def acquire_and_die():
        locks = VideoLocks(run)
        locks.acquire("v.mp4")
        os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(fork(acquire_and_die), 0)
    assert list(run.parts.iterdir())
    with VideoLocks(run) as first:
        assert first.acquire("v.mp4")
    os.waitpid(fork(acquire_and_die), 0)
    run.part_path("v.mp4").touch()  # as if killed after writing the part, before releasing the lock
    with VideoLocks(run):
        pass
    assert list(run.parts.iterdir()) == [run.part_path("v.mp4")]


def test_a_video_that_another_run_finishes_before_the_lock_is_not_scored_again(
    many, names, whole, tmp_path, monkeypatch
):
    labels, run = write_labels(many, names), RunDir(tmp_path / "out")

    def acquire(self, video, acquire=VideoLocks.acquire):
        if video == names[3]:
            part = run.part_path(video)
            part.write_bytes(whole[part.name])
        return acquire(self, video)

    monkeypatch.setattr(VideoLocks, "acquire", acquire)
    summary = extract(labels, ToyScorer(), run)
    assert (summary.scored, summary.reused) == (49, 1)
    assert results(run) == whole


@pytest.mark.parametrize("holder_ends", [True, False])
def test_a_run_waits_for_a_video_of_another_run_but_not_forever(
    many, names, whole, tmp_path, monkeypatch, holder_ends
):
    monkeypatch.setattr(locks, "MAX_WAIT_S", 50.0 if holder_ends else 2.0)
    labels, run = write_labels(many, names), RunDir(tmp_path / "out")
    run.parts.mkdir(parents=True)

    def hold():
        locks = VideoLocks(run)  # The lock lives as long as this object.
        locks.acquire(names[7])
        time.sleep(60)

    def warning(message, *values):
        messages.append(message % values)
        if holder_ends:
            os.kill(holder, signal.SIGKILL)

    holder, messages = fork(hold), []
    monkeypatch.setattr(locks.logger, "warning", warning)
    wait_until(lambda: list(run.parts.glob("*.lock")))
    try:
        summary = extract(labels, ToyScorer(), run)
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    assert len(messages) == 1 and messages[0].startswith("1 videos are in work in other runs")
    if holder_ends:
        assert (summary.scored, summary.unfinished, summary.complete) == (50, 0, True)
        assert results(run) == whole
    else:
        assert (summary.scored, summary.unfinished, summary.complete) == (49, 1, False)


@pytest.mark.parametrize(
    ("module", "function", "code"), [(fcntl, "flock", errno.ENOTSUP), (os, "link", errno.EPERM)]
)
def test_a_run_needs_neither_locks_nor_links_of_the_file_system(
    many, names, whole, tmp_path, monkeypatch, module, function, code
):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(module, function, refuse)
    run = RunDir(tmp_path / "out")
    assert extract(write_labels(many, names), ToyScorer(), run).complete
    assert results(run) == whole and not list(run.parts.glob("*.lock"))


@pytest.mark.parametrize("content", [[["other.mp4"], []], 5, [[]], {"a": 1}])
def test_a_damaged_record_of_the_shards_is_reported(many, names, tmp_path, content):
    labels, run = write_labels(many, names), RunDir(tmp_path / "out")
    extract(labels, ToyScorer(), run, shard=(1, 2))
    (record,) = run.folder.glob("shards-2-*.json")
    write_json(record, content)
    with pytest.raises(UserError, match=r"shards-2-\w{12}\.json: damaged; remove it"):
        extract(labels, ToyScorer(), run, shard=(2, 2))


def test_the_processes_of_torchrun_share_the_videos(many, names, whole, tmp_path):
    write_labels(many, names)
    script = tmp_path / "score.py"
    script.write_text(
        "import sys\n"
        "from aks import cli\n"
        "from extraction_setup import *\n"
        "args = cli.build_parser('', '').parse_args(['--workers', '1'])\n"
        "settings = cli.decode_settings(args)\n"
        "run = RunDir(Path(sys.argv[2]))\n"
        "summary = extract(load_custom(Path(sys.argv[1])), ToyScorer(0.01), run, **settings)\n"
        "print(cli.print_summary(summary, 'scored'))\n"
    )
    processes = []
    for rank in ("0", "1"):  # the variables that torchrun sets
        env = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        command = [sys.executable, script, many, tmp_path / "out"]
        env = {**os.environ, **env, "PYTHONPATH": PYTHON_PATH}
        processes.append(subprocess.Popen(command, env=env))
    assert [process.wait(120) for process in processes] == [0, 0]
    assert results(RunDir(tmp_path / "out")) == whole


def test_odd_videos_are_scored_or_listed_with_their_reason_and_harm_no_other(tmp_path):
    listed = write_bad_files(tmp_path)
    front = tmp_path / "front.mp4"
    write_video(front, frames=250, fps=10, container_options={"movflags": "faststart"})
    (tmp_path / "half.mp4").write_bytes(front.read_bytes()[: front.stat().st_size // 2])
    write_video(tmp_path / "hurt.mp4", frames=200, fps=10, gop=10)
    damage(tmp_path / "hurt.mp4", 0.4, 0.6)
    write_video(tmp_path / "short.mp4", frames=3, fps=10)
    listed |= {
        "half.mp4": "cut short",
        "hurt.mp4": "cannot be decoded|decoding stops",
        "short.mp4": "too short: 3 frames at 10 a second",
    }
    quick = {"cpu-used": "8", "deadline": "realtime"}
    quiet = {"x265-params": "log-level=none"}
    encodings = {
        "one frame.mp4": {"frames": 1, "fps": 1},
        "slow.mp4": {"frames": 4, "pts": [0, 4000, 8000, 12000]},
        "fast.mp4": {"frames": 480, "fps": 240},
        "tiny.mp4": {"frames": 30, "fps": 10, "size": (16, 16)},
        "odd.webm": {"frames": 20, "fps": 10, "size": (97, 63), "codec": "libvpx-vp9", "options": quick},
        "4k.mp4": {"frames": 2, "fps": 1, "size": (3840, 2160), "options": {"preset": "ultrafast"}},
        "varying.mp4": {"frames": 40, "pts": [index * 40 + (index % 3) * 12 for index in range(40)]},
        "late.mp4": {"frames": 40, "pts": [500 + index * 50 for index in range(40)]},  # needs an edit list
        "av1.mp4": {"frames": 20, "fps": 10, "codec": "libaom-av1", "options": {"cpu-used": "8"}},
        "hevc.mp4": {"frames": 20, "fps": 10, "codec": "libx265", "options": quiet},
        "10 bit.mp4": {
            "frames": 20,
            "fps": 10,
            "codec": "libx265",
            "pixel_format": "yuv420p10le",
            "options": quiet,
        },
        "interlaced.mp4": {
            "frames": 20,
            "fps": 10,
            "options": {"flags": "+ilme+ildct", "x264-params": "interlaced=1:tff=1"},
        },
        "a: b #1 %.mp4": {"frames": 20, "fps": 10},
    }
    for name, options in encodings.items():
        write_video(tmp_path / name, **options)
    rotate(tmp_path / "good.mp4", tmp_path / "turned.mp4", 90)
    scored = ["good.mp4", "front.mp4", "turned.mp4", *encodings]
    videos = [*scored, *listed]
    random.Random(1).shuffle(videos)
    labels, run = write_labels(tmp_path, videos), RunDir(tmp_path / "out")
    summary = extract(labels, ToyScorer(), run, workers=2, video_timeout=60)
    reasons = {failure["video"]: failure["reason"] for failure in summary.failures}
    assert reasons.keys() == listed.keys()
    for name, words in listed.items():
        assert re.search(words, reasons[name]), (name, reasons[name])
        assert "\n" not in reasons[name]
    assert summary.scored == len(scored)
    alone = RunDir(tmp_path / "alone")
    extract(labels, ToyScorer(), alone)
    for name in scored:
        assert run.part_path(name).read_bytes() == alone.part_path(name).read_bytes()


def test_stale_temporary_files_go_and_those_of_running_processes_stay(run, monkeypatch):
    run.open_or_create({})
    os.waitpid(ended := fork(lambda: None), 0)
    # Those of another machine go when they are old; here no process has their number.
    new, old = (run.parts / f".{name}.{0:016x}-{ended}-00000000.tmp.json" for name in ("new", "old"))
    own, orphan = (run.parts / f".v.{_host()}-{pid}-00000000.tmp.json" for pid in (os.getpid(), ended))
    for path in (new, old, own, orphan):
        path.write_text("[")
    os.utime(old, (0, 0))
    monkeypatch.setattr(time, "time", lambda: 2e10)  # This machine's clock is wrong.
    run.open_or_create({})
    assert [path.exists() for path in (new, old, own, orphan)] == [True, False, True, False]


@pytest.fixture
def uneven(tmp_path):
    """The label set of five videos of 8 s and a last one of 40 s."""
    for name in "abcdef":
        write_video(tmp_path / f"{name}.mkv", frames=80 if name == "f" else 16, fps=2, size=(16, 16))
    return write_labels(tmp_path, [f"{name}.mkv" for name in "abcdef"])


def shares_of(run: RunDir) -> list[list[str]]:
    (record,) = run.folder.glob("shards-*.json")
    return json.loads(record.read_text())


@pytest.mark.parametrize(
    ("broken", "expected"), [("", ["abcde", "f"]), ("f", ["ace", "bdf"]), ("abcdef", ["ace", "bdf"])]
)
def test_shards_are_equal_in_seconds_or_in_number_where_lengths_are_unknown(
    uneven, tmp_path, broken, expected
):
    for name in broken:
        (tmp_path / f"{name}.mkv").write_text("no video")
    run = RunDir(tmp_path / "out")
    summaries = [extract(uneven, ToyScorer(), run, shard=(number, 2)) for number in (1, 2)]
    assert sorted("".join(sorted(name[0] for name in share)) for share in shares_of(run)) == expected
    assert [summary.videos for summary in summaries] == [len(share) for share in shares_of(run)]
    assert sum(summary.scored for summary in summaries) == 6 - len(broken)


def test_the_first_record_of_the_shards_holds_for_all_processes(uneven, tmp_path, monkeypatch, run):

    def write_second(path, shares, **options):
        write_json(path, shares[::-1])  # Another process was faster.
        write_json(path, shares, **options)

    monkeypatch.setattr(sharding, "write_json", write_second)
    first = extract(uneven, ToyScorer(), run, shard=(1, 2))
    (tmp_path / "f.mkv").write_text("no video")  # Its length, now unknown, would change the shares.
    second = extract(uneven, ToyScorer(), run, shard=(2, 2))
    assert sorted([first.videos, second.videos]) == [1, 5]
    assert not second.unfinished


def test_each_number_of_shards_and_each_label_file_has_its_own_record(uneven, tmp_path):
    store = FeatureStore(tmp_path / "features", "float32")
    assert store_features(uneven, ToyScorer(), store, shard=(1, 2)).unfinished
    for number in (1, 2, 3):
        summary = store_features(uneven, ToyScorer(), store, shard=(number, 3))
    assert not summary.unfinished
    fewer = write_labels(tmp_path, ["a.mkv", "b.mkv"])
    assert store_features(fewer, ToyScorer(), store, shard=(1, 2)).videos == 1


def test_the_failure_in_another_share_removes_the_lists_that_lack_it(uneven, tmp_path, run):
    (tmp_path / "f.mkv").write_text("no video")  # in the second share
    assert extract(uneven, ToyScorer(), run, allow_missing=True).complete
    assert extract(uneven, ToyScorer(), run, shard=(1, 2)).failures == []
    assert not [path.name for path in run.folder.glob("*s.json") if path.name != "failures.json"]
