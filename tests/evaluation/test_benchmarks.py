"""LVBench, MLVU and Video-MME-v2: every step on their published files, judged by lmms-eval's own tasks."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import forkserver
import pyarrow
import pyarrow.parquet
import pytest
import torch
from benchmark_setup import (
    lvbench_lines,
    mlvu_files,
    videomme_v2_rows,
    write_lvbench_labels,
    write_mlvu_files,
    write_videos,
)
from conftest import check_mistake
from evaluation_setup import (
    ROOT,
    STARTUP,
    change_entry,
    load_task,
    merge_selection,
    results_in,
    run_lmms_eval,
    samples_in,
    write_labels,
)
from llava_setup import offline
from lmms_eval.api.metrics import mean
from lmms_eval.tasks.lvbench import utils as upstream_lvbench
from lmms_eval.tasks.mlvu import utils as upstream_mlvu
from lmms_eval.tasks.videomme_v2 import utils as upstream_videomme_v2
from qwen_recorder import Call
from qwen_setup import (
    QWEN2,
    answer_nothing,
    evaluate,
    frames_of,
    prompt_of,
    recorded,
    upstream_readers,
    write_checkpoint,
)
from qwen_vl_utils import vision_process

from aks.labels import load_labels
from evaluation.errors import EvaluationError
from evaluation.results import read_runs
from evaluation.upstream_task import upstream_config

BUDGET = 4
DATASETS = ("lvbench", "mlvu", "videomme_v2")
TASKS = ",".join(f"{dataset}_aks" for dataset in DATASETS)
UPSTREAM = {"lvbench": upstream_lvbench, "mlvu": upstream_mlvu, "videomme_v2": upstream_videomme_v2}
each = pytest.mark.parametrize("dataset", DATASETS)


def upstream_docs(dataset: str) -> list[dict[str, Any]]:
    """The questions in the columns of the copies that lmms-eval fetches from the hub."""
    if dataset == "lvbench":
        return [
            {"video_path": f"all_videos/{line['key']}.mp4", **question}
            for line in lvbench_lines()
            for question in line["qa"]
        ]
    if dataset == "mlvu":
        return [
            {
                "video_name": entry["video"],
                "question": f"{entry['question']}\n(A) a cat\n(B) blocks\n(C) a dog\n(D) a car",
                "answer": "B",
                "task_type": name.split("_", 1)[1],
            }
            for name, entries in mlvu_files().items()
            for entry in entries
        ]
    return videomme_v2_rows()


def prompts(dataset: str, settings: Mapping[str, Any]) -> list[str]:
    """What upstream's task asks, by upstream's function."""
    doc_to_text = getattr(UPSTREAM[dataset], f"{dataset}_doc_to_text")
    return [doc_to_text(doc, dict(settings)) for doc in upstream_docs(dataset)]


# Upstream's prompt settings for a model without its own, as its yaml files have them.
SETTINGS = {
    "lvbench": {"pre_prompt": "", "post_prompt": "\nAnswer the question with the option letter"},
    "mlvu": {"pre_prompt": "", "post_prompt": "\nOnly give the best option.\nBest option: ("},
    "videomme_v2": {},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with the videos and the label files, in the places that datasets/README.md names."""
    world = tmp_path_factory.mktemp("benchmarks")
    for dataset, folder in write_videos(world / "all").items():
        (world / dataset).mkdir()
        name = {"lvbench": "all_videos", "mlvu": "video", "videomme_v2": "videos"}[dataset]
        (world / dataset / name).symlink_to(folder)
    write_lvbench_labels(world / "lvbench")
    write_mlvu_files(world / "mlvu/json")
    table = pyarrow.Table.from_pylist(videomme_v2_rows())
    pyarrow.parquet.write_table(table, world / "videomme_v2/test.parquet")
    with offline(world / "hub", world / "cache"):
        write_checkpoint(world / "checkpoint", QWEN2)
        yield world


