"""Sources of videos: one in this process, and a pool of decoding processes that work on several at once.

Both yield ``(job, event)`` pairs, see :mod:`aks.extraction.decoding`, and take ``cancel(job)`` at any time;
of a cancelled video no further event comes.

A decoding process is at most ``PREFETCH_BATCHES`` batches ahead of the model, so memory is bounded whatever
the videos. A process that dies or exceeds its time limit is replaced. One that finds no video left takes over
half of what another one still has to do. The processes are fresh interpreters (not forks of a process with
threads or CUDA), share a socket and unnamed memory with this one, and end with it, even by SIGKILL.

No library found covers this: a time limit that ends a decoder hanging in C while the others go on, batches in
shared memory with back-pressure, and several processes on one long video. (A DataLoader ends with the first
worker that dies; pools of futures, pebble and loky among them, hand over whole results by pickling.)
"""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from typing import Any

from aks.errors import UserError, VideoError
from aks.extraction.decoding import DecodeSpec, EndOfVideo, FrameBatch, FrameRange, VideoInfo, decode
from aks.extraction.worker_handle import Worker
from aks.labels import VideoJob
from aks.video import default_timeout_s
from aks.video.reader import estimate_candidates

logger = logging.getLogger(__name__)

POLL_INTERVAL_S = 0.5  # between two looks at the time limits
HEADER_TIMEOUT_S = 20.0  # for reading a header
EXIT_TIMEOUT_S = 5.0  # for a process that has closed its connection to end by itself


class Restarted:
    """The process that decoded a video died: discard the video's results, it starts again."""


Event = VideoInfo | FrameBatch | EndOfVideo | Restarted | VideoError


def make_decoder(
    spec: DecodeSpec, num_workers: int, video_timeout_s: float | None
) -> WorkerPool | SerialSource:
    """A pool of decoding processes; without any, a decoder in this process."""
    if num_workers:
        return WorkerPool(spec, num_workers, video_timeout_s)
    inputs = spec.empty_batch()
    return SerialSource(
        lambda job: decode(job.path, spec, lambda: inputs), lambda job: estimate_candidates(job.path)
    )


class SerialSource(contextlib.AbstractContextManager):
    """Reads one video after another in this process, where nothing can end a decoder that hangs.

    Args:
        read: yields the events of a video, or raises a VideoError.
        count: the number of a video's candidates, or an estimate; 0 where unknown.
    """

    def __init__(self, read: Callable[[VideoJob], Iterator[Any]], count: Callable[[VideoJob], int]) -> None:
        self._read, self._count = read, count
        self._cancelled: set[str] = set()

    def __exit__(self, *_: object) -> None:
        pass

    def count_frames(self, jobs: list[VideoJob]) -> dict[str, int]:
        """The number of each video's candidates, or an estimate; 0 where unknown."""
        return {job.name: self._count(job) for job in jobs}

    def run(self, jobs: Iterator[VideoJob]) -> Iterator[tuple[VideoJob, Any]]:
        """Read the videos."""
        for job in jobs:
            try:
                for event in self._read(job):
                    yield job, event
                    if job.name in self._cancelled:
                        break
            except UserError:  # a mistake that concerns every video, such as a decoder that is not installed
                raise
            except VideoError as error:
                yield job, error
            except Exception as error:  # whatever one video causes, the next one gets its chance
                yield job, VideoError(f"{type(error).__name__}: {error}")

    def cancel(self, job: VideoJob) -> None:
        """Stop reading a video."""
        self._cancelled.add(job.name)


