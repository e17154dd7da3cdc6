"""LVBench on a local label file; prompt and scoring are lmms-eval's own."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lmms_eval.api.metrics import mean
from lmms_eval.tasks.lvbench.utils import extract_characters_regex

from evaluation import task, upstream_task

upstream = upstream_task.upstream_config("lvbench/lvbench.yaml")
dataset_kwargs = task.dataset_kwargs("lvbench", "test")
metadata = task.metadata("lvbench")
doc_to_text = upstream["doc_to_text"]
generation_kwargs = upstream["generation_kwargs"]
prompt_settings = upstream["lmms_eval_specific_kwargs"]


def doc_to_visual(doc: Mapping[str, Any]) -> list[str]:
    """The video's path; the model chooses the frames."""
    return [task.video_path("lvbench", doc)]


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Upstream's score, with what the tables by group need; upstream has the score alone."""
    (score,) = upstream["process_results"](doc, results).values()
    sample = {
        "id": str(doc["uid"]),
        "video": doc["key"],
        "video_type": doc["type"],
        "question_type": doc["question_type"],
        "pred_answer": extract_characters_regex(results[0]),
        "answer": doc["answer"],
        "score": score,
    }
    return {"lvbench_score": sample}


def aggregate(samples: Sequence[Mapping[str, Any]]) -> float:
    """The share of right answers, upstream's mean."""
    return mean([sample["score"] for sample in samples])


metric_list = [{"metric": "lvbench_score", "aggregation": aggregate, "higher_is_better": True}]
process_docs = upstream_task.process_docs(
    "lvbench", {"process_results": process_results, "metric_list": metric_list}
)
