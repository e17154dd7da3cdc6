"""Step 1 on a Ray cluster of this machine: the same files as from one process, whatever dies."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest
import torch
from conftest import ROOT
from extraction_setup import ToyScorer, lock_holders, of_version_1, results, wait_until, write_labels
from media import write_video

from aks import UserError, cli
from aks.extraction.api import assemble, extract
from aks.labels import load_labels
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


def on_ray(labels, run, plan, make_scorer=ToyScorer, **decode):
    """What the command does with ``--engine ray``."""
    work = partial(extract, labels, run=run, **{"workers": 1, **decode})
    summary = ray_runner.run(labels, run, make_scorer, work, plan)
    assemble(summary, labels, run, allow_missing=False)
    return summary


def test_fifty_videos_and_a_killed_actor_make_what_one_process_makes(cluster, many, names, whole, tmp_path):
    labels, run = write_labels(many, names), RunDir(tmp_path / "out")

    def kill():
        wait_until(lambda: len(list(run.parts.glob("[!.]*.json"))) >= 4)
        os.kill(lock_holders(run)[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    summary = on_ray(labels, run, TWO, partial(ToyScorer, 0.05))
    killer.join()
    assert (summary.videos, summary.scored, summary.failures, summary.complete) == (50, 50, [], True)
    assert results(run) == whole
    assert not list(run.parts.glob("*.lock"))


def test_videos_finished_before_are_left_alone_and_failures_are_listed(cluster, tmp_path, caplog):
    for name in ("one.mp4", "two.mp4", "three.mp4"):
        write_video(tmp_path / name, frames=30, fps=10)
    (tmp_path / "bad.mp4").write_text("no video")
    labels = write_labels(tmp_path, ["one.mp4", "two.mp4", "three.mp4", "bad.mp4"])
    run = RunDir(tmp_path / "out")
    first = write_labels(tmp_path, ["one.mp4", "two.mp4", "three.mp4", "bad.mp4"])
    extract(first, ToyScorer(), run, shard=(1, 2))
    kept = {path: path.stat().st_mtime_ns for path in run.parts.glob("[!.]*.json")}
    assert kept
    summary = on_ray(labels, run, ONE)
    assert summary.scored + len(kept) == 3 and [f["video"] for f in summary.failures] == ["bad.mp4"]
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())
    assert f"failed: {tmp_path / 'bad.mp4'}: " in caplog.text


class Trouble(ToyScorer):
    """Ends its process, model and all, at black frames; has a fault at white ones."""

    def encode_frames(self, inputs):
        if not inputs.any():
            os.kill(os.getpid(), signal.SIGKILL)
        if (inputs > 250).all():
            raise MemoryError("out of something")
        return super().encode_frames(inputs)


def test_videos_at_which_actors_die_are_listed_and_the_others_scored(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_runner, "MAX_ATTEMPTS", 2)  # each costs seconds
    names = ["one.mp4", "two.mp4", "three.mp4"]
    for name in names:
        write_video(tmp_path / name, frames=100, fps=10)
    for name, level in (("black.mp4", 0), ("white.mp4", 255)):

        def plain(number, width, height, level=level):
            return np.full((height, width, 3), level, np.uint8)

        write_video(tmp_path / name, frames=100, fps=10, draw=plain)
    labels, run = write_labels(tmp_path, [*names, "black.mp4", "white.mp4"]), RunDir(tmp_path / "out")
    summary = on_ray(labels, run, ONE, Trouble, workers=4, batch_frames=2)
    reasons = {failure["video"]: failure["reason"] for failure in summary.failures}
    assert (summary.scored, sorted(reasons)) == (3, ["black.mp4", "white.mp4"])
    assert reasons["black.mp4"].startswith("2 Ray actors died with it in work (")
    assert reasons["white.mp4"] == "2 Ray actors died with it in work (out of something)"


class Other(ToyScorer):
    """Other weights."""

    checkpoint = "other"


def test_a_finished_folder_of_other_weights_is_refused(cluster, tmp_path):
    for name in ("one.mp4", "two.mp4"):
        write_video(tmp_path / name, frames=30, fps=10)
    labels, run = write_labels(tmp_path, ["one.mp4", "two.mp4"]), RunDir(tmp_path / "out")
    assert on_ray(labels, run, ONE).complete
    of_version_1(run.folder / "run.json")
    of_version_1(run.part_path("two.mp4"), decoder="decord")  # which is read again
    summary = on_ray(labels, run, ONE)
    assert (summary.reused, summary.scored, summary.complete) == (1, 1, True)
    with pytest.raises(UserError, match=re.escape(str(run.folder))):
        on_ray(labels, run, ONE, Other)


def die():
    os._exit(1)


def test_a_model_that_kills_its_actors_ends_the_run(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_runner, "MAX_STARTUP_CRASHES", 2)
    write_video(tmp_path / "one.mp4", frames=30, fps=10)
    labels = write_labels(tmp_path, ["one.mp4"])
    with pytest.raises(UserError, match="2 actors in a row died before their first video"):
        on_ray(labels, RunDir(tmp_path / "out"), ONE, die)


def test_where_the_cluster_has_room_for_fewer_actors_these_do_all(cluster, tmp_path):
    names = ["one.mp4", "two.mp4", "three.mp4"]
    for name in names:
        write_video(tmp_path / name, frames=30, fps=10)
    labels, run = write_labels(tmp_path, names), RunDir(tmp_path / "out")
    assert on_ray(labels, run, ray_runner.ActorPlan(2, cpus=3, gpus=0)).scored == 3  # of four cores


def test_cores_are_given_so_that_all_actors_fit(monkeypatch):
    def nodes():
        return [{"Alive": True, "Resources": {"CPU": cores}} for cores in (12, 4, 0)]

    monkeypatch.setattr(ray, "nodes", nodes)
    assert ray_runner.plan_actors("cpu", None) == ray_runner.ActorPlan(2, 6, 0)
    assert ray_runner.plan_actors("cpu", 3) == ray_runner.ActorPlan(3, 4, 0)
    assert ray_runner.plan_actors("cpu", 16) == ray_runner.ActorPlan(16, 1, 0)


def test_the_cluster_is_divided_by_gpus_or_cores(cluster):
    assert ray_runner.plan_actors("cpu", None) == ray_runner.ActorPlan(1, 4, 0)
    assert ray_runner.plan_actors("cpu", 3) == ray_runner.ActorPlan(3, 1, 0)
    with pytest.raises(UserError, match="--ray_actors 5: the cluster has fewer cores"):
        ray_runner.plan_actors("cpu", 5)
    with pytest.raises(UserError, match="the cluster has no GPU; use --device cpu"):
        ray_runner.plan_actors("cuda", None)


def test_the_commands_join_a_cluster_or_start_one(cluster, tmp_path):
    for name in ("one.mp4", "two.mp4"):
        write_video(tmp_path / name, frames=30, fps=10)
    write_labels(tmp_path, ["one.mp4", "two.mp4"])

    def command(script, out, *more):
        arguments = ["--dataset_name", "custom", "--label_file", "labels.json", "--output_file", out]
        arguments += ["--extract_feature_model", "conse", "--device", "cpu", "--engine", "ray", *more]
        done = subprocess.run(
            [sys.executable, ROOT / script, *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "2 videos: 2 scored now" in command("feature_extract.py", "on ray")
    alone = RunDir(tmp_path / "alone")
    extract(load_labels("custom", label_file=tmp_path / "labels.json"), load_scorer("conse"), alone)
    assert results(RunDir(tmp_path / "on ray/custom/conse")) == results(alone)
    here = ray.get_runtime_context().gcs_address
    stored = command("feature_extract_store.py", "features", "--ray_address", here, "--ray_actors", "1")
    assert "2 videos: 2 stored now" in stored


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--engine", "spark"], "--engine: invalid choice: 'spark' (choose from"),
        (["--ray_actors", "2"], "--ray_address and --ray_actors go with --engine ray"),
        (["--engine", "ray", "--shard", "1/2"], "--engine ray shares the videos out by itself"),
        (["--engine", "ray", "--ray_actors", "0"], "--ray_actors: 0: must be a whole number, 1 or more"),
    ],
)
def test_a_wrong_flag_is_one_line(run_script, arguments, words):
    done = run_script("feature_extract.py", *arguments)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


def test_a_full_gpu_ends_the_run_and_is_no_fault_of_a_video(tmp_path):
    labels = write_labels(tmp_path, ["one.mp4"])
    dispatcher = ray_runner._Dispatcher(labels.jobs, RunDir(tmp_path / "out"), (), ONE)
    error = ray.exceptions.RayTaskError("extract", "", torch.cuda.OutOfMemoryError("9 GiB"))
    with pytest.raises(torch.cuda.OutOfMemoryError):  # which the command tells in one line
        dispatcher._after_crash(["one.mp4"], ["one.mp4"], error)


@pytest.mark.parametrize(("flags", "workers"), [([], 2), (["--workers", "5"], 5)])
def test_an_actor_decodes_with_as_many_workers_as_asked_for(monkeypatch, flags, workers):
    monkeypatch.setattr(ray_runner, "connect", lambda _: None)
    monkeypatch.setattr(ray_runner, "plan_actors", lambda *_: ray_runner.ActorPlan(2, cpus=3, gpus=0))
    monkeypatch.setattr(ray_runner, "run", lambda labels, run, make_scorer, work, plan: work.keywords)
    args = cli.build_parser(None, "out").parse_args(["--engine", "ray", "--device", "cpu", *flags])
    assert cli.run_on_ray(args, None, None, extract)["workers"] == workers
