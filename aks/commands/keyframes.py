"""The keyframes of one's own videos for some questions: frame, time and score, pictures, clips.

Of a folder's videos the best keyframes are shown, the best first.

    %(prog)s talk.mp4 "When does the speaker show a bicycle?" --budget 8 --images frames/ --sheet sheet.jpg
    %(prog)s films/ "Where is the cat?" "Who is at the door?" --json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aks import errors
from aks.cli import count_workers, load_scorer_from_args
from aks.commands.flags import given_settings, parse_options
from aks.commands.keyframe_flags import check_flags, parse_arguments
from aks.console import configure_logging
from aks.keyframe_files import Output
from aks.labels import check_question
from aks.presets import DEFAULT
from aks.selection import check_settings, options_of
from aks.video.files import videos_in
from aks.video.reader import CandidateRule, read_header

if TYPE_CHECKING:  # torch takes seconds to load; a mistake should not wait for it
    from aks.extraction.keyframes import Keyframe, QuestionKeyframes
    from aks.match import Match

logger = logging.getLogger("aks.keyframes")

CLIP_MARGIN_S = 2.0


def best_moments(rows: list[list[Keyframe]], budget: int) -> list[Keyframe]:
    """The best of several videos' keyframes, the best first; of equal scores those of the earlier video."""
    keyframes = [keyframe for row in rows for keyframe in row]
    return sorted(keyframes, key=lambda keyframe: -keyframe.score)[:budget]


def main() -> int:
    """Score the videos, choose the keyframes, write the pictures and clips, print the table."""
    args = parse_arguments(__doc__)
    configure_logging(args.log_level)
    workers = count_workers(args)
    source = Path(args.video)
    if not source.exists():
        raise errors.UserError(f"{source}: file not found{errors.nearest_file(source)}")
    is_folder = source.is_dir()
    paths = videos_in(source) if is_folder else [source]
    for text in args.question:
        check_question(text)
    check_flags(args, is_folder)
    options = options_of(args.strategy) | parse_options(args.option)
    settings = {**DEFAULT, "t2": args.t2, **given_settings(args)}
    selection = {"strategy": args.strategy, "options": options, **settings}
    try:
        check_settings(args.budget, **selection)
        rule = CandidateRule(args.fps, args.start, args.end)
    except ValueError as error:
        raise errors.UserError(f"{errors.program()}: {error} (see --help)") from None
    # A mistake here must not cost the scoring.
    output = Output(source, args.question, args.images, args.sheet, args.clips)
    if args.report:
        from aks.report.page import check_page

        check_page(args.report, "--report")
    found, videos, failures, matches = _find(args, paths, rule, workers, selection)
    if failures and not is_folder:
        raise errors.UserError(f"{source}: {failures[0]['reason']}")
    durations_s = {row["video"].absolute(): row["duration_s"] for row in videos}
    for row in (*videos, *failures):
        row["video"] = output.name_of(row["video"])

    keyframes = [[results[index].keyframes for results in found] for index in range(len(args.question))]
    moments = [best_moments(rows, args.budget) if is_folder else rows[0] for rows in keyframes]
    if not is_folder:
        _tell_few(args, found[0])
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
    problems: list[errors.UserError] = []
    with _told_later(problems, source):
        margin_s = CLIP_MARGIN_S if args.clip_margin is None else args.clip_margin
        failures += output.write(moments, margin_s, durations_s)
    if args.report:
        from aks.report.found import report_found

        with _told_later(problems, source):
            report_found(args.report, list(durations_s), found, moments, facts, matches)
    answers = None
    if args.messages:
        print(json.dumps(_messages(args, found[0])))
    elif args.ask and args.form is None:  # what is there stands there, whatever the server says next
        print(output.text(None, moments, facts, matches), flush=True)
        answers = []
        for question, answer in zip(args.question, _answers(args, found[0]), strict=True):
            answers.append(answer)
            if text := answer.get("answer", ""):
                print(f"{question}\n{text}\n" if len(args.question) > 1 else text, flush=True)
    else:
        answers = list(_answers(args, found[0])) if args.ask else None
        print(output.text(args.form, moments, facts, matches, answers), end="")
    for problem in problems[:-1]:
        logger.warning("%s", problem)
    if problems:
        raise problems[-1]
    return 1 if failures or any("error" in answer for answer in answers or ()) else 0


