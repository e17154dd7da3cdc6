"""Reads lmms-eval's results back, question by question, and checks them against the recorded score.

A run with ``--log_samples`` leaves two files in ``--output_path`` or in the checkpoint's folder there::

    <timestamp>_results.json            the score, the model and its arguments
    <timestamp>_samples_<task>.jsonl    a line a question
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aks.errors import UserError
from aks.jsonio import read_json
from aks.lmms_eval_models import SUFFIX
from evaluation.llava_implementation import MODELS as LLAVA_MODELS
from evaluation.llava_implementation import NEXT, TRANSFORMERS
from evaluation.metrics import TASKS, Metric, Sample, accuracy
from evaluation.samples import read_samples
from evaluation.scoring import CURRENT

RESULTS = "_results.json"
SCORE_TOLERANCE = 0.00051  # points; lmms-eval records LongVideoBench's score as a fraction of five decimals
FRAMES_ARGUMENTS = ("max_frames_num", "max_num_frames", "num_frames")  # LLaVA's, Qwen's and InternVL's name


@dataclass(frozen=True)
class EvalRun:
    """One model's answers to one benchmark."""

    path: Path  # its results file
    timestamp: str  # when it was made, as text that sorts by time
    task: str  # lmms-eval's name of the task
    benchmark: str
    model: str  # lmms-eval's name of the model, also where it ran under this project's name (llava_vid_aks)
    checkpoint: str | None  # the weights as the command named them; None where it did not
    max_frames: int | None  # most frames a question; None where it was left to the model's default
    use_topk: bool  # whether keyframes were shown, not uniform frames
    short_selection: str | None  # rule for selections below the budget; None for uniform frames
    frames_digest: str | None  # digest of the keyframes; None where it was not given
    limit: float | None  # --limit; None for all questions
    samples: Mapping[str, Sample] = field(repr=False)  # by question id, in the label file's order
    implementation: str | None = None  # of a LLaVA: next or transformers; None for other models
    own_scores: Mapping[str, float] = field(default_factory=dict)  # the benchmark's own, title to percent

    @property
    def accuracy(self) -> float:
        """In percent."""
        return accuracy(self.samples.values())

    @property
    def accuracy_oct2024(self) -> float | None:
        """In percent, by the rules of October 2024; None where the samples do not tell."""
        correct = [sample.correct_oct2024 for sample in self.samples.values()]
        return None if None in correct else 100 * sum(correct) / len(correct)

    def scored_as(self, scoring: str) -> EvalRun:
        """This run with its answers scored by one of :data:`~evaluation.scoring.SCORINGS`.

        A benchmark that the paper does not have is scored by today's rules alone.

        Raises:
            UserError: the samples do not tell what was answered, or which options there were.
        """
        if scoring == CURRENT or dict(TASKS.values())[self.benchmark].letter_oct2024 is None:
            return self
        if self.accuracy_oct2024 is None:
            raise UserError(
                f"{self.path}: its samples lack answers or prompts, which --scoring {scoring} needs; "
                "evaluate again"
            )
        samples = {
            id: dataclasses.replace(sample, correct=bool(sample.correct_oct2024))
            for id, sample in self.samples.items()
        }
        return dataclasses.replace(self, samples=samples)

    @property
    def label(self) -> str:
        """Model, checkpoint, implementation and rule for short selections, as the tables print them."""
        named = f"{self.model} ({self.checkpoint})" if self.checkpoint else self.model
        if self.implementation == TRANSFORMERS:
            named += " on transformers"
        return f"{named}, short_selection=paper" if self.short_selection == "paper" else named

    @property
    def title(self) -> str:
        """The label with the benchmark and the number of frames."""
        return f"{self.label}, {self.benchmark}, {self.max_frames or 'default'} frames"


def read_folders(folders: Iterable[Path]) -> tuple[list[EvalRun], list[str]]:
    """Every run in the folders (or results files), oldest first, and a note on each task passed over.

    Raises:
        UserError: a folder without results, a bad file, or no run of a known task at all.
    """
    paths: dict[Path, Path] = {}  # by the resolved path, because folders may overlap
    for folder in folders:
        if not folder.exists():
            raise UserError(f"{folder}: no such results folder; check the path, or evaluate first")
        found = [folder] if folder.is_file() else filter(Path.is_file, folder.rglob(f"*{RESULTS}"))
        in_folder = {path.resolve(): path for path in sorted(found, key=_by_time)}
        if not in_folder:
            raise UserError(
                f"{folder}: no *{RESULTS} there; lmms-eval writes one when it ended well, with --output_path"
            )
        paths |= in_folder
    runs, notes = [], []
    for path in paths.values():
        of_known_tasks, unknown = read_runs(path)
        runs += of_known_tasks
        notes += [f"{path}: task {task} is not one of {', '.join(TASKS)}; passed over" for task in unknown]
    if not runs:
        raise UserError(f"no results of a known task: {'; '.join(notes) or 'the files hold none'}")
    return sorted(runs, key=lambda run: _by_time(run.path)), notes


def _by_time(path: Path) -> tuple[str, str]:
    return timestamp_of(path), str(path)


def timestamp_of(path: Path) -> str:
    """The timestamp in a results file's name."""
    return path.name.removesuffix(RESULTS)


