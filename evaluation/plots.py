"""Draws the tables' groups as one PNG: accuracies at the left, differences at the right.

Of a benchmark's groupings the first one is drawn, for LongVideoBench and VideoMME that by duration.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aks.plots import drawing

MAX_GROUPS = 40  # a comparison, all questions included; more would make the picture too tall
RUN_STYLES = {"uniform": ("0.45", "uniform frames"), "aks": ("tab:blue", "AKS")}
PAPER_Y = -0.4  # the paper's numbers stand above the first line, which is at 0


def plot(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Save accuracy and difference by group as PNG: two axes a comparison, two comparisons a row.

    Args:
        path: the picture.
        records: the tables' records, see ``tables.py``.

    Raises:
        UserError: it cannot be written, or matplotlib is not installed.
    """
    panels: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if record["table"] == "group":
            panels.setdefault(record["title"], []).append(record)
    panels = {title: _of_first_grouping(groups) for title, groups in panels.items()}
    paper = {record.get("title"): record for record in records if "published_aks" in record}
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    tallest = min(MAX_GROUPS, max(map(len, panels.values())))
    with drawing(
        path,
        nrows=rows,
        ncols=2 * columns,
        figsize=(8 * columns, 0.7 + rows * (1.2 + 0.4 * tallest)),
        width_ratios=[3, 2] * columns,
    ) as axes:
        pairs = axes.reshape(-1, 2)
        for (left, right), (title, groups) in zip(pairs, panels.items(), strict=False):
            published = paper.get(title, {})
            if len(groups) > MAX_GROUPS:
                title += f" (the first of {len(groups) - 1} groups)"
            _plot_accuracy(left, title, groups[:MAX_GROUPS], published)
            _plot_difference(right, groups[:MAX_GROUPS], published)
        for axis in pairs[len(panels) :].flat:
            axis.set_axis_off()
        entries = [axis.get_legend_handles_labels() for axis in axes.flat]
        legend = {text: handle for entry in entries for handle, text in zip(*entry, strict=True)}
        axes[0, 0].figure.legend(
            legend.values(), legend.keys(), loc="outside upper left", ncols=len(legend), fontsize=9
        )


def _of_first_grouping(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The record of all questions, and those of the first grouping."""
    first = next((group["grouping"] for group in groups if group["grouping"] != "all"), None)
    return [group for group in groups if group["grouping"] in ("all", first)]


def _plot_accuracy(axis: Any, title: str, groups: Sequence[dict[str, Any]], paper: dict[str, Any]) -> None:
    """A line a group, all questions on top."""
    labels = []
    for y, group in enumerate(groups):
        ends = [group[which] for which in RUN_STYLES if which in group]
        axis.plot(ends, [y] * len(ends), color="0.8", lw=4, zorder=1)
        for which, (color, text) in RUN_STYLES.items():
            if which in group:
                axis.plot(group[which], y, "o", color=color, ms=8, zorder=2, label=text)
        name = group["group"] or "all"
        if group["benchmark"].startswith("LongVideoBench") and name.isdecimal():
            name = f"up to {name} s"  # the benchmark names a group of durations by the longest
        labels.append(f"{name} (n {group.get('n_uniform', group.get('n_aks'))})")
    for which, (color, text) in RUN_STYLES.items():
        if paper:
            value = paper[f"published_{which}"]
            axis.plot(value, PAPER_Y, "v", color=color, mfc="none", ms=7, label=f"{text}, paper")
    axis.set_yticks(range(len(groups)), labels, fontsize=9)
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_xlabel("accuracy (%)", fontsize=9)
    _set_limits(axis, len(groups))


def _plot_difference(axis: Any, groups: Sequence[dict[str, Any]], paper: dict[str, Any]) -> None:
    """A line a group: AKS minus uniform with its interval; empty where only one of the two was run."""
    if "low" not in groups[0]:
        axis.set_axis_off()
        return
    for y, group in enumerate(groups):
        axis.plot([group["low"], group["high"]], [y, y], "|-", color="black", lw=1.2, ms=8)
        axis.plot(group["difference"], y, "D", color="black", ms=5, label="difference, 95 % interval")
    if paper:
        difference = paper["published_aks"] - paper["published_uniform"]
        axis.plot(difference, PAPER_Y, "v", color="black", mfc="none", ms=7, label="difference, paper")
    axis.axvline(0, color="0.45", lw=1)
    axis.set_yticks([])
    axis.set_xlabel("AKS minus uniform (points)", fontsize=9)
    _set_limits(axis, len(groups))


def _set_limits(axis: Any, num_groups: int) -> None:
    """Show all lines, and at least ten points of accuracy: a narrower range would blow up noise."""
    low, high = axis.get_xlim()
    margin = max(0, 10 - (high - low)) / 2
    axis.set_xlim(low - margin, high + margin)
    axis.set_ylim(num_groups - 0.5, -0.75)
    axis.tick_params(axis="x", labelsize=9)
    axis.grid(axis="x", color="0.92")
    axis.set_axisbelow(True)
