"""Reads the answered questions of a run, a line each of lmms-eval's samples file, and groups them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aks.errors import UserError
from evaluation.metrics import Metric, Sample

DURATIONS = ("short", "medium", "long")  # VideoMME's


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
        sample = _parse_sample(f"{path}: line {number}", line, metric)
        if sample.id in samples:
            raise UserError(
                f"{path}: line {number}: question {sample.id} a second time; "
                "two runs wrote this file, remove it and evaluate again"
            )
        samples[sample.id] = sample
    if not samples:
        raise UserError(f"{path}: no samples in it; evaluate again")
    return samples


def _parse_sample(location: str, line: bytes, metric: Metric) -> Sample:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f"{location}: not JSON, the file is cut or damaged; evaluate again") from None
    raw_answer, prompt = _raw_answer(entry)
    entry = entry.get(metric.name) if isinstance(entry, dict) else None
    if not isinstance(entry, dict):
        raise UserError(f"{location}: no {metric.name!r}; not the samples of this task")
    for name in (metric.id, "answer", metric.prediction):
        if not isinstance(entry.get(name), str | int):
            raise UserError(f"{location}: {metric.name}: {name!r} is missing or no text; evaluate again")
    groups = {}
    for grouping, name in metric.groupings.items():
        values = entry.get(name) if isinstance(entry.get(name), list) else [entry.get(name)]
        if name not in entry or not all(isinstance(value, str | int | None) for value in values):
            raise UserError(f"{location}: {metric.name}: {name!r} is missing or no text; evaluate again")
        groups[grouping] = tuple("-" if value is None else str(value) for value in values)
    video = entry.get(metric.video) if metric.video else None
    if metric.video_in_id:
        video, _, number = str(entry[metric.id]).rpartition("_")
        video = video if number.isdigit() else None
    id, answer = str(entry[metric.id]), str(entry["answer"])
    letter = None
    if metric.letter_oct2024 is not None and raw_answer is not None:
        letter = metric.letter_oct2024(raw_answer, prompt, id)
    return Sample(
        id=id,
        correct=entry[metric.prediction] == entry["answer"],
        answer=answer,
        video=str(video) if video else None,
        groups=groups,
        correct_oct2024=None if letter is None else letter == answer,
    )


def _raw_answer(entry: Any) -> tuple[str | None, str]:
    """What the model wrote, None where a sample does not tell, and its prompt."""
    if not isinstance(entry, dict):
        return None, ""
    answer = entry.get("filtered_resps")
    if isinstance(answer, list) and len(answer) == 1:  # as older versions of lmms-eval write it
        answer = answer[0]
    return (answer if isinstance(answer, str) else None), str(entry.get("input") or "")


def group_samples(samples: Sequence[Sample]) -> list[tuple[str, str, list[Sample]]]:
    """The samples by grouping and group: first all of them, then every grouping's groups.

    Durations come in ascending order, other groups by name.
    """

    def order(group: str) -> tuple[int, float, str]:
        if group in DURATIONS:
            return 0, DURATIONS.index(group), ""
        return (0, float(group), "") if group.isdecimal() else (1, 0, group)

    found = [("all", "", list(samples))]
    for grouping in samples[0].groups:
        groups: dict[str, list[Sample]] = {}
        for sample in samples:
            for name in sample.groups[grouping]:
                groups.setdefault(name, []).append(sample)
        found += [(grouping, group, groups[group]) for group in sorted(groups, key=order)]
    return found
