"""The paper's table with our numbers, accuracy by group, and uniform frames against AKS question by question.

    python evaluation/tables.py results [more folders...] --output results/tables

Reads every run of lmms-eval in the folders (made with --log_samples), prints the tables, and with --output
writes them as tables.md, tables.csv (full precision) and tables.png. Of several runs with the same model,
checkpoint, task, frames and short_selection the newest full one counts; the others are named.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from anywhere

from aks import errors
from aks.errors import UserError
from aks.jsonio import read_json, write_atomically
from evaluation.results import (
    TASKS,
    Run,
    Sample,
    accuracy,
    find_results,
    format_table,
    group_samples,
    read_runs,
)

PUBLISHED = Path(__file__).with_name("published.json")
RESAMPLES, SEED = 10_000, 0
MAX_GROUPS = 40  # in the plot, all questions included
COLUMNS = (
    *("table", "model", "checkpoint", "frames", "short_selection", "benchmark", "grouping", "group"),
    *("n_uniform", "n_aks", "uniform", "aks", "difference", "low", "high", "resampled"),
    *("published_uniform", "published_aks", "uniform_minus_published", "aks_minus_published"),
    *("both_right", "only_uniform", "only_aks", "both_wrong", "mcnemar_p", "remarks"),
)
Record = dict[str, Any]  # some of COLUMNS


def parse_arguments() -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("results", nargs="+", help="results folders of lmms-eval, searched with sub-folders")
    parser.add_argument("--output", help="folder for tables.md, tables.csv and tables.png")
    return parser.parse_args()


def main() -> None:
    """Read all runs, print the tables, write the files."""
    args = parse_arguments()
    runs, notes = read_all(Path(place) for place in args.results)
    runs, left_out = newest(runs)
    published = read_json(PUBLISHED)
    papers = [row["lmms_eval_model"] for row in published["main"]["rows"]]  # first, in the paper's order
    comparisons = sorted(
        compare(runs),
        key=lambda pair: papers.index(pair.run.model) if pair.run.model in papers else len(papers),
    )
    notes += left_out + [note for comparison in comparisons for note in unmatched(comparison)]
    records = [
        *overall_records(comparisons, published),
        *(record for comparison in comparisons for record in group_records(comparison)),
        *(paired_record(comparison) for comparison in comparisons if comparison.common),
    ]
    text = markdown(records, published, notes)
    print(text, end="")
    if args.output:
        folder = Path(args.output)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be created: {error.strerror}; check --output") from None
        write_atomically(folder / "tables.md", lambda target: target.write_text(text, encoding="utf-8"))
        write_atomically(folder / "tables.csv", lambda target: write_csv(target, records))
        write_atomically(folder / "tables.png", lambda target: plot(target, records))
        print(f"\nwrote tables.md, tables.csv and tables.png to {folder}")


@dataclass(frozen=True)
class Comparison:
    """Uniform frames beside keyframes: one model, one benchmark, one number of frames. One may be missing."""

    uniform: Run | None
    aks: Run | None

    @property
    def run(self) -> Run:
        """Either of the two, for what they share."""
        run = self.aks or self.uniform
        assert run is not None
        return run

    @property
    def common(self) -> list[tuple[Sample, Sample]]:
        """The questions that both answered, in the order of the label file: (uniform, AKS)."""
        if self.uniform is None or self.aks is None:
            return []
        others = self.aks.samples
        return [(sample, others[id]) for id, sample in self.uniform.samples.items() if id in others]


def read_all(places: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Every run in the places, oldest first, and a line for each task that is passed over.

    Raises:
        UserError: a place without results, a bad file, or no run of a known task at all.
    """
    paths = {path.resolve(): path for place in places for path in find_results(place)}
    runs, notes = [], []
    for path in paths.values():
        found, unknown = read_runs(path)
        runs += found
        notes += [f"{path}: task {task} is not one of {', '.join(TASKS)}; passed over" for task in unknown]
    if not runs:
        raise UserError(f"no results of a known task: {'; '.join(notes) or 'the files hold none'}")
    return sorted(runs, key=lambda run: (run.date, str(run.path))), notes


