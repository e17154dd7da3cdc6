"""The paper's ablations from scores to tables: cells, the questions asked, one list of what is missing."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import forkserver
import numpy as np
import pytest
from evaluation_setup import ROOT, STARTUP, write_longvideobench_labels, write_numbered_video

import evaluation.reproduce
from aks import UserError, select_keyframes
from evaluation.grids import GRIDS, PUBLISHED, DistinctQuestions, Setting, cells_of


def test_every_published_figure_is_a_cell():
    published = json.loads(PUBLISHED.read_text())
    counts = {"strategies": 4, "scorers": 12, "candidate_rates": 15, "depth_threshold": 36}
    for grid in GRIDS:
        for dataset in ("longvideobench", "videomme"):
            cells = cells_of(grid, dataset, {})
            assert [cell.published for cell in cells] == [row[dataset] for row in published[grid]["rows"]]
            assert len(cells) == counts[grid]


def test_the_preset_fits_the_published_figures():
    headline = {
        dataset: next(
            cell.setting
            for cell in cells_of("strategies", dataset, {})
            if cell.setting.strategy == "ada" and cell.setting.scorer
        )
        for dataset in ("longvideobench", "videomme")
    }
    assert headline["longvideobench"] == Setting(64, "blip", "ada", 1, 0.2, 4, "released")
    assert headline["videomme"] == Setting(64, "blip", "ada", 1, 0.8, 5, "released")
    rates = cells_of("candidate_rates", "longvideobench", {})
    assert [cell.setting.ratio for cell in rates[:5]] == [1, 2, 4, 8, 10]
    deep = cells_of("depth_threshold", "videomme", {"t1": 0.5, "quota": "full"})
    assert {(c.setting.t1, c.setting.max_depth) for c in deep} == {
        (t1, depth) for t1 in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0) for depth in range(1, 7)
    }  # the table's own settings win over the flags
    assert {cell.setting.quota for cell in deep} == {"full"}
    assert cells_of("strategies", "videomme", {"t1": 0.5})[-1].setting.t1 == 0.5


def test_cells_that_the_released_quota_leaves_empty_take_the_full_one_and_are_marked():
    marked = [cell for cell in cells_of("scorers", "videomme", {}) if cell.remark]
    assert {(cell.setting.frames, cell.setting.quota) for cell in marked} == {(16, "full")}
    assert len(marked) == 3  # of three scorers; uniform frames have no quota
    scores = np.random.default_rng(0).random(100)
    rows = marked[0].setting.select([scores], [np.arange(100) * 24])
    assert rows == [select_keyframes(scores, np.arange(100) * 24, 16, t1=0.8, max_depth=5)]
    assert not [c for c in cells_of("scorers", "longvideobench", {}) if c.remark]  # depth 4 leaves one a bin
    remarks = {c.remark for c in cells_of("depth_threshold", "videomme", {})}
    assert remarks == {"", "54.5 as printed"}
    assert {c.remark for c in cells_of("depth_threshold", "longvideobench", {})} == {""}


def test_the_commands_own_settings_are_a_preset_too():
    for dataset in ("longvideobench", "videomme"):
        cells = cells_of("scorers", dataset, {"t1": 0.5}, "default")
        settings = {(c.setting.t1, c.setting.max_depth, c.setting.quota) for c in cells if c.setting.scorer}
        assert settings == {(0.5, 5, "full")}
        assert {cell.remark for cell in cells} == {""}
    with_flag = cells_of("scorers", "videomme", {"quota": "released"})  # a flag wins, although it leaves none
    assert {c.setting.quota for c in with_flag if c.setting.scorer} == {"released"}
    assert {cell.remark for cell in with_flag} == {""}


def test_a_question_is_asked_once_for_each_list_of_frames():
    first, second, third = (Setting(2, "blip", t1=t1) for t1 in (0.1, 0.2, 0.3))
    asked = DistinctQuestions(2, refill=True)
    asked.add(first, [[1, 2], [5], [7, 9]])
    asked.add(second, [[1, 2], [6], [7, 8]])
    asked.add(third, [[1, 2], [5, 6], [7, 8]])
    # The second question shows uniform frames in two settings, whatever was selected.
    assert asked.rows == [[1, 2], [5], [7, 9], [7, 8], [5, 6]]
    assert asked.sources == [0, 1, 2, 2, 1]
    assert asked.num_questions == 9
    right = [True, False, False, True, True]
    accuracies = [asked.accuracy(setting, right) for setting in (first, second, third)]
    assert accuracies == pytest.approx([100 / 3, 200 / 3, 100])
    strict = DistinctQuestions(2, refill=False)
    strict.add(first, [[5]])
    strict.add(second, [[6]])
    assert strict.rows == [[5], [6]]


def test_a_question_is_known_by_its_frames_in_every_table():
    """Its answers are kept by its id, so that another table with the same frames does not ask again."""
    first, second = (Setting(2, "blip", t1=t1) for t1 in (0.1, 0.2))
    one, two = DistinctQuestions(2, refill=True), DistinctQuestions(2, refill=True)
    one.add(first, [[1, 2], [5]])
    two.add(second, [[3, 4], [6]])
    two.add(first, [[1, 2], [5]])
    assert two.rows == [[3, 4], [6], [1, 2]]
    assert two.digests[1:] == one.digests[::-1]  # below the budget both show the same uniform frames
    assert len(set(two.digests)) == 3


def test_the_grid_of_depth_and_threshold_is_drawn(tmp_path):
    """All published figures stand in the plot; a cell that was not evaluated stays empty."""
    import matplotlib.figure

    records = []
    for cell in cells_of("depth_threshold", "videomme", {}):
        record = {"benchmark": "videomme", **cell.fields, "paper": cell.published}
        if cell.setting.max_depth == 5:
            record |= {"ours": cell.published - 1, "difference": -1.0}
        records.append(record)
    drawn = []
    save = matplotlib.figure.Figure.savefig

    def keep(figure, *arguments, **options):
        drawn.append([[text.get_text() for text in axis.texts] for axis in figure.axes])
        return save(figure, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matplotlib.figure.Figure, "savefig", keep)
        evaluation.reproduce.plot_depth_threshold(tmp_path / "grid.png", records)
    ((paper, ours, difference),) = drawn
    assert paper == [f"{cell.published:.1f}" for cell in cells_of("depth_threshold", "videomme", {})]
    assert ours == ["62.8", "63.1", "63.7", "64.0", "64.3", "64.2"] and difference == ["-1.0"] * 6
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def world(tmp_path) -> Path:
    """Two questions about one video, with generated scores."""
    write_numbered_video(tmp_path / "videos/a.mp4", frames=200, fps=2)
    write_longvideobench_labels(tmp_path, ["a.mp4", "a.mp4"])
    rng = np.random.default_rng(1)
    folder = tmp_path / "outscores/longvideobench/blip"
    folder.mkdir(parents=True)
    (folder / "scores.json").write_text(json.dumps((rng.random((2, 100)) ** 6).tolist()))
    (folder / "frames.json").write_text(json.dumps([list(range(0, 200, 2))] * 2))
    return tmp_path


def reproduce(world: Path, *arguments: object) -> subprocess.CompletedProcess:
    flags = ["--outscores", world / "outscores", "--output", world / "out"]
    python = forkserver.python("lmms_eval")
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(STARTUP), "OMP_NUM_THREADS": "1"}
    env |= {"HF_DATASETS_CACHE": str(world / "datasets_cache"), "FORKSERVER_PYTHON": python}
    env["LIMIT"] = "1"  # a setting of run.py, which counts for nothing here
    command = [python, ROOT / "evaluation/reproduce.py", *arguments, *flags]
    return subprocess.run(list(map(str, command)), cwd=world, env=env, text=True, capture_output=True)


def test_selections_are_written_without_a_model(world):
    done = reproduce(world, "selections", "--dataset", "longvideobench")
    assert done.returncode == 1  # the scores of two scorers are missing
    assert done.stderr.splitlines() == [
        f"missing: {world}/outscores/longvideobench/{scorer}/scores.json: file not found, for scorers; make "
        f"it: python feature_extract.py --dataset_name longvideobench --extract_feature_model {scorer}"
        for scorer in ("sevila", "clip")
    ]
    folder = world / "out/selections/longvideobench"
    names = {path.name for path in folder.iterdir()}
    blip = {
        cell.setting
        for grid in GRIDS
        for cell in cells_of(grid, "longvideobench", {})
        if cell.setting.scorer == "blip"
    }
    assert names == {setting.name for setting in blip}
    scores = json.loads((world / "outscores/longvideobench/blip/scores.json").read_text())
    chosen = json.loads((folder / "blip_32_ada_t0.2_d4_r1_released/selected_frames.json").read_text())
    expected = [
        select_keyframes(row, range(0, 200, 2), 32, t1=0.2, max_depth=4, quota="released") for row in scores
    ]
    assert chosen == expected
    record = json.loads((folder / "blip_32_ada_t0.2_d4_r1_released/selection.json").read_text())
    assert record["max_num_frames"] == 32


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--all_depth", "99"], "max_depth is 99"),
        (["--all_depth", "-1"], "max_depth is -1"),
        (["--t1", "nan"], "t1 and t2 must be numbers"),
    ],
)
def test_a_wrong_setting_is_one_line(world, flags, words):
    done = reproduce(world, "selections", "--dataset", "longvideobench", *flags)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


def test_an_output_that_is_no_folder_is_told(world):
    (world / "out").touch()
    done = reproduce(world, "selections", "--dataset", "longvideobench")
    assert done.returncode == 2
    words = f"{world}/out: cannot be created: File exists; check --output"
    assert done.stderr.splitlines()[-1] == f"error: {words}"
    (world / "out").unlink()
    (world / "out").mkdir()
    (world / "out/selections").touch()
    done = reproduce(world, "selections", "--dataset", "longvideobench")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {world}/out/selections/longvideobench/")


def test_what_is_missing_is_listed_once_before_anything_runs(world):
    shutil.rmtree(world / "outscores")
    done = reproduce(world, "depth_threshold", "--check_only")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 5 and all(line.startswith("missing: ") for line in lines)
    assert sum("scores.json" in line for line in lines) == 2  # not once a cell
    assert any("lvb_val.json: label file not found; see datasets/README.md, or" in line for line in lines)
    assert any("checkpoints/llava_video_7b" in line for line in lines)
    done = reproduce(world, "depth_threshold")
    assert done.returncode == 2 and "nothing was evaluated" in done.stderr
    done = reproduce(world, "strategies", "--labels", "x.json")
    assert done.returncode == 2 and "belong to one data set" in done.stderr


@pytest.mark.slow
def test_a_table_from_scores_to_accuracy(world, monkeypatch):
    command = ["strategies", "--dataset", "longvideobench", "--model", "conse_qa", "--gpus", "0"]
    command += ["--labels", world / "lvb_val.json", "--videos", world / "videos"]
    done = reproduce(world, *command)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "3 selections of 2 questions are 6" in done.stdout
    with open(world / "out/strategies_conse_qa.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["strategy"] for row in rows] == ["uniform", "top", "bin", "ada"]
    assert [float(row["paper"]) for row in rows] == [58.9, 62.4, 60.2, 62.7]
    assert {float(row["ours"]) for row in rows} <= {0, 50, 100}
    for row in rows:
        assert float(row["difference"]) == pytest.approx(float(row["ours"]) - float(row["paper"]))
    # Each answer is that of the cell's own frames.
    results = world / "out/conse_qa/longvideobench_strategies_64"
    entries = json.loads((results / "include_frame_idx.json").read_text())
    asked = {(entry["id"].split("#")[0], tuple(entry["frame_idx"])) for entry in entries}
    folder = world / "out/selections/longvideobench"
    shown = {
        (f"q{index}", tuple(row))
        for path in folder.rglob("selected_frames.json")
        for index, row in enumerate(json.loads(path.read_text()))
    }
    assert asked == shown and len(entries) == len(asked)
    # Again: nothing is asked. A limit beyond the questions is none.
    again = reproduce(world, *command, "--limit", 5)
    assert again.returncode == 0 and "lmms_eval" not in again.stdout, again.stderr
    # Of other frames it is: results and record of the old ones stay for the check below.
    shutil.copytree(world / "out", world / "kept")
    path = world / "outscores/longvideobench/blip/scores.json"
    scores = path.read_text()
    path.write_text(json.dumps([row[::-1] for row in json.loads(scores)]))
    flags = ["--outscores", world / "outscores", "--output", world / "out"]
    monkeypatch.setattr(sys, "argv", list(map(str, ["reproduce.py", *command, *flags])))
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 3))
    with pytest.raises(UserError, match="longvideobench_strategies_64: the evaluation failed"):
        evaluation.reproduce.main()
    monkeypatch.undo()
    path.write_text(scores)
    shutil.rmtree(world / "out")
    (world / "kept").rename(world / "out")
    # The results of an evaluation are not taken for those of another one that failed, nor afterwards.
    for _ in range(2):
        failed = reproduce(world, *command, "--checkpoint", "a,b")
        assert failed.returncode == 2
        assert "longvideobench_strategies_64: the evaluation failed" in failed.stderr  # the first one, again
