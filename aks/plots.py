"""The plots of measures and tables, as PNG files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aks.errors import UserError
from aks.evidence import distances, evidence_distances, found_within, group_order
from aks.jsonio import write_atomically
from aks.labels import LabelSet
from aks.selected_frames import SelectedFrames
from aks.selection import normalize

HIT_S = 1.0  # a frame so near to evidence shows it
CURVE_S = np.linspace(0, 10, 41)  # tolerances in seconds


@contextlib.contextmanager
def drawing(path: Path, dpi: int = 110, **layout: Any) -> Iterator[np.ndarray]:
    """Axes (rows, columns); the figure is written at the end of the block.

    Args:
        path: the new file.
        dpi: dots per inch.
        layout: of matplotlib's ``subplots``.

    Raises:
        UserError: it cannot be written, or matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise UserError("the plot needs matplotlib; run: pip install -r requirements.txt") from None
    matplotlib.use("Agg")  # draws without a screen
    import matplotlib.pyplot as plt

    with plt.rc_context({"text.parse_math": False}):  # a name may hold dollar signs
        figure, axes = plt.subplots(squeeze=False, layout="constrained", **layout)
        try:
            yield axes
            write_atomically(path, lambda target: figure.savefig(target, dpi=dpi))
        finally:
            plt.close(figure)


def plot_recall(path: Path, labels: LabelSet, selections: Mapping[str, Sequence[SelectedFrames]]) -> None:
    """Draw recall against tolerance, of questions that all can be measured on: a panel a group."""
    asked = [
        question
        for question in labels.questions
        if all(evidence_distances(question, rows[question.index]) for rows in selections.values())
    ]
    groups = sorted({question.group for question in asked}, key=group_order)
    with drawing(path, ncols=len(groups), figsize=(1 + 3.5 * len(groups), 3.4)) as (axes,):
        for axis, group in zip(axes, groups, strict=True):
            members = [question for question in asked if question.group == group]
            for name, rows in selections.items():
                pairs = [evidence_distances(question, rows[question.index]) for question in members]
                curve = [
                    np.mean([found_within(pair, tolerance_s).mean() for pair in pairs])
                    for tolerance_s in CURVE_S
                ]
                axis.plot(CURVE_S, curve, label=name)
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
    with drawing(path, ncols=len(measures), figsize=(1 + 3.5 * len(measures), 4.2)) as (axes,):
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
    with drawing(path, ncols=len(panels), figsize=(1 + 4 * len(panels), 3.4)) as (axes,):
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


def plot_choices(
    path: Path,
    title: str,
    times_s: np.ndarray,
    scores: np.ndarray,
    evidence_s: Sequence[tuple[float, float]],
    chosen: dict[str, np.ndarray],
) -> None:
    """Draw a question's score curve with its evidence, and below it a row of ticks a rule, as a PNG.

    Ticks within a second of the evidence are red.

    Args:
        path: the new file.
        title: shown on top.
        times_s: candidates' times, (n,) seconds.
        scores: relevance, (n,).
        evidence_s: (first, last) seconds of each place, at least one.
        chosen: by rule the positions of its frames among the candidates.
    """
    with drawing(
        path,
        dpi=100,
        nrows=2,
        figsize=(11, 2.6 + 0.2 * len(chosen)),
        sharex=True,
        height_ratios=[2, 0.2 * len(chosen)],
    ) as ((curve,), (rows,)):
        for axis in (curve, rows):
            for first, last in evidence_s:
                axis.axvspan(first - HIT_S, last + HIT_S, color="tab:green", alpha=0.4, lw=0)
        curve.plot(times_s, normalize(scores), color="0.4", lw=0.8)
        curve.set_title(title, loc="left", fontsize=10)
        curve.set_ylabel("score, 0 to 1")
        for row, positions in enumerate(chosen.values()):
            frames_s = times_s[positions]
            hits = distances(frames_s, evidence_s).min(axis=0, initial=np.inf) <= HIT_S
            for marked, color in ((frames_s[~hits], "0.45"), (frames_s[hits], "tab:red")):
                rows.eventplot(marked, lineoffsets=row, linelengths=0.7, colors=color, lw=1.8)
        rows.set_yticks(range(len(chosen)), chosen, fontsize=8)
        rows.invert_yaxis()
        rows.set_xlabel("time (s)")
        rows.margins(x=0.01)
