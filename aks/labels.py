"""Label files to questions: LongVideoBench, VideoMME, and one's own data.

All three become the same :class:`Question`. Entries keep the label file's order, which is the order
of ``scores.json``, ``frames.json`` and ``selected_frames.json``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from aks.entries import parse_entries, read_label_bytes
from aks.errors import UserError

Evidence = tuple[float, float]  # first and last position, equal for a single point


@dataclass(frozen=True)
class Question:
    """One question about one video.

    Attributes:
        index: position in the label file, from 0.
        id: unique within the label file.
        video: file name of the video, relative to the label set's video folder, or absolute.
        text: the question alone.
        options: answer candidates as the label file spells them; empty for an open question.
        answer: index of the right option, or None where the file does not say.
        options_prompt: the candidates as the paper's SeViLA prompt spells them for this data set
            (LongVideoBench: ``"A. text "`` each; VideoMME: its lettered strings, joined).
        duration_s: length of the video in seconds, or None.
        group: what recall is reported by, e.g. LongVideoBench's duration group; ``-`` for none.
        evidence_frames: evidence as frame numbers, (first, last) each.
        evidence_times_s: evidence in seconds, (first, last) each.
    """

    index: int
    id: str
    video: str
    text: str
    options: tuple[str, ...] = ()
    answer: int | None = None
    options_prompt: str = ""
    duration_s: float | None = None
    group: str = "-"
    evidence_frames: tuple[Evidence, ...] = ()
    evidence_times_s: tuple[Evidence, ...] = ()


@dataclass(frozen=True)
class VideoJob:
    """A video and all questions about it: the unit of work of step 1.

    Attributes:
        name: the video's name in the label file.
        path: its file.
        questions: in the label file's order.
        expected_frames: an estimate of its candidate frames, about one a second; 0 where unknown.
    """

    name: str
    path: Path
    questions: tuple[Question, ...] = ()
    expected_frames: int = 0


@dataclass(frozen=True)
class LabelSet:
    """The questions of one label file.

    Attributes:
        dataset: a name in :data:`DATASETS`.
        path: the label file.
        sha256: digest of the label file's bytes.
        video_root: folder that relative video names start from.
        questions: in the label file's order.
    """

    dataset: str
    path: Path
    sha256: str
    video_root: Path
    questions: list[Question] = field(repr=False)

    def video_path(self, video: str) -> Path:
        """The file of a question's video, see :func:`find_video`; an absolute name stays as it is."""
        return find_video(self.dataset, self.video_root, video)

    @cached_property
    def jobs(self) -> list[VideoJob]:
        """The videos with their questions, in the order of their first questions."""
        questions: dict[str, list[Question]] = {}
        for question in self.questions:
            questions.setdefault(question.video, []).append(question)
        return [VideoJob(name, self.video_path(name), tuple(found)) for name, found in questions.items()]


class LabelEntry:
    """One entry of a label file. Its methods read a field, or raise a UserError that names it."""

    def __init__(self, path: Path, index: int, data: dict[str, Any], identifier: Any) -> None:
        """Wrap the entry's fields, ``data``; messages name the entry by index and identifier."""
        self.where = f"{path}: entry {index}"
        if isinstance(identifier, str | int):
            self.where += f" (id {identifier})"
        self.data = data

    def error(self, problem: str) -> UserError:
        """The error that tells what is wrong with the entry."""
        return UserError(f"{self.where}: {problem}")

    def text(self, key: str) -> str:
        """A text that is not empty."""
        value = self.data.get(key)
        if not isinstance(value, str) or not value.strip():
            state = "is missing" if key not in self.data else f"is {value!r}"
            raise self.error(f"{key!r} {state}; it must be a non-empty text")
        if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
            raise self.error(f"{key!r} is {value!r}; it holds a character that is no text")
        return value

    def texts(self, key: str, required: bool) -> tuple[str, ...]:
        """A list of texts; empty where it is missing and not required."""
        value = self.data.get(key)
        if value is None and not required:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            state = "is missing" if key not in self.data else "is not a list of texts"
            raise self.error(f"{key!r} {state}")
        return tuple(value)

    def identifier(self, key: str, default: int) -> str:
        """A text or a whole number, as text."""
        value = self.data.get(key, default)
        if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
            raise self.error(f"{key!r} is {value!r}; it must be a text or an integer")
        return str(value)

    def number(self, key: str | None) -> float | None:
        """A number, 0 or more; None where it is missing."""
        value = self.data.get(key)
        if value is None:
            return None
        if not _is_number(value) or value < 0:
            raise self.error(f"{key!r} is {value!r}; it must be a number, 0 or more")
        return float(value)

    def choice(self, key: str, options: tuple[str, ...]) -> int | None:
        """An answer given as index, letter or option text, as an index; None where it is missing."""
        value = self.data.get(key)
        if value is None:
            return None
        found: int | None = None
        if isinstance(value, int) and not isinstance(value, bool):
            found = value
        elif isinstance(value, str) and value in options:
            found = options.index(value)
        elif isinstance(value, str) and value.strip().isascii() and re.fullmatch("[A-Za-z]", value.strip()):
            found = ord(value.strip().upper()) - ord("A")
        if found is None or found < 0 or (options and found >= len(options)):
            raise self.error(f"answer {value!r} is no index, letter or text of its {len(options)} options")
        return found

    def group(self, key: str) -> str:
        """The name of a group; ``-`` where it is missing."""
        value = self.data.get(key)
        return "-" if value is None else str(value)

    def evidence(self, key: str) -> tuple[Evidence, ...]:
        """A list of positions, or of [first, last] pairs, as pairs."""
        value = self.data.get(key)
        if value is None:
            return ()
        if not isinstance(value, list):
            raise self.error(f"{key!r} is not a list")
        pairs = []
        for item in value:
            pair = item if isinstance(item, list) else [item, item]
            if len(pair) != 2 or not all(map(_is_number, pair)) or not 0 <= pair[0] <= pair[1]:
                raise self.error(f"{key!r} holds {item!r}; use a position or [first, last], 0 or more")
            pairs.append((float(pair[0]), float(pair[1])))
        return tuple(pairs)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e15  # also keeps whole numbers within what a float holds; false for NaN