class WorkerPool(contextlib.AbstractContextManager):
    """Decodes several videos at once, in processes of their own.

    Args:
        spec: how videos are decoded.
        num_workers: number of processes, 1 or more.
        video_timeout_s: seconds that decoding one video may take; None for 60 plus four times its length.
    """

    def __init__(self, spec: DecodeSpec, num_workers: int, video_timeout_s: float | None = None) -> None:
        """Start nothing yet; processes start with the first videos."""
        self._spec, self._video_timeout_s = spec, video_timeout_s
        self._empty_batch = spec.empty_batch()
        self._workers: list[Worker | None] = [None] * num_workers
        self._can_start_helpers = True

    def __exit__(self, *_: object) -> None:
        for worker in filter(None, self._workers):
            worker.kill()
        self._workers = [None] * len(self._workers)

    def count_frames(self, jobs: list[VideoJob]) -> dict[str, int]:
        """Estimate each video's candidates; 0 where reading its header tells nothing, hangs or crashes."""
        counts = dict.fromkeys((job.name for job in jobs), 0)
        for job, event in self._run(iter(jobs), lambda job: (job.path,), lambda worker: HEADER_TIMEOUT_S):
            if isinstance(event, int):
                counts[job.name] = event
        return counts

    def run(self, jobs: Iterator[VideoJob]) -> Iterator[tuple[VideoJob, Event]]:
        """Decode the videos, several at once; the batches of a long one may come in any order."""
        return self._run(jobs, lambda job: (job.path, FrameRange()), self._video_timeout)

    def cancel(self, job: VideoJob) -> None:
        """End the processes that work on a video."""
        for worker in self._workers_on(job):
            self._terminate(worker)

    def _video_timeout(self, worker: Worker) -> float:
        if self._video_timeout_s is not None:
            return self._video_timeout_s
        return default_timeout_s(max(worker.job.expected_frames, worker.duration_s))

    def _run(
        self,
        jobs: Iterator[VideoJob],
        request: Callable[[VideoJob], tuple],
        timeout: Callable[[Worker], float],
    ) -> Iterator[tuple[VideoJob, Event | int]]:
        restarting: list[VideoJob] = []
        restarted: set[str] = set()
        while True:
            self._assign_idle(jobs, restarting, request)
            busy = {worker.connection: worker for worker in self._workers if worker and worker.job}
            if not busy:
                return
            ready = wait(list(busy), timeout=POLL_INTERVAL_S)
            for connection in ready:
                worker = busy[connection]
                job = worker.job
                if job is None:  # cancelled since
                    continue
                try:
                    event = worker.receive()
                except (EOFError, ConnectionResetError):
                    cause = self._terminate(worker, EXIT_TIMEOUT_S)
                    self.cancel(job)
                    if job.name in restarted:
                        yield job, VideoError(f"the decoding process died twice at it ({cause})")
                    else:
                        logger.debug("%s: the decoding process died (%s); starting again", job.name, cause)
                        restarted.add(job.name)
                        restarting.append(job)
                        yield job, Restarted()
                    continue
                # A process that has finished its range does not end a video on which others still work.
                if event is None or (isinstance(event, EndOfVideo) and self._workers_on(job)):
                    continue
                if isinstance(event, UserError):  # a mistake that concerns every video
                    raise event
                if isinstance(event, VideoError):
                    self.cancel(job)
                yield job, event
                if isinstance(event, FrameBatch) and worker.job is job:
                    worker.release_buffer()
            for connection, worker in busy.items():
                # What a process has sent while the model was at work is not late.
                if connection in ready or worker.job is None or connection.poll():
                    continue
                worker.check_start()
                seconds, limit = worker.decode_seconds(), timeout(worker)
                if seconds > limit:
                    job, last = worker.job, worker.last_frame
                    self.cancel(job)
                    where = f"after frame {last}" if last is not None else "before the first frame"
                    yield (
                        job,
                        VideoError(
                            f"time limit: given up {where}, {seconds:.0f} s of decoding; --video_timeout "
                            f"sets the limit (here {limit:g} s)"
                        ),
                    )

    def _assign_idle(
        self, jobs: Iterator[VideoJob], restarting: list[VideoJob], request: Callable[[VideoJob], tuple]
    ) -> None:
        """Give every idle process a video, or half of what another one has left; start processes."""
        for index, worker in enumerate(self._workers):
            if worker is not None and worker.job is not None:
                continue
            job = restarting.pop() if restarting else next(jobs, None)
            busiest = None if job else self._busiest()
            if job is None and (busiest is None or not (worker or self._can_start_helpers)):
                return
            try:
                worker = worker or Worker(self._spec, self._empty_batch)
            except UserError:
                if job is None:  # the owner of the video finishes alone
                    self._can_start_helpers = False
                    return
                raise
            self._workers[index] = worker
            if job is None:
                worker.take_half_of(busiest)
            else:
                worker.assign(job, request(job))

    def _workers_on(self, job: VideoJob) -> list[Worker]:
        return [worker for worker in self._workers if worker is not None and worker.job is job]

    def _busiest(self) -> Worker | None:
        """The process with most candidates left, among those whose rest is worth sharing."""
        divisible = [worker for worker in self._workers if worker and worker.split_point() is not None]
        return max(divisible, key=Worker.num_remaining, default=None)

    def _terminate(self, worker: Worker, patience_s: float = 0) -> str:
        """End a process and forget it; return how it ended, in words.

        Raises:
            UserError: the process could not start.
        """
        self._workers[self._workers.index(worker)] = None
        worker.job = None
        status = worker.kill(patience_s)
        if status > 0 and not worker.is_ready:
            raise UserError(
                f"a decoding process cannot start (exit status {status}, see above); --workers 0 decodes in "
                "the main process"
            )
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"
