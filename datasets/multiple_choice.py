"""lmms-eval's own prompt, scoring and aggregation of LongVideoBench, which ``multiple_choice`` names."""

from lmms_eval.tasks.longvideobench.utils import (  # noqa: F401
    longvideobench_aggregate_results,
    longvideobench_doc_to_text,
    longvideobench_process_results,
)
