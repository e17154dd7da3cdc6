"""The paper's main table: every row whose inputs are there, and then the tables.

    bash evaluation/scripts/reproduce_table1.sh
    bash evaluation/scripts/reproduce_table1.sh --model llava_vid --check_only

What is missing is listed first, each thing once with the rows that need it; --check_only stops there. A row
that lacks something is left out, finished rows stay, and a row that was cut goes on. LIMIT, GPUS, MODEL_ARGS
and SHORT_SELECTION are taken from the environment, as of evaluation/run.py.
"""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from anywhere

from aks import errors
from aks.arguments import ArgumentParser
from aks.errors import UserError
from aks.presets import PAPER
from evaluation import run
from evaluation.preflight import check_inputs

FOLDER = Path(__file__).resolve().parent
MODELS = ("qwen2_vl", "llava_onevision", "llava_vid")  # the paper's
Row = tuple[str, str, str]
# They differ from row to row, so that a variable cannot mean all.
OF_A_ROW = (
    "MODEL",
    "DATASET",
    "FRAMES",
    "OUTPUT",
    "CHECKPOINT",
    "SELECTION",
    "MAX_FRAMES",
    "LABELS",
    "VIDEOS",
)


def name_rows(rows: Sequence[Row], all_rows: Sequence[Row]) -> str:
    """Rows by what they have in common, where they are all that have it; else one by one."""
    columns = [set(column) for column in zip(*rows, strict=True)]
    if len(rows) != math.prod(map(len, columns)):
        return ", ".join(map(" ".join, rows))
    everything = [set(column) for column in zip(*all_rows, strict=True)]
    common = [
        " and ".join(sorted(column))
        for column, known in zip(columns, everything, strict=True)
        if column != known
    ]
    return ", ".join(common) or "all rows"


@errors.when_interrupted("finished rows and answers are kept, the same command goes on with the others")
def main() -> int:
    """List what is missing, run the rows, print the tables."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--results", default=os.environ.get("RESULTS") or "./results", help="folder for them")
    parser.add_argument(
        "--model", nargs="+", choices=run.MODELS, default=MODELS, help="(default: the paper's three)"
    )
    parser.add_argument("--check_only", action="store_true", help="list what is missing and stop")
    args = parser.parse_args()
    for name in OF_A_ROW:
        os.environ.pop(name, None)
    os.environ.setdefault("SHORT_SELECTION", "paper")  # the released quota leaves short selections

    # Where the script of this row alone also writes, so that neither asks again what the other has asked.
    commands: dict[Row, list[str]] = {
        row: ["--model", row[0], "--dataset", row[1], "--frames", row[2], "--results", args.results]
        for row in itertools.product(args.model, PAPER, ("uni", "aks"))
    }
    rows = list(commands)
    missing: dict[str, list[Row]] = {}
    ready = []
    for row, command in commands.items():
        settings = run.parse_arguments(command, quiet=row != rows[0])
        *_, problems = check_inputs(settings, run.MODELS[row[0]].package)
        for problem in problems:
            missing.setdefault(problem, []).append(row)
        if not problems:
            ready.append(row)
    for problem, lacking in missing.items():
        print(f"missing: {problem} (for {name_rows(lacking, rows)})", file=sys.stderr)
    if missing:
        print("flags named above are of evaluation/run.py, which runs a row alone", file=sys.stderr)
    print(
        f"{len(ready)} of {len(rows)} rows can run: {', '.join(map(' '.join, ready)) or 'none'}", flush=True
    )
    if args.check_only:
        return int(bool(missing))
    if not ready:
        raise UserError("no row can be evaluated; see above")

    finished = 0
    for row in ready:
        print(f"== {', '.join(row)}", flush=True)
        finished += not subprocess.run([sys.executable, str(FOLDER / "run.py"), *commands[row]]).returncode
    if not finished:
        raise UserError("no row was evaluated; see above")
    tables = [str(FOLDER / "tables.py"), args.results, "--output", f"{args.results}/tables"]
    status = subprocess.run([sys.executable, *tables]).returncode
    return int(bool(status) or finished < len(rows))


if __name__ == "__main__":
    errors.run_main(main)
