"""A table of the paper's ablations, from scores to accuracy beside the published figures.

    python evaluation/reproduce.py depth_threshold --dataset longvideobench
    python evaluation/reproduce.py selections

Tables: strategies, scorers, candidate_rates, depth_threshold; ``selections`` writes the keyframes of all of
them and asks no model. Settings are those that fit the published figures (--preset paper): LongVideoBench t1
0.2 and depth 4, VideoMME t1 0.8 and depth 5, with the released quotas and their refill of short selections.
Where that quota leaves no frames, a cell takes the full one and is marked.

What is missing is listed first, each thing once. A question is asked once for each different list of frames,
however many cells show it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from anywhere

from aks import errors
from aks.arguments import ArgumentParser, at_least
from aks.commands.flags import given_settings
from aks.errors import UserError
from aks.jsonio import make_folder, read_json, write_csv, write_json, writing_to
from aks.labels import DATASETS, LabelSet, load_labels
from aks.plots import plot_grid
from aks.presets import PAPER, PRESETS, preset_settings
from aks.score_lists import read_scores
from aks.selection import QUOTAS, check_settings
from evaluation.evaluator import read_newest, results_files
from evaluation.grids import FRAMES, GRIDS, Cell, DistinctQuestions, Setting, cells_of
from evaluation.markdown_tables import format_table
from evaluation.preflight import check_checkpoint, check_videos, collect_problem
from evaluation.run import MODELS, OPTIONS

ROOT = Path(__file__).resolve().parent.parent
SEPARATOR = "#"  # between a question's id and the digest of its frames


def parse_arguments() -> argparse.Namespace:
    """The command's flags."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("table", choices=(*GRIDS, "selections"), help="which table to make")
    data = parser.add_argument_group("input")
    data.add_argument("--dataset", nargs="+", choices=PAPER, default=list(PAPER), help="(default: both)")
    data.add_argument(
        "--outscores", type=Path, default=Path("outscores"), help="scores, as step 1 writes them"
    )
    data.add_argument("--labels", help="label file, with one --dataset (default: the data set's own)")
    data.add_argument("--videos", help="folder of the videos, with one --dataset")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model", choices=MODELS, default="llava_vid", help="(default: the paper's, llava_vid)"
    )
    model.add_argument("--checkpoint", help="weights (default: the model's folder in ./checkpoints)")
    model.add_argument("--model_args", help="more model arguments for lmms-eval, comma-separated")
    model.add_argument("--gpus", type=at_least(0), help="how many GPUs, 0 for the CPU (default: all)")
    selection = parser.add_argument_group("selection")
    selection.add_argument(
        "--preset", choices=PRESETS, default="paper", help="default: frame_select.py's; flags below win"
    )
    selection.add_argument("--t1", type=float, help="as of frame_select.py (default: the preset's)")
    selection.add_argument("--all_depth", type=int, help="as of frame_select.py (default: the preset's)")
    selection.add_argument("--quota", choices=QUOTAS, help="as of frame_select.py (default: the preset's)")
    selection.add_argument(
        "--short_selection",
        choices=("paper", "strict"),
        default="paper",
        help="strict shows short selections as they are, paper refills them",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("results/reproduce"), help="folder for answers and tables"
    )
    parser.add_argument("--limit", type=at_least(1), help="only the first questions, for a try")
    parser.add_argument("--check_only", action="store_true", help="list what is missing and stop")
    args = parser.parse_args()
    if len(args.dataset) > 1 and (args.labels or args.videos):
        raise UserError("--labels and --videos belong to one data set; name it with --dataset")
    try:
        check_settings(1, **given_settings(args))
    except ValueError as error:
        raise UserError(f"reproduce.py: {error} (see --help)") from None
    return args


def score_file(args: argparse.Namespace, dataset: str, scorer: str) -> Path:
    """Where a scorer's scores lie."""
    return args.outscores / dataset / scorer / "scores.json"


def list_missing(
    args: argparse.Namespace, cells: Mapping[str, Sequence[Cell]]
) -> tuple[dict[str, LabelSet], list[str]]:
    """The label files that are there, and a line for each missing thing, with what it is missing for."""
    labels, problems = {}, []
    for dataset, of_dataset in cells.items():
        scorers: dict[str, set[str]] = {}
        for cell in of_dataset:
            if cell.setting.scorer:
                scorers.setdefault(cell.setting.scorer, set()).add(cell.grid)
        for scorer, grids in scorers.items():
            path = score_file(args, dataset, scorer)
            missing = [file for file in (path, path.with_name("frames.json")) if not file.is_file()]
            if missing:
                problems.append(
                    f"{missing[0]}: file not found, for {', '.join(sorted(grids))}; make it: python "
                    f"feature_extract.py --dataset_name {dataset} --extract_feature_model {scorer}"
                )
        if args.table == "selections":
            continue
        with collect_problem(problems):
            labels[dataset] = load_labels(dataset, None, args.labels)
            problems += check_videos(labels[dataset], args.videos, args.limit)
    model = MODELS[args.model]
    if args.table != "selections" and model.checkpoints:
        args.checkpoint = args.checkpoint or model.find_checkpoint()
        problems += check_checkpoint(args.model, args.checkpoint, args.gpus or 0)
    return labels, problems


