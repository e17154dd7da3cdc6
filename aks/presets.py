"""Settings of the selection by name: the commands' own, and those that fit the paper's tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEFAULT = {"t1": 0.8, "max_depth": 5, "quota": "full"}  # the released code's, but for the quota
# Found by comparing the paper's tables with one another: the paper names none.
PAPER = {
    "longvideobench": {"t1": 0.2, "max_depth": 4, "quota": "released"},
    "videomme": {"t1": 0.8, "max_depth": 5, "quota": "released"},
}
PRESETS = ("default", "paper")


def preset_settings(
    preset: str, dataset: str, budget: int, changes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """``t1``, ``max_depth`` and ``quota`` as arguments of :func:`aks.select_keyframes`.

    The released quota selects nothing where the budget is below ``2**max_depth``, although the paper prints
    figures for such settings (16 frames at depth 5). The preset ``paper`` takes the full quota there.

    Args:
        preset: one of :data:`PRESETS`.
        dataset: the benchmark; ``paper`` knows those of :data:`PAPER`.
        budget: number of keyframes.
        changes: settings that win over the preset's.

    Raises:
        ValueError: the paper has no table of this benchmark.
    """
    if preset == "default":
        return {**DEFAULT, **(changes or {})}
    if dataset not in PAPER:
        raise ValueError(f"preset paper: the paper has tables of {' and '.join(PAPER)}, not of {dataset}")
    settings = {**PAPER[dataset], **(changes or {})}
    if "quota" not in (changes or {}) and budget.bit_length() <= settings["max_depth"]:  # < 2**max_depth
        settings["quota"] = "full"
    return settings
