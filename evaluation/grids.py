"""The cells of the paper's tables that one model answers: which frames each shows, and what was published.

A table's cells share most of their frames. A question is asked once for each different list of frames; every
cell reads its answers there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aks.presets import PAPER, preset_settings
from aks.selection import select_positions

PUBLISHED = Path(__file__).with_name("published.json")
GRIDS = ("strategies", "scorers", "candidate_rates", "depth_threshold")
FRAMES = 64  # a question, in the tables that do not vary them


@dataclass(frozen=True)
class Setting:
    """What a cell's frames depend on.

    Attributes:
        frames: budget.
        scorer: whose scores are read; None where the model shows its own uniform frames.
        strategy, ratio, t1, max_depth, quota: as of :func:`aks.select_keyframes`.
    """

    frames: int
    scorer: str | None
    strategy: str = "ada"
    ratio: int = 1
    t1: float = 0.0
    max_depth: int = 0
    quota: str = "full"

    @property
    def name(self) -> str:
        """A folder's name."""
        if self.scorer is None:
            return f"uniform_{self.frames}"
        rule = f"{self.scorer}_{self.frames}_{self.strategy}"
        return f"{rule}_t{self.t1:g}_d{self.max_depth}_r{self.ratio}_{self.quota}"

    def select(self, scores: Sequence[np.ndarray], frames: Sequence[np.ndarray]) -> list[list[int]]:
        """The keyframes of every question.

        Args:
            scores: of every question's candidates, (n,) each.
            frames: their frame numbers, (n,) each.
        """
        options = {"strategy": self.strategy, "ratio": self.ratio, "t1": self.t1}
        options |= {"max_depth": self.max_depth, "quota": self.quota}
        return [
            row[select_positions(score, self.frames, **options)].tolist()
            for score, row in zip(scores, frames, strict=True)
        ]


@dataclass(frozen=True)
class Cell:
    """One cell of a published table.

    Attributes:
        grid: the table's name in ``published.json``.
        fields: what tells it from the table's other cells.
        setting: which frames it shows.
        published: accuracy in percent.
        remark: what a reader of the table should know.
    """

    grid: str
    fields: Mapping[str, Any]
    setting: Setting
    published: float
    remark: str = ""


def cells_of(grid: str, dataset: str, changes: Mapping[str, Any], preset: str = "paper") -> list[Cell]:
    """The cells of a table for one benchmark, in its order.

    Args:
        grid: one of :data:`GRIDS`.
        dataset: ``longvideobench`` or ``videomme``.
        changes: settings in place of the preset's: ``t1``, ``max_depth``, ``quota``.
        preset: one of :data:`aks.presets.PRESETS`.
    """
    found = []
    for row in json.loads(PUBLISHED.read_bytes())[grid]["rows"]:
        fields = {name: value for name, value in row.items() if name not in (*PAPER, "remark")}
        frames, scorer = row.get("frames", FRAMES), row.get("scorer", "blip")
        strategy = row.get("strategy", "ada")
        remark = row.get("remark", "")
        if not remark.startswith(str(row[dataset])):  # it is about the other benchmark's figure
            remark = ""
        if "uniform" in (scorer, strategy):
            setting = Setting(frames, None)
        else:
            own = {"t1": row["threshold"], "max_depth": row["depth"]} if "threshold" in row else {}
            settings = preset_settings(preset, dataset, frames, {**changes, **own})
            ratio = round(1 / row.get("candidates_per_second", 1))
            setting = Setting(frames, scorer, strategy, ratio, **settings)
            if preset == "paper" and "quota" not in changes and setting.quota == "full":
                remark = "full quota: the released one leaves no frames"
        found.append(Cell(grid, fields, setting, row[dataset], remark))
    return found


class DistinctQuestions:
    """The questions of several settings with one budget: each once for every different list of frames.

    Attributes:
        rows: the frames of each question to ask.
        sources: which question of the label file it is.
        digests: of the frames shown, by which another table knows the question again.
    """

    def __init__(self, frames: int, refill: bool) -> None:
        """``refill``: all selections below the budget show the same, uniform frames."""
        self._frames, self._refill = frames, refill
        self._indices: dict[tuple[int, tuple[int, ...]], int] = {}
        self._answers: dict[Setting, list[int]] = {}
        self.rows: list[list[int]] = []
        self.sources: list[int] = []
        self.digests: list[str] = []

    def add(self, setting: Setting, rows: Sequence[Sequence[int]]) -> None:
        """Ask a setting's questions."""
        answers = []
        for question, row in enumerate(rows):
            shown = () if self._refill and len(row) < self._frames else tuple(row)
            key = question, shown
            if key not in self._indices:
                self._indices[key] = len(self.rows)
                self.rows.append(list(row))
                self.sources.append(question)
                self.digests.append(hashlib.sha256(str(shown).encode()).hexdigest()[:12])
            answers.append(self._indices[key])
        self._answers[setting] = answers

    def accuracy(self, setting: Setting, correct: Sequence[bool]) -> float:
        """A setting's accuracy in percent, from whether each asked question was answered right."""
        return 100 * float(np.mean([correct[index] for index in self._answers[setting]]))

    @property
    def num_questions(self) -> int:
        """Of all settings together."""
        return sum(map(len, self._answers.values()))
