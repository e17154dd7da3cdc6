"""Label files to questions: those of the benchmarks, and of one's own data.

All of them become the same :class:`Question`. Entries keep the label file's order, which is the order
of ``scores.json``, ``frames.json`` and ``selected_frames.json``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from aks.entries import Evidence, LabelEntry, parse_entries, read_label_bytes
from aks.errors import UserError, nearest


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
        category: of the question, e.g. LongVideoBench's question category; ``-`` for none.
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
    category: str = "-"
    evidence_frames: tuple[Evidence, ...] = ()
    evidence_times_s: tuple[Evidence, ...] = ()


def check_question(text: str) -> None:
    """Refuse a question that no scorer can take.

    Raises:
        UserError: it is empty, or no text.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UserError("the question holds bytes that are no UTF-8 text")
    if not text.strip():
        raise UserError("the question is empty; say what to look for")


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
        entries: the fields of each question's entry, with those that the format makes of others.
    """

    dataset: str
    path: Path
    sha256: str
    video_root: Path
    questions: list[Question] = field(repr=False)
    entries: list[dict[str, Any]] = field(repr=False)

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
        id, video, text, options, answer, duration_s, group, category, evidence_frames, evidence_times_s: the
            field that holds this of a :class:`Question`; None for none.
        video_entries: where an entry is a video, the field with its questions; the other fields are then each
            question's. None where an entry is a question.
        made_fields: fields made of others, which are added to an entry.
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
    category: str = "category"
    evidence_frames: str = "evidence_frames"
    evidence_times_s: str = "evidence_times"
    video_entries: str | None = None
    made_fields: Callable[[LabelEntry], dict[str, Any]] = lambda entry: {}
    options_prompt: Callable[[Iterable[str]], str] = lettered_options
    extensions: tuple[str, ...] = ()

    def video_name(self, name: str) -> str:
        """The usual file name of a video, of its name in the label file."""
        return name + self.extensions[0] if self.extensions else name

    def question_entries(self, path: Path, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One entry a question; entries that are so already stay as they are.

        Raises:
            UserError: a video's questions are no list of objects, or there are none at all.
        """
        found = []
        for index, data in enumerate(entries):
            if self.video_entries not in data:
                found.append(data)
                continue
            questions = data[self.video_entries]
            if not isinstance(questions, list) or not all(isinstance(item, dict) for item in questions):
                entry = LabelEntry(path, index, data, data.get(self.video))
                raise entry.error(f"{self.video_entries!r} is not a list of questions")
            video = {name: value for name, value in data.items() if name != self.video_entries}
            found += [{**video, **question} for question in questions]
        if not found:
            raise UserError(f"{path}: holds no questions")
        return found

    def question(self, index: int, entry: LabelEntry) -> Question:
        """The question of the entry at an index.

        Raises:
            UserError: a field is missing or wrong.
        """
        is_own = self.label_name is None
        options = entry.texts(self.options, required=not is_own)
        return Question(
            index=index,
            id=entry.identifier(self.id, default=index if is_own else None),
            video=self.video_name(entry.text(self.video)),
            text=entry.text(self.text),
            options=options,
            answer=entry.choice(self.answer, options),
            options_prompt=self.options_prompt(options),
            duration_s=entry.number(self.duration_s),
            group=entry.group(self.group),
            category=entry.group(self.category),
            evidence_frames=entry.evidence(self.evidence_frames),
            evidence_times_s=entry.evidence(self.evidence_times_s),
        )


def options_in_question(entry: LabelEntry) -> dict[str, Any]:
    """The two parts of a text such as ``"What is it?\\n(A) red\\n(B) blue"``."""
    stem, options = entry.split_options("question", r"\(([A-Z])\)")
    return {"question_stem": stem, "candidates": options}


