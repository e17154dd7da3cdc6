"""Results folders of lmms-eval, read back question by question and checked against the recorded score.

A run with ``--log_samples`` leaves two files in ``--output_path`` or in the checkpoint's folder there::

    <date>_results.json            the score, the model and its arguments
    <date>_samples_<task>.jsonl    a line a question
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aks.errors import UserError
from aks.jsonio import read_json

RESULTS = "_results.json"
ROUNDING = 0.00051  # points; LongVideoBench's score is recorded with five decimals of a fraction
FRAMES_ARGUMENTS = ("max_frames_num", "max_num_frames")  # LLaVA's name, and Qwen's


@dataclass(frozen=True)
class Metric:
    """Where a benchmark's metric keeps what.

    Attributes:
        name: its key in the results and in every sample.
        scale: the recorded score of all questions right.
        id: field of a sample's question id.
        prediction: field of the letter that was answered; the right one's is ``answer``.
        groupings: name of a grouping to its field; the first one is by duration.
        video: field of the video's name; None where samples do not tell it.
        video_in_id: a question's id is its video's name, _ and a number.
    """

    name: str
    scale: float
    id: str
    prediction: str
    groupings: Mapping[str, str]
    video: str | None = None
    video_in_id: bool = False


LVB_ACC = Metric(
    "lvb_acc",
    1,
    "id",
    "parsed_pred",
    {"duration_group": "duration_group", "question_category": "question_category"},
)
LVB_ACC_BY_VIDEO = dataclasses.replace(LVB_ACC, video_in_id=True)
VIDEOMME_SCORE = Metric(
    "videomme_perception_score",
    100,
    "question_id",
    "pred_answer",
    {
        "duration": "duration",
        "domain": "category",
        "sub_category": "sub_category",
        "task_category": "task_category",
    },
    video="videoID",
)
# Task -> the benchmark it is a run of, and its metric. Upstream's own tasks are not among them: their
# prompts can differ from those of the tasks here.
TASKS = {
    "longvideobench_val_v_aks": ("LongVideoBench", LVB_ACC_BY_VIDEO),
    "longvideobench_val_i_uni": ("LongVideoBench, pictures and subtitles", LVB_ACC_BY_VIDEO),
    "longvideobench_val_i_aks": ("LongVideoBench, pictures and subtitles", LVB_ACC_BY_VIDEO),
    "videomme_aks": ("VideoMME", VIDEOMME_SCORE),
    "videomme_w_subtitle_aks": ("VideoMME with subtitles", VIDEOMME_SCORE),
    "custom_aks": ("custom", LVB_ACC),
}


@dataclass(frozen=True)
class Sample:
    """One answered question.

    Attributes:
        id: the question's id in the label file.
        correct: whether the answer was right.
        answer: letter of the right option.
        video: its video's name; None where the samples do not tell it.
        groups: grouping to the question's group.
    """

    id: str
    correct: bool
    answer: str
    video: str | None
    groups: Mapping[str, str]


@dataclass(frozen=True)
class Run:
    """One model's answers to one benchmark.

    Attributes:
        path: its results file.
        date: when it was made, sorts by time.
        task: lmms-eval's task.
        benchmark: the benchmark's name.
        model: lmms-eval's name of the model.
        checkpoint: the weights as they were named; None where they were not.
        max_frames: frames a question at most; None where it was left to the model's default.
        use_topk: whether keyframes were shown, not uniform frames.
        short_selection: the rule for selections below the budget, ``strict`` or ``paper``; for keyframes.
        frames_digest: digest of the keyframes; None where it was not given.
        limit: ``--limit``; None for all questions.
        samples: question id to answered question, in the order of the label file.
    """

    path: Path
    date: str
    task: str
    benchmark: str
    model: str
    checkpoint: str | None
    max_frames: int | None
    use_topk: bool
    short_selection: str | None
    frames_digest: str | None
    limit: float | None
    samples: Mapping[str, Sample] = field(repr=False)

    @property
    def accuracy(self) -> float:
        """In percent."""
        return accuracy(self.samples.values())


def accuracy(samples: Iterable[Sample]) -> float:
    """Share of right answers, in percent; of at least one sample."""
    correct = [sample.correct for sample in samples]
    return 100 * sum(correct) / len(correct)


def find_results(place: Path) -> list[Path]:
    """The results files in a folder and its sub-folders, or the file itself, oldest first.

    Raises:
        UserError: there is no such folder, or it holds none.
    """
    if not place.exists():
        raise UserError(f"{place}: no such results folder; check the path, or evaluate first")
    found = [place] if place.is_file() else [path for path in place.rglob(f"*{RESULTS}") if path.is_file()]
    if not found:
        raise UserError(
            f"{place}: no *{RESULTS} there; lmms-eval writes one when it ended well, with --output_path"
        )
    return sorted(found, key=lambda path: (date_of(path), str(path)))


def date_of(path: Path) -> str:
    """The date in a results file's name."""
    return path.name.removesuffix(RESULTS)


