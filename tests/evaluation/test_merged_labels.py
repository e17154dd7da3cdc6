"""Selections are merged into label files, and the label files become tasks of lmms-eval."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from evaluation_setup import (
    ROOT,
    change_entry,
    load_task,
    merge_selection,
    sha256,
    write_labels,
    write_longvideobench_labels,
    write_videomme_labels,
)

from aks.jsonio import write_json
from evaluation.errors import EvaluationError
from evaluation.frame_policy import FramePolicy


@pytest.fixture
def change_score(run_script, tmp_path):
    """Run change_score.py on a folder with lvb_val.json and chosen.json."""

    def run(*flags: object, score_type: str = "chosen", fresh: bool = False):
        return run_script(
            *("evaluation/change_score.py", "--label_file", tmp_path / "lvb_val.json"),
            *("--base_score_path", tmp_path, "--score_type", score_type, *flags),
            fresh=fresh,
        )

    write_longvideobench_labels(tmp_path, ["a.mp4", "b.mp4", "b.mp4"])
    write_json(tmp_path / "chosen.json", [[0, 5, 9], [3.0, 4.0], []])
    return run


def test_entries_get_their_frames_and_where_they_come_from(change_score, tmp_path):
    labels = tmp_path / "lvb_val.json"
    before = labels.read_bytes()
    write_json(tmp_path / "selection.json", {"max_num_frames": 64})  # records selected_frames.json alone
    done = change_score(fresh=True)
    assert done.returncode == 0, done.stderr
    merged = json.loads((tmp_path / "include_frame_idx.json").read_text())
    assert [entry["frame_idx"] for entry in merged] == [[0, 5, 9], [3, 4], []]
    for entry, original in zip(merged, json.loads(before), strict=True):
        assert {key: entry[key] for key in original} == original
        assert entry["frame_budget"] == 3  # the longest list, because no record names a budget
        assert entry["frame_sha256"] == sha256(tmp_path / "chosen.json")
        assert entry["label_sha256"] == sha256(labels)
        assert entry["frame_source"].endswith("chosen.json")
    assert labels.read_bytes() == before
    assert "2 of 3 questions have fewer than 3 keyframes" in done.stdout
    assert "1 of them have none" in done.stdout


def test_frame_select_s_record_gives_the_budget_and_the_label_file(run_script, tmp_path):
    write_longvideobench_labels(tmp_path, ["a.mp4"])
    write_json(tmp_path / "scores.json", [[0.1, 0.9, 0.3]])
    write_json(tmp_path / "frames.json", [[0, 25, 50]])
    digest = sha256(tmp_path / "lvb_val.json")
    write_json(tmp_path / "run.json", {"scorer": "blip", "label_sha256": digest})
    done = run_script(
        "frame_select.py", "--score_path", tmp_path / "scores.json", "--output_file", tmp_path / "out"
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out/longvideobench/blip"
    flags = ("--label_file", tmp_path / "lvb_val.json", "--base_score_path", folder)
    done = run_script("evaluation/change_score.py", *flags)
    assert done.returncode == 0, done.stderr
    entry = json.loads((tmp_path / "include_frame_idx.json").read_text())[0]
    assert (entry["frame_idx"], entry["frame_budget"]) == ([0, 25, 50], 64)
    done = run_script("evaluation/change_score.py", *flags, "--budget", 16)  # the flag overrides the record
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "include_frame_idx.json").read_text())[0]["frame_budget"] == 16

    change_entry(tmp_path / "lvb_val.json", 0, question="What else?")
    (tmp_path / "include_frame_idx.json").unlink()
    done = run_script("evaluation/change_score.py", *flags)
    assert done.returncode == 2
    assert "was made for another label file" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "include_frame_idx.json").exists()

    for budget in (2, "64"):  # the record does not fit the selection
        write_json(folder / "selection.json", {"max_num_frames": budget})
        done = run_script("evaluation/change_score.py", *flags)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert f"its longest selection has 3 frames, the budget is {budget}" in done.stderr


@pytest.mark.parametrize(
    ("chosen", "flags", "complaint"),
    [
        ([[0], [1]], (), "2 selections, but"),
        ([[0], [1], [2, 1]], (), "entry 2 is not a list of ascending frame numbers"),
        ([[0], [1], [2, 2]], (), "entry 2 is not a list of ascending frame numbers"),
        ([[0], [1], [2.5]], (), "entry 2 is not a list of ascending frame numbers"),
        ([[0], [1], [-1]], (), "entry 2 is not a list of ascending frame numbers"),
        ([[0], ["x"], [1]], (), "entry 1"),
        ([[0, 1, 2], [1], [1]], ("--budget", 2), "its longest selection has 3 frames, the budget is 2"),
        ([[0], [1], [1]], ("--budget", 0), "its longest selection has 1 frames, the budget is 0"),
        ([[], [], []], (), "its longest selection has 0 frames"),
        ({"a": 1}, (), "chosen.json"),
        ([[0], [1], [2]], ("--dataset_name", "videoqa"), "unknown data set"),
    ],
)
def test_a_selection_that_does_not_fit_is_one_line(change_score, tmp_path, chosen, flags, complaint):
    write_json(tmp_path / "chosen.json", chosen)
    done = change_score(*flags)
    assert done.returncode == 2
    assert complaint in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "include_frame_idx.json").exists()


@pytest.mark.parametrize("name", ["mine.json", "mine.jsonl"])
def test_labels_as_pandas_and_windows_write_them_are_merged(run_script, tmp_path, name):
    entry = '{"video": "a.mp4", "question": "Which?", "note": NaN, "level": Infinity}'
    (tmp_path / name).write_text("\ufeff" + (entry if name.endswith("l") else f"[{entry}]"))
    write_json(tmp_path / "chosen.json", [[0, 5]])
    done = run_script(
        *("evaluation/change_score.py", "--dataset_name", "custom", "--label_file", tmp_path / name),
        *("--base_score_path", tmp_path, "--score_type", "chosen"),
    )
    assert done.returncode == 0, done.stderr
    (merged,) = json.loads((tmp_path / "include_frame_idx.json").read_text())
    assert (merged["note"], merged["level"], merged["frame_idx"]) == (None, None, [0, 5])


def test_the_label_file_is_never_written(change_score, tmp_path):
    before = (tmp_path / "lvb_val.json").read_bytes()
    done = change_score("--output", tmp_path / "lvb_val.json")
    assert done.returncode == 2 and "never changed" in done.stderr
    assert (tmp_path / "lvb_val.json").read_bytes() == before


def test_insert_frame_num_sets_both_fields_in_every_entry(run_script, tmp_path):
    labels = write_videomme_labels(tmp_path, ["a", "b"])
    merged = merge_selection(labels, [[0, 2], [1, 3]], dataset="videomme")
    script = ("evaluation/insert_frame_num.py", "--path", merged)
    done = run_script(*script, "--frame_num", 2, "--use_topk", "true", fresh=True)
    assert done.returncode == 0, done.stderr
    entries = json.loads(merged.read_text())
    assert [(entry["frame_num"], entry["use_topk"]) for entry in entries] == [(2, True)] * 2
    assert [entry["frame_idx"] for entry in entries] == [[0, 2], [1, 3]]
    for flags in (("--use_topk", "maybe"), ("--frame_num", 0), ("--path", tmp_path / "none.json")):
        done = run_script(*script, *flags)
        assert done.returncode == 2 and done.stderr.count("\n") == 1


@pytest.mark.parametrize("budget", [64, 32])
@pytest.mark.parametrize(
    ("dataset", "task", "questions", "short"),
    [
        ("longvideobench", "longvideobench_val_v_aks", 1337, {64: 361, 32: 259}),
        ("videomme", "videomme_aks", 2700, {64: 258, 32: 51}),
    ],
)
def test_the_released_selections_merge_and_load_as_tasks(
    reference, run_script, tmp_path, monkeypatch, dataset, task, questions, short, budget
):
    name = {"longvideobench": "lvb_val.json", "videomme": "videomme.json"}[dataset]
    labels = shutil.copy(reference / dataset / name, tmp_path)
    done = run_script(
        *("evaluation/change_score.py", "--dataset_name", dataset, "--label_file", labels),
        *("--base_score_path", reference / dataset, "--score_type", f"selected_frames_{budget}"),
    )
    assert done.returncode == 0, done.stderr
    assert f"{short[budget]} of {questions} questions have fewer than {budget} keyframes" in done.stdout
    merged = tmp_path / "include_frame_idx.json"
    _, docs = load_task(task, monkeypatch, tmp_path, **{f"{dataset.upper()}_LABELS": merged})
    assert len(docs) == questions
    released = json.loads((reference / dataset / f"selected_frames_{budget}.json").read_text())
    strict, paper = FramePolicy(True, budget), FramePolicy(True, budget, "paper")
    assert [strict.keyframes(doc).tolist() for doc in docs] == released
    assert sum(paper.keyframes(doc) is None for doc in docs) == short[budget]


def test_a_document_reads_as_upstream_s_own(tmp_path, monkeypatch):
    labels = write_longvideobench_labels(tmp_path, ["a.mp4"], candidates=["yes", "no"], correct_choice=1)
    task, docs = load_task("longvideobench_val_v_aks", monkeypatch, tmp_path, LONGVIDEOBENCH_LABELS=labels)
    assert [docs[0][f"option{index}"] for index in range(5)] == ["yes", "no", "N/A", "N/A", "N/A"]
    assert task.doc_to_text(docs[0]) == (
        "What is shown in part 0?\nA. yes\nB. no\n"
        "Answer with the option's letter from the given choices directly.\n"
    )
    assert task.process_results(docs[0], ["B. no"])["lvb_acc"]["parsed_pred"] == "B"


def test_every_model_gets_videomme_s_prompt_of_the_paper(tmp_path, monkeypatch):
    labels = write_videomme_labels(tmp_path, ["a"])
    task, docs = load_task("videomme_aks", monkeypatch, tmp_path, VIDEOMME_LABELS=labels)
    assert set(task.config.lmms_eval_specific_kwargs) - {"pre_prompt", "post_prompt"} == {"default"}
    text = task.doc_to_text(docs[0])
    assert text.endswith("\nD. Nothing.\n\nAnswer with the option's letter from the given choices directly.")


def test_own_questions_read_like_longvideobench_s(tmp_path, monkeypatch):
    labels = write_labels(
        tmp_path / "mine.json",
        [
            {"video": "a.mp4", "question": "Which?", "options": ["one", "two"], "answer": "B", "group": "g"},
            {"video": "a.mp4", "question": "And?", "options": ["x", "y", "z"], "answer": "C"},
        ],
    )
    (tmp_path / "a.mp4").write_bytes(b"-")
    task, docs = load_task("custom_aks", monkeypatch, tmp_path, CUSTOM_LABELS=labels)
    assert [doc["correct_choice"] for doc in docs] == [1, 2]
    assert [doc["id"] for doc in docs] == ["0", "1"] and docs[0]["duration_group"] == "g"
    assert task.doc_to_visual(docs[0]) == [str(tmp_path / "a.mp4")]
    change_entry(labels, 1, answer=None)
    with pytest.raises(
        EvaluationError, match=r"entry 1 \(id 1\): evaluation needs 'options' and an 'answer'"
    ):
        load_task("custom_aks", monkeypatch, tmp_path, CUSTOM_LABELS=labels)


def test_a_new_selection_is_not_read_from_a_cache(tmp_path, monkeypatch):
    labels = write_longvideobench_labels(tmp_path, ["a.mp4"])
    for row in ([1, 2], [1, 3], [4, 5]):  # files of the same length
        merged = merge_selection(labels, [row])
        _, docs = load_task("longvideobench_val_v_aks", monkeypatch, tmp_path, LONGVIDEOBENCH_LABELS=merged)
        assert docs[0]["frame_idx"] == row


def test_an_answer_kept_by_use_cache_is_not_taken_for_other_frames(tmp_path, monkeypatch):
    from lmms_eval.caching.response_cache import ResponseCache

    name = "longvideobench_val_v_aks"
    labels = write_longvideobench_labels(tmp_path, ["a.mp4"])
    keys = []
    for row in ([1, 2], [1, 3], [1, 2]):
        merged = merge_selection(labels, [row])
        task, _ = load_task(name, monkeypatch, tmp_path, LONGVIDEOBENCH_LABELS=merged)
        cache = ResponseCache.create(str(tmp_path / "cache"), task_dict={name: task})
        keys.append(cache._task_fingerprints[name])  # part of the key of every answer
    assert keys[0] != keys[1] and keys[0] == keys[2]


@pytest.mark.parametrize(("name", "variable"), [("videomme_aks", "VIDEOMME"), ("custom_aks", "CUSTOM")])
def test_every_task_tells_the_cache_its_entries(tmp_path, monkeypatch, name, variable):
    fields = {"video": "a.mp4", "duration": "short" if variable == "VIDEOMME" else 3}
    labels = write_videomme_labels(tmp_path, ["a"], **fields)
    task, _ = load_task(name, monkeypatch, tmp_path, **{f"{variable}_LABELS": labels})
    assert task.dump_config()["metadata"]["entries_sha256"] == sha256(labels)


def test_merged_labels_older_than_their_label_file_are_refused(tmp_path, monkeypatch):
    labels = write_longvideobench_labels(tmp_path, ["a.mp4"])
    merged = merge_selection(labels, [[1, 2]])
    change_entry(labels, 0, question="What else?")
    expected = r"include_frame_idx\.json: made from another lvb_val\.json than the one beside it"
    with pytest.raises(EvaluationError, match=expected):
        load_task("longvideobench_val_v_aks", monkeypatch, tmp_path, LONGVIDEOBENCH_LABELS=merged)
    change_entry(merged, 0, label_sha256=None)  # nothing is recorded
    load_task("longvideobench_val_v_aks", monkeypatch, tmp_path, LONGVIDEOBENCH_LABELS=merged)


def test_longvideobench_and_lmms_eval_s_own_task_of_that_name_do_not_mix():
    from lmms_eval.tasks import TaskManager

    ours = set(TaskManager("ERROR", include_path=str(ROOT / "datasets"), include_defaults=False).all_tasks)
    assert {"longvideobench_val_v_aks", "longvideobench_val_i_aks", "videomme_aks", "custom_aks"} <= ours
    upstream = Path(os.path.dirname(__import__("lmms_eval").__file__)) / "tasks"
    names = {
        line.split(":", 1)[1].strip()
        for folder in ("longvideobench", "videomme")
        for path in (upstream / folder).glob("*.yaml")
        for line in path.read_text().splitlines()
        if line.startswith("task:")
    }
    assert names and not ours & names
