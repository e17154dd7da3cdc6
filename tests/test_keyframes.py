"""keyframes.py, what a newcomer tries first; and the package that pip installs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import forkserver
import numpy as np
import pytest
from PIL import Image

import aks
from aks.video.reader import Video

ROOT = Path(__file__).parent.parent


def test_numbers_times_scores_and_pictures(clips, tmp_path, run_script):
    done = run_script(
        *("keyframes.py", clips / "one.mp4", "Where is the cat?"),
        *("--budget", "3", "--images", tmp_path / "new/pictures", "--device", "cpu"),
        fresh=True,
    )
    assert done.returncode == 0, done.stderr
    head, *rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert head == ["frame", "time_s", "score"]
    numbers = [int(row[0]) for row in rows]
    assert len(numbers) == 3 and set(numbers) <= {0, 25, 50, 75, 100}
    assert [float(row[1]) for row in rows] == [number / 25 for number in numbers]
    pictures = sorted((tmp_path / "new/pictures").iterdir())
    assert [path.name for path in pictures] == [f"frame_{number:07d}.jpg" for number in numbers]
    with Video(clips / "one.mp4") as video:
        (frames,) = video.read(numbers)
    for path, pixels in zip(pictures, frames.pixels, strict=True):
        difference = np.asarray(Image.open(path)).astype(int) - pixels
        assert np.abs(difference).mean() < 12  # the frame itself, but for JPEG


def test_the_library_finds_what_the_command_finds(clips, run_script):
    found = aks.keyframes(clips / "one.mp4", "Where is the cat?", budget=3, device="cpu")
    command = ["keyframes.py", clips / "one.mp4", "Where is the cat?", "--budget", "3", "--device", "cpu"]
    done = run_script(*command)
    rows = [f"{k.frame_index}\t{k.time_s:.3f}\t{k.score:.6f}" for k in found]
    assert done.stdout.splitlines()[1:] == rows and "frame/s" in done.stderr
    assert "frame/s" not in run_script(*command, "--quiet").stderr


def test_the_public_names_are_there():
    assert all(getattr(aks, name) for name in aks.__all__)
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        aks.other  # noqa: B018


def test_pictures_of_an_earlier_question_are_replaced_and_nobody_else_s_are_touched(
    clips, tmp_path, run_script
):
    folder = tmp_path / "pictures"
    command = ["keyframes.py", clips / "one.mp4", "cat", "--images", folder, "--device", "cpu"]
    assert run_script(*command, "--budget", "5", "--workers", "0").returncode == 0
    (folder / "mine.jpg").write_bytes(b"mine")
    done = run_script(*command, "--budget", "2", "--workers", "0")
    assert done.returncode == 0, done.stderr
    kept = {f"frame_{int(row.split()[0]):07d}.jpg" for row in done.stdout.splitlines()[1:]}
    assert len(kept) == 2 and {path.name for path in folder.iterdir()} == {"mine.jpg", *kept}

    Image.new("RGB", (8, 8)).save(folder / "frame_0000007.jpg")
    done = run_script(*command)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "frame_0000007.jpg there is no picture of this command's" in done.stderr
    assert len(list(folder.iterdir())) == 4


def test_mistakes_are_one_line(clips, tmp_path, run_script):
    (tmp_path / "text.mp4").write_text("no video")
    for arguments, words in [
        ([tmp_path / "absent.mp4", "cat"], "absent.mp4: file not found"),
        ([tmp_path / "text.mp4", "cat"], "Invalid data"),
        ([clips / "one.mp4", " "], "the question is empty"),
        ([clips / "one.mp4", "cat", "--budget", "0"], "--budget: 0: must be"),
        ([clips / "one.mp4", "cat", "--strategy", "best"], "--strategy: invalid choice: 'best'"),
    ]:
        done = run_script("keyframes.py", *arguments)
        assert done.returncode == 2 and done.stdout == ""
        assert words in done.stderr and done.stderr.count("\n") == 1


def test_pip_install_gives_the_library(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT],
        check=True,
        timeout=300,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")} == {"aks"}
    code = "import aks, aks.extraction.api; print(aks.__file__, aks.select_keyframes([0, 1], [0, 9], 1))"
    done = subprocess.run(
        [forkserver.python("torch"), "-c", code],
        cwd=tmp_path / "site",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[0].startswith(str(tmp_path / "site")) and done.stdout.strip().endswith("[9]")
