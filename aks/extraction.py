"""Step 1: relevance scores for every question of a label file, one video at a time.

Each video is decoded once and each frame encoded once, whatever the number of its questions.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from aks.benchmarks import LabelSet, Question
from aks.errors import VideoError
from aks.outscores import Part, RunFolder
from aks.progress import progress
from aks.scorers import Scorer
from aks.selection import select_positions
from aks.video import Frames, Video, estimate_candidates

BATCH_FRAMES = 16


@dataclass
class Summary:
    """What a run did.

    Attributes:
        videos: videos in the label file.
        reused: videos finished by an earlier run.
        scored: videos scored now.
        failures: videos that cannot be scored: video, reason, question ids.
        complete: whether the assembled files were written.
        empty_questions: questions that got empty lists in them.
    """

    videos: int
    reused: int = 0
    scored: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    complete: bool = False
    empty_questions: int = 0


def score_frames(
    scorer: Scorer, batches: Iterator[Frames], questions: Sequence[Question]
) -> Iterator[tuple[Frames, np.ndarray]]:
    """Score decoded frames for questions, a batch at a time.

    Yields:
        Each batch with its scores, (len(questions), frames in the batch) float64.

    Raises:
        VideoError: the model gave a score that is no finite number.
    """
    encoded = [scorer.encode_question(question) for question in questions]
    for frames in batches:
        inputs = torch.stack([scorer.prepare(pixels) for pixels in frames.pixels])
        scores = scorer.score(scorer.encode_frames(inputs), encoded)
        if not np.isfinite(scores).all():
            question, frame = np.argwhere(~np.isfinite(scores))[0]
            raise VideoError(
                f"{scorer.name} gives {scores[question, frame]} for frame {frames.numbers[frame]}, "
                f"question {questions[question].id} (in half precision? try --dtype float32)"
            )
        yield frames, scores


def check_candidates(video: Video) -> np.ndarray:
    """The candidate frame numbers of a video.

    Raises:
        VideoError: it is too short to have one.
    """
    candidates = video.candidates()
    if not len(candidates):
        raise VideoError(
            f"too short: {video.num_frames} frames at {video.fps:g} a second, one candidate frame needs "
            f"{video.stride_frames}"
        )
    return candidates


def score_video(
    scorer: Scorer,
    labels: LabelSet,
    name: str,
    questions: Sequence[Question],
    *,
    decoder: str,
    batch_frames: int,
    bar: tqdm,
    expected: int,
) -> Part:
    """Score one video for all its questions; ``expected`` is what the bar already counts for it."""
    with Video(labels.video_path(name), decoder) as video:
        candidates = check_candidates(video)
        bar.total += len(candidates) - expected
        bar.refresh()
        times: list[np.ndarray] = []
        columns: list[np.ndarray] = []
        for frames, scores in score_frames(scorer, video.read(candidates, batch_frames), questions):
            times.append(frames.times_s)
            columns.append(scores)
            bar.update(len(frames))
        table = np.concatenate(columns, axis=1)
        return Part(
            video=name,
            fps=video.fps,
            num_frames=video.num_frames,
            decoder=video.decoder,
            frames=candidates.tolist(),
            times_s=np.concatenate(times).tolist(),
            scores={question.id: row.tolist() for question, row in zip(questions, table, strict=True)},
        )


def extract(
    labels: LabelSet,
    scorer: Scorer,
    run: RunFolder,
    *,
    decoder: str = "auto",
    batch_frames: int = BATCH_FRAMES,
    allow_missing: bool = False,
) -> Summary:
    """Score all questions of a label set, going on where an earlier run stopped.

    Args:
        labels: the questions.
        scorer: who scores.
        run: folder for parts and results.
        decoder: ``auto``, ``decord`` or ``pyav``.
        batch_frames: frames decoded and encoded at a time; bounds memory.
        allow_missing: assemble although videos failed, with empty lists for their questions.

    Raises:
        UserError: the folder holds another run's scores, or cannot be written.
    """
    run.begin({"dataset": labels.dataset, "label_sha256": labels.sha256, **scorer.identity()})
    videos = labels.by_video()
    pending = {name: questions for name, questions in videos.items() if not run.has_part(name)}
    summary = Summary(videos=len(videos), reused=len(videos) - len(pending))

    expected = {name: estimate_candidates(labels.video_path(name)) for name in pending}
    with progress(total=sum(expected.values()), unit="frame", desc=scorer.name, disable=not pending) as bar:
        for name, questions in pending.items():
            done = bar.n
            try:
                part = score_video(
                    scorer,
                    labels,
                    name,
                    questions,
                    decoder=decoder,
                    batch_frames=batch_frames,
                    bar=bar,
                    expected=expected[name],
                )
            except VideoError as error:
                run.write_failure(name, str(error), [question.id for question in questions])
                tqdm.write(f"failed: {labels.video_path(name)}: {error}", file=sys.stderr)
                bar.total = max(bar.n, bar.total - max(0, expected[name] - (bar.n - done)))
            else:
                run.write_part(part)
                summary.scored += 1

    summary.failures = run.collect_failures(labels)
    if allow_missing or all(run.has_part(name) for name in videos):
        summary.empty_questions = run.assemble(labels, allow_missing)
        summary.complete = True
    return summary


@dataclass(frozen=True)
class Keyframe:
    """A selected frame: its number, its time in seconds and its relevance score."""

    number: int
    time_s: float
    score: float


def find_keyframes(
    video: Video,
    question: Question,
    scorer: Scorer,
    budget: int,
    *,
    strategy: str = "ada",
    batch_frames: int = BATCH_FRAMES,
) -> list[Keyframe]:
    """The keyframes of one open video for one question, in order of time.

    Args:
        video: the video; its candidate frames are decoded once.
        question: ``Question(0, "q", "", "What ...?")`` will do; scorers read its text and options.
        scorer: who scores.
        budget: number of keyframes, 1 or more.
        strategy: ``ada``, ``top``, ``bin`` or ``uniform``.
        batch_frames: frames decoded and encoded at a time; bounds memory.

    Raises:
        VideoError: the video has no candidate frame or cannot be decoded.
        ValueError: budget or strategy out of range.
    """
    candidates = check_candidates(video)
    select_positions([0.0], budget, strategy=strategy)  # a wrong argument must not cost an hour's scoring
    times: list[np.ndarray] = []
    scores: list[np.ndarray] = []
    batches = video.read(candidates, batch_frames)
    with progress(total=len(candidates), unit="frame", desc=scorer.name) as bar:
        for frames, table in score_frames(scorer, batches, [question]):
            times.append(frames.times_s)
            scores.append(table[0])
            bar.update(len(frames))
    all_times, all_scores = np.concatenate(times), np.concatenate(scores)
    return [
        Keyframe(int(candidates[at]), float(all_times[at]), float(all_scores[at]))
        for at in select_positions(all_scores, budget, strategy=strategy)
    ]
