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
import errno
import functools
import hashlib
import json
import os
import re
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import simdjson

from aks.errors import UserError

if TYPE_CHECKING:
    from aks.benchmarks import LabelSet

FORMAT = 2  # 1: PyAV for some videos, decord for the others
RATE_TOLERANCE = 0.05  # of a frame rate against the frames over the seconds they last
MAX_FRAME = 2**53  # the last whole number before floats skip some
ORPHANED_AFTER_S = 2 * 86400.0  # no video takes so long


@dataclass(frozen=True)
class Part:
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


class RunFolder:
    """One run's folder, shared by any number of processes on one file system."""

    def __init__(self, folder: Path, parts: str = "parts", suffix: str = ".json") -> None:
        """Name the folder, its folder of parts and their suffix; nothing is created yet."""
        self.folder = folder
        self.parts = folder / parts
        self.suffix = suffix

    def begin(self, settings: dict[str, Any]) -> None:
        """Create the folder and record the run's settings, or compare them with those recorded.

        Raises:
            UserError: the folder was made with other settings, or cannot be written.
        """
        record = self.folder / "run.json"
        settings = {"format": FORMAT, **settings}
        try:
            self.parts.mkdir(parents=True, exist_ok=True)
            if not record.exists():
                write_json(record, settings, indent=2, keep_existing=True)
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
        _remove_orphans(self.parts)

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
        from aks.progress import say

        kept = False
        for name in self.misread(labels):
            if labels.video_path(name).exists():
                self.part_path(name).unlink(missing_ok=True)
                what = "it is read again"
            else:
                kept, what = True, f"it is kept, because {labels.video_path(name)} is not there"
            say(f"{name}: an earlier version may have read other frames than a player shows; {what}")
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

    def write_part(self, part: Part) -> None:
        """Store a finished video and forget an earlier failure of it; note what of it is lost."""
        data = {"format": FORMAT, **asdict(part)}
        if not part.lost_frames:
            del data["lost_frames"], data["lost_reason"]
        if not part.is_edited:
            del data["is_edited"]
        write_json(self.part_path(part.video), data)
        self.note_loss(part.video, part.lost_reason, list(part.scores), part.lost_frames, len(part.frames))

    def note_loss(
        self, video: str, reason: str, questions: list[str], lost_frames: list[int], left: int
    ) -> None:
        """Note that a finished video lacks frames; nothing lost: forget an earlier failure of it."""
        if lost_frames:
            self.write_failure(video, reason, questions, lost_frames=lost_frames, scored_frames=left)
        else:
            self.failure_path(video).unlink(missing_ok=True)

    def read_part(self, video: str) -> Part:
        """Load a finished video.

        Raises:
            UserError: the file is damaged.
        """
        path = self.part_path(video)
        try:
            data = read_json(path)
            needed = Part.__dataclass_fields__.keys() - {"is_edited", "lost_frames", "lost_reason"}
            part = Part(**{key: data[key] for key in Part.__dataclass_fields__ if key in {*needed, *data}})
            columns = [part.frames, part.times_s, *part.scores.values()]
            whole = all(np.isfinite(np.array(column, dtype=np.float64)).all() for column in columns)
            whole = whole and part.video == video and len(set(map(len, columns))) == 1
        except (UserError, TypeError, KeyError, AttributeError, ValueError):
            whole = False
        if not whole:
            raise UserError(f"{path}: damaged part file; delete it and run again to score this video anew")
        return part

    def write_failure(self, video: str, reason: str, questions: list[str], **more: Any) -> None:
        """Note that a video could not be scored, or, with ``lost_frames``, not wholly."""
        note = {"video": video, "reason": reason, "questions": questions, **more}
        write_json(self.failure_path(video), note, indent=2)

    def failure_stamp(self, video: str) -> int | None:
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


