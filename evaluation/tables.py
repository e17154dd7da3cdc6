"""The paper's table with our numbers, accuracy by group, and uniform frames against AKS question by question.

    python evaluation/tables.py results --output results/tables
    python evaluation/tables.py results other/results --scoring oct2024

Reads every run of lmms-eval in the folders (made with --log_samples), prints the tables, and with --output
writes them as tables.md, tables.csv (full precision) and tables.png. Of several runs with the same model,
checkpoint, implementation, task, frames and short_selection the newest full one counts; the others are named.
The paper's figures were scored by lmms-eval's rules of October 2024: --scoring oct2024 scores all tables so,
by default the paper's table has both.
Keyframes of one implementation of LLaVA are not compared with uniform frames of the other.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from anywhere

from aks import errors
from aks.arguments import ArgumentParser
from aks.jsonio import make_folder, read_json, write_atomically, write_csv
from evaluation.markdown_tables import Record, markdown
from evaluation.metrics import accuracy
from evaluation.plots import plot
from evaluation.results import EvalRun, read_folders
from evaluation.samples import group_samples
from evaluation.scoring import CURRENT, SCORINGS
from evaluation.significance import (
    Comparison,
    latest_runs,
    mcnemar_p,
    pair_runs,
    paired_difference,
    unpaired_notes,
)

PUBLISHED = Path(__file__).with_name("published.json")
COLUMNS = (
    *("table", "model", "implementation", "checkpoint", "frames", "short_selection"),
    *("benchmark", "grouping", "group"),
    *("n_uniform", "n_aks", "uniform", "aks", "difference", "low", "high", "resampled"),
    *("published_uniform", "published_aks", "uniform_minus_published", "aks_minus_published"),
    *("scoring", "uniform_oct2024", "aks_oct2024"),
    *("both_right", "only_uniform", "only_aks", "both_wrong", "mcnemar_p", "remarks"),
)


def main() -> None:
    """Read all runs, print the tables, write the files."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("results", nargs="+", help="results folders of lmms-eval, searched with sub-folders")
    parser.add_argument("--output", help="folder for tables.md, tables.csv and tables.png")
    parser.add_argument(
        "--scoring",
        default=CURRENT,
        choices=SCORINGS,
        help="which letter an answer counts as: by today's lmms-eval, or by that of October 2024 (current)",
    )
    args = parser.parse_args()
    runs, notes = read_folders(map(Path, args.results))
    runs, left_out = latest_runs(runs)
    runs = [run.scored_as(args.scoring) for run in runs]
    published = read_json(PUBLISHED)
    paper_models = [row["lmms_eval_model"] for row in published["main"]["rows"]]
    comparisons = sorted(  # the paper's models first, in its order; the sort keeps pair_runs' order otherwise
        pair_runs(runs), key=lambda pair: [*paper_models, pair.run.model].index(pair.run.model)
    )
    notes += left_out + unpaired_notes(comparisons)
    notes += [note for comparison in comparisons for note in unmatched_note(comparison)]
    records = [
        *overall_records(comparisons, published),
        *(record for comparison in comparisons for record in own_score_records(comparison)),
        *(record for comparison in comparisons for record in group_records(comparison)),
        *(paired_record(comparison) for comparison in comparisons if comparison.is_paired),
    ]
    for record in records:
        record["scoring"] = args.scoring
    text = markdown(records, published, notes, args.scoring)
    print(text, end="")
    if args.output:
        folder = Path(args.output)
        make_folder(folder, "--output")
        write_atomically(folder / "tables.md", lambda path: path.write_text(text, encoding="utf-8"))
        write_csv(folder / "tables.csv", COLUMNS, records)
        plot(folder / "tables.png", records)
        print(f"\nwrote tables.md, tables.csv and tables.png to {folder}")


def unmatched_note(comparison: Comparison) -> list[str]:
    """A note on the questions that only one of the two runs answered, if there are any."""
    both = len(comparison.question_ids)
    alone = [len(run.samples) - both for run in comparison.runs.values()]
    if not any(alone):
        return []
    return [
        f"{comparison.run.title}: {both} questions are in both runs; "
        f"{alone[0]} only with uniform frames and {alone[1]} only with AKS are left out of the comparison"
    ]


def overall_records(comparisons: Sequence[Comparison], published: Record) -> list[Record]:
    """A record a comparison, the paper's rows first and with the published numbers.

    A row of the paper that was not run has a record without results.
    """
    records: list[Record] = []
    paper_cells = set()
    for row in published["main"]["rows"]:
        for key, benchmark in published["benchmarks"].items():
            model, frames, name = cell = (row["lmms_eval_model"], row["frames"], benchmark["name"])
            paper_cells.add(cell)
            numbers = {f"published_{which}": row[key][which] for which in ("uniform", "aks")}
            ran = [pair for pair in comparisons if _table_cell(pair.run) == cell]
            records += [_overall_record(pair, numbers, benchmark["questions"]) for pair in ran]
            if not ran:
                setup = {"table": "overall", "model": model, "frames": frames, "benchmark": name}
                records.append(setup | numbers)
    others = [pair for pair in comparisons if _table_cell(pair.run) not in paper_cells]
    return records + [_overall_record(pair, {}, None) for pair in others]


