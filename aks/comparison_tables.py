"""The tables of ``aks.compare``, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

COLUMNS = (("recall within 1 s", "1 s"), ("recall within 5 s", "5 s"))  # of the small table


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
    """Rules down, budgets and tolerances across, as Markdown."""
    overall = {
        (r["selection"], r["budget"], r["measure"]): r for r in records if r["grouping"] == "all"
    }  # in the order of the rules
    columns = [(budget, *column) for budget in sorted({r["budget"] for r in records}) for column in COLUMNS]
    lines = ["| rule | " + " | ".join(f"{budget}: {head}" for budget, _, head in columns) + " |"]
    lines.append("|---" * (1 + len(columns)) + "|")
    for rule in dict.fromkeys(name for name, *_ in overall):
        cells = []
        for budget, measure, _ in columns:
            record = overall[rule, budget, measure]
            cells.append(share(record["value"]) + marks_of(record, references))
        lines.append(f"| `{rule}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


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
        f"# Selection rules compared\n\n{title}\n\nRecall within 1 s and 5 s, by number of frames. ↑ ↓: the "
        f"difference's 95 % interval over videos excludes 0; {letters}.\n\n"
        f"{small_table(records, references)}\n\n{full_table(records, references)}\n"
    )
