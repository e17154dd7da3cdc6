"""Rules compared on scores: the figures are aks.quality's, mistakes are one line."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import check_mistake
from PIL import Image

from aks import compare
from aks.selection import STRATEGIES, select_positions

COMMAND = ("-m", "aks.compare")


@pytest.fixture
def scored(tmp_path) -> Path:
    """Scores of twelve questions on four videos of 200 s."""
    rng = np.random.default_rng(0)
    entries, scores = [], []
    for index in range(12):
        places = sorted(rng.choice(190, 2, replace=False).tolist())
        entry = {"video": f"{index // 3}.mp4", "question": "?", "evidence_times": places, "duration": 200.0}
        entries.append(entry)
        row = rng.random(200) ** 4
        row[places] += 0.4
        scores.append(row.tolist())
    for name, content in {
        "labels": entries,
        "scores": scores,
        "frames": [list(range(0, 5000, 25))] * 12,
        "times": [list(range(200))] * 12,
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def flags(folder: Path) -> list[object]:
    return [
        *("--score_path", folder / "scores.json", "--label_file", folder / "labels.json"),
        *("--dataset_name", "custom"),
    ]


def test_the_figures_are_those_of_aks_quality(scored, run_script):
    picture = scored / "picture.png"
    done = run_script(
        *(*COMMAND, *flags(scored), "--budgets", 16, "--output", scored / "out"),
        *("--rules", "nms", "ada,t1=0.2,max_depth=4", "--picture", picture),
    )
    assert done.returncode == 0, done.stderr
    with (scored / "out/comparison.csv").open() as file:
        records = list(csv.DictReader(file))
    assert {r["selection"] for r in records} == {"ada", "uniform", "nms", "ada,t1=0.2,max_depth=4"}
    for path in (picture, scored / "out/recall_by_budget.png", scored / "out/depth_threshold.png"):
        with Image.open(path) as image:
            assert image.width > 1000

    scores = json.loads((scored / "scores.json").read_text())
    for name in ("ada", "nms"):
        rows = [(select_positions(row, 16, strategy=name) * 25).tolist() for row in scores]
        (scored / f"{name}.json").write_text(json.dumps(rows))
    times = [[frame // 25 for frame in row] for row in rows]
    (scored / "selected_times.json").write_text(json.dumps(times))
    (scored / "nms.json").rename(scored / "selected_frames.json")
    done = run_script(
        *("-m", "aks.quality", "--dataset_name", "custom", "--label_file", scored / "labels.json"),
        *("--selected_frames", f"nms={scored / 'selected_frames.json'}", "--output", scored / "quality"),
    )
    assert done.returncode == 0, done.stderr
    with (scored / "quality/quality.csv").open() as file:
        expected = {r["measure"]: r for r in csv.DictReader(file) if r["selection"] == "nms"}
    ours = {r["measure"]: r for r in records if r["selection"] == "nms"}
    assert len(ours) == len(expected) == 9
    for measure, record in expected.items():
        for name in ("value", "low", "high", "questions", "videos"):
            assert ours[measure][name] == record[name], measure
    ada = next(r for r in records if r["selection"] == "ada" and r["measure"] == "recall within 1 s")
    recall = ours["recall within 1 s"]
    assert float(recall["difference_ada"]) == pytest.approx(float(recall["value"]) - float(ada["value"]))
    table = (scored / "out/comparison.md").read_text()
    assert f"| `nms` | {float(recall['value']):.3f}".replace(" 0.", " .") in table


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--rules", "best"], "--rules: best: strategy 'best': use one of uniform"),
        (["--rules", "bolt,power=0"], "bolt,power=0: power is 0"),
        (["--rules", "bolt,power"], "such as bolt or bolt,power=2"),
        (["--pictured", "q"], "--pictured goes with --picture"),
        (["--picture", "p.png", "--pictured", "q"], "--pictured q: no question with evidence"),
        (["--frame_path", "absent.json"], "absent.json: file not found"),
    ],
)
def test_a_mistake_is_one_line(scored, run_script, more, words):
    check_mistake(run_script(*COMMAND, *flags(scored), *more), words)


def test_labels_and_scores_that_do_not_fit_are_one_line(scored, run_script):
    entries = json.loads((scored / "labels.json").read_text())
    (scored / "labels.json").write_text(json.dumps(entries[:-1]))
    check_mistake(run_script(*COMMAND, *flags(scored)), "12 questions", "must belong together")
    for entry in entries:
        del entry["evidence_times"]
    (scored / "labels.json").write_text(json.dumps(entries))
    check_mistake(run_script(*COMMAND, *flags(scored)), "no question has evidence")


def test_rules_are_those_that_need_scores_alone():
    expected = {*STRATEGIES, "ada,t1=0.2,max_depth=4"} - {"mdp3", "segment_adaptive"}
    assert set(compare.default_rules()) == expected
    with pytest.raises(argparse.ArgumentTypeError, match="mdp3: it needs more than scores"):
        compare.parse_rule("mdp3")
    rule = compare.parse_rule("ada,t1=0.2,max_depth=4")
    assert (rule.strategy, rule.settings) == ("ada", {"options": {}, "t1": 0.2, "max_depth": 4.0})


def test_the_grid_is_adas_recall_by_depth_and_threshold(scored):
    arguments = argparse.Namespace(
        dataset_name="custom",
        dataset_path=None,
        label_file=scored / "labels.json",
        score_path=scored / "scores.json",
        frame_path=None,
    )
    case = compare.read_case(arguments)
    grids = compare.recall_grids(case, 16)
    assert list(grids) == [f"recall within {tolerance} s" for tolerance in (1, 3, 5)]
    hits = []
    for question, scores in zip(case.questions, case.scores, strict=True):
        times = select_positions(scores, 16, t1=0.4, max_depth=3)
        hits.append(np.mean([np.abs(times - place).min() <= 1 for place, _ in question.evidence_times_s]))
    assert grids["recall within 1 s"][2, 2] == pytest.approx(np.mean(hits))
