"""Step 1: files, grouping, resume, kills, failures; with the real conse scorer on real videos."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from extraction_setup import ToyScorer
from media import write_video

from aks import UserError, VideoError, run_dir
from aks.extraction.api import extract, find_keyframes
from aks.jsonio import write_json
from aks.labels import load_labels
from aks.locks import VideoLocks
from aks.run_dir import RunDir, VideoScores
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
    """A folder of one's own data: three videos, four questions."""
    folder = tmp_path / "data"
    shutil.copytree(clips, folder)
    (folder / "labels.json").write_text(json.dumps(ENTRIES))
    return folder


def labels_of(folder: Path):
    return load_labels("custom", label_file=folder / "labels.json")


def files_of(run: RunDir) -> dict[str, bytes]:
    return {name: (run.folder / name).read_bytes() for name in ("scores.json", "frames.json", "times.json")}


def test_scores_and_frames_stand_in_label_order_in_the_references_format(data, tmp_path, conse):
    run = RunDir(tmp_path / "out")
    summary = extract(labels_of(data), conse, run)
    assert (summary.videos, summary.scored, summary.failures, summary.complete) == (3, 3, [], True)
    scores, frames = (json.loads((run.folder / f"{name}.json").read_text()) for name in ("scores", "frames"))
    assert frames == [[0, 25, 50, 75, 100], [0, 24, 48], [0, 25, 50, 75, 100], [0, 12, 24, 36]]
    assert [len(row) for row in scores] == [5, 3, 5, 4]
    assert all(type(x) is float for row in scores for x in row)
    assert all(type(x) is int for row in frames for x in row)
    assert json.loads((run.folder / "times.json").read_text())[3] == [0.0, 1.0, 2.0, 3.0]
    # The reference writes both files on one line, as json.dump does.
    assert (run.folder / "scores.json").read_text() == json.dumps(scores)
    read_scores(run.folder / "scores.json", run.folder / "frames.json")


def test_scoring_all_questions_at_once_equals_one_frame_and_one_question_at_a_time(data, tmp_path, conse):
    run = RunDir(tmp_path / "out")
    labels = labels_of(data)
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


def test_a_finished_run_does_no_work_and_an_interrupted_one_only_what_is_missing(data, tmp_path, conse):
    labels, run = labels_of(data), RunDir(tmp_path / "out")
    extract(labels, conse, run)
    before = files_of(run)
    stamps = {path: path.stat().st_mtime_ns for path in run.parts.iterdir()}
    assert extract(labels, conse, run).reused == 3
    run.part_path("two.mp4").unlink()
    (run.folder / "scores.json").unlink()
    summary = extract(labels, conse, run)
    assert (summary.reused, summary.scored) == (2, 1)
    assert files_of(run) == before
    changed = [path.name for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp]
    assert changed == ["two.mp4.json"]


