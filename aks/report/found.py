"""The report of the command ``keyframes``: what was found in one video, or in a folder of videos."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aks.labels import Question
from aks.match import Match
from aks.report.page import Summary, clock, picture_notes, write_page
from aks.report.questions import report_question
from aks.report.thumbnails import read_thumbnails

if TYPE_CHECKING:
    from aks.extraction.keyframes import Keyframe, QuestionKeyframes

logger = logging.getLogger("aks.keyframes")


def report_found(
    path: Path,
    videos: Sequence[Path],
    found: Sequence[Sequence[QuestionKeyframes]],
    moments: Sequence[Sequence[Keyframe]],
    facts: dict[str, Any],
    matches: Sequence[Match] | None = None,
) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        videos: those that could be read.
        found: for each of them what it holds for each question.
        moments: the keyframes of each question that the command shows; of several videos the best first.
        facts: what the command's JSON says of videos, scorer and rule.
        matches: how good each question's best frame is, where there is a background.

    Raises:
        UserError: the file cannot be written.
    """
    name_of = {video: row["video"] for video, row in zip(videos, facts["videos"], strict=True)}
    results_of = dict(zip(videos, found, strict=True))
    reported = []
    for index, keyframes in enumerate(moments):
        shown = dict.fromkeys(keyframe.video for keyframe in keyframes) if "folder" in facts else videos
        for video in shown:
            result = results_of[video][index]
            question = Question(len(reported), str(len(reported)), name_of[video], result.question)
            curve = result.curve
            chosen = sorted(keyframe.frame_index for keyframe in keyframes if keyframe.video == video)
            candidates = (curve.frame_indices, curve.times_s, curve.scores)
            reported.append(report_question(question, video, *candidates, chosen, facts))
    thumbnails = read_thumbnails(reported, path)

    rule = ", ".join(f"{name} {facts[name]}" for name in ("t1", "t2", "max_depth", "quota"))
    options = "".join(f", {name} {value}" for name, value in facts["options"].items())
    summary = Summary(
        title=f"Keyframes of {facts.get('folder') or name_of[videos[0]]}",
        facts={
            "questions": len(moments),
            "videos": f"{len(videos):,}",
            "keyframes": f"{facts['budget']} a question",
            "candidates": _candidates(facts),
            "scorer": facts["scorer"],
            "rule": f"{facts['strategy']} ({rule}{options})",
        },
        notes=[
            f"{result.question}: {match.verdict}"
            for result, match in zip(found[0] if matches else (), matches or (), strict=True)
        ]
        + picture_notes(thumbnails, reported, "--images DIR writes all")
        + [f"failed: {failure['video']}: {failure['reason']}" for failure in facts["failures"]],
    )
    write_page(path, summary, reported, thumbnails)
    logger.warning("report: %s", path)


def _candidates(facts: dict[str, Any]) -> str:
    """Which frames the curves are of."""
    start_s, end_s = facts["start_s"], facts["end_s"]
    text = f"{facts['candidate_fps']:g} a second"
    if start_s:
        text += f", from {clock(start_s)}"
    if end_s is not None:
        text += f", to {clock(end_s)}"
    if facts["fast"]:
        scored, total = (
            sum(row[name] for row in facts["videos"]) for name in ("num_scored", "num_candidates")
        )
        text += f"; {scored:,} of {total:,} looked at (--fast)"
    return text