def read_runs(path: Path) -> tuple[list[Run], list[str]]:
    """The runs in one results file, one a task, each checked against its samples.

    Returns:
        The runs, and the names of tasks that are not this project's.

    Raises:
        UserError: the file or a samples file is missing, malformed, or the two do not fit.
    """
    content = _read(path)
    scores, config = content.get("results"), content.get("config")
    if not isinstance(scores, dict) or not isinstance(config, dict) or "model" not in config:
        raise UserError(f"{path}: not a results file of lmms-eval ('results' or 'config' is missing)")
    arguments = parse_model_args(config.get("model_args") or "")
    limit = config.get("limit")
    use_topk = arguments.get("use_topk", False) is True
    frames = next((arguments[name] for name in FRAMES_ARGUMENTS if name in arguments), None)
    checkpoint = arguments.get("pretrained")
    runs = []
    for task in scores:
        if task not in TASKS:
            continue
        benchmark, metric = TASKS[task]
        samples_path = path.with_name(f"{date_of(path)}_samples_{task}.jsonl")
        samples = read_samples(samples_path, metric)
        _check_count(path, samples_path, len(samples), content.get("n-samples"), task, config)
        _check_score(path, samples_path, samples.values(), scores[task], metric)
        run = Run(
            path=path,
            date=date_of(path),
            task=task,
            benchmark=benchmark,
            model=str(config["model"]),
            checkpoint=None if checkpoint is None else os.path.normpath(str(checkpoint)),
            max_frames=frames,
            use_topk=use_topk,
            short_selection=str(arguments.get("short_selection", "strict")) if use_topk else None,
            frames_digest=str(arguments["frames_digest"]) if "frames_digest" in arguments else None,
            limit=None if limit in (None, -1) else limit,
            samples=samples,
        )
        runs.append(run)
    return runs, [task for task in scores if task not in TASKS]


