"""Passes of frames through a model on a GPU: always full, whatever the lengths of the videos.

Decoding processes deliver small batches of several videos in turn. :class:`CrossVideoBatcher` gathers them
until a pass is full, and makes batches of what comes out again. Every pass has the same shape, the last one filled
up with black, and scores are computed batch by batch; so a frame's numbers depend neither on its neighbours
nor on its place. (They may depend, in the last digits, on the size of the passes and on the GPU.)

While the GPU works at one pass, the next is gathered::

    GPU     | encode 1 | score 1 | encode 2 | score 2 |
    host    | gather 2 | 1's     | gather 3 | 2's scores to their videos
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from aks.errors import UserError
from aks.extraction.decoding import EndOfVideo, FrameBatch
from aks.extraction.feature_store import FeatureBatch
from aks.scorers.base import Scorer

MAX_FRAMES = 128  # more gain nothing: 32 frames of 577 tokens fill a large GPU
MEMORY_FRACTION = 0.5  # of the free memory, for what a pass holds; the rest is for scoring

# A video's frames in a pass, as a batch and which part of it, or the end of the video.
_Item = tuple[str | None, tuple[FrameBatch, slice] | EndOfVideo]


class CrossVideoBatcher:
    """Gathers frames of several videos and encodes them together.

    Args:
        scorer: the model.
        frames: frames in a pass.
    """

    def __init__(self, scorer: Scorer, frames: int) -> None:
        """Nothing is gathered yet."""
        self._scorer, self._frames = scorer, frames
        blank = scorer.preprocess(np.zeros((32, 32, 3), dtype=np.uint8))
        pinned = scorer.device.type == "cuda"  # copied from while the next pass is gathered in the other one
        self._buffers = [torch.zeros(frames, *blank.shape, pin_memory=pinned) for _ in range(2)]
        self._copied: list[torch.cuda.Event | None] = [None, None]  # when the GPU has a room's content
        self._filled = 0
        self._items: list[_Item] = []  # of the pass that is being gathered
        self._dropped: set[str] = set()
        self._parts: list[torch.Tensor] = []  # of a batch that reaches into the next pass
        self._in_flight: tuple[torch.Tensor, list[_Item]] | None = None  # encoded, not delivered

    def add(
        self, name: str, event: FrameBatch | EndOfVideo
    ) -> Iterator[tuple[str, FeatureBatch | EndOfVideo]]:
        """Take a batch or the end of a video; yields what has become ready, in the order it was added.

        Raises:
            UserError: the GPU's memory does not suffice.
        """
        self._dropped.discard(name)
        if isinstance(event, EndOfVideo):
            self._items.append((name, event))
            return
        start, count = 0, len(event.frame_indices)
        kept = replace(event, inputs=event.inputs[:0])  # its memory is filled anew
        while start < count:
            end = min(count, start + self._frames - self._filled)
            room = self._buffers[0][self._filled : self._filled + end - start]
            room.copy_(torch.from_numpy(event.inputs[start:end]))
            self._items.append((name, (kept, slice(start, end))))
            self._filled += end - start
            start = end
            if self._filled == self._frames:
                yield from self._encode()
                if name in self._dropped:  # for what it had in the pass before
                    return

    def flush(self) -> Iterator[tuple[str, FeatureBatch | EndOfVideo]]:
        """What is left at the end."""
        if self._filled:
            self._buffers[0][self._filled :] = 0
            yield from self._encode()
        yield from self._emit()
        yield from ((name, event) for name, event in self._items if name is not None)  # ends alone
        self._items = []

    def _merge(self, features: torch.Tensor, batch: FrameBatch, part: slice) -> torch.Tensor | None:
        """All of a batch, once its last part has come: scores are computed batch by batch, too."""
        self._parts = [*self._parts, features] if part.start else [features]
        if part.stop < len(batch.frame_indices):
            return None
        return self._parts[0] if len(self._parts) == 1 else torch.cat(self._parts)

    def discard(self, name: str) -> None:
        """Forget a video."""
        self._dropped.add(name)
        for items in (self._items, self._in_flight[1] if self._in_flight else []):
            items[:] = [(None if item[0] == name else item[0], item[1]) for item in items]

    def _encode(self) -> Iterator[tuple[str, FeatureBatch | EndOfVideo]]:
        yield from self._emit()
        inputs = self._buffers[0].to(self._scorer.device, non_blocking=True)
        if inputs.is_cuda:
            self._copied[0] = torch.cuda.current_stream(inputs.device).record_event()
        try:
            self._in_flight = self._scorer.encode_frames(inputs), self._items
        except torch.cuda.OutOfMemoryError:
            raise UserError(
                f"out of GPU memory with {self._frames} frames in a pass; "
                f"use --batch_size {self._frames // 2 or 1}"
            ) from None
        self._buffers.reverse()
        self._copied.reverse()
        if self._copied[0] is not None:
            self._copied[0].synchronize()
        self._filled, self._items = 0, []

    def _emit(self) -> Iterator[tuple[str, FeatureBatch | EndOfVideo]]:
        if self._in_flight is None:
            return
        features, items = self._in_flight
        at = 0
        for index in range(len(items)):
            name, event = items[index]  # looked up late: what was delivered before may have dropped the video
            if isinstance(event, EndOfVideo):
                if name is not None:
                    yield name, event
                continue
            batch, part = event
            end = at + part.stop - part.start
            whole = self._merge(features[at:end], batch, part)
            if whole is not None and name is not None:
                yield name, FeatureBatch(batch.offset, batch.frame_indices, batch.times_s, whole)
            at = end
        self._in_flight = None


def max_batch_size(scorer: Scorer) -> int:
    """Frames in a pass, a power of two, so that encoding takes no more than half of the GPU's free memory."""
    blank = scorer.preprocess(np.zeros((32, 32, 3), dtype=np.uint8))
    inputs = blank.expand(2, *blank.shape).to(scorer.device)
    before = torch.cuda.memory_allocated(scorer.device)
    torch.cuda.reset_peak_memory_stats(scorer.device)
    scorer.encode_frames(inputs)
    each = max(1, torch.cuda.max_memory_allocated(scorer.device) - before) / len(inputs)
    free, _ = torch.cuda.mem_get_info(scorer.device)
    return power_of_two(MEMORY_FRACTION * free / each)


def power_of_two(frames: float) -> int:
    """The greatest power of two that is no greater, from 1 to :data:`MAX_FRAMES`."""
    return 2 ** int(math.log2(min(max(frames, 1), MAX_FRAMES)))
