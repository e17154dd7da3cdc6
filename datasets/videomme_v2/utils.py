"""Video-MME-v2 on a local label file; prompt and scoring are lmms-eval's own."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evaluation import task, upstream_task

upstream = upstream_task.upstream_config("videomme_v2/videomme_v2.yaml")
dataset_kwargs = task.dataset_kwargs("videomme_v2", "test")
metadata = task.metadata("videomme_v2")
process_docs = upstream_task.process_docs("videomme_v2", upstream)
doc_to_text = upstream["doc_to_text"]
generation_kwargs = upstream["generation_kwargs"]
prompt_settings = upstream["lmms_eval_specific_kwargs"]
process_results = upstream["process_results"]
metric_list = upstream["metric_list"]


def doc_to_visual(doc: Mapping[str, Any]) -> list[str]:
    """The video's path; the model chooses the frames."""
    return [task.video_path("videomme_v2", doc)]
