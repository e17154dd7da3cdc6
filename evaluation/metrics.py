"""Which task and which metric each benchmark has, and how the metric's samples are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from aks.labels import DATASETS
from evaluation.scoring import longvideobench_letter, parse_options, videomme_letter


@dataclass(frozen=True)
class Sample:
    """One answered question."""

    id: str  # as in the label file
    correct: bool
    answer: str  # letter of the right option
    video: str | None  # its video's name; None where the samples do not name it
    groups: Mapping[str, tuple[str, ...]]  # grouping to the question's groups, most often one
    # Whether the answer is right by the rules of October 2024; None where the samples do not tell.
    correct_oct2024: bool | None = None


def accuracy(samples: Iterable[Sample]) -> float:
    """Share of right answers, in percent; of at least one sample."""
    correct = [sample.correct for sample in samples]
    return 100 * sum(correct) / len(correct)


def mlvu_average(samples: Iterable[Sample]) -> float:
    """MLVU's M-Avg: the mean of its seven tasks' accuracies, in percent.

    As in lmms-eval a task without questions counts as 0, so the first questions alone give less.
    """
    by_task: dict[str, list[Sample]] = {}
    for sample in samples:
        by_task.setdefault(sample.groups["task_type"][0], []).append(sample)
    return sum(map(accuracy, by_task.values())) / 7


@dataclass(frozen=True)
class Metric:
    """Where a benchmark's metric keeps what; the field of the right option's letter is always ``answer``."""

    name: str  # its key in the results and in every sample
    scale: float  # the recorded score if all questions are right
    id: str  # field of a sample's question id
    prediction: str  # field of the letter that was answered
    groupings: Mapping[str, str]  # name of a grouping to its field; the plot shows the first grouping
    # The letter by the rules of October 2024, of an answer, its prompt and its question's id, or None where
    # the prompt does not tell the options; None for a benchmark that the paper does not have.
    letter_oct2024: Callable[[str, str, str], str | None] | None = None
    video: str | None = None  # field of the video's name; None where samples do not name it
    video_in_id: bool = False  # whether a question's id is its video's name, _ and a number
    score: Callable[[Iterable[Sample]], float] = accuracy  # what is recorded, in percent
    # Other scores by which the benchmark is known, as lmms-eval records them in percent: title to key.
    own_scores: Mapping[str, str] = field(default_factory=dict)


def _longvideobench_letter(answer: str, prompt: str, question_id: str) -> str | None:
    options = parse_options(prompt)
    return longvideobench_letter(answer, options, question_id) if options else None


LVB_GROUPINGS = {name: name for name in ("duration_group", "question_category")}
LVB_ACC = Metric("lvb_acc", 1, "id", "parsed_pred", LVB_GROUPINGS, _longvideobench_letter)
LVB_ACC_BY_VIDEO = dataclasses.replace(LVB_ACC, video_in_id=True)
VIDEOMME_SCORE = Metric(
    "videomme_perception_score",
    100,
    "question_id",
    "pred_answer",
    {
        "duration": "duration",
        "domain": "category",
        "sub_category": "sub_category",
        "task_category": "task_category",
    },
    lambda answer, prompt, question_id: videomme_letter(answer),
    video="videoID",
)
LVBENCH_SCORE = Metric(
    "lvbench_score",
    1,
    "id",
    "pred_answer",
    {"question_type": "question_type", "video_type": "video_type"},
    video="video",
)
MLVU_SCORE = Metric(
    "mlvu_percetion_score",  # upstream's spelling
    100,
    "id",
    "pred_answer",
    {"task_type": "task_type"},
    video="video",
    score=mlvu_average,
    own_scores={"M-Avg": "mlvu_percetion_score"},
)
VIDEOMME_V2_ACC = Metric(
    "videomme_v2_overall_acc",
    100,
    "question_id",
    "pred_answer",
    {name: name for name in ("level", "group_type", "second_head", "third_head")},
    video="video_id",
    own_scores={
        f"group score, {part.replace('_', ' ')}": f"videomme_v2_{part}_score"
        for part in ("overall", "relevance", "logic", "level_1", "level_2", "level_3")
    },
)

# The task that shows a data set's videos; datasets/<name>/ has it.
DATASET_TASKS = {name: f"{name}_aks" for name in DATASETS} | {"longvideobench": "longvideobench_val_v_aks"}
# Each task's benchmark and metric; a data set without an entry of its own is scored like LongVideoBench.
# lmms-eval's own tasks are not among them, because their prompts can differ from those of the tasks here.
TASKS = {task: (name, LVB_ACC) for name, task in DATASET_TASKS.items()} | {
    "longvideobench_val_v_aks": ("LongVideoBench", LVB_ACC_BY_VIDEO),
    "longvideobench_val_i_uni": ("LongVideoBench, pictures and subtitles", LVB_ACC_BY_VIDEO),
    "longvideobench_val_i_aks": ("LongVideoBench, pictures and subtitles", LVB_ACC_BY_VIDEO),
    "videomme_aks": ("VideoMME", VIDEOMME_SCORE),
    "videomme_w_subtitle_aks": ("VideoMME with subtitles", VIDEOMME_SCORE),
    "lvbench_aks": ("LVBench", LVBENCH_SCORE),
    "mlvu_aks": ("MLVU", MLVU_SCORE),
    "videomme_v2_aks": ("Video-MME-v2", VIDEOMME_V2_ACC),
}