def read_scores(score_path: Path, frame_path: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Read and check ``scores.json`` and ``frames.json``, ours or anybody's in the reference's format.

    Args:
        score_path: a JSON list of lists of finite numbers, one list a question.
        frame_path: likewise of ascending frame numbers, whole, written as integers or floats.

    Returns:
        Per question: scores (n,) float64, and frame numbers (n,) int64.

    Raises:
        UserError: a file is missing or malformed; names the file and the entry.
    """
    scores, frames = read_number_lists(score_path), read_number_lists(frame_path)
    if len(scores) != len(frames):
        raise UserError(
            f"{score_path} holds {len(scores)} questions and {frame_path} {len(frames)}; "
            "both must come from the same run"
        )
    for index, (score, frame) in enumerate(zip(scores, frames, strict=True)):
        if len(score) != len(frame):
            raise UserError(
                f"{score_path}: entry {index} has {len(score)} scores, but {len(frame)} frames in "
                f"{frame_path}; both must come from the same run"
            )
    return scores, check_frame_numbers(frame_path, frames)


def stride_of(frames: np.ndarray) -> int:
    """Frames from one candidate to the next, by frame numbers (n,) of some of them; 0 for fewer than two.

    Their greatest common divisor: candidates are its multiples. Right also where some are lost, or only a few
    dozen scattered ones are selected; wrong where all positions share a factor.
    """
    return int(np.gcd.reduce(frames.astype(np.int64))) if len(frames) > 1 else 0


def check_frame_numbers(path: Path, rows: list[np.ndarray]) -> list[np.ndarray]:
    """Each entry's frame numbers as int64, checked to be whole, not negative and ascending.

    Args:
        path: their file, for messages.
        rows: finite numbers, (n,) float64 each.

    Raises:
        UserError: they are not; names file, entry and position.
    """
    for index, row in enumerate(rows):
        bad = np.flatnonzero((np.floor(row) != row) | (row < 0) | (row > MAX_FRAME))
        if len(bad):
            raise UserError(
                f"{path}: entry {index}, position {bad[0]}: {row[bad[0]]:g} is no frame number (0, 1, 2, ...)"
            )
        falls = np.flatnonzero(row[1:] <= row[:-1])
        if len(falls):
            at = int(falls[0]) + 1
            raise UserError(
                f"{path}: entry {index}, position {at}: frame {row[at]:.0f} follows {row[at - 1]:.0f}; "
                "frame numbers must ascend"
            )
    return [row.astype(np.int64) for row in rows]


def read_number_lists(path: Path) -> list[np.ndarray]:
    """A JSON list of lists of finite numbers, as float64 arrays.

    Raises:
        UserError: the file is missing or something else; names the entry.
    """
    try:
        return _read_fast(path)
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError):  # simdjson's many complaints
        return _read_carefully(path)


def _read_fast(path: Path) -> list[np.ndarray]:
    """Number lists straight into arrays, in a seventh of json's time; raises on all that might differ."""
    text = path.read_bytes()
    rows = [np.frombuffer(row.as_buffer(of_type="d")) for row in simdjson.Parser().parse(text)]
    if text.count(b"[") != 1 + len(rows):
        raise ValueError("as_buffer flattens lists in a list")
    return rows


def _read_carefully(path: Path) -> list[np.ndarray]:
    """The same, entry by entry, of all that json reads; names what is wrong."""
    rows = read_json(path)
    if not isinstance(rows, list):
        raise UserError(f"{path}: holds {type(rows).__name__}, not a list of lists (one a question)")
    return [_numbers(path, index, row) for index, row in enumerate(rows)]


def _numbers(path: Path, index: int, row: Any) -> np.ndarray:
    if not isinstance(row, list):
        raise UserError(f"{path}: entry {index} is {type(row).__name__}, not a list of numbers")
    # NumPy would read true as 1 and "2" as 2.
    if not set(map(type, row)) <= {int, float}:
        at = next(at for at, value in enumerate(row) if type(value) not in (int, float))
        raise UserError(f"{path}: entry {index}, position {at}: {row[at]!r} is no number")
    try:
        array = np.array(row, dtype=np.float64)
    except OverflowError:
        raise UserError(f"{path}: entry {index}: holds a number too large for a float") from None
    finite = np.isfinite(array)
    if not finite.all():
        at = int(np.flatnonzero(~finite)[0])
        raise UserError(f"{path}: entry {index}, position {at}: {array[at]} is no finite number")
    return array


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        UserError: it is missing, unreadable or not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: file not found") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        raise UserError(f"{path}: not JSON: {error}") from None


def write_json(path: Path, data: Any, *, indent: int | None = None, keep_existing: bool = False) -> None:
    """Write JSON so that the file is whole or absent, whatever happens to this process.

    Args:
        path: the file.
        data: what to write.
        indent: spaces for people to read, or None for the reference's one-line form.
        keep_existing: leave a file that another process wrote meanwhile.

    Raises:
        UserError: it cannot be written (disk full, no permission), or the data holds NaN or infinity.
    """
    try:
        text = json.dumps(data, indent=indent, allow_nan=False)
    except ValueError as error:
        raise UserError(f"{path}: not written: {error}") from None
    write_atomically(path, lambda target: target.write_text(text, encoding="utf-8"), keep_existing)


def write_atomically(path: Path, write: Callable[[Path], object], keep_existing: bool = False) -> None:
    """Let ``write`` fill a temporary file; see :func:`atomic`."""
    with atomic(path, keep_existing) as temporary:
        write(temporary)


@contextlib.contextmanager
def atomic(path: Path, keep_existing: bool = False) -> Iterator[Path]:
    """A temporary file beside ``path`` (same suffix), moved there whole where the block ends well.

    Args:
        path: the file.
        keep_existing: leave a file that another process wrote meanwhile.

    Raises:
        UserError: it cannot be written (disk full, no permission).
    """
    mark = f"{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    temporary = path.with_name(f".{path.stem[:100]}.{mark}.tmp{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        if keep_existing:
            _link(temporary, path)
        else:
            os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; finished work is kept") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _link(temporary: Path, path: Path) -> None:
    """Give the file its name unless that is taken."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EACCES):
            raise
        if not path.exists():  # a file system without links: nearly as good
            os.replace(temporary, path)


@functools.cache
def _host() -> str:
    """This host, its start, and which of its process tables: within one, process ids tell processes."""
    facts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        facts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256(" ".join(facts).encode()).hexdigest()[:16]


def _remove_orphans(folder: Path) -> None:
    """Delete temporary files of killed processes: of those of this machine, and of whoever's if very old."""
    orphans = [*folder.glob(".*.tmp.*"), *folder.parent.glob(".*.tmp.*")]
    if not orphans or not Path("/proc/self").exists():  # no way to tell which processes live
        return
    with contextlib.suppress(OSError):
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock-") as file:
            now = os.stat(file.name).st_mtime  # by the file server's clock, which stamps the others, too
        for path in orphans:
            match = re.search(rf"\.{_host()}-(\d+)-[0-9a-f]{{8}}\.tmp", path.name)
            is_dead = match and not Path(f"/proc/{match[1]}").exists()
            with contextlib.suppress(OSError):  # one that another run removes meanwhile shields no other
                if is_dead or path.stat().st_mtime < now - ORPHANED_AFTER_S:
                    path.unlink(missing_ok=True)
