"""Step 2: relevance scores to keyframes, by the paper's recursive relevance / coverage split.

Reads scores.json and frames.json, ours or anybody's in the reference's format, and writes
selected_frames.json (ascending frame numbers, a list per question) under
<output_file>/<dataset_name>/<extract_feature_model>/, with selection.json beside it recording how.

    %(prog)s --dataset_name longvideobench --extract_feature_model blip --max_num_frames 64
    %(prog)s --score_path scores.json --frame_path frames.json --strategy top --max_num_frames 16
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # products of matrices are few and small: no threads

import numpy as np

from aks import errors
from aks.arguments import ArgumentParser
from aks.commands.flags import add_selection_flags, given_settings, parse_options
from aks.jsonio import make_folder, read_json, write_json, writing_to
from aks.presets import PRESETS, preset_settings
from aks.score_lists import infer_stride, read_candidate_times, read_scores
from aks.selection import options_of, select_positions


def parse_arguments() -> argparse.Namespace:
    """The documented flags with the reference's defaults, and ours."""
    parser = ArgumentParser(__doc__)
    source = parser.add_argument_group("scores")
    source.add_argument("--dataset_name", default="longvideobench", help="names the output folder")
    source.add_argument("--extract_feature_model", default="blip", help="names the output folder")
    source.add_argument("--score_path", help="(default: ./outscores/<dataset_name>/<model>/scores.json)")
    source.add_argument("--frame_path", help="(default: frames.json beside the scores)")
    selection = parser.add_argument_group("selection")
    selection.add_argument("--max_num_frames", type=int, default=64, help="budget: keyframes a question")
    selection.add_argument("--ratio", type=int, default=1, help="use every ratio-th candidate")
    selection.add_argument(
        "--preset",
        default="default",
        choices=PRESETS,
        help="paper: t1, depth and quota that fit the paper's tables of this data set; flags win",
    )
    add_selection_flags(selection)
    vectors = parser.add_argument_group("frame features, for strategies that compare frames (mdp3, ...)")
    vectors.add_argument("--features", help="folder of stored features")
    vectors.add_argument("--dataset_path", help="folder of the data set")
    vectors.add_argument("--label_file", help="a label file in place of the data set's own")
    parser.add_argument("--output_file", default="./selected_frames", help="folder for the selection")
    return parser.parse_args()


def main() -> None:
    """Select for every question, write the files, say what was done."""
    args = parse_arguments()
    score_path = Path(
        args.score_path or f"./outscores/{args.dataset_name}/{args.extract_feature_model}/scores.json"
    )
    frame_path = Path(args.frame_path) if args.frame_path else score_path.with_name("frames.json")
    try:
        settings = preset_settings(args.preset, args.dataset_name, args.max_num_frames, given_settings(args))
    except ValueError as error:
        raise errors.UserError(f"{errors.program()}: {error} (see --help)") from None
    if args.preset != "default":
        print(f"preset {args.preset}: " + ", ".join(f"{name} {value}" for name, value in settings.items()))
    options = {
        "strategy": args.strategy,
        "ratio": args.ratio,
        "t1": settings["t1"],
        "t2": args.t2,
        "max_depth": settings["max_depth"],
        "quota": settings["quota"],
        "options": options_of(args.strategy) | parse_options(args.option),
    }

    def select(score: np.ndarray | list[float], features: np.ndarray | None, **changes: int) -> np.ndarray:
        settings = {"budget": args.max_num_frames, **options, **changes}
        try:
            return select_positions(score, features=features, **settings)
        except ValueError as error:
            raise errors.UserError(f"{errors.program()}: {error} (see --help)") from None

    if not args.features and (args.dataset_path or args.label_file):
        raise errors.UserError("--dataset_path and --label_file go with --features")
    # A wrong flag is told before files are read, a strategy's option where it has a frame to choose.
    for changes in ({}, {"budget": 1, "ratio": 1}):
        select([0.0], np.ones((1, 1)) if args.features else None, **changes)
    scores, frames = read_scores(score_path, frame_path)
    features = _features(args, frame_path, frames) if args.features else [None] * len(scores)
    chosen = [select(score, vectors) for score, vectors in zip(scores, features, strict=True)]

    # Everything is read and checked before anything is written; the selection itself comes last.
    times = read_candidate_times(frame_path, frames)
    run_record = score_path.with_name("run.json")  # scorer and label digest; not beside scores from elsewhere
    record = {
        "max_num_frames": args.max_num_frames,
        **options,
        "questions": len(chosen),
        "scores_sha256": hashlib.sha256(score_path.read_bytes()).hexdigest(),
        "scored_by": read_json(run_record) if run_record.exists() else None,
        "strides": [infer_stride(row) for row in frames],
    }
    if args.features:
        record["features"] = read_json(Path(args.features) / "run.json")
    folder = Path(args.output_file) / args.dataset_name / args.extract_feature_model
    make_folder(folder, "--output_file")
    output, times_output = folder / "selected_frames.json", folder / "selected_times.json"
    with writing_to(output):
        output.unlink(missing_ok=True)  # an older selection must not stand beside the new one's times
        if times is None:
            times_output.unlink(missing_ok=True)
    write_json(folder / "selection.json", record)
    if times is not None:
        write_json(times_output, [row[at].tolist() for row, at in zip(times, chosen, strict=True)])
    write_json(output, [row[at].tolist() for row, at in zip(frames, chosen, strict=True)])

    _report(args.max_num_frames, args.ratio, settings["quota"], scores, chosen)
    print(f"wrote {output}: {len(chosen)} questions, {sum(map(len, chosen))} keyframes ({args.strategy})")


