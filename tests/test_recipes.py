"""The recipes of CONTRIBUTING.md, followed to the letter in a copy of the project."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import forkserver
import numpy as np
import pytest
from evaluation_setup import STARTUP, samples_in, write_labels
from media import write_video

from aks.jsonio import write_json

ROOT = Path(__file__).resolve().parent.parent
# Fork servers run the commands. What an evaluation starts is a fork, too; decoding processes are not.
PYTHON = """#!/bin/sh
case "$1" in
    evaluation/*) FORKSERVER_PYTHON={lmms_eval} exec {lmms_eval} "$@" ;;
    *) exec {torch} "$@" ;;
esac
"""
PARTS = ("aks", "evaluation", "datasets", "feature_extract.py", "frame_select.py", "pyproject.toml")


def blocks_of(recipe: str) -> list[tuple[str, str]]:
    """Language and text of a recipe's code blocks, in their order."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = re.split(r"^##+ ", text.partition(f"### {recipe}\n")[2], flags=re.MULTILINE)[0]
    found = re.findall(r"^( *)```(\w+)\n(.*?)^\1```$", section, re.MULTILINE | re.DOTALL)
    return [(language, textwrap.dedent(block)) for _, language, block in found]


def put(project: Path, block: str) -> str:
    """Write a block where its first line says: a new file, or into another, at a name; returns the file."""
    head, _, code = block.partition("\n")
    name, where, variable = re.fullmatch(r"# ([\w./]+)(?:, (in|above) (\w+))?", head).groups()
    path = project / name
    path.parent.mkdir(exist_ok=True)
    if where is None:
        assert not path.exists()
        path.write_text(code)
        return name
    text = path.read_text()
    begin = re.search(rf"^{variable}\b.*?= [\[({{]", text, re.MULTILINE)
    assert begin, f"{name} has no {variable}"
    if where == "in":
        text = text[: begin.end()] + "\n" + textwrap.indent(code, "    ") + text[begin.end() :].lstrip("\n")
    else:
        text = text[: begin.start()] + code + "\n\n" + text[begin.start() :]
    path.write_text(text)
    return name


class Project:
    """A copy of the project in which a recipe was followed; its commands are still to be run."""

    def __init__(self, folder: Path, recipe: str) -> None:
        self.folder = folder
        for part in PARTS:
            if (ROOT / part).is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "videos", "data", "*.json")
                shutil.copytree(ROOT / part, folder / part, ignore=ignored)
            else:
                shutil.copy(ROOT / part, folder / part)
        shutil.copy(ROOT / "evaluation/published.json", folder / "evaluation")
        self.commands, self.changed = [], set()
        for language, block in blocks_of(recipe):
            if language == "bash":
                self.commands.append(block)
            elif language == "json":
                self.labels = json.loads(block)
            else:
                self.changed.add(put(folder, block))

    def run(self) -> str:
        """Run the recipe's commands; what they print."""
        (block,) = self.commands
        commands = self.folder / "commands"
        commands.mkdir()
        scripts = forkserver.python("torch")
        evaluations = forkserver.python("lmms_eval") if "python evaluation/" in block else scripts
        (commands / "python").write_text(PYTHON.format(torch=scripts, lmms_eval=evaluations))
        (commands / "python").chmod(0o755)
        env = {
            **os.environ,
            "PATH": os.pathsep.join([str(commands), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join(map(str, [STARTUP, self.folder])),
            "HF_DATASETS_CACHE": str(self.folder / "cache"),
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            ["bash", "-euc", block], cwd=self.folder, env=env, text=True, capture_output=True, timeout=300
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def read(self, path: str):
        return json.loads((self.folder / path).read_text())

    def check_style(self) -> None:
        """The recipe's code passes the project's own checks."""
        files = [name for name in self.changed if name.endswith(".py")]
        new = [name for name in files if not (ROOT / name).exists()]
        for check in (["check", *files], *([["format", "--diff", *new]] if new else [])):
            command = [sys.executable, "-m", "ruff", *check, "--no-cache"]
            done = subprocess.run(command, cwd=self.folder, text=True, capture_output=True)
            assert done.returncode == 0, done.stdout + done.stderr


def painted(*seconds: tuple[int, int, int]):
    """Draws one colour a second, at 25 frames a second."""

    def draw(number, width, height):
        return np.full((height, width, 3), seconds[number // 25], dtype=np.uint8)

    return draw


@pytest.fixture
def project(tmp_path):
    return lambda recipe: Project(tmp_path / "project", recipe)


def test_a_scorer(project):
    added = project("Add a scorer")
    added.check_style()
    draw = painted((0, 0, 0), (255, 0, 0), (0, 0, 0), (0, 0, 255))
    write_video(added.folder / "a.mp4", frames=100, fps=25, draw=draw)
    questions = [{"video": "a.mp4", "question": f"When is it {colour}?"} for colour in ("red", "blue")]
    write_labels(added.folder / "labels.json", questions)
    added.run()
    scores = np.array(added.read("outscores/custom/colour/scores.json"))
    assert scores.argmax(axis=1).tolist() == [1, 3]
    assert added.read("outscores/custom/colour/run.json")["scorer"] == "colour"


def test_a_strategy(project):
    added = project("Add a strategy")
    added.check_style()
    folder = added.folder / "outscores/custom/conse"
    folder.mkdir(parents=True)
    write_json(folder / "scores.json", [[5, 1, 2, 3, 9, 8, 7, 0], [1, 2]])
    write_json(folder / "frames.json", [list(range(0, 200, 25)), [0, 25]])
    added.run()
    selected = added.read("selected_frames/custom/conse/selected_frames.json")
    assert selected == [[0, 75, 100, 150], [0, 25]]
    assert added.read("selected_frames/custom/conse/selection.json")["strategy"] == "windows"


def test_a_benchmark(project):
    added = project("Add a benchmark")
    added.check_style()
    write_labels(added.folder / "datasets/quiz/quiz.json", added.labels)
    (added.folder / "datasets/quiz/videos").mkdir()
    write_video(added.folder / "datasets/quiz/videos/day.mp4", frames=125, fps=25)
    assert "| all " in added.run()  # the report
    assert [len(row) for row in added.read("selected_frames/quiz/conse/selected_frames.json")] == [4, 4]
    samples = samples_in(added.folder / "results")
    assert [sample["lvb_acc"]["id"] for sample in samples] == ["q1", "q2"]
    assert [sample["lvb_acc"]["answer"] for sample in samples] == ["A", "B"]


def test_a_model(project):
    """Only the keyframes are bright: it answers A where it is shown them, and them alone."""
    added = project("Add a model")
    added.check_style()
    keyframes = [10, 11, 50, 90]

    def draw(number, width, height):
        return np.full((height, width, 3), 255 * (number in keyframes), dtype=np.uint8)

    write_video(added.folder / "a.mp4", frames=100, fps=25, draw=draw)
    entry = {"video": "a.mp4", "question": "Which?", "options": ["bright", "dark"], "answer": "bright"}
    write_labels(added.folder / "labels.json", [entry])
    selection = added.folder / "selected_frames/custom/conse/selected_frames.json"
    selection.parent.mkdir(parents=True)
    write_json(selection, [keyframes])
    added.run()
    for frames, accuracy in (("aks", 1), ("uni", 0)):
        (sample,) = samples_in(added.folder / f"results/brightness/custom_{frames}_4")
        assert sample["lvb_acc"]["parsed_pred"] == "BA"[accuracy], frames
