"""Step 1 at scale: kills, shards, several processes on one folder, and a corpus of odd videos."""

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
import time
from pathlib import Path

import pytest
from extraction_setup import ToyScorer, children, results, start, wait_until, write_labels
from media import rotate, write_audio, write_video
from test_faults import damage

from aks import UserError, locks
from aks.extraction import sharding
from aks.extraction.api import extract, store_features
from aks.extraction.feature_store import FeatureStore
from aks.jsonio import _host, write_json
from aks.locks import VideoLocks
from aks.run_dir import RunDir
from aks.scorers.base import load_scorer


def forked(work) -> int:
    """Do work in a copy of this process, which costs no new start; its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    with contextlib.suppress(BaseException):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        work()
        status = 0
    os._exit(status)


def test_the_models_numbers_do_not_depend_on_who_decodes(clips, tmp_path):
    labels = write_labels(clips, ["one.mp4", "two.mp4", "sub/three.mkv"])
    scorer = load_scorer("conse")
    runs = [RunDir(tmp_path / f"{workers} workers") for workers in (0, 3)]
    for workers, run in zip((0, 3), runs, strict=True):
        assert extract(labels, scorer, run, workers=workers, batch_frames=2).complete
    assert results(runs[0]) == results(runs[1])


def test_twenty_kills_at_random_moments_lose_only_what_was_in_flight(many, names, whole, tmp_path):
    labels, run = write_labels(many, names), RunDir(tmp_path / "out")
    rng = random.Random(3)
    for number in range(20):
        before = {path: path.stat().st_mtime_ns for path in run.parts.glob("[!.]*.json")}
        child = forked(lambda number=number: extract(labels, ToyScorer(0.02), run, workers=number % 2))
        wanted = len(before) + rng.randrange(min(4, 1 + len(names) - len(before)))
        wait_until(lambda wanted=wanted: len(list(run.parts.glob("[!.]*.json"))) >= wanted)
        time.sleep(rng.uniform(0, 0.2))
        workers = children(child)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        wait_until(lambda workers=workers: not any(Path(f"/proc/{pid}").exists() for pid in workers), 10)
        after = {path: path.stat().st_mtime_ns for path in run.parts.glob("[!.]*.json")}
        assert before.items() <= after.items()  # nothing that was finished is done again
        in_flight = [p for p in run.parts.glob("*.lock") if not p.with_suffix(".json").exists()]
        assert len(in_flight) <= 1  # one a decoding process
        if len(after) == len(names):
            for path in list(after)[::2]:  # make work again
                path.unlink()
    extract(labels, ToyScorer(), run, workers=2)
    assert results(run) == whole
    assert not list(run.folder.rglob(".*"))


def test_shards_with_a_killed_decoder_make_what_one_process_makes(many, names, whole, tmp_path):
    write_labels(many, names)
    out = tmp_path / "out"
    shards = [start(many, out, 0.01, workers=2, shard=(number, 2)) for number in (1, 2)]
    wait_until(lambda: list((out / "parts").glob("[!.]*.json")) and children(shards[0].pid))
    os.kill(children(shards[0].pid)[0], signal.SIGKILL)
    summaries = [json.loads(shard.communicate(timeout=120)[0]) for shard in shards]
    assert [s["videos"] for s in summaries] == [25, 25]
    assert [s["scored"] for s in summaries] == [25, 25]
    assert [s["failures"] for s in summaries] == [[], []]
    assert any(s["complete"] for s in summaries)
    assert results(RunDir(out)) == whole


def test_processes_on_one_folder_score_no_video_twice_and_take_over_from_the_dead(
    many, names, whole, tmp_path
):
    labels, run = write_labels(many, names), RunDir(tmp_path / "out")
    run.open_or_create({})  # as extract would; replaced below
    (run.folder / "run.json").unlink()
    reports = [tmp_path / f"report {number}" for number in range(3)]

    def work(report):
        summary = extract(labels, ToyScorer(batch_s=0.03), run, workers=1)
        report.write_text(str(summary.scored))

    processes = [forked(lambda report=report: work(report)) for report in reports]
    wait_until(lambda: len(list(run.parts.glob("[!.]*.json"))) > 5)
    os.kill(processes[2], signal.SIGKILL)
    killed = len(list(run.parts.glob("[!.]*.json")))
    for process in processes:
        os.waitpid(process, 0)
    scored = [int(report.read_text()) for report in reports[:2]]
    assert all(scored) and 50 - killed - 2 <= sum(scored) <= 50
    assert results(run) == whole


def test_a_lock_holds_until_its_process_lets_go_or_dies(tmp_path, monkeypatch):
    run = RunDir(tmp_path)
    run.open_or_create({})
    with VideoLocks(run) as ours, VideoLocks(run) as theirs:
        assert ours.acquire("v.mp4") and not theirs.acquire("v.mp4") and theirs.acquire("w.mp4")
        ours.release("v.mp4")
        assert theirs.acquire("v.mp4")

        def lock(*arguments, flock=fcntl.flock):
            theirs.release("v.mp4")  # between the opening of the file and its lock
            flock(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(fcntl, "flock", lock)
            assert not ours.acquire("v.mp4")  # else two processes could each hold a file of that name
        assert ours.acquire("v.mp4") and not theirs.acquire("v.mp4")
        with VideoLocks(run):
            pass
        assert list(run.parts.glob("v.mp4.lock"))  # another's end does not remove it
        early = []

        def unlink(path, unlink=Path.unlink, **options):
            early.append(theirs.acquire("v.mp4"))
            unlink(path, **options)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", unlink)
            ours.release("v.mp4")
        assert early == [False]  # else the file of another's lock would be removed
    assert not list(run.parts.iterdir())

    def work():
        mine = VideoLocks(run)
        mine.acquire("v.mp4")
        os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(forked(work), 0)
    assert list(run.parts.iterdir())
    with VideoLocks(run) as ours:
        assert ours.acquire("v.mp4")
    os.waitpid(forked(work), 0)
    run.part_path("v.mp4").touch()  # it was killed between its part and the end of its lock
    with VideoLocks(run):
        pass
    assert list(run.parts.iterdir()) == [run.part_path("v.mp4")]


def test_what_another_run_finishes_between_the_look_and_the_lock_is_not_scored_again(
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


@pytest.mark.parametrize("ends", [True, False])
def test_a_video_in_work_elsewhere_is_waited_for_but_not_forever(
    many, names, whole, tmp_path, monkeypatch, ends
):
    monkeypatch.setattr(locks, "MAX_WAIT_S", 50.0 if ends else 2.0)
    labels, run = write_labels(many, names), RunDir(tmp_path / "out")
    run.open_or_create(
        {"dataset": labels.dataset, "label_sha256": labels.sha256, **ToyScorer().fingerprint()}
    )

    def hold():
        theirs = VideoLocks(run)
        theirs.acquire(names[7])
        time.sleep(600)

    holder, messages = forked(hold), []

    def warning(message, *values):
        messages.append(message % values)
        if ends:
            os.kill(holder, signal.SIGKILL)

    monkeypatch.setattr(locks.logger, "warning", warning)
    wait_until(lambda: list(run.parts.glob("*.lock")))
    summary = extract(labels, ToyScorer(), run)
    assert len(messages) == 1 and messages[0].startswith("1 videos are in work in other runs")
    if ends:
        assert (summary.scored, summary.unfinished, summary.complete) == (50, 0, True)
        assert results(run) == whole
    else:
        os.kill(holder, signal.SIGKILL)
        assert (summary.scored, summary.unfinished, summary.complete) == (49, 1, False)
    os.waitpid(holder, 0)


@pytest.mark.parametrize(
    ("module", "function", "code"), [(fcntl, "flock", errno.ENOTSUP), (os, "link", errno.EPERM)]
)
def test_on_a_file_system_without_locks_or_links_a_run_works_all_the_same(
    many, names, whole, tmp_path, monkeypatch, module, function, code
):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(module, function, refuse)
    run = RunDir(tmp_path / "out")
    assert extract(write_labels(many, names), ToyScorer(), run).complete
    assert results(run) == whole and not list(run.parts.glob("*.lock"))


@pytest.mark.parametrize("content", [[["other.mp4"], []], 5, [[]], {"a": 1}])
def test_a_damaged_partition_is_told(many, names, tmp_path, content):
    labels, run = write_labels(many, names), RunDir(tmp_path / "out")
    extract(labels, ToyScorer(), run, shard=(1, 2))
    (record,) = run.folder.glob("shards-2-*.json")
    write_json(record, content)
    with pytest.raises(UserError, match=r"shards-2-\w{12}\.json: damaged; remove it"):
        extract(labels, ToyScorer(), run, shard=(2, 2))


def test_torchrun_shares_the_videos_out(many, names, whole, tmp_path, run_script):
    write_labels(many, names)
    script = tmp_path / "score.py"
    script.write_text(
        "import sys, argparse\n"
        "from aks import cli\n"
        "from extraction_setup import *\n"
        "args = cli.build_parser('', '').parse_args(['--workers', '1'])\n"
        "labels = load_labels('custom', label_file=sys.argv[1])\n"
        "summary = extract(labels, ToyScorer(0.01), RunDir(Path(sys.argv[2])), **cli.decode_settings(args))\n"
        "print(cli.print_summary(summary, 'scored'))\n"
    )
    tests = Path(__file__).parents[1] / "support"
    out = tmp_path / "out"
    processes = []
    for rank in range(2):  # what torchrun sets
        env = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        processes.append(
            subprocess.Popen(
                [sys.executable, script, many / "labels.json", out],
                env={**os.environ, **env, "PYTHONPATH": f"{tests}:{tests.parents[1]}"},
            )
        )
    assert [process.wait(120) for process in processes] == [0, 0]
    assert results(RunDir(out)) == whole


def cut(source: Path, target: Path, share: float) -> None:
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])


def test_each_of_many_odd_videos_is_scored_or_listed_with_its_reason_and_harms_no_other(tmp_path):
    folder = tmp_path
    good = write_video(folder / "good.mp4", frames=50, fps=10)
    front = write_video(folder / "front.mp4", frames=250, fps=10, container_options={"movflags": "faststart"})
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("this is no video\n" * 100)
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    write_audio(folder / "sound.m4a")
    cut(front, folder / "half.mp4", 0.5)
    data = good.read_bytes()
    (folder / "without moov.mp4").write_bytes(data[: data.find(b"moov") - 4])
    write_video(folder / "hurt.mp4", frames=200, fps=10, gop=10)
    damage(folder / "hurt.mp4", 0.4, 0.6)
    write_video(folder / "short.mp4", frames=3, fps=10)
    listed = {
        "absent.mp4": "file not found",
        "empty.mp4": "file is empty",
        "text.mp4": "cannot be opened: Invalid data",
        "folder.mp4": "not a regular file",
        "pipe.mp4": "not a regular file",
        "loop.mp4": "symbolic links|file not found|cannot be opened",
        "sound.m4a": "no video stream",
        "half.mp4": "cut short",
        "without moov.mp4": "cannot be opened",
        "hurt.mp4": "cannot be decoded|decoding stops",
        "short.mp4": "too short: 3 frames at 10 a second",
    }
    quick = {"cpu-used": "8", "deadline": "realtime"}
    quiet = {"x265-params": "log-level=none"}
    made = {
        "one frame.mp4": {"frames": 1, "fps": 1},
        "slow.mp4": {"frames": 4, "pts": [0, 4000, 8000, 12000]},
        "fast.mp4": {"frames": 480, "fps": 240},
        "tiny.mp4": {"frames": 30, "fps": 10, "size": (16, 16)},
        "odd.webm": {"frames": 20, "fps": 10, "size": (97, 63), "codec": "libvpx-vp9", "options": quick},
        "4k.mp4": {"frames": 2, "fps": 1, "size": (3840, 2160), "options": {"preset": "ultrafast"}},
        "varying.mp4": {"frames": 40, "pts": [at * 40 + (at % 3) * 12 for at in range(40)]},
        "late.mp4": {"frames": 40, "pts": [500 + at * 50 for at in range(40)]},  # an edit list says so
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
    for name, options in made.items():
        write_video(folder / name, **options)
    rotate(good, folder / "turned.mp4", 90)
    scored = ["good.mp4", "front.mp4", "turned.mp4", *made]
    videos = [*scored, *listed]
    random.Random(1).shuffle(videos)
    run = RunDir(tmp_path / "out")
    summary = extract(write_labels(folder, videos), ToyScorer(), run, workers=2, video_timeout=60)
    reasons = {failure["video"]: failure["reason"] for failure in summary.failures}
    assert reasons.keys() == listed.keys()
    for name, words in listed.items():
        assert re.search(words, reasons[name]), (name, reasons[name])
        assert "\n" not in reasons[name]
    assert summary.scored == len(scored)
    alone = RunDir(tmp_path / "alone")
    extract(write_labels(folder, videos), ToyScorer(), alone)
    for name in scored:
        assert run.part_path(name).read_bytes() == alone.part_path(name).read_bytes()


def test_temporary_files_of_the_living_are_kept_whatever_this_machine_s_clock_says(tmp_path, monkeypatch):
    run = RunDir(tmp_path / "out")
    run.open_or_create({})
    live, old = (run.parts / f".{name}.0123456789abcdef-1-00000000.tmp.json" for name in ("live", "old"))
    os.waitpid(dead := forked(lambda: None), 0)
    ours, theirs = (run.parts / f".v.{_host()}-{pid}-00000000.tmp.json" for pid in (os.getpid(), dead))
    for path in (live, old, ours, theirs):
        path.write_text("[")
    os.utime(old, (0, 0))
    monkeypatch.setattr(time, "time", lambda: 2e10)
    run.open_or_create({})
    assert [path.exists() for path in (live, old, ours, theirs)] == [True, False, True, False]


@pytest.fixture
def uneven(tmp_path):
    """Five videos of 8 s and behind them one of 40 s; their label set."""
    for name in "abcdef":
        write_video(tmp_path / f"{name}.mkv", frames=80 if name == "f" else 16, fps=2, size=(16, 16))
    return write_labels(tmp_path, [f"{name}.mkv" for name in "abcdef"])


def shares_of(run: RunDir) -> list[list[str]]:
    (record,) = run.folder.glob("shards-*.json")
    return json.loads(record.read_text())


@pytest.mark.parametrize(
    ("broken", "expected"), [("", ["abcde", "f"]), ("f", ["ace", "bdf"]), ("abcdef", ["ace", "bdf"])]
)
def test_shards_are_alike_in_length_not_in_number_and_share_what_cannot_be_read(
    uneven, tmp_path, broken, expected
):
    for name in broken:
        (tmp_path / f"{name}.mkv").write_text("no video")
    run = RunDir(tmp_path / "out")
    summaries = [extract(uneven, ToyScorer(), run, shard=(number, 2)) for number in (1, 2)]
    assert sorted("".join(sorted(name[0] for name in share)) for share in shares_of(run)) == expected
    assert [summary.videos for summary in summaries] == [len(share) for share in shares_of(run)]
    assert sum(summary.scored for summary in summaries) == 6 - len(broken)


def test_the_first_partition_holds_for_all_whatever_they_see(uneven, tmp_path, monkeypatch):
    run, write = RunDir(tmp_path / "out"), write_json

    def be_slower(path, shares, **options):
        write(path, shares[::-1])  # by another process, meanwhile
        write(path, shares, **options)

    monkeypatch.setattr(sharding, "write_json", be_slower)
    first = extract(uneven, ToyScorer(), run, shard=(1, 2))
    (tmp_path / "f.mkv").write_text("no video")  # now the lengths are alike
    second = extract(uneven, ToyScorer(), run, shard=(2, 2))
    assert sorted([first.videos, second.videos]) == [1, 5]
    assert not second.unfinished


def test_other_numbers_of_shards_and_other_label_files_have_partitions_of_their_own(uneven, tmp_path):
    store = FeatureStore(tmp_path / "features", "float32")
    assert store_features(uneven, ToyScorer(), store, shard=(1, 2)).unfinished
    for number in (1, 2, 3):
        summary = store_features(uneven, ToyScorer(), store, shard=(number, 3))
    assert not summary.unfinished
    fewer = write_labels(tmp_path, ["a.mkv", "b.mkv"])
    assert store_features(fewer, ToyScorer(), store, shard=(1, 2)).videos == 1


def test_the_failure_in_another_share_removes_the_lists_that_lack_it(uneven, tmp_path):
    (tmp_path / "f.mkv").write_text("no video")  # in the second share
    run = RunDir(tmp_path / "out")
    assert extract(uneven, ToyScorer(), run, allow_missing=True).complete
    assert extract(uneven, ToyScorer(), run, shard=(1, 2)).failures == []
    assert not [path.name for path in run.folder.glob("*s.json") if path.name != "failures.json"]
