"""keyframes.py, the library's same function, and the package that pip installs."""

from __future__ import annotations

import ast
import csv
import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import forkserver
import numpy as np
import pytest
from conftest import check_mistake
from extraction_setup import ToyScorer
from PIL import Image

import aks
from aks.commands import keyframes as command
from aks.errors import run_main
from aks.extraction.keyframes import find_in_file
from aks.keyframe_files import Output
from aks.video.reader import Video

ROOT = Path(__file__).parent.parent


def test_the_command_prints_the_keyframes_and_writes_their_images(clips, tmp_path, run_script):
    done = run_script(
        *("keyframes.py", clips / "one.mp4", "Where is the cat?"),
        *("--budget", "3", "--images", tmp_path / "new/images", "--device", "cpu"),
        fresh=True,
    )
    assert done.returncode == 0, done.stderr
    header, *rows = [line.split() for line in done.stdout.splitlines()]
    assert header == ["frame", "time", "score"]
    frame_indices = [int(row[0]) for row in rows]
    assert len(frame_indices) == 3 and set(frame_indices) <= {0, 25, 50, 75, 100}
    assert [row[1] for row in rows] == [f"0:00:0{index // 25}.000" for index in frame_indices]
    images = sorted((tmp_path / "new/images").iterdir())
    names = [f"00h00m0{index // 25}.000s_frame_{index:07d}.jpg" for index in frame_indices]
    assert [path.name for path in images] == names
    with Video(clips / "one.mp4") as video:
        (frames,) = video.read(frame_indices)
    for path, pixels in zip(images, frames.pixels, strict=True):
        difference = np.asarray(Image.open(path)).astype(int) - pixels
        assert np.abs(difference).mean() < 12  # JPEG is lossy.


@pytest.mark.parametrize(
    ("flags", "cache_gb", "text"),
    [
        ([], "1", "finished videos are kept, the same"),
        ([], "0", "the same command begins anew\n"),
        (["--fast"], "1", "the same command begins anew\n"),
    ],
)
def test_an_interrupted_call_says_what_is_kept(
    clips, conse, tmp_path, monkeypatch, capsys, flags, cache_gb, text
):
    monkeypatch.setenv("AKS_CACHE", str(tmp_path))
    monkeypatch.setenv("AKS_CACHE_GB", cache_gb)
    seen = []

    def interrupt_the_second(path, *args, **settings):
        seen.append(path)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return find_in_file(path, *args, **settings)

    monkeypatch.setattr("aks.errors._end_at_second_interrupt", lambda: None)  # the tests' own process
    monkeypatch.setattr("aks.extraction.keyframes.find_in_file", interrupt_the_second)
    monkeypatch.setattr("aks.commands.keyframes.load_scorer_from_args", lambda *args, **settings: conse)
    monkeypatch.setattr(sys, "argv", ["keyframes.py", str(clips), "?", "--device", "cpu", *flags])
    with pytest.raises(SystemExit) as ended:
        run_main(command.main)
    assert ended.value.code == 130 and len(seen) == 2
    assert f"interrupted; {text}" in capsys.readouterr().err


@pytest.fixture(scope="module")
def conse():
    return aks.load_scorer("conse")


