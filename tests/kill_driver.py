"""Runs extraction again and again in child processes and kills them; started by test_extraction.py.

The scorer is loaded once and forked, so that a kill costs no new start. Arguments: label file, folder
for the scores, number of kills, seed. Prints one JSON line per child: its parts before and after.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

torch.set_num_threads(1)  # no thread pool exists when the children are forked

from aks.benchmarks import load_labels  # noqa: E402
from aks.extraction import extract  # noqa: E402
from aks.outscores import RunFolder  # noqa: E402
from aks.scorers import create_scorer  # noqa: E402


def parts(run: RunFolder) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in run.parts.glob("[!.]*.json")}


def main() -> None:
    label_file, folder, kills, seed = sys.argv[1:]
    rng = random.Random(int(seed))
    labels = load_labels("custom", label_file=label_file)
    scorer = create_scorer("conse")
    run = RunFolder(Path(folder))
    reach = 1.0
    for _ in range(int(kills)):
        before = parts(run)
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            extract(labels, scorer, run)
            os._exit(0)
        time.sleep(rng.uniform(0, reach))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status)
        if not killed:  # it had finished: kill sooner next time
            reach = max(0.05, (time.monotonic() - began) / 2)
        print(json.dumps({"killed": killed, "before": before, "after": parts(run)}), flush=True)
        if not killed:
            for path in list(run.parts.iterdir())[::2]:  # make work again
                path.unlink()


if __name__ == "__main__":
    main()
