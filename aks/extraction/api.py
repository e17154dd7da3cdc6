"""Step 1: relevance scores for every question of a label file, one video at a time.

Each video is decoded once and each frame encoded once, whatever the number of its questions. The same
loop stores frame features instead of scores, and scores stored features instead of videos.

Decoding may run in processes of its own, several videos at once (:mod:`aks.extraction.workers`); the model
always sees one video's batches, divided at the same frames, so that the numbers do not depend on it. Any
number of runs may share a folder (:mod:`aks.locks`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from aks.console import log, progress
from aks.errors import UserError, VideoError
from aks.extraction.batching import CrossVideoBatcher, max_batch_size
from aks.extraction.decoding import DecodeSpec, EndOfVideo, FrameBatch, VideoInfo, probe
from aks.extraction.feature_store import (
    PER_QUESTION,
    FeatureBatch,
    FeatureStore,
    Sink,
    bytes_per_frame,
    check_free_space,
)
from aks.extraction.workers import Event, Events, Restarted, SerialDecoder, VideoJob, WorkerPool
from aks.jsonio import read_json, write_json
from aks.labels import LabelSet, Question
from aks.locks import VideoLocks
from aks.run_dir import RunDir, VideoScores
from aks.scorers.base import Scorer
from aks.selection import select_positions
from aks.video.reader import Video

BATCH_FRAMES = 16


@dataclass(frozen=True)
class DecodeConfig:
    """How videos are read; nothing of it but decord changes a number.

    Attributes:
        decoder: ``auto``, ``decord`` or ``pyav``.
        batch_frames: frames encoded at a time; bounds memory. None for 16, and on a GPU for as many as fit,
            up to 128.
        mix: fill each pass through the model with frames of several videos; None for only on a GPU.
        workers: decoding processes; 0 decodes in this one, where nothing limits a decoder that hangs.
        video_timeout: seconds that decoding one video may take, with workers; None for 60 and four times
            its length.
        on_corrupt: ``skip`` a video with frames that cannot be decoded, or score what is left:
            ``partial``.
        shard: (i, n): do only share i of n, from 1; None for all videos.
    """

    decoder: str = "auto"
    batch_frames: int | None = None
    mix: bool | None = None
    workers: int = 0
    video_timeout: float | None = None
    on_corrupt: str = "skip"
    shard: tuple[int, int] | None = None

    @classmethod
    def on(cls, scorer: Scorer, **settings: Any) -> DecodeConfig:
        """These settings, and for this scorer whether to mix."""
        made = cls(**settings)
        return replace(made, mix=scorer.device.type == "cuda") if made.mix is None else made

    def open(self, scorer: Scorer) -> WorkerPool | SerialDecoder:
        """Who decodes."""
        spec = DecodeSpec(scorer.preprocessor, self.decoder, self.handed_over, self.on_corrupt)
        return WorkerPool(spec, self.workers, self.video_timeout) if self.workers else SerialDecoder(spec)

    def record(self) -> dict[str, str]:
        """What of it changes frames, for a run's record."""
        return {"decoder": "decord"} if self.decoder == "decord" else {}

    @property
    def handed_over(self) -> int:
        """Frames that are decoded, and handed to the model's process, at a time."""
        frames = self.batch_frames or BATCH_FRAMES
        return min(frames, BATCH_FRAMES) if self.mix else frames

    def batcher(self, scorer: Scorer) -> CrossVideoBatcher | None:
        """Who fills the passes; None where each video's batches are passes."""
        if not self.mix:
            return None
        if self.batch_frames is None and scorer.device.type == "cuda":
            return CrossVideoBatcher(scorer, max_batch_size(scorer))
        return CrossVideoBatcher(scorer, self.batch_frames or BATCH_FRAMES)


@dataclass
class Summary:
    """What a run did.

    Attributes:
        videos: videos in the label file, or in this shard.
        reused: videos finished by an earlier run, or by another process.
        scored: videos scored, or stored, now.
        failures: videos that cannot be scored: video, reason, question ids.
        partial: videos scored without some frames: also ``lost_frames`` and ``scored_frames``.
        elsewhere: videos that are not finished, and left to other processes.
        any_failed: whether a video of the label file has failed, in this share or another.
        settled: whether every video of the label file is finished or has failed.
        complete: whether the assembled files were written.
        empty_questions: questions that got empty lists in them.
    """

    videos: int
    reused: int = 0
    scored: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    partial: list[dict[str, Any]] = field(default_factory=list)
    elsewhere: int = 0
    any_failed: bool = False
    settled: bool = False
    complete: bool = False
    empty_questions: int = 0


