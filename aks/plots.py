"""The plots of measures and tables, as PNG files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aks.evidence import evidence_distances, found_within, group_order
from aks.jsonio import write_atomically
from aks.labels import LabelSet
from aks.selected_frames import SelectedFrames

CURVE_S = np.linspace(0, 10, 41)  # tolerances in seconds


@contextlib.contextmanager
def drawing(path: Path, num_panels: int, width: float = 3.5, height: float = 3.4) -> Iterator[np.ndarray]:
    """Axes (num_panels,) side by side; the figure is written at the end of the block.

    Raises:
        UserError: it cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")  # draws without a screen
    import matplotlib.pyplot as plt

    with plt.rc_context({"text.parse_math": False}):
        size = (1 + width * num_panels, height)
        figure, axes = plt.subplots(1, num_panels, figsize=size, squeeze=False, layout="constrained")
        try:
            yield axes[0]
            write_atomically(path, lambda target: figure.savefig(target, dpi=110))
        finally:
            plt.close(figure)


def plot_recall(
    path: Path,
    labels: LabelSet,
    selections: Mapping[str, Sequence[SelectedFrames]],
    tolerances_s: np.ndarray = CURVE_S,
) -> None:
    """Draw recall against tolerance: a panel a group of durations, a curve a selection."""
    asked = [q for q in labels.questions if q.evidence_frames or q.evidence_times_s]
    groups = sorted({question.group for question in asked}, key=group_order)
    with drawing(path, len(groups)) as axes:
        for axis, group in zip(axes, groups, strict=True):
            members = [question for question in asked if question.group == group]
            for name, rows in selections.items():
                pairs = [evidence_distances(question, rows[question.index]) for question in members]
                curve = [
                    np.mean([found_within(pair, tolerance_s).mean() for pair in filter(None, pairs)])
                    for tolerance_s in tolerances_s
                ]
                axis.plot(tolerances_s, curve, label=name)
            axis.set_title(f"{group} ({len(members)} questions)", fontsize=10)
            axis.set_xlabel("tolerance (s)")
            axis.grid(color="0.92")
            axis.set_ylim(0, 1.02)
        axes[0].set_ylabel("evidence recall")
        axes[-1].legend(fontsize=8)


def plot_budgets(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Draw recall of all questions against the budget: a panel a tolerance, a curve a rule.

    Args:
        path: the new file.
        records: of :func:`aks.quality.compare`, with ``budget``.
    """
    overall = [r for r in records if r["grouping"] == "all" and r["measure"].startswith("recall")]
    measures = list(dict.fromkeys(record["measure"] for record in overall))
    rules = list(dict.fromkeys(record["selection"] for record in overall))
    with drawing(path, len(measures), height=4.2) as axes:
        for axis, measure in zip(axes, measures, strict=True):
            for number, rule in enumerate(rules):
                points = sorted(
                    (record["budget"], record["value"])
                    for record in overall
                    if (record["measure"], record["selection"]) == (measure, rule)
                )
                style = "-" if number < 10 else "--"  # there are ten colours
                axis.plot(*zip(*points, strict=True), style, marker=".", color=f"C{number % 10}", label=rule)
            axis.set_title(measure, fontsize=10)
            axis.set_xscale("log", base=2)
            axis.set_xticks(sorted({record["budget"] for record in overall}))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.set_xlabel("frames a question")
            axis.grid(color="0.92")
            axis.set_ylim(0, 1.02)
        axes[0].set_ylabel("evidence recall")
        axes[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def plot_grid(
    path: Path,
    panels: Mapping[str, np.ndarray],
    depths: Sequence[float],
    thresholds: Sequence[float],
    number: str,
) -> None:
    """Draw values over depth and threshold as heat maps.

    Args:
        path: the new file.
        panels: by title values (depths, thresholds); NaN leaves a cell white.
        depths: the rows.
        thresholds: the columns.
        number: format of a value, such as ``{:.1f}``.
    """
    with drawing(path, len(panels), width=4) as axes:
        for axis, (title, values) in zip(axes, panels.items(), strict=True):
            known = values[np.isfinite(values)]
            low, high = (known.min(), known.max()) if len(known) else (0, 1)
            axis.imshow(values, cmap="viridis", vmin=low, vmax=high)
            for (row, column), value in np.ndenumerate(values):
                if np.isfinite(value):
                    color = "white" if value <= (low + high) / 2 else "black"
                    axis.text(
                        column, row, number.format(value), ha="center", va="center", color=color, size=8
                    )
            axis.set_xticks(range(len(thresholds)), [f"{value:g}" for value in thresholds])
            axis.set_yticks(range(len(depths)), [f"{value:g}" for value in depths])
            axis.set_title(title, fontsize=10)
            axis.set_xlabel("threshold t1")
            axis.set_ylabel("depth")
