"""Step 1: relevance scores for every question of a label file, one video at a time.

Each video is decoded once and each frame encoded once, whatever the number of its questions. The same
loop stores frame features instead of scores, and scores stored features instead of videos.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from aks.benchmarks import LabelSet, Question
from aks.errors import VideoError
from aks.features import QUESTION_BOUND, EncodedVideo, FeatureStore, bytes_per_frame, check_free_space
from aks.outscores import Part, RunFolder, file_bytes
from aks.progress import progress
from aks.scorers import Scorer
from aks.selection import select_positions
from aks.video import Video, estimate_candidates

BATCH_FRAMES = 16


@dataclass
class Summary:
    """What a run did.

    Attributes:
        videos: videos in the label file.
        reused: videos finished by an earlier run.
        scored: videos scored, or stored, now.
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


def encode_video(scorer: Scorer, video: Video, batch_frames: int = BATCH_FRAMES) -> EncodedVideo:
    """Decode and encode the candidate frames of an open video.

    Raises:
        VideoError: it is too short to have a candidate; or, from the batches, cannot be decoded.
    """
    candidates = video.candidates()
    if not len(candidates):
        raise VideoError(
            f"too short: {video.num_frames} frames at {video.fps:g} a second, one candidate frame needs "
            f"{video.stride_frames}"
        )

    def batches() -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        for frames in video.read(candidates, batch_frames):
            inputs = torch.stack([scorer.prepare(pixels) for pixels in frames.pixels])
            yield frames.times_s, scorer.encode_frames(inputs)

    size = file_bytes(video.path)
    return EncodedVideo(video.fps, video.num_frames, size, video.decoder, candidates, batches())


def score_video(
    scorer: Scorer, encoded: EncodedVideo, questions: Sequence[Question], bar: tqdm
) -> tuple[np.ndarray, np.ndarray]:
    """Score an encoded video for questions.

    Returns:
        Times in seconds, (n,), and scores, (len(questions), n), both float64.

    Raises:
        VideoError: the video cannot be decoded, or a score is no finite number.
    """
    texts = [scorer.encode_question(question) for question in questions]
    times: list[np.ndarray] = []
    columns: list[np.ndarray] = []
    done = 0
    for batch_times, features in encoded.batches:
        scores = scorer.score(features, texts)
        if not np.isfinite(scores).all():
            question, frame = np.argwhere(~np.isfinite(scores))[0]
            raise VideoError(
                f"{scorer.name} gives {scores[question, frame]} for frame {encoded.frames[done + frame]}, "
                f"question {questions[question].id} (in half precision? try --dtype float32)"
            )
        times.append(batch_times)
        columns.append(scores)
        done += len(batch_times)
        bar.update(len(batch_times))
    return np.concatenate(times), np.concatenate(columns, axis=1)


def extract(
    labels: LabelSet,
    scorer: Scorer,
    run: RunFolder,
    *,
    decoder: str = "auto",
    batch_frames: int = BATCH_FRAMES,
    allow_missing: bool = False,
    features: FeatureStore | None = None,
) -> Summary:
    """Score all questions of a label set, going on where an earlier run stopped.

    Args:
        labels: the questions.
        scorer: who scores.
        run: folder for parts and results.
        decoder: ``auto``, ``decord`` or ``pyav``.
        batch_frames: frames decoded and encoded at a time; bounds memory.
        allow_missing: assemble although videos failed, with empty lists for their questions.
        features: score these instead of the videos, which then need not be there.

    Raises:
        UserError: the folder holds another run's scores, or cannot be written; the features are
            another model's, or damaged.
    """
    settings = {"dataset": labels.dataset, "label_sha256": labels.sha256, **scorer.identity()}
    if features is not None:
        features.check(scorer, labels)
        settings.update(features.rounding())
    run.begin(settings)

    def score(name: str, questions: list[Question], bar: tqdm, expected: int) -> None:
        if features is not None:
            finish(name, questions, features.read(name, batch_frames), bar, expected)
            return
        with Video(labels.video_path(name), decoder) as video:
            finish(name, questions, encode_video(scorer, video, batch_frames), bar, expected)

    def finish(name: str, questions: list[Question], encoded: EncodedVideo, bar: tqdm, expected: int) -> None:
        _correct_total(bar, len(encoded.frames) - expected)
        times, table = score_video(scorer, encoded, questions, bar)
        run.write_part(
            Part(
                video=name,
                fps=encoded.fps,
                num_frames=encoded.num_frames,
                video_bytes=encoded.video_bytes,
                decoder=encoded.decoder,
                frames=encoded.frames.tolist(),
                times_s=times.tolist(),
                scores={q.id: row.tolist() for q, row in zip(questions, table, strict=True)},
            )
        )

    def estimate(name: str) -> int:
        return features.count(name) if features else estimate_candidates(labels.video_path(name))

    summary = _each_video(labels, run, scorer.name, estimate, score)
    if not allow_missing and summary.failures:
        (run.folder / "scores.json").unlink(missing_ok=True)  # of an earlier run with --allow_missing
    if allow_missing or all(run.has_part(name) for name in labels.by_video()):
        summary.empty_questions = run.assemble(labels, allow_missing)
        summary.complete = True
    return summary


