"""Tables and reports of evaluation runs give known counts and published numbers, and one line a mistake."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import evaluation.plots
from aks import UserError
from aks.bootstrap import bootstrap_interval
from evaluation.evaluator import evaluate, results_files
from evaluation.markdown_tables import format_table
from evaluation.results import parse_model_args, read_runs
from evaluation.run import MODELS
from evaluation.significance import mcnemar_p
from evaluation.tables import PUBLISHED

LVB, VIDEOMME, CUSTOM = "longvideobench_val_v_aks", "videomme_aks", "custom_aks"
LVBENCH, MLVU = "lvbench_aks", "mlvu_aks"
DATE = "20260102_030405"


def sample(task: str, index: int, right: bool, question: dict) -> dict:
    """One line of a samples file as lmms-eval 0.7.3 writes it."""
    prediction = "B" if right else "C"
    if task == VIDEOMME:
        metric = {
            "question_id": question.get("id", f"{index // 3:03d}-{index % 3 + 1}"),
            "duration": question.get("duration", "short"),
            "category": question.get("category", "Knowledge"),
            "sub_category": question.get("sub_category", "Law"),
            "task_category": question.get("task_category", "OCR Problems"),
            "pred_answer": prediction,
            "answer": "B",
            "score": float(right),
            "videoID": question.get("video", f"video{index // 3}"),
        }
        metrics = {"videomme_perception_score": metric}
    elif task in (LVBENCH, MLVU):
        metric = {"id": f"q{index}", "pred_answer": prediction, "answer": "B", "video": "v", **question}
        metrics = {"lvbench_score" if task == LVBENCH else "mlvu_percetion_score": metric}
    else:
        id = question.get("id", f"q_{index}")
        metric = {
            "id": id,
            "duration_group": question.get("duration", 15),
            "question_category": question.get("category", "S2E"),
            "answer": "B",
            "parsed_pred": prediction,
        }
        metrics = {"lvb_acc": metric, "submission": {id: prediction}}
    return {
        "doc_id": index,
        "target": "1",
        "filtered_resps": prediction,
        "token_counts": [None],
        "doc_hash": "0" * 64,
        **metrics,
        "input": "What? \u2028 Why?\nA. yes\nB. no\n",
    }


def write_run(
    folder: Path,
    right: list[bool],
    *,
    task: str = CUSTOM,
    model: str = "conse_qa",
    arguments: str = "max_frames_num=8,use_topk=False",
    questions: list[dict] | None = None,
    limit: float | None = None,
    date: str = DATE,
    original: int | None = None,
    llava: str | None = None,
) -> Path:
    """One run as lmms-eval leaves it; returns its results file."""
    folder.mkdir(parents=True, exist_ok=True)
    questions = questions or [{}] * len(right)
    share = sum(right) / len(right)
    name, score = "lvb_acc", round(share, 5)
    if task == VIDEOMME:
        name, score = "videomme_perception_score", 100 * share
    elif task == LVBENCH:
        name, score = "lvbench_score", share
    elif task == MLVU:  # the mean over seven tasks
        asked = [question["task_type"] for question in questions]
        shares = [np.mean([r for r, a in zip(right, asked, strict=True) if a == type]) for type in set(asked)]
        name, score = "mlvu_percetion_score", 100 * sum(shares) / 7
    original = original or len(right)
    results = {
        "results": {task: {"alias": task, f"{name},none": score, f"{name}_stderr,none": "N/A"}},
        "configs": {task: {"task": task, "metadata": {"llava": llava} if llava else {}}},
        "n-samples": {task: {"original": original, "effective": min(limit or original, original)}},
        "config": {"model": model, "model_args": arguments, "limit": limit, "offset": 0},
        "date": date,
    }
    path = folder / f"{date}_results.json"
    path.write_text(json.dumps(results, indent=2))
    with open(folder / f"{date}_samples_{task}.jsonl", "w", encoding="utf-8") as file:
        for index, (answer, question) in enumerate(zip(right, questions, strict=True)):
            file.write(json.dumps(sample(task, index, answer, question), ensure_ascii=False) + "\n")
    return path


def write_pair(folder: Path, uniform: list[bool], aks: list[bool], **options) -> None:
    """A uniform run and a keyframe run of the same questions."""
    arguments = options.pop("arguments", "max_frames_num=8")
    write_run(folder / "uni", uniform, arguments=f"{arguments},use_topk=False", **options)
    write_run(folder / "aks", aks, arguments=f"{arguments},use_topk=True,short_selection=strict", **options)


def counts(both: int, only_uniform: int, only_aks: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Right and wrong answers with these counts, (uniform, AKS)."""
    uniform = [True] * (both + only_uniform) + [False] * (only_aks + neither)
    aks = [True] * both + [False] * only_uniform + [True] * only_aks + [False] * neither
    return uniform, aks


def tables(text: str) -> list[list[dict[str, str]]]:
    """The markdown tables of a text, a dict a row; repeated titles get a number."""
    found, lines = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            lines.append([cell.strip() for cell in line.replace("\\|", "\0").strip("|").split("|")])
        elif lines:
            head = [name + str(lines[0][:index].count(name) or "") for index, name in enumerate(lines[0])]
            assert len({len(row) for row in lines}) == 1
            found.append([dict(zip(head, row, strict=True)) for row in lines[2:]])
            lines = []
    return found


def read_csv(path: Path, table: str) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["table"] == table]


@pytest.fixture
def run_tables(run_script, tmp_path):
    """Run tables.py; returns its tables, its text, and the output folder."""

    def run(*folders, output: bool = False, fresh: bool = False, scoring: str | None = None):
        options = ["--output", tmp_path / "tables"] if output else []
        options += ["--scoring", scoring] if scoring else []
        done = run_script("evaluation/tables.py", *folders, *options, fresh=fresh)
        assert done.returncode == 0, done.stderr
        return tables(done.stdout), done.stdout, tmp_path / "tables"

    return run


