"""The tables and the picture of ``needles.py``."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aks.errors import UserError
from aks.jsonio import write_atomically
from aks.recall import distances
from aks.selection import normalize

COLUMNS = (("recall within 1 s", "1 s"), ("recall within 5 s", "5 s"))  # of the small table
HIT_S = 1.0  # a frame so near to the evidence is marked in the picture


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


def write_tables(
    folder: Path, title: str, records: Sequence[dict[str, Any]], references: Sequence[str]
) -> None:
    """Write needles.csv, all figures, and needles.md, both tables under a line that says of what they are."""
    text = io.StringIO()
    writer = csv.DictWriter(text, dict.fromkeys(name for record in records for name in record), restval="")
    writer.writeheader()
    writer.writerows(records)
    letters = ", ".join(f"{reference[0].upper()}: from `{reference}`" for reference in references)
    report = (
        f"# Selection rules compared\n\n{title}\n\nRecall within 1 s and 5 s, by number of frames. ↑ ↓: the "
        f"difference's 95 % interval over videos excludes 0; {letters}.\n\n"
        f"{small_table(records, references)}\n\n{full_table(records, references)}\n"
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be created: {error.strerror}; check --output") from None
    write_atomically(folder / "needles.csv", lambda path: path.write_text(text.getvalue()))
    write_atomically(folder / "needles.md", lambda path: path.write_text(report))


def draw(
    path: Path,
    title: str,
    times_s: np.ndarray,
    scores: np.ndarray,
    evidence_s: Sequence[tuple[float, float]],
    chosen: dict[str, np.ndarray],
) -> None:
    """Draw a question's score curve with its evidence, and below it a row of ticks a rule, as a PNG.

    Ticks within :data:`HIT_S` of the evidence are red.

    Args:
        path: the new file.
        title: shown on top.
        times_s: candidates' times, (n,) seconds.
        scores: relevance, (n,).
        evidence_s: (first, last) seconds of each place, at least one.
        chosen: by rule the positions of its frames among the candidates.
    """
    import matplotlib

    matplotlib.use("Agg")  # draws without a screen
    import matplotlib.pyplot as plt
    from PIL import Image

    with plt.rc_context({"text.parse_math": False}):
        figure, (curve, rows) = plt.subplots(
            *(2, 1),
            figsize=(11, 2.6 + 0.2 * len(chosen)),
            sharex=True,
            height_ratios=[2, 0.2 * len(chosen)],
            layout="constrained",
        )
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

        def save(target: Path) -> None:
            figure.savefig(target, dpi=100)
            with Image.open(target) as image:  # few colours: a palette takes a third of the bytes
                image.convert("RGB").quantize(32).save(target, optimize=True)

        write_atomically(path, save)
    plt.close(figure)
