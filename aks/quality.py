"""The quality of selections, measured without a language model, side by side and with intervals.

    %(prog)s --dataset_name longvideobench --selected_frames aks=chosen.json top=top.json
    %(prog)s --dataset_name custom --label_file labels.json --selected_frames aks=chosen.json --output quality

Relevance, where labels say where the evidence is: recall (the share of the evidence with a selected frame
within a tolerance), precision (the share of selected frames near evidence), and how often every one of
several places is found. Coverage: the largest part of the video without a frame, and how even the gaps are.
Redundancy, with ``--features``: how alike the selected frames are.
Each value comes with a 95 % bootstrap interval over videos, each selection with its difference from uniform
sampling, or from ``--reference``, on the same questions.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aks import errors
from aks.arguments import ArgumentParser, at_least
from aks.bootstrap import VideoBootstrap
from aks.cli import add_dataset_flags
from aks.console import progress
from aks.evidence import TOLERANCES_S, evidence_distances, found_within, group_order, has_evidence
from aks.jsonio import make_folder, write_csv
from aks.labels import Question, load_labels
from aks.plots import plot_recall
from aks.redundancy import measure_redundancy
from aks.selected_frames import (
    SelectedFrames,
    read_selection,
    read_strides,
    uniform_selection,
    with_strides,
)

UNIFORM = "uniform"
MEASURES = ("recall", "all places", "precision", "largest gap", "evenness")  # in the order of the table


def gaps_of(times_s: np.ndarray, duration_s: float) -> np.ndarray:
    """The parts of a video between its selected frames, its start and its end, as shares of it, (n + 1,)."""
    edges = np.concatenate([[0.0], np.clip(times_s, 0, duration_s), [duration_s]])
    return np.diff(edges) / duration_s


def evenness_of(gaps: np.ndarray) -> float:
    """The entropy of the gaps as a share of the greatest possible: 1 where all are equal, 0 for a single one.

    Source: Pielou, "The measurement of diversity in different types of biological collections", 1966.
    """
    shares = gaps[gaps > 0]
    return float(-(shares * np.log(shares)).sum() / np.log(len(gaps))) if len(gaps) > 1 else 0.0


def measure(question: Question, selected: SelectedFrames, tolerances_s: Sequence[float]) -> dict[str, float]:
    """Every measure of one question's selection; those that it has no labels for are left out."""
    values: dict[str, float] = {}
    if pairs := evidence_distances(question, selected):
        for tolerance_s in tolerances_s:
            found = found_within(pairs, tolerance_s)
            values[f"recall within {tolerance_s:g} s"] = float(found.mean())
            if len(found) > 1:
                values[f"all places within {tolerance_s:g} s"] = float(found.all())
        near = found_within(pairs, tolerances_s[0], axis=0)
        values[f"precision within {tolerances_s[0]:g} s"] = float(near.mean()) if len(near) else 0.0
    if question.duration_s and np.isfinite(selected.times_s).all():
        gaps = gaps_of(selected.times_s, question.duration_s)
        values["largest gap"] = float(gaps.max())
        values["evenness"] = evenness_of(gaps)
    return values


def measure_all(
    questions: Sequence[Question], selection: Sequence[SelectedFrames], tolerances_s: Sequence[float]
) -> dict[str, np.ndarray]:
    """Each measure of every question, (len(questions),) float64; NaN where a question has none."""
    rows = [
        measure(question, selected, tolerances_s)
        for question, selected in zip(questions, selection, strict=True)
    ]
    names = dict.fromkeys(name for row in rows for name in row)
    order = sorted(
        names, key=lambda name: [k for k, prefix in enumerate(MEASURES) if name.startswith(prefix)]
    )
    return {name: np.array([row.get(name, np.nan) for row in rows]) for name in order}


def groupings_of(questions: Sequence[Question]) -> dict[str, list[str]]:
    """Each question's group and category, where there are several of them."""
    names = {name: [getattr(question, name) for question in questions] for name in ("group", "category")}
    return {name: groups for name, groups in names.items() if len(set(groups)) > 1}


def compare(
    questions: Sequence[Question],
    measured: dict[str, dict[str, np.ndarray]],
    reference: str,
    groupings: dict[str, Sequence[str]],
) -> list[dict[str, Any]]:
    """A record for each group, measure and selection.

    Args:
        questions: of the label file.
        measured: by selection what :func:`measure_all` gives.
        reference: the selection that the others are compared with.
        groupings: by name each question's group; a group ``all`` of all questions is added.

    Returns:
        ``grouping``, ``group``, ``measure``, ``selection``, ``questions``, ``videos``, ``value`` with ``low``
        and ``high``, and but for the reference ``difference``, ``difference_low`` and ``difference_high``.
    """
    videos = np.array([question.video for question in questions])
    groups = {("all", "all"): np.ones(len(questions), dtype=bool)}
    for grouping, names in groupings.items():
        for name in sorted(set(names), key=group_order):
            groups[grouping, name] = np.array([other == name for other in names])
    records, none = [], np.full(len(questions), np.nan)
    bar = progress(iterable=groups.items(), total=len(groups), unit="group", desc="intervals", delay=1)
    for (grouping, group), is_in in bar:
        resamples: dict[bytes, VideoBootstrap] = {}  # by the questions asked, which most measures share
        for name in measured[reference]:
            values = {selection: rows.get(name, none) for selection, rows in measured.items()}
            asked = is_in & np.all([np.isfinite(row) for row in values.values()], axis=0)
            if not asked.any():
                continue
            key = asked.tobytes()
            resamples[key] = bootstrap = resamples.get(key) or VideoBootstrap(videos[asked].tolist())
            for selection, row in values.items():
                low, high = bootstrap.interval(row[asked])
                record = {"grouping": grouping, "group": group, "measure": name, "selection": selection}
                record |= {"questions": int(asked.sum()), "videos": len(set(videos[asked]))}
                record |= {"value": float(row[asked].mean()), "low": low, "high": high}
                if selection != reference:
                    difference = row[asked] - values[reference][asked]
                    low, high = bootstrap.interval(difference)
                    record |= {"difference": float(difference.mean())}
                    record |= {"difference_low": low, "difference_high": high}
                records.append(record)
    return records


