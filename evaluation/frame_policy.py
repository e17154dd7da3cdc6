"""Decides which frames of a video a question is shown, and reads them, for every model and task.

A document of the tasks in ``datasets/`` carries the keyframes' indices in ``frame_idx`` (written by
``change_score.py``), and beside them the selection they came from in ``frame_budget`` and ``frame_sha256``.
A question without frames, an index beyond the video or a selection for another budget ends the evaluation
with one line. Repairing it here would give lmms-eval an answer about other frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aks.cores import count_cores, count_local_processes
from aks.errors import VideoError
from aks.video.codec_log import reset_decoder_globals
from aks.video.reader import DecodedFrames, Video, read_header
from evaluation.errors import EvaluationError
from evaluation.uniform import uniform_linspace

SHORT_SELECTIONS = ("strict", "paper")
MAX_THREADS = 16  # of a process; each holds some pictures, 100 MB of a 4K film's


@dataclass(frozen=True)
class FramePolicy:
    """What a model shows of each video."""

    use_topk: bool  # the selected keyframes, or the model's own uniform frames
    budget: int  # most frames a question gets
    # What a question with fewer keyframes than the budget is shown: "strict" shows them as selected, "paper"
    # shows as many uniform frames as the budget instead, as the released code does.
    short_selection: str = "strict"
    digest: str = ""  # the selection's SHA-256, or its beginning; empty for any selection

    def __post_init__(self) -> None:
        """Refuse values that would silently mean something else."""
        if not isinstance(self.use_topk, bool):
            raise EvaluationError(f"model argument use_topk={self.use_topk}: use True or False")
        if self.short_selection not in SHORT_SELECTIONS:
            raise EvaluationError(
                f"model argument short_selection={self.short_selection}: use {' or '.join(SHORT_SELECTIONS)}"
            )
        if isinstance(self.budget, bool) or not isinstance(self.budget, int) or self.budget < 1:
            raise EvaluationError(f"{self.budget!r} frames a question: must be a whole number, 1 or more")

    def keyframes(self, doc: Mapping[str, Any]) -> np.ndarray | None:
        """Frame indices to show, (n,) int64 ascending; None where upstream chooses uniform frames.

        Raises:
            EvaluationError: the document's frames do not fit (it is named).
        """
        if not self.use_topk:
            return None
        frame_indices = parse_frame_idx(doc)
        budget = doc.get("frame_budget")
        if budget is not None and budget != self.budget:
            raise EvaluationError(
                f"its keyframes were selected for {budget} frames, the model shows {self.budget}; "
                "merge the selection that fits with evaluation/change_score.py",
                doc,
            )
        if self.digest and not str(doc.get("frame_sha256", "")).startswith(self.digest):
            raise EvaluationError(
                f"its keyframes come from selection {doc.get('frame_sha256', '(not recorded)')}, "
                f"not from {self.digest} as frames_digest says",
                doc,
            )
        if len(frame_indices) > self.budget:
            raise EvaluationError(
                f"{len(frame_indices)} keyframes, the model shows {self.budget}; cutting them would show "
                "only the start of the video; merge a selection for the model's number of frames",
                doc,
            )
        if len(frame_indices) < self.budget and self.short_selection == "paper":
            return None
        if not len(frame_indices):
            raise EvaluationError(
                "its selection is empty (the video failed in step 1?); "
                "mend it there, or drop the question from the label file",
                doc,
            )
        return frame_indices

    def uses_uniform_fallback(self, doc: Mapping[str, Any]) -> bool:
        """Whether ``short_selection=paper`` replaces this document's selection by uniform frames."""
        return self.use_topk and self.short_selection == "paper" and len(parse_frame_idx(doc)) < self.budget

    def frames_to_read(self, doc: Mapping[str, Any]) -> np.ndarray | int | None:
        """What :func:`read_frames` shows: keyframes, or a number of uniform frames in place of too few.

        None where upstream chooses uniform frames.
        """
        frame_indices = self.keyframes(doc)
        return self.budget if self.uses_uniform_fallback(doc) else frame_indices


