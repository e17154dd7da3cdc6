"""Say which frames VideoMME's subtitles belong to: sets frame_num and use_topk in include_frame_idx.json.

    python evaluation/insert_frame_num.py --frame_num 64 --use_topk True
    python evaluation/insert_frame_num.py --frame_num 32 --use_topk False --path ./merged.json

Only the task videomme_w_subtitle_aks reads them. The evaluation refuses a model that shows other frames.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from anywhere

from aks import errors
from aks.arguments import ArgumentParser
from aks.entries import read_entries
from aks.errors import UserError
from aks.jsonio import write_json


def main() -> None:
    """Set the two fields in every entry; the file is replaced whole."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--frame_num", type=int, default=64, help="frames a question is shown (default 64)")
    parser.add_argument("--use_topk", default="False", help="True: the keyframes, False: uniform frames")
    parser.add_argument(
        "--path", default="./datasets/videomme/include_frame_idx.json", help="the merged label file"
    )
    args = parser.parse_args()
    if args.frame_num < 1:
        raise UserError(f"--frame_num {args.frame_num}: must be 1 or more")
    if args.use_topk.lower() not in ("true", "false"):
        raise UserError(f"--use_topk {args.use_topk}: use True or False")
    path = Path(args.path)
    if not path.is_file():
        raise UserError(f"{path}: file not found; make it with evaluation/change_score.py")
    entries = read_entries(path)
    use_topk = args.use_topk.lower() == "true"
    write_json(path, [{**entry, "frame_num": args.frame_num, "use_topk": use_topk} for entry in entries])
    print(f"{path}: {len(entries)} entries, frame_num {args.frame_num}, use_topk {use_topk}")


if __name__ == "__main__":
    errors.run_main(main)
