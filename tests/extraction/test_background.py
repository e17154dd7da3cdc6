"""The background: stored once, checked against the scorer, and used by keyframes."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import sys

import numpy as np
import pytest
import torch
from conftest import check_mistake
from extraction_setup import ToyScorer

import aks
from aks.commands import background, keyframes
from aks.errors import UserError
from aks.extraction.background import Background, default_folder, store_background
from aks.keyframe_files import Output
from aks.match import STANDS_OUT, compare_scores


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AKS_CACHE", str(tmp_path / "cache/features"))


class OtherScorer(ToyScorer):
    dtype = torch.float16


@pytest.fixture
def videos(clips):
    return [clips / "one.mp4", clips / "two.mp4", clips / "sub/three.mkv"]


def test_a_match_is_judged_by_the_frames_of_the_other_videos(videos, tmp_path):
    scorer, questions = ToyScorer(), ["?", "Where is it?"]
    assert Background.open(scorer) is None
    store, summary = store_background(videos, scorer, fps=25)
    assert (summary.scored, summary.failures) == (3, [])
    assert (
        store.folder == default_folder(scorer)
        and store.folder.parent == tmp_path / "cache/features-background"
    )
    counts = [125, 72, 48]
    assert [store.count_frames(str(video)) for video in videos] == counts

    searched = videos[1]
    plain = aks.keyframes(searched, questions, 2, scorer=scorer)
    found = aks.keyframes(searched, questions, 2, scorer=scorer, background=True)
    assert [dataclasses.replace(each, match=None).keyframes for each in found] == [e.keyframes for e in plain]
    assert [each.match for each in plain] == [None, None]
    # The scores of the other two videos, as scoring these gives them.
    others = [aks.keyframes(video, questions, 2, scorer=scorer, fps=25) for video in (videos[0], videos[2])]
    for index, each in enumerate(found):
        scores = np.concatenate([rows[index].curve.scores for rows in others])
        assert each.match == compare_scores(each.curve.scores, scores)
        assert each.match.background_frames == 173


def test_a_video_that_is_searched_by_a_link_is_not_judged_by_itself(videos, tmp_path):
    (tmp_path / "link").symlink_to(videos[0].parent)
    store_background([tmp_path / "link/one.mp4", videos[1]], ToyScorer(), tmp_path / "mine", fps=25)
    others = Background.open(ToyScorer(), tmp_path / "mine", [videos[1].parent / "sub/../two.mp4"])
    assert [name.rpartition("/")[2] for name in others.names] == ["one.mp4"]
    with pytest.raises(UserError, match="72 frames of other videos than those searched"):
        Background.open(ToyScorer(), tmp_path / "mine", [videos[0]])


def test_fast_is_judged_by_all_candidates_as_the_best_of_some_is_no_random_draw(videos):
    store_background(videos[1:], ToyScorer(), fps=25)
    settings = {"scorer": ToyScorer(), "fps": 25, "background": True}
    (full,) = aks.keyframes(videos[0], ["?"], 2, **settings)
    (fast,) = aks.keyframes(videos[0], ["?"], 2, fast=True, **settings)
    assert len(fast.curve.scores) < len(full.curve.scores) == 125
    all_scores = np.full(125, fast.curve.scores.max())
    others = [aks.keyframes(video, ["?"], 2, **settings)[0].curve.scores for video in videos[1:]]
    assert fast.match == compare_scores(all_scores, np.concatenate(others))


def test_a_user_without_a_home_names_a_folder(videos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AKS_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(UserError, match="no place for the background; name one with --output_file"):
        store_background(videos, ToyScorer())
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_no_text_costs_its_video_alone(videos, tmp_path):
    odd = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    odd.symlink_to(videos[0])
    store, summary = store_background([odd, videos[1]], ToyScorer(), tmp_path / "mine", fps=25)
    assert [failure["video"] for failure in summary.failures] == [str(odd)]
    assert store.stored_videos() == [str(videos[1])]


def test_it_grows_and_another_scorer_s_or_rate_s_is_refused(videos, tmp_path):
    folder, scorer = tmp_path / "mine", ToyScorer()
    store_background(videos[:1], scorer, folder, fps=25)
    store, summary = store_background(videos, scorer, folder, fps=25)
    assert (summary.scored, summary.reused) == (2, 1) and len(store.stored_videos()) == 3
    assert len(Background.open(scorer, folder).names) == 3
    with pytest.raises(UserError, match="candidate_fps 25 there, 5 now"):
        store_background(videos, scorer, folder, fps=5)
    with pytest.raises(UserError, match=r"features of another model \(dtype 'float32' stored, 'float16' now"):
        aks.keyframes(videos[0], "?", scorer=OtherScorer(), background=folder)
    with pytest.raises(UserError, match="no background; make it with aks background"):
        aks.keyframes(videos[0], "?", scorer=scorer, background=tmp_path / "absent")
    store.part_path(str(videos[0])).write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"one\.mp4.*damaged or incomplete"):
        Background.open(scorer, folder)


def test_too_small_a_background_is_refused_where_it_is_named_and_else_left_out(videos, tmp_path, caplog):
    scorer = ToyScorer()
    for folder in (tmp_path / "mine", None):
        store_background(videos[:2], scorer, folder, fps=25)
    with pytest.raises(UserError, match="72 frames of other videos than those searched, 100 are needed"):
        aks.keyframes(videos[0], "?", scorer=scorer, background=tmp_path / "mine")
    (found,) = aks.keyframes(videos[0], ["?"], 2, scorer=scorer, background=True)
    assert found.match is None and "the background is not used: " in caplog.text
    (default_folder(scorer) / "run.json").write_text("damaged")  # nor does a damaged one cost the search
    assert Background.open(scorer) is None
    assert len(re.findall("the background is not used: .*run.json: not JSON", caplog.text)) == 1


def test_the_command_names_a_video_that_cannot_be_read(tmp_path, run_script):
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    done = run_script("-m", "aks", "background", bad, "--device", "cpu", "--workers", "0")
    assert done.returncode == 1, done.stderr
    failed, made = done.stdout.splitlines()
    assert failed.startswith(f"failed: {bad}: ") and made.endswith(": 0 frames of 0 videos")
    assert made.startswith(str(tmp_path / "cache/features-background/conse-"))
    done = run_script("-m", "aks", "background", tmp_path / "bat.mp4")
    check_mistake(done, f"{tmp_path / 'bat.mp4'}: file not found; did you mean bad.mp4?")


def test_the_commands_make_it_and_tell_what_stands_out(videos, clips, tmp_path, monkeypatch, capsys):
    scorer, question = ToyScorer(), "Where is the cat?"
    run_flags = ["--workers", "0", "--quiet", "--device", "cpu"]

    def run(module, *arguments):
        monkeypatch.setattr(module, "load_scorer_from_args", lambda args, **_: scorer)
        monkeypatch.setattr(sys, "argv", ["aks", *map(str, arguments), *run_flags])
        assert module.main() == 0
        return capsys.readouterr().out.splitlines()

    (made,) = run(background, clips / "sub", videos[0], "--fps", "12")
    assert made.endswith(": 110 frames of 2 videos")

    # Two copies of a video that is not in the background: twice the frames, twice the expected number.
    films = tmp_path / "films"
    films.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (films / name).symlink_to(videos[1])
    (found,) = aks.keyframes(videos[1], [question], 2, scorer=scorer, background=True)
    for path, times in ((videos[1], 1), (films, 2)):
        lines = run(keyframes, path, question, "--budget", "2")
        expected = times * found.match.expected
        words = "the best stands out" if expected <= STANDS_OUT else "nothing stands out for this question"
        line = f"{words}: as many frames of other footage hold {expected:.2g} that score as high"
        assert len(lines) == 4 and lines[-1] == line

    scorer, folder = OtherScorer(), made.partition(": ")[0]
    with pytest.raises(UserError, match=rf"{folder}: features of another model .*'float16' now"):
        run(keyframes, videos[1], question, "--background", folder)


def test_json_and_csv_have_the_match_only_where_there_is_one(tmp_path):
    video = tmp_path / "film.mp4"
    output = Output(video, ["?"], None, None, None)
    moments = [[aks.Keyframe(25, 1.0, 0.5, video)]]
    match = compare_scores(np.array([3.0]), np.arange(100.0))
    fields = {"expected": 0.97, "background_frames": 100, "stands_out": False}
    assert json.loads(output.text("json", moments, {}, [match]))["questions"][0]["match"] == fields
    (row,) = csv.DictReader(output.text("csv", moments, {}, [match]).splitlines())
    assert {name: row[name] for name in fields} == {name: str(value) for name, value in fields.items()}
    assert "match" not in output.text("json", moments, {}) and "expected" not in output.text(
        "csv", moments, {}
    )
