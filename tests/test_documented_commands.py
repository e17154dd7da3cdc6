"""The shell commands of the documents run as they are written, but those for which NOT_RUN has a reason."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import forkserver
import pyarrow
import pyarrow.parquet
import pytest
from benchmark_setup import videomme_v2_rows, write_mlvu_files
from media import write_video
from test_arguments import start
from test_documents import DOCUMENTS, ROOT, blocks

NOT_RUN = {
    r"^source |^environment_|^pip install|^bash (demo|test|lock)\.sh|^AKS_TESTS_LONG": "installs packages",
    r"/scripts/(?!reproduce_selections)|lmms_eval |--model qwen": "needs the weights of a large model",
    r"--backend lavis|swap_in\.py": "needs LAVIS's weights; changes the installed lmms-eval",
    r"feature_extract(_store)?\.py (?!.*--device cpu)|--features features/": "needs a GPU, or its results",
    r"benchmarks/": "needs a GPU, downloads, or half a minute",
    r"^(python|bash) tests/": "runs tests",
    r"check_environment\.py": "test.sh runs it before the tests",
    r"evaluation/(tables|frame_numbering)\.py": "needs runs, or edit lists: tests/evaluation makes these",
}
# Run by AKS_TESTS_LONG=1: the tests of their areas run much the same.
TAKES_LONG = re.compile(r"keyframes\.py|feature_extract\.py|aks\.compare|aks background")


def documented_commands() -> list[str]:
    """The commands in blocks of shell code, each once; CONTRIBUTING.md's recipes have tests of their own."""
    found: dict[str, None] = {}
    for path in DOCUMENTS:
        for block in blocks(path, "bash", before="## Recipes"):
            lines = re.sub(r" *\\\n\s*", " ", block).splitlines()
            found.update((line.partition("  #")[0].strip(), None) for line in lines if line)
    return list(found)


COMMANDS = documented_commands()
RUN = [line for line in COMMANDS if not any(re.search(pattern, line) for pattern in NOT_RUN)]
QUICK = [line for line in RUN if not TAKES_LONG.search(line)]


@pytest.fixture
def project(tmp_path) -> Path:
    """A checkout with all that the commands read: films, labels, scores and selections of two questions."""
    for path in ROOT.iterdir():
        if path.suffix in (".py", ".toml") or path.name in ("aks", "evaluation"):
            (tmp_path / path.name).symlink_to(path)
    ignored = shutil.ignore_patterns("__pycache__", "videos", "data", "*.json")
    shutil.copytree(ROOT / "datasets", tmp_path / "datasets", ignore=ignored)
    video = write_video(tmp_path / "talk.mp4", frames=100, fps=25)
    for name in (
        "films/a.mp4",
        "holidays/a.mp4",
        "lecture.mp4",
        "talks/monday.mp4",
        "datasets/longvideobench/videos/talk.mp4",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(video)

    def write(name: str, content: object) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))

    facts = {"video_path": "talk.mp4", "question": "What?", "candidates": ["a cat", "a dog"], "duration": 4.0}
    facts |= {"correct_choice": 0, "duration_group": 15, "question_category": "S2E"}
    write("datasets/longvideobench/lvb_val.json", [{"id": id, "position": [25], **facts} for id in "ab"])
    options = ["A. One.", "B. Two.", "C. Three.", "D. Four."]
    facts = {"videoID": "talk", "question": "How many?", "options": options, "answer": "C", "video_id": "001"}
    facts |= {
        "duration": "short",
        "domain": "Art",
        "sub_category": "Art",
        "url": "https://www.example.org/",
        "task_type": "Counting",
    }
    labels = [{**facts, "question_id": id} for id in ("001-1", "001-2")]
    for name in ("videomme", "include_frame_idx"):
        write(f"datasets/videomme/{name}.json", labels)
    write("labels.json", json.loads(*blocks(ROOT / "README.md", "json")))
    models = [
        f"{name}/{model}" for name in ("longvideobench", "videomme") for model in ("blip", "clip", "sevila")
    ]
    for run, count in {**dict.fromkeys(models, 2), "custom/conse": 1}.items():
        for name, row in {"scores": [1, 4, 2, 3], "frames": [0, 25, 50, 75], "times": [0, 1, 2, 3]}.items():
            write(f"outscores/{run}/{name}.json", [row] * count)
    for name in ("selected_frames.json", "other/selected_frames.json"):
        write(name, [[0, 25], [50, 75]])
    rows = [{"doc_id": index, "index": [75, 25]} for index in range(2)]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(labels), tmp_path / "test-00000-of-00001.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(videomme_v2_rows()), tmp_path / "test.parquet")
    (tmp_path / "MLVU/json").mkdir(parents=True)
    write_mlvu_files(tmp_path / "MLVU/json")
    return tmp_path


@pytest.mark.parametrize(
    "commands",
    [
        pytest.param(QUICK, id="quick"),
        pytest.param(RUN, id="all", marks=pytest.mark.long),
    ],
)
def test_the_commands_of_the_documents_run(project, commands):
    assert len(commands) > 10
    (project / "bin").mkdir()
    for name, arguments in {"python": "", "aks": "-m aks "}.items():
        (project / "bin" / name).write_text(f'#!/bin/sh\nexec {forkserver.python("torch")} {arguments}"$@"\n')
        (project / "bin" / name).chmod(0o755)
    env = {
        **os.environ,
        "PATH": os.pathsep.join([str(project / "bin"), os.environ["PATH"]]),
        "PYTHONPATH": str(project),
        "AKS_CACHE": str(project / "cache"),
    }
    failed = {}
    for command in commands:
        done = subprocess.run(
            ["bash", "-euc", command], cwd=project, env=env, text=True, capture_output=True, timeout=300
        )
        if done.returncode != 0:
            failed[command] = done.stdout[-1000:] + done.stderr[-1000:]
    assert failed == {}


def test_every_reason_is_a_command_s():
    assert [pattern for pattern in NOT_RUN if not any(re.search(pattern, line) for line in COMMANDS)] == []


def test_every_flag_of_a_documented_command_is_one_of_that_script(monkeypatch, capsys):
    """Of ``python SCRIPT --flag ...``, in code blocks and in the text; every script is there."""
    flags: dict[str, set[str]] = {}
    for path in DOCUMENTS:
        text = re.sub(r"\\\n\s*", " ", path.read_text())
        commands = re.findall(r"python (-m aks\.\w+|[\w/]+\.py)([^\n`#]*)", text)
        commands += [
            (f"-m aks {name}", rest) for name, rest in re.findall(r"^ *aks (\w+)([^\n#]*)", text, re.M)
        ]
        for command in commands:
            flags.setdefault(command[0], set()).update(re.findall(r"(?<!\S)--\w+", command[1]))
        for script, rest in re.findall(r"bash ([\w/]+\.sh)([^\n`#]*)", text):
            started = re.findall(r"exec python ([\w/]+\.py)", (ROOT / script).read_text())
            for name in started:  # those of evaluation/scripts/ pass their flags on
                flags.setdefault(name, set()).update(re.findall(r"(?<!\S)--\w+", rest))
    assert len(flags) > 10
    for script, given in flags.items():
        given = given - {flag for line in QUICK if script in line for flag in line.split()}
        if not given:
            assert script.startswith("-m") or (ROOT / script).is_file(), script
            continue
        with pytest.raises(SystemExit, match=r"^0$"):
            start(monkeypatch, script.removeprefix("-m aks "), ["--help"])
        assert given <= set(re.findall(r"--\w+", capsys.readouterr().out)), script
