"""Step 1: the files it writes, resuming, failures, and the mistakes it reports."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import check_mistake
from extraction_setup import ToyScorer, flags_for, load_custom, results, write_labels
from media import write_video

from aks import UserError, VideoError, run_dir
from aks.extraction.api import extract
from aks.extraction.keyframes import find_keyframes
from aks.jsonio import write_json
from aks.locks import VideoLocks
from aks.run_dir import RunDir
from aks.score_lists import read_scores
from aks.scorers.base import load_scorer
from aks.video.reader import Video

ENTRIES = [
    {"id": "a", "video": "one.mp4", "question": "Where is the cat?"},
    {"id": "b", "video": "two.mp4", "question": "How many cups of coffee are there?"},
    {"id": "c", "video": "one.mp4", "question": "Which car is red?"},
    {"id": "d", "video": "sub/three.mkv", "question": "Who plays the violin?"},
]


@pytest.fixture(scope="module")
def conse():
    return load_scorer("conse")


@pytest.fixture
def data(clips, tmp_path) -> Path:
    """A custom data set: three videos and four questions."""
    folder = tmp_path / "data"
    shutil.copytree(clips, folder)
    (folder / "labels.json").write_text(json.dumps(ENTRIES))
    return folder


def test_the_score_files_have_the_order_of_the_labels_and_the_paper_s_format(data, run, conse):
    summary = extract(load_custom(data), conse, run)
    assert (summary.videos, summary.scored, summary.failures, summary.complete) == (3, 3, [], True)
    scores, frames = (json.loads((run.folder / f"{name}.json").read_text()) for name in ("scores", "frames"))
    assert frames == [[0, 25, 50, 75, 100], [0, 24, 48], [0, 25, 50, 75, 100], [0, 12, 24, 36]]
    assert [len(row) for row in scores] == [5, 3, 5, 4]
    assert all(type(x) is float for row in scores for x in row)
    assert all(type(x) is int for row in frames for x in row)
    assert json.loads((run.folder / "times.json").read_text())[3] == [0.0, 1.0, 2.0, 3.0]
    # The paper's code writes both files with json.dump: on one line.
    assert (run.folder / "scores.json").read_text() == json.dumps(scores)
    read_scores(run.folder / "scores.json", run.folder / "frames.json")


def test_batches_of_frames_and_questions_score_like_single_ones(data, run, conse):
    labels = load_custom(data)
    extract(labels, conse, run, batch_frames=4)
    scores, frames = read_scores(run.folder / "scores.json", run.folder / "frames.json")
    for question in labels.questions:
        with Video(labels.video_path(question.video)) as video:
            alone = [
                conse.score(
                    conse.encode_frames(conse.preprocess(f.pixels[0])[None]),
                    [conse.encode_question(question)],
                )
                for f in video.read(frames[question.index], chunk_frames=1)
            ]
        np.testing.assert_allclose(scores[question.index], np.concatenate(alone, axis=1)[0], atol=1e-5)


def test_an_interrupted_run_scores_only_what_is_missing(data, tmp_path):
    labels, run = load_custom(data), RunDir(tmp_path / "out")
    extract(labels, ToyScorer(), run)
    expected = results(run)
    mtimes = {path: path.stat().st_mtime_ns for path in run.parts.iterdir()}
    run.part_path("two.mp4").unlink()
    (run.folder / "scores.json").unlink()
    summary = extract(labels, ToyScorer(), run)
    assert (summary.reused, summary.scored) == (2, 1)
    assert results(run) == expected
    changed = [path.name for path, mtime in mtimes.items() if path.stat().st_mtime_ns != mtime]
    assert changed == ["two.mp4.json"]


def test_a_finished_run_needs_no_videos(data, tmp_path):
    labels, run = load_custom(data), RunDir(tmp_path / "out")
    extract(labels, ToyScorer(), run)
    expected = results(run)
    (run.folder / "scores.json").unlink()
    summary = extract(replace(labels, video_root=tmp_path / "absent"), ToyScorer(), run)
    assert (summary.reused, summary.scored, summary.complete) == (3, 0, True)
    assert results(run) == expected


def test_bad_videos_are_listed_and_the_others_are_scored(data, tmp_path, run_script):
    entries = [*ENTRIES, {"id": "e", "video": "absent.mp4", "question": "Who?"}]
    (data / "labels.json").write_text(json.dumps(entries))
    original = (data / "two.mp4").read_bytes()
    (data / "two.mp4").write_bytes(b"no video")
    command = ["feature_extract.py", *flags_for(data, tmp_path)]
    done = run_script(*command)
    assert done.returncode == 1
    assert "4 videos: 2 scored now, 0 finished before, 2 failed" in done.stdout
    assert "absent.mp4 (1 questions): file not found" in done.stdout
    folder = tmp_path / "custom/conse"
    failures = json.loads((folder / "failures.json").read_text())
    assert [(f["video"], f["questions"]) for f in failures] == [("two.mp4", ["b"]), ("absent.mp4", ["e"])]
    assert "Invalid data" in failures[0]["reason"]
    assert not (folder / "scores.json").exists()

    (data / "two.mp4").write_bytes(original)  # repaired: only this video is tried again
    done = run_script(*command, "--allow_missing")
    assert done.returncode == 1
    assert "1 scored now, 2 finished before, 1 failed" in done.stdout
    assert "1 questions of failed videos have empty lists" in done.stdout
    scores, frames = read_scores(folder / "scores.json", folder / "frames.json")
    assert [len(row) for row in scores] == [len(row) for row in frames] == [5, 3, 5, 4, 0]
    done = run_script(
        *("frame_select.py", "--dataset_name", "custom", "--extract_feature_model", "conse"),
        *("--score_path", folder / "scores.json", "--max_num_frames", "2", "--output_file", tmp_path / "sel"),
    )
    assert done.returncode == 0, done.stderr
    assert "1 questions have no candidates" in done.stdout


def test_lists_of_an_earlier_run_go_scores_first(data, tmp_path, monkeypatch):
    """A run that is killed on the way leaves no scores without their frames."""
    (data / "two.mp4").write_text("no video")
    labels, run = load_custom(data), RunDir(tmp_path / "out")
    extract(labels, ToyScorer(), run, allow_missing=True)
    removed = []
    unlink = Path.unlink

    def killed(path, missing_ok=False):
        if path.parent == run.folder and path.name in ("scores.json", "frames.json", "times.json"):
            removed.append(path.name)
            unlink(path)
            raise KeyboardInterrupt
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        extract(labels, ToyScorer(), run)
    assert removed == ["scores.json"]


def test_runs_with_other_settings_do_not_mix(data, tmp_path):
    labels, run = load_custom(data), RunDir(tmp_path / "out")
    extract(labels, ToyScorer(), run)
    for attribute, value, words in [
        ("checkpoint", "other", "made with other settings"),
        ("dtype", torch.float16, "dtype 'float32' there, 'float16' now"),
        ("name", "other", "made with other settings"),
    ]:
        scorer = ToyScorer()
        setattr(scorer, attribute, value)
        with pytest.raises(UserError, match=words):
            extract(labels, scorer, run)
    with pytest.raises(UserError, match="dataset 'custom' there, 'videomme' now"):
        extract(replace(labels, dataset="videomme"), ToyScorer(), run)
    (data / "labels.json").write_text(json.dumps(ENTRIES[:2]))
    with pytest.raises(UserError, match="label_sha256"):
        extract(load_custom(data), ToyScorer(), run)


def change_part(edit):
    """A function that returns a part's text after an edit of its content."""

    def change(text: str) -> str:
        part = json.loads(text)
        edit(part)
        return json.dumps(part)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: '{"video": "one.mp4"', ""),
        (lambda text: '{"video": "one.mp4"}', ""),
        (lambda text: "[]", ""),
        (lambda text: "", ""),
        (lambda text: text.replace("25,", "NaN,", 1), ""),
        (change_part(lambda part: part.update(video="two.mp4")), ": damaged part file"),
        (change_part(lambda part: part["frames"].append(125)), ": damaged part file"),
        (change_part(lambda part: part["times_s"].pop()), ": damaged part file"),
        (change_part(lambda part: part["scores"]["c"].pop()), ": damaged part file"),
        (change_part(lambda part: part["scores"].pop("c")), ": has no scores for question c"),
    ],
)
def test_a_damaged_part_is_named(data, run, change, words):
    extract(load_custom(data), ToyScorer(), run)
    path = run.part_path("one.mp4")
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=rf"one\.mp4\.json{words}"):
        extract(load_custom(data), ToyScorer(), run)


