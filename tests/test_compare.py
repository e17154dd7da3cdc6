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
from aks.labels import Question
from aks.plots import plot_choices
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
        (["--rules", "bolt,power"], "'power' is not NAME=VALUE with a number; such as bolt or bolt,power=2"),
        (["--rules", "ada,max_depth=inf"], "max_depth is inf; it must be a whole number"),
        (["--picture", "p.jpg"], "--picture p.jpg: name a file that ends in .png"),
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


@pytest.fixture
def drawn(monkeypatch) -> dict[str, tuple]:
    """What the plots are called with; none is drawn, which takes seconds."""
    calls = {}
    for name in ("plot_budgets", "plot_grid", "plot_choices"):
        monkeypatch.setattr(compare, name, lambda *args, name=name: calls.update({name: args}))
    return calls


def options(folder: Path, **changes: object) -> argparse.Namespace:
    """The command's flags."""
    names = {
        "dataset_name": "custom",
        "dataset_path": None,
        "frame_path": None,
        "rules": None,
        "pictured": None,
    }
    paths = {
        "label_file": "labels.json",
        "score_path": "scores.json",
        "output": "out",
        "picture": "new/p.png",
    }
    paths = {name: folder / path for name, path in paths.items()}
    return argparse.Namespace(**(names | paths | changes))


def test_what_is_left_out_is_counted(scored, drawn, capsys):
    """A failed video's question, one of a single candidate without a time, and one without evidence."""
    names = ("labels", "scores", "frames")
    entries, scores, frames = (json.loads((scored / f"{name}.json").read_text()) for name in names)
    scores[0] = frames[0] = []
    scores[1], frames[1] = [0.5], [0]
    del entries[2]["evidence_times"]
    for name, content in zip(names, (entries, scores, frames), strict=True):
        (scored / f"{name}.json").write_text(json.dumps(content))
    (scored / "times.json").unlink()
    args = options(scored, rules=[compare.parse_rule("ada")], budgets=[8, 8])
    compare.report(compare.read_case(args), args, ["compare"])
    failed, unknown, *_ = capsys.readouterr().out.splitlines()
    assert failed == "1 questions left out: they have no candidates (their video failed)"
    assert unknown == "1 questions left out: too few candidates to tell the stride"
    text = (scored / "out/comparison.md").read_text()
    assert "\n9 questions with evidence on 3 videos: `compare`" in text
    assert text.count("| 8 | recall within 1 s | `ada` |") == 1


def test_evidence_in_frames_is_drawn_at_its_time(scored, drawn):
    """29 frames of a film with 29.97 a second are less than a second, and an hour of them a minute less."""
    question = Question(0, "q", "a.mp4", "?", evidence_frames=((2900, 2929),))
    frames = np.arange(0, 29 * 200, 29)
    case = compare.Case([question], [np.arange(200.0)], [frames], [frames / 29.97])
    compare.report(case, options(scored, budgets=[4]), [])
    assert drawn["plot_choices"][4] == [pytest.approx((2900 / 29.97, 2929 / 29.97))]


def test_a_frame_that_shows_the_evidence_is_red(tmp_path):
    scores, chosen = np.random.default_rng(0).random(200), {"a": np.array([3, 100]), "b": np.array([3, 180])}
    plot_choices(tmp_path / "p.png", "?", np.arange(200.0), scores, [(100, 110), (150, 151)], chosen)
    with Image.open(tmp_path / "p.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    red = np.abs(pixels - (214, 39, 40)).max(axis=2) < 40  # tab:red
    assert 5 < red.sum() < 100


def test_rules_are_those_that_need_scores_alone():
    offered = compare.default_rules()
    assert "ada,t1=0.2,max_depth=4" in offered and len(offered) == len(set(offered))
    assert set(offered) <= {*STRATEGIES, "ada,t1=0.2,max_depth=4"}
    for strategy in STRATEGIES:
        if strategy in offered:
            assert len(select_positions(np.arange(9.0), 4, strategy=strategy)) == 4
        else:
            with pytest.raises(ValueError, match="needs the frames' features"):
                select_positions(np.arange(9.0), 4, strategy=strategy)
    with pytest.raises(argparse.ArgumentTypeError, match="mdp3: it needs more than scores"):
        compare.parse_rule("mdp3")
    rule = compare.parse_rule("ada,t1=0.2,max_depth=4")
    assert (rule.strategy, rule.settings) == ("ada", {"options": {}, "t1": 0.2, "max_depth": 4.0})


def test_the_grid_is_adas_recall_by_depth_and_threshold(scored):
    case = compare.read_case(options(scored))
    grids = compare.recall_grids(case, 16)
    assert list(grids) == [f"recall within {tolerance} s" for tolerance in (1, 3, 5)]
    hits = []
    for question, scores in zip(case.questions, case.scores, strict=True):
        times = select_positions(scores, 16, t1=0.4, max_depth=3)
        hits.append(np.mean([np.abs(times - place).min() <= 1 for place, _ in question.evidence_times_s]))
    assert grids["recall within 1 s"][2, 2] == pytest.approx(np.mean(hits))
