"""A run as one HTML page: relevance curves, segments, keyframes and their pictures, and the evidence.

With --pictures the page stays small, and a later report of the same videos reads no picture again.

    %(prog)s --dataset_name custom --label_file labels.json \\
        --selected_frames selected_frames/custom/conse/selected_frames.json
    %(prog)s --dataset_name longvideobench --output lvb/report.html --pictures lvb/pictures \\
        --selected_frames selected_frames/longvideobench/blip/selected_frames.json
"""

from __future__ import annotations

import argparse
import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np

from aks import errors
from aks.arguments import ArgumentParser, at_least
from aks.cli import add_dataset_flags, add_log_flags
from aks.console import configure_logging, progress
from aks.evidence import has_evidence
from aks.jsonio import read_json
from aks.labels import LabelSet, load_labels
from aks.recall import Recall, recall_table
from aks.report.page import Summary, check_page, picture_notes, write_page
from aks.report.questions import ReportedQuestion, report_question
from aks.report.thumbnails import read_thumbnails
from aks.score_lists import check_frame_numbers, infer_stride, read_candidate_times, read_scores
from aks.selected_frames import check_count, file_beside, read_lists

logger = logging.getLogger("aks.report")

SETTINGS = ("ratio", "t1", "t2", "max_depth", "quota")


def parse_arguments() -> argparse.Namespace:
    """The command's flags."""
    parser = ArgumentParser(__doc__)
    source = parser.add_argument_group("run")
    source.add_argument("--selected_frames", type=Path, required=True, metavar="FILE", help="a selection")
    source.add_argument(
        "--score_path",
        type=Path,
        help="(default: ./outscores/<dataset_name>/<the selection's folder>/scores.json)",
    )
    source.add_argument("--frame_path", type=Path, help="(default: frames.json beside the scores)")
    add_dataset_flags(parser)
    page = parser.add_argument_group("page")
    page.add_argument("--output", type=Path, default=Path("report.html"), metavar="FILE", help="the page")
    page.add_argument(
        "--pictures",
        type=Path,
        metavar="DIR",
        help="put the pictures there, where a later report finds them, in place of into the page",
    )
    page.add_argument(
        "--max_pictures",
        type=at_least(0),
        metavar="N",
        help="pictures a question, its best keyframes (default: all; in the page as many as fit)",
    )
    add_log_flags(parser)
    return parser.parse_args()


def main() -> None:
    """Read the run, then its videos, and write the page."""
    args = parse_arguments()
    configure_logging(args.log_level)
    check_page(args.output, "--output")
    labels = load_labels(args.dataset_name, args.dataset_path, args.label_file)
    folder = args.selected_frames.absolute().parent.name
    score_path = args.score_path or Path("outscores") / args.dataset_name / folder / "scores.json"
    frame_path = args.frame_path or score_path.with_name("frames.json")
    selected = check_frame_numbers(args.selected_frames, read_lists(args.selected_frames, labels))
    record = _read_record(args.selected_frames, score_path)
    reported = _read_run(args, labels, selected, record, score_path, frame_path)
    budget = record.get("max_num_frames") or max(map(len, selected), default=0)
    thumbnails = read_thumbnails(reported, args.output, args.pictures, args.max_pictures)
    remedy = "--pictures DIR has room for all" if args.max_pictures is None else "--max_pictures sets it"
    summary = Summary(
        title=f"Keyframes of {labels.dataset if labels.dataset != 'custom' else labels.path.name}",
        facts=_facts(labels, record, selected, budget),
        recall=_recall(labels, reported, budget),
        notes=picture_notes(thumbnails, reported, remedy) + _notes(reported, record, frame_path),
    )
    write_page(args.output, summary, reported, thumbnails)
    print(
        f"wrote {args.output}: {len(reported)} questions, {len(thumbnails.by_frame)} pictures, "
        f"{args.output.stat().st_size / 1e6:.1f} MB"
    )
    if thumbnails.failures:
        video, reason = next(iter(thumbnails.failures.items()))
        print(f"no pictures of {len(thumbnails.failures)} videos, such as {video}: {reason}")