def lvbench_fields(entry: LabelEntry) -> dict[str, Any]:
    """Question and options, the length in seconds, and ``time_reference`` as evidence in seconds.

    A reference is ``"00:15-00:19"`` or ``"1:02:03-1:02:10"``; one of another form counts as none.
    """
    info, reference = entry.data.get("video_info"), str(entry.data.get("time_reference"))
    minutes = info.get("duration_minutes") if isinstance(info, dict) else None
    times = [time.strip().split(":") for time in reference.split("-")]
    evidence = []
    if len(times) == 2 and all(len(time) in (2, 3) and all(map(str.isdecimal, time)) for time in times):
        first, last = (sum(int(part) * 60**i for i, part in enumerate(reversed(time))) for time in times)
        evidence = [[first, last]] if first <= last else []
    return {
        **options_in_question(entry),
        "duration": 60 * minutes if isinstance(minutes, int | float) else None,
        "evidence_times": evidence,
    }


def videomme_v2_fields(entry: LabelEntry) -> dict[str, Any]:
    """The options of a text such as ``"A. red\\nB. blue"``."""
    _, options = entry.split_options("options", r"([A-Z])\.")
    return {"candidates": options}


DATASETS = {
    "longvideobench": LabelFormat(
        label_name="lvb_val.json",
        video_folder="videos",
        video="video_path",
        options="candidates",
        answer="correct_choice",
        group="duration_group",
        category="question_category",
        evidence_frames="position",
    ),
    "videomme": LabelFormat(
        label_name="videomme.json",
        video_folder="data",
        id="question_id",
        video="videoID",
        duration_s=None,
        group="duration",
        category="task_type",
        options_prompt="".join,
        extensions=(".mp4", ".MP4", ".mkv"),
    ),
    "lvbench": LabelFormat(
        label_name="video_info.meta.jsonl",
        video_folder="all_videos",
        id="uid",
        video="key",
        text="question_stem",
        options="candidates",
        group="type",
        video_entries="qa",
        made_fields=lvbench_fields,
        extensions=(".mp4",),
    ),
    "mlvu": LabelFormat(
        label_name="mlvu.json",
        video_folder="video",
        id="question_id",
        video="video_name",
        text="question_stem",
        options="candidates",
        group="task_type",
        made_fields=options_in_question,
    ),
    "videomme_v2": LabelFormat(
        label_name="videomme_v2.json",
        video_folder="videos",
        id="question_id",
        video="video_id",
        options="candidates",
        duration_s=None,
        group="level",
        made_fields=videomme_v2_fields,
        extensions=(".mp4",),
    ),
    "custom": LabelFormat(label_name=None, video_folder=""),
}


def find_video(dataset: str, folder: Path, name: str) -> Path:
    """The file of a video in a data set's folder of videos; where there is none, the path that it would have.

    Where the labels give no extension, it may be any of the format's.
    """
    path = folder / name
    candidates = (path.with_suffix(extension) for extension in DATASETS[dataset].extensions)
    return next((candidate for candidate in candidates if candidate.is_file()), path)


def load_labels(
    dataset: str, dataset_path: str | Path | None = None, label_file: str | Path | None = None
) -> LabelSet:
    """Read and check a label file.

    Args:
        dataset: a name in :data:`DATASETS`; ``custom`` needs ``label_file``.
        dataset_path: the data set's folder; None means ``./datasets/<dataset>``, and for ``custom``
            the label file's own folder.
        label_file: a label file to read instead of the usual one, see :func:`~aks.entries.parse_entries`.

    Raises:
        UserError: unknown data set, file missing, not JSON, or a bad entry (named by index).
    """
    if dataset not in DATASETS:
        raise UserError(
            f"--dataset_name {dataset}: unknown data set; use one of {', '.join(DATASETS)}"
            f"{nearest(dataset, DATASETS)}"
        )
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
    entries = form.question_entries(path, parse_entries(path, raw))
    for index, data in enumerate(entries):
        entry = LabelEntry(path, index, data, data.get(form.id))
        data.update(form.made_fields(entry))
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
        entries=entries,
    )
