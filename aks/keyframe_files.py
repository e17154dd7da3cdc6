"""What the command ``keyframes`` writes and prints: pictures, contact sheet, clips; a table, CSV, JSON."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from aks.clock import format_time
from aks.contact_sheet import MAX_SIDE, contact_sheet, thumbnail
from aks.errors import UserError, VideoError
from aks.jsonio import make_folder, write_atomically, writing_to
from aks.match import Match
from aks.video.clips import clip_suffix, cut, merge_spans
from aks.video.reader import Video

if TYPE_CHECKING:  # torch takes seconds to load; a mistake should not wait for it
    from aks.extraction.keyframes import Keyframe

    # The keyframes of each question: in the order of time, or of several videos the best first.
    Moments = Sequence[Sequence[Keyframe]]

logger = logging.getLogger("aks.keyframes")

COMMENT = b"keyframe by aks"  # in the pictures, by which they are known again
COLUMNS = ("question", "video", "frame", "time_s", "time", "score", "image")


def file_time(seconds: float) -> str:
    """A time as part of a file name that sorts by time: ``00h01m05.250s``."""
    hours, minutes, rest = format_time(seconds).split(":")
    return f"{int(hours):02d}h{minutes}m{rest}s"


class Output:
    """The files that a call asks for.

    Args:
        source: the video, or the folder whose videos were searched.
        questions: their texts.
        images, sheet, clips: where these go; None for none.

    Raises:
        UserError: there is no place for them.
    """

    def __init__(
        self,
        source: Path,
        questions: Sequence[str],
        images: Path | None,
        sheet: Path | None,
        clips: Path | None,
    ) -> None:
        self._source, self._is_folder, self._questions = source, source.is_dir(), questions
        self._images, self._sheet, self._clips = images, sheet, clips
        self._image_of: dict[tuple[int, Path, int], Path] = {}  # by question, video and frame
        self._clips_of: list[list[dict[str, Any]]] = [[] for _ in questions]
        if sheet is not None and sheet.suffix.lower() not in MAX_SIDE:
            raise UserError(f"--sheet {sheet}: use a name that ends in {', '.join(MAX_SIDE)}")
        folders = (("--images", images), ("--clips", clips), ("--sheet", sheet and sheet.parent))
        for flag, folder in folders:
            if folder is not None:
                make_folder(folder, flag)
        self._earlier = earlier_pictures(images) if images is not None else []

    def write(
        self, moments: Moments, clip_margin_s: float, durations_s: Mapping[Path, float]
    ) -> list[dict[str, str]]:
        """Write the files; return the clips that could not be cut, with the reasons.

        Args:
            moments: the keyframes.
            clip_margin_s: of a clip before and after a keyframe, in seconds.
            durations_s: of the videos, by their absolute paths.

        Raises:
            UserError: a file cannot be written.
            VideoError: a video can no longer be read.
        """
        if self._images is not None or self._sheet is not None:
            self._write_pictures(moments)
        failures = []
        if self._clips is not None:
            for index, keyframes in enumerate(moments):
                failures += self._write_clips(index, keyframes, clip_margin_s, durations_s)
        return failures

    def _write_pictures(self, moments: Moments) -> None:
        """Read every frame once, whatever the number of questions that have chosen it."""
        small: dict[tuple[int, Path, int], Image.Image] = {}
        for video in dict.fromkeys(keyframe.video for keyframes in moments for keyframe in keyframes):
            chosen_by: dict[int, list[tuple[int, Keyframe]]] = {}
            for index, keyframes in enumerate(moments):
                for keyframe in keyframes:
                    if keyframe.video == video:
                        chosen_by.setdefault(keyframe.frame_index, []).append((index, keyframe))
            with Video(video) as opened:
                for frames in opened.read(sorted(chosen_by), chunk_frames=1):
                    image = Image.fromarray(frames.pixels[0])
                    for index, keyframe in chosen_by[int(frames.frame_indices[0])]:
                        key = (index, video, keyframe.frame_index)
                        if self._images is not None:
                            self._image_of[key] = self._write_image(index, keyframe, image)
                        if self._sheet is not None:
                            small[key] = thumbnail(image)
        if self._images is not None:
            self._remove_earlier()  # where there is no new one
            logger.warning("%d pictures in %s", len(self._image_of), self._images)
        if self._sheet is not None:
            blocks = []
            for index, (question, keyframes) in enumerate(zip(self._questions, moments, strict=True)):
                pictures = [small[index, keyframe.video, keyframe.frame_index] for keyframe in keyframes]
                blocks.append((question, pictures, [self._caption(keyframe) for keyframe in keyframes]))
            contact_sheet(blocks, self._sheet)
            logger.warning("contact sheet: %s", self._sheet)

    def _write_image(self, index: int, keyframe: Keyframe, image: Image.Image) -> Path:
        self._remove_earlier()  # only now: a video that cannot be read costs no earlier picture
        name = f"{file_time(keyframe.time_s)}_frame_{keyframe.frame_index:07d}.jpg"
        path = self._folder(self._images, index, keyframe.video) / name
        write_atomically(path, functools.partial(image.save, quality=95, comment=COMMENT))
        return path

    def _remove_earlier(self) -> None:
        """Delete the pictures of an earlier call, and the folders that nothing else is in."""
        while self._earlier:
            path = self._earlier.pop()
            with writing_to(path):
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                for folder in path.parents[: len(path.relative_to(self._images).parts) - 1]:
                    folder.rmdir()

    def _write_clips(
        self, index: int, keyframes: Sequence[Keyframe], margin_s: float, durations_s: Mapping[Path, float]
    ) -> list[dict[str, str]]:
        failures = []
        for video in dict.fromkeys(keyframe.video for keyframe in keyframes):
            folder = self._folder(self._clips, index, video)
            times = [keyframe.time_s for keyframe in keyframes if keyframe.video == video]
            end_s = max(durations_s[video], *times)  # of a variable rate the duration is an estimate
            for first_s, last_s in merge_spans(times, margin_s):
                last_s = min(last_s, end_s)
                path = folder / f"{file_time(first_s)}-{file_time(last_s)}{clip_suffix(video)}"
                try:
                    begins_s = cut(video, first_s, last_s, path)
                except VideoError as error:
                    failures.append({"video": self.name_of(video), "reason": str(error)})
                    logger.warning("failed: %s: %s", video, error)
                    break
                clip = {"video": self.name_of(video), "clip": str(path), "start_s": begins_s, "end_s": last_s}
                self._clips_of[index].append(clip)
                logger.warning(
                    "%s: from the key frame at %s to %s", path, format_time(begins_s), format_time(last_s)
                )
        return failures

    def _folder(self, folder: Path, index: int, video: Path) -> Path:
        """Where a question's files of a video go: a folder for each of several questions, and videos."""
        if len(self._questions) > 1:
            words = re.sub(r"\W+", "_", self._questions[index]).strip("_")[:40]
            folder = folder / f"{index + 1:02d}_{words}"
        if self._is_folder:
            folder = folder / self.name_of(video)
        make_folder(folder, "--images and --clips")
        return folder

    def name_of(self, video: Path) -> str:
        """A video's name in what is printed: in the folder that was searched; a single one's as given."""
        return str(video.absolute().relative_to(self._source.absolute()) if self._is_folder else self._source)

    def _caption(self, keyframe: Keyframe) -> str:
        caption = f"{format_time(keyframe.time_s)}   {keyframe.score:.3f}"
        return f"{caption}\n{self.name_of(keyframe.video)[-30:]}" if self._is_folder else caption

    def text(
        self,
        form: str | None,
        moments: Moments,
        facts: dict[str, Any],
        matches: Sequence[Match] | None = None,
        answers: Sequence[Mapping[str, str]] | None = None,
    ) -> str:
        """What is printed: ``json``, ``csv``, or None for a table.

        Args:
            form: which.
            moments: the keyframes.
            facts: what JSON says besides.
            matches: how good each question's best frame is, where there is a background.
            answers: a language model's, for JSON: each an ``answer``, or an ``error`` in its place.
        """
        if form == "csv":
            text = io.StringIO()
            judged = [_match_fields(match) for match in matches or ()]
            columns = [*COLUMNS, *(judged[0] if judged else ())]
            writer = csv.DictWriter(text, columns, lineterminator="\n")
            writer.writeheader()
            for index, question in enumerate(self._questions):
                more = judged[index] if judged else {}
                rows = self._rows(index, moments[index])
                writer.writerows({"question": question, **row, **more} for row in rows)
            return text.getvalue()
        if form == "json":
            questions = [
                {
                    "question": question,
                    "keyframes": self._rows(index, moments[index]),
                    **({"match": _match_fields(matches[index])} if matches else {}),
                    **({"clips": self._clips_of[index]} if self._clips is not None else {}),
                    **(answers[index] if answers is not None else {}),
                }
                for index, question in enumerate(self._questions)
            ]
            # A terminal of another encoding would turn letters into escapes that JSON does not know.
            is_utf8 = (sys.stdout.encoding or "utf-8").lower() in ("utf-8", "utf8")
            return json.dumps({**facts, "questions": questions}, indent=2, ensure_ascii=not is_utf8) + "\n"
        tables = [self._table(keyframes) for keyframes in moments]
        if matches:
            tables = [f"{table}{match.verdict}\n" for table, match in zip(tables, matches, strict=True)]
        if len(tables) > 1:
            tables = [f"{question}\n{table}" for question, table in zip(self._questions, tables, strict=True)]
        return "\n".join(tables)

    def _rows(self, index: int, keyframes: Sequence[Keyframe]) -> list[dict[str, Any]]:
        rows = []
        for keyframe in keyframes:
            image = self._image_of.get((index, keyframe.video, keyframe.frame_index))
            rows.append(
                {
                    "video": self.name_of(keyframe.video),
                    "frame": keyframe.frame_index,
                    "time_s": keyframe.time_s,
                    "time": format_time(keyframe.time_s),
                    "score": keyframe.score,
                    "image": image and str(image),
                }
            )
        return rows

    def _table(self, keyframes: Sequence[Keyframe]) -> str:
        """A line a keyframe: frame, time and score, and of several videos the name."""
        lines = [("frame", "time", "score", "video")]
        for keyframe in keyframes:
            time, score = format_time(keyframe.time_s), f"{keyframe.score:.6f}"
            lines.append((str(keyframe.frame_index), time, score, self.name_of(keyframe.video)))
        shown = lines if self._is_folder else [line[:3] for line in lines]
        widths = [max(map(len, column)) for column in zip(*(line[:3] for line in shown), strict=True)]
        return "".join("  ".join([*map(str.rjust, line, widths), *line[3:]]) + "\n" for line in shown)


def _match_fields(match: Match) -> dict[str, Any]:
    return {**asdict(match), "stands_out": match.stands_out}


def earlier_pictures(folder: Path) -> list[Path]:
    """The pictures that an earlier call left in a folder, to be replaced by those of this one.

    Raises:
        UserError: a file of such a name was not written here.
    """
    found = sorted(folder.rglob(f"*frame_{'[0-9]' * 7}.jpg"))
    for path in found:
        comment = None
        with contextlib.suppress(OSError), Image.open(path) as image:
            comment = image.info.get("comment")
        if comment != COMMENT:
            raise UserError(
                f"--images {folder}: {path.name} there is no picture of this command's, or of an older "
                "version's; name another folder, or remove it"
            )
    return found