def read_samples(path: Path, metric: Metric) -> dict[str, Sample]:
    """Question id to answered question, in the file's order.

    Raises:
        UserError: the file is missing, empty or malformed, or holds a question twice; names the line.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        raise UserError(f"{path}: file not found; evaluate with --log_samples") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    samples: dict[str, Sample] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        sample = _sample(f"{path}: line {number}", line, metric)
        if sample.id in samples:
            raise UserError(
                f"{path}: line {number}: question {sample.id} a second time; "
                "two runs wrote this file, remove it and evaluate again"
            )
        samples[sample.id] = sample
    if not samples:
        raise UserError(f"{path}: no samples in it; evaluate again")
    return samples


def _sample(where: str, line: bytes, metric: Metric) -> Sample:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f"{where}: not JSON, the file is cut or damaged; evaluate again") from None
    entry = entry.get(metric.name) if isinstance(entry, dict) else None
    if not isinstance(entry, dict):
        raise UserError(f"{where}: no {metric.name!r}; not the samples of this task")
    for name in (metric.id, "answer", metric.prediction, *metric.groupings.values()):
        if not isinstance(entry.get(name), str | int):
            raise UserError(f"{where}: {metric.name}: {name!r} is missing or no text; evaluate again")
    video = entry.get(metric.video) if metric.video else None
    if metric.video_in_id:
        video, _, number = str(entry[metric.id]).rpartition("_")
        video = video if number.isdigit() else None
    return Sample(
        id=str(entry[metric.id]),
        correct=entry[metric.prediction] == entry["answer"],
        answer=str(entry["answer"]),
        video=str(video) if video else None,
        groups={grouping: str(entry[name]) for grouping, name in metric.groupings.items()},
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except UserError as error:
        raise UserError(f"{error}; remove it and evaluate again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a results file of lmms-eval (holds {type(content).__name__})")
    return content


def _check_count(
    path: Path, samples_path: Path, count: int, recorded: Any, task: str, config: Mapping[str, Any]
) -> None:
    """As many samples as questions were asked, where that is on record."""
    limit, offset = config.get("limit"), config.get("offset") or 0
    try:
        asked = recorded[task]["original"] - offset
        if limit not in (None, -1):
            asked = min(asked, int(limit)) if limit >= 1 else None  # below 1 it is a share
    except (KeyError, TypeError):
        return
    if asked is not None and count != asked:
        raise UserError(
            f"{samples_path}: {count} samples, {path.name} was computed from {asked}; "
            "the file is cut or of another run, evaluate again"
        )


def _check_score(
    path: Path, samples_path: Path, samples: Iterable[Sample], scores: Any, metric: Metric
) -> None:
    """The recorded score, recomputed from the samples."""
    recorded = scores.get(f"{metric.name},none") if isinstance(scores, dict) else None
    if not isinstance(recorded, int | float) or not math.isfinite(recorded):
        raise UserError(f"{path}: records no score {metric.name!r}; the run failed, evaluate again")
    points = 100 * recorded / metric.scale
    found = accuracy(samples)
    if abs(found - points) > ROUNDING:
        raise UserError(
            f"{samples_path}: {found:.3f} % of its answers are right, {path.name} records {points:.3f} %; "
            "the file is cut or of another run, evaluate again"
        )


def parse_model_args(text: str | Mapping[str, Any]) -> dict[str, Any]:
    """lmms-eval's ``--model_args`` as a dictionary, values typed as it types them.

    >>> parse_model_args("pretrained=a/b,max_frames_num=8,use_topk=True,sizes=[1,2]")
    {'pretrained': 'a/b', 'max_frames_num': 8, 'use_topk': True, 'sizes': '[1,2]'}
    """
    if not isinstance(text, str):
        return dict(text)
    arguments, current, depth, quote = [], "", 0, ""
    for character in text + ",":
        if character == "," and depth == 0 and not quote:  # not within brackets or quotes
            arguments.append(current.strip())
            current = ""
            continue
        if character in "\"'" and not current.endswith("\\") and quote in ("", character):
            quote = "" if quote else character
        elif not quote:
            depth += (character in "{[") - (character in "}]")
        current += character
    arguments.append(current.removesuffix(",").strip())  # something that is never closed
    pairs = (argument.split("=", 1) for argument in arguments if "=" in argument)
    return {name: _value(value) for name, value in pairs}


def _value(text: str) -> bool | int | float | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return int(text) if text.isnumeric() else float(text)
    except ValueError:
        return text


def group_samples(samples: Sequence[Sample], grouping: str) -> dict[str, list[Sample]]:
    """A grouping's samples by group: durations ascending, others by name."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.groups[grouping], []).append(sample)
    return {name: groups[name] for name in sorted(groups, key=_group_order)}


def _group_order(name: str) -> tuple[int, float, str]:
    if name in (durations := ("short", "medium", "long")):
        return (0, durations.index(name), "")
    return (0, float(name), "") if name.isdecimal() else (1, 0, name)


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A markdown table whose columns also line up as plain text.

    Args:
        head: column titles.
        rows: cells.
        left: how many columns are aligned left; the others are right.
    """
    cells = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    justify: list[Callable[[str, int], str]] = [
        str.ljust if at < left else str.rjust for at in range(len(widths))
    ]
    lines = [
        "| "
        + " | ".join(put(cell, width) for put, cell, width in zip(justify, row, widths, strict=True))
        + " |"
        for row in cells
    ]
    rule = ["-" * (width + 2) if at < left else "-" * (width + 1) + ":" for at, width in enumerate(widths)]
    return "\n".join([lines[0], "|" + "|".join(rule) + "|", *lines[1:]])
