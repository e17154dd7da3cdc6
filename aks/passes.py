"""Passes of frames through a model on a GPU: always full, whatever the lengths of the videos.

Decoding processes deliver small batches of several videos in turn. :class:`Mixer` gathers them until a
pass is full, and splits what comes out again. Every pass has the same shape, the last one filled up with
black, so a frame's numbers depend neither on its neighbours nor on its place.

While the GPU works at one pass, the next is gathered::

    GPU     | encode 1 | score 1 | encode 2 | score 2 |
    host    | gather 2 | 1's     | gather 3 | 2's scores to their videos
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from aks.decoding import Batch, Done
from aks.errors import UserError
from aks.features import Encoded
from aks.scorers import Scorer

MOST_FRAMES = 128  # more gain nothing: 32 frames of 577 tokens fill a large GPU
SHARE = 0.5  # of the free memory, for what a pass holds; the rest is for scoring

# A video's frames in a pass, or the end of the video.
_Item = tuple[str | None, Batch | Done]


class Mixer:
    """Gathers frames of several videos and encodes them together.

    Args:
        scorer: the model.
        frames: frames in a pass.
    """

    def __init__(self, scorer: Scorer, frames: int) -> None:
        """Nothing is gathered yet."""
        self._scorer, self._frames = scorer, frames
        blank = scorer.prepare(np.zeros((32, 32, 3), dtype=np.uint8))
        pinned = scorer.device.type == "cuda"  # copied from while the next pass is gathered in the other one
        self._rooms = [torch.zeros(frames, *blank.shape, pin_memory=pinned) for _ in range(2)]
        self._filled = 0
        self._items: list[_Item] = []  # of the pass that is being gathered
        self._ahead: tuple[torch.Tensor, list[_Item]] | None = None  # encoded, not delivered

    def add(self, name: str, event: Batch | Done) -> Iterator[tuple[str, Encoded | Done]]:
        """Take a batch or the end of a video; yields what has become ready, in the order it was added.

        Raises:
            UserError: the GPU's memory does not suffice.
        """
        if isinstance(event, Done):
            self._items.append((name, event))
            return
        start, count = 0, len(event.numbers)
        while start < count:
            end = min(count, start + self._frames - self._filled)
            room = self._rooms[0][self._filled : self._filled + end - start]
            room.copy_(torch.from_numpy(event.inputs[start:end]))
            self._items.append(
                (name, Batch(event.numbers[start:end], event.times_s[start:end], event.inputs[:0]))
            )
            self._filled += end - start
            start = end
            if self._filled == self._frames:
                yield from self._turn()

    def rest(self) -> Iterator[tuple[str, Encoded | Done]]:
        """What is left at the end."""
        if self._filled:
            self._rooms[0][self._filled :] = 0
            yield from self._turn()
        yield from self._deliver()
        yield from ((name, event) for name, event in self._items if name is not None)  # ends alone
        self._items = []

    def drop(self, name: str) -> None:
        """Forget a video."""
        for items in (self._items, self._ahead[1] if self._ahead else []):
            items[:] = [(None if item[0] == name else item[0], item[1]) for item in items]

    def _turn(self) -> Iterator[tuple[str, Encoded | Done]]:
        yield from self._deliver()
        try:
            inputs = self._rooms[0].to(self._scorer.device, non_blocking=True)
            self._ahead = self._scorer.encode_frames(inputs), self._items
        except torch.cuda.OutOfMemoryError:
            raise UserError(
                f"out of GPU memory with {self._frames} frames in a pass; "
                f"use --batch_size {self._frames // 2 or 1}"
            ) from None
        self._rooms.reverse()
        self._filled, self._items = 0, []

    def _deliver(self) -> Iterator[tuple[str, Encoded | Done]]:
        if self._ahead is None:
            return
        features, items = self._ahead
        at = 0
        for index in range(len(items)):
            name, event = items[index]  # looked up late: what was delivered before may have dropped the video
            if isinstance(event, Done):
                if name is not None:
                    yield name, event
                continue
            end = at + len(event.numbers)
            if name is not None:
                yield name, Encoded(event.numbers, event.times_s, features[at:end])
            at = end
        self._ahead = None


def frames_that_fit(scorer: Scorer) -> int:
    """Frames in a pass, a power of two, so that encoding takes no more than half of the GPU's free memory."""
    blank = scorer.prepare(np.zeros((32, 32, 3), dtype=np.uint8))
    inputs = blank.expand(2, *blank.shape).to(scorer.device)
    before = torch.cuda.memory_allocated(scorer.device)
    torch.cuda.reset_peak_memory_stats(scorer.device)
    scorer.encode_frames(inputs)
    each = max(1, torch.cuda.max_memory_allocated(scorer.device) - before) / len(inputs)
    free, _ = torch.cuda.mem_get_info(scorer.device)
    return power_of_two(SHARE * free / each)


def power_of_two(frames: float) -> int:
    """The greatest power of two that is no greater, from 1 to :data:`MOST_FRAMES`."""
    return 2 ** int(math.log2(min(max(frames, 1), MOST_FRAMES)))