def test_the_published_numbers():
    published = json.loads(PUBLISHED.read_text())
    main = {
        (row["lmms_eval_model"], row["frames"]): tuple(
            row[benchmark][which]
            for benchmark in ("longvideobench", "videomme")
            for which in ("uniform", "aks")
        )
        for row in published["main"]["rows"]
    }
    assert main == {
        ("qwen2_vl", 32): (55.5, 60.5, 57.6, 59.9),
        ("llava_onevision", 32): (54.8, 59.3, 56.5, 58.4),
        ("llava_vid", 64): (58.9, 62.7, 64.4, 65.3),
    }

    def accuracies(table: str, **row_fields) -> tuple[float, float]:
        rows = published[table]["rows"]
        (row,) = (row for row in rows if all(row[name] == value for name, value in row_fields.items()))
        return row["longvideobench"], row["videomme"]

    assert accuracies("strategies", strategy="top") == (62.4, 63.7)
    assert accuracies("strategies", strategy="bin") == (60.2, 65.2)
    assert accuracies("scorers", frames=16, scorer="uniform") == (57.4, 60.6)
    assert accuracies("scorers", frames=32, scorer="sevila") == (60.9, 63.7)
    assert accuracies("scorers", frames=64, scorer="clip") == (62.2, 65.6)
    assert accuracies("candidate_rates", frames=16, candidates_per_second=0.125) == (61.1, 61.0)
    assert accuracies("candidate_rates", frames=32, candidates_per_second=0.25) == (59.8, 65.1)
    assert accuracies("depth_threshold", depth=5, threshold=0.8) == (61.3, 65.3)
    assert accuracies("depth_threshold", depth=3, threshold=0.4) == (62.6, 54.5)
    assert accuracies("depth_threshold", depth=6, threshold=0) == (62.4, 63.8)
    lengths = {name: len(published[name]["rows"]) for name in published if "rows" in published[name]}
    assert lengths == {
        "main": 3,
        "strategies": 4,
        "scorers": 12,
        "candidate_rates": 15,
        "depth_threshold": 36,
    }
    assert all("2502.21271" in published[name]["source"] for name in lengths)
    # Where the tables overlap they agree.
    for table, row_fields in [
        ("strategies", {"strategy": "ada"}),
        ("scorers", {"frames": 64, "scorer": "blip"}),
        ("candidate_rates", {"frames": 64, "candidates_per_second": 1}),
    ]:
        assert accuracies(table, **row_fields) == (62.7, 65.3)


def test_known_counts(tmp_path, run_tables):
    uniform, aks = counts(5, 2, 8, 3)
    durations = [{"duration": 60 if index < 5 else 600 if index < 10 else 3600} for index in range(18)]
    write_pair(tmp_path / "results", uniform, aks, questions=durations)
    (paper, other, groups, paired), text, _ = run_tables(tmp_path / "results")
    (row,) = paired
    assert [row[name] for name in ("questions", "both right", "only uniform", "only AKS", "both wrong")] == [
        *("18", "5", "2", "8", "3")
    ]
    assert row["difference"] == "+33.3"
    # 2 * (1 + 10 + 45) / 2**10
    assert row["p"] == "0.109"
    assert row["resampled"] == "questions"
    (row,) = other
    assert (row["uniform -> AKS"], row["difference"]) == ("38.9 -> 72.2", "+33.3")
    by_group = {row["group"]: (row["questions"], row["uniform"], row["AKS"]) for row in groups}
    assert by_group == {
        "": ("18", "38.9", "72.2"),
        "60": ("5", "100.0", "100.0"),
        "600": ("5", "40.0", "60.0"),
        "3600": ("8", "0.0", "62.5"),
        "S2E": ("18", "38.9", "72.2"),
    }
    assert list(by_group)[1:4] == ["60", "600", "3600"]  # by value
    assert [row["ours"] for row in paper] == ["-"] * 3  # the paper's rows, none of them run
    assert paper[0]["LongVideoBench: paper"] == "55.5 -> 60.5"
    assert "## Notes" not in text


def independent_mcnemar(b: int, c: int) -> float:
    """McNemar's test by the binomial's log-probabilities, summed from both sides."""
    n = b + c
    log = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)]
    probabilities = [math.exp(value - n * math.log(2)) for value in log]
    seen = probabilities[b]
    return min(1.0, sum(p for p in probabilities if p <= seen * (1 + 1e-7)))


@pytest.mark.parametrize(
    ("b", "c", "p"),
    [(0, 0, 1), (1, 0, 1), (5, 5, 1), (0, 5, 0.0625), (2, 8, 0.109375), (1, 9, 0.021484375)],
)
def test_mcnemar_by_hand(b, c, p):
    assert mcnemar_p(b, c) == mcnemar_p(c, b) == p


@pytest.mark.parametrize(("b", "c"), [(3, 11), (40, 61), (1400, 1600), (1499, 1501), (1350, 1650)])
def test_mcnemar_for_large_counts(b, c):
    assert mcnemar_p(b, c) == pytest.approx(independent_mcnemar(b, c), rel=1e-6)
    assert mcnemar_p(1500, 1500) == 1
    assert mcnemar_p(0, 3000) == 0  # 2 ** -2999 is no float, and no error


def test_an_overwhelming_difference_is_not_printed_as_zero(tmp_path, run_tables):
    write_pair(tmp_path / "results", *counts(0, 0, 1200, 0))
    assert run_tables(tmp_path / "results")[0][-1][0]["p"] == "<1e-300"