@pytest.fixture(scope="module")
def labels(world) -> dict[str, Path]:
    """Each data set's label file, MLVU's and Video-MME-v2's made from the published ones."""
    paths = {"lvbench": world / "lvbench/video_info.meta.jsonl"}
    for dataset, source in (("mlvu", "json"), ("videomme_v2", "test.parquet")):
        paths[dataset] = world / dataset / f"{dataset}.json"
        script = ROOT / "datasets" / dataset / "make_labels.py"
        command = [forkserver.python("torch"), script, world / dataset / source, "--output", paths[dataset]]
        done = subprocess.run(command, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert f"{len(upstream_docs(dataset))} questions" in done.stdout
    return paths


def keyframes(dataset: str) -> list[list[int]]:
    """Other frames for each question."""
    return [[index, 20 + index, 40 + 3 * index, 89] for index in range(len(upstream_docs(dataset)))]


@pytest.fixture(scope="module")
def locations(world, labels) -> dict[str, str]:
    """The environment variables that tell the tasks where merged labels and videos are."""
    variables = {}
    for dataset, path in labels.items():
        merged = merge_selection(path, keyframes(dataset), BUDGET, dataset)
        variables[f"AKS_{dataset.upper()}_LABELS"] = str(merged)
        variables[f"AKS_{dataset.upper()}_VIDEOS"] = str(load_labels(dataset, world / dataset).video_root)
    return variables


def by_question(calls: list[Call]) -> dict[tuple[str, int], Call]:
    """The calls by data set and question, each of which must have been asked by upstream's prompt."""
    found = {}
    for call in calls:
        prompt = prompt_of(call)
        (key,) = [
            (dataset, index)
            for dataset in DATASETS
            for index, text in enumerate(prompts(dataset, SETTINGS[dataset]))
            if f"<|vision_end|>{text}<|im_end|>" in prompt
        ]
        found[key] = call
    assert len(found) == len(calls) == sum(len(upstream_docs(dataset)) for dataset in DATASETS)
    return found


def test_the_command_asks_upstreams_prompt_about_the_keyframes(world, locations, tmp_path):
    done = run_lmms_eval(
        QWEN2.name,
        f"pretrained={world / 'checkpoint'},{QWEN2.arguments},max_num_frames={BUDGET},use_topk=True",
        TASKS,
        tmp_path / "results",
        *("--gen_kwargs", "max_new_tokens=1"),
        python_path=[ROOT / "tests/support"],
        environment={
            **locations,
            "LMMS_EVAL_PLUGINS": "evaluation,qwen_recorder",
            "AKS_RECORDED_CALLS": str(tmp_path / "calls"),
        },
    )
    assert done.returncode == 0, done.stderr
    calls = [Call(**torch.load(path, weights_only=False)) for path in sorted((tmp_path / "calls").iterdir())]
    frames = {key: frames_of(call) for key, call in by_question(calls).items()}
    assert frames == {(dataset, index): keyframes(dataset)[index] for dataset, index in frames}
    runs, unknown = read_runs(results_in(tmp_path / "results")[0])
    assert [run.benchmark for run in runs] == ["LVBench", "MLVU", "Video-MME-v2"] and not unknown


def test_without_use_topk_the_frames_are_those_of_upstreams_class(world, locations, monkeypatch):
    for name, value in locations.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(vision_process, "VIDEO_READER_BACKENDS", upstream_readers())
    monkeypatch.setattr(vision_process, "get_video_reader_backend", lambda: "decord")
    shown = []
    for upstreams in (True, False):
        model = QWEN2.create(world / "checkpoint", f"max_num_frames={BUDGET}", upstreams=upstreams)
        with recorded(answer_nothing) as calls:
            evaluate(model, QWEN2.name, TASKS)
        shown.append({key: frames_of(call) for key, call in by_question(calls).items()})
    assert shown[0] == shown[1]


def judge(dataset: str, index: int, answer: str) -> dict[str, Any]:
    """Upstream's metrics of an answer."""
    process_results = getattr(UPSTREAM[dataset], f"{dataset}_process_results")
    return process_results(upstream_docs(dataset)[index], [answer])


def aggregate(metric: str, values: list[Any]) -> float:
    """Upstream's score."""
    if metric == "lvbench_score":
        return mean(values)
    if metric == "mlvu_percetion_score":
        return upstream_mlvu.mlvu_aggregate_results_dev(values)
    function = metric.replace("videomme_v2", "videomme_v2_aggregate")
    return getattr(upstream_videomme_v2, function)(values)


@pytest.mark.parametrize(
    "dataset", ["lvbench", *(pytest.param(name, marks=pytest.mark.long) for name in ("mlvu", "videomme_v2"))]
)
def test_from_published_labels_to_upstreams_score(world, labels, tmp_path, dataset):
    def run(script: str, *flags: object) -> subprocess.CompletedProcess[str]:
        kind = "lmms_eval" if script == "evaluation/run.py" else "torch"
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, [STARTUP, ROOT])),
            "FORKSERVER_PYTHON": forkserver.python(kind),
            "HF_DATASETS_CACHE": str(tmp_path / "cache"),
            "CUDA_VISIBLE_DEVICES": "",
        }
        command = [forkserver.python(kind), ROOT / script, *map(str, flags)]
        return subprocess.run(command, cwd=tmp_path, env=env, text=True, capture_output=True, timeout=300)

    named, source = ["--dataset_name", dataset], ["--dataset_path", world / dataset]
    conse = ["--extract_feature_model", "conse"]
    done = run("feature_extract.py", *named, *source, *conse, "--device", "cpu", "--workers", 0)
    assert done.returncode == 0, done.stderr
    done = run("frame_select.py", *named, *conse, "--max_num_frames", BUDGET)
    assert done.returncode == 0, done.stderr
    selection = tmp_path / f"selected_frames/{dataset}/conse/selected_frames.json"
    done = run("aks/recall.py", *named, *source, "--selected_frames", selection)
    if dataset == "lvbench":  # the only one that tells when its evidence is to be seen
        assert re.search(r"^all +4( +\d\.\d{3} +\d\.\d{3})+$", done.stdout, re.MULTILINE), done.stderr
    else:
        check_mistake(done, "no question has evidence")

    flags = ["--model", "conse_qa", "--dataset", dataset, "--frames", "aks", "--max_frames", BUDGET]
    flags += ["--labels", labels[dataset], "--videos", load_labels(dataset, world / dataset).video_root]
    flags += ["--selection", selection, "--gpus", 0, "--output", tmp_path / "out"]
    done = run("evaluation/run.py", *flags)
    assert done.returncode == 0, done.stderr[-3000:]

    judged = [
        judge(dataset, index, sample["filtered_resps"])
        for index, sample in enumerate(samples_in(tmp_path / "out"))
    ]
    (results,) = results_in(tmp_path / "out")
    scores = json.loads(results.read_text())["results"][f"{dataset}_aks"]
    ((run,), _) = read_runs(results)
    assert len(judged) == len(upstream_docs(dataset)) == len(run.samples)
    for metric in judged[0]:
        values = [metrics[metric] for metrics in judged]
        assert scores[f"{metric},none"] == pytest.approx(aggregate(metric, values))
        right = [
            value["pred_answer"] == value["answer"] if isinstance(value, dict) else value for value in values
        ]
        assert [sample.correct for sample in run.samples.values()] == right
    assert {sample.video for sample in run.samples.values()} == {
        "lvbench": {"a", "b"}, "mlvu": {f"{name}/b.mp4" for name in mlvu_files()}, "videomme_v2": {"a", "b"}
    }[dataset]  # fmt: skip
    for line in REPORT[dataset]:
        assert re.search(line, done.stdout), line


