"""keyframes.py, the library's same function, and the package that pip installs."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import forkserver
import numpy as np
import pytest
from conftest import check_mistake
from PIL import Image

import aks
from aks.video.reader import Video

ROOT = Path(__file__).parent.parent


def test_the_command_prints_the_keyframes_and_writes_their_images(clips, tmp_path, run_script):
    done = run_script(
        *("keyframes.py", clips / "one.mp4", "Where is the cat?"),
        *("--budget", "3", "--images", tmp_path / "new/images", "--device", "cpu"),
        fresh=True,
    )
    assert done.returncode == 0, done.stderr
    header, *rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert header == ["frame", "time_s", "score"]
    frame_indices = [int(row[0]) for row in rows]
    assert len(frame_indices) == 3 and set(frame_indices) <= {0, 25, 50, 75, 100}
    assert [float(row[1]) for row in rows] == [index / 25 for index in frame_indices]
    images = sorted((tmp_path / "new/images").iterdir())
    assert [path.name for path in images] == [f"frame_{index:07d}.jpg" for index in frame_indices]
    with Video(clips / "one.mp4") as video:
        (frames,) = video.read(frame_indices)
    for path, pixels in zip(images, frames.pixels, strict=True):
        difference = np.asarray(Image.open(path)).astype(int) - pixels
        assert np.abs(difference).mean() < 12  # JPEG is lossy.


def test_the_library_finds_what_the_command_finds(clips, run_script):
    found = aks.keyframes(clips / "one.mp4", "Where is the cat?", budget=3, device="cpu")
    command = ["keyframes.py", clips / "one.mp4", "Where is the cat?", "--budget", "3", "--device", "cpu"]
    done = run_script(*command)
    rows = [f"{k.frame_index}\t{k.time_s:.3f}\t{k.score:.6f}" for k in found]
    assert done.stdout.splitlines()[1:] == rows and "frame/s" in done.stderr
    assert "frame/s" not in run_script(*command, "--quiet").stderr


def test_the_public_names_exist_for_python_and_for_type_checkers():
    assert all(getattr(aks, name) for name in aks.__all__)
    (checked,) = (node for node in ast.parse(Path(aks.__file__).read_text()).body if isinstance(node, ast.If))
    typed = {node.names[0].name: node.module for node in checked.body}
    assert typed == aks._MODULES
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        aks.other  # noqa: B018


def test_images_of_an_earlier_run_are_replaced_and_other_files_are_kept(clips, tmp_path, run_script):
    folder = tmp_path / "images"
    command = ["keyframes.py", clips / "one.mp4", "cat", "--images", folder, "--device", "cpu"]
    assert run_script(*command, "--budget", "5", "--workers", "0").returncode == 0
    (folder / "mine.jpg").write_bytes(b"mine")
    done = run_script(*command, "--budget", "2", "--workers", "0")
    assert done.returncode == 0, done.stderr
    written = {f"frame_{int(row.split()[0]):07d}.jpg" for row in done.stdout.splitlines()[1:]}
    assert len(written) == 2 and {path.name for path in folder.iterdir()} == {"mine.jpg", *written}

    Image.new("RGB", (8, 8)).save(folder / "frame_0000007.jpg")
    check_mistake(run_script(*command), "frame_0000007.jpg there is no picture of this command's")
    assert len(list(folder.iterdir())) == 4


@pytest.mark.parametrize(
    ("video", "arguments", "words"),
    [
        ("absent.mp4", ["cat"], "absent.mp4: file not found"),
        ("text.mp4", ["cat"], "Invalid data"),
        ("one.mp4", [" "], "the question is empty"),
        ("one.mp4", ["cat", "--budget", "0"], "--budget: 0: must be"),
        ("one.mp4", ["cat", "--strategy", "best"], "--strategy: invalid choice: 'best'"),
    ],
)
def test_a_mistake_is_reported_in_one_line(clips, tmp_path, run_script, video, arguments, words):
    (tmp_path / "text.mp4").write_text("no video")
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
    assert (tmp_path / "selected_frames/longvideobench/blip/selected_frames.json").read_text() == "[[25]]"
