"""Converts Video-MME-v2's official parquet to videomme_v2.json, the label file that feature_extract.py reads.

    python datasets/videomme_v2/make_labels.py test.parquet
    python datasets/videomme_v2/make_labels.py test.parquet --output labels.json

Needs pyarrow (requirements-dev.txt). The file is that of MME-Benchmarks/Video-MME-v2.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # started as a script from anywhere
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from parquet_labels import convert

from aks import errors

# What lmms-eval's task reads. The last four sort the questions into groups, for the benchmark's own score.
COLUMNS = (
    "video_id",
    "question_id",
    "question",
    "options",
    "answer",
    "group_type",
    "group_structure",
    "level",
    "second_head",
    "third_head",
)

if __name__ == "__main__":
    output = Path(__file__).with_name("videomme_v2.json")
    errors.run_main(lambda: convert(__doc__, output, COLUMNS, video="video_id", optional=COLUMNS[-4:]))