def _table_cell(run: EvalRun) -> tuple[str, int | None, str]:
    """What names a cell of the paper's table."""
    return run.model, run.max_frames, run.benchmark


def _overall_record(comparison: Comparison, published: Record, num_questions: int | None) -> Record:
    record = {**_setup_columns("overall", comparison.run), **published}
    for which, run in comparison.runs.items():
        record |= {which: run.accuracy, f"n_{which}": len(run.samples)}
        record[f"{which}_oct2024"] = run.accuracy_oct2024
        if published and not _remark(run, num_questions):
            record[f"{which}_minus_published"] = run.accuracy - published[f"published_{which}"]
    if comparison.is_paired and len(comparison.question_ids) == record["n_uniform"] == record["n_aks"]:
        record["difference"] = record["aks"] - record["uniform"]
    return record | {"remarks": _remarks(comparison, num_questions)}


def _setup_columns(table: str, run: EvalRun) -> Record:
    return {
        "table": table,
        "model": run.model,
        "implementation": run.implementation,
        "checkpoint": run.checkpoint,
        "frames": run.max_frames,
        "short_selection": run.short_selection,
        "benchmark": run.benchmark,
        "label": run.label,
        "title": run.title,
    }


def _remark(run: EvalRun, num_questions: int | None) -> str:
    """Why a run's accuracy is not the benchmark's; empty where it is."""
    if run.limit is not None:
        return f"limit {run.limit:g}, not comparable"
    if num_questions is not None and len(run.samples) != num_questions:
        return f"{len(run.samples)} of {num_questions} questions, not comparable"
    return ""


def _remarks(comparison: Comparison, num_questions: int | None = None) -> str:
    """The remarks on both runs, once where they are the same."""
    remarks = {which: _remark(run, num_questions) for which, run in comparison.runs.items()}
    if comparison.is_paired and len(set(remarks.values())) == 1:
        return remarks["aks"]
    named = [f"{which.replace('aks', 'AKS')}: {text}" for which, text in remarks.items() if text]
    return "; ".join(named)


def own_score_records(comparison: Comparison) -> list[Record]:
    """A record for each of the scores of the benchmark's own, over all questions of each run."""
    records = []
    for title in comparison.run.own_scores:
        record = {**_setup_columns("score", comparison.run), "group": title}
        for which, run in comparison.runs.items():
            record |= {which: run.own_scores[title], f"n_{which}": len(run.samples)}
        if comparison.is_paired:
            record["difference"] = record["aks"] - record["uniform"]
        records.append(record | {"remarks": _remarks(comparison)})
    return records


def group_records(comparison: Comparison) -> list[Record]:
    """Accuracy over all questions and by group; where both runs are there, on the questions of both."""
    samples = [comparison.run.samples[id] for id in comparison.question_ids]
    records = []
    for grouping, group, members in group_samples(samples):
        if group in ("all", "-") and len(members) == len(samples):  # one's own questions without groups
            continue
        ids = [sample.id for sample in members]
        record = {**_setup_columns("group", comparison.run), "grouping": grouping, "group": group}
        for which, run in comparison.runs.items():
            record |= {which: accuracy(run.samples[id] for id in ids), f"n_{which}": len(ids)}
        if comparison.is_paired:
            record |= paired_difference(comparison, ids)
        records.append(record | {"remarks": _remarks(comparison)})
    return records


def paired_record(comparison: Comparison) -> Record:
    """Uniform frames against AKS on the questions that both runs answered."""
    ids = comparison.question_ids
    uniform, aks = ([run.samples[id].correct for id in ids] for run in comparison.runs.values())
    outcomes = list(zip(uniform, aks, strict=True))
    only_uniform, only_aks = outcomes.count((True, False)), outcomes.count((False, True))
    return {
        **_setup_columns("paired", comparison.run),
        **{"n_uniform": len(ids), "n_aks": len(ids)},
        **paired_difference(comparison, ids),
        "both_right": outcomes.count((True, True)),
        "only_uniform": only_uniform,
        "only_aks": only_aks,
        "both_wrong": outcomes.count((False, False)),
        "mcnemar_p": mcnemar_p(only_uniform, only_aks),
        "remarks": _remarks(comparison),
    }


if __name__ == "__main__":
    errors.run_main(main)