def test_the_command_writes_what_the_library_finds_for_several_questions(clips, tmp_path, run_script, conse):
    questions = ["Where is the cat?", "Who opens the red door?"]
    found = aks.keyframes(clips / "one.mp4", questions, 2, scorer=conse, fps=5, start_s=1, end_s=3.1)
    done = run_script(
        *("keyframes.py", clips / "one.mp4", *questions, "--budget", "2", "--device", "cpu", "--json"),
        *("--fps", "5", "--start", "0:01", "--end", "3.1", "--images", tmp_path / "images"),
        *("--sheet", tmp_path / "sheet.png", "--clips", tmp_path / "clips", "--clip_margin", "0.1"),
        *("--report", tmp_path / "new/report.html"),
    )
    assert done.returncode == 0 and "frame/s" not in done.stderr, done.stderr  # it is no terminal
    document = json.loads(done.stdout)
    facts = {"video": str(clips / "one.mp4"), "fps": 25.0, "num_frames": 125, "duration_s": 5.0}
    assert document["videos"] == [facts] and document["failures"] == []
    assert (document["scorer"], document["strategy"], document["budget"]) == ("conse", "ada", 2)
    assert [document[name] for name in ("t1", "t2", "max_depth", "quota")] == [0.8, -100, 5, "full"]
    assert [entry["question"] for entry in document["questions"]] == questions
    for entry, expected in zip(document["questions"], found, strict=True):
        assert expected.question == entry["question"]
        assert expected.curve.frame_indices.tolist() == [*range(25, 78, 5)]
        assert len(expected.curve.scores) == len(expected.curve.times_s) == 11
        for row, keyframe in zip(entry["keyframes"], expected.keyframes, strict=True):
            assert (row["frame"], row["time_s"], row["score"]) == dataclasses.astuple(keyframe)[:3]
            assert row["time"] == f"0:00:0{keyframe.time_s:.3f}"
            position = expected.curve.frame_indices.tolist().index(keyframe.frame_index)
            assert expected.curve.scores[position] == keyframe.score
            shown = np.asarray(Image.open(row["image"])).astype(int)
            assert np.abs(shown - np.asarray(keyframe.image)).mean() < 12
            (clip,) = [c for c in entry["clips"] if c["start_s"] <= keyframe.time_s <= c["end_s"]]
            with Video(clip["clip"]) as video:
                (frames,) = video.read([round((keyframe.time_s - clip["start_s"]) * 25)])
            np.testing.assert_array_equal(frames.pixels[0], np.asarray(keyframe.image))
    folders = ["01_Where_is_the_cat", "02_Who_opens_the_red_door"]
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == folders
    # Two rows of two pictures, 240 x 160 each, under the question and over their times.
    assert Image.open(tmp_path / "sheet.png").size == (2 * 246 + 6, 2 * (22 + 160 + 20 + 6) + 6)
    page = (tmp_path / "new/report.html").read_text()
    for question, expected in zip(questions, found, strict=True):
        part = page.partition(f'<h3 dir="auto">{question}</h3>')[2].partition("</article>")[0]
        shown = [int(frame) for frame in re.findall(r", frame (\d+)", part)]
        assert shown == [keyframe.frame_index for keyframe in expected.keyframes]


def test_one_question_gives_the_library_s_list_of_keyframes(clips):
    found = aks.keyframes(clips / "two.mp4", "?", 2, scorer=ToyScorer(), strategy="top")
    (several,) = aks.keyframes(clips / "two.mp4", ["?"], 2, scorer=ToyScorer(), strategy="top")
    assert found == several.keyframes and len(found) == 2 and isinstance(found[0], aks.Keyframe)
    assert repr(found[0]).startswith("Keyframe(frame_index=") and "video" not in repr(found[0])
    assert found[0].image is found[0].image and found[0].image.size == (64, 96)
    with pytest.raises(ValueError, match="no question"):
        aks.keyframes(clips / "two.mp4", [], scorer=ToyScorer())
    with pytest.raises(ValueError, match="fps is 0"):
        aks.keyframes(clips / "two.mp4", "?", scorer=ToyScorer(), fps=0)
    with pytest.raises(
        aks.VideoError, match=r"no candidate frame from 2\.5 to 2\.6 s; the video is 3\.000 s"
    ):
        aks.keyframes(clips / "two.mp4", "?", scorer=ToyScorer(), start_s=2.5, end_s=2.6)


def test_pictures_of_an_earlier_call_go_with_their_folders(clips, tmp_path):
    def write(questions, *rows):
        output = Output(clips / "one.mp4", questions, tmp_path, None, None)
        output.write([[aks.Keyframe(i, i / 25, 0.5, clips / "one.mp4") for i in row] for row in rows], 0, {})
        return sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))

    pictures = ["00h00m01.000s_frame_0000025.jpg", "00h00m02.000s_frame_0000050.jpg"]
    alike = ["01_cat", f"01_cat/{pictures[0]}", "02_cat", f"02_cat/{pictures[1]}"]
    assert write(["cat", "cat"], [25], [50]) == alike
    assert write(["cat", "cat"], [], [50]) == alike[2:]
    (tmp_path / "02_cat/mine").mkdir()
    assert write(["cat"], [25]) == [pictures[0], "02_cat", "02_cat/mine"]
    assert write(["cat"], []) == ["02_cat", "02_cat/mine"]


def test_an_earlier_picture_that_cannot_be_removed_is_named(clips, tmp_path):
    moments = [[aks.Keyframe(25, 1.0, 0.5, clips / "one.mp4")]]
    Output(clips / "one.mp4", ["cat"], tmp_path, None, None).write(moments, 0, {})
    output = Output(clips / "one.mp4", ["cat"], tmp_path, None, None)
    (picture,) = tmp_path.iterdir()
    picture.unlink()
    picture.mkdir()
    with pytest.raises(aks.UserError, match=rf"{picture.name}: cannot be written"):
        output.write(moments, 0, {})


