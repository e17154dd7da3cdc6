"""The keyframes of one's own videos for some questions: frame, time and score, pictures, clips.

%(prog)s talk.mp4 "When does the speaker show a bicycle?" --budget 8 --images frames/ --sheet sheet.jpg
%(prog)s films/ "Where is the cat?" "Who is at the door?" --json
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aks import errors
from aks.cli import (
    add_log_flags,
    add_scorer_flags,
    add_worker_flags,
    at_least,
    count_workers,
    load_scorer_from_args,
)
from aks.clock import parse_time
from aks.commands.flags import add_selection_flags, given_settings, parse_options
from aks.console import configure_logging
from aks.messages import check_server
from aks.presets import DEFAULT
from aks.selection import options_of

if TYPE_CHECKING:  # torch takes seconds to load; a mistake should not wait for it
    from aks.extraction.keyframes import Keyframe, QuestionKeyframes
    from aks.video.reader import CandidateRule

logger = logging.getLogger("aks.keyframes")

# What a folder is searched for.
VIDEO_SUFFIXES = {
    ".3gp", ".asf", ".avi", ".divx", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4",
    ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"
}  # fmt: skip


def _time(text: str) -> float:
    try:
        return parse_time(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parse_arguments() -> argparse.Namespace:
    """The command's flags."""
    parser = errors.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("video", help="a video file, or a folder: the best moments of all its videos")
    parser.add_argument("question", nargs="+", help="what to look for; several share one pass")
    parser.add_argument("--budget", type=at_least(1), default=8, help="keyframes a question (default: 8)")
    output = parser.add_argument_group("output (default: a table)")
    form = output.add_mutually_exclusive_group()
    form.add_argument("--json", dest="form", action="store_const", const="json", help="one JSON document")
    form.add_argument("--csv", dest="form", action="store_const", const="csv", help="a CSV row a keyframe")
    output.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="write the keyframes there as JPEG, in place of earlier ones",
    )
    output.add_argument(
        "--sheet", type=Path, metavar="FILE", help="write a contact sheet: .jpg, .jpeg or .png"
    )
    output.add_argument(
        "--clips",
        type=Path,
        metavar="DIR",
        help="cut the moments around the keyframes out of the video without encoding: each begins at the "
        "key frame before",
    )
    output.add_argument(
        "--clip_margin",
        type=at_least(0, float),
        default=2.0,
        metavar="SECONDS",
        help="of a clip before and after a keyframe (default: 2)",
    )
    model = parser.add_argument_group("for a language model, with the keyframes' times")
    form.add_argument(
        "--messages",
        choices=("openai", "transformers"),
        help="print chat messages as JSON, for servers, or for chat templates and qwen-vl-utils",
    )
    model.add_argument("--ask", metavar="URL", help="print the answer of an OpenAI-compatible server, too")
    model.add_argument("--model", help="the model's name at the server")
    model.add_argument(
        "--longest_side", type=at_least(1), metavar="PIXELS", help="reduce larger frames to this size"
    )
    candidates = parser.add_argument_group("candidate frames")
    candidates.add_argument(
        "--fps", type=at_least(1e-6, float), default=1.0, help="candidates a second (default: 1)"
    )
    candidates.add_argument(
        "--start", type=_time, default=0.0, metavar="TIME", help="none before: seconds or h:mm:ss"
    )
    candidates.add_argument(
        "--end", type=_time, default=math.inf, metavar="TIME", help="none after: seconds or h:mm:ss"
    )
    candidates.add_argument(
        "--fast",
        action="store_true",
        help="look at a part of them, closely only around the peaks: sooner, but short moments are missed",
    )
    add_selection_flags(parser.add_argument_group("selection, as of frame_select.py"))
    scorer = parser.add_argument_group(
        "scorer, as of feature_extract.py (default: conse, without a download)"
    )
    add_scorer_flags(scorer, "conse", None)
    parser.add_argument(
        "--no_cache",
        action="store_true",
        help="neither use nor keep the frames' features, by which a later question is answered at once",
    )
    scorer.add_argument("--blip_head", help="blip: itm (default, the paper's) or itc")
    add_worker_flags(parser)
    add_log_flags(parser)
    return parser.parse_args()