def _features(args: argparse.Namespace, frame_path: Path, frames: list[np.ndarray]) -> Iterator[np.ndarray]:
    """The vectors of each question's candidate frames, (n, d) float32.

    Raises:
        UserError: the labels, the scores and the features do not belong together, or a video is not stored.
    """
    from aks.console import progress
    from aks.extraction.feature_store import FeatureStore  # imports torch, which takes seconds
    from aks.labels import load_labels

    labels = load_labels(args.dataset_name, args.dataset_path, args.label_file)
    if len(labels.questions) != len(frames):
        raise errors.UserError(
            f"{labels.path} holds {len(labels.questions)} questions and {frame_path} {len(frames)}; "
            "--label_file names the one that was scored"
        )
    store = FeatureStore.open(Path(args.features))
    store.check_labels(labels)
    read = functools.lru_cache(maxsize=1)(store.read_vectors)  # a video's questions are mostly neighbours
    pairs = zip(labels.questions, frames, strict=True)
    for question, row in progress(
        iterable=pairs, total=len(frames), unit="question", desc=args.strategy, delay=2
    ):
        if not len(row):  # its video failed
            yield np.empty((0, 1), dtype=np.float32)
            continue
        frame_indices, vectors = read(question.video)
        if not np.array_equal(frame_indices, row):
            raise errors.UserError(
                f"{frame_path}: entry {question.index} ({question.id}): its frames are not those of "
                f"{store.part_path(question.video)}; score these features, or store the scored videos again"
            )
        yield vectors


def _report(budget: int, ratio: int, quota: str, scores: list[np.ndarray], chosen: list[np.ndarray]) -> None:
    """Count what a reader of the selection may not expect."""
    empty = sum(len(score) == 0 for score in scores)
    few = sum(0 < len(score) // ratio < budget for score in scores)
    thinned = sum(0 == len(score) // ratio < len(score) for score in scores)
    lost = sum(len(at) < min(budget, len(score) // ratio) for score, at in zip(scores, chosen, strict=True))
    if empty:
        print(f"{empty} questions have no candidates (their video failed); their selection is empty")
    if thinned:
        print(f"{thinned} questions have fewer candidates than --ratio {ratio}; their selection is empty")
    if few:
        print(f"{few} questions have fewer candidates than the budget of {budget}; all are selected")
    if lost:
        print(f"{lost} questions get fewer frames than the budget: --quota {quota} loses fractions of quotas")
