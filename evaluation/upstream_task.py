"""Tasks that are lmms-eval's own but for their label file: its settings, and documents that it can score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lmms_eval
from lmms_eval.utils import load_yaml_config
from loguru import logger

from evaluation.errors import EvaluationError
from evaluation.task import labels_to_evaluate


def upstream_config(name: str) -> dict[str, Any]:
    """The configuration of a task of lmms-eval's, its functions included.

    Args:
        name: its file among lmms-eval's tasks, such as ``mlvu/mlvu_dev.yaml``.

    Raises:
        EvaluationError: the installed version has no such task.
    """
    path = Path(lmms_eval.__file__).parent / "tasks" / name
    if not path.is_file():
        raise EvaluationError(f"lmms-eval {version('lmms_eval')} has no {name}; install a newer version")
    return load_yaml_config(str(path))


def process_docs(dataset: str, config: Mapping[str, Any]) -> Callable[[Any], Any]:
    """A task's ``process_docs``: its documents are the label entries, one a question.

    They are checked by a trial of the configuration's scoring and aggregation, with an empty answer to each
    question: in an evaluation these come last, and lmms-eval's fail at groups that they do not know.
    """
    metric = config["metric_list"][0]

    def score(entries: Sequence[Mapping[str, Any]]) -> None:
        metric["aggregation"]([config["process_results"](entry, [""])[metric["metric"]] for entry in entries])

    def checked_entries(loaded: Any) -> Any:
        labels = labels_to_evaluate(dataset)
        logger.disable("")  # upstream tells every score
        try:
            for job in labels.jobs:
                index = job.questions[0].index
                where = f"{labels.path}: entry {index} and all of its video {job.name}"
                score([labels.entries[question.index] for question in job.questions])
            where = str(labels.path)
            score(labels.entries)
        except Exception as error:  # whatever upstream's code raises at what it does not expect
            raise EvaluationError(
                f"{where}: lmms-eval cannot score it: {type(error).__name__}: {error}"
            ) from None
        finally:
            logger.enable("")
        return type(loaded).from_list(labels.entries)

    return checked_entries