class KeyframePath(str):
    """A video's path that knows which question it is for and which frames to show."""

    doc: Mapping[str, Any]  # the question
    frames: np.ndarray | int | None  # as of FramePolicy.frames_to_read
    patch_size: int  # side of an image patch in pixels; Qwen's pixel budget counts it
    num_read = 0  # frames that this project's reader has handed to the model

    @classmethod
    def of(cls, path: str, doc: Mapping[str, Any], policy: FramePolicy, patch_size: int = 0) -> KeyframePath:
        """The path with what the policy shows of it."""
        video = cls(path)
        video.doc, video.frames, video.patch_size = doc, policy.frames_to_read(doc), patch_size
        return video

    @property
    def was_read(self) -> bool:
        """Whether this project's reader has read it, and no other."""
        return self.num_read > 0


def parse_frame_idx(doc: Mapping[str, Any]) -> np.ndarray:
    """A document's ``frame_idx`` as (n,) int64; whole floats pass, the released VideoMME files hold them.

    Raises:
        EvaluationError: there is none, or it holds something else than ascending frame indices.
    """
    row = doc.get("frame_idx")
    if row is None:
        raise EvaluationError(
            "no frame_idx; merge a selection into the labels with evaluation/change_score.py, "
            "or evaluate uniform frames with use_topk=False",
            doc,
        )
    if not isinstance(row, Sequence) or isinstance(row, str | bytes):
        raise EvaluationError(f"frame_idx is {row!r}, not a list", doc)
    for index in row:
        is_whole = isinstance(index, int | float) and not isinstance(index, bool) and index == int(index)
        if not is_whole or index < 0:
            raise EvaluationError(f"frame_idx holds {index!r}, no frame number", doc)
    frame_indices = np.asarray(row, dtype=np.int64)
    if (np.diff(frame_indices) <= 0).any():
        raise EvaluationError("frame_idx is not ascending; frames would be shown out of order", doc)
    return frame_indices


def read_frames(
    path: str | Path, frames: np.ndarray | int | Callable[[Video], np.ndarray], doc: Mapping[str, Any]
) -> tuple[DecodedFrames, Video]:
    """Decode the frames a question is shown.

    Args:
        path: the video.
        frames: frame indices, (n,) ascending; a number of uniform frames from the first to the last; or what
            chooses the indices in the open video.
        doc: the question, for messages.

    Returns:
        The frames in that order, and the (closed) video for its rate and length.

    Raises:
        EvaluationError: an index lies beyond the video, or the video cannot be read.
    """
    try:
        with Video(path) as video:
            if isinstance(frames, int):
                frame_indices = uniform_linspace(video.num_frames, frames)
            else:
                frame_indices = frames(video) if callable(frames) else frames
            # Uniform frames of a very short video repeat; each is decoded once.
            distinct, offsets = np.unique(frame_indices, return_inverse=True)
            if distinct[-1] >= video.num_frames:
                raise EvaluationError(
                    f"{path}: keyframe {distinct[-1]} lies beyond the video's {video.num_frames} frames; "
                    "the selection was made for another video or label file",
                    doc,
                )
            read = video.read_all(distinct, threads=_num_threads())
    except VideoError as error:
        raise EvaluationError(f"{path}: {error}", doc) from None
    return DecodedFrames(distinct[offsets], read.times_s[offsets], read.pixels[offsets]), video


def _num_threads() -> int:
    """Threads that read a question's frames: this process's share of the cores, within what memory bears."""
    return max(1, min(MAX_THREADS, count_cores() // count_local_processes()))


def check_video(path: str | Path, frame_indices: np.ndarray | None) -> str | None:
    """What is wrong with a video, or None.

    Reads the header alone, which is cheap enough for a whole benchmark.
    """
    path = Path(path).absolute()
    if not path.is_file():
        return f"{path}: video file not found"
    reset_decoder_globals()
    try:
        num_frames = read_header(path).num_frames
    except VideoError as error:
        return f"{path}: {error}"
    if frame_indices is not None and num_frames and frame_indices[-1] >= num_frames:
        return f"{path}: keyframe {frame_indices[-1]} lies beyond the video's {num_frames} frames"
    return None