def independent_interval(values: list[float], clusters: list, seed: int) -> tuple[float, float]:
    """The same bootstrap by Python's own random numbers and plain loops."""
    members: dict = {}
    for value, cluster in zip(values, clusters, strict=True):
        members.setdefault(cluster, []).append(value)
    groups, rng = list(members.values()), random.Random(seed)
    means = []
    for _ in range(4000):
        drawn = [value for group in rng.choices(groups, k=len(groups)) for value in group]
        means.append(sum(drawn) / len(drawn))
    means.sort()
    return means[100], means[3900]


def test_the_bootstrap_interval():
    rng = random.Random(7)
    # Three questions a video that mostly agree, and a few videos of one question.
    clusters = [f"v{index // 3}" for index in range(240)] + [f"w{index}" for index in range(20)]
    bias = {name: rng.choice([-100.0, 0.0, 0.0, 100.0]) for name in dict.fromkeys(clusters)}
    values = [bias[name] if rng.random() < 0.8 else 0.0 for name in clusters]
    by_video, by_question = bootstrap_interval(values, clusters), bootstrap_interval(values)
    for ours, groups in ((by_video, clusters), (by_question, list(range(len(values))))):
        independent = independent_interval(values, groups, seed=1)
        assert ours == pytest.approx(independent, abs=0.8)  # about three errors of a 2.5 % quantile
    assert by_video[1] - by_video[0] > 1.3 * (by_question[1] - by_question[0])
    assert bootstrap_interval(values, clusters) == by_video  # a fixed seed
    assert bootstrap_interval([100.0] * 5) == (100, 100)


def test_the_interval_is_that_of_ten_thousand_resamples():
    """The differences spread evenly around zero, so that a mean's quantiles are those of the normal one."""
    deviations = []
    for count in range(20, 50, 3):
        values = np.arange(count) - (count - 1) / 2
        error = values.std() / math.sqrt(count)
        low, high = bootstrap_interval(values)
        deviations += [-low / error - 1.96, high / error - 1.96]
    # 10,000 resamples should give 0.027, 1,000 would give 0.084.
    assert math.sqrt(np.mean(np.square(deviations))) < 0.04


def interval(uniform: list[bool], aks: list[bool], clusters: list[str] | None = None) -> str:
    """The printed interval of the difference."""
    differences = [100 * (after - before) for before, after in zip(uniform, aks, strict=True)]
    low, high = bootstrap_interval(differences, clusters)
    return f"{low:+.1f} to {high:+.1f}"


def assert_resampled(found: list[list[dict[str, str]]], unit: str, interval: str) -> None:
    """The tables print this unit of resampling, and this interval over all questions."""
    *_, groups, (paired,) = found
    assert paired["resampled"] == unit
    assert paired["95 % interval"] == groups[0]["95 % interval"] == interval


def test_videomme_resamples_videos_where_they_are_known(tmp_path, run_tables):
    uniform, aks = counts(2, 1, 6, 3)
    videos = [f"v{index // 3}" for index in range(12)]
    assert interval(uniform, aks, videos) != interval(uniform, aks)
    questions = [{"duration": "short" if index < 9 else "long"} for index in range(12)]
    write_pair(tmp_path / "a", uniform, aks, task=VIDEOMME, questions=questions)
    found, _, _ = run_tables(tmp_path / "a")
    assert_resampled(found, "videos", interval(uniform, aks, videos))
    assert found[-2][1]["95 % interval"] == interval(uniform[:9], aks[:9], videos[:9])  # a group's own
    questions = [{"id": f"{index}", "video": None if index == 3 else f"v{index // 3}"} for index in range(12)]
    write_pair(tmp_path / "b", uniform, aks, task=VIDEOMME, questions=questions)
    assert_resampled(run_tables(tmp_path / "b")[0], "questions", interval(uniform, aks))