def videos_in(folder: Path) -> list[Path]:
    """The video files of a folder and the folders in it, by their names' endings.

    Raises:
        UserError: there is none.
    """
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not found:
        raise errors.UserError(f"{folder}: holds no video ({' '.join(sorted(VIDEO_SUFFIXES))})")
    return found


def best_moments(rows: list[list[Keyframe]], budget: int) -> list[Keyframe]:
    """The best of several videos' keyframes, the best first; of equal scores those of the earlier video."""
    keyframes = [keyframe for row in rows for keyframe in row]
    return sorted(keyframes, key=lambda keyframe: -keyframe.score)[:budget]


def main() -> int:
    """Score the videos, choose the keyframes, write the pictures and clips, print the table."""
    args = parse_arguments()
    configure_logging(args.log_level)
    workers = count_workers(args)
    source = Path(args.video)
    is_folder = source.is_dir()
    paths = videos_in(source) if is_folder else [source]

    from aks.extraction.keyframes import check_question, check_selection
    from aks.keyframe_files import Output
    from aks.video.reader import CandidateRule

    for text in args.question:
        check_question(text)
    _check_model_flags(args, is_folder)
    options = options_of(args.strategy) | parse_options(args.option)
    settings = {**DEFAULT, "t2": args.t2, **given_settings(args)}
    selection = {"strategy": args.strategy, "options": options, **settings}
    try:
        check_selection(args.budget, **selection)
        rule = CandidateRule(args.fps, args.start, args.end)
    except ValueError as error:
        raise errors.UserError(f"{errors.program()}: {error} (see --help)") from None
    # A mistake here must not cost the scoring.
    output = Output(source, args.question, args.images, args.sheet, args.clips)
    found, videos, failures = _find(args, paths, rule, workers, selection)
    if failures and not is_folder:
        raise errors.UserError(f"{source}: {failures[0]['reason']}")
    durations_s = {row["video"].absolute(): row["duration_s"] for row in videos}
    for row in (*videos, *failures):
        row["video"] = output.name_of(row["video"])

    keyframes = [[results[index].keyframes for results in found] for index in range(len(args.question))]
    moments = [best_moments(rows, args.budget) if is_folder else rows[0] for rows in keyframes]
    if not is_folder:
        _tell_few(args, found[0])
    try:
        failures += output.write(moments, args.clip_margin, durations_s)
    except errors.VideoError as error:
        raise errors.UserError(f"{source}: {error}") from None
    facts = {
        **({"folder": str(source)} if is_folder else {}),
        "videos": videos,
        "failures": failures,
        "scorer": args.extract_feature_model,
        "candidate_fps": rule.per_second,
        "fast": args.fast,
        "start_s": rule.start_s,
        "end_s": rule.end_s if rule.end_s < math.inf else None,
        "budget": args.budget,
        **selection,
    }
    if args.messages:
        print(json.dumps(_messages(args, found[0])))
    elif args.ask and args.form is None:  # what is there stands there, whatever the server says next
        print(output.text(None, moments, facts), flush=True)
        for question, answer in zip(args.question, _answers(args, found[0]), strict=True):
            print(f"{question}\n{answer}\n" if len(args.question) > 1 else answer, flush=True)
    else:
        answers = list(_answers(args, found[0])) if args.ask else None
        print(output.text(args.form, moments, facts, answers), end="")
    return 1 if failures else 0


