"""The needle benchmark: films are as their plans and labels say, figures are aks.quality's."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import check_mistake
from PIL import Image

from aks.labels import load_labels
from aks.selection import STRATEGIES, select_positions
from aks.video.reader import Video

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))

import needle_films
import needles

LENGTH_S = 180


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Things of one colour each, with captions."""
    folder = tmp_path_factory.mktemp("photos")
    for index in range(20):
        path = folder / needle_films.KINDS[index % 3] / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = (255 * (index % 2), 60 * (index // 2 % 5), 255 * (index // 10))
        Image.new("RGBA", (60, 40), (*colour, 255)).save(path)
        path.with_suffix(".txt").write_text(f"A thing {index}.\nde.utf8=Ein Ding.\n")
    return folder


@pytest.fixture(scope="module")
def film(photos, tmp_path_factory):
    """The label file of a seed's film of three minutes, and what is needed to make it again."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"LENGTHS_S": (LENGTH_S,), "QUESTION_EVERY_S": 36, "DISTRACTORS": 1}.items():
            patch.setattr(needle_films, name, value)
        folder = tmp_path_factory.mktemp("film")
        shape = (40, needle_films.HEIGHT, needle_films.WIDTH, 3)
        needle_films.encode(folder / "source.mp4", iter(np.full(shape, 128, np.uint8)))
        yield needle_films.make_films(folder / "seed_3", 3, photos, folder / "source.mp4"), folder


def plan(photos: Path, seed: int) -> needle_films.Film:
    return needle_films.plan_film(needle_films.read_things(photos), LENGTH_S, 40, seed)


def test_a_seed_always_gives_the_same_film_and_another_one_another(film, photos):
    label_file, folder = film
    video = label_file.with_name(f"{LENGTH_S}.mp4")
    before = video.stat().st_mtime_ns
    assert needle_films.make_films(label_file.parent, 3, photos, folder / "source.mp4") == label_file
    assert video.stat().st_mtime_ns == before  # it is not made again
    assert plan(photos, 3) == plan(photos, 3) != plan(photos, 4)
    entries = needle_films.label_entries(plan(photos, 3), video.name, 3, LENGTH_S)
    assert entries == json.loads(label_file.read_text())
    assert [entry["category"] for entry in entries] == [
        *("1 place", "2 places, near", "2 places, far", "4 places, near", "4 places, far")
    ]


def test_the_evidence_is_seen_where_the_labels_say(film, photos):
    """Compares the pixels of every frame that is read with the colours of the photos."""
    label_file, _ = film
    labels = load_labels("custom", label_file=label_file)
    with Video(labels.video_path(labels.questions[0].video)) as video:
        frames = np.concatenate([batch.pixels for batch in video.read(np.arange(LENGTH_S * 4))])
    assert len(frames) == LENGTH_S * needle_films.FPS
    colours = {}
    for thing in needle_films.read_things(photos):
        with Image.open(thing.photo) as photo:
            colours[f"When can one see {thing.caption}?"] = np.array(photo.getpixel((0, 0))[:3])
    counts = []
    for question in labels.questions:
        near = np.abs(frames[:, ::4, ::4].astype(int) - colours[question.text]).max(axis=3) < 30
        seen = near.mean(axis=(1, 2)) > 0.02
        labelled = np.zeros(len(frames), dtype=bool)
        for first, last in question.evidence_times_s:
            assert 0.25 <= last - first + 1 / needle_films.FPS <= 5
            labelled[round(first * needle_films.FPS) : round(last * needle_films.FPS) + 1] = True
        assert seen.tolist() == labelled.tolist()
        counts.append(len(question.evidence_times_s))
        gaps = np.diff([first for first, _ in question.evidence_times_s])
        assert question.category.endswith("near") == bool(len(gaps) and gaps.max() < 15)
    assert counts == [1, 2, 2, 4, 4]


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
    return ["--score_path", folder / "scores.json", "--label_file", folder / "labels.json"]


def test_the_figures_are_those_of_aks_quality(scored, run_script):
    picture = scored / "picture.png"
    done = run_script(
        *("benchmarks/needles.py", *flags(scored), "--budgets", 16, "--output", scored / "needles"),
        *("--rules", "nms", "ada,t1=0.2,max_depth=4", "--picture", picture),
    )
    assert done.returncode == 0, done.stderr
    with (scored / "needles/needles.csv").open() as file:
        records = list(csv.DictReader(file))
    assert {r["selection"] for r in records} == {"ada", "uniform", "nms", "ada,t1=0.2,max_depth=4"}
    with Image.open(picture) as image:
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
    table = (scored / "needles/needles.md").read_text()
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
    check_mistake(run_script("benchmarks/needles.py", *flags(scored), *more), words)


def test_labels_and_scores_that_do_not_fit_are_one_line(scored, run_script):
    check_mistake(run_script("benchmarks/needles.py", *flags(scored)[2:]), "go with --score_path")
    entries = json.loads((scored / "labels.json").read_text())
    (scored / "labels.json").write_text(json.dumps(entries[:-1]))
    check_mistake(run_script("benchmarks/needles.py", *flags(scored)), "12 questions", "must belong together")
    for entry in entries:
        del entry["evidence_times"]
    (scored / "labels.json").write_text(json.dumps(entries))
    check_mistake(run_script("benchmarks/needles.py", *flags(scored)), "no question has evidence")


def test_rules_are_those_that_need_scores_alone(monkeypatch):
    monkeypatch.setitem(STRATEGIES, "likeness", lambda scores, budget, *, features, **_: np.arange(budget))
    assert set(needles.default_rules()) == {*STRATEGIES, "ada,t1=0.2,max_depth=4"} - {"likeness"}
    with pytest.raises(argparse.ArgumentTypeError, match="likeness: it needs more than scores"):
        needles.parse_rule("likeness")
    rule = needles.parse_rule("ada,t1=0.2,max_depth=4")
    assert (rule.strategy, rule.settings) == ("ada", {"options": {}, "t1": 0.2, "max_depth": 4.0})
