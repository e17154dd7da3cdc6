"""The page of a report: one HTML file that loads nothing from a network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from aks.clock import format_time
from aks.errors import UserError
from aks.jsonio import make_folder, write_atomically
from aks.quality import groupings_of
from aks.recall import Recall
from aks.report.curves import draw
from aks.report.questions import ReportedQuestion, largest_gains
from aks.report.thumbnails import Thumbnails

FOLDER = Path(__file__).parent
MAX_OPEN = 12  # a page of more questions shows them closed, and names those that differ most
MAX_NAMED = 5  # videos without pictures that are named


@dataclass(frozen=True)
class Summary:
    """What the top of the page says.

    Attributes:
        title: of the page.
        facts: names and values.
        recall: the table of :func:`aks.recall.recall_table`; empty without evidence.
        notes: what a reader of the page should know.
    """

    title: str
    facts: Mapping[str, Any]
    recall: Sequence[Recall] = ()
    notes: Sequence[str] = field(default_factory=list)


def check_page(path: Path, flag: str) -> None:
    """Make the folder of a page that is still to be written.

    Raises:
        UserError: the file's name does not end in .html, or the folder cannot be made.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{flag} {path}: use a name that ends in .html")
    make_folder(path.parent, flag)


def write_page(
    path: Path,
    summary: Summary,
    reported: Sequence[ReportedQuestion],
    thumbnails: Thumbnails,
) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        summary: the top of the page.
        reported: the questions, in their order.
        thumbnails: the keyframes' pictures.

    Raises:
        UserError: the file cannot be written.
    """
    style, script = ((FOLDER / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"clock": clock, "number": "{:,}".format}
    numbers = {id(row): number for number, row in enumerate(reported, 1)}
    ahead, behind = largest_gains(reported) if len(reported) > MAX_OPEN else ([], [])
    stream = environment.get_template("template.html").stream(
        summary=summary,
        style=Markup(style),
        script=Markup(script),
        # The page runs this script and no other, whatever a question's text holds.
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        groupings=groupings_of([row.question for row in reported]),
        ahead=[(numbers[id(row)], row) for row in ahead],
        behind=[(numbers[id(row)], row) for row in behind],
        rows=[(number, row) for number, row in enumerate(reported, 1)],
        view=lambda row: _view(row, thumbnails),
        is_open=len(reported) <= MAX_OPEN,
        in_page=[picture for picture in thumbnails.by_frame.values() if picture.name],
        shows={  # marks, for the legend
            "evidence": any(row.evidence_s for row in reported),
            "segments": any(row.segments_s for row in reported),
            "uniform": any(len(row.uniform_s) for row in reported),
            "near": any(row.is_near.any() for row in reported),
        },
    )
    # A name that is no text, such as a file's of other bytes, must not stop the page.
    write_atomically(path, lambda target: stream.dump(str(target), "utf-8", "xmlcharrefreplace"))


def picture_notes(thumbnails: Thumbnails, reported: Sequence[ReportedQuestion], remedy: str) -> list[str]:
    """Which keyframes have no picture, and why; ``remedy`` is how to get those that were left out."""
    notes, names = [], {row.video: row.question.video for row in reported}
    longest = max((len(row.positions) for row in reported), default=0)
    if thumbnails.by_frame and thumbnails.per_question < longest:
        notes.append(f"pictures of {thumbnails.per_question} keyframes a question, the best ones; {remedy}")
    by_reason: dict[str, list[str]] = {}
    for video, reason in thumbnails.failures.items():
        by_reason.setdefault(reason, []).append(names[video])
    for reason, videos in by_reason.items():
        named = ", ".join([*videos[:MAX_NAMED], *(["..."] if len(videos) > MAX_NAMED else [])])
        notes.append(f"no pictures of {len(videos):,} of {len(names):,} videos: {reason} ({named})")
    return notes


def clock(seconds: float) -> str:
    """A time to a tenth of a second, ``h:mm:ss.s``.

    >>> clock(3675.25)
    '1:01:15.2'
    """
    return format_time(round(seconds, 1))[:-2]


def _view(row: ReportedQuestion, thumbnails: Thumbnails) -> dict[str, Any]:
    """What the template shows of a question with candidates."""
    keyframes = [
        {
            "time_s": row.times_s[position],
            "score": row.scores[position],
            "frame": int(row.frame_indices[position]),
            "is_near": bool(is_near),
            "picture": thumbnails.by_frame.get((row.video, int(row.frame_indices[position]))),
        }
        for position, is_near in zip(row.positions.tolist(), row.is_near, strict=True)
    ]
    has_pictures = any(keyframe["picture"] for keyframe in keyframes)
    return {"drawing": draw(row), "keyframes": keyframes, "has_pictures": has_pictures}
