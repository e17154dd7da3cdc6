"""Encodes frames: video by video, or in full passes through a GPU that take frames of several videos.

An encoder takes a decoder's ``(job, event)`` pairs and yields them again, with a :class:`FeatureBatch` in
place of every :class:`~aks.extraction.decoding.FrameBatch`.

With a :class:`CrossVideoBatcher` every pass has the same shape, the last one filled up with black, and scores
are computed batch by batch. So the numbers of a frame depend neither on its neighbours nor on its position.
(They may depend, in the last digits, on the size of the passes and on the GPU.) While the GPU encodes one
pass, the next one is gathered::

    GPU     | encode 1 | score 1 | encode 2 | score 2 |
    host    | gather 2 | 1's     | gather 3 | 2's scores to their videos
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from aks.errors import UserError
from aks.extraction.decoding import EndOfVideo, FrameBatch
from aks.labels import VideoJob
from aks.scorers.base import Scorer

MAX_BATCH_SIZE = 128  # larger passes gain nothing: 32 frames of 577 tokens fill a large GPU
MAX_VIDEOS = 16  # decoded at a time, unless --workers asks for more
MEMORY_FRACTION = 0.5  # of the GPU's free memory, for a pass; the rest is for scoring

Stream = Iterator[tuple[VideoJob, Any]]  # a video and an event


@dataclass(frozen=True)
class FeatureBatch:
    """Neighbouring candidate frames after the model.

    Attributes:
        offset, frame_indices, times_s: as of :class:`~aks.extraction.decoding.FrameBatch`.
        features: what the scorer's ``encode_frames`` gives, (n, ...).
    """

    offset: int
    frame_indices: np.ndarray
    times_s: np.ndarray
    features: torch.Tensor


@dataclass
class PerVideoEncoder:
    """Encodes every batch by itself; batches that are encoded already pass through."""

    scorer: Scorer

    def encode(self, events: Iterable[tuple[VideoJob, Any]]) -> Stream:
        """Encode what a decoder yields."""
        for job, event in events:
            if isinstance(event, FrameBatch):
                # A copy, so that sums do not depend on the alignment of the decoder's memory.
                inputs = torch.from_numpy(event.inputs).clone()
                features = self.scorer.encode_frames(inputs)
                event = FeatureBatch(event.offset, event.frame_indices, event.times_s, features)
            yield job, event

    def discard(self, job: VideoJob) -> None:
        """Nothing of a video is kept here."""


class CrossVideoBatcher:
    """Gathers frames of several videos and encodes them together, ``batch_size`` in a pass."""

    def __init__(self, scorer: Scorer, batch_size: int) -> None:
        self._scorer, self._batch_size = scorer, batch_size
        black = scorer.preprocess(np.zeros((32, 32, 3), dtype=np.uint8))
        pinned = scorer.device.type == "cuda"  # the GPU copies one buffer while the other one is filled
        self._buffers = [torch.zeros(batch_size, *black.shape, pin_memory=pinned) for _ in range(2)]
        self._copied: list[torch.cuda.Event | None] = [None, None]  # the GPU has read the buffer
        self._num_filled = 0
        # Of the pass being gathered: a video's frames, as a batch and which part of it, or the video's end;
        # None in place of a video that was discarded.
        self._items: list[tuple[VideoJob | None, tuple[FrameBatch, slice] | EndOfVideo]] = []
        self._in_flight: tuple[torch.Tensor, list] | None = None  # features and items of the pass before
        self._parts: list[torch.Tensor] = []  # features of a batch that reaches into the next pass
        self._discarded: set[str] = set()

    def encode(self, events: Iterable[tuple[VideoJob, Any]]) -> Stream:
        """Encode what a decoder yields; batches and ends of videos come later than they went in.

        Raises:
            UserError: the GPU's memory does not suffice.
        """
        for job, event in events:
            if isinstance(event, FrameBatch):
                yield from self._gather(job, event)
            elif isinstance(event, EndOfVideo):
                self._items.append((job, event))
            else:
                yield job, event
        if self._num_filled:
            self._buffers[0][self._num_filled :] = 0
            yield from self._start_pass()
        yield from self._finish_pass()
        yield from ((job, event) for job, event in self._items if job)  # ends that followed the last frame
        self._items = []

    def discard(self, job: VideoJob) -> None:
        """Forget the frames and the end of a video that are still here."""
        self._discarded.add(job.name)
        for items in (self._items, self._in_flight[1] if self._in_flight else []):
            items[:] = [(None if owner and owner.name == job.name else owner, item) for owner, item in items]

    def _gather(self, job: VideoJob, batch: FrameBatch) -> Stream:
        """Copy a batch into the next passes; yield what the passes before have given."""
        self._discarded.discard(job.name)
        without_inputs = replace(batch, inputs=batch.inputs[:0])  # the decoder overwrites their memory
        start, stop = 0, len(batch.frame_indices)
        while start < stop:
            end = min(stop, start + self._batch_size - self._num_filled)
            buffer = self._buffers[0][self._num_filled : self._num_filled + end - start]
            buffer.copy_(torch.from_numpy(batch.inputs[start:end]))
            self._items.append((job, (without_inputs, slice(start, end))))
            self._num_filled += end - start
            start = end
            if self._num_filled == self._batch_size:
                yield from self._start_pass()
                if job.name in self._discarded:  # because of its frames in the pass before
                    return

    def _start_pass(self) -> Stream:
        """Let the GPU encode what is gathered; yield what the pass before has given."""
        yield from self._finish_pass()
        inputs = self._buffers[0].to(self._scorer.device, non_blocking=True)
        if inputs.is_cuda:
            self._copied[0] = torch.cuda.current_stream(inputs.device).record_event()
        try:
            self._in_flight = self._scorer.encode_frames(inputs), self._items
        except torch.cuda.OutOfMemoryError:
            raise UserError(
                f"out of GPU memory with {self._batch_size} frames in a pass; "
                f"use --batch_size {self._batch_size // 2 or 1}"
            ) from None
        self._buffers.reverse()
        self._copied.reverse()
        if self._copied[0] is not None:
            self._copied[0].synchronize()
        self._num_filled, self._items = 0, []

    def _finish_pass(self) -> Stream:
        """Yield the batches that the pass in flight completes, and the ends of videos in it."""
        if self._in_flight is None:
            return
        features, items = self._in_flight
        offset = 0
        for index in range(len(items)):
            job, item = items[index]  # only now: a batch yielded before may have caused a discard
            if isinstance(item, EndOfVideo):
                if job:
                    yield job, item
                continue
            batch, part = item
            end = offset + part.stop - part.start
            self._parts = [*(self._parts if part.start else []), features[offset:end]]
            offset = end
            if job and part.stop == len(batch.frame_indices):  # complete: scores are computed batch by batch
                whole = self._parts[0] if len(self._parts) == 1 else torch.cat(self._parts)
                yield job, FeatureBatch(batch.offset, batch.frame_indices, batch.times_s, whole)
        self._in_flight = None


def max_batch_size(scorer: Scorer) -> int:
    """The largest pass that takes at most half of the GPU's free memory to encode.

    It is a power of two, from 1 to :data:`MAX_BATCH_SIZE`. Of each video in work, the features of as many
    frames as a pass has may wait for their scores.
    """
    black = scorer.preprocess(np.zeros((32, 32, 3), dtype=np.uint8))
    inputs = black.expand(2, *black.shape).to(scorer.device)
    before = torch.cuda.memory_allocated(scorer.device)
    torch.cuda.reset_peak_memory_stats(scorer.device)
    features = scorer.encode_frames(inputs)
    peak = torch.cuda.max_memory_allocated(scorer.device) - before
    per_frame = max(1, peak + MAX_VIDEOS * features.nbytes) / len(inputs)
    free, _ = torch.cuda.mem_get_info(scorer.device)
    frames = MEMORY_FRACTION * free / per_frame
    return 2 ** int(math.log2(min(max(frames, 1), MAX_BATCH_SIZE)))