def read_runs(path: Path) -> tuple[list[EvalRun], list[str]]:
    """The runs in one results file, one a task, and the names of tasks that are not this project's.

    Raises:
        UserError: the file or a samples file is missing or malformed, or they do not fit each other.
    """
    try:
        content = read_json(path)
    except UserError as error:
        raise UserError(f"{error}; remove it and evaluate again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a results file of lmms-eval (holds {type(content).__name__})")
    scores, config = content.get("results"), content.get("config")
    if not isinstance(scores, dict) or not isinstance(config, dict) or "model" not in config:
        raise UserError(f"{path}: not a results file of lmms-eval ('results' or 'config' is missing)")
    arguments = parse_model_args(config.get("model_args") or "")
    use_topk = arguments.get("use_topk", False) is True
    checkpoint = arguments.get("pretrained")
    runs = []
    own_names = {task: _own_name(content, task) for task in scores}
    for task, name in own_names.items():
        if name not in TASKS:
            continue
        benchmark, metric = TASKS[name]
        samples_path = path.with_name(f"{timestamp_of(path)}_samples_{task}.jsonl")
        samples = read_samples(samples_path, metric)
        num_asked = _num_asked(content, task)
        if num_asked is not None and len(samples) != num_asked:
            raise UserError(
                f"{samples_path}: {len(samples)} samples, {path.name} was computed from {num_asked}; "
                "the file is cut or of another run, evaluate again"
            )
        _check_score(path, samples_path, samples.values(), scores[task], metric)
        model = str(config["model"]).removesuffix(SUFFIX)
        runs.append(
            EvalRun(
                path=path,
                timestamp=timestamp_of(path),
                task=task,
                benchmark=benchmark,
                model=model,
                checkpoint=None if checkpoint is None else os.path.normpath(str(checkpoint)),
                max_frames=next((arguments[name] for name in FRAMES_ARGUMENTS if name in arguments), None),
                use_topk=use_topk,
                short_selection=str(arguments.get("short_selection", "strict")) if use_topk else None,
                frames_digest=str(arguments["frames_digest"]) if "frames_digest" in arguments else None,
                limit=None if config.get("limit") == -1 else config.get("limit"),
                samples=samples,
                implementation=_implementation(content, task, model),
                own_scores={
                    title: _recorded(path, scores[task], key) for title, key in metric.own_scores.items()
                },
            )
        )
    return runs, [task for task, name in own_names.items() if name not in TASKS]


def _own_name(content: Mapping[str, Any], task: str) -> str:
    """A task's name here, also where evaluation/swap_in.py gave it lmms-eval's."""
    swapped_in = "entries_sha256" in _metadata(content, task)
    return f"{task}{SUFFIX}" if swapped_in and task not in TASKS else task


def _implementation(content: Mapping[str, Any], task: str, model: str) -> str | None:
    """Which implementation of LLaVA answered; None for other models."""
    if model not in LLAVA_MODELS:
        return None
    return str(_metadata(content, task).get("llava", NEXT))  # earlier versions had no other


def _metadata(content: Mapping[str, Any], task: str) -> Mapping[str, Any]:
    """What evaluation/task.py put into a task's configuration; empty for a task of others."""
    try:
        metadata = content["configs"][task]["metadata"]
    except (LookupError, TypeError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _num_asked(content: Mapping[str, Any], task: str) -> int | None:
    """How many questions lmms-eval asked; None where that is not on record."""
    limit, offset = content["config"].get("limit"), content["config"].get("offset") or 0
    try:
        available = content["n-samples"][task]["original"] - offset
        if limit in (None, -1):
            return available
        return min(available, int(limit)) if limit >= 1 else None  # below 1 the limit is a share
    except (KeyError, TypeError):
        return None


def _check_score(
    path: Path, samples_path: Path, samples: Iterable[Sample], scores: Any, metric: Metric
) -> None:
    """Compare the recorded score with the one that the samples give."""
    points = 100 * _recorded(path, scores, metric.name) / metric.scale
    found = metric.score(samples)
    if abs(found - points) > SCORE_TOLERANCE:
        name = "of its answers are right" if metric.score is accuracy else "is the score of its answers"
        raise UserError(
            f"{samples_path}: {found:.3f} % {name}, {path.name} records {points:.3f} %; "
            "the file is cut or of another run, evaluate again"
        )


def _recorded(path: Path, scores: Any, name: str) -> float:
    """A score in a results file, as lmms-eval recorded it."""
    recorded = scores.get(f"{name},none") if isinstance(scores, dict) else None
    if not isinstance(recorded, int | float) or not math.isfinite(recorded):
        raise UserError(f"{path}: records no score {name!r}; the run failed, evaluate again")
    return recorded


def parse_model_args(text: str | Mapping[str, Any]) -> dict[str, Any]:
    """lmms-eval's ``--model_args`` as a dictionary, values typed as it types them.

    lmms-eval's own parser is not used, because importing it takes seconds (it brings torch).

    >>> parse_model_args("pretrained=a/b,max_frames_num=8,use_topk=True,sizes=[1,2]")
    {'pretrained': 'a/b', 'max_frames_num': 8, 'use_topk': True, 'sizes': '[1,2]'}
    """
    if not isinstance(text, str):
        return dict(text)
    # A comma ends a value where the next name follows; within JSON or quotes none does.
    parts = [part.strip(" ,") for part in re.split(r",(?=\s*\w+\s*=)", text)]
    return {name: _typed(value) for name, _, value in (part.partition("=") for part in parts if part)}


def _typed(text: str) -> bool | int | float | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return int(text) if text.isnumeric() else float(text)
    except ValueError:
        return text
