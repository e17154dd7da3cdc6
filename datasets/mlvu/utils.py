"""MLVU on a local label file; prompt and scoring are lmms-eval's own."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evaluation import task, upstream_task

upstream = upstream_task.upstream_config("mlvu/mlvu_dev.yaml")
dataset_kwargs = task.dataset_kwargs("mlvu", "test")
metadata = task.metadata("mlvu")
process_docs = upstream_task.process_docs("mlvu", upstream)
doc_to_text = upstream["doc_to_text"]
generation_kwargs = upstream["generation_kwargs"]
prompt_settings = upstream["lmms_eval_specific_kwargs"]
metric_list = upstream["metric_list"]


def doc_to_visual(doc: Mapping[str, Any]) -> list[str]:
    """The video's path; the model chooses the frames."""
    return [task.video_path("mlvu", doc)]


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Upstream's sample with the video, and an id in place of the question, which others may share."""
    (sample,) = upstream["process_results"](doc, results).values()
    return {"mlvu_percetion_score": {**sample, "id": doc["question_id"], "video": doc["video_name"]}}
