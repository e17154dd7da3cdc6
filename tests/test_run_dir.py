"""A run's folder and its files: nothing is lost, whatever their names and whenever the process is killed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aks import UserError, run_dir
from aks.jsonio import write_json
from aks.labels import Question, VideoJob
from aks.run_dir import RunDir, VideoScores


@pytest.fixture
def run(tmp_path) -> RunDir:
    run = RunDir(tmp_path / "out")
    run.open_or_create({})
    return run


def part_of(video: str, **more) -> VideoScores:
    return VideoScores(video, 25.0, 25, None, "pyav", [0], [0.0], {"q": [0.5]}, **more)


def test_the_missing_frames_of_a_finished_video_are_recorded_before_it_is_finished(run, monkeypatch):
    def killed(path, *rest, **options):
        if path == run.part_path("v.mp4"):
            raise KeyboardInterrupt
        write_json(path, *rest, **options)

    job = VideoJob("v.mp4", Path("v.mp4"), (Question(0, "q", "v.mp4", "?"),))
    monkeypatch.setattr(run_dir, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        run.write_part(part_of("v.mp4", lost_frames=[25], lost_reason="damaged"))
    assert not run.has_part("v.mp4")
    (record,) = run.collect_failures([job])
    assert record["lost_frames"] == [25]
    monkeypatch.undo()
    run.write_part(part_of("v.mp4"))
    assert run.collect_failures([job]) == []


def test_an_earlier_failure_is_forgotten_only_when_the_video_is_finished(run, monkeypatch):
    run.record_failure("v.mp4", "no video", ["q"])
    monkeypatch.setattr(run_dir, "write_json", lambda *_, **__: (_ for _ in ()).throw(UserError("disk full")))
    with pytest.raises(UserError, match="disk full"):
        run.write_part(part_of("v.mp4"))
    assert run.failure_path("v.mp4").exists()


def test_every_video_name_gets_a_part_of_its_own_that_stays(run):
    names = ["a/b.mp4", "a_b.mp4", "a%2Fb.mp4", "x" * 400 + ".mp4", "x" * 401 + ".mp4", "日本語.mp4"]
    names += ["../up.mp4", ".a.tmp.mp4", "好" * 60 + ".mp4", "a" * 190 + ".mp4"]
    for name in names:
        run.write_part(part_of(name))
        os.utime(run.part_path(name), (0, 0))
    assert len(list(run.parts.iterdir())) == len(names)
    run.open_or_create({})  # removes the temporary files of killed processes
    assert [run.read_part(name) for name in names] == list(map(part_of, names))


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_a_number_that_json_does_not_know_is_one_line(tmp_path, number):
    with pytest.raises(UserError, match="not written"):
        write_json(tmp_path / "x.json", [number])
    assert not list(tmp_path.iterdir())
