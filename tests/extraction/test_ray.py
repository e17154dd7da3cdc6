"""Step 1 on a Ray cluster of this machine: the same files as from one process, also when actors die."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from extraction_setup import (
    ToyScorer,
    finished_parts,
    flags_for,
    load_custom,
    lock_holders,
    of_version_1,
    results,
    wait_until,
    write_labels,
)
from media import write_video

from aks import UserError, cli, locks
from aks.extraction.api import extract, finish
from aks.locks import VideoLocks
from aks.run_dir import RunDir
from aks.scorers.base import load_scorer

ray = pytest.importorskip("ray")
from aks.extraction import ray_runner  # noqa: E402


@pytest.fixture(scope="module")
def cluster():
    """A cluster of this machine with four cores, as Ray counts them."""
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


ONE, TWO = (ray_runner.ActorPlan(actors, cpus=1, gpus=0) for actors in (1, 2))  # each actor imports PyTorch


def extract_on_ray(labels, run, plan, make_scorer=ToyScorer, **decode):
    """Do what the command does with ``--engine ray``."""
    work = partial(extract, labels, run=run, **{"workers": 1, **decode})
    return finish(labels, run, labels.jobs, ray_runner.run(labels, run, make_scorer, work, plan))


@pytest.fixture
def labels(tmp_path):
    """Three videos of three candidates each."""
    for name in ("one.mp4", "two.mp4", "three.mp4"):
        write_video(tmp_path / name, frames=30, fps=10)
    return write_labels(tmp_path, ["one.mp4", "two.mp4", "three.mp4"])


def test_actors_of_which_one_is_killed_give_the_files_of_one_process(cluster, many, names, whole, tmp_path):
    labels, run = write_labels(many, names), RunDir(tmp_path / "out")

    def kill():
        wait_until(lambda: len(finished_parts(run)) >= 4)
        os.kill(lock_holders(run)[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    summary = extract_on_ray(labels, run, TWO, partial(ToyScorer, 0.05))
    killer.join()
    assert (summary.videos, summary.scored, summary.failures, summary.complete) == (50, 50, [], True)
    assert results(run) == whole
    assert not list(run.parts.glob("*.lock"))


def test_finished_videos_are_kept_and_failures_are_listed(cluster, labels, tmp_path, caplog, run):
    (tmp_path / "bad.mp4").write_text("no video")
    labels = write_labels(tmp_path, ["one.mp4", "two.mp4", "three.mp4", "bad.mp4"])
    extract(labels, ToyScorer(), run, shard=(1, 2))
    mtimes = {path: path.stat().st_mtime_ns for path in finished_parts(run)}
    assert mtimes
    summary = extract_on_ray(labels, run, ONE)
    assert summary.scored + len(mtimes) == 3 and [f["video"] for f in summary.failures] == ["bad.mp4"]
    assert all(path.stat().st_mtime_ns == mtime for path, mtime in mtimes.items())
    assert f"failed: {tmp_path / 'bad.mp4'}: " in caplog.text


class FaultyScorer(ToyScorer):
    """Kills its process at black frames and raises an error at white ones."""

    def encode_frames(self, inputs):
        if not inputs.any():
            os.kill(os.getpid(), signal.SIGKILL)
        if (inputs > 250).all():
            raise MemoryError("out of something")
        return super().encode_frames(inputs)


@pytest.mark.long  # test_faults.py has the same of decoding processes
def test_videos_at_which_actors_die_are_listed_and_the_others_are_scored(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_runner, "MAX_ATTEMPTS", 2)  # Each takes seconds.
    names = ["one.mp4", "two.mp4", "three.mp4"]
    for name in names:
        write_video(tmp_path / name, frames=100, fps=10)
    for name, level in (("black.mp4", 0), ("white.mp4", 255)):

        def plain(number, width, height, level=level):
            return np.full((height, width, 3), level, np.uint8)

        write_video(tmp_path / name, frames=100, fps=10, draw=plain)
    labels, run = write_labels(tmp_path, [*names, "black.mp4", "white.mp4"]), RunDir(tmp_path / "out")
    summary = extract_on_ray(labels, run, ONE, FaultyScorer, workers=4, batch_frames=2)
    reasons = {failure["video"]: failure["reason"] for failure in summary.failures}
    assert (summary.scored, sorted(reasons)) == (3, ["black.mp4", "white.mp4"])
    assert reasons["black.mp4"].startswith("2 Ray actors died with it in work (")
    assert reasons["white.mp4"] == "2 Ray actors died with it in work (out of something)"


class OtherScorer(ToyScorer):
    """A scorer with other weights."""

    checkpoint = "other"


@pytest.mark.long  # the folder refuses it, Ray or not: test_extraction.py
def test_the_finished_run_of_another_scorer_is_refused(cluster, labels, run):
    assert extract_on_ray(labels, run, ONE).complete
    of_version_1(run.folder / "run.json")
    of_version_1(run.part_path("two.mp4"), decoder="decord")  # Such a part is scored again.
    summary = extract_on_ray(labels, run, ONE)
    assert (summary.reused, summary.scored, summary.complete) == (2, 1, True)
    with pytest.raises(UserError, match=re.escape(str(run.folder))):
        extract_on_ray(labels, run, ONE, OtherScorer)


@pytest.mark.long  # a rare end, which takes two starts
def test_a_scorer_that_kills_its_actors_ends_the_run(cluster, labels, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_runner, "MAX_STARTUP_CRASHES", 2)
    with pytest.raises(UserError, match="2 actors in a row died before their first video"):
        extract_on_ray(labels, RunDir(tmp_path / "out"), ONE, partial(os._exit, 1))


@pytest.mark.long  # Ray's own scheduling does it
def test_fewer_actors_than_planned_score_all_videos(cluster, labels, tmp_path):
    plan = ray_runner.ActorPlan(2, cpus=3, gpus=0)  # The cluster has four cores.
    assert extract_on_ray(labels, RunDir(tmp_path / "out"), plan).scored == 3


@pytest.mark.long  # test_scale.py has it without Ray
def test_a_video_that_another_run_lets_go_of_is_scored_at_the_end(cluster, labels, tmp_path, monkeypatch):
    run = RunDir(tmp_path / "out")
    run.parts.mkdir(parents=True)
    other = VideoLocks(run)
    assert other.acquire("two.mp4")
    monkeypatch.setattr(locks.logger, "warning", lambda *_: other.release("two.mp4"))  # as it waits
    summary = extract_on_ray(labels, run, ONE)
    assert (summary.scored, summary.unfinished, summary.complete) == (3, 0, True)


@pytest.mark.parametrize(
    ("cores", "actors", "expected"),
    [
        ([4], None, (1, 4, 0)),
        ([4], 3, (3, 1, 0)),
        ([12, 4, 0], None, (2, 6, 0)),
        ([12, 4, 0], 3, (3, 4, 0)),
        ([12, 4, 0], 16, (16, 1, 0)),
    ],
)
def test_all_planned_actors_fit_the_cores(monkeypatch, cores, actors, expected):
    nodes = [{"Alive": True, "Resources": {"CPU": count}} for count in cores]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert ray_runner.plan_actors("cpu", actors) == ray_runner.ActorPlan(*expected)


def test_more_actors_than_the_cluster_s_cores_or_gpus_are_refused(cluster):
    with pytest.raises(UserError, match="--ray_actors 5: the cluster has fewer cores"):
        ray_runner.plan_actors("cpu", 5)
    with pytest.raises(UserError, match="the cluster has no GPU; use --device cpu"):
        ray_runner.plan_actors("cuda", None)


def run_command(folder, script, out, *more):
    command = [sys.executable, ROOT / script, *flags_for(Path(), out), "--engine", "ray", *more]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_joins_a_cluster(cluster, labels, tmp_path):
    flags = ["--ray_address", ray.get_runtime_context().gcs_address, "--ray_actors", "1"]
    assert "3 videos: 3 scored now" in run_command(tmp_path, "feature_extract.py", "on ray", *flags)
    alone = RunDir(tmp_path / "alone")
    extract(load_custom(tmp_path), load_scorer("conse"), alone)
    assert results(RunDir(tmp_path / "on ray/custom/conse")) == results(alone)


@pytest.mark.long  # Ray starts it
def test_the_command_starts_a_cluster_where_none_is(labels, tmp_path):
    assert "3 videos: 3 stored now" in run_command(tmp_path, "feature_extract_store.py", "features")


def test_calls_begin_with_the_largest_files_and_get_shorter(tmp_path):
    names = [f"{number}.mp4" for number in range(40)]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(bytes(1000 + number))
    labels = write_labels(tmp_path, [*names, "absent.mp4"])
    calls = ray_runner._Dispatcher(labels.jobs, RunDir(tmp_path / "out"), (), TWO).split(labels.jobs)
    assert [name for call in calls for name in call] == [*names[::-1], "absent.mp4"]
    lengths = [len(call) for call in calls]
    assert lengths == sorted(lengths, reverse=True)
    assert (lengths[0], lengths[-1]) == (5, 1)  # the first is a quarter of an actor's share


def test_full_gpu_memory_ends_the_run_and_is_no_video_s_failure(tmp_path):
    labels = write_labels(tmp_path, ["one.mp4"])
    dispatcher = ray_runner._Dispatcher(labels.jobs, RunDir(tmp_path / "out"), (), ONE)
    error = ray.exceptions.RayTaskError("extract", "", torch.cuda.OutOfMemoryError("9 GiB"))
    with pytest.raises(torch.cuda.OutOfMemoryError):  # The command reports it in one line.
        dispatcher._after_crash(["one.mp4"], ["one.mp4"], error)


@pytest.mark.parametrize(("flags", "workers"), [([], 2), (["--workers", "5"], 5)])
def test_the_flag_or_an_actor_s_cores_give_its_number_of_workers(monkeypatch, flags, workers):
    monkeypatch.setattr(ray_runner, "connect", lambda _: None)
    monkeypatch.setattr(ray_runner, "plan_actors", lambda *_: ray_runner.ActorPlan(2, cpus=3, gpus=0))
    monkeypatch.setattr(ray_runner, "run", lambda labels, run, make_scorer, work, plan: work.keywords)
    args = cli.build_parser(None, "out").parse_args(["--engine", "ray", "--device", "cpu", *flags])
    assert cli.run_on_ray(args, None, None, extract)["workers"] == workers
