"""Report one run of lmms-eval by group, or say that it did not end with results.

    python evaluation/evaluator.py --results results/llava_vid/videomme_aks_64 --questions 2700
    python evaluation/evaluator.py --results results/qwen2_vl/longvideobench_uni_32

lmms-eval ends with status 0 even when it failed. This ends with 1 unless there is a results file whose
samples are complete and give the score that it records.
"""

from __future__ import annotations

if __name__.startswith("lmms_eval."):
    raise SystemExit(
        f"error: {__file__} is a file of Adaptive Keyframe Sampling; it does not replace lmms-eval's. "
        "Get that back (git checkout, or pip install --force-reinstall --no-deps lmms-eval==VERSION), then "
        "run evaluation/swap_in.py install in the project"
    )

import sys
from collections.abc import Collection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from anywhere

from aks import errors
from aks.arguments import ArgumentParser
from aks.errors import UserError
from evaluation.markdown_tables import format_table
from evaluation.metrics import TASKS, accuracy
from evaluation.results import RESULTS, EvalRun, read_runs
from evaluation.samples import group_samples


def main() -> int:
    """Print the report and return 0, or one line and 1."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--results", required=True, help="lmms-eval's --output_path; the newest run counts")
    parser.add_argument("--questions", type=int, help="how many questions it should have answered")
    args = parser.parse_args()
    return evaluate(Path(args.results), args.questions)


def evaluate(folder: Path, questions: int | None = None, known: Collection[Path] = ()) -> int:
    """Print the report of a folder's newest run and return 0, or one line and 1; see :func:`read_newest`."""
    try:
        runs = read_newest(folder, questions, known)
    except UserError as error:  # the run failed, not the command
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n\n".join(map(format_summary, runs)))
    return 0


def results_files(folder: Path) -> set[Path]:
    """The results files that lmms-eval has written to a folder; none where there is no folder."""
    return set(folder.rglob(f"*{RESULTS}"))


def read_newest(folder: Path, questions: int | None = None, known: Collection[Path] = ()) -> list[EvalRun]:
    """The runs in a folder's newest results file, one a task.

    Args:
        folder: where lmms-eval wrote them.
        questions: how many samples there should be; None for as many as the results file says.
        known: files that were there before the run and do not count. Their times would not tell them apart,
            because the file server's clock may differ from this machine's.

    Raises:
        UserError: no such file, or it does not hold what it should.
    """
    written = results_files(folder).difference(known)
    if not written:
        raise UserError(
            f"{folder}: the run wrote no results file there; lmms-eval's log above says why "
            "(it ends with status 0 all the same)"
        )
    path = max(written, key=lambda path: (path.stat().st_mtime, path.name))
    runs, others = read_runs(path)
    if not runs:
        raise UserError(f"{path}: no results of {', '.join(TASKS)}, but of {', '.join(others) or 'nothing'}")
    for run in runs:
        if questions is not None and len(run.samples) != questions:
            raise UserError(
                f"{path}: {len(run.samples)} questions of {run.task} were answered, not {questions}; "
                "lmms-eval's log above says why"
            )
    return runs


def format_summary(run: EvalRun) -> str:
    """Accuracy over all questions and by group, for people."""
    rows = [
        (grouping, group, str(len(members)), f"{accuracy(members):.2f}")
        for grouping, group, members in group_samples(list(run.samples.values()))
    ]
    frames = f"keyframes ({run.short_selection})" if run.use_topk else "uniform frames"
    limit = "" if run.limit is None else f", limit {run.limit:g}: not comparable"
    title = f"{run.model} on {run.benchmark}, {frames}, at most {run.max_frames or '?'}{limit}"
    table = format_table(("grouping", "group", "questions", "accuracy"), rows, left=2)
    own = "".join(f"\n{title}: {score:.2f}" for title, score in run.own_scores.items())
    return f"{title}\n{run.path}\n\n{table}" + (f"\n{own}" if own else "")


if __name__ == "__main__":
    errors.run_main(main)