def newest(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Of runs that measure the same the newest full one, else the newest; and a line for each left out."""
    kept: dict[tuple[Any, ...], Run] = {}
    notes = []
    for run in sorted(runs, key=lambda run: (run.limit is None, run.date, str(run.path))):
        key = (run.model, run.checkpoint, run.task, run.max_frames, run.use_topk, run.short_selection)
        older = kept.pop(key, None)
        kept[key] = run
        if older is None:
            continue
        why = "is newer" if run.limit == older.limit or run.limit is not None else "has no limit"
        note = f"{older.path}: left out for {run.path}, which {why}"
        if run.frames_digest != older.frames_digest:
            note += f" (other keyframes: {older.frames_digest} there, {run.frames_digest} here)"
        notes.append(note)
    return list(kept.values()), notes


def compare(runs: Sequence[Run]) -> list[Comparison]:
    """Each keyframe run beside the uniform run of its model, and uniform runs that are alone.

    Raises:
        UserError: the two were not asked the same questions.
    """

    def setup(run: Run) -> tuple[str, str, int, str]:
        return run.model, run.checkpoint or "", run.max_frames or 0, run.benchmark

    uniform = {setup(run): run for run in runs if not run.use_topk}
    pairs = [Comparison(uniform.get(setup(run)), run) for run in runs if run.use_topk]
    paired = {setup(pair.run) for pair in pairs}
    pairs += [Comparison(run, None) for key, run in uniform.items() if key not in paired]
    for pair in pairs:
        _check_same_questions(pair)
    return sorted(pairs, key=lambda pair: (*setup(pair.run), pair.run.short_selection == "paper"))


def _check_same_questions(comparison: Comparison) -> None:
    if comparison.uniform is not None and comparison.aks is not None and not comparison.common:
        raise UserError(
            f"{comparison.aks.path}: no question in common with {comparison.uniform.path}; "
            "compare runs on the same label file"
        )
    for uniform, aks in comparison.common:
        if (uniform.answer, uniform.groups) != (aks.answer, aks.groups):
            assert comparison.uniform is not None and comparison.aks is not None
            raise UserError(
                f"{comparison.aks.path}: question {aks.id}: answer {aks.answer}, groups "
                f"{', '.join(aks.groups.values())}; in {comparison.uniform.path} {uniform.answer}, "
                f"{', '.join(uniform.groups.values())}; compare runs on the same label file"
            )


def unmatched(comparison: Comparison) -> list[str]:
    """A line on the questions that only one of the two runs answered."""
    if comparison.uniform is None or comparison.aks is None:
        return []
    both = len(comparison.common)
    alone = [len(run.samples) - both for run in (comparison.uniform, comparison.aks)]
    if alone == [0, 0]:
        return []
    return [
        f"{_title(_record('paired', comparison.run))}: {both} questions are in both runs; "
        f"{alone[0]} only with uniform frames and {alone[1]} only with AKS are left out of the comparison"
    ]


def _label(model: str, checkpoint: str | None, short_selection: str | None) -> str:
    named = f"{model} ({checkpoint})" if checkpoint else model
    return f"{named}, short_selection=paper" if short_selection == "paper" else named


def mcnemar_p(only_first: int, only_second: int) -> float:
    """McNemar's exact two-sided test: how likely a split at least as uneven is if both were equally good.

    >>> mcnemar_p(1, 9)
    0.021484375

    Args:
        only_first: questions that only the first answered right.
        only_second: questions that only the second answered right.
    """
    n = only_first + only_second
    ways, tail = 1, 0  # binomial coefficients of n, in whole numbers: exact for thousands, too
    for k in range(min(only_first, only_second) + 1):
        tail += ways
        ways = ways * (n - k) // (k + 1)
    return min(1.0, 2 * tail / 2**n)


def bootstrap_interval(
    differences: Sequence[float] | np.ndarray, clusters: Sequence[str] | None = None
) -> tuple[float, float]:
    """Percentile bootstrap of a mean: its 95 % interval from 10,000 resamples with a fixed seed.

    Args:
        differences: one a question, (n,).
        clusters: each question's cluster (its video), which is resampled whole; None resamples questions.

    Returns:
        Lower and upper end, in the unit of ``differences``.
    """
    values = np.asarray(differences, dtype=np.float64)
    members = np.arange(len(values))
    if clusters is not None:
        members = np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums = np.stack([np.bincount(members, weights=values), np.bincount(members)])
    # Clusters of equal sum and size are interchangeable: draw how often each kind comes, which is quick.
    kinds, counts = np.unique(sums, axis=1, return_counts=True)
    drawn = np.random.default_rng(SEED).multinomial(sums.shape[1], counts / sums.shape[1], size=RESAMPLES)
    totals, sizes = (drawn @ kinds.T).T
    low, high = np.percentile(totals / sizes, [2.5, 97.5])
    return float(low), float(high)


def _difference(common: Sequence[tuple[Sample, Sample]]) -> Record:
    """AKS minus uniform on the same questions, in points, with its interval."""
    differences = [100 * (aks.correct - uniform.correct) for uniform, aks in common]
    videos = [uniform.video for uniform, _ in common if uniform.video is not None]
    clusters = videos if len(videos) == len(common) else None
    low, high = bootstrap_interval(differences, clusters)
    return {
        "difference": float(np.mean(differences)),
        "low": low,
        "high": high,
        "resampled": "questions" if clusters is None else "videos",
    }


def _record(table: str, run: Run) -> Record:
    return {
        "table": table,
        "model": run.model,
        "checkpoint": run.checkpoint,
        "frames": run.max_frames,
        "short_selection": run.short_selection,
        "benchmark": run.benchmark,
    }


def overall_records(comparisons: Sequence[Comparison], published: Record) -> list[Record]:
    """A record a comparison with the published numbers where the paper has them, the paper's rows first.

    A row of the paper that was not run has a record of its own without results.
    """
    records: list[Record] = []
    rest = list(comparisons)
    for row in published["main"]["rows"]:
        for key, benchmark in published["benchmarks"].items():
            place = (row["lmms_eval_model"], row["frames"], benchmark["name"])
            numbers = {f"published_{which}": row[key][which] for which in ("uniform", "aks")}
            here = [pair for pair in rest if _place(pair.run) == place]
            rest = [pair for pair in rest if _place(pair.run) != place]
            records += [_overall(pair, numbers, benchmark["questions"]) for pair in here]
            if not here:
                empty = dict(zip(("model", "frames", "benchmark"), place, strict=True))
                records.append({"table": "overall", **empty, **numbers})
    return records + [_overall(pair, {}, None) for pair in rest]


def _place(run: Run) -> tuple[str, int | None, str]:
    """What names a cell of the paper's table."""
    return run.model, run.max_frames, run.benchmark


def _overall(comparison: Comparison, numbers: Record, questions: int | None) -> Record:
    record = {**_record("overall", comparison.run), **numbers}
    for which, run in (("uniform", comparison.uniform), ("aks", comparison.aks)):
        if run is not None:
            record |= {which: run.accuracy, f"n_{which}": len(run.samples)}
            if numbers and not _remark(run, questions):
                record[f"{which}_minus_published"] = run.accuracy - numbers[f"published_{which}"]
    if comparison.common and len(comparison.common) == record["n_uniform"] == record["n_aks"]:
        record["difference"] = record["aks"] - record["uniform"]
    record["remarks"] = _remarks(comparison, questions)
    return record


def _remark(run: Run | None, questions: int | None) -> str:
    """Why a run's number is not the benchmark's; empty where it is."""
    if run is None:
        return ""
    if run.limit is not None:
        return f"limit {run.limit:g}, not comparable"
    if questions is not None and len(run.samples) != questions:
        return f"{len(run.samples)} of {questions} questions, not comparable"
    return ""


def _remarks(comparison: Comparison, questions: int | None = None) -> str:
    uniform, aks = (_remark(run, questions) for run in (comparison.uniform, comparison.aks))
    if uniform == aks:
        return uniform
    return "; ".join(f"{which}: {text}" for which, text in (("uniform", uniform), ("AKS", aks)) if text)


def group_records(comparison: Comparison) -> list[Record]:
    """Accuracy over all questions and by group; where both runs are there, on the questions of both."""
    common = comparison.common
    if common:
        uniform, aks = map(list, zip(*common, strict=True))
    else:
        uniform = list(comparison.uniform.samples.values()) if comparison.uniform else []
        aks = list(comparison.aks.samples.values()) if comparison.aks else []
    groups: list[tuple[str, str, list[Sample]]] = [("all", "", uniform or aks)]
    for grouping in (uniform or aks)[0].groups:
        members = group_samples(uniform or aks, grouping)
        if list(members) not in (["all"], ["-"]):  # one's own questions without groups
            groups += [(grouping, group, samples) for group, samples in members.items()]
    records = []
    for grouping, group, samples in groups:
        ids = {sample.id for sample in samples}
        record = {**_record("group", comparison.run), "grouping": grouping, "group": group}
        for which, answered in (("uniform", uniform), ("aks", aks)):
            if answered:
                answered = [sample for sample in answered if sample.id in ids]
                record |= {which: accuracy(answered), f"n_{which}": len(answered)}
        if common:
            record |= _difference([pair for pair in common if pair[0].id in ids])
        records.append(record | {"remarks": _remarks(comparison)})
    return records


def paired_record(comparison: Comparison) -> Record:
    """Uniform frames against AKS on the questions that both answered."""
    common = comparison.common
    counts = {
        name: sum((uniform.correct, aks.correct) == right for uniform, aks in common)
        for name, right in (
            ("both_right", (True, True)),
            ("only_uniform", (True, False)),
            ("only_aks", (False, True)),
            ("both_wrong", (False, False)),
        )
    }
    return {
        **_record("paired", comparison.run),
        **{"n_uniform": len(common), "n_aks": len(common)},
        **_difference(common),
        **counts,
        "mcnemar_p": mcnemar_p(counts["only_uniform"], counts["only_aks"]),
        "remarks": _remarks(comparison),
    }


def markdown(records: Sequence[Record], published: Record, notes: Sequence[str]) -> str:
    """All tables as markdown that is readable as plain text."""
    overall = [record for record in records if record["table"] == "overall"]
    others = [record for record in overall if "published_aks" not in record]
    parts = [
        "# Results",
        "## The paper's table\n\n"
        "Accuracy in percent, uniform frames -> AKS; difference: ours minus the paper's (arXiv 2502.21271).",
        _paper_table([record for record in overall if "published_aks" in record], published),
    ]
    if others:
        parts += ["Not in the paper; difference: AKS minus uniform, in points.", _other_table(others)]
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record["table"] == "group":
            groups.setdefault(_title(record), []).append(record)
    if groups:
        parts.append(
            "## By group\n\nOn the questions that both runs answered. "
            "Difference: AKS minus uniform, in points, with its 95 % bootstrap interval."
        )
    for title, members in groups.items():
        parts += [f"### {title}", _group_table(members)]
    paired = [record for record in records if record["table"] == "paired"]
    if paired:
        parts += [
            "## Uniform frames against AKS, question by question\n\n"
            f"Difference: AKS minus uniform, in points. Interval: 95 %, percentile bootstrap, {RESAMPLES:,} "
            "resamples of what the column says. p: McNemar's exact two-sided test.",
            _paired_table(paired),
        ]
    if notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def _title(record: Record) -> str:
    model = _label(record["model"], record.get("checkpoint"), record.get("short_selection"))
    return f"{model}, {record['benchmark']}, {_frames(record)} frames"


def _frames(record: Record) -> str:
    return str(record["frames"] or "default")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _signed(value: float | None) -> str:
    if value is None:
        return "-"
    return "0.0" if abs(value) < 0.05 else f"{value:+.1f}"


def _interval(record: Record) -> str:
    return "-" if "low" not in record else f"{_signed(record['low'])} to {_signed(record['high'])}"


def _arrow(first: str, second: str) -> str:
    return "-" if first == second == "-" else f"{first} -> {second}"


def _table(head: Sequence[str], rows: list[list[str]], left: int) -> str:
    """A table whose last column, remarks, is there only if there are any."""
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    return format_table(head, rows, left)


def _paper_table(records: Sequence[Record], published: Record) -> str:
    """The paper's rows; one has several lines where several checkpoints or short_selections were run."""
    benchmarks = {key: benchmark["name"] for key, benchmark in published["benchmarks"].items()}
    rows = []
    for row in published["main"]["rows"]:
        ran = [r for r in records if r["model"] == row["lmms_eval_model"] and "remarks" in r]
        for (checkpoint, short_selection), ours in _lines(ran).items():
            cells = [row["model"], checkpoint or "-", str(row["frames"])]
            remarks = ["short_selection=paper"] if short_selection == "paper" else []
            for key, name in benchmarks.items():
                record = ours.get(name, {})
                cells += [
                    _arrow(_percent(row[key]["uniform"]), _percent(row[key]["aks"])),
                    _arrow(_percent(record.get("uniform")), _percent(record.get("aks"))),
                    _arrow(
                        _signed(record.get("uniform_minus_published")),
                        _signed(record.get("aks_minus_published")),
                    ),
                ]
                if record.get("remarks"):
                    remarks.append(f"{name}: {record['remarks']}")
            rows.append([*cells, "; ".join(remarks)])
    head = ["model", "checkpoint", "frames"]
    for name in benchmarks.values():
        head += [f"{name}: paper", "ours", "difference"]
    return _table([*head, "remarks"], rows, left=2)


def _lines(records: Sequence[Record]) -> dict[tuple[str | None, str | None], dict[str, Record]]:
    """Checkpoint and short_selection to records by benchmark; an empty line where there are none.

    Where a benchmark was run with uniform frames only, they stand in the lines of the other's keyframes.
    """
    keys = [(r["checkpoint"], r["short_selection"]) for r in records if r["short_selection"]]
    with_keyframes = {checkpoint for checkpoint, _ in keys}
    keys += [(r["checkpoint"], None) for r in records if r["checkpoint"] not in with_keyframes]
    return {
        (checkpoint, short_selection): {
            r["benchmark"]: r
            for r in records
            if r["checkpoint"] == checkpoint and r["short_selection"] in (short_selection, None)
        }
        for checkpoint, short_selection in keys or [(None, None)]
    }


def _other_table(records: Sequence[Record]) -> str:
    rows = []
    for record in records:
        counts = dict.fromkeys(str(record[n]) for n in ("n_uniform", "n_aks") if n in record)
        rows.append(
            [
                _label(record["model"], record["checkpoint"], record["short_selection"]),
                record["benchmark"],
                _frames(record),
                " -> ".join(counts),
                _arrow(_percent(record.get("uniform")), _percent(record.get("aks"))),
                _signed(record.get("difference")),
                record["remarks"],
            ]
        )
    head = ["model", "benchmark", "frames", "questions", "uniform -> AKS", "difference", "remarks"]
    return _table(head, rows, left=2)


def _group_table(records: Sequence[Record]) -> str:
    rows = [
        [
            record["grouping"],
            record["group"],
            str(record.get("n_uniform", record.get("n_aks"))),
            _percent(record.get("uniform")),
            _percent(record.get("aks")),
            _signed(record.get("difference")),
            _interval(record),
            record["remarks"],
        ]
        for record in records
    ]
    head = ["grouping", "group", "questions", "uniform", "AKS", "difference", "95 % interval", "remarks"]
    return _table(head, rows, left=2)


def _paired_table(records: Sequence[Record]) -> str:
    rows = [
        [
            _label(record["model"], record["checkpoint"], record["short_selection"]),
            record["benchmark"],
            _frames(record),
            str(record["n_uniform"]),
            *(str(record[name]) for name in ("both_right", "only_uniform", "only_aks", "both_wrong")),
            _signed(record["difference"]),
            _interval(record),
            record["resampled"],
            f"{record['mcnemar_p']:.3g}" if record["mcnemar_p"] else "<1e-300",
            record["remarks"],
        ]
        for record in records
    ]
    head = ["model", "benchmark", "frames", "questions"]
    head += ["both right", "only uniform", "only AKS", "both wrong"]
    head += ["difference", "95 % interval", "resampled", "p", "remarks"]
    return _table(head, rows, left=2)


def write_csv(path: Path, records: Iterable[Record]) -> None:
    """All records in one table, full precision, empty where a column does not apply."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(records)


def plot(path: Path, records: Sequence[Record]) -> None:
    """Save accuracy and difference by duration group as PNG: two axes a comparison, two comparisons a line.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise UserError("the plot needs matplotlib; run: pip install -r requirements.txt") from None
    matplotlib.use("Agg")  # no screen is needed
    import matplotlib.pyplot as plt

    panels: dict[str, list[Record]] = {}
    for record in records:
        if record["table"] == "group" and record["grouping"] in ("all", "duration_group", "duration"):
            panels.setdefault(_title(record), []).append(record)
    paper = {_title(record): record for record in records if "published_aks" in record}
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    tallest = min(MAX_GROUPS, max(map(len, panels.values())))
    size = (8 * columns, 0.7 + lines * (1.2 + 0.4 * tallest))
    with plt.rc_context({"text.parse_math": False}):  # a group's name may hold dollar signs
        figure, axes = plt.subplots(
            lines,
            2 * columns,
            figsize=size,
            width_ratios=[3, 2] * columns,
            squeeze=False,
            layout="constrained",
        )
        pairs = axes.reshape(-1, 2)
        for (left, right), (title, members) in zip(pairs, panels.items(), strict=False):
            published = paper.get(title, {})
            if len(members) > MAX_GROUPS:
                title += f" (the first of {len(members) - 1} groups)"
            _plot_accuracy(left, title, members[:MAX_GROUPS], published)
            _plot_difference(right, members[:MAX_GROUPS], published)
        for axis in pairs[len(panels) :].flat:
            axis.set_axis_off()
        entries = [axis.get_legend_handles_labels() for axis in axes.flat]
        legend = {text: handle for entry in entries for handle, text in zip(*entry, strict=True)}
        figure.legend(legend.values(), legend.keys(), loc="outside upper left", ncols=len(legend), fontsize=9)
        figure.savefig(path, dpi=110)
    plt.close(figure)


def _plot_accuracy(axis: Any, title: str, records: Sequence[Record], paper: Record) -> None:
    """A line a group, all questions on top; the paper's numbers above them."""
    shown = {"uniform": ("0.45", "uniform frames"), "aks": ("tab:blue", "AKS")}
    for at, record in enumerate(records):
        ends = [record[which] for which in shown if which in record]
        axis.plot(ends, [at] * len(ends), color="0.8", lw=4, zorder=1)
        for which, (color, text) in shown.items():
            if which in record:
                axis.plot(record[which], at, "o", color=color, ms=8, zorder=2, label=text)
    for which, (color, text) in shown.items():
        if paper:
            value = paper[f"published_{which}"]
            axis.plot(value, -0.4, "v", color=color, mfc="none", ms=7, label=f"{text}, paper")
    axis.set_yticks(range(len(records)), [_group_label(record) for record in records], fontsize=9)
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_xlabel("accuracy (%)", fontsize=9)
    _finish(axis, len(records))


def _group_label(record: Record) -> str:
    group = record["group"] or "all"
    if record["benchmark"].startswith("LongVideoBench") and group.isdecimal():
        group = f"up to {group} s"  # its groups are called by their longest duration
    return f"{group} (n {record.get('n_uniform', record.get('n_aks'))})"


def _plot_difference(axis: Any, records: Sequence[Record], paper: Record) -> None:
    """A line a group: AKS minus uniform with its interval, beside zero; nothing where only one was run."""
    if "low" not in records[0]:
        axis.set_axis_off()
        return
    for at, record in enumerate(records):
        axis.plot([record["low"], record["high"]], [at, at], "|-", color="black", lw=1.2, ms=8)
        axis.plot(record["difference"], at, "D", color="black", ms=5, label="difference, 95 % interval")
    if paper:
        difference = paper["published_aks"] - paper["published_uniform"]
        axis.plot(difference, -0.4, "v", color="black", mfc="none", ms=7, label="difference, paper")
    axis.axvline(0, color="0.45", lw=1)
    axis.set_yticks([])
    axis.set_xlabel("AKS minus uniform (points)", fontsize=9)
    _finish(axis, len(records))


def _finish(axis: Any, count: int) -> None:
    """All lines in view, and at least ten points of accuracy: less would blow up noise."""
    low, high = axis.get_xlim()
    spare = max(0, 10 - (high - low)) / 2
    axis.set_xlim(low - spare, high + spare)
    axis.set_ylim(count - 0.5, -0.75)
    axis.tick_params(axis="x", labelsize=9)
    axis.grid(axis="x", color="0.92")
    axis.set_axisbelow(True)


if __name__ == "__main__":
    errors.run_main(main)