MakeSink = Callable[[str, list[Question], VideoInfo], Sink]


def extract(
    labels: LabelSet,
    scorer: Scorer,
    run: RunDir,
    *,
    allow_missing: bool = False,
    features: FeatureStore | None = None,
    videos: Sequence[str] | None = None,
    **reading: Any,
) -> Summary:
    """Score all questions of a label set, going on where an earlier run stopped.

    Args:
        labels: the questions.
        scorer: who scores.
        run: folder for parts and results.
        allow_missing: assemble although videos failed, with empty lists for their questions.
        features: score these instead of the videos, which then need not be there.
        videos: score only these, and leave the assembled files to the caller.
        reading: how the videos are read, see :class:`DecodeConfig`. With ``workers`` the scorer's
            preprocessor must be importable from a module (not from a script's own ``__main__``).

    Raises:
        UserError: the folder holds another run's scores, or cannot be written; the features are
            another model's, or damaged.
    """
    how = DecodeConfig.on(scorer, **reading)
    settings = {"dataset": labels.dataset, "label_sha256": labels.sha256, **scorer.fingerprint()}
    if features is not None:
        features.check(scorer, labels)
        settings.update(features.quantization())
    else:
        settings.update(how.record())
    run.open_or_create(settings)
    run.upgrade(labels)

    def sink(name: str, questions: list[Question], header: VideoInfo) -> Sink:
        scores = ScoreTable(scorer, questions, header.count)
        while isinstance(event := (yield), FeatureBatch):
            scores.add(event)
        numbers, times, table = scores.finished()
        run.write_part(
            VideoScores(
                video=name,
                fps=header.fps,
                num_frames=header.num_frames,
                video_bytes=header.video_bytes,
                decoder=header.decoder,
                frames=numbers.tolist(),
                times_s=times.tolist(),
                scores={q.id: row.tolist() for q, row in zip(questions, table, strict=True)},
                is_edited=header.is_edited,
                lost_frames=event.missing_frames,
                lost_reason=event.reason,
            )
        )

    source = (
        how.open(scorer)
        if features is None
        else _StoredFeatureSource(features, how.batch_frames or BATCH_FRAMES)
    )
    summary = _each_video(labels, run, scorer, source, how, scorer.name, sink, videos)
    if videos is None:
        assemble(summary, labels, run, allow_missing)
    return summary


def assemble(summary: Summary, labels: LabelSet, run: RunDir, allow_missing: bool) -> None:
    """Write the files of all videos where all are finished, or the others have failed and may be missing."""
    if not allow_missing and summary.failures:
        (run.folder / "scores.json").unlink(missing_ok=True)  # of an earlier run with --allow_missing
    if all(run.has_part(name) for name in labels.by_video()) or (allow_missing and summary.settled):
        summary.empty_questions = run.assemble(labels, allow_missing)
        summary.complete = True


def store_features(
    labels: LabelSet,
    scorer: Scorer,
    store: FeatureStore,
    *,
    videos: Sequence[str] | None = None,
    **reading: Any,
) -> Summary:
    """Store the frame features of a label set's videos, going on where an earlier run stopped.

    Args:
        labels: the questions; only their videos matter, unless the features are bound to questions.
        scorer: who encodes.
        store: where to.
        videos: store only these.
        reading: how the videos are read, see :class:`DecodeConfig`.

    Raises:
        UserError: the folder holds other features, cannot be written, or the disk is too small.
    """
    how = DecodeConfig.on(scorer, **reading)
    bound = store.kind == PER_QUESTION
    store.open_or_create(scorer, labels, how.record())

    def sink(name: str, questions: list[Question], header: VideoInfo) -> Sink:
        if not bound:
            yield from store.writing(name, questions, header)
            return
        texts = [scorer.encode_question(question) for question in questions]
        ids = json.dumps([question.id for question in questions])
        writer = store.writing(name, questions, header, {"questions": ids})
        next(writer)
        with contextlib.closing(writer):
            while isinstance(event := (yield), FeatureBatch):
                writer.send(replace(event, features=scorer.cross_encode(event.features, texts)))
            with contextlib.suppress(StopIteration):
                writer.send(event)

    def check_space(frames: int) -> None:
        if not bound:
            check_free_space(store.folder, frames * bytes_per_frame(scorer, store.dtype))

    source, name = how.open(scorer), f"{scorer.name} features"
    return _each_video(labels, store.run, scorer, source, how, name, sink, videos, check_space)


