"""Evidence recall: by hand, by the published figures, and as a command."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import check_mistake

from aks.evidence import distances, found_within
from aks.labels import Question, load_labels
from aks.recall import format_table, recall_table
from aks.score_lists import infer_stride, read_number_lists
from aks.selected_frames import uniform_frames, uniform_times


def test_recall_by_hand():
    def found(selected, evidence, tolerance):
        return found_within([(distances(selected, evidence), 1.0)], tolerance).tolist()

    assert found([0, 100], [(10, 10), (50, 50), (99, 99), (130, 140)], 10) == [True, False, True, False]
    assert found([0, 100], [(90, 110)], 0) == [True]  # inside an interval
    assert found([], [(5, 5)], 1000) == [False]


def test_uniform_sampling_by_hand():
    assert uniform_frames(10.9, 25, 4).tolist() == [0, 68, 136, 204]
    assert uniform_frames(3.2, 25, 64).tolist() == [0, 26, 52]  # no more than one a second
    assert uniform_times(10, 4).tolist() == [0, 2.5, 5, 7.5]
    assert uniform_times(3.3, 64).tolist() == pytest.approx([0, 1.1, 2.2])
    for duration_s in (0, 0.5):  # one frame, where not a second is whole
        assert uniform_frames(duration_s, 25, 4).tolist() == uniform_times(duration_s, 4).tolist() == [0]
    assert infer_stride(np.array([0, 58, 145])) == 29
    assert infer_stride(np.array([0])) == infer_stride(np.array([50])) == 0


@pytest.mark.parametrize(
    ("budget", "group", "selected", "uniform"),
    [
        (64, "600", 0.490, 0.360),
        (64, "3600", 0.252, 0.096),
        (32, "600", 0.370, 0.153),
        (32, "3600", 0.205, 0.053),
    ],
)
def test_the_released_selections_have_the_published_recall(reference, budget, group, selected, uniform):
    folder = reference / "longvideobench"
    labels = load_labels("longvideobench", label_file=folder / "lvb_val.json")
    frames = read_number_lists(folder / f"selected_frames_{budget}.json")
    rows, unknown = recall_table(labels.questions, frames, budget)
    assert unknown == 0
    (row,) = (row for row in rows if row.group == group)
    assert round(row.selected[1.0], 3) == selected
    assert round(row.uniform[1.0], 3) == uniform


ENTRIES = [
    {
        "id": index,
        "video": "a.mp4",
        "question": "What?",
        "evidence_frames": evidence,
        "duration": 100,
        "group": group,
    }
    for index, (evidence, group) in enumerate([([100], "10"), ([1000, 2000], "9"), ([500], "9")])
]
SELECTED = [[75, 125], [25, 1025], [0, 25, 50, 75]]


@pytest.fixture
def recall(tmp_path, run_script):
    """Run the command on the files of ``tmp_path``, at first those above; returns the finished process."""
    (tmp_path / "labels.json").write_text(json.dumps(ENTRIES))
    (tmp_path / "selected_frames.json").write_text(json.dumps(SELECTED))

    def run(*options, fresh=False):
        return run_script(
            *("-m", "aks.recall", "--dataset_name", "custom", "--label_file", tmp_path / "labels.json"),
            *("--selected_frames", tmp_path / "selected_frames.json", *options),
            fresh=fresh,
        )

    return run


def test_the_command_prints_groups_in_order_beside_uniform(recall, tmp_path):
    done = recall("--output_file", tmp_path / "table.json", fresh=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[2:5]] == [["9", "2"], ["10", "1"], ["all", "3"]]
    rows = json.loads((tmp_path / "table.json").read_text())
    # stride 25: frame 1025 is within 1 s of 1000; nothing is near 2000 and 500; 75 and 125 are 1 s off 100
    assert [row["selected"]["1.0"] for row in rows] == [0.25, 1.0, 0.5]
    # uniform at the longest selection's budget of four: frames 0, 625, 1250 and 1875
    assert [row["uniform"]["1.0"] for row in rows] == [0, 0, 0]
    assert [row["uniform"]["5.0"] for row in rows] == pytest.approx([0.75, 1, 2.5 / 3])
    done = recall("--max_num_frames", 2, "--tolerances", 5)  # of two: frames 0 and 1250
    assert [line.split()[3] for line in done.stdout.splitlines()[2:5]] == ["0.000", "1.000", "0.333"]
    (tmp_path / "selected_frames.json").write_text(json.dumps([SELECTED[0], SELECTED[2], SELECTED[0]]))
    done = recall("--tolerances", 5)  # again at a budget of four, wherever the longest selection stands
    assert [line.split()[3] for line in done.stdout.splitlines()[2:5]] == ["0.750", "1.000", "0.833"]


def test_evidence_in_seconds_uses_the_selected_times(tmp_path, recall):
    entry = {"video": "a.mp4", "question": "What?", "evidence_times": [[10, 12], 40]}
    (tmp_path / "labels.json").write_text(json.dumps([entry]))
    (tmp_path / "selected_frames.json").write_text("[[300, 600]]")
    check_mistake(recall(), "selected_times.json")
    (tmp_path / "selected_times.json").write_text("[[12.9, 41.5]]")
    done = recall("--tolerances", 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2].split() == ["-", "1", "0.500", "-"]
    assert "uniform needs the label file to state every video's duration" in done.stdout


def test_a_stride_that_cannot_be_told_is_left_out_and_counted(recall, tmp_path):
    (tmp_path / "selected_frames.json").write_text(json.dumps([[75, 125], [960], []]))
    done = recall()
    assert done.returncode == 0, done.stderr
    assert "2 questions left out" in done.stdout
    (tmp_path / "selection.json").write_text(json.dumps({"strides": [25, 0, 25]}))  # of a single candidate
    done = recall()
    assert done.returncode == 0, done.stderr
    assert "1 questions left out" in done.stdout
    (tmp_path / "frames.json").write_text(json.dumps([[0, 40, 60], [0, 50, 100], [0, 500]]))
    done = recall("--frame_path", tmp_path / "frames.json", "--tolerances", 1)
    assert done.returncode == 0, done.stderr
    assert "left out" not in done.stdout and "guessed" not in done.stdout
    # 75 and 125 are not within 20 of 100; 960 is within 50 of 1000, not of 2000; nothing is selected near 500
    assert [line.split()[2] for line in done.stdout.splitlines()[2:5]] == ["0.250", "0.000", "0.167"]


def test_an_evenly_spaced_selection_is_measured_by_its_recorded_stride(tmp_path, run_script, recall):
    entry = {"video": "a.mp4", "question": "What?", "evidence_frames": [1000], "duration": 596}
    (tmp_path / "labels.json").write_text(json.dumps([entry]))
    (tmp_path / "scores.json").write_text(json.dumps([[0.5] * 596]))
    (tmp_path / "frames.json").write_text(json.dumps([list(range(0, 24 * 596, 24))]))
    done = run_script(
        *("frame_select.py", "--score_path", tmp_path / "scores.json", "--strategy", "uniform"),
        *("--max_num_frames", 8, "--output_file", tmp_path / "sel"),
    )
    assert done.returncode == 0, done.stderr
    selection = tmp_path / "sel/longvideobench/blip/selected_frames.json"
    done = recall("--selected_frames", selection)
    # The selected frames are 2040 apart; a second is 24 of them, so nothing is near frame 1000.
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2].split()[2] == "0.000"
    assert "guessed" not in done.stdout
    copy = selection.with_name("copy.json")  # selection.json records selected_frames.json alone
    copy.write_text(selection.read_text())
    assert "strides are guessed" in recall("--selected_frames", copy).stdout


def test_a_missing_candidate_does_not_change_the_stride():
    for frames, stride in (([0, 48, 72, 120], 24), ([48, 120], 24), ([0, 240], 240), ([5], 0), ([], 0)):
        assert infer_stride(np.array(frames, dtype=np.int64)) == stride


def test_strides_that_are_no_whole_numbers_are_one_line(recall, tmp_path):
    for strides in ([24.5, 24, 24], [True, 24, 24], [-24, 24, 24], ["x", 24, 24], 24):
        (tmp_path / "selection.json").write_text(json.dumps({"strides": strides}))
        check_mistake(recall(), "selection.json: its strides are not 3 whole numbers")


def test_evidence_in_frames_and_in_times_both_count():
    question = Question(
        *(0, "q", "a", "b"), duration_s=60, evidence_frames=((240, 240),), evidence_times_s=((3, 3), (30, 30))
    )
    rows, _ = recall_table(
        [question], [np.array([240, 720])], 2, strides=[24], times_s=[np.array([10.0, 30.0])]
    )
    assert rows[0].selected[1.0] == pytest.approx(2 / 3)  # the frame and the second of the times
    assert rows[0].uniform[1.0] == pytest.approx(1 / 3)  # at 0 and 30 s


def test_a_group_cannot_be_named_as_the_row_of_all(recall, tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps([{**ENTRIES[0], "group": "all"}, *ENTRIES[1:]]))
    check_mistake(recall(), "labels.json: a group is named 'all'")
    (tmp_path / "labels.json").write_text(json.dumps([{**entry, "group": "all"} for entry in ENTRIES]))
    done = recall()
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 4


@pytest.mark.parametrize("tolerance", ["nan", "inf", "-1"])
def test_a_tolerance_is_a_number_of_seconds(recall, tolerance):
    done = recall(f"--tolerances={tolerance}")
    check_mistake(done, f"--tolerances: {tolerance}: must be a number, 0 or more")


def test_groups_that_float_would_take_for_numbers_are_names(recall, tmp_path):
    groups = ["nan", "10", "9"]
    entries = [{**entry, "group": group} for entry, group in zip(ENTRIES, groups, strict=True)]
    (tmp_path / "labels.json").write_text(json.dumps(entries))
    lines = recall().stdout.splitlines()
    assert [line.split()[0] for line in lines[2:6]] == ["9", "10", "nan", "all"]


def test_times_of_another_selection_are_not_used(tmp_path, recall):
    entry = {"video": "a.mp4", "question": "What?", "evidence_times": [100]}
    (tmp_path / "labels.json").write_text(json.dumps([entry]))
    (tmp_path / "selected_times.json").write_text("[[100, 200, 300]]")
    for name, words in (("selected_frames.json", "does not fit"), ("mine.json", "select with times.json")):
        (tmp_path / name).write_text("[[0, 24]]")
        check_mistake(recall("--selected_frames", tmp_path / name), "selected_times.json", words)


def load_questions():
    return [
        Question(
            *(entry["id"], str(entry["id"]), "a", "b"),
            duration_s=100.0,
            group=entry["group"],
            evidence_frames=tuple((float(frame), float(frame)) for frame in entry["evidence_frames"]),
        )
        for entry in ENTRIES
    ]


def test_uniform_is_left_out_of_a_group_where_a_duration_is_unknown():
    first, *others = load_questions()
    questions = [first, replace(others[0], duration_s=None), others[1]]
    rows, _ = recall_table(questions, [np.array(row) for row in SELECTED], 2)
    assert [bool(row.uniform) for row in rows] == [False, True, False]  # 9, 10, all


def test_mistakes(recall, tmp_path):
    for content, words in [
        ("[[1]]", "holds 1 questions and"),
        ("[[1, 2], [3, x]]", "not JSON"),
        ("[[2, 1], [], []]", "frame 1 follows 2"),
    ]:
        (tmp_path / "selected_frames.json").write_text(content)
        check_mistake(recall(), words)
    (tmp_path / "labels.json").write_text(json.dumps([{"video": "a", "question": "b"}]))
    (tmp_path / "selected_frames.json").write_text("[[1]]")
    check_mistake(recall(), "no question has evidence")


def test_the_table_aligns():
    rows, _ = recall_table(load_questions(), [np.array(row) for row in SELECTED], 2)
    lines = format_table(rows).splitlines()
    ends = {line.rstrip().rfind(".") for line in lines[2:]}
    assert len(ends) == 1
