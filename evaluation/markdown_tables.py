"""The tables of evaluation/tables.py as markdown that is also readable as plain text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from aks.bootstrap import RESAMPLES
from evaluation.llava_implementation import TRANSFORMERS
from evaluation.scoring import OCT2024

# A row of a table: those of evaluation.tables.COLUMNS that apply to it, and the run's label and title.
Record = dict[str, Any]


def markdown(records: Sequence[Record], published: Record, notes: Sequence[str], scoring: str) -> str:
    """All tables as markdown that is readable as plain text."""
    overall = [record for record in records if record["table"] == "overall"]
    others = [record for record in overall if "published_aks" not in record]
    parts = [
        "# Results",
        "## The paper's table\n\n"
        "Accuracy in percent, uniform frames -> AKS; difference: ours minus the paper's (arXiv 2502.21271). "
        + (
            "All answers are scored by lmms-eval's rules of October 2024, as the paper's."
            if scoring == OCT2024
            else "2024: our answers scored by lmms-eval's rules of October 2024, as the paper's."
        ),
        _paper_table([record for record in overall if "published_aks" in record], published),
    ]
    if others:
        parts += [
            "Not in the paper; difference: AKS minus uniform, in points.",
            _record_table(
                others, "model", "benchmark", "frames", "questions", "uniform -> AKS", "difference", "remarks"
            ),
        ]
    scores = [record for record in records if record["table"] == "score"]
    if scores:
        parts += [
            "## The benchmarks' own scores\n\nAs lmms-eval aggregates them, in percent. "
            "Difference: AKS minus uniform, in points.",
            _record_table(
                scores,
                *("model", "benchmark", "frames", "score", "questions"),
                *("uniform -> AKS", "difference", "remarks"),
            ),
        ]
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record["table"] == "group":
            groups.setdefault(record["title"], []).append(record)
    if groups:
        parts.append(
            "## By group\n\nOn the questions that both runs answered. "
            "Difference: AKS minus uniform, in points, with its 95 % bootstrap interval."
        )
    for title, members in groups.items():
        columns = ("questions", "uniform", "AKS", "difference", "95 % interval", "remarks")
        parts += [f"### {title}", _record_table(members, "grouping", "group", *columns)]
    paired = [record for record in records if record["table"] == "paired"]
    if paired:
        parts += [
            "## Uniform frames against AKS, question by question\n\n"
            f"Difference: AKS minus uniform, in points. Interval: 95 %, percentile bootstrap, {RESAMPLES:,} "
            "resamples of what the column says. p: McNemar's exact two-sided test.",
            _record_table(
                paired,
                *("model", "benchmark", "frames", "questions"),
                *("both right", "only uniform", "only AKS", "both wrong"),
                *("difference", "95 % interval", "resampled", "p", "remarks"),
            ),
        ]
    if notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table; its last column, the remarks, is left out where there are none."""
    if not any(row[-1] for row in rows):
        titles, rows = titles[:-1], [row[:-1] for row in rows]
    return format_table(titles, rows, left=2)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _signed(value: float | None) -> str:
    if value is None:
        return "-"
    return "0.0" if abs(value) < 0.05 else f"{value:+.1f}"


def _arrow(show: Callable[[float | None], str], uniform: float | None, aks: float | None) -> str:
    return "-" if uniform is aks is None else f"{show(uniform)} -> {show(aks)}"


