"""Selections survive the way to the files of other tools and back; what does not fit is one line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import forkserver
import pytest

ROOT = Path(__file__).resolve().parent.parent
FRAMES = [[0, 25, 50, 75, 100], [0, 30, 60]]
TIMES = [[0.0, 1.0, 2.0, 3.0, 4.0], [0.0, 1.001, 2.002]]
SELECTED = [[25, 100], [0, 30, 60]]


@pytest.fixture
def folder(tmp_path) -> Path:
    entries = [{"id": id, "video": f"{id}.mp4", "question": "?"} for id in ("a", "b")]
    times = [[TIMES[i][FRAMES[i].index(frame)] for frame in row] for i, row in enumerate(SELECTED)]
    files = {"labels": entries, "frames": FRAMES, "times": TIMES, "selected_frames": SELECTED}
    for name, content in {**files, "selected_times": times}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def convert(folder: Path, *arguments: object) -> subprocess.CompletedProcess:
    command = [forkserver.python("torch"), "-m", "aks.interchange", *map(str, arguments)]
    command += ["--dataset_name", "custom", "--label_file", str(folder / "labels.json")]
    return subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(ROOT)}, text=True, capture_output=True, check=False
    )


@pytest.mark.parametrize(
    ("form", "name"), [("videoitg", "out.jsonl"), ("kfs", "out.json"), ("csv", "out.csv")]
)
def test_a_selection_comes_back_as_it_went(folder, form, name):
    done = convert(folder, "export", form, "selected_frames.json", name)
    assert done.stdout == f"wrote {name}: 2 questions, 5 keyframes\n", done.stderr
    flags = ["--frame_path", "frames.json"] if form == "kfs" else []
    done = convert(folder, "import", form, name, "back.json", *flags)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "back.json").read_text()) == SELECTED


def test_the_files_are_those_of_the_other_tools(folder):
    for form, name in {"videoitg": "v.jsonl", "kfs": "k.json", "csv": "c.csv"}.items():
        convert(folder, "export", form, "selected_frames.json", name)
    lines = [json.loads(line) for line in (folder / "v.jsonl").read_text().splitlines()]
    assert lines == [{"doc_id": 0, "index": [25, 100]}, {"doc_id": 1, "index": [0, 30, 60]}]
    assert json.loads((folder / "k.json").read_text()) == [
        {"id": "a", "frame_timestamps": [1.0, 4.0]},
        {"id": "b", "frame_timestamps": [0.0, 1.001, 2.002]},
    ]
    assert (folder / "c.csv").read_text().splitlines()[:2] == [
        "question,video,frame,time_s",
        "a,a.mp4,25,1.0",
    ]


def test_ranked_results_are_cut_and_put_in_order(folder):
    rows = [{"doc_id": 1, "index": [60, 0, 30]}, {"doc_id": 0, "index": [75, 25, 0], "logits": [3, 2, 1]}]
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = convert(folder, "import", "videoitg", "results.jsonl", "back.json", "--max_num_frames", 2)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "back.json").read_text()) == [[25, 75], [0, 60]]


def test_times_between_candidates_become_the_nearest(folder):
    rows = [{"id": "a", "frame_timestamps": [1.4, 9]}, {"id": "b", "frame_timestamps": [1.6]}]
    (folder / "k.json").write_text(json.dumps(rows))
    done = convert(folder, "import", "kfs", "k.json", "back.json", "--frame_path", "frames.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "back.json").read_text()) == [[25, 100], [60]]


@pytest.mark.parametrize(
    ("form", "content", "words"),
    [
        ("videoitg", '[{"doc_id": 0, "index": [1]}]', "1 questions of"),
        ("videoitg", '[{"doc_id": 2, "index": [1]}]', "entry 0 is of no question"),
        ("videoitg", '[{"doc_id": 0, "index": [1]}, {"doc_id": 0, "index": [1]}]', "question a comes twice"),
        ("videoitg", '[{"doc_id": 0, "index": [1.5]}]', "question a: [1.5] is no list of frames"),
        ("kfs", "[]", "name step 1's frames.json"),
        ("csv", "question,frame\na,x\n", "question a: [-1] is no list of frames"),
        ("csv", "question,frame\nc,1\n", "is of no question"),
        ("csv", "id,frame\na,1\n", "its first line names no column 'question'"),
        ("csv", b"question,frame\n\xe9,1\n", "not UTF-8 text"),
    ],
)
def test_what_does_not_fit_is_one_line(folder, form, content, words):
    (folder / "in.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    done = convert(folder, "import", form, "in.json", "back.json")
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1
    assert not (folder / "back.json").exists()


def test_times_are_never_taken_for_frame_numbers(folder):
    """A video that failed in step 1 has no candidates."""
    (folder / "k.json").write_text(json.dumps([{"id": id, "frame_timestamps": [1, 2]} for id in ("a", "b")]))
    (folder / "frames.json").write_text(json.dumps([FRAMES[0], []]))
    (folder / "times.json").write_text(json.dumps([TIMES[0], []]))
    done = convert(folder, "import", "kfs", "k.json", "back.json", "--frame_path", "frames.json")
    assert done.returncode == 2 and "question b has 0 candidates" in done.stderr
    assert not (folder / "back.json").exists()


def test_an_imported_selection_does_not_stand_beside_another_ones_record(folder):
    """Recall would read those times as its own, the evaluation that budget."""
    (folder / "c.csv").write_text("question,frame\na,75\na,100\n")
    before = (folder / "selected_frames.json").read_text()
    done = convert(folder, "import", "csv", "c.csv", "selected_frames.json")
    assert done.returncode == 2 and "selected_times.json beside it is of another selection" in done.stderr
    assert (folder / "selected_frames.json").read_text() == before
    (folder / "selected_times.json").unlink()
    done = convert(folder, "import", "csv", "c.csv", "selected_frames.json")
    assert done.stdout.splitlines()[1] == "1 questions have no keyframes"  # b is not in the file


def test_a_selection_without_times_has_none_to_export(folder):
    (folder / "selected_times.json").unlink()
    done = convert(folder, "export", "kfs", "selected_frames.json", "k.json")
    assert done.returncode == 2 and "it needs selected_times.json" in done.stderr
    convert(folder, "export", "csv", "selected_frames.json", "c.csv")
    assert (folder / "c.csv").read_text().splitlines()[1] == "a,a.mp4,25,"
    assert "absent.json: file not found" in convert(folder, "export", "csv", "absent.json", "c.csv").stderr
