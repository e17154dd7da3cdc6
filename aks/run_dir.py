"""The files of a scoring run: parts, run record, failures, and the assembled lists.

A run's folder, ``outscores/<dataset>/<model>/``::

    run.json         what produced the scores; a run with other settings refuses to mix
    parts/           one file a finished video: frames, times, scores by question id; locks of those
                     in work (aks.locks)
    failures.json    videos that could not be scored, or not wholly, with the reason
    scores.json      assembled in label order: a list of floats per question
    frames.json      likewise: frame numbers
    times.json       likewise: seconds

Every file is written whole or not at all, so a killed run leaves only finished parts.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from aks.errors import UserError
from aks.jsonio import read_json, remove_stale_temp_files, write_json
from aks.video import RATE_TOLERANCE

if TYPE_CHECKING:
    from aks.labels import LabelSet

FORMAT = 2  # 1: PyAV for some videos, decord for the others


@dataclass(frozen=True)
class VideoScores:
    """What one video contributed.

    Attributes:
        video: its name in the label file.
        fps: average frame rate, frames a second.
        num_frames: frames in the video.
        video_bytes: size of its file; None where it was not at hand.
        decoder: which reader decoded it.
        frames: candidate frame numbers, (n,).
        times_s: their times in seconds, (n,).
        scores: question id to relevance scores, (n,) each.
        is_edited: an edit list leaves stored frames out, which decord would count.
        lost_frames: candidate frames that could not be decoded and are not in ``frames``.
        lost_reason: why.
    """

    video: str
    fps: float
    num_frames: int
    video_bytes: int | None
    decoder: str
    frames: list[int]
    times_s: list[float]
    scores: dict[str, list[float]]
    is_edited: bool = False
    lost_frames: list[int] = field(default_factory=list)
    lost_reason: str = ""


class RunDir:
    """One run's folder, shared by any number of processes on one file system."""

    def __init__(self, folder: Path, parts: str = "parts", suffix: str = ".json") -> None:
        """Name the folder, its folder of parts and their suffix; nothing is created yet."""
        self.folder = folder
        self.parts = folder / parts
        self.suffix = suffix

    def open_or_create(self, settings: dict[str, Any]) -> None:
        """Create the folder and record the run's settings, or compare them with those recorded.

        Raises:
            UserError: the folder was made with other settings, or cannot be written.
        """
        record = self.folder / "run.json"
        settings = {"format": FORMAT, **settings}
        try:
            self.parts.mkdir(parents=True, exist_ok=True)
            if not record.exists():
                write_json(record, settings, indent=2, exclusive=True)
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot write there: {error.strerror}; check --output_file"
            ) from None
        try:
            recorded = read_json(record)
        except UserError:
            recorded = None
        if not isinstance(recorded, dict):
            raise UserError(f"{record}: damaged; remove {self.folder} or use another --output_file")
        differing = [
            f"{key} {recorded.get(key)!r} there, {settings.get(key)!r} now"
            for key in sorted((recorded.keys() | settings.keys()) - {"format"})
            if recorded.get(key) != settings.get(key)
        ]
        if differing:
            raise UserError(
                f"{record}: made with other settings ({'; '.join(differing)}); "
                "use another --output_file or remove that folder"
            )
        remove_stale_temp_files(self.parts)

    def facts(self, video: str) -> dict[str, Any]:
        """Of a finished video: ``format``, ``decoder``, ``fps``, ``frames`` and ``times_s``."""
        return {**asdict(self.read_part(video)), "format": read_json(self.part_path(video)).get("format")}

    def misread(self, labels: LabelSet) -> list[str]:
        """Finished videos of which an earlier version may have read other frames than a player shows.

        decord read what is not certain now; AVI files lost their pictures' order; and the header's rate
        served where it is not the average.
        """
        if read_json(self.folder / "run.json").get("format") == FORMAT:
            return []
        found = []
        for name in filter(self.has_part, labels.by_video()):
            facts = self.facts(name)
            if facts["format"] == FORMAT:
                continue
            frames, times, fps = facts["frames"], facts["times_s"], float(facts["fps"])
            span = times[-1] - times[0]
            average = (frames[-1] - frames[0]) / span if span > 0 else fps
            is_varying = abs(average / fps - 1) > RATE_TOLERANCE
            if facts["decoder"] == "decord" or name.lower().endswith(".avi") or is_varying:
                found.append(name)
        return found

    def upgrade(self, labels: LabelSet) -> None:
        """Drop what an earlier version may have misread, where the video is at hand, and say so."""
        from aks.console import log

        kept = False
        for name in self.misread(labels):
            if labels.video_path(name).exists():
                self.part_path(name).unlink(missing_ok=True)
                what = "it is read again"
            else:
                kept, what = True, f"it is kept, because {labels.video_path(name)} is not there"
            log(f"{name}: an earlier version may have read other frames than a player shows; {what}")
        record = self.folder / "run.json"
        recorded = read_json(record)
        if recorded.get("format") != FORMAT and not kept:
            write_json(record, {**recorded, "format": FORMAT}, indent=2)

    def part_path(self, video: str) -> Path:
        """Where a video's part lies; the name stays readable and within a file system's limits."""
        name = quote(video, safe=" ()[]+,=@&!'~")
        if len(name) > 200:
            name = name[:150] + "-" + hashlib.sha256(video.encode()).hexdigest()[:32]
        return self.parts / f"{name}{self.suffix}"

    def failure_path(self, video: str) -> Path:
        """Where a video's failure is noted until it succeeds."""
        return self.part_path(video).with_suffix(".failure")

    def has_part(self, video: str) -> bool:
        """Whether the video is finished."""
        return self.part_path(video).exists()

    def write_part(self, part: VideoScores) -> None:
        """Store a finished video and forget an earlier failure of it; note what of it is lost."""
        data = {"format": FORMAT, **asdict(part)}
        if not part.lost_frames:
            del data["lost_frames"], data["lost_reason"]
        if not part.is_edited:
            del data["is_edited"]
        write_json(self.part_path(part.video), data)
        self.record_missing_frames(
            part.video, part.lost_reason, list(part.scores), part.lost_frames, len(part.frames)
        )

    def record_missing_frames(
        self, video: str, reason: str, questions: list[str], lost_frames: list[int], left: int
    ) -> None:
        """Note that a finished video lacks frames; nothing lost: forget an earlier failure of it."""
        if lost_frames:
            self.record_failure(video, reason, questions, lost_frames=lost_frames, scored_frames=left)
        else:
            self.failure_path(video).unlink(missing_ok=True)

    def read_part(self, video: str) -> VideoScores:
        """Load a finished video.

        Raises:
            UserError: the file is damaged.
        """
        path = self.part_path(video)
        try:
            data = read_json(path)
            needed = VideoScores.__dataclass_fields__.keys() - {"is_edited", "lost_frames", "lost_reason"}
            part = VideoScores(
                **{key: data[key] for key in VideoScores.__dataclass_fields__ if key in {*needed, *data}}
            )
            columns = [part.frames, part.times_s, *part.scores.values()]
            whole = all(np.isfinite(np.array(column, dtype=np.float64)).all() for column in columns)
            whole = whole and part.video == video and len(set(map(len, columns))) == 1
        except (UserError, TypeError, KeyError, AttributeError, ValueError):
            whole = False
        if not whole:
            raise UserError(f"{path}: damaged part file; delete it and run again to score this video anew")
        return part

    def record_failure(self, video: str, reason: str, questions: list[str], **more: Any) -> None:
        """Note that a video could not be scored, or, with ``lost_frames``, not wholly."""
        note = {"video": video, "reason": reason, "questions": questions, **more}
        write_json(self.failure_path(video), note, indent=2)

    def failure_mtime(self, video: str) -> int | None:
        """When the failure of a video was noted; None where none is."""
        with contextlib.suppress(OSError):
            return self.failure_path(video).stat().st_mtime_ns
        return None

    def collect_failures(self, labels: LabelSet) -> list[dict[str, Any]]:
        """What failed, or lacks frames, in label order; also written to ``failures.json``."""
        target = self.folder / "failures.json"
        failures = self._noted_failures(labels)
        while True:
            if failures:
                write_json(target, failures, indent=2)
            else:
                target.unlink(missing_ok=True)
            meanwhile = self._noted_failures(labels)  # by another process, which may have written before
            if meanwhile == failures:
                return failures
            failures = meanwhile

    def _noted_failures(self, labels: LabelSet) -> list[dict[str, Any]]:
        failures = []
        for video in labels.by_video():
            path = self.failure_path(video)
            if not path.exists():
                continue
            try:
                note = read_json(path)
            except UserError:  # mended by another process meanwhile
                continue
            if not self.has_part(video) or note.get("lost_frames"):
                failures.append(note)
        return failures

    def assemble(self, labels: LabelSet, allow_missing: bool = False) -> int:
        """Write ``scores.json``, ``frames.json`` and ``times.json`` in label order.

        Args:
            labels: the label set the run was made for.
            allow_missing: give questions of unfinished videos empty lists.

        Returns:
            The number of questions with empty lists.

        Raises:
            UserError: a part is damaged, or is missing and ``allow_missing`` is off.
        """
        lists: dict[str, list[Any]] = {"scores": [], "frames": [], "times": []}
        rows: dict[int, tuple[list[float], list[int], list[float]]] = {}
        missing = 0
        for video, questions in labels.by_video().items():
            if not self.has_part(video):
                if not allow_missing:
                    raise UserError(f"{self.folder}: {video} is not scored yet; run feature_extract.py again")
                missing += len(questions)
                rows.update((question.index, ([], [], [])) for question in questions)
                continue
            part = self.read_part(video)
            check_same_video(self.part_path(video), part.video_bytes, labels.video_path(video))
            for question in questions:
                if question.id not in part.scores:
                    raise UserError(
                        f"{self.part_path(video)}: has no scores for question {question.id}; "
                        "delete it and run again to score this video anew"
                    )
                rows[question.index] = (part.scores[question.id], part.frames, part.times_s)
        for index in range(len(labels.questions)):
            for name, row in zip(lists, rows[index], strict=True):
                lists[name].append(row)
        for name in ("times", "frames", "scores"):  # who finds scores.json finds the others, too
            write_json(self.folder / f"{name}.json", lists[name])
        return missing


def file_bytes(path: Path) -> int | None:
    """Size of a file; None where it is not at hand."""
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return None


def check_same_video(made_from_it: Path, video_bytes: int | None, video: Path) -> None:
    """Refuse what was made from another video of the same name; no complaint where it is not at hand.

    Raises:
        UserError: the sizes differ.
    """
    size = file_bytes(video)
    if None not in (size, video_bytes) and size != video_bytes:
        raise UserError(
            f"{made_from_it}: made from another {video.name} ({video_bytes} bytes; {video} has {size}); "
            "delete it, or use another --output_file"
        )
