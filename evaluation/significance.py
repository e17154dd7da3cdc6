"""Pairs runs on uniform frames with runs on keyframes, and says how sure their difference in accuracy is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from aks.bootstrap import bootstrap_interval
from aks.errors import UserError
from evaluation.results import EvalRun


@dataclass(frozen=True)
class Comparison:
    """Uniform frames beside keyframes: one model, one benchmark, one number of frames.

    Attributes:
        runs: ``uniform`` and ``aks`` to the run on such frames, in this order; one may be missing.
    """

    runs: dict[str, EvalRun]

    @property
    def is_paired(self) -> bool:
        """Whether both runs are there."""
        return len(self.runs) == 2

    @property
    def run(self) -> EvalRun:
        """The keyframe run, or the uniform one without it; for the setup, which both share."""
        return list(self.runs.values())[-1]

    @cached_property
    def question_ids(self) -> list[str]:
        """The questions that every run answered, in the label file's order."""
        first, *others = self.runs.values()
        return [id for id in first.samples if all(id in run.samples for run in others)]


def latest_runs(runs: Sequence[EvalRun]) -> tuple[list[EvalRun], list[str]]:
    """Keep one run of each setup: the newest without a limit, or else the newest.

    Returns:
        The runs kept, and a note on each one left out.
    """
    kept: dict[tuple[Any, ...], EvalRun] = {}
    notes = []
    for run in sorted(runs, key=lambda run: (run.limit is None, run.timestamp, str(run.path))):
        setup = (run.model, run.implementation, run.checkpoint, run.task, run.max_frames)
        setup += (run.use_topk, run.short_selection)
        older = kept.pop(setup, None)
        kept[setup] = run
        if older is None:
            continue
        reason = "is newer" if run.limit == older.limit or run.limit is not None else "has no limit"
        note = f"{older.path}: left out for {run.path}, which {reason}"
        if run.frames_digest != older.frames_digest:
            note += f" (other keyframes: {older.frames_digest} there, {run.frames_digest} here)"
        notes.append(note)
    return list(kept.values()), notes


def pair_runs(runs: Sequence[EvalRun]) -> list[Comparison]:
    """Put each keyframe run beside the uniform run of its setup; a uniform run may stay alone.

    Raises:
        UserError: the two runs of a pair answered questions of different label files.
    """

    def setup(run: EvalRun) -> tuple[str, str, str, int, str]:
        implementation = run.implementation or ""
        return run.model, run.checkpoint or "", implementation, run.max_frames or 0, run.benchmark

    uniform = {setup(run): run for run in runs if not run.use_topk}
    unpaired = dict(uniform)
    pairs = []
    for run in runs:
        if run.use_topk:
            unpaired.pop(setup(run), None)
            partner = uniform.get(setup(run))
            pairs.append(Comparison({**({"uniform": partner} if partner else {}), "aks": run}))
    pairs += [Comparison({"uniform": run}) for run in unpaired.values()]
    for pair in pairs:
        if pair.is_paired:
            _check_same_labels(pair)
    return sorted(pairs, key=lambda pair: (*setup(pair.run), pair.run.short_selection == "paper"))


def unpaired_notes(comparisons: Sequence[Comparison]) -> list[str]:
    """A note on each keyframe run that lacks uniform frames of its own implementation of LLaVA alone.

    Two implementations give other answers to a few questions in a thousand, which would count as an effect of
    the frames.
    """
    uniform = [pair.runs["uniform"] for pair in comparisons if "uniform" in pair.runs]
    return [
        f"{aks.path}: not compared with {other.path}: LLaVA ran on {aks.implementation} for the first and "
        f"{other.implementation} for the second; evaluate the second with LLAVA={aks.implementation}"
        for aks in (pair.run for pair in comparisons if not pair.is_paired and pair.run.use_topk)
        for other in uniform
        if aks.implementation != other.implementation
        and (aks.model, aks.checkpoint, aks.max_frames, aks.benchmark)
        == (other.model, other.checkpoint, other.max_frames, other.benchmark)
    ]


def _check_same_labels(pair: Comparison) -> None:
    uniform, aks = pair.runs.values()
    if not pair.question_ids:
        raise UserError(
            f"{aks.path}: no question in common with {uniform.path}; compare runs on the same label file"
        )
    for id in pair.question_ids:
        before, after = uniform.samples[id], aks.samples[id]
        if (before.answer, before.groups) != (after.answer, after.groups):
            raise UserError(
                f"{aks.path}: question {id}: answer {after.answer}, groups "
                f"{', '.join(chain(*after.groups.values()))}; in {uniform.path} {before.answer}, "
                f"{', '.join(chain(*before.groups.values()))}; "
                "compare runs on the same label file"
            )


def mcnemar_p(only_first: int, only_second: int) -> float:
    """McNemar's exact two-sided test for paired answers (McNemar, 1947; exact by the binomial distribution).

    >>> mcnemar_p(1, 9)
    0.021484375

    Args:
        only_first: questions that only the first model answered right.
        only_second: questions that only the second model answered right.

    Returns:
        Probability of a split at least as uneven if both models were equally good.
    """
    n = only_first + only_second
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**n)  # whole numbers until here, so that thousands of questions stay exact


def paired_difference(comparison: Comparison, question_ids: Sequence[str]) -> dict[str, Any]:
    """Accuracy on keyframes minus accuracy on uniform frames, both on the same questions.

    Returns:
        ``difference`` with its interval's ends ``low`` and ``high``, all in points, and ``resampled``:
        ``videos`` where every question's video is known, else ``questions``.
    """
    uniform, aks = ([run.samples[id] for id in question_ids] for run in comparison.runs.values())
    points = [100 * (after.correct - before.correct) for before, after in zip(uniform, aks, strict=True)]
    videos = [sample.video for sample in uniform if sample.video is not None]
    clusters = videos if len(videos) == len(uniform) else None
    low, high = bootstrap_interval(points, clusters)
    return {
        "difference": float(np.mean(points)),
        "low": low,
        "high": high,
        "resampled": "questions" if clusters is None else "videos",
    }