def _read_record(selection: Path, score_path: Path) -> dict[str, Any]:
    """What frame_select.py wrote down of the selection; empty for one from elsewhere.

    Raises:
        UserError: the selection was made by other scores.
    """
    if (path := file_beside(selection, "selection.json")) is None:
        return {}
    record = read_json(path)
    if not isinstance(record, dict):
        raise errors.UserError(f"{path}: holds no record of a selection; run frame_select.py again")
    if digest := record.get("scores_sha256"):
        try:
            is_same = hashlib.sha256(score_path.read_bytes()).hexdigest() == digest
        except OSError as error:
            raise errors.UserError(
                f"{score_path}: cannot be read: {error.strerror}; --score_path names the scores"
            ) from None
        if not is_same:
            raise errors.UserError(
                f"{selection}: was selected by other scores than {score_path}; --score_path names them"
            )
    return record


def _read_run(
    args: argparse.Namespace,
    labels: LabelSet,
    selected: list[np.ndarray],
    record: dict[str, Any],
    score_path: Path,
    frame_path: Path,
) -> list[ReportedQuestion]:
    """Each question with its candidates and keyframes.

    Raises:
        UserError: the files do not belong together.
    """
    scores, frames = read_scores(score_path, frame_path)
    check_count(score_path, scores, labels)
    times = read_candidate_times(frame_path, frames)
    rule = None
    if "strategy" in record and "max_num_frames" in record:
        rule = {"budget": record["max_num_frames"], "strategy": record["strategy"]}
        rule |= {name: record[name] for name in SETTINGS if name in record}
    paths = {job.name: job.path for job in labels.jobs}
    reported = []
    rows = progress(iterable=labels.questions, unit="question", desc="questions", delay=2)
    for index, question in enumerate(rows):
        # Without recorded times a second is one candidate, as for recall.
        times_s = times[index] if times else frames[index] / (infer_stride(frames[index]) or 1)
        try:
            reported.append(
                report_question(
                    question,
                    paths[question.video],
                    frames[index],
                    times_s,
                    scores[index],
                    selected[index],
                    rule,
                )
            )
        except ValueError as error:
            raise errors.UserError(
                f"{args.selected_frames}: entry {index} ({question.id}): {error} of {frame_path}; "
                "--score_path and --frame_path name those of the selection"
            ) from None
    return reported


def _facts(
    labels: LabelSet, record: dict[str, Any], selected: list[np.ndarray], budget: int
) -> dict[str, Any]:
    facts = {
        "questions": f"{len(labels.questions):,}",
        "videos": f"{len(labels.jobs):,}",
        "keyframes": f"{sum(map(len, selected)):,}, at most {budget} a question",
    }
    origin = record.get("scored_by")
    if scorer := origin.get("scorer") if isinstance(origin, dict) else record.get("scorer"):
        facts["scorer"] = scorer
    if "strategy" in record:
        settings = [f"{name} {record[name]}" for name in SETTINGS if name in record]
        settings += [f"{name} {value}" for name, value in (record.get("options") or {}).items()]
        facts["rule"] = f"{record['strategy']} ({', '.join(settings)})"
    if places := sum(map(has_evidence, labels.questions)):
        facts["questions with evidence"] = f"{places:,}"
    return facts


def _recall(labels: LabelSet, reported: list[ReportedQuestion], budget: int) -> list[Recall]:
    """The table of ``aks recall``; empty where no question can be measured."""
    keyframes = [row.frame_indices[row.positions] for row in reported]
    times_s = [row.times_s[row.positions] for row in reported]
    strides = [infer_stride(row.frame_indices) for row in reported]
    try:
        rows, _ = recall_table(labels.questions, keyframes, budget, strides=strides, times_s=times_s)
    except ValueError:  # no question has evidence, which the page shows by itself
        return []
    return rows


def _notes(reported: list[ReportedQuestion], record: dict[str, Any], frame_path: Path) -> list[str]:
    notes = []
    if not frame_path.with_name("times.json").exists():
        notes.append("times by one candidate a second, as the scores came without times")
    if "strategy" not in record:
        notes.append("no segments: how the frames were selected is not recorded beside them")
    if unscored := sum(not len(row.times_s) for row in reported):
        notes.append(f"{unscored:,} questions have no scores: their videos failed")
    return notes


if __name__ == "__main__":
    errors.run_main(main)