def test_parts_of_another_video_of_the_same_name_are_refused(data, run):
    extract(load_custom(data), ToyScorer(), run)
    shutil.copy(data / "one.mp4", data / "two.mp4")
    with pytest.raises(UserError, match=r"two\.mp4\.json: made from another two\.mp4"):
        extract(load_custom(data), ToyScorer(), run)
    (data / "two.mp4").unlink()  # no other video: the finished part counts
    assert extract(load_custom(data), ToyScorer(), run).complete


def test_a_damaged_run_record_is_reported_with_its_remedy(data, run):
    extract(load_custom(data), ToyScorer(), run)
    (run.folder / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json: damaged; remove"):
        extract(load_custom(data), ToyScorer(), run)


def test_a_full_disk_keeps_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "scores.json"
    write_json(path, [1])

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"scores\.json: cannot be written: No space left on device"):
        write_json(path, [2])
    assert path.read_text() == "[1]"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--label_file absent.json", "absent.json: label file not found"),
        ("--dataset_name lvb", "--dataset_name: invalid choice: 'lvb'"),
        ("--extract_feature_model dino", "--extract_feature_model: invalid choice: 'dino'"),
        ("--dtype int8", "--dtype: invalid choice: 'int8'"),
        ("--device tpu", "--device tpu"),
        ("--device meta", "--device meta"),
        ("--batch_size 0", "--batch_size: 0: must be"),
        ("--checkpoint x", "conse takes none"),
        ("--decoder gpu", "--decoder: invalid choice: 'gpu'"),
        ("--workers -1", "--workers: -1: must be a whole number, 0 or more"),
        ("--workers 0 --video_timeout 9", "--video_timeout needs --workers 1 or more"),
        ("--video_timeout nan", "--video_timeout: nan: must be a number, 0.001 or more"),
        ("--on_corrupt guess", "--on_corrupt: invalid choice: 'guess' (choose from"),
        ("--shard 0/2", "--shard 0/2: must be I/N"),
        ("--shard 3/2", "--shard 3/2: must be I/N"),
        ("--engine spark", "--engine: invalid choice: 'spark' (choose from"),
        ("--engine ray --device cuda:1", "--device cuda:1: Ray gives every actor a GPU of its own"),
        ("--engine ray --shard 1/2", "--engine ray shares the videos out by itself"),
        ("--engine ray --ray_actors 0", "--ray_actors: 0: must be a whole number, 1 or more"),
        ("--ray_actors 2", "--ray_address and --ray_actors go with --engine ray"),
        ("--features absent", "absent/run.json: file not found"),
        ("--blip_head itc", "--blip_head does not go with the conse scorer"),
        ("--backend lavis", "--backend lavis has no conse"),
        ("--backend jax", "--backend: invalid choice: 'jax'"),
        ("--feature_dtype int8", "--feature_dtype: invalid choice: 'int8'"),
        ("--blip_features tokens", "--blip_features: invalid choice: 'tokens'"),
        ("--blip_features itc", "--blip_features goes with --extract_feature_model blip"),
        (
            "--extract_feature_model blip --backend lavis --blip_features itm-e",
            "--blip_features itm-e goes with --backend transformers",
        ),
    ],
)
def test_a_wrong_flag_ends_in_one_line_and_status_2(data, tmp_path, run_script, arguments, words):
    is_for_features = "feature_dtype" in arguments or "blip_features" in arguments
    script = "feature_extract_store.py" if is_for_features else "feature_extract.py"
    flags = [*flags_for(data, tmp_path / "out"), *arguments.split()]
    check_mistake(run_script(script, *flags, cwd=data), words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_cuda_the_error_offers_the_cpu(data, run_script):
    flags = [*flags_for(data, data / "out"), "--device", "cuda"]
    done = run_script("feature_extract.py", *flags, fresh=True)
    check_mistake(done, "no usable CUDA device; use --device cpu")


def test_an_output_folder_that_cannot_be_created_is_reported(data, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="check --output_file"):
        extract(load_custom(data), ToyScorer(), RunDir(tmp_path / "file/out"))


def test_find_keyframes_gives_what_extraction_and_selection_give(data, tmp_path, conse):
    labels, run = load_custom(data), RunDir(tmp_path / "out")
    extract(labels, conse, run)
    scores, frames = read_scores(run.folder / "scores.json", run.folder / "frames.json")
    with Video(data / "one.mp4") as video:
        found = find_keyframes(video, labels.questions[0], conse, 2, strategy="top")
        best = np.sort(np.argsort(-scores[0], kind="stable")[:2])
        assert [k.frame_index for k in found] == frames[0][best].tolist()
        np.testing.assert_allclose([k.score for k in found], scores[0][best], atol=1e-6)
        assert [k.time_s for k in found] == [k.frame_index / 25 for k in found]
        with pytest.raises(ValueError, match="budget is 0"):
            find_keyframes(video, labels.questions[0], conse, 0)


def test_find_keyframes_refuses_a_score_that_is_no_number(data):
    class NanScorer(ToyScorer):
        def score(self, features, questions):
            return super().score(features, questions) * np.nan

    with Video(data / "one.mp4") as video, pytest.raises(VideoError, match="nan for frame 0"):
        find_keyframes(video, load_custom(data).questions[0], NanScorer(), 2)


def test_a_video_that_fails_is_tried_once_in_a_run_and_again_in_the_next(data, run, caplog):
    (data / "two.mp4").write_bytes(b"no video")
    for scored in (2, 0):
        summary = extract(load_custom(data), ToyScorer(), run)
        assert (summary.scored, len(summary.failures)) == (scored, 1)
        assert caplog.text.count("failed: ") == 1
        caplog.clear()


@pytest.mark.parametrize("written_before", range(3))
def test_the_score_list_is_written_after_its_frames_and_times(data, run, monkeypatch, written_before):

    def write_until_full(path, *arguments, **options):
        if path.parent == run.folder and len(list(run.folder.glob("*.json"))) == 1 + written_before:
            raise UserError("disk full")
        write_json(path, *arguments, **options)

    monkeypatch.setattr(run_dir, "write_json", write_until_full)
    with pytest.raises(UserError, match="disk full"):
        extract(load_custom(data), ToyScorer(), run)
    assert (run.folder / "run.json").exists()
    assert not (run.folder / "scores.json").exists()


@pytest.mark.parametrize(("fps", "stride"), [(1, 23), (5, 4)])
def test_candidates_behind_the_end_of_a_cut_video_are_listed_as_lost(tmp_path, run, fps, stride):
    options = {"options": {"bf": "0"}, "container_options": {"movflags": "faststart"}}
    film = write_video(tmp_path / "film.mp4", frames=137, fps=Fraction(24000, 1001), **options)
    film.write_bytes(film.read_bytes()[: film.stat().st_size * 7 // 10])
    extract(write_labels(tmp_path, ["film.mp4"]), ToyScorer(), run, on_corrupt="partial", fps=fps)
    part = run.read_part("film.mp4")
    assert part.frames and part.lost_frames
    assert part.frames + part.lost_frames == [*range(0, 137 // stride * stride, stride)]


def test_a_lock_is_released_after_its_video_is_on_disk(data, tmp_path, monkeypatch):
    (data / "two.mp4").write_bytes(b"no video")
    run, release, on_disk = RunDir(tmp_path / "out"), VideoLocks.release, {}

    def record_and_release(self, video):
        if video in self._held:
            on_disk[video] = run.has_part(video), run.failure_path(video).exists()
        release(self, video)

    monkeypatch.setattr(VideoLocks, "release", record_and_release)
    extract(load_custom(data), ToyScorer(), run)
    finished, failed = (True, False), (False, True)
    assert on_disk == {"one.mp4": finished, "two.mp4": failed, "sub/three.mkv": finished}
