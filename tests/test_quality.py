"""Measures of selections: known values by hand, the published figures, and one line a mistake."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from pathlib import Path

import forkserver
import numpy as np
import pytest
from PIL import Image

from aks import quality
from aks.labels import Question
from aks.quality import compare, evenness_of, gaps_of, measure
from aks.selected_frames import SelectedFrames

ROOT = Path(__file__).resolve().parent.parent


def question(index: int = 0, video: str = "a.mp4", **fields) -> Question:
    return Question(index, f"q{index}", video, "?", **fields)


def selected(frames: list[int], stride: int = 25) -> SelectedFrames:
    frames = np.array(frames)
    return SelectedFrames(frames, frames / 25, stride)


def test_known_values():
    asked = question(duration_s=10.0, evidence_frames=((50, 50), (200, 225)))
    values = measure(asked, selected([0, 75, 100, 250]), [1, 3])
    assert values == {
        "recall within 1 s": 1.0,  # 75 is one stride from 50, 250 from 225
        "all places within 1 s": 1.0,
        "recall within 3 s": 1.0,
        "all places within 3 s": 1.0,
        "precision within 1 s": 0.5,
        "largest gap": 0.6,  # from 4 to 10 s
        "evenness": pytest.approx(-(0.3 * np.log(0.3) + 0.1 * np.log(0.1) + 0.6 * np.log(0.6)) / np.log(5)),
    }
    values = measure(asked, selected([0, 76]), [1])
    assert (values["recall within 1 s"], values["all places within 1 s"]) == (0, 0)
    assert measure(asked, selected([]), [1])["precision within 1 s"] == 0


def test_evidence_in_seconds_and_questions_without_evidence():
    asked = question(evidence_times_s=((2.0, 2.5),))
    assert measure(asked, selected([75]), [0.4, 0.6]) == {
        "recall within 0.4 s": 0.0,
        "recall within 0.6 s": 1.0,
        "precision within 0.4 s": 0.0,
    }
    assert measure(question(), selected([75]), [1]) == {}
    assert measure(question(evidence_frames=((5, 5),)), selected([75], stride=0), [1]) == {}


def test_even_gaps_are_even_and_frames_past_the_end_count_as_its_end():
    assert evenness_of(gaps_of(np.array([2.0, 4.0, 6.0, 8.0]), 10.0)) == pytest.approx(1)
    assert gaps_of(np.array([5.0, 11.0]), 10.0).tolist() == [0.5, 0.5, 0]
    assert evenness_of(gaps_of(np.array([]), 10.0)) == 0


def test_differences_are_paired_and_videos_are_resampled():
    rng = np.random.default_rng(0)
    asked = [question(i, f"{i // 10}.mp4", group="short" if i < 50 else "long") for i in range(100)]
    values = np.repeat(rng.random(10), 10)  # the questions of a video are alike
    measured = {"uniform": {"recall": values}, "aks": {"recall": values + 0.1}}
    measured["uniform"]["recall"][3] = np.nan  # a question that one of them cannot be measured on
    records = compare(asked, measured, "uniform", {"group": [q.group for q in asked]})
    assert [(r["group"], r["selection"]) for r in records[::2]] == [
        (group, "uniform") for group in ("all", "long", "short")
    ]
    overall = records[1]
    assert (overall["questions"], overall["videos"]) == (99, 10)
    # All differ by the same: the interval is a point. That of the values is as wide as ten videos make it.
    for name in ("difference", "difference_low", "difference_high"):
        assert overall[name] == pytest.approx(0.1)
    assert overall["high"] - overall["low"] > 3 * values[np.isfinite(values)].std() / np.sqrt(99)


PUBLISHED = {  # group and tolerance in seconds to uniform's recall and the released selection's, 64 frames
    ("3600", 1): (0.096, 0.252),
    ("3600", 5): (0.507, 0.379),
    ("600", 3): (0.856, 0.644),
}


def test_the_released_selections_have_the_published_figures(reference, tmp_path):
    folder = reference / "longvideobench"
    done = command(
        *("--label_file", folder / "lvb_val.json", "--output", tmp_path),
        *("--selected_frames", f"aks={folder / 'selected_frames_64.json'}"),
    )
    assert done.returncode == 0, done.stderr
    records = {
        (record["group"], record["measure"], record["selection"]): record
        for record in csv.DictReader((tmp_path / "quality.csv").open())
    }
    categories = {record["group"] for record in records.values() if record["grouping"] == "category"}
    assert len(categories) == 17 and "S2E" in categories
    for (group, within), (uniform, aks) in PUBLISHED.items():
        found = [records[group, f"recall within {within} s", name] for name in ("uniform", "aks")]
        assert [round(float(record["value"]), 3) for record in found] == [uniform, aks]
        low, high = (float(found[1][f"difference_{end}"]) for end in ("low", "high"))
        assert low < aks - uniform < high and low * high > 0  # significant, one way or the other
    with Image.open(tmp_path / "recall.png") as picture:
        assert picture.width > 4 * picture.height > 1000


def command(*flags: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [forkserver.python("torch"), "-m", "aks.quality", *map(str, flags)],
        cwd=ROOT,
        text=True,
        capture_output=True,
    )


@pytest.fixture
def labels(tmp_path) -> Path:
    entries = [
        {"id": f"q{i}", "video": f"{i}.mp4", "question": "?", "duration": 10.0, "evidence_frames": [50]}
        for i in range(3)
    ]
    (tmp_path / "labels.json").write_text(json.dumps(entries))
    (tmp_path / "a.json").write_text(json.dumps([[0, 50, 225]] * 3))
    (tmp_path / "b.json").write_text(json.dumps([[0, 25, 100]] * 3))
    return tmp_path / "labels.json"


def test_two_selections_are_compared(labels, tmp_path):
    flags = ["--dataset_name", "custom", "--label_file", labels, "--tolerances", 0.5]
    chosen = ["--selected_frames", f"a={tmp_path / 'a.json'}", f"b={tmp_path / 'b.json'}"]
    done = command(*flags, *chosen, "--reference", "b")
    assert done.returncode == 0, done.stderr
    assert "all questions (3 questions, 3 videos)" in done.stdout
    assert "1.000 [1.000, 1.000]  +1.000 [+1.000, +1.000] against b" in done.stdout
    assert "uniform" in done.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["a.json"], "--selected_frames a.json: use NAME=FILE"),
        (["a=a.json", "a=b.json"], "the name a is taken"),
        (["uniform=a.json"], "the name uniform is taken"),
        (["a=absent.json"], "absent.json: file not found"),
        (["a=a.json", "--reference", "c"], "--reference c: use one of uniform, a"),
    ],
)
def test_a_mistake_is_one_line(labels, tmp_path, flags, words):
    flags = [flag.replace("=", f"={tmp_path}/") if flag.endswith(".json") else flag for flag in flags]
    done = command("--dataset_name", "custom", "--label_file", labels, "--selected_frames", *flags)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


def test_the_examples_of_the_help_name_their_selections():
    examples = re.findall(r"--selected_frames ([^-\n]+)", quality.__doc__)
    assert len(examples) == 2 and all("=" in text for text in " ".join(examples).split())


def test_what_one_selection_does_not_tell_another_does(labels, tmp_path):
    """A single frame tells no stride; the strides of the video are the same for every selection."""
    (tmp_path / "one.json").write_text(json.dumps([[50]] * 3))
    flags = ["--dataset_name", "custom", "--label_file", labels, "--selected_frames"]
    done = command(*flags, f"one={tmp_path / 'one.json'}", f"a={tmp_path / 'a.json'}")
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert any(line.startswith("precision within 1 s one 1.000") for line in lines)
    assert any(line.startswith("largest gap one 0.800") for line in lines)
    done = command(*flags, f"one={tmp_path / 'one.json'}")
    assert "3 questions left out: too few frames to tell the stride" in done.stdout
    assert done.returncode == 2 and "give --frame_path" in done.stderr and done.stderr.count("\n") == 1


def test_unknown_times_are_not_taken_for_uneven_ones():
    unknown = SelectedFrames(np.array([50]), np.array([np.nan]), 0)
    assert measure(question(duration_s=10.0), unknown, [1.0]) == {}
    assert measure(question(evidence_times_s=((2.0, 2.0),)), unknown, [1.0]) == {}


def test_a_recorded_stride_wins_over_guesses(labels, tmp_path):
    """Frames 0, 100 and 200 look like a candidate every 100; evidence at 50 is two seconds from them."""
    entries = [
        entry | {"group": group} for entry, group in zip(json.loads(labels.read_text()), "aab", strict=True)
    ]
    labels.write_text(json.dumps(entries))
    (tmp_path / "x.json").write_text(json.dumps([[0, 100, 200], [0, 100, 200], []]))
    (tmp_path / "selected_frames.json").write_text(json.dumps([[0, 50, 225], [0, 50, 225], []]))
    (tmp_path / "selection.json").write_text(json.dumps({"strides": [25, 25, 0]}))
    done = command(
        *("--dataset_name", "custom", "--label_file", labels, "--output", tmp_path / "out"),
        *("--selected_frames", f"x={tmp_path / 'x.json'}", f"a={tmp_path / 'selected_frames.json'}"),
    )
    assert done.returncode == 0 and not done.stderr, done.stderr  # nothing of group b can be drawn
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "1 questions left out: too few frames to tell the stride; give --frame_path" in lines
    assert any(line.startswith("recall within 1 s x 0.000") for line in lines)


def test_every_table_says_how_many_questions_it_is_of(labels, tmp_path):
    entries = json.loads(labels.read_text())
    del entries[0]["evidence_frames"]
    labels.write_text(json.dumps(entries))
    done = command(
        *("--dataset_name", "custom", "--label_file", labels, "--selected_frames"),
        f"a={tmp_path / 'a.json'}",
    )
    recall, gaps = done.stdout.split("\n\n")
    assert recall.startswith("candidate strides are guessed") and "largest gap" not in recall
    assert "\nall questions (2 questions, 2 videos)\n" in recall
    assert gaps.startswith("all questions (3 questions, 3 videos)") and "largest gap" in gaps