def store_features(
    labels: LabelSet,
    scorer: Scorer,
    store: FeatureStore,
    *,
    decoder: str = "auto",
    batch_frames: int = BATCH_FRAMES,
) -> Summary:
    """Store the frame features of a label set's videos, going on where an earlier run stopped.

    Args:
        labels: the questions; only their videos matter, unless the features are bound to questions.
        scorer: who encodes.
        store: where to.
        decoder: ``auto``, ``decord`` or ``pyav``.
        batch_frames: frames decoded and encoded at a time; bounds memory.

    Raises:
        UserError: the folder holds other features, cannot be written, or the disk is too small.
    """
    bound = store.kind == QUESTION_BOUND
    store.begin(scorer, labels)
    grouped = labels.by_video()
    estimates = {
        name: estimate_candidates(labels.video_path(name)) for name in grouped if not store.run.has_part(name)
    }
    if not bound:
        check_free_space(store.folder, sum(estimates.values()) * bytes_per_frame(scorer, store.dtype))

    def encode(name: str, questions: list[Question], bar: tqdm, expected: int) -> None:
        with Video(labels.video_path(name), decoder) as video:
            encoded = encode_video(scorer, video, batch_frames)
            _correct_total(bar, len(encoded.frames) - expected)
            metadata = {}
            if bound:
                texts = [scorer.encode_question(question) for question in questions]
                batches = ((times, scorer.bind(tokens, texts)) for times, tokens in encoded.batches)
                encoded = dataclasses.replace(encoded, batches=batches)
                metadata = {"questions": json.dumps([question.id for question in questions])}
            store.write(name, encoded, on_batch=bar.update, metadata=metadata)

    return _each_video(labels, store.run, f"{scorer.name} features", estimates.__getitem__, encode)


def _each_video(
    labels: LabelSet,
    run: RunFolder,
    description: str,
    estimate: Callable[[str], int],
    process: Callable[[str, list[Question], tqdm, int], None],
) -> Summary:
    """Process the videos that have no part yet; a failing one is noted and the others go on."""
    videos = labels.by_video()
    pending = {name: questions for name, questions in videos.items() if not run.has_part(name)}
    summary = Summary(videos=len(videos), reused=len(videos) - len(pending))
    expected = {name: estimate(name) for name in pending}
    total = sum(expected.values())
    with progress(total=total, unit="frame", desc=description, disable=not pending) as bar:
        for name, questions in pending.items():
            done = bar.n
            if run.has_part(name):  # another process on this folder was faster
                summary.reused += 1
                _correct_total(bar, -expected[name])
                continue
            try:
                process(name, questions, bar, expected[name])
            except VideoError as error:
                run.write_failure(name, str(error), [question.id for question in questions])
                tqdm.write(f"failed: {labels.video_path(name)}: {error}", file=sys.stderr)
                bar.total = max(bar.n, bar.total - max(0, expected[name] - (bar.n - done)))
            else:
                summary.scored += 1
    summary.failures = run.collect_failures(labels)
    return summary


def _correct_total(bar: tqdm, difference: int) -> None:
    """Put what opening a video told in the place of its header's estimate."""
    bar.total += difference
    bar.refresh()


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
    select_positions([0.0], budget, strategy=strategy)  # a wrong argument must not cost an hour's scoring
    encoded = encode_video(scorer, video, batch_frames)
    with progress(total=len(encoded.frames), unit="frame", desc=scorer.name) as bar:
        times, scores = score_video(scorer, encoded, [question], bar)
    return [
        Keyframe(int(encoded.frames[at]), float(times[at]), float(scores[0, at]))
        for at in select_positions(scores[0], budget, strategy=strategy)
    ]