# The text of a record under each title; the paper's table has its own.
CELLS: dict[str, Callable[[Record], str]] = {
    "model": lambda record: record["label"],
    "benchmark": lambda record: record["benchmark"],
    "frames": lambda record: str(record["frames"] or "default"),
    "grouping": lambda record: record["grouping"],
    "group": lambda record: record["group"],
    "score": lambda record: record["group"],
    # Both numbers where they differ.
    "questions": lambda record: " -> ".join(
        dict.fromkeys(str(record[name]) for name in ("n_uniform", "n_aks") if name in record)
    ),
    "uniform": lambda record: _percent(record.get("uniform")),
    "AKS": lambda record: _percent(record.get("aks")),
    "uniform -> AKS": lambda record: _arrow(_percent, record.get("uniform"), record.get("aks")),
    "both right": lambda record: str(record["both_right"]),
    "only uniform": lambda record: str(record["only_uniform"]),
    "only AKS": lambda record: str(record["only_aks"]),
    "both wrong": lambda record: str(record["both_wrong"]),
    "difference": lambda record: _signed(record.get("difference")),
    "95 % interval": lambda record: (
        f"{_signed(record['low'])} to {_signed(record['high'])}" if "low" in record else "-"
    ),
    "resampled": lambda record: record["resampled"],
    "p": lambda record: f"{record['mcnemar_p']:.3g}" if record["mcnemar_p"] else "<1e-300",
    "remarks": lambda record: record["remarks"],
}


def _record_table(records: Sequence[Record], *titles: str) -> str:
    rows = [[CELLS[title](record) for title in titles] for record in records]
    return _table(titles, rows)


def _paper_table(records: Sequence[Record], published: Record) -> str:
    """The paper's rows, with a line for each checkpoint, implementation and short_selection that was run."""
    benchmarks = {key: benchmark["name"] for key, benchmark in published["benchmarks"].items()}
    rows = []
    for row in published["main"]["rows"]:
        ran = [r for r in records if r["model"] == row["lmms_eval_model"] and "remarks" in r]
        for (checkpoint, implementation, short_selection), ours in _table_rows(ran).items():
            cells = [row["model"], checkpoint or "-", str(row["frames"])]
            remarks = ["on transformers"] if implementation == TRANSFORMERS else []
            remarks += ["short_selection=paper"] if short_selection == "paper" else []
            for key, name in benchmarks.items():
                record = ours.get(name, {})
                cells += [
                    _arrow(_percent, row[key]["uniform"], row[key]["aks"]),
                    _arrow(_percent, record.get("uniform"), record.get("aks")),
                    _arrow(_signed, record.get("uniform_minus_published"), record.get("aks_minus_published")),
                    _arrow(_percent, record.get("uniform_oct2024"), record.get("aks_oct2024")),
                ]
                if record.get("remarks"):
                    remarks.append(f"{name}: {record['remarks']}")
            rows.append([*cells, "; ".join(remarks)])
    titles = ["model", "checkpoint", "frames"]
    for name in benchmarks.values():
        titles += [f"{name}: paper", "ours", "difference", "2024"]
    return _table([*titles, "remarks"], rows)


def _table_rows(records: Sequence[Record]) -> dict[tuple[str | None, ...], dict[str, Record]]:
    """Checkpoint, implementation and short_selection to records by benchmark.

    There is one row without records where nothing was run. Where a benchmark was run with uniform frames
    only, its record stands in the rows of the other benchmark's keyframes.
    """

    def weights(record: Record) -> tuple[str | None, str | None]:
        return record["checkpoint"], record["implementation"]

    keys = [(*weights(r), r["short_selection"]) for r in records if r["short_selection"]]
    with_keyframes = {key[:2] for key in keys}
    keys += [(*weights(r), None) for r in records if weights(r) not in with_keyframes]
    return {
        key: {
            r["benchmark"]: r
            for r in records
            if weights(r) == key[:2] and r["short_selection"] in (key[2], None)
        }
        for key in keys or [(None, None, None)]
    }


def format_table(titles: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A markdown table whose columns also line up as plain text.

    Args:
        titles: of the columns.
        rows: cells.
        left: how many columns are aligned left; the others are right.
    """
    cells = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in (titles, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        aligned = [
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(aligned)} |")
    rule = [
        "-" * (width + 2) if index < left else "-" * (width + 1) + ":" for index, width in enumerate(widths)
    ]
    return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])
