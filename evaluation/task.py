"""Documents of the evaluation tasks: local label files in, upstream's fields out.

The yaml files in ``datasets/`` read a label file with the keyframes merged in
(``include_frame_idx.json``, by ``change_score.py``), or the plain label file, and leave question text,
scoring and aggregation to lmms-eval's own tasks. Environment variables name other locations, for each
data set:

    AKS_LONGVIDEOBENCH_LABELS=...   the label file, with or without keyframes
    AKS_LONGVIDEOBENCH_VIDEOS=...   the folder of its videos
    AKS_LONGVIDEOBENCH_SUBTITLES=...   the folder of its subtitles
"""

from __future__ import annotations

if __name__.startswith("lmms_eval."):
    raise SystemExit(
        f"error: {__file__} is a file of Adaptive Keyframe Sampling; it does not replace lmms-eval's. "
        "Get that back (git checkout, or pip install --force-reinstall --no-deps lmms-eval==VERSION), then "
        "run evaluation/swap_in.py install in the project"
    )

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from aks.entries import read_entries
from aks.errors import UserError
from aks.labels import DATASETS, LabelSet, Question, find_video, load_labels
from evaluation import llava_implementation
from evaluation.change_score import MERGED_LABELS
from evaluation.errors import EvaluationError

ROOT = Path(__file__).resolve().parent.parent
MAX_OPTIONS = 5  # upstream's LongVideoBench text and scoring know option0 to option4
NO_OPTION = "N/A"
# Upstream compares their answers as they stand with the letter that it finds in the model's.
ANSWERED_BY_LETTER = ("videomme", "lvbench", "mlvu", "videomme_v2")
SUBTITLE_FOLDERS = {"longvideobench": "subtitles", "videomme": "subtitle"}


def label_file(dataset: str) -> Path:
    """The label file that a task reads.

    ``AKS_<DATASET>_LABELS``, or the merged labels in ``datasets/<dataset>/``, or the plain ones there.

    Raises:
        EvaluationError: there is none.
    """
    named = os.environ.get(f"AKS_{dataset.upper()}_LABELS")
    folder = ROOT / "datasets" / dataset
    plain = DATASETS[dataset].label_name
    candidates = [Path(named)] if named else [folder / MERGED_LABELS, *([folder / plain] if plain else [])]
    for path in candidates:
        if path.is_file():
            return path.absolute()
    raise EvaluationError(
        f"{candidates[-1]}: label file not found; put it there or name it: AKS_{dataset.upper()}_LABELS=..."
    )


def dataset_kwargs(dataset: str, split: str) -> dict[str, Any]:
    """What a task's yaml gives to Hugging Face ``datasets``: the label file as one split."""
    path = label_file(dataset)
    verify_merged_labels(path)
    return {"data_files": {split: str(path)}}


def metadata(dataset: str) -> dict[str, str]:
    """The digest of the label file, and so of the frames shown, and the implementation of LLaVA, if one runs.

    A task's configuration is part of the keys of lmms-eval's ``--use_cache``; the content of its label file
    alone would not be. It also stands in the results file, which else would not say which LLaVA ran.
    """
    digest = hashlib.sha256(label_file(dataset).read_bytes()).hexdigest()
    implementation = llava_implementation.in_use()
    return {"entries_sha256": digest, **({"llava": implementation} if implementation else {})}


def verify_merged_labels(path: Path) -> None:
    """Refuse merged labels whose label file has changed since.

    Raises:
        EvaluationError: no list of entries, or made from other labels than those beside it.
    """
    try:
        entries = read_entries(path)
    except UserError as error:
        raise EvaluationError(str(error)) from None
    source, digest = entries[0].get("label_file"), entries[0].get("label_sha256")
    if not source or not digest:
        return
    labels = path.parent / source
    if labels.is_file() and hashlib.sha256(labels.read_bytes()).hexdigest() != digest:
        raise EvaluationError(
            f"{path}: made from another {source} than the one beside it; run evaluation/change_score.py again"
        )


def video_folder(dataset: str) -> Path:
    """The folder of a data set's videos: ``AKS_<DATASET>_VIDEOS``, or the documented one.

    A custom data set's videos lie beside its label file.
    """
    if named := os.environ.get(f"AKS_{dataset.upper()}_VIDEOS"):
        return Path(named)
    if DATASETS[dataset].label_name is None:
        return label_file(dataset).parent
    return ROOT / "datasets" / dataset / DATASETS[dataset].video_folder


def subtitle_folder(dataset: str) -> Path:
    """The folder of a data set's subtitles: ``AKS_<DATASET>_SUBTITLES``, or the documented one."""
    named = os.environ.get(f"AKS_{dataset.upper()}_SUBTITLES")
    return Path(named) if named else ROOT / "datasets" / dataset / SUBTITLE_FOLDERS[dataset]