def test_the_command_itself_killed_and_started_again(data, tmp_path, run_script):
    def command(out):
        return [
            *("feature_extract.py", "--dataset_name", "custom", "--label_file", data / "labels.json"),
            *("--extract_feature_model", "conse", "--device", "cpu", "--output_file", out),
        ]

    root = Path(__file__).parents[2]
    first, *rest = map(str, command(tmp_path / "killed"))
    process = subprocess.Popen(
        [sys.executable, str(root / first), *rest], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    parts = tmp_path / "killed/custom/conse/parts"
    deadline = time.monotonic() + 120
    while not list(parts.glob("[!.]*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    kept = {path.name: path.read_bytes() for path in parts.glob("[!.]*.json")}
    assert kept
    again = run_script(*command(tmp_path / "killed"))
    assert again.returncode == 0, again.stderr
    assert f"{3 - len(kept)} scored now, {len(kept)} finished before, 0 failed" in again.stdout
    assert {name: (parts / name).read_bytes() for name in kept} == kept
    assert run_script(*command(tmp_path / "whole"), fresh=True).returncode == 0
    for name in ("scores.json", "frames.json", "times.json", "run.json"):
        paths = [tmp_path / out / "custom/conse" / name for out in ("killed", "whole")]
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_bad_video_is_listed_and_the_others_go_on(data, tmp_path, run_script):
    entries = [*ENTRIES, {"id": "e", "video": "absent.mp4", "question": "Who?"}]
    (data / "labels.json").write_text(json.dumps(entries))
    original = (data / "two.mp4").read_bytes()
    (data / "two.mp4").write_bytes(b"no video")
    command = [
        *("feature_extract.py", "--dataset_name", "custom", "--label_file", data / "labels.json"),
        *("--extract_feature_model", "conse", "--device", "cpu", "--output_file", tmp_path),
    ]
    done = run_script(*command)
    assert done.returncode == 1
    assert (
        "3 videos" not in done.stdout and "4 videos: 2 scored now, 0 finished before, 2 failed" in done.stdout
    )
    assert "absent.mp4 (1 questions): file not found" in done.stdout
    folder = tmp_path / "custom/conse"
    failures = json.loads((folder / "failures.json").read_text())
    assert [(f["video"], f["questions"]) for f in failures] == [("two.mp4", ["b"]), ("absent.mp4", ["e"])]
    assert "Invalid data" in failures[0]["reason"]
    assert not (folder / "scores.json").exists()

    (data / "two.mp4").write_bytes(original)  # mended: only it is tried again; the other is waived
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


def test_a_video_shorter_than_its_stride_is_a_failure_with_that_reason(tmp_path, conse):
    write_video(tmp_path / "blink.mp4", frames=10, fps=24)
    (tmp_path / "labels.json").write_text(json.dumps([{"video": "blink.mp4", "question": "What?"}]))
    summary = extract(labels_of(tmp_path), conse, RunDir(tmp_path / "out"))
    assert "too short: 10 frames at 24 a second" in summary.failures[0]["reason"]


def test_a_score_that_is_no_number_is_a_failure(clips, conse, monkeypatch):
    question = load_labels_one(clips)
    monkeypatch.setattr(conse, "_centre", conse._centre * float("nan"))
    with Video(clips / "two.mp4") as video, pytest.raises(VideoError, match="gives nan for frame 0"):
        find_keyframes(video, question, conse, 1)


def load_labels_one(folder: Path):
    path = folder / "single.json"
    path.write_text(json.dumps([{"video": "two.mp4", "question": "Where is the cat?"}]))
    return load_labels("custom", label_file=path).questions[0]


def test_another_runs_settings_are_refused_and_told(data, tmp_path, conse):
    run = RunDir(tmp_path / "out")
    extract(labels_of(data), conse, run)
    record = json.loads((run.folder / "run.json").read_text())
    write_json(run.folder / "run.json", {**record, "dtype": "bfloat16"})
    with pytest.raises(UserError, match=r"dtype 'bfloat16' there, 'float32' now"):
        extract(labels_of(data), conse, run)
    write_json(run.folder / "run.json", record)
    (data / "labels.json").write_text(json.dumps(ENTRIES[:2]))
    with pytest.raises(UserError, match="label_sha256"):
        extract(labels_of(data), conse, run)


def test_a_damaged_part_is_named(data, tmp_path, conse):
    run = RunDir(tmp_path / "out")
    extract(labels_of(data), conse, run)
    nan = run.part_path("one.mp4").read_text().replace("25,", "NaN,", 1)
    for damage in ('{"video": "one.mp4"', '{"video": "one.mp4"}', "[]", "", nan):
        run.part_path("one.mp4").write_text(damage)
        with pytest.raises(UserError, match=r"one\.mp4\.json"):
            extract(labels_of(data), conse, run)


def test_parts_of_another_video_of_the_same_name_are_refused(data, tmp_path, conse):
    run = RunDir(tmp_path / "out")
    extract(labels_of(data), conse, run)
    shutil.copy(data / "one.mp4", data / "two.mp4")
    with pytest.raises(UserError, match=r"two\.mp4\.json: made from another two\.mp4"):
        extract(labels_of(data), conse, run)
    (data / "two.mp4").unlink()  # scored, then removed: nothing to complain about
    assert extract(labels_of(data), conse, run).complete


def test_a_damaged_run_record_is_told_with_its_remedy(data, tmp_path, conse):
    run = RunDir(tmp_path / "out")
    extract(labels_of(data), conse, run)
    (run.folder / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json: damaged; remove"):
        extract(labels_of(data), conse, run)


def test_part_names_are_distinct_and_fit_the_file_system(tmp_path):
    run = RunDir(tmp_path / "out")
    run.open_or_create({})
    names = [
        "a/b.mp4",
        "a_b.mp4",
        "a%2Fb.mp4",
        "x" * 400 + ".mp4",
        "x" * 401 + ".mp4",
        "日本語.mp4",
        "../up.mp4",
    ]
    for name in names:
        run.write_part(VideoScores(name, 25.0, 25, None, "decord", [0], [0.0], {"q": [0.5]}))
    assert len(list(run.parts.iterdir())) == len(names)
    assert [run.read_part(name).video for name in names] == names


def test_a_full_disk_ends_in_one_line_and_keeps_what_was_there(tmp_path, monkeypatch):
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
        (["--dataset_name", "custom", "--label_file", "absent.json"], "absent.json: label file not found"),
        (["--dataset_name", "lvb"], "--dataset_name: invalid choice: 'lvb'"),
        (["--extract_feature_model", "dino"], "--extract_feature_model: invalid choice: 'dino'"),
        (["--extract_feature_model", "conse", "--dtype", "int8"], "--dtype: invalid choice: 'int8'"),
        (["--extract_feature_model", "conse", "--device", "tpu"], "--device tpu"),
        (["--extract_feature_model", "conse", "--device", "meta"], "--device meta"),
        (["--extract_feature_model", "conse", "--batch_size", "0"], "--batch_size: 0: must be"),
        (["--extract_feature_model", "conse", "--checkpoint", "x"], "conse takes none"),
        (["--extract_feature_model", "conse", "--decoder", "gpu"], "--decoder: invalid choice: 'gpu'"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(data, tmp_path, run_script, arguments, words):
    defaults = ["--dataset_name", "custom", "--label_file", str(data / "labels.json"), "--device", "cpu"]
    done = run_script(
        "feature_extract.py", *defaults, *arguments, "--output_file", tmp_path / "out", cwd=tmp_path
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
    assert done.stdout == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_asked_for_where_there_is_none(data, run_script):
    done = run_script(
        *("feature_extract.py", "--dataset_name", "custom", "--label_file", data / "labels.json"),
        *("--extract_feature_model", "conse"),
        fresh=True,
    )
    assert done.returncode == 2
    assert "no usable CUDA device; use --device cpu" in done.stderr and done.stderr.count("\n") == 1


def test_an_output_folder_that_cannot_be_made_is_told(data, tmp_path, conse):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="check --output_file"):
        extract(labels_of(data), conse, RunDir(tmp_path / "file/out"))


def test_find_keyframes_is_extraction_and_selection_in_one(data, tmp_path, conse):
    labels, run = labels_of(data), RunDir(tmp_path / "out")
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


def test_a_run_of_another_data_set_checkpoint_or_precision_does_not_mix(data, tmp_path):
    labels, run = labels_of(data), RunDir(tmp_path / "out")
    extract(labels, ToyScorer(), run)
    others = {"checkpoint": "other", "dtype": torch.float16, "name": "other"}
    for fact, value in others.items():
        scorer = ToyScorer()
        setattr(scorer, fact, value)
        with pytest.raises(UserError, match="made with other settings"):
            extract(labels, scorer, run)
    with pytest.raises(UserError, match="dataset 'custom' there, 'videomme' now"):
        extract(replace(labels, dataset="videomme"), ToyScorer(), run)


@pytest.mark.parametrize("damage", ["another video's", "a frame more", "a time less", "a score less"])
def test_a_part_that_is_another_video_s_or_uneven_is_named(data, tmp_path, damage):
    run = RunDir(tmp_path / "out")
    extract(labels_of(data), ToyScorer(), run)
    part = json.loads(run.part_path("one.mp4").read_text())
    if damage == "a frame more":
        part["frames"].append(125)
    elif damage == "a time less":
        part["times_s"].pop()
    elif damage == "a score less":
        part["scores"]["c"].pop()
    else:
        part["video"] = "two.mp4"
    write_json(run.part_path("one.mp4"), part)
    with pytest.raises(UserError, match=r"one\.mp4\.json: damaged part file"):
        extract(labels_of(data), ToyScorer(), run)


def test_a_part_without_a_question_is_named(data, tmp_path):
    run = RunDir(tmp_path / "out")
    extract(labels_of(data), ToyScorer(), run)
    part = json.loads(run.part_path("one.mp4").read_text())
    del part["scores"]["c"]
    write_json(run.part_path("one.mp4"), part)
    with pytest.raises(UserError, match=r"one\.mp4\.json: has no scores for question c"):
        extract(labels_of(data), ToyScorer(), run)


def test_a_video_that_fails_is_tried_once_in_a_run_and_again_in_the_next(data, tmp_path, caplog):
    (data / "two.mp4").write_bytes(b"no video")
    run = RunDir(tmp_path / "out")
    for scored in (2, 0):
        summary = extract(labels_of(data), ToyScorer(), run)
        assert (summary.scored, len(summary.failures)) == (scored, 1)
        assert caplog.text.count("failed: ") == 1
        caplog.clear()


@pytest.mark.parametrize("written", range(3))
def test_who_finds_the_scores_finds_their_frames_and_times(data, tmp_path, monkeypatch, written):
    run, write = RunDir(tmp_path / "out"), write_json
    left = [written]

    def full(path, *rest, **options):
        if path.parent == run.folder and path.name != "run.json":
            if not left[0]:
                raise UserError("disk full")
            left[0] -= 1
        write(path, *rest, **options)

    monkeypatch.setattr(run_dir, "write_json", full)
    with pytest.raises(UserError, match="disk full"):
        extract(labels_of(data), ToyScorer(), run)
    assert len(list(run.folder.glob("*.json"))) == 1 + written
    assert not (run.folder / "scores.json").exists()


def test_scores_with_empty_lists_do_not_outlive_a_run_that_does_not_allow_them(data, tmp_path):
    (data / "two.mp4").unlink()
    run = RunDir(tmp_path / "out")
    summary = extract(labels_of(data), ToyScorer(), run, allow_missing=True)
    assert (summary.complete, summary.empty_questions) == (True, 1)
    assert not extract(labels_of(data), ToyScorer(), run).complete
    assert not (run.folder / "scores.json").exists()


def test_of_a_film_cut_short_the_candidates_that_are_gone_are_told(tmp_path):
    options = {"options": {"bf": "0"}, "container_options": {"movflags": "faststart"}}
    film = write_video(tmp_path / "film.mp4", frames=137, fps=Fraction(24000, 1001), **options)
    film.write_bytes(film.read_bytes()[: film.stat().st_size * 7 // 10])
    (tmp_path / "labels.json").write_text(json.dumps([{"video": "film.mp4", "question": "What?"}]))
    run = RunDir(tmp_path / "out")
    extract(labels_of(tmp_path), ToyScorer(), run, on_corrupt="partial")
    part = run.read_part("film.mp4")
    assert part.frames and part.lost_frames
    assert part.frames + part.lost_frames == [0, 23, 46, 69, 92]  # a sixth one needs 138 frames


def test_a_lock_is_let_go_when_what_became_of_its_video_is_on_disk(data, tmp_path, monkeypatch):
    (data / "two.mp4").write_bytes(b"no video")
    run, release, found = RunDir(tmp_path / "out"), VideoLocks.release, {}

    def watched(self, video):
        if video in self._held:
            found[video] = run.has_part(video), run.failure_path(video).exists()
        release(self, video)

    monkeypatch.setattr(VideoLocks, "release", watched)
    extract(labels_of(data), ToyScorer(), run)
    finished, failed = (True, False), (False, True)
    assert found == {"one.mp4": finished, "two.mp4": failed, "sub/three.mkv": finished}