def _check_model_flags(args: argparse.Namespace, is_folder: bool) -> None:
    """Refuse flags that contradict one another, before anything slow.

    Raises:
        UserError: one does.
    """
    if bool(args.ask) != bool(args.model):
        raise errors.UserError("--ask URL and --model NAME go together")
    if args.longest_side and not (args.ask or args.messages):
        raise errors.UserError("--longest_side goes with --messages or --ask")
    if args.ask and (args.messages or args.form == "csv"):
        raise errors.UserError("--ask goes with the table or --json")
    if is_folder and (args.ask or args.messages):
        raise errors.UserError("--messages and --ask go with one video: a model is told times in it")
    if args.ask:
        check_server(args.ask)


def _messages(args: argparse.Namespace, results: list[QuestionKeyframes]) -> list[dict[str, Any]]:
    """The chat messages of each question."""
    from aks.messages import with_data_urls

    rows = []
    for found in results:
        try:
            messages = found.messages("openai", longest_side=args.longest_side)
        except ValueError as error:
            raise errors.UserError(f"{errors.program()}: {found.question}: {error}") from None
        if args.messages == "transformers":
            messages = with_data_urls(messages)
        rows.append({"question": found.question, "messages": messages})
    return rows


def _answers(args: argparse.Namespace, results: list[QuestionKeyframes]) -> Iterator[str]:
    """A server's answer to each question, each as it comes.

    Raises:
        UserError: it gives none; finished work is kept, unless --no_cache is given.
    """
    from aks.messages import ask

    for row in _messages(args, results):
        yield ask(args.ask, args.model, row["messages"])


def _tell_few(args: argparse.Namespace, results: list[QuestionKeyframes]) -> None:
    """Say why a question has fewer keyframes than were asked for."""
    for found in results:
        if (count := len(found.keyframes)) < args.budget:
            candidates = len(found.curve.scores)
            is_short = candidates < args.budget
            reason = f"{candidates} candidate frames" if is_short else f"--quota {args.quota} loses fractions"
            logger.warning("%d keyframes, not %d: %s", count, args.budget, reason)


def _find(
    args: argparse.Namespace,
    paths: list[Path],
    rule: CandidateRule,
    workers: int,
    selection: dict[str, Any],
) -> tuple[list[list[QuestionKeyframes]], list[dict[str, Any]], list[dict[str, Any]]]:
    """What each readable video holds for each question; these videos; the others and their reasons."""
    import torch

    from aks.extraction.keyframes import find_in_file
    from aks.video.reader import read_header

    scorer = None
    found, videos, failures = [], [], []
    for path in paths:
        try:
            read_header(path.absolute())  # what is no video is told before a scorer is loaded
            if scorer is None:
                args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
                scorer = load_scorer_from_args(args, with_image_encoder=False)
                if scorer.name == "conse":
                    logger.warning(
                        "scored by conse, a small stand-in that knows ImageNet's objects; for the paper's "
                        "scorer add --extract_feature_model blip"
                    )
            info, results = find_in_file(
                *(path, args.question, scorer, args.budget),
                rule=rule,
                workers=workers,
                video_timeout=args.video_timeout,
                cache=not args.no_cache,
                fast=args.fast,
                **selection,
            )
            found.append(results)
            facts = {"fps": info.fps, "num_frames": info.num_frames, "duration_s": info.duration_s}
            if args.fast:
                num_scored, num_candidates = len(results[0].curve.scores), info.num_candidates
                facts |= {"num_candidates": num_candidates, "num_scored": num_scored}
                share = f"{num_scored} of {num_candidates} candidates ({num_scored / num_candidates:.0%})"
                logger.warning("--fast: %s: looked at %s", path, share)
            videos.append({"video": path, **facts})
        except KeyboardInterrupt:
            if found and not (args.no_cache or args.fast):  # their features are kept
                raise
            raise KeyboardInterrupt("the same command begins anew") from None
        except errors.VideoError as error:
            failures.append({"video": path, "reason": str(error)})
            if len(paths) > 1:
                logger.warning("failed: %s: %s", path, error)
    return found, videos, failures