def select_all(
    args: argparse.Namespace, dataset: str, settings: Sequence[Setting]
) -> dict[Setting, list[list[int]]]:
    """Every setting's keyframes, also written to ``<output>/selections/<dataset>/<setting>/``."""
    selected = {}
    for scorer in dict.fromkeys(setting.scorer for setting in settings if setting.scorer):
        path = score_file(args, dataset, scorer)
        if not path.is_file():
            continue
        scores, frames = read_scores(path, path.with_name("frames.json"))
        for setting in settings:
            if setting.scorer == scorer:
                rows = selected[setting] = setting.select(scores, frames)
                folder = args.output / "selections" / dataset / setting.name
                with writing_to(folder):
                    folder.mkdir(parents=True, exist_ok=True)
                write_json(folder / "selection.json", {"max_num_frames": setting.frames, **vars(setting)})
                write_json(folder / "selected_frames.json", rows)
    return selected


def ask(
    args: argparse.Namespace, labels: LabelSet, name: str, frames: int, asked: DistinctQuestions | None
) -> list[bool]:
    """Whether the model answers each question right: every one of ``asked``, or all on uniform frames.

    Raises:
        UserError: the evaluation fails; its own messages stand above.
    """
    folder = args.output / args.model / f"{labels.dataset}_{name}_{frames}"
    key = DATASETS[labels.dataset].id
    if asked is None:
        questions = labels.entries[: args.limit]
    else:
        questions = [
            {**labels.entries[source], key: f"{labels.entries[source][key]}{SEPARATOR}{digest}"}
            for source, digest in zip(asked.sources, asked.digests, strict=True)
        ]
    command = ["--model", args.model, "--dataset", labels.dataset, "--output", str(folder)]
    command += ["--labels", str(folder / "questions.json"), "--max_frames", str(frames)]
    command += ["--frames", "uni" if asked is None else "aks"]
    if asked is not None:
        command += ["--selection", str(folder / "selected_frames.json")]
        command += ["--short_selection", args.short_selection]
    command += ["--videos", args.videos or str(labels.video_root)]
    for flag in ("checkpoint", "gpus"):
        if (value := getattr(args, flag)) is not None:
            command += [f"--{flag}", str(value)]
    # One cache of answers for all tables: a question with the same frames is not asked again.
    answers = f"answers={args.output / args.model / 'answers'}"
    command += ["--model_args", ",".join(filter(None, [answers, args.model_args]))]

    inputs = json.dumps([questions, asked and asked.rows]).encode()
    record = {"command": command, "inputs_sha256": hashlib.sha256(inputs).hexdigest()}
    done = folder / "evaluated.json"  # what the newest results there are of
    if not (done.is_file() and read_json(done) == record and results_files(folder)):
        with writing_to(folder):
            folder.mkdir(parents=True, exist_ok=True)
            done.unlink(missing_ok=True)
        write_json(folder / "questions.json", questions)
        if asked is not None:
            write_json(folder / "selected_frames.json", asked.rows)
            write_json(folder / "selection.json", {"max_num_frames": frames})
        # run.py's settings are the flags alone: a variable such as LIMIT would change what is asked.
        env = {name: value for name, value in os.environ.items() if name.lower() not in OPTIONS}
        script = [sys.executable, str(ROOT / "evaluation/run.py"), *command]
        if subprocess.run(script, env=env).returncode:
            raise UserError(f"{folder}: the evaluation failed, see above; the same command goes on")
        write_json(done, record)
    (run,) = read_newest(folder, len(questions))
    return [run.samples[str(question[key])].correct for question in questions]