class ScoreTable:
    """The scores of a video for questions, batch by batch, in any order; complete when all have come.

    All room is taken at the start: small arrays that are kept, laid among large ones that come and go,
    would make the process grow with the length of the video.
    """

    def __init__(self, scorer: Scorer, questions: Sequence[Question], count: int) -> None:
        """No batch yet, of ``count`` frames at most."""
        self._scorer, self._questions = scorer, questions
        self._texts = [scorer.encode_question(question) for question in questions]
        self._numbers, self._times = np.empty(count, dtype=np.int64), np.empty(count)
        self._table = np.empty((len(questions), count))
        self._filled = 0

    def add(self, batch: FeatureBatch) -> None:
        """Score a batch.

        Raises:
            VideoError: a score is no finite number.
        """
        scores = self._scorer.score(batch.features, self._texts)
        if not np.isfinite(scores).all():
            question, frame = np.argwhere(~np.isfinite(scores))[0]
            raise VideoError(
                f"{self._scorer.name} gives {scores[question, frame]} for frame {batch.frame_indices[frame]}, "
                f"question {self._questions[question].id} (in half precision? try --dtype float32)"
            )
        place = slice(batch.offset, batch.offset + len(batch.frame_indices))
        self._numbers[place], self._times[place], self._table[:, place] = (
            batch.frame_indices,
            batch.times_s,
            scores,
        )
        self._filled += len(batch.frame_indices)

    def finished(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Frame numbers (frames,) int64, their times in seconds, and all scores (questions, frames)."""
        return self._numbers[: self._filled], self._times[: self._filled], self._table[:, : self._filled]


def encode(scorer: Scorer, batch: FrameBatch) -> FeatureBatch:
    """A batch through the model."""
    # Copied, so that sums do not depend on where the decoding process put it in memory.
    inputs = torch.from_numpy(batch.inputs).clone()
    return FeatureBatch(batch.offset, batch.frame_indices, batch.times_s, scorer.encode_frames(inputs))


class _StoredFeatureSource:
    """Reads stored features; the same events as the decoding classes, with encoded batches."""

    def __init__(self, store: FeatureStore, batch_frames: int) -> None:
        self._store, self._batch_frames = store, batch_frames

    def __enter__(self) -> _StoredFeatureSource:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def count_frames(self, jobs: list[VideoJob]) -> dict[str, int]:
        return {job.name: self._store.count(job.name) for job in jobs}

    def run(self, jobs: Iterator[VideoJob]) -> Events:
        for job in jobs:
            try:
                for event in self._store.read(job.name, self._batch_frames):
                    if (yield job.name, event):
                        break
            except VideoError as error:
                yield job.name, error


def _each_video(
    labels: LabelSet,
    run: RunDir,
    scorer: Scorer,
    source: WorkerPool | SerialDecoder | _StoredFeatureSource,
    how: DecodeConfig,
    description: str,
    make_sink: MakeSink,
    only: Sequence[str] | None,
    check_space: Callable[[int], None] = lambda frames: None,
) -> Summary:
    """Process the videos that have no part yet; a failing one is noted and the others go on."""
    batcher = None if isinstance(source, _StoredFeatureSource) else how.batcher(scorer)
    with source:
        if only is not None:
            videos = list(only)
        else:
            videos = _assign_shard(how.shard, run, source, labels) if how.shard else list(labels.by_video())
        pending = [name for name in videos if not run.has_part(name)]
        if pending and not isinstance(source, _StoredFeatureSource):
            labels.check_videos()
        expected = source.count_frames([VideoJob(name, labels.video_path(name)) for name in pending])
        check_space(sum(expected.values()))
        total = sum(expected.values())
        with (
            progress(total=total, unit="frame", desc=description, disable=not pending) as bar,
            VideoLocks(run) as locks,
        ):
            work = _Work(labels, run, scorer, make_sink, expected, bar, locks, batcher)
            work.do(source)
            if only is None:
                # A second round: of what others had in work, something may be left by dead ones.
                locks.wait(work.open_videos())
                work.do(source)
    return summarise(labels, run, videos, work.scored)


def summarise(labels: LabelSet, run: RunDir, videos: list[str], scored: int) -> Summary:
    """How it stands with some videos of a run, of which ``scored`` were scored now."""
    grouped = labels.by_video()
    summary = Summary(videos=len(videos), scored=scored)
    notes = run.collect_failures(labels)
    mine = set(videos)
    summary.failures = [n for n in notes if n["video"] in mine and not n.get("lost_frames")]
    summary.partial = [n for n in notes if n["video"] in mine and n.get("lost_frames")]
    failed = {note["video"] for note in notes if not note.get("lost_frames")}
    open_ones = [name for name in grouped if not run.has_part(name) and name not in failed]
    summary.settled, summary.any_failed = not open_ones, bool(failed)
    summary.elsewhere = len(open_ones)
    done = sum(run.has_part(name) for name in videos)
    summary.reused = done - summary.scored
    return summary


class _Work:
    """The videos in flight and the bar that counts their frames."""

    def __init__(
        self,
        labels: LabelSet,
        run: RunDir,
        scorer: Scorer,
        make_sink: MakeSink,
        expected: dict[str, int],
        bar: tqdm,
        locks: VideoLocks,
        batcher: CrossVideoBatcher | None,
    ) -> None:
        self._labels, self._run, self._scorer, self._make_sink = labels, run, scorer, make_sink
        self._expected, self._bar, self._locks, self._batcher = expected, bar, locks, batcher
        self._questions = labels.by_video()
        self._seen: dict[str, int] = {}  # of the videos in flight, frames so far
        self._sinks: dict[str, Sink] = {}
        self._failed: set[str] = set()
        self._failures = {name: run.failure_mtime(name) for name in self._expected}
        self.scored = 0

    def do(self, source: WorkerPool | SerialDecoder | _StoredFeatureSource) -> None:
        """Process the videos, but those that another process is at."""
        events = source.run(self._jobs())
        try:
            reply = None
            while (happened := _next(events, reply)) is not None:
                reply = self._take(*happened)
            if self._batcher is not None:
                for ready in self._batcher.flush():
                    self._deliver(*ready)
        finally:
            for sink in self._sinks.values():
                sink.close()

    def open_videos(self) -> list[str]:
        """The videos that are neither finished nor have failed, because other processes are at them."""
        return [name for name in self._expected if not self._is_over(name)]

    def _jobs(self) -> Iterator[VideoJob]:
        for name in self._expected:
            # Finished or failed meanwhile, by another process or in the first round.
            if self._is_over(name) or not self._locks.acquire(name):
                continue
            if self._is_over(name):
                self._locks.release(name)
                continue
            yield VideoJob(name, self._labels.video_path(name), float(self._expected[name]))

    def _is_over(self, name: str) -> bool:
        if not self._run.has_part(name) and self._run.failure_mtime(name) == self._failures[name]:
            return False
        self._correct(name, self._expected[name] if name in self._seen else 0)
        return True

    def _take(self, name: str, event: Event | FeatureBatch) -> bool:
        """Act on what became of a video; True gives it up."""
        if isinstance(event, VideoError):
            self._fail(name, event)
        elif isinstance(event, Restarted):
            self._drop(name)
            return name in self._failed
        elif isinstance(event, VideoInfo):
            return self._begin(name, event)
        elif name not in self._sinks:  # it failed while its last frames were gathered
            return True
        elif isinstance(event, FeatureBatch) or (self._batcher is None and isinstance(event, EndOfVideo)):
            return self._deliver(name, event)
        elif self._batcher is None:
            return self._deliver(name, encode(self._scorer, event))
        else:
            for ready in self._batcher.add(name, event):
                self._deliver(*ready)
            return name not in self._sinks
        return False

    def _begin(self, name: str, header: VideoInfo) -> bool:
        self._seen[name] = 0
        self._correct(name, header.count)
        try:
            self._sinks[name] = self._make_sink(name, self._questions[name], header)
            next(self._sinks[name])
        except VideoError as error:
            self._fail(name, error)
            return True
        return False

    def _deliver(self, name: str, event: FeatureBatch | EndOfVideo) -> bool:
        """Let a video's sink have its frames or its end; True where that fails."""
        try:
            if isinstance(event, EndOfVideo):
                with contextlib.suppress(StopIteration):
                    self._sinks.pop(name).send(event)
                self._correct(name, self._seen[name])
                self.scored += 1
                self._locks.release(name)
            else:
                self._sinks[name].send(event)
                self._seen[name] += len(event.frame_indices)
                self._bar.update(len(event.frame_indices))
        except VideoError as error:
            self._fail(name, error)
            return True
        return False

    def _fail(self, name: str, error: VideoError) -> None:
        """Note that a video cannot be scored."""
        self._failed.add(name)
        self._drop(name)
        self._seen[name] = 0
        self._correct(name, 0)
        self._run.record_failure(name, str(error), [question.id for question in self._questions[name]])
        self._locks.release(name)
        log(f"failed: {self._labels.video_path(name)}: {error}")

    def _drop(self, name: str) -> None:
        """Forget what came of a video so far."""
        if name in self._sinks:
            self._sinks.pop(name).close()
        if self._batcher is not None:
            self._batcher.discard(name)
        self._bar.n -= self._seen.pop(name, 0)
        self._bar.refresh()

    def _correct(self, name: str, frames: int) -> None:
        """Put the number of frames that is now known in the place of the estimate."""
        self._bar.total += frames - self._expected[name]
        self._expected[name] = frames


def _next(events: Events, reply: bool | None) -> tuple[str, Event | FeatureBatch] | None:
    try:
        return events.send(reply)
    except StopIteration:
        return None


def _assign_shard(
    shard: tuple[int, int],
    run: RunDir,
    source: WorkerPool | SerialDecoder | _StoredFeatureSource,
    labels: LabelSet,
) -> list[str]:
    """The videos of a shard, in label order: the longest first to the least loaded, by their headers.

    The first process writes the partition down, so that all have the same, whatever they see.
    """
    index, count = shard
    videos = list(labels.by_video())
    record = run.folder / f"shards-{count}-{labels.sha256[:12]}.json"
    if not record.exists():
        if not isinstance(source, _StoredFeatureSource):
            labels.check_videos()
        lengths = source.count_frames([VideoJob(name, labels.video_path(name)) for name in videos])
        loads = [0] * count
        shares: list[list[str]] = [[] for _ in loads]
        for name in sorted(videos, key=lambda name: -lengths[name]):
            lightest = loads.index(min(loads))
            loads[lightest] += lengths[name] + 1  # what cannot be read is shared out evenly, too
            shares[lightest].append(name)
        write_json(record, shares, indent=1, exclusive=True)
    shares = read_json(record)
    if sorted(name for share in shares for name in share) != sorted(videos):
        raise UserError(f"{record}: damaged; remove it")
    mine = set(shares[index - 1])
    return [name for name in videos if name in mine]


@dataclass(frozen=True)
class Keyframe:
    """A selected frame: its number, its time in seconds and its relevance score."""

    frame_index: int
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
    workers: int = 0,
    video_timeout: float | None = None,
) -> list[Keyframe]:
    """The keyframes of one open video for one question, in order of time.

    Args:
        video: the video; its candidate frames are decoded once, from its file.
        question: ``Question(0, "q", "", "What ...?")`` will do; scorers read its text and options.
        scorer: who scores.
        budget: number of keyframes, 1 or more.
        strategy: ``ada``, ``top``, ``bin`` or ``uniform``.
        batch_frames: frames decoded and encoded at a time; bounds memory.
        workers: decoding processes, which share a long video; 0 decodes in this one. With them the scorer's
            preprocessor must be importable from a module.
        video_timeout: seconds that decoding may take, with workers; None for 60 and four times its length.

    Raises:
        VideoError: the video has no candidate frame or cannot be decoded.
        ValueError: budget or strategy out of range.
    """
    select_positions([0.0], budget, strategy=strategy)  # a wrong argument must not cost an hour's scoring
    spec = DecodeSpec(scorer.preprocessor, video.requested_decoder, batch_frames, "skip")
    count = probe(video).count
    scores = ScoreTable(scorer, [question], count)
    source = WorkerPool(spec, workers, video_timeout) if workers else SerialDecoder(spec)
    with source, progress(total=count, unit="frame", desc=scorer.name) as bar:
        for _, event in source.run(iter([VideoJob(str(video.path), video.path, float(count))])):
            if isinstance(event, VideoError):
                raise event
            if isinstance(event, FrameBatch):
                scores.add(encode(scorer, event))
                bar.update(len(event.frame_indices))
            elif isinstance(event, Restarted):
                scores = ScoreTable(scorer, [question], count)
                bar.reset()
    numbers, times, (row,) = scores.finished()
    return [
        Keyframe(int(numbers[at]), float(times[at]), float(row[at]))
        for at in select_positions(row, budget, strategy=strategy)
    ]