@contextlib.contextmanager
def _told_later(problems: list[errors.UserError], source: Path) -> Iterator[None]:
    """Keep what went wrong for the end: a full disk must not cost what was found."""
    try:
        yield
    except errors.VideoError as error:
        problems.append(errors.UserError(f"{source}: {error}"))
    except errors.UserError as error:
        problems.append(error)


def _messages(args: argparse.Namespace, results: list[QuestionKeyframes]) -> list[dict[str, Any]]:
    """The chat messages of each question."""
    from aks.messages import with_data_urls

    rows = []
    for found in results:
        try:
            messages = found.messages("openai", longest_side=args.longest_side)
        except (errors.VideoError, ValueError) as error:
            raise errors.UserError(f"{errors.program()}: {found.question}: {error}") from None
        if args.messages == "transformers":
            messages = with_data_urls(messages)
        rows.append({"question": found.question, "messages": messages})
    return rows


def _answers(args: argparse.Namespace, results: list[QuestionKeyframes]) -> Iterator[dict[str, str]]:
    """A server's ``answer`` to each question, each as it comes; where it gives none, the ``error``."""
    from aks.messages import ask

    for found in results:
        try:
            (row,) = _messages(args, [found])
            yield {"answer": ask(args.ask, args.model, row["messages"])}
        except errors.UserError as error:
            logger.error("failed: %s: %s", found.question, error)
            yield {"error": str(error)}


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
) -> tuple[list[list[QuestionKeyframes]], list[dict[str, Any]], list[dict[str, Any]], list[Match] | None]:
    """What each readable video holds for each question; these videos; the others and their reasons.

    Also how good each question's match is, where there is a background.
    """
    scorer = background = matches = None
    found, videos, failures, num_candidates = [], [], [], 0
    for path in paths:
        try:
            read_header(path.absolute())  # what is no video is told before torch and a scorer are loaded
            from aks.extraction.background import Background
            from aks.extraction.feature_cache import limit_bytes
            from aks.extraction.keyframes import find_in_file

            if scorer is None:
                scorer = load_scorer_from_args(args, with_image_encoder=False)
                if scorer.name == "conse":
                    logger.warning(
                        "scored by conse, a small stand-in that knows ImageNet's objects; for the paper's "
                        "scorer add --extract_feature_model blip"
                    )
                background = Background.open(scorer, args.background or True, paths)
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
            num_candidates += info.num_candidates
            facts = {"fps": info.fps, "num_frames": info.num_frames, "duration_s": info.duration_s}
            if args.fast:
                num_scored, total = len(results[0].curve.scores), info.num_candidates
                facts |= {"num_candidates": total, "num_scored": num_scored}
                share = f"{num_scored} of {total} candidates ({num_scored / total:.0%})"
                logger.warning("--fast: %s: looked at %s", path, share)
            videos.append({"video": path, **facts})
        except KeyboardInterrupt as interrupt:
            is_kept = found and not (args.no_cache or args.fast or limit_bytes() == 0)
            interrupt.add_note(
                "finished videos are kept, the same command goes on with the others"
                if is_kept
                else "the same command begins anew"
            )
            raise
        except errors.VideoError as error:
            failures.append({"video": path, "reason": str(error)})
            if len(paths) > 1:
                logger.warning("failed: %s: %s", path, error)
    if background is not None and found:
        rows = zip(*found, strict=True)
        scores = [np.concatenate([each.curve.scores for each in row]) for row in rows]
        matches = background.match(args.question, scores, num_candidates)
    return found, videos, failures, matches