def write_paper_runs(folder: Path) -> None:
    """LLaVA-Video as in the paper on both benchmarks, OneVision on one with uniform frames only."""
    arguments = "pretrained=./checkpoints/llava_video_7b,conv_template=chatml_direct,max_frames_num=64"
    rng = random.Random(3)
    questions = [
        {"id": f"v{index // 2}_{index % 2}", "duration": (15, 60, 600, 3600)[index * 4 // 1337]}
        for index in range(1337)
    ]
    uniform, aks = counts(700, 90, 138, 409)  # 790 and 838 of 1337
    order = rng.sample(range(1337), 1337)
    uniform, aks = [uniform[index] for index in order], [aks[index] for index in order]
    options = {"model": "llava_vid", "arguments": arguments}
    write_pair(folder / "lvb", uniform, aks, task=LVB, questions=questions, **options)
    questions = [
        {
            "id": f"{index:04d}",
            "video": f"v{index // 3}",
            "duration": ("short", "medium", "long")[index // 900],
            "category": ("Knowledge", "Film & Television", "Multilingual")[index % 3],
        }
        for index in range(2700)
    ]
    uniform, aks = counts(1600, 140, 163, 797)  # 1740 and 1763 of 2700
    order = rng.sample(range(2700), 2700)
    uniform, aks = [uniform[index] for index in order], [aks[index] for index in order]
    write_pair(folder / "videomme", uniform, aks, task=VIDEOMME, questions=questions, **options)
    right = [True] * 730 + [False] * 607
    arguments = "pretrained=lmms-lab/llava-onevision-qwen2-7b-ov,max_frames_num=32"
    write_run(folder / "ov", right, task=LVB, model="llava_onevision", arguments=arguments)


def test_the_papers_table_with_our_numbers(tmp_path, run_tables):
    write_paper_runs(tmp_path / "results")
    found, text, output = run_tables(tmp_path / "results", output=True, fresh=True)
    assert "Not in the paper" not in text
    qwen, onevision, video = found[0]
    assert qwen["ours"] == qwen["difference"] == qwen["ours1"] == "-"
    assert onevision["ours"] == "54.6 -> -"  # 730 of 1337
    assert onevision["difference"] == "-0.2 -> -"
    assert onevision["VideoMME: paper"] == "56.5 -> 58.4" and onevision["ours1"] == "-"
    assert video["checkpoint"] == "checkpoints/llava_video_7b"
    assert (video["LongVideoBench: paper"], video["ours"]) == ("58.9 -> 62.7", "59.1 -> 62.7")
    assert video["difference"] == "+0.2 -> 0.0"  # 59.09 and 62.68
    assert (video["ours1"], video["difference1"]) == ("64.4 -> 65.3", "0.0 -> 0.0")
    groups = {row["group"] for row in found[1] + found[2] + found[3]}
    assert {"15", "60", "600", "3600", "S2E", "short", "medium", "long", "Film & Television"} <= groups

    # Markdown and CSV say the same, the latter in full.
    assert (output / "tables.md").read_text() in text
    overall = read_csv(output / "tables.csv", "overall")
    assert len(overall) == 6
    row = next(row for row in overall if row["model"] == "llava_vid" and row["benchmark"] == "LongVideoBench")
    assert float(row["uniform"]) == 100 * 790 / 1337
    assert float(row["aks_minus_published"]) == pytest.approx(100 * 838 / 1337 - 62.7)
    paired, printed = read_csv(output / "tables.csv", "paired"), found[-1]
    assert len(paired) == len(printed) == 2
    for row, cells in zip(paired, printed, strict=True):
        assert row["both_right"] == cells["both right"] and row["resampled"] == cells["resampled"]
        assert f"{float(row['difference']):+.1f}" == cells["difference"]
        assert f"{float(row['low']):+.1f} to {float(row['high']):+.1f}" == cells["95 % interval"]
        assert f"{float(row['mcnemar_p']):.3g}" == cells["p"]
    assert len(read_csv(output / "tables.csv", "group")) == sum(map(len, found[1:-1]))

    picture = Image.open(output / "tables.png")
    assert picture.format == "PNG"
    assert 1200 < picture.width < 3000 and 500 < picture.height < 3000
    assert len(picture.convert("RGB").getcolors(1 << 24)) > 50
    assert sorted(path.name for path in output.iterdir()) == ["tables.csv", "tables.md", "tables.png"]


@pytest.mark.parametrize(
    ("task", "answer", "share"),
    [(LVB, "B. A book", 0), (LVB, "B", 100), (LVB, ["Answer: B"], 100), (VIDEOMME, "Answer: B", 0)],
)
def test_the_papers_scoring_stands_beside_today_s_and_can_score_all_tables(
    tmp_path, run_tables, task, answer, share
):
    write_pair(
        tmp_path / "runs", [True] * 3, [True] * 3, task=task, model="llava_vid", arguments="max_frames_num=64"
    )
    for path in (tmp_path / "runs").rglob("*.jsonl"):
        lines = [
            json.loads(line) | {"filtered_resps": answer} for line in path.read_text().split("\n") if line
        ]
        path.write_text("\n".join(map(json.dumps, lines)))

    name = {LVB: "LongVideoBench", VIDEOMME: "VideoMME"}[task]
    accuracy = f"{share:.1f} -> {share:.1f}"
    for scoring, ours in (("current", "100.0 -> 100.0"), ("oct2024", accuracy)):
        (paper, *_), _, folder = run_tables(tmp_path / "runs", output=True, scoring=scoring)
        (row,) = (row for row in paper if row["model"] == "LLaVA-Video-7B" and row["frames"] == "64")
        order = "" if name == "LongVideoBench" else "1"
        assert (row[f"ours{order}"], row[f"2024{order}"]) == (ours, accuracy)
        (overall,) = (r for r in read_csv(folder / "tables.csv", "overall") if r["n_aks"])
        assert (overall["scoring"], float(overall["aks_oct2024"])) == (scoring, share)
        (paired,) = read_csv(folder / "tables.csv", "paired")
        assert int(paired["both_right"]) == round(3 * float(ours.split(" ")[0]) / 100)


def test_samples_without_prompts_cannot_be_scored_as_in_2024(tmp_path, run_script, run_tables):
    write_pair(tmp_path / "runs", [True] * 3, [True] * 3, task=LVB)
    for path in (tmp_path / "runs").rglob("*.jsonl"):
        path.write_text(path.read_text().replace("A. yes", ""))
    done = run_script("evaluation/tables.py", tmp_path / "runs", "--scoring", "oct2024")
    assert done.returncode == 2
    assert "its samples lack answers or prompts, which --scoring oct2024 needs; evaluate again" in done.stderr
    assert run_tables(tmp_path / "runs")


def test_rows_that_are_not_the_papers_come_below(tmp_path, run_tables):
    right = [True, False, True]
    write_run(tmp_path / "a", right, task=LVB, model="qwen2_vl", arguments="max_num_frames=16")
    write_run(tmp_path / "b", right, task=VIDEOMME, model="qwen2_5_vl", arguments="max_num_frames=32")
    write_run(tmp_path / "c", right, task=VIDEOMME, arguments="")
    (_, other, *_), _, _ = run_tables(tmp_path)
    assert [(row["model"], row["benchmark"], row["frames"]) for row in other] == [
        ("qwen2_vl", "LongVideoBench", "16"),  # the paper's models first
        ("conse_qa", "VideoMME", "default"),
        ("qwen2_5_vl", "VideoMME", "32"),
    ]


def test_the_number_of_frames_is_read_by_every_models_name_for_it(tmp_path):
    for name, model in MODELS.items():
        path = write_run(tmp_path / name, [True], model=name, arguments=f"{model.frames_argument}=16")
        ((run,), _) = read_runs(path)
        assert run.max_frames == 16, name


def test_a_score_of_a_benchmarks_own_stands_beside_the_accuracy(tmp_path, run_tables):
    questions = [{"task_type": task} for task in ("count", "count", "ego", "order")]
    options = {"task": MLVU, "questions": questions}
    write_pair(tmp_path, [True, False, True, False], [True, True, True, False], **options)
    (_, (row,), (own,), groups, _), _, folder = run_tables(tmp_path, output=True)
    assert (row["benchmark"], row["uniform -> AKS"]) == ("MLVU", "50.0 -> 75.0")
    assert (own["score"], own["uniform -> AKS"], own["difference"]) == ("M-Avg", "21.4 -> 28.6", "+7.1")
    assert [(group["group"], group["uniform"], group["AKS"]) for group in groups[1:]] == [
        ("count", "50.0", "100.0"), ("ego", "100.0", "100.0"), ("order", "0.0", "0.0")
    ]  # fmt: skip
    (record,) = read_csv(folder / "tables.csv", "score")
    assert float(record["aks"]) == pytest.approx(200 / 7) and record["group"] == "M-Avg"
    assert run_tables(tmp_path, scoring="oct2024")[0][1] == [row]  # there are no rules of 2024 for it


def test_a_question_counts_in_each_of_its_groups(tmp_path, run_tables):
    questions = [
        {"question_type": ["reasoning", "summarization"], "video_type": "tv"},
        {"question_type": ["reasoning"], "video_type": None},
    ]
    write_run(tmp_path, [True, False], task=LVBENCH, questions=questions)
    (_, _, groups), _, _ = run_tables(tmp_path)
    assert [(group["group"], group["questions"], group["uniform"]) for group in groups] == [
        ("", "2", "50.0"), ("reasoning", "2", "50.0"), ("summarization", "1", "100.0"),
        ("-", "1", "0.0"), ("tv", "1", "100.0"),
    ]  # fmt: skip


def test_short_selections_refilled_as_in_the_released_code_are_a_row_of_their_own(tmp_path, run_tables):
    arguments = "pretrained=x/y,max_frames_num=64"
    uniform, aks = counts(1, 1, 2, 0)
    options = {"task": LVB, "model": "llava_vid"}
    write_pair(tmp_path / "a", uniform, aks, arguments=arguments, **options)
    arguments += ",use_topk=True,short_selection=paper"
    write_run(tmp_path / "b", [True] * 4, arguments=arguments, **options)
    found, _, _ = run_tables(tmp_path)
    rows = [row for row in found[0] if row["model"] == "LLaVA-Video-7B"]
    assert [row["ours"] for row in rows] == ["50.0 -> 75.0", "50.0 -> 100.0"]
    assert "short_selection=paper" in rows[1]["remarks"] and "short_selection" not in rows[0]["remarks"]
    assert [row["difference"] for row in found[-1]] == ["+25.0", "+50.0"]


def test_fewer_questions_than_the_benchmark_are_not_compared_with_the_paper(tmp_path, run_tables):
    arguments = "pretrained=x/y,max_num_frames=32"
    options = {"task": VIDEOMME, "model": "qwen2_vl", "arguments": arguments}
    newer = "20270101_000000"
    write_run(tmp_path / "a", [True] * 10, limit=10.0, original=2700, date=newer, **options)
    (paper, *_), text, _ = run_tables(tmp_path / "a")
    assert (paper[0]["ours1"], paper[0]["difference1"]) == ("100.0 -> -", "-")
    assert "limit 10, not comparable" in paper[0]["remarks"]
    assert text.count("limit 10, not comparable") >= 2  # in the groups, too
    write_run(tmp_path / "b", [True] * 12, **options)
    (paper, *_), text, _ = run_tables(tmp_path)
    assert "12 of 2700 questions, not comparable" in paper[0]["remarks"] and paper[0]["difference1"] == "-"
    assert f"{tmp_path}/a/{newer}_results.json: left out for {tmp_path}/b" in text  # the full run counts
    assert "which has no limit" in text


def test_of_equal_runs_the_newest_counts(tmp_path, run_tables):
    digest = "max_frames_num=8,use_topk=True,frames_digest=sha256-{}"
    for date, right in [("20260301_000000", 1), ("20260302_000000", 3), ("20260228_235959", 2)]:
        answers = [index < right for index in range(4)]
        write_run(tmp_path / date, answers, date=date, arguments=digest.format(date[6:8]))
    (_, other, *_), text, _ = run_tables(*sorted(tmp_path.iterdir()), tmp_path)  # each found twice, read once
    assert [row["uniform -> AKS"] for row in other] == ["- -> 75.0"]
    notes = [line for line in text.splitlines() if "left out for" in line]
    assert len(notes) == 2 and all("which is newer (other keyframes: sha256-" in note for note in notes)
    write_run(tmp_path / "more", answers, arguments="max_frames_num=16,use_topk=True")
    write_run(tmp_path / "other", answers, arguments="max_frames_num=8,use_topk=True,pretrained=a")
    arguments = "max_frames_num=8,use_topk=True"
    write_run(tmp_path / "model", answers, arguments=arguments, model="qwen2_vl")
    write_run(tmp_path / "task", answers, arguments=arguments, task=LVB)
    (_, other, *_), _, _ = run_tables(tmp_path)
    assert len(other) == 5  # they differ in their setup


def test_runs_of_other_setups_are_not_paired(tmp_path, run_tables):
    base = {"model": "llava_vid", "task": LVB, "arguments": "pretrained=a,max_frames_num=8"}
    write_run(tmp_path / "uni", [True, False, False], **base)
    for name, change in {
        "checkpoint": {"arguments": "pretrained=b,max_frames_num=8"},
        "frames": {"arguments": "pretrained=a,max_frames_num=16"},
        "model": {"model": "llava_onevision"},
        "benchmark": {"task": CUSTOM},
    }.items():
        options = {**base, **change}
        options["arguments"] += ",use_topk=True"
        write_run(tmp_path / name, [True, True, False], **options)
    (_, other, *groups), text, _ = run_tables(tmp_path)
    assert sorted(row["uniform -> AKS"] for row in other) == ["- -> 66.7"] * 4 + ["33.3 -> -"]
    assert len(groups) == 5 and "question by question" not in text


def test_runs_of_two_implementations_of_llava_are_not_paired_but_named(tmp_path, run_tables):
    options = {"model": "llava_vid", "task": LVB}
    arguments = "pretrained=a,max_frames_num=64"
    before = write_run(tmp_path / "uni", [True, False, False], arguments=arguments, **options)  # LLaVA-NeXT's
    keyframes = f"{arguments},use_topk=True"
    after = write_run(
        tmp_path / "aks", [True, True, False], arguments=keyframes, llava="transformers", **options
    )
    (paper, *groups), text, _ = run_tables(tmp_path)
    ours = {row["ours"]: row["remarks"] for row in paper if row["model"].startswith("LLaVA-Video")}
    assert ours.keys() == {"33.3 -> -", "- -> 66.7"} and "on transformers" in ours["- -> 66.7"]
    assert len(groups) == 2 and "question by question" not in text
    note = f"{after}: not compared with {before}: LLaVA ran on transformers for the first and next for the"
    assert note in text
    write_run(tmp_path / "uni2", [True, False, False], arguments=arguments, llava="transformers", **options)
    _, text, _ = run_tables(tmp_path)
    assert "question by question" in text and "not compared with" not in text


def test_questions_in_one_run_only_are_counted_and_left_out(tmp_path, run_tables):
    questions = [{"id": f"q{index}"} for index in range(10)]
    write_run(tmp_path / "uni", [True] * 7, questions=questions[:7])
    arguments = "max_frames_num=8,use_topk=True"
    write_run(tmp_path / "aks", [False] * 2 + [True] * 6, questions=questions[2:], arguments=arguments)
    found, text, _ = run_tables(tmp_path)
    (row,) = found[-1]
    assert (row["questions"], row["both right"], row["only uniform"]) == ("5", "3", "2")
    assert "5 questions are in both runs; 2 only with uniform frames and 3 only with AKS are left out" in text
    assert found[1][0]["difference"] == "-"  # of different questions
    assert found[1][0]["questions"] == "7 -> 8"


def test_a_checkpoints_folder_and_several_tasks_in_one_file(tmp_path, run_tables):
    folder = tmp_path / "results/checkpoints__x"
    path = write_run(folder, [True, False], task=VIDEOMME)
    one = json.loads(path.read_text())
    two = json.loads(write_run(folder, [True, True, False], task=CUSTOM).read_text())
    for name in ("results", "n-samples"):
        one[name] |= two[name] | {"mmlu": {"acc,none": 0.5}}
    path.write_text(json.dumps(one))
    (_, other, *_), text, _ = run_tables(tmp_path / "results")
    assert [(row["benchmark"], row["questions"]) for row in other] == [("VideoMME", "2"), ("custom", "3")]
    assert f"{path}: task mmlu is not one of" in text


def test_names_of_ones_own_groups_cannot_break_the_tables(tmp_path, run_tables):
    names = ["a|b", "two\nlines", "$x^{$", "<b>", *(f"z{index}" for index in range(60))]
    write_pair(
        tmp_path / "results",
        [True] * len(names),
        [False] * len(names),
        questions=[{"duration": name} for name in names],
    )
    (tmp_path / "tables").mkdir()  # left by an earlier run
    found, text, output = run_tables(tmp_path / "results", output=True)
    assert len([row for row in found[2] if row["grouping"] == "duration_group"]) == len(names)
    assert "a\\|b" in text and "two lines" in text
    assert Image.open(output / "tables.png").height < 3000  # the plot shows the first of them


def lines_of(path: Path) -> list[str]:
    return [line + "\n" for line in path.read_text().split("\n") if line]


def cut(folder: Path) -> None:
    (path,) = folder.glob("*.jsonl")
    path.write_text("".join(lines_of(path)[:-1]))


def cut_within_a_line(folder: Path) -> None:
    (path,) = folder.glob("*.jsonl")
    path.write_text(path.read_text()[:-60])


def repeat(folder: Path) -> None:
    (path,) = folder.glob("*.jsonl")
    path.write_text("".join(lines_of(path) + lines_of(path)[:1]))


def swap_answers(folder: Path) -> None:
    (path,) = folder.glob("*.jsonl")
    path.write_text(path.read_text().replace('"parsed_pred": "C"', '"parsed_pred": "B"', 1))


def edit(folder: Path, change) -> None:
    (path,) = folder.glob("*_results.json")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


MISTAKES = [
    (cut, "3 samples, .*_results.json was computed from 4; .*evaluate again"),
    (cut_within_a_line, "jsonl: line 4: not JSON, the file is cut or damaged; evaluate again"),
    (repeat, "jsonl: line 5: question q_0 a second time; two runs wrote this file"),
    (swap_answers, "75.000 % of its answers are right, .* records 50.000 %"),
    (
        lambda folder: edit(folder, lambda c: c["results"][CUSTOM].update({"lvb_acc,none": 0.50001})),
        "50.000 % of its answers are right, .* records 50.001 %",
    ),
    (lambda folder: next(folder.glob("*.jsonl")).unlink(), "file not found; evaluate with --log_samples"),
    (lambda folder: next(folder.glob("*.jsonl")).write_text(""), "no samples in it"),
    (lambda folder: next(folder.glob("*.jsonl")).write_text('{"acc": 1}\n'), "line 1: no 'lvb_acc'"),
    (
        lambda folder: next(folder.glob("*.jsonl")).write_text('{"lvb_acc": {"id": 1}}\n'),
        "'answer' is missing",
    ),
    (lambda folder: next(folder.glob("*.json")).write_text('{"results": '), "not JSON: .*evaluate again"),
    (lambda folder: next(folder.glob("*.json")).write_text("[]"), "not a results file of lmms-eval"),
    (lambda folder: edit(folder, lambda content: content.pop("config")), "not a results file of lmms-eval"),
    (lambda folder: edit(folder, lambda c: c["results"][CUSTOM].pop("lvb_acc,none")), "no score 'lvb_acc'"),
    (
        lambda folder: edit(folder, lambda c: c["results"][CUSTOM].update({"lvb_acc,none": "N/A"})),
        "no score 'lvb_acc'",
    ),
    (
        lambda folder: edit(folder, lambda c: c.update(results={"mmlu": {}})),
        "no results of .*mmlu",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_bad_run_is_told_in_one_line(tmp_path, run_script, spoil, message):
    folder = tmp_path / "run"
    write_run(folder, [True, False, True, False])
    spoil(folder)
    for status, command in (
        (2, ["evaluation/tables.py", folder]),
        (1, ["evaluation/evaluator.py", "--results", folder]),
    ):
        done = run_script(*command)
        assert done.returncode == status and done.stdout == "" and done.stderr.count("\n") == 1
        assert done.stderr.startswith("error: ") and re.search(message, done.stderr), done.stderr


def test_mistakes_in_the_command(tmp_path, run_script):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    write_run(tmp_path / "good", [True])
    for arguments, message in [
        ([tmp_path / "absent"], "absent: no such results folder"),
        ([tmp_path / "good", tmp_path / "empty"], "empty: no *_results.json there"),
        ([tmp_path / "good", "--output", tmp_path / "file/x"], "cannot be created"),
    ]:
        done = run_script("evaluation/tables.py", *arguments)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_runs_on_different_labels_are_not_compared(tmp_path, run_script):
    for name, questions, message in [
        ("groups", [{}, {"duration": 60}], "question q_1: answer B, groups 60, S2E; in .* B, 15, S2E"),
        ("ids", [{"id": "x"}, {"id": "y"}], "no question in common"),
    ]:
        write_run(tmp_path / name / "uni", [True, True])
        arguments = "max_frames_num=8,use_topk=True"
        write_run(tmp_path / name / "aks", [True, True], questions=questions, arguments=arguments)
        done = run_script("evaluation/tables.py", tmp_path / name)
        assert done.returncode == 2 and re.search(message, done.stderr) and done.stderr.count("\n") == 1


def test_model_arguments_are_read_as_lmms_eval_reads_them():
    cases = {
        "": {},
        "pretrained=a/b,max_frames_num=8,use_topk=True": {
            "pretrained": "a/b",
            "max_frames_num": 8,
            "use_topk": True,
        },
        " a = 1 , b=x=y,c=false,d=1e-3,": {"a ": 1.0, "b": "x=y", "c": False, "d": 0.001},
        'a={"x":1,"y":[2,3]},b="u,v",c=-1': {"a": '{"x":1,"y":[2,3]}', "b": '"u,v"', "c": -1.0},
        "frames_digest=sha256-0123456789012345": {"frames_digest": "sha256-0123456789012345"},
        "a='b,c": {"a": "'b,c"},
    }
    for text, arguments in cases.items():
        assert parse_model_args(text) == arguments
    upstream = pytest.importorskip("lmms_eval.utils")
    for text in cases:
        assert parse_model_args(text) == upstream.simple_parse_args_string(text)


def test_what_a_run_says_about_itself(tmp_path):
    arguments = "pretrained=./a/b/,max_num_frames=32,use_topk=True,frames_digest=sha256-ab"
    options = {"task": LVB, "model": "qwen2_vl", "arguments": arguments}
    (run,), _ = read_runs(write_run(tmp_path, [True, False, True], limit=3.0, original=1337, **options))
    assert (run.model, run.checkpoint, run.max_frames, run.benchmark) == (
        "qwen2_vl",
        "a/b",
        32,
        "LongVideoBench",
    )
    assert (run.use_topk, run.short_selection, run.frames_digest, run.limit) == (
        True,
        "strict",
        "sha256-ab",
        3,
    )
    assert run.accuracy == pytest.approx(200 / 3)
    (run,), _ = read_runs(write_run(tmp_path, [True], arguments="max_frames_num=8"))
    assert (run.use_topk, run.short_selection, run.checkpoint, run.limit) == (False, None, None, None)


def test_a_share_as_limit_and_an_offset(tmp_path):
    path = write_run(tmp_path, [True, False], limit=0.5, original=4)
    (run,), _ = read_runs(path)  # lmms-eval does not record how many questions a share is
    assert len(run.samples) == 2 and run.limit == 0.5
    edit(tmp_path, lambda content: content["config"].update(limit=-1, offset=2))
    (run,), _ = read_runs(path)
    assert run.limit is None
    edit(tmp_path, lambda content: content["config"].update(offset=1))
    with pytest.raises(UserError, match="computed from 3"):
        read_runs(path)


def test_the_report_of_one_run(tmp_path, run_script):
    questions = [
        {"duration": d, "category": c} for d, c in [("long", "Law"), ("short", "Law"), ("long", "Pet")]
    ]
    write_run(tmp_path / "x/y", [True, True, False], task=VIDEOMME, questions=questions)
    command = ["evaluation/evaluator.py", "--results", tmp_path]
    done = run_script(*command, "--questions", 3, fresh=True)
    assert done.returncode == 0, done.stderr
    (rows,) = tables(done.stdout)
    found = [(row["grouping"], row["group"], row["questions"], row["accuracy"]) for row in rows]
    assert found[:5] == [
        ("all", "", "3", "66.67"),
        ("duration", "short", "1", "100.00"),
        ("duration", "long", "2", "50.00"),
        ("domain", "Law", "2", "100.00"),
        ("domain", "Pet", "1", "0.00"),
    ]
    assert {row["grouping"] for row in rows} == {"all", "duration", "domain", "sub_category", "task_category"}
    done = run_script(*command, "--questions", 4)
    assert done.returncode == 1 and "3 questions of videomme_aks were answered, not 4" in done.stderr


def test_a_run_without_results_fails(tmp_path, run_script):
    command = ["evaluation/evaluator.py", "--results", tmp_path / "run"]
    done = run_script(*command)
    assert done.returncode == 1 and "wrote no results file" in done.stderr
    write_run(tmp_path / "run", [True])
    assert run_script(*command).returncode == 0
    # Only the newest run counts; an earlier good one does not replace it.
    write_run(tmp_path / "run", [True, False], date="20260202_000000")
    done = run_script(*command, "--questions", 2)
    assert done.returncode == 0 and "50.00" in done.stdout


@pytest.mark.parametrize("clock_s", [1000, 4_000_000_000])
def test_a_run_s_results_are_told_from_earlier_ones_whatever_the_file_server_s_clock(
    tmp_path, capsys, clock_s
):
    os.utime(write_run(tmp_path, [True]), (clock_s, clock_s))
    before = results_files(tmp_path)
    assert evaluate(tmp_path, 1, before) == 1
    assert "wrote no results file" in (stderr := capsys.readouterr().err) and stderr.count("\n") == 1
    os.utime(write_run(tmp_path, [True, False], date="20260202_000000"), (500, 500))
    assert evaluate(tmp_path, 2, before) == 0
    assert "50.00" in capsys.readouterr().out


def test_longvideobench_s_ids_tell_the_videos_that_are_resampled(tmp_path, run_tables):
    uniform, aks = counts(2, 1, 6, 3)
    questions = [{"id": f"a_b-{index // 3}_{index % 3}"} for index in range(12)]
    write_pair(tmp_path / "a", uniform, aks, questions=questions, task="longvideobench_val_v_aks")
    videos = [question["id"].rpartition("_")[0] for question in questions]
    assert_resampled(run_tables(tmp_path / "a")[0], "videos", interval(uniform, aks, videos))
    write_pair(tmp_path / "b", uniform, aks, questions=questions, task="custom_aks")
    assert_resampled(run_tables(tmp_path / "b")[0], "questions", interval(uniform, aks))


@pytest.mark.parametrize(("groups", "remark"), [(39, ""), (40, " (the first of 40 groups)")])
def test_the_plot_says_so_where_it_leaves_groups_out(tmp_path, monkeypatch, groups, remark):
    titles = []

    def plotted(axis, title, records, paper, real=evaluation.plots._plot_accuracy):
        titles.append(title)
        assert len(records) == 40  # all questions, and 39 groups
        real(axis, title, records, paper)

    monkeypatch.setattr(evaluation.plots, "_plot_accuracy", plotted)
    facts = {"table": "group", "title": "m, custom, 8 frames", "benchmark": "custom", "uniform": 50.0}
    names = [("all", ""), *(("duration", str(index)) for index in range(groups))]
    names.append(("question_category", "S2E"))  # not of the first grouping
    records = [{**facts, "grouping": grouping, "group": group} for grouping, group in names]
    evaluation.plots.plot(tmp_path / "tables.png", records)
    assert titles == [f"m, custom, 8 frames{remark}"]


def test_the_papers_figures_stand_inside_the_plot():
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2)
    group = {"group": "", "benchmark": "custom", "uniform": 50.0, "aks": 60.0, "n_uniform": 3}
    group |= {"difference": 10.0, "low": 1.0, "high": 19.0}
    paper = {"published_uniform": 55.0, "published_aks": 61.0}
    evaluation.plots._plot_accuracy(left, "title", [group], paper)
    evaluation.plots._plot_difference(right, [group], paper)
    for axis, count in ((left, 2), (right, 1)):
        markers = [line for line in axis.lines if "paper" in line.get_label()]
        bottom, top = axis.get_ylim()
        assert len(markers) == count
        assert all(top < y < bottom for line in markers for y in line.get_ydata())
    plt.close(figure)


def test_a_table_lines_up_as_plain_text():
    lines = format_table(["name", "n"], [["a|b", "1"], ["longer than its title", "1000"]]).splitlines()
    assert lines[2:] == ["| a\\|b                  |    1 |", "| longer than its title | 1000 |"]
    assert len(set(map(len, lines))) == 1


def test_the_plot_shows_both_runs_of_a_group():
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots()
    group = {"group": "", "benchmark": "custom", "uniform": 50.0, "aks": 60.0, "n_uniform": 3}
    evaluation.plots._plot_accuracy(axis, "title", [group], {})
    points = {line.get_label(): list(line.get_xdata()) for line in axis.lines}
    plt.close(figure)
    assert points["uniform frames"] == [50] and points["AKS"] == [60]