def format_records(records: Sequence[dict[str, Any]], reference: str) -> str:
    """The records as text: a table a group of equal questions, a line a measure and selection."""
    lines, heading = [], None
    width = max(len(record["selection"]) for record in records)
    for record in records:
        # Measures of one group may be of different questions, as not all of them have every label.
        if [record[key] for key in ("grouping", "group", "questions", "videos")] != heading:
            heading = [record[key] for key in ("grouping", "group", "questions", "videos")]
            name = "all questions" if heading[0] == "all" else f"{heading[0]} {heading[1]}"
            lines += ["", f"{name} ({record['questions']} questions, {record['videos']} videos)"]
        value = f"{record['value']:.3f} [{record['low']:.3f}, {record['high']:.3f}]"
        line = f"  {record['measure']:24}  {record['selection']:{width}}  {value}"
        if "difference" in record:
            ends = f"[{record['difference_low']:+.3f}, {record['difference_high']:+.3f}]"
            line += f"  {record['difference']:+.3f} {ends} against {reference}"
        lines.append(line)
    return "\n".join(lines[1:])


def parse_arguments() -> argparse.Namespace:
    """The command's flags."""
    parser = ArgumentParser(__doc__)
    source = parser.add_argument_group("what to compare")
    source.add_argument(
        "--selected_frames", nargs="+", required=True, metavar="NAME=FILE", help="selections to compare"
    )
    source.add_argument("--frame_path", help="frames.json of step 1: states each video's stride")
    source.add_argument("--features", type=Path, help="folder of stored features: how alike frames are")
    add_dataset_flags(parser)
    measure = parser.add_argument_group("measures")
    measure.add_argument("--reference", help="the selection that others are compared with (default: uniform)")
    measure.add_argument(
        "--max_num_frames", type=at_least(1), help="uniform's budget (default: the longest list)"
    )
    measure.add_argument(
        "--tolerances", type=at_least(0, float), nargs="+", default=list(TOLERANCES_S), help="in seconds"
    )
    parser.add_argument("--output", type=Path, help="folder for quality.csv and recall.png")
    return parser.parse_args()


def main() -> None:
    """Measure the selections, print the table, write the files."""
    args = parse_arguments()
    labels = load_labels(args.dataset_name, args.dataset_path, args.label_file)
    files: dict[str, Path] = {}
    for text in args.selected_frames:
        name, equals, file = text.partition("=")
        if not equals or not name or not file:
            raise errors.UserError(
                f"--selected_frames {text}: use NAME=FILE, such as aks=selected_frames.json"
            )
        if name in files or name == UNIFORM:
            raise errors.UserError(f"--selected_frames {text}: the name {name} is taken; choose another")
        files[name] = Path(file)
    recorded = [read_strides(args.frame_path, path, labels) for path in files.values()]
    # The stride is the video's: where a selection's is recorded, none is guessed.
    known = [max(of_question) for of_question in zip(*filter(None, recorded), strict=True)]
    selections = {name: read_selection(path, labels, known) for name, path in files.items()}
    budget = args.max_num_frames or max(len(row.frames) for rows in selections.values() for row in rows)
    strides = [
        max(rows[question.index].stride for rows in selections.values()) for question in labels.questions
    ]
    selections = {name: with_strides(rows, strides) for name, rows in selections.items()}
    unknown = sum(
        not all(evidence_distances(question, rows[question.index]) for rows in selections.values())
        for question in labels.questions
        if has_evidence(question)
    )
    if unknown:
        print(f"{unknown} questions left out: too few frames to tell the stride; give --frame_path")
    if not known and any(question.evidence_frames for question in labels.questions):
        print("candidate strides are guessed from the selected frames; --frame_path states them")
    if uniform := uniform_selection(labels, strides, budget):
        selections = {UNIFORM: uniform, **selections}
    else:
        print("uniform needs the label file to state every video's duration in seconds")
    reference = args.reference or next(iter(selections))
    if reference not in selections:
        raise errors.UserError(f"--reference {reference}: use one of {', '.join(selections)}")
    measured = {
        name: measure_all(labels.questions, rows, args.tolerances) for name, rows in selections.items()
    }
    if args.features:
        frames = {name: [row.frames for row in rows] for name, rows in selections.items()}
        redundancy = measure_redundancy(args.features, labels, frames, take_nearest=[UNIFORM])
        for name, values in redundancy.items():
            measured[name]["redundancy"] = values
        if left_out := int(np.isnan(list(redundancy.values())).any(axis=0).sum()):
            print(f"redundancy: {left_out} questions left out: fewer than two frames, or some are not stored")
    if not measured[reference]:
        raise errors.UserError(f"{labels.path}: neither evidence nor durations; nothing can be measured")
    groupings = groupings_of(labels.questions)
    records = compare(labels.questions, measured, reference, groupings)
    if not records:
        raise errors.UserError(f"{labels.path}: nothing can be measured without strides; give --frame_path")
    print(format_records(records, reference))
    if args.output:
        make_folder(args.output, "--output")
        write_csv(args.output / "quality.csv", max(records, key=len), records)
        if any(record["measure"].startswith("recall") for record in records):
            plot_recall(args.output / "recall.png", labels, selections)


if __name__ == "__main__":
    errors.run_main(main)
