"""Keyframes of one video for some questions, without a label file: ``aks.keyframes`` and what it is made of.

All questions share one pass: the video is decoded once and each candidate frame encoded once.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

from aks.console import progress
from aks.errors import VideoError
from aks.extraction.background import Background
from aks.extraction.batching import FeatureBatch, PerVideoEncoder
from aks.extraction.coarse_to_fine import Scored, probe_candidates, score_some
from aks.extraction.config import BATCH_FRAMES
from aks.extraction.decoding import DecodeSpec, EndOfVideo, VideoInfo
from aks.extraction.feature_cache import CacheEntry
from aks.extraction.feature_store import check_vectors
from aks.extraction.workers import SerialSource, WorkerPool, make_decoder
from aks.extraction.writers import ScoreTable
from aks.labels import Question, VideoJob, check_question
from aks.match import Match
from aks.messages import Frame, to_messages
from aks.scorers.base import Scorer, default_device, load_scorer
from aks.selection import check_settings, needs_features, select_positions
from aks.video.reader import EVERY_SECOND, CandidateRule, Video, estimate_candidates, read_header


@dataclass(frozen=True)
class Keyframe:
    """A selected frame.

    Attributes:
        frame_index: its number in the video.
        time_s: its time in seconds from the first frame.
        score: its relevance to the question.
        video: the file that it is from.
        decoder: by whose frame numbers, see :class:`~aks.video.reader.Video`.
    """

    frame_index: int
    time_s: float
    score: float
    video: Path | None = field(default=None, repr=False, compare=False)
    decoder: str = field(default="auto", repr=False, compare=False)

    @cached_property
    def image(self) -> Image.Image:
        """The picture in RGB at the video's resolution, read when it is first asked for, then kept.

        Reading many pictures is faster by :meth:`aks.Video.read`.

        Raises:
            VideoError: the file can no longer be read.
        """
        state = self.video.stat() if self.video.exists() else None
        with _reading:
            opened = _open_once(self.video, self.decoder, state and (state.st_mtime_ns, state.st_size))
            (frames,) = opened.read([self.frame_index])
        return Image.fromarray(frames.pixels[0])


_reading = threading.Lock()


@lru_cache(maxsize=1)
def _open_once(path: Path, decoder: str, state: object) -> Video:
    """The video stays open from one picture to the next: opening a long one takes longer than reading."""
    return Video(path, decoder)


@dataclass(frozen=True)
class Curve:
    """The relevance of all candidates of a video to one question.

    Attributes:
        frame_indices: their numbers in the video, (n,) int64 ascending.
        times_s: their times in seconds from the first frame, (n,) float64.
        scores: (n,) float64, on the scorer's scale.
    """

    frame_indices: np.ndarray
    times_s: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class QuestionKeyframes:
    """What was found for one question.

    Attributes:
        question: its text.
        keyframes: in the order of time.
        curve: all candidates and their scores; those that were looked at with ``fast``.
        match: how good the best of them is beside other footage; None without a background.
    """

    question: str
    keyframes: list[Keyframe]
    curve: Curve = field(repr=False)
    match: Match | None = None

    def messages(self, style: str = "openai", **options: Any) -> list[dict[str, Any]]:
        """The question and its keyframes with their times, as a chat message for a language model.

        Args:
            style: the form, see :func:`aks.messages.to_messages`.
            options: ``longest_side``, ``quality``, as there.

        Raises:
            VideoError: the video can no longer be read.
            ValueError: there is no keyframe, or an argument is out of range.
        """
        frames = [Frame(keyframe.frame_index, keyframe.time_s, keyframe.image) for keyframe in self.keyframes]
        return to_messages(self.question, frames, style=style, **options)


@overload
def keyframes(video: str | Path, question: str, budget: int = 8, **settings: Any) -> list[Keyframe]: ...


@overload
def keyframes(
    video: str | Path, question: Sequence[str], budget: int = 8, **settings: Any
) -> list[QuestionKeyframes]: ...


def keyframes(
    video: str | Path,
    question: str | Sequence[str],
    budget: int = 8,
    *,
    scorer: str | Scorer = "conse",
    device: str | None = None,
    fps: float = 1.0,
    start_s: float = 0.0,
    end_s: float = math.inf,
    workers: int = 0,
    video_timeout: float | None = None,
    cache: bool = False,
    background: str | Path | bool = False,
    fast: bool = False,
    **selection: Any,
) -> list[Keyframe] | list[QuestionKeyframes]:
    """The keyframes of one video for one question, or for several, in order of time.

    >>> keyframes("talk.mp4", "When does the speaker show a bicycle?", budget=8)  # doctest: +SKIP
    [Keyframe(frame_index=1250, time_s=50.0, score=0.41), ...]

    Args:
        video: a video file.
        question: what to look for; or several questions, which share one pass over the video.
        budget: number of keyframes a question, 1 or more.
        scorer: ``conse`` (needs no download), ``blip`` (the paper's), ``clip``, ``sevila`` or ``siglip``; or
            a loaded scorer, so that several calls share it.
        device: ``cpu``, ``cuda`` or ``cuda:N`` for a scorer given by name; None for a GPU if there is one.
        fps, start_s, end_s: which frames are candidates, see :class:`~aks.video.reader.CandidateRule`.
        workers, video_timeout: see :func:`find_in_file`.
        cache: keep the frames' features in the user's cache folder, and use those that are kept: a later
            question about the same video decodes and encodes nothing.
        background: a folder that ``aks background`` has made, or True for the scorer's own if there is one:
            several questions' results then have a ``match``.
        fast: look at some of the candidates only, see :mod:`aks.extraction.coarse_to_fine`.
        selection: ``strategy``, ``ratio``, ``t1``, ``t2``, ``max_depth``, ``quota`` and ``options``, see
            :func:`aks.select_keyframes`.

    Returns:
        A list of :class:`Keyframe` for a question; of :class:`QuestionKeyframes` for several.

    Raises:
        VideoError: the video cannot be read, or has no candidate.
        UserError: a question is empty, the scorer cannot be loaded, or the background is another scorer's.
        ValueError: an argument out of range, or no question.
    """
    texts = [question] if isinstance(question, str) else list(question)
    if not texts:
        raise ValueError("there is no question")
    for text in texts:
        check_question(text)
    rule = CandidateRule(fps, start_s, end_s)
    check_settings(budget, **selection)
    read_header(Path(video).absolute())  # what is no video is told before a scorer is loaded
    if isinstance(scorer, str):
        scorer = load_scorer(scorer, device=device or default_device(), with_image_encoder=False)
    others = Background.open(scorer, background, [video]) if background else None
    info, found = find_in_file(
        *(video, texts, scorer, budget),
        rule=rule,
        workers=workers,
        video_timeout=video_timeout,
        cache=cache,
        fast=fast,
        **selection,
    )
    if others is not None:
        matches = others.match(texts, [each.curve.scores for each in found], info.num_candidates)
        found = [replace(each, match=match) for each, match in zip(found, matches, strict=True)]
    return found[0].keyframes if isinstance(question, str) else found


def find_keyframes(
    video: Video, question: Question, scorer: Scorer, budget: int, **settings: Any
) -> list[Keyframe]:
    """The keyframes of one open video for one question, in order of time.

    Arguments and errors as for :func:`find_in_file`; ``Question(0, "q", "", "What ...?")`` will do.
    """
    settings = {"decoder": video.requested_decoder, **settings}
    _, (found,) = find_in_file(video.path, [question], scorer, budget, **settings)
    return found.keyframes


def find_in_file(
    video: str | Path,
    questions: Sequence[str | Question],
    scorer: Scorer,
    budget: int,
    *,
    rule: CandidateRule = EVERY_SECOND,
    decoder: str = "auto",
    batch_frames: int = BATCH_FRAMES,
    workers: int = 0,
    video_timeout: float | None = None,
    cache: bool = False,
    fast: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    **selection: Any,
) -> tuple[VideoInfo, list[QuestionKeyframes]]:
    """What a video is, and its keyframes for each of some questions.

    Args:
        video: a video file; its candidate frames are decoded once.
        questions: texts, or questions, of which scorers read text and options.
        scorer: the model.
        budget: number of keyframes a question, 1 or more.
        rule: which frames are candidates.
        decoder: see :class:`~aks.video.reader.Video`.
        batch_frames: frames decoded and encoded at a time; bounds memory.
        workers: decoding processes, which share a long video; 0 decodes in this one. With them the scorer's
            preprocessor must be importable from a module.
        video_timeout: seconds that decoding may take, with workers; None for 60 s plus four times its length.
        cache: keep the frames' features, and use those that are kept (:mod:`aks.extraction.feature_cache`).
        fast: score some of the candidates only (:mod:`aks.extraction.coarse_to_fine`), unless the features of
            all are kept. Their features are not kept.
        on_progress: called after every batch with the numbers of frames scored and to score; what it raises
            ends the work. Both begin again with the second pass of ``fast``.
        selection: as of :func:`keyframes`.

    Raises:
        VideoError: the video has no candidate frame or cannot be decoded.
        UserError: the strategy compares frames, and the scorer has more than one vector a frame.
        ValueError: an argument out of range.
    """
    check_settings(budget, **selection)
    compares_frames = needs_features(selection.get("strategy", "ada"))
    if fast and (selection.get("ratio", 1) != 1 or rule.positions is not None):
        raise ValueError("fast and ratio, or positions, do not go together: each leaves candidates out")
    path = Path(video).absolute()
    read_header(path)  # what is no video is told before processes start
    asked = [
        Question(index, str(index), str(path), question) if isinstance(question, str) else question
        for index, question in enumerate(questions)
    ]
    entry = CacheEntry(path, scorer, rule, decoder) if cache else None
    store = entry.open() if entry else None
    compared_by = selection["strategy"] if compares_frames else ""

    def score(rule: CandidateRule) -> Scored:
        spec = DecodeSpec(scorer.preprocessor, decoder, batch_frames, "skip", rule)
        source = make_decoder(spec, workers, video_timeout)
        return _score(source, path, asked, scorer, compared_by, None if fast else entry, on_progress)

    if store is not None:
        source = SerialSource(lambda job: store.read(entry.name, batch_frames), lambda job: 0)
        scored = _score(source, path, asked, scorer, compared_by, None, on_progress)
    else:
        _ = scorer.image_encoder  # what is wrong with its weights is told before decoding
        scored = (
            score_some(*probe_candidates(path, rule, decoder), rule, budget, score) if fast else score(rule)
        )

    def found(question: Question, row: np.ndarray) -> QuestionKeyframes:
        frames = [
            Keyframe(int(scored.frame_indices[i]), float(scored.times_s[i]), float(row[i]), path, decoder)
            for i in select_positions(row, budget, features=scored.features, **selection)
        ]
        return QuestionKeyframes(question.text, frames, Curve(scored.frame_indices, scored.times_s, row))

    return scored.info, [found(question, row) for question, row in zip(asked, scored.scores, strict=True)]


def _score(
    source: WorkerPool | SerialSource,
    path: Path,
    questions: list[Question],
    scorer: Scorer,
    compared_by: str,
    entry: CacheEntry | None,
    on_progress: Callable[[int, int], None] | None,
) -> Scored:
    """Score a video's frames batch by batch.

    Args:
        compared_by: the strategy that compares frames, and so needs their vectors; empty for none.
        entry: where in the cache the features go; None for nowhere.
        on_progress: as of :func:`find_in_file`.
    """
    vectors: dict[int, np.ndarray] = {}
    count = estimate_candidates(path)
    job = VideoJob(str(path), path, tuple(questions), count)
    with (
        entry or contextlib.nullcontext(),
        source,
        progress(total=count, unit="frame", desc=scorer.name) as bar,
    ):
        for _, event in PerVideoEncoder(scorer).encode(source.run(iter([job]))):
            match event:
                case VideoInfo():  # once more where the process that decodes has died
                    info, table = event, ScoreTable(scorer, questions, event.num_candidates)
                    num_scored = 0
                    vectors.clear()
                    bar.reset(total=event.num_candidates)
                    if entry is not None:
                        entry.begin(event)
                case FeatureBatch():
                    if compared_by:
                        check_vectors(event.features.shape, f"strategy {compared_by} with {scorer.name}")
                        vectors[event.offset] = event.features.float().cpu().numpy()
                    table.add(event)
                    bar.update(len(event.frame_indices))
                    if entry is not None:
                        entry.add(event)
                    if on_progress is not None:
                        num_scored += len(event.frame_indices)
                        on_progress(num_scored, info.num_candidates)
                case EndOfVideo():
                    if entry is not None:
                        entry.close(event)
                case VideoError():
                    raise event
    features = np.concatenate([vectors[offset] for offset in sorted(vectors)]) if compared_by else None
    return Scored(info, *table.result(), features)