def test_a_clip_ends_with_its_video(clips, tmp_path):
    video = clips / "one.mp4"
    output = Output(video, ["?"], None, None, tmp_path)
    assert output.write([[aks.Keyframe(100, 4.0, 0.5, video)]], 3.0, {video: 5.0}) == []
    document = json.loads(output.text("json", [[]], {}))
    (clip,) = document["questions"][0]["clips"]
    assert (clip["clip"], clip["end_s"]) == (str(tmp_path / "00h00m01.000s-00h00m05.000s.mp4"), 5.0)


def test_what_was_found_is_printed_where_files_cannot_be_written(
    clips, tmp_path, monkeypatch, capsys, caplog
):
    sheet, page = tmp_path / "sheet.jpg", tmp_path / "report.html"
    sheet.mkdir()
    page.mkdir()
    flags = ["--sheet", str(sheet), "--report", str(page), "--workers", "0", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["keyframes.py", str(clips / "two.mp4"), "cat", *flags])
    monkeypatch.setattr(command, "configure_logging", lambda level: None)
    with pytest.raises(aks.UserError, match=r"report\.html: cannot be written: Is a directory"):
        command.main()
    assert f"{sheet}: cannot be written: Is a directory" in caplog.text
    assert capsys.readouterr().out.startswith("frame  ")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_is_json_in_a_terminal_of_any_encoding(tmp_path, monkeypatch, encoding):
    question = "Où est le 猫 😀?"
    terminal = io.TextIOWrapper(io.BytesIO(), encoding, errors="backslashreplace")  # as run_main() sets it
    monkeypatch.setattr(sys, "stdout", terminal)
    output = Output(tmp_path / "film.mp4", [question], None, None, None)
    terminal.write(output.text("json", [[]], {}))
    terminal.flush()
    shown = terminal.buffer.getvalue().decode(encoding)
    assert json.loads(shown)["questions"][0]["question"] == question
    assert (question in shown) == (encoding == "utf-8")


def test_a_folder_gives_the_best_moments_of_all_its_videos(clips, tmp_path, run_script, conse):
    (tmp_path / "films/sub").mkdir(parents=True)
    for name in ("one.mp4", "sub/three.mkv"):
        (tmp_path / "films" / name).symlink_to(clips / name)
    (tmp_path / "films/bad.mp4").write_text("no video")
    (tmp_path / "films/notes.txt").write_text("no video either")
    done = run_script(
        *("keyframes.py", tmp_path / "films", "Where is the cat?", "--budget", "4", "--csv", "--quiet"),
        *("--device", "cpu", "--workers", "0", "--images", tmp_path / "images", "--option", "power=1"),
        *("--strategy", "bolt", "--sheet", tmp_path / "sheet.jpg"),
    )
    assert done.returncode == 1 and done.stderr == "", done.stderr
    rows = [*csv.DictReader(done.stdout.splitlines())]
    scores = [float(row["score"]) for row in rows]
    assert len(rows) == 4 and scores == sorted(scores, reverse=True)
    expected = [
        (keyframe.score, name)
        for name in ("one.mp4", "sub/three.mkv")
        for keyframe in aks.keyframes(
            clips / name, "Where is the cat?", 4, scorer=conse, strategy="bolt", options={"power": 1}
        )
    ]
    assert [(float(row["score"]), row["video"]) for row in rows] == sorted(expected, reverse=True)[:4]
    written = sorted(str(path) for path in (tmp_path / "images").rglob("*.jpg"))
    assert written == sorted(row["image"] for row in rows)
    assert {str(Path(row["image"]).parent.relative_to(tmp_path / "images")) for row in rows} == {
        row["video"] for row in rows
    }


def test_the_public_names_exist_for_python_and_for_type_checkers():
    assert all(getattr(aks, name) for name in aks.__all__)
    (checked,) = (node for node in ast.parse(Path(aks.__file__).read_text()).body if isinstance(node, ast.If))
    typed = {node.names[0].name: node.module for node in checked.body}
    assert typed == aks._MODULES
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        aks.other  # noqa: B018


