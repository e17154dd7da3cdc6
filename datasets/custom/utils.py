"""One's own multiple-choice questions."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evaluation import task

dataset_kwargs = task.dataset_kwargs("custom", "test")
metadata = task.metadata("custom")
process_docs = task.multiple_choice_docs("custom")


def doc_to_visual(doc: Mapping[str, Any]) -> list[str]:
    """The video's path; the model chooses the frames."""
    return [task.video_path("custom", doc)]
