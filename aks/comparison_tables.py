"""The tables of ``aks.compare``, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MEASURES = ("recall within 1 s", "recall within 5 s")  # of the small tables


def marks_of(record: dict[str, Any], references: Sequence[str]) -> str:
    """Where the interval of a difference excludes 0: the reference's letter with an arrow.

    Of one video there is no interval.
    """
    marks = ""
    if record["videos"] == 1:
        return marks
    for reference in references:  # differences of means that are equal may differ in their last bits
        letter = reference[0].upper()
        if record.get(f"difference_{reference}_low", 0) > 1e-9:
            marks += f" {letter}↑"
        elif record.get(f"difference_{reference}_high", 0) < -1e-9:
            marks += f" {letter}↓"
    return marks


def share(value: float) -> str:
    """A share as ``.123`` or ``1.000``."""
    return f"{value:.3f}".removeprefix("0")


def small_table(records: Sequence[dict[str, Any]], references: Sequence[str]) -> str:
    """For each measure of :data:`MEASURES` rules down and budgets across, with intervals, as Markdown."""
    overall = {
        (r["selection"], r["budget"], r["measure"]): r for r in records if r["grouping"] == "all"
    }  # in the order of the rules
    budgets = sorted({r["budget"] for r in records})
    tables = []
    for measure in MEASURES:
        heads = [f"{budgets[0]} frames", *map(str, budgets[1:])]
        lines = [f"| {measure} | " + " | ".join(heads) + " |", "|---" * (1 + len(budgets)) + "|"]
        for rule in dict.fromkeys(name for name, *_ in overall):
            cells = []
            for budget in budgets:
                record = overall[rule, budget, measure]
                interval = f"[{share(record['low'])}, {share(record['high'])}]"
                cells.append(f"{share(record['value'])} {interval}{marks_of(record, references)}")
            lines.append(f"| `{rule}` | " + " | ".join(cells) + " |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def full_table(records: Sequence[dict[str, Any]], references: Sequence[str]) -> str:
    """A line a budget, measure of recall and rule, with every interval, as Markdown."""
    heads = " | ".join(f"difference from `{reference}`" for reference in references)
    lines = [f"| frames | measure | rule | value | {heads} |"]
    lines.append("|---" * (4 + len(references)) + "|")
    for record in records:
        if record["grouping"] != "all" or not record["measure"].startswith(("recall", "all places")):
            continue
        cells = [f"{share(record['value'])} [{share(record['low'])}, {share(record['high'])}]"]
        for name in (f"difference_{reference}" for reference in references):
            values = [record.get(name + end) for end in ("", "_low", "_high")]
            cells.append("{:+.3f} [{:+.3f}, {:+.3f}]".format(*values) if values[0] is not None else "")
        lines.append(
            f"| {record['budget']} | {record['measure']} | `{record['selection']}` | "
            + " | ".join(cells)
            + " |"
        )
    return "\n".join(lines)


def markdown(title: str, records: Sequence[dict[str, Any]], references: Sequence[str]) -> str:
    """Both tables, under a line that says of what they are."""
    letters = ", ".join(f"{reference[0].upper()}: from `{reference}`" for reference in references)
    return (
        f"# Selection rules compared\n\n{title}\n\nRecall and its 95 % interval over videos. ↑ ↓: the "
        f"difference's 95 % interval over videos excludes 0; {letters}.\n\n"
        f"{small_table(records, references)}\n\n{full_table(records, references)}\n"
    )
