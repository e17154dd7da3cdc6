"""A run's folder: its record, a part file for each video, failures, and the assembled lists.

A run's folder, ``outscores/<dataset>/<model>/``::

    run.json         what produced the scores; a run with other settings refuses to mix
    parts/           one file a finished video: frames, times, scores by question id; lock files of the
                     videos being processed (aks.locks); of a video that failed its reason, ``.failure``
    shards-*.json    which share of a job array does which videos
    failures.json    videos that could not be scored, or not wholly, with the reason
    scores.json      assembled in label order: a list of floats per question
    frames.json      likewise: frame numbers
    times.json       likewise: seconds

Every file is written whole or not at all, so a killed run leaves only finished parts.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from aks.errors import UserError
from aks.jsonio import read_json, remove_stale_temp_files, write_json
from aks.labels import VideoJob
from aks.video import RATE_TOLERANCE
from aks.video.files import file_bytes

logger = logging.getLogger(__name__)

FORMAT = 2  # 1: PyAV for some videos, decord for the others


@dataclass(frozen=True)
class VideoScores:
    """The scores of one video, as its part file holds them.

    Attributes:
        video: its name in the label file.
        fps, num_frames, video_bytes, decoder, is_edited: as of
            :class:`~aks.extraction.decoding.VideoInfo`.
        frames: candidate frame numbers, (n,).
        times_s: their times in seconds, (n,).
        scores: question id to relevance scores, (n,) each.
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

    has_lists = True  # whether its parts are assembled

    def __init__(self, folder: Path, parts: str = "parts", suffix: str = ".json") -> None:
        """Name the folder, its folder of parts and their suffix; :meth:`open_or_create` creates them."""
        self.folder = folder
        self.parts = folder / parts
        self.suffix = suffix

    def open_or_create(self, settings: dict[str, Any], jobs: Sequence[VideoJob] = ()) -> None:
        """Create the folder and record the run's settings, or compare them with the recorded ones.

        The settings are everything that changes the parts. Parts that an earlier version may have misread are
        deleted, where their videos are there.

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
        differences = [
            f"{key} {recorded.get(key)!r} there, {settings.get(key)!r} now"
            for key in sorted((recorded.keys() | settings.keys()) - {"format"})
            if recorded.get(key) != settings.get(key)
        ]
        if differences:
            raise UserError(
                f"{record}: made with other settings ({'; '.join(differences)}); "
                "use another --output_file or remove that folder"
            )
        remove_stale_temp_files(self.parts)
        self._upgrade(jobs)

    def describe_part(self, video: str) -> dict[str, Any]:
        """How a finished video was read: format, decoder, fps, video_bytes, frames, times_s."""
        return {**asdict(self.read_part(video)), "format": read_json(self.part_path(video)).get("format")}

    def misread(self, jobs: Sequence[VideoJob]) -> list[VideoJob]:
        """Finished videos of which an earlier version may have read other frames than a player shows.

        That version let decord read some videos, mixed up the order of frames in AVI files, and believed the
        header's frame rate where that is not the average.
        """
        if read_json(self.folder / "run.json").get("format") == FORMAT:
            return []
        found = []
        for job in jobs:
            if not self.has_part(job.name):
                continue
            part = self.describe_part(job.name)
            if part["format"] == FORMAT:
                continue
            frames, times, fps = part["frames"], part["times_s"], float(part["fps"])
            span = times[-1] - times[0]
            average = (frames[-1] - frames[0]) / span if span > 0 else fps
            is_variable = abs(average / fps - 1) > RATE_TOLERANCE
            if part["decoder"] == "decord" or job.name.lower().endswith(".avi") or is_variable:
                found.append(job)
        return found

    def check_videos(self, jobs: Sequence[VideoJob]) -> None:
        """Refuse damaged parts, and parts made from other videos of the same names.

        Raises:
            UserError: names the first such part.
        """
        for job in jobs:
            if self.has_part(job.name):
                video_bytes = self.describe_part(job.name)["video_bytes"]
                check_same_video(self.part_path(job.name), video_bytes, job.path)

    def _upgrade(self, jobs: Sequence[VideoJob]) -> None:
        any_kept = False
        for job in self.misread(jobs):
            if job.path.exists():
                self.part_path(job.name).unlink(missing_ok=True)
                outcome = "it is read again"
            else:
                any_kept, outcome = True, f"it is kept, because {job.path} is not there"
            logger.warning(
                "%s: an earlier version may have read other frames than a player shows; %s", job.name, outcome
            )
        record = self.folder / "run.json"
        recorded = read_json(record)
        if recorded.get("format") != FORMAT and not any_kept:
            write_json(record, {**recorded, "format": FORMAT}, indent=2)

    def part_path(self, video: str) -> Path:
        """The part file of a video; its name stays readable and within a file system's limits."""
        name = quote(video, safe=" ()[]+,=@&!'~")
        if len(name) > 200:
            name = name[:150] + "-" + hashlib.sha256(video.encode()).hexdigest()[:32]
        return self.parts / f"{name}{self.suffix}"

    def failure_path(self, video: str) -> Path:
        """The file that records a video's failure until the video succeeds."""
        return self.part_path(video).with_suffix(".failure")

    def has_part(self, video: str) -> bool:
        """Whether the video is finished."""
        return self.part_path(video).exists()

    def write_part(self, part: VideoScores) -> None:
        """Write a finished video's part; record its missing frames, or forget an earlier failure."""
        data = {"format": FORMAT, **asdict(part)}
        if not part.lost_frames:
            del data["lost_frames"], data["lost_reason"]
        if not part.is_edited:
            del data["is_edited"]
        with self.recording_missing_frames(
            part.video, part.lost_reason, list(part.scores), part.lost_frames, len(part.frames)
        ):
            write_json(self.part_path(part.video), data)

    @contextlib.contextmanager
    def recording_missing_frames(
        self, video: str, reason: str, questions: list[str], missing_frames: list[int], num_scored: int
    ) -> Iterator[None]:
        """Write a video's part in this context, which records its missing frames or forgets a failure.

        Frames are recorded before the part is there, and an earlier failure is forgotten afterwards: whenever
        the process is killed, no loss goes unreported.
        """
        if missing_frames:
            self.record_failure(
                video, reason, questions, lost_frames=missing_frames, scored_frames=num_scored
            )
        yield
        if not missing_frames:
            self.failure_path(video).unlink(missing_ok=True)

    def read_part(self, video: str) -> VideoScores:
        """Read a finished video's part.

        Raises:
            UserError: the file is damaged.
        """
        path = self.part_path(video)
        try:
            data = read_json(path)
            part = VideoScores(**{key: data[key] for key in data if key in VideoScores.__dataclass_fields__})
            columns = [part.frames, part.times_s, *part.scores.values()]
            is_valid = all(np.isfinite(np.array(column, dtype=np.float64)).all() for column in columns)
            is_valid = is_valid and part.video == video and len(set(map(len, columns))) == 1
        except (UserError, TypeError, AttributeError, ValueError):
            is_valid = False
        if not is_valid:
            raise UserError(f"{path}: damaged part file; delete it and run again to score this video anew")
        return part

    def record_failure(self, video: str, reason: str, questions: list[str], **more: Any) -> None:
        """Record that a video could not be scored or, with ``lost_frames``, not all of it."""
        record = {"video": video, "reason": reason, "questions": questions, **more}
        write_json(self.failure_path(video), record, indent=2)

    def failure_mtime(self, video: str) -> int | None:
        """When a video's failure was recorded, in nanoseconds; None where it has not failed."""
        with contextlib.suppress(OSError):
            return self.failure_path(video).stat().st_mtime_ns
        return None

    def collect_failures(self, jobs: Sequence[VideoJob]) -> list[dict[str, Any]]:
        """The videos that failed or lack frames, in label order; also written to ``failures.json``."""
        path = self.folder / "failures.json"
        failures = self._read_failures(jobs)
        while True:
            if failures:
                write_json(path, failures, indent=2)
            else:
                path.unlink(missing_ok=True)
            # Another process may have recorded a failure, and written an older list after this one.
            current = self._read_failures(jobs)
            if current == failures:
                return failures
            failures = current

    def _read_failures(self, jobs: Sequence[VideoJob]) -> list[dict[str, Any]]:
        failures = []
        for job in jobs:
            path = self.failure_path(job.name)
            if not path.exists():
                continue
            try:
                record = read_json(path)
            except UserError:  # another process has just finished the video
                continue
            if not self.has_part(job.name) or record.get("lost_frames"):
                failures.append(record)
        return failures

    def assemble(self, jobs: Sequence[VideoJob], allow_missing: bool) -> int:
        """Write ``scores.json``, ``frames.json`` and ``times.json`` of all videos in label order.

        With ``allow_missing`` the questions of unfinished videos get empty lists. Returns their number.

        Raises:
            UserError: a part is damaged, or is missing and ``allow_missing`` is off.
        """
        rows: dict[int, tuple[list[float], list[int], list[float]]] = {}  # times, frames, scores
        num_empty = 0
        for job in jobs:
            if not self.has_part(job.name):
                if not allow_missing:
                    raise UserError(
                        f"{self.folder}: {job.name} is not scored yet; run feature_extract.py again"
                    )
                num_empty += len(job.questions)
                rows.update((question.index, ([], [], [])) for question in job.questions)
                continue
            part = self.read_part(job.name)
            check_same_video(self.part_path(job.name), part.video_bytes, job.path)
            for question in job.questions:
                if question.id not in part.scores:
                    raise UserError(
                        f"{self.part_path(job.name)}: has no scores for question {question.id}; "
                        "delete it and run again to score this video anew"
                    )
                rows[question.index] = (part.times_s, part.frames, part.scores[question.id])
        # In this order: a reader that finds scores.json finds the others, too.
        for column, name in enumerate(("times", "frames", "scores")):
            write_json(self.folder / f"{name}.json", [rows[index][column] for index in range(len(rows))])
        return num_empty


def check_same_video(derived: Path, video_bytes: int | None, video: Path) -> None:
    """Refuse a file that was made from another video of the same name; pass where the video is not there.

    Raises:
        UserError: the sizes differ.
    """
    size = file_bytes(video)
    if None not in (size, video_bytes) and size != video_bytes:
        raise UserError(
            f"{derived}: made from another {video.name} ({video_bytes} bytes; {video} has {size}); "
            "delete it, or use another --output_file"
        )
