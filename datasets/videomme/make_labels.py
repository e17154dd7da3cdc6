"""Converts VideoMME's official parquet to videomme.json, the label file that feature_extract.py reads.

    python datasets/videomme/make_labels.py test-00000-of-00001.parquet
    python datasets/videomme/make_labels.py test-00000-of-00001.parquet --output labels.json

Needs pyarrow (requirements-dev.txt). The file is that of lmms-lab/Video-MME.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # started as a script from anywhere
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from parquet_labels import convert

from aks import errors

# In the order of the published label file.
COLUMNS = (
    "video_id",
    "duration",
    "domain",
    "sub_category",
    "url",
    "videoID",
    "question_id",
    "task_type",
    "question",
    "options",
    "answer",
)


if __name__ == "__main__":
    output = Path(__file__).with_name("videomme.json")
    errors.run_main(lambda: convert(__doc__, output, COLUMNS, video="videoID", lists=["options"]))