# Lines of the report by group.
REPORT = {
    "lvbench": [r"question_type *\| event understanding *\| +2 ", r"video_type *\| sport *\| +2 "],
    "mlvu": [r"task_type *\| plotQA *\| +2 ", r"\nM-Avg: \d"],
    "videomme_v2": [r"level *\| 2 *\| +4 ", r"group_type *\| logic *\| +4 ", r"\ngroup score, level 1: \d"],
}


# Label files that cannot be evaluated


def changed(labels: dict[str, Path], dataset: str, folder: Path, **fields: Any) -> Path:
    """A copy of a label file, an entry a question, whose first entry has other fields."""
    path = write_labels(folder / "labels.json", load_labels(dataset, label_file=labels[dataset]).entries)
    return change_entry(path, 0, **fields)


@pytest.mark.parametrize(
    ("dataset", "fields", "complaint"),
    [
        (
            "lvbench",
            {"answer": "b"},
            r"entry 0 \(id 50\): answer 'b'; it must be one of the letters A, B, C, D",
        ),
        ("lvbench", {"answer": None}, r"entry 0 \(id 50\): answer None"),
        (
            "lvbench",
            {"type": None},
            "entry 0 and all of its video a.mp4: lmms-eval cannot score it: .*'type'",
        ),
        ("mlvu", {"task_type": "findNeedle"}, "entry 0 and all of its video 1_plotQA/b.mp4: .* 'findNeedle'"),
        (
            "mlvu",
            {"question": "What?\n(A) 1\n(C) 2"},
            r"entry 0 \(id plotQA_0\): 'question' has options at A, C",
        ),
        ("mlvu", {"question": "What?"}, "'question' has no options"),
        (
            "videomme_v2",
            {"group_type": "chain"},
            "entry 0 and all of its video a.mp4: .*Unknown group_type: chain",
        ),
        ("videomme_v2", {"options": "1. a"}, "'options' has no options"),
    ],
)
def test_an_entry_that_cannot_be_scored_is_told_before_the_first_answer(
    labels, tmp_path, monkeypatch, dataset, fields, complaint
):
    path = changed(labels, dataset, tmp_path, **fields)
    with pytest.raises(EvaluationError, match=complaint) as ended:
        load_task(f"{dataset}_aks", monkeypatch, tmp_path, **{f"{dataset.upper()}_LABELS": path})
    assert str(path) in ended.value.code and "\n" not in ended.value.code


def test_groups_that_cannot_be_scored_together_are_told(labels, tmp_path, monkeypatch):
    entries = load_labels("videomme_v2", label_file=labels["videomme_v2"]).entries
    path = write_labels(
        tmp_path / "labels.json",
        [{**entry, "second_head": None if entry["video_id"] == "a" else "head"} for entry in entries],
    )
    with pytest.raises(EvaluationError, match=f"{path}: lmms-eval cannot score it: TypeError"):
        load_task("videomme_v2_aks", monkeypatch, tmp_path, VIDEOMME_V2_LABELS=path)


def test_a_version_of_lmms_eval_without_the_task_is_told():
    with pytest.raises(
        EvaluationError, match=r"error: lmms-eval [\d.]+ has no lvbench/v3.yaml; install a newer"
    ):
        upstream_config("lvbench/v3.yaml")


@each
def test_the_plain_label_file_shows_uniform_frames(world, labels, tmp_path, monkeypatch, dataset):
    """Without a selection the tasks read the published file, where they have one entry a question each."""
    task, docs = load_task(
        f"{dataset}_aks", monkeypatch, tmp_path, "llava_vid", **{f"{dataset.upper()}_LABELS": labels[dataset]}
    )
    assert [task.doc_to_text(doc) for doc in docs] == prompts(dataset, SETTINGS[dataset])
