"""Step 1 for a whole label file.

Each video is decoded once and each frame encoded once, whatever the number of its questions. The same
pipeline stores frame features instead of scores, and scores stored features instead of videos.

Decoding may run in processes of its own, several videos at once (:mod:`aks.extraction.workers`). On a CPU the
model always sees one video's batches, divided at the same frames, so that scores do not depend on it. Any
number of runs may share a folder (:mod:`aks.locks`).
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aks.console import progress
from aks.errors import UserError
from aks.extraction.batching import PerVideoEncoder
from aks.extraction.config import DecodeConfig
from aks.extraction.decoding import VideoInfo
from aks.extraction.feature_store import PER_QUESTION, FeatureStore, bytes_per_frame, check_free_space
from aks.extraction.pipeline import Pipeline, Source, WriterFactory
from aks.extraction.sharding import choose_jobs
from aks.extraction.workers import SerialSource
from aks.extraction.writers import FeatureWriter, ScoreWriter
from aks.labels import LabelSet, VideoJob
from aks.locks import VideoLocks
from aks.run_dir import RunDir
from aks.scorers.base import Scorer


@dataclass
class Summary:
    """What a run did.

    Attributes:
        videos: videos in the label file, or in this share of it.
        reused: videos finished by an earlier run, or by another process.
        scored: videos scored, or stored, now.
        failures: videos that cannot be scored: video, reason, question ids.
        partial: videos scored without some frames: also ``lost_frames`` and ``scored_frames``.
        unfinished: videos of the label file that are neither finished nor have failed: other processes'.
        any_failed: whether a video of the label file has failed, in this share or another.
        complete: whether the assembled files were written.
        empty_questions: questions that got empty lists in them.
    """

    videos: int
    reused: int = 0
    scored: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    partial: list[dict[str, Any]] = field(default_factory=list)
    unfinished: int = 0
    any_failed: bool = False
    complete: bool = False
    empty_questions: int = 0


def extract(
    labels: LabelSet,
    scorer: Scorer,
    run: RunDir,
    *,
    allow_missing: bool = False,
    features: FeatureStore | None = None,
    videos: Sequence[str] | None = None,
    **decode: Any,
) -> Summary:
    """Score all questions of a label set, going on where an earlier run stopped.

    Args:
        labels: the questions.
        scorer: the model.
        run: folder for parts and results.
        allow_missing: assemble although videos failed, with empty lists for their questions.
        features: score these instead of the videos, which then need not be there.
        videos: score only these, and leave the end of the run to the caller, see :func:`finish`.
        decode: how the videos are read, see :class:`~aks.extraction.config.DecodeConfig`. With ``workers``
            the scorer's preprocessor must be importable from a module (not from a script's ``__main__``).

    Raises:
        UserError: the folder holds another run's scores, or cannot be written; the features are
            another model's, or damaged.
    """
    config = DecodeConfig.for_scorer(scorer, **decode)
    settings = {"dataset": labels.dataset, "label_sha256": labels.sha256, **scorer.fingerprint()}
    if features is not None:
        features.check(scorer, labels)
        settings.update(features.quantization())
    else:
        settings.update(config.record())
    run.open_or_create(settings, labels.jobs)

    def open_writer(job: VideoJob, info: VideoInfo) -> ScoreWriter:
        return ScoreWriter(run, scorer, job, info, config.frames_together)

    return _process(
        *(labels, run, scorer, config, scorer.name, open_writer, videos),
        features=features,
        allow_missing=allow_missing,
    )


def store_features(
    labels: LabelSet,
    scorer: Scorer,
    store: FeatureStore,
    *,
    videos: Sequence[str] | None = None,
    **decode: Any,
) -> Summary:
    """Store the frame features of a label set's videos, going on where an earlier run stopped.

    Args:
        labels: the questions; only their videos matter, unless the features are bound to questions.
        scorer: the model.
        store: where the features go.
        videos: store only these, and leave the end of the run to the caller, see :func:`finish`.
        decode: how the videos are read, see :class:`~aks.extraction.config.DecodeConfig`.

    Raises:
        UserError: the folder holds other features, cannot be written, or the disk is too small.
    """
    config = DecodeConfig.for_scorer(scorer, **decode)
    is_per_question = store.kind == PER_QUESTION
    store.open_for(scorer, labels, config.record())

    def open_writer(job: VideoJob, info: VideoInfo) -> FeatureWriter:
        if not is_per_question:
            return FeatureWriter(store, job, info)
        questions = [scorer.encode_question(question) for question in job.questions]
        return FeatureWriter(store, job, info, lambda features: scorer.cross_encode(features, questions))

    def check_space(num_frames: int) -> None:
        if not is_per_question:
            check_free_space(store.folder, num_frames * bytes_per_frame(scorer, store.dtype))

    description = f"{scorer.name} features"
    return _process(
        *(labels, store, scorer, config, description, open_writer, videos), check_space=check_space
    )


def _process(
    labels: LabelSet,
    run: RunDir,
    scorer: Scorer,
    config: DecodeConfig,
    description: str,
    open_writer: WriterFactory,
    videos: Sequence[str] | None,
    *,
    features: FeatureStore | None = None,
    allow_missing: bool = False,
    check_space: Callable[[int], None] = lambda num_frames: None,
) -> Summary:
    """Process the videos that have no part yet: all, a share of them, or those named."""
    if features is None:
        source: Source = config.make_decoder(scorer)
        encoder = config.make_encoder(scorer)
    else:
        source = SerialSource(
            lambda job: features.read(job.name, config.encode_batch_size),
            lambda job: features.count_frames(job.name),
        )
        encoder = PerVideoEncoder(scorer)

    def count_frames(jobs: list[VideoJob]) -> dict[str, int]:
        root = labels.video_root
        is_missing = jobs and features is None and not root.is_dir()
        if is_missing and not all(Path(job.name).is_absolute() for job in jobs):
            raise UserError(  # once, instead of one failure for each video
                f"{root}: no such folder on {socket.gethostname()}; the videos belong there (see "
                "--dataset_path)"
            )
        return source.count_frames(jobs)

    with source:
        jobs = choose_jobs(labels, run, config.shard, videos, count_frames)
        pending = [job for job in jobs if not run.has_part(job.name)]
        counts = count_frames(pending)
        pending = [replace(job, expected_frames=counts[job.name]) for job in pending]
        total = sum(counts.values())
        check_space(math.ceil(total * config.fps))  # the estimates are of one candidate a second
        with (
            progress(total=total, unit="frame", desc=description, disable=not pending) as bar,
            VideoLocks(run) as locks,
        ):
            pipeline = Pipeline(run, source, encoder, open_writer, locks, bar)
            pipeline.process(pending, wait=videos is None)
    if videos is not None:
        return Summary(len(jobs), scored=pipeline.num_done)
    return finish(labels, run, jobs, pipeline.num_done, allow_missing)


def finish(
    labels: LabelSet, run: RunDir, jobs: Sequence[VideoJob], scored: int, allow_missing: bool = False
) -> Summary:
    """Tell what has come of a run's ``jobs``, of which ``scored`` were finished now, and assemble its lists.

    The lists need all videos of the label file; with ``allow_missing`` those that failed may be missing.
    """
    own = {job.name for job in jobs}
    records = run.collect_failures(labels.jobs)
    failed = {record["video"] for record in records if not record.get("lost_frames")}
    summary = Summary(
        videos=len(jobs),
        reused=sum(run.has_part(name) for name in own) - scored,
        scored=scored,
        failures=[r for r in records if r["video"] in own and not r.get("lost_frames")],
        partial=[r for r in records if r["video"] in own and r.get("lost_frames")],
        unfinished=sum(not run.has_part(job.name) and job.name not in failed for job in labels.jobs),
        any_failed=bool(failed),
    )
    if not run.has_lists:
        return summary
    if failed and not allow_missing:
        for name in ("scores", "frames", "times"):  # of an earlier run with --allow_missing
            (run.folder / f"{name}.json").unlink(missing_ok=True)
    # Asked again: another process may have finished the last video meanwhile.
    if all(run.has_part(job.name) for job in labels.jobs) or (allow_missing and not summary.unfinished):
        summary.empty_questions = run.assemble(labels.jobs, allow_missing)
        summary.complete = True
    return summary
