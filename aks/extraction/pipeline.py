"""The main loop of step 1: videos through a decoder and an encoder into writers, several at a time."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from aks.errors import VideoError
from aks.extraction.batching import CrossVideoBatcher, FeatureBatch, PerVideoEncoder
from aks.extraction.decoding import EndOfVideo, VideoInfo
from aks.extraction.workers import Restarted, SerialSource, WorkerPool
from aks.extraction.writers import FeatureWriter, ScoreWriter
from aks.labels import VideoJob
from aks.locks import VideoLocks
from aks.run_dir import RunDir

logger = logging.getLogger(__name__)

Source = WorkerPool | SerialSource
Encoder = CrossVideoBatcher | PerVideoEncoder
Writer = ScoreWriter | FeatureWriter
WriterFactory = Callable[[VideoJob, VideoInfo], Writer]


@dataclass
class Pipeline:
    """Takes every video from its file to a part file; one that fails is recorded, and the others go on.

    Any number of pipelines, in any number of processes, may work on one run at a time. A video is processed
    by the first that locks it.

    Attributes:
        run: the run's folder.
        source: yields videos as batches.
        encoder: encodes them.
        open_writer: makes the writer of a video.
        locks: this process's locks.
        bar: counts frames.
        num_done: videos finished here.
    """

    run: RunDir
    source: Source
    encoder: Encoder
    open_writer: WriterFactory
    locks: VideoLocks
    bar: tqdm
    num_done: int = 0

    def process(self, jobs: list[VideoJob], wait: bool) -> None:
        """Process the videos, then (with ``wait``) those that other processes had locked and died at."""
        self._progress = _FrameProgress(self.bar, jobs)
        self._writers: dict[str, Writer] = {}
        self._failures_before = {job.name: self.run.failure_mtime(job.name) for job in jobs}
        self._process_unlocked(jobs)
        if not wait:
            return
        unresolved = [job for job in jobs if not self._is_resolved(job)]
        self.locks.wait([job.name for job in unresolved])
        self._process_unlocked(unresolved)

    def _process_unlocked(self, jobs: list[VideoJob]) -> None:
        try:
            for job, event in self.encoder.encode(self.source.run(self._claim(jobs))):
                try:
                    self._handle(job, event)
                except VideoError as error:
                    self._fail(job, error)
        finally:
            for writer in self._writers.values():
                writer.abort()

    def _claim(self, jobs: Iterable[VideoJob]) -> Iterator[VideoJob]:
        """The videos that are neither resolved nor locked by another process, each locked for this one."""
        for job in jobs:
            if self._is_resolved(job) or not self.locks.acquire(job.name):
                continue
            if self._is_resolved(job):  # between the two
                self.locks.release(job.name)
            else:
                yield job

    def _is_resolved(self, job: VideoJob) -> bool:
        """Whether the video is finished, or has failed since this run began, here or in another process.

        The progress bar then expects no more of it.
        """
        is_resolved = (
            self.run.has_part(job.name) or self.run.failure_mtime(job.name) != self._failures_before[job.name]
        )
        if is_resolved:
            self._progress.finish(job)
        return is_resolved

    def _handle(self, job: VideoJob, event: Any) -> None:
        """Act on one event of a video.

        Raises:
            VideoError: the video has failed.
        """
        match event:
            case VideoInfo():
                work = "decoding what they need" if event.is_seekable else "decoding the whole video"
                logger.debug("%s: %d candidate frames, %s", job.path, event.num_candidates, work)
                self._progress.start(job, event.num_candidates)
                self._writers[job.name] = self.open_writer(job, event)
            case FeatureBatch():
                self._writers[job.name].add(event)
                self._progress.advance(job, len(event.frame_indices))
            case EndOfVideo():
                self._writers[job.name].close(event)
                del self._writers[job.name]
                self._progress.finish(job)
                self.locks.release(job.name)
                self.num_done += 1
                logger.info("%s: done", job.path)
            case Restarted():
                self._discard(job)
            case VideoError():
                raise event

    def _fail(self, job: VideoJob, error: VideoError) -> None:
        """Record that a video cannot be processed, and stop working on it."""
        self.source.cancel(job)
        self._discard(job)
        self._progress.finish(job)
        self.run.record_failure(job.name, str(error), [question.id for question in job.questions])
        self.locks.release(job.name)
        logger.warning("failed: %s: %s", job.path, error)

    def _discard(self, job: VideoJob) -> None:
        """Discard what has been computed of a video."""
        self.encoder.discard(job)
        with contextlib.suppress(KeyError):
            self._writers.pop(job.name).abort()
        self._progress.restart(job)


class _FrameProgress:
    """A bar of frames whose total is corrected as videos are opened, finish or fail."""

    def __init__(self, bar: tqdm, jobs: list[VideoJob]) -> None:
        self._bar = bar
        self._num_expected = {job.name: job.expected_frames for job in jobs}
        self._num_seen = dict.fromkeys(self._num_expected, 0)

    def start(self, job: VideoJob, num_frames: int) -> None:
        """Replace a video's estimate by what opening it told."""
        self._bar.total += num_frames - self._num_expected[job.name]
        self._num_expected[job.name] = num_frames

    def advance(self, job: VideoJob, num_frames: int) -> None:
        """Count frames of a video."""
        self._num_seen[job.name] += num_frames
        self._bar.update(num_frames)

    def restart(self, job: VideoJob) -> None:
        """Take back the frames of a video."""
        self._bar.n -= self._num_seen[job.name]
        self._bar.refresh()
        self._num_seen[job.name] = 0

    def finish(self, job: VideoJob) -> None:
        """Expect no further frames of a video."""
        self.start(job, self._num_seen[job.name])
