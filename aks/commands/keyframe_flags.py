"""The flags of the command ``keyframes``."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from aks import errors
from aks.arguments import ArgumentParser, at_least
from aks.cli import add_log_flags, add_own_scorer_flags, add_worker_flags
from aks.clock import parse_time
from aks.commands.flags import add_selection_flags
from aks.messages import check_server


def _time(text: str) -> float:
    try:
        return parse_time(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parse_arguments(description: str | None) -> argparse.Namespace:
    """The flags' values; ``description`` is what ``--help`` says above them."""
    parser = ArgumentParser(description)
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
        "--report",
        type=Path,
        metavar="FILE",
        help="write one HTML page: relevance curves, keyframes and their pictures",
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
        "--start",
        type=_time,
        default=0.0,
        metavar="TIME",
        help="none before: seconds, h:mm:ss (default: the start)",
    )
    candidates.add_argument(
        "--end",
        type=_time,
        default=math.inf,
        metavar="TIME",
        help="none after: seconds, h:mm:ss (default: the end)",
    )
    candidates.add_argument(
        "--fast",
        action="store_true",
        help="look at a part of them, closely only around the peaks: sooner, but short moments are missed",
    )
    add_selection_flags(parser.add_argument_group("selection, as of frame_select.py"))
    add_own_scorer_flags(parser)
    work = parser.add_argument_group("work")
    work.add_argument(
        "--no_cache",
        action="store_true",
        help="neither use nor keep the frames' features, by which a later question is answered at once",
    )
    work.add_argument(
        "--background",
        type=Path,
        metavar="DIR",
        help="what aks background has made: say whether anything stands out (default: the scorer's, if made)",
    )
    add_worker_flags(work)
    add_log_flags(work)
    return parser.parse_args()


def check_flags(args: argparse.Namespace, is_folder: bool) -> None:
    """Refuse flags that contradict one another, before anything slow.

    Raises:
        UserError: one does.
    """
    if args.clip_margin is not None and not args.clips:
        raise errors.UserError("--clip_margin goes with --clips")
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
