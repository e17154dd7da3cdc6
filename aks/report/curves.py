"""SVG paths of a relevance curve and its marks, in a drawing of 1000 by 100 that is stretched to its place.

Points are lines of almost no length with round or square ends: such ends keep their shape when the drawing
is stretched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aks.clock import format_time
from aks.report.questions import ReportedQuestion
from aks.selection import normalize

WIDTH, TOP, BOTTOM = 1000, 6, 84  # the curve's
STRIP = (90, 100)  # the uniform frames' ticks, below the curve
MAX_COLUMNS = 400  # of a longer curve each column shows the lowest and the highest score: 4 kB a question
TICK_STEPS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 36000)
MAX_TICKS = 6  # labels that a narrow screen has room for


@dataclass(frozen=True)
class Drawing:
    """The paths, and where things are.

    Attributes:
        curve, segments, evidence, uniform: paths.
        far, near: points of the keyframes off and near the evidence.
        xs: the keyframes' places, 0 to 1000.
        ticks: (per cent of the width, text) of the labels of the time axis.
    """

    curve: str
    segments: str
    evidence: str
    uniform: str
    far: str
    near: str
    xs: list[int]
    ticks: list[tuple[float, str]]


def draw(row: ReportedQuestion) -> Drawing:
    """The drawing of a question that has candidates."""
    # A single candidate makes no time axis; a second beside it does.
    first, last = row.times_s[0], max(row.times_s[-1], row.times_s[0] + 1)

    def to_x(times_s: np.ndarray | Sequence[float]) -> list[int]:
        share = (np.asarray(times_s, dtype=np.float64) - first) / (last - first)
        return np.clip(np.round(share * WIDTH), 0, WIDTH).astype(int).tolist()

    x = np.array(to_x(row.times_s))
    y = np.round(BOTTOM - normalize(row.scores) * (BOTTOM - TOP)).astype(int)
    marks = list(zip(x[row.positions].tolist(), y[row.positions].tolist(), row.is_near, strict=True))
    bands = [to_x(ends) for ends in row.segments_s]
    places = [to_x(ends) for ends in row.evidence_s]
    return Drawing(
        curve=_polyline(*_thin(x, y)),
        # Every other one: neighbours must look different.
        segments="".join(f"M{start} 0H{stop}V{BOTTOM + 4}H{start}z" for start, stop in bands[::2]),
        evidence="".join(f"M{start} 0H{max(stop, start + 1)}V100H{start}z" for start, stop in places),
        uniform="".join(f"M{at} {STRIP[0]}V{STRIP[1]}" for at in to_x(row.uniform_s)),
        far="".join(f"M{at} {height}h.01" for at, height, is_near in marks if not is_near),
        near="".join(f"M{at} {height}h.01" for at, height, is_near in marks if is_near),
        xs=[at for at, _, _ in marks],
        ticks=_ticks(first, last),
    )


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points, or of many the highest and the lowest of each column, in order of time."""
    if len(x) <= 2 * MAX_COLUMNS:
        return x, y
    starts = np.arange(MAX_COLUMNS) * len(x) // MAX_COLUMNS
    at, columns = x[starts], np.stack([np.maximum.reduceat(y, starts), np.minimum.reduceat(y, starts)], 1)
    return np.repeat(at, 2), columns.ravel()


def _polyline(x: np.ndarray, y: np.ndarray) -> str:
    """A path of steps from point to point, which takes half the bytes of one of coordinates."""
    steps = zip(np.diff(x).tolist(), np.diff(y).tolist(), strict=True)
    return f"M{x[0]} {y[0]}l" + " ".join(f"{dx} {dy}" for dx, dy in steps)


def _ticks(first: float, last: float) -> list[tuple[float, str]]:
    span = last - first
    step = next((step for step in TICK_STEPS_S if span / step < MAX_TICKS), TICK_STEPS_S[-1])
    times = np.arange(np.ceil(first / step), np.floor(last / step) + 1) * step
    texts = [format_time(time)[: -4 if step >= 1 else -2] for time in times]
    if last < 3600:
        texts = [text.removeprefix("0:") for text in texts]
    shares = np.round(100 * (times - first) / span, 2)
    return list(zip(shares.tolist(), texts, strict=True))
