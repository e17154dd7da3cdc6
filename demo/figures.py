"""Draw a selection: score curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # writes to files, without a screen
import matplotlib.pyplot as plt
import numpy as np

from aks.jsonio import write_atomically

MARKS = {"ada": "o", "top": "^", "bin": "s", "uniform": "|"}


def clock(seconds: float) -> str:
    """Format a time as ``m:ss.t``, from one hour on with hours.

    >>> clock(75.25), clock(3675)
    ('1:15.2', '1:01:15.0')
    """
    tenths = int(seconds * 10 + 1e-6)
    hours, rest = divmod(tenths, 36000)
    minutes, rest = divmod(rest, 600)
    head = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{head}:{rest // 10:02d}.{rest % 10}"


def question_figure(
    title: str,
    times_s: np.ndarray,
    scores: np.ndarray,
    selections: dict[str, np.ndarray],
    thumbnails: Sequence[np.ndarray],
    path: Path,
    *,
    evidence_s: Sequence[tuple[float, float]] = (),
) -> None:
    """Save a question's score curve with the selections marked, over the first selection's frames.

    Args:
        title: the question, shown on top.
        times_s: candidate times, (n,) seconds.
        scores: relevance scores, (n,).
        selections: selected positions among the candidates, by strategy; the first one's frames are shown.
        thumbnails: these frames, (height, width, 3) uint8, in order of time.
        path: the new file.
        evidence_s: labelled evidence, (first, last) seconds each, drawn as bands.
    """
    shown = next(iter(selections.values()))
    columns = max(1, min(8, len(shown)))
    lines = -(-len(shown) // columns)
    figure = plt.figure(figsize=(12, 3.2 + 1.25 * lines), layout="constrained")
    grid = figure.add_gridspec(1 + lines, columns, height_ratios=[2.6] + [1.15] * lines)
    axis = figure.add_subplot(grid[0, :])
    for first, last in evidence_s:
        axis.axvspan(first - 1.5, last + 1.5, color="tab:green", alpha=0.35, label="evidence", lw=0)
    axis.plot(times_s, scores, color="0.55", lw=0.8, label="relevance")
    low, high = float(np.min(scores)), float(np.max(scores))
    below = 0
    for name, positions in selections.items():
        if name == "uniform":  # marked under the curve, because its scores mean nothing
            below += 1
            level = np.full(len(positions), low - 0.07 * below * ((high - low) or 1))
        else:
            level = scores[positions]
        axis.plot(times_s[positions], level, MARKS.get(name, "x"), ms=8, label=name, mfc="none", mew=1.8)
    axis.set_title(title, loc="left", fontsize=11)
    axis.set_xlabel("time (s)")
    axis.set_ylabel("relevance score")
    axis.margins(x=0.01)
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axis.legend(unique.values(), unique.keys(), fontsize=8, loc="best", ncols=len(unique))
    for index, (position, picture) in enumerate(zip(shown, thumbnails, strict=True)):
        cell = figure.add_subplot(grid[1 + index // columns, index % columns])
        cell.imshow(picture)
        cell.set_title(f"{clock(times_s[position])}  {scores[position]:.3f}", fontsize=8)
        cell.set_axis_off()
    write_atomically(path, lambda target: figure.savefig(target, dpi=100))
    plt.close(figure)