def evaluate_cells(
    args: argparse.Namespace,
    labels: LabelSet,
    cells: Sequence[Cell],
    selected: Mapping[Setting, list[list[int]]],
) -> dict[Setting, float]:
    """Accuracy in percent of every setting, one evaluation for each number of frames."""
    limit = min(args.limit or len(labels.questions), len(labels.questions))
    for setting, rows in selected.items():
        if len(rows) != len(labels.questions):
            raise UserError(
                f"{score_file(args, labels.dataset, setting.scorer)}: {len(rows)} questions, {labels.path} "
                f"has {len(labels.questions)}; both must be of the same label file"
            )
    found: dict[Setting, float] = {}
    for frames in dict.fromkeys(cell.setting.frames for cell in cells):
        asked = DistinctQuestions(frames, refill=args.short_selection == "paper")
        of_frames = [setting for setting in selected if setting.frames == frames]
        for setting in of_frames:
            asked.add(setting, selected[setting][:limit])
        if of_frames:
            print(
                f"{labels.dataset}, {frames} frames: {len(of_frames)} selections of {limit:,} questions are "
                f"{asked.num_questions:,}; {len(asked.rows):,} differ and are asked "
                f"({100 * len(asked.rows) / asked.num_questions:.0f} %)",
                flush=True,
            )
            correct = ask(args, labels, args.table, frames, asked)
            found |= {setting: asked.accuracy(setting, correct) for setting in of_frames}
        uniform = Setting(frames, None)
        if any(cell.setting == uniform for cell in cells):
            correct = ask(args, labels, "uniform", frames, None)
            found[uniform] = 100 * float(np.mean(correct))
    return found


def report(args: argparse.Namespace, records: Sequence[Mapping[str, Any]]) -> None:
    """Print the table and write it as CSV."""
    titles = list(dict.fromkeys(name for record in records for name in record))
    formats = {"paper": "{:.1f}", "ours": "{:.1f}", "difference": "{:+.1f}"}
    rows = [
        [formats.get(title, "{}").format(record[title]) if title in record else "" for title in titles]
        for record in records
    ]
    print(format_table(titles, rows))
    path = args.output / f"{args.table}_{args.model}.csv"
    write_csv(path, titles, records)
    print(f"wrote {path}")
    if args.table == "depth_threshold":
        plot_depth_threshold(path.with_suffix(".png"), records)


def plot_depth_threshold(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Draw the table's figures: for each benchmark the paper's, ours and their difference."""
    depths, thresholds = (sorted({record[name] for record in records}) for name in ("depth", "threshold"))
    panels = {}
    for dataset in dict.fromkeys(record["benchmark"] for record in records):
        cells = {(r["depth"], r["threshold"]): r for r in records if r["benchmark"] == dataset}
        for column in ("paper", "ours", "difference"):
            panels[f"{dataset}: {column}"] = np.array(
                [[cells[depth, t1].get(column, np.nan) for t1 in thresholds] for depth in depths]
            )
    plot_grid(path, panels, depths, thresholds, "{:.1f}")
    print(f"wrote {path}")


@errors.when_interrupted("finished answers are kept, the same command goes on with the others")
def main() -> int:
    """Select, ask, print."""
    args = parse_arguments()
    grids = GRIDS if args.table == "selections" else (args.table,)
    changes = given_settings(args)
    cells = {
        dataset: [cell for grid in grids for cell in cells_of(grid, dataset, changes, args.preset)]
        for dataset in args.dataset
    }
    for dataset in args.dataset:
        settings = preset_settings(args.preset, dataset, FRAMES, changes)
        print(
            f"{dataset}: preset {args.preset}, t1 {settings['t1']}, depth {settings['max_depth']}, "
            f"quota {settings['quota']}, short selections: {args.short_selection}"
        )
    labels, problems = list_missing(args, cells)
    for problem in problems:
        print(f"missing: {problem}", file=sys.stderr)
    if args.check_only:
        print("nothing is missing" if not problems else f"{len(problems)} things are missing")
        return int(bool(problems))
    scores_alone = args.table == "selections" or all(
        "scores.json" in p or "frames.json" in p for p in problems
    )
    if problems and not scores_alone:
        raise UserError(f"{len(problems)} things are missing (above); nothing was evaluated")
    make_folder(args.output, "--output")

    records = []
    for dataset, of_dataset in cells.items():
        settings = list(dict.fromkeys(cell.setting for cell in of_dataset))
        selected = select_all(args, dataset, settings)
        if args.table == "selections":
            print(f"{dataset}: {len(selected)} selections in {args.output / 'selections' / dataset}")
            continue
        accuracies = evaluate_cells(args, labels[dataset], of_dataset, selected)
        for cell in of_dataset:
            record: dict[str, Any] = {"benchmark": dataset, **cell.fields, "paper": cell.published}
            if cell.setting in accuracies:
                ours = accuracies[cell.setting]
                record |= {"ours": round(ours, 2), "difference": round(ours - cell.published, 2)}
            records.append({**record, "remark": cell.remark})
    if records:
        report(args, records)
    return int(bool(problems))


if __name__ == "__main__":
    errors.run_main(main)