def test_images_of_an_earlier_run_are_replaced_and_other_files_are_kept(
    clips, tmp_path, run_script, monkeypatch
):
    monkeypatch.setenv("AKS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AKS_CACHE_GB", "1")
    folder = tmp_path / "images"
    command = ["keyframes.py", clips / "one.mp4", "cat", "--images", folder, "--device", "cpu", "--no_cache"]
    done = run_script(*command, "--budget", "6", "--workers", "0")
    assert done.returncode == 0 and "5 keyframes, not 6: 5 candidate frames" in done.stderr
    (folder / "mine.jpg").write_bytes(b"mine")
    flags = ["--budget", "3", "--workers", "0", "--all_depth", "1", "--quota", "released"]
    done = run_script(*command, *flags)
    assert "2 keyframes, not 3: --quota released loses fractions" in done.stderr
    assert done.returncode == 0, done.stderr
    written = {int(row.split()[0]) for row in done.stdout.splitlines()[1:]}
    kept = {path.name for path in folder.iterdir()} - {"mine.jpg"}
    assert len(written) == len(kept) == 2 and {int(name[-11:-4]) for name in kept} == written

    Image.new("RGB", (8, 8)).save(folder / "frame_0000007.jpg")
    check_mistake(run_script(*command), "frame_0000007.jpg there is no picture of this command's")
    assert len(list(folder.iterdir())) == 4 and not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("video", "arguments", "words"),
    [
        ("absent.mp4", ["cat"], "absent.mp4: file not found"),
        ("text.mp4", ["cat"], "Invalid data"),
        ("one.mp4", [" "], "the question is empty"),
        ("one.mp4", ["cat", "--budget", "0"], "--budget: 0: must be"),
        ("one.mp4", ["cat", "--strategy", "best"], "--strategy: invalid choice: 'best'"),
        ("one.mp4", ["cat", "--start", "1:75"], "--start: 1:75: use seconds or h:mm:ss"),
        (
            "one.mp4",
            ["cat", "--start", "3", "--end", "2"],
            "error: keyframes.py: start and end are 3 and 2 s; use 0 <=",
        ),
        ("one.mp4", ["cat", "--option", "seed=1"], "option 'seed': strategy ada has no options"),
        ("one.mp4", ["cat", "--strategy", "apart", "--option", "distance=-1"], "distance is -1.0; it"),
        ("one.mp4", ["cat", "--sheet", "sheet.gif"], "--sheet sheet.gif: use a name that ends in .jpg"),
        ("", ["cat", "--json", "--csv"], "--csv: not allowed with argument --json"),
        ("empty", ["cat"], "empty: holds no video (.3gp .asf"),
    ],
)
def test_a_mistake_is_reported_in_one_line(clips, tmp_path, run_script, video, arguments, words):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty").mkdir()
    folder = clips if video == "one.mp4" else tmp_path
    check_mistake(run_script("keyframes.py", folder / video, *arguments), words)


@pytest.mark.slow
def test_the_wheel_holds_the_library_and_nothing_else(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT],
        check=True,
        timeout=300,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel]
    subprocess.run(install, check=True, timeout=300)
    assert "aks/py.typed" in names
    assert {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")} == {"aks"}
    code = "import aks, aks.extraction.api; print(aks.__file__, aks.select_keyframes([0, 1], [0, 9], 1))"
    command = [forkserver.python("torch"), "-c", code]
    output = subprocess.check_output(command, cwd=site, text=True)
    assert output.startswith(str(site)) and output.strip().endswith("[9]")

    (tmp_path / "scores.json").write_text("[[0.1, 0.9]]")
    (tmp_path / "frames.json").write_text("[[0, 25]]")
    command = [site / "bin/aks", "select", "--score_path", "scores.json", "--max_num_frames", "1"]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    output = subprocess.check_output(command, cwd=tmp_path, env=environment, text=True)
    assert "1 questions, 1 keyframes (ada)" in output
    selection = tmp_path / "selected_frames/longvideobench/blip/selected_frames.json"
    assert selection.read_text() == "[[25]]"

    (tmp_path / "labels.json").write_text('[{"video": "gone.mp4", "question": "What?"}]')
    command = [site / "bin/aks", "report", "--dataset_name", "custom", "--label_file", "labels.json"]
    command += ["--score_path", "scores.json", "--selected_frames", selection]
    output = subprocess.check_output(command, cwd=tmp_path, env=environment, text=True)
    assert output.startswith("wrote report.html: 1 questions, 0 pictures")
    assert "<style>\n:root" in (tmp_path / "report.html").read_text()