def video_path(dataset: str, doc: Mapping[str, Any]) -> str:
    """The video of a document.

    Raises:
        EvaluationError: it is not there.
    """
    form = DATASETS[dataset]
    path = find_video(dataset, video_folder(dataset), form.video_name(doc[form.video]))
    if not path.is_file():
        raise EvaluationError(
            f"{path}: video file not found; put it there or name the folder: AKS_{dataset.upper()}_VIDEOS=..."
        )
    return str(path)


def pad_options(options: list[str], location: str) -> dict[str, str]:
    """Answer candidates as upstream's ``option0`` to ``option4``, padded with ``N/A``.

    Raises:
        EvaluationError: too many or too few; names the question's ``location``.
    """
    if not 1 <= len(options) <= MAX_OPTIONS or NO_OPTION in options:
        raise EvaluationError(
            f"{location}: {len(options)} options; 1 to {MAX_OPTIONS} can be evaluated, none {NO_OPTION!r}"
        )
    padded = options + [NO_OPTION] * (MAX_OPTIONS - len(options))
    return {f"option{index}": option for index, option in enumerate(padded)}


def longvideobench_docs(dataset: Any) -> Any:
    """LongVideoBench's label entries with upstream's option fields."""
    return dataset.map(
        lambda entry: pad_options(entry["candidates"], f"question {entry['id']}"), load_from_cache_file=False
    )


def longvideobench_docs_with_pictures(pictures: str) -> Callable[[Any], Any]:
    """As ``longvideobench_docs``, marked as shown in pictures: ``uniform`` or ``keyframes``."""
    return lambda dataset: longvideobench_docs(dataset).map(
        lambda _: {"pictures": pictures}, load_from_cache_file=False
    )


def videomme_docs_with_subtitles(dataset: Any) -> Any:
    """VideoMME's label entries for prompts with subtitles, which depend on the frames shown.

    Raises:
        EvaluationError: ``insert_frame_num.py`` was not run.
    """
    missing = [name for name in ("frame_num", "use_topk") if name not in dataset.column_names]
    if missing:
        raise EvaluationError(
            f"{label_file('videomme')}: no {missing[0]!r}; subtitles follow the frames shown, so say which: "
            "python evaluation/insert_frame_num.py --frame_num 64 --use_topk True"
        )
    return dataset.map(lambda _: {"subtitle_frames": True}, load_from_cache_file=False)


def labels_to_evaluate(dataset: str) -> LabelSet:
    """The labels that a task reads.

    Raises:
        EvaluationError: an entry is wrong, or cannot be evaluated.
    """
    try:
        labels = load_labels(dataset, label_file=label_file(dataset))
    except UserError as error:
        raise EvaluationError(str(error)) from None
    if problem := check_questions(labels):
        raise EvaluationError(problem)
    return labels


def multiple_choice_docs(dataset: str) -> Callable[[Any], Any]:
    """A task's ``process_docs`` that gives a data set's entries LongVideoBench's fields."""

    def documents(loaded: Any) -> Any:
        labels = labels_to_evaluate(dataset)
        fields = [custom_doc(labels.path, question) for question in labels.questions]
        return loaded.map(lambda _, index: fields[index], with_indices=True, load_from_cache_file=False)

    return documents


def custom_doc(path: Path, question: Question) -> dict[str, Any]:
    """One's own question in LongVideoBench's fields.

    Raises:
        EvaluationError: it lacks what evaluation needs.
    """
    location = f"{path}: entry {question.index} (id {question.id})"
    if question.answer is None or not question.options:
        raise EvaluationError(f"{location}: evaluation needs 'options' and an 'answer'")
    return {
        "id": question.id,
        "video_path": question.video,
        "question": question.text,
        **pad_options(list(question.options), location),
        "correct_choice": question.answer,
        "duration_group": question.group,
        "question_category": "all",
    }


def check_letter(labels: LabelSet, question: Question) -> None:
    """Refuse an answer that upstream would take for wrong whatever the model says.

    Raises:
        EvaluationError: it is not the letter alone.
    """
    answer = labels.entries[question.index].get(DATASETS[labels.dataset].answer)
    if question.answer is None or answer != ascii_uppercase[question.answer]:
        raise EvaluationError(
            f"{labels.path}: entry {question.index} (id {question.id}): answer {answer!r}; it must be one of "
            f"the letters {', '.join(ascii_uppercase[: len(question.options)])}"
        )


def check_questions(labels: LabelSet) -> str | None:
    """What keeps a label file's questions from being evaluated, or None.

    Checks what this project adds to upstream's fields; upstream has further demands.
    """
    try:
        for question in labels.questions:
            if labels.dataset == "custom":
                custom_doc(labels.path, question)
            elif labels.dataset == "longvideobench":
                pad_options(list(question.options), f"{labels.path}: question {question.id}")
            elif labels.dataset in ANSWERED_BY_LETTER:
                check_letter(labels, question)
    except EvaluationError as error:
        return error.message
    return None