def lettered_options(options: Iterable[str]) -> str:
    """The options as the paper's SeViLA prompt for LongVideoBench spells them."""
    return "".join(f"{chr(ord('A') + i)}. {text} " for i, text in enumerate(options))


@dataclass(frozen=True)
class LabelFormat:
    """How a data set's label file is read: where it lies, and the names of its entries' fields.

    Attributes:
        label_name: its usual file name; None where ``--label_file`` must name it. Then the file is somebody's
            own, and its entries may leave out ids and options.
        video_folder: folder of the videos in the data set's folder.
        id, video, text, options, answer, duration_s, group, evidence_frames, evidence_times_s: the field that
            holds this of a :class:`Question`; None for none.
        options_prompt: spells the options for the prompt.
        extensions: under which a video may lie; its name in the label file has none. Empty where it has.
    """

    label_name: str | None
    video_folder: str
    id: str = "id"
    video: str = "video"
    text: str = "question"
    options: str = "options"
    answer: str = "answer"
    duration_s: str | None = "duration"
    group: str = "group"
    evidence_frames: str = "evidence_frames"
    evidence_times_s: str = "evidence_times"
    options_prompt: Callable[[Iterable[str]], str] = lettered_options
    extensions: tuple[str, ...] = ()

    def question(self, index: int, entry: LabelEntry) -> Question:
        """The question of the entry at an index.

        Raises:
            UserError: a field is missing or wrong.
        """
        is_own = self.label_name is None
        options = entry.texts(self.options, required=not is_own)
        return Question(
            index=index,
            id=entry.identifier(self.id, default=index) if is_own else entry.text(self.id),
            video=entry.text(self.video) + (self.extensions[0] if self.extensions else ""),
            text=entry.text(self.text),
            options=options,
            answer=entry.choice(self.answer, options),
            options_prompt=self.options_prompt(options),
            duration_s=entry.number(self.duration_s),
            group=entry.group(self.group),
            evidence_frames=entry.evidence(self.evidence_frames),
            evidence_times_s=entry.evidence(self.evidence_times_s),
        )


DATASETS = {
    "longvideobench": LabelFormat(
        label_name="lvb_val.json",
        video_folder="videos",
        video="video_path",
        options="candidates",
        answer="correct_choice",
        group="duration_group",
        evidence_frames="position",
    ),
    "videomme": LabelFormat(
        label_name="videomme.json",
        video_folder="data",
        id="question_id",
        video="videoID",
        duration_s=None,
        group="duration",
        options_prompt="".join,
        extensions=(".mp4", ".MP4", ".mkv"),
    ),
    "custom": LabelFormat(label_name=None, video_folder=""),
}


def find_video(dataset: str, folder: Path, name: str) -> Path:
    """The file of a video in a data set's folder of videos; where there is none, the path that it would have.

    VideoMME's labels give no extension, so it may be any that upstream allows.
    """
    path = folder / name
    candidates = (path.with_suffix(extension) for extension in DATASETS[dataset].extensions)
    return next((candidate for candidate in candidates if candidate.is_file()), path)


def load_labels(
    dataset: str, dataset_path: str | Path | None = None, label_file: str | Path | None = None
) -> LabelSet:
    """Read and check a label file.

    Args:
        dataset: ``longvideobench`` (``lvb_val.json``, videos under ``videos/``), ``videomme``
            (``videomme.json``, videos under ``data/``) or ``custom`` (needs ``label_file``).
        dataset_path: the data set's folder; None means ``./datasets/<dataset>``, and for ``custom``
            the label file's own folder.
        label_file: a label file to read instead of the data set's usual one, see :func:`read_entries`.

    Raises:
        UserError: unknown data set, file missing, not JSON, or a bad entry (named by index).
    """
    if dataset not in DATASETS:
        raise UserError(f"--dataset_name {dataset}: unknown data set; use one of {', '.join(DATASETS)}")
    form = DATASETS[dataset]
    if label_file is not None:
        path = Path(label_file)
    elif form.label_name is None:
        raise UserError(f"--dataset_name {dataset} needs --label_file, a .json or .jsonl file")
    else:
        path = Path(dataset_path or f"./datasets/{dataset}") / form.label_name
    if dataset_path is None:
        dataset_path = path.parent if form.label_name is None else f"./datasets/{dataset}"

    raw = read_label_bytes(path)
    questions: list[Question] = []
    first_use: dict[str, int] = {}
    for index, data in enumerate(parse_entries(path, raw)):
        entry = LabelEntry(path, index, data, data.get(form.id))
        question = form.question(index, entry)
        if question.id in first_use:
            raise entry.error(
                f"id {question.id!r} was used by entry {first_use[question.id]}; make ids unique"
            )
        first_use[question.id] = index
        questions.append(question)
    return LabelSet(
        dataset=dataset,
        path=path,
        sha256=hashlib.sha256(raw).hexdigest(),
        video_root=Path(dataset_path) / form.video_folder,
        questions=questions,
    )


def read_entries(path: Path) -> list[dict[str, Any]]:
    """The entries of a label file, see :func:`aks.entries.parse_entries`.

    Raises:
        UserError: the file is missing, or holds something else; says what.
    """
    return parse_entries(path, read_label_bytes(path))
