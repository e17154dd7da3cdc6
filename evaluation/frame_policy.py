"""Which frames of a video a question is shown, and their pixels: one place for every model and task.

A document of the tasks in ``datasets/`` carries ``frame_idx`` (written by ``change_score.py``): the
keyframes' numbers, and beside it ``frame_budget`` and ``frame_sha256``, the selection they came from.
Nothing is mended here. A question without frames, an index out of range, a selection for another budget
end the evaluation with one line, because lmms-eval would take anything else for an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aks.errors import VideoError
from aks.video.backends import reset_decoder_globals
from aks.video.reader import DecodedFrames, Video, read_header

SHORT_SELECTIONS = ("strict", "paper")


class EvaluationError(SystemExit):
    """Ends the process with one line on standard error and status 1.

    No ``Exception``: upstream models catch those and go on with an answer of their own, and lmms-eval
    itself ends with status 0.
    """

    def __init__(self, text: str) -> None:
        """``text``: naming file, entry and remedy; a decoder's message in it may have several lines."""
        super().__init__(f"error: {' '.join(text.splitlines())}")


@dataclass(frozen=True)
class FramePolicy:
    """What a model shows of each video.

    Attributes:
        use_topk: the selected keyframes, or the model's own uniform frames.
        budget: most frames a question gets.
        short_selection: what becomes of a question with fewer keyframes than the budget: ``strict``
            shows them as selected, ``paper`` shows ``budget`` uniform frames instead, as the released
            code does.
        digest: the selection must be the one with this SHA-256 (or its beginning); empty for any.
    """

    use_topk: bool
    budget: int
    short_selection: str = "strict"
    digest: str = ""

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
        """Frame numbers to show, (n,) int64 ascending; None where upstream chooses uniform ones.

        Raises:
            EvaluationError: the document's frames do not fit (it is named).
        """
        if not self.use_topk:
            return None
        numbers = frame_numbers(doc)
        budget = doc.get("frame_budget")
        where = f"question {question_id(doc)}"
        if budget is not None and budget != self.budget:
            raise EvaluationError(
                f"{where}: its keyframes were selected for {budget} frames, the model shows {self.budget}; "
                "merge the selection that fits with evaluation/change_score.py"
            )
        if self.digest and not str(doc.get("frame_sha256", "")).startswith(self.digest):
            raise EvaluationError(
                f"{where}: its keyframes come from selection {doc.get('frame_sha256', '(not recorded)')}, "
                f"not from {self.digest} as frames_digest says"
            )
        if len(numbers) > self.budget:
            raise EvaluationError(
                f"{where}: {len(numbers)} keyframes, the model shows {self.budget}; cutting them would show "
                "only the start of the video; merge a selection for the model's number of frames"
            )
        if len(numbers) < self.budget and self.short_selection == "paper":
            return None
        if not len(numbers):
            raise EvaluationError(
                f"{where}: its selection is empty (the video failed in step 1?); "
                "mend it there, or drop the question from the label file"
            )
        return numbers

    def refills(self, doc: Mapping[str, Any]) -> bool:
        """Whether ``paper`` replaces this document's short selection."""
        return self.use_topk and self.short_selection == "paper" and len(frame_numbers(doc)) < self.budget


def question_id(doc: Mapping[str, Any]) -> str:
    """The document's own id, as its data set calls it."""
    return str(doc.get("id") or doc.get("question_id") or "without an id")


def frame_numbers(doc: Mapping[str, Any]) -> np.ndarray:
    """A document's ``frame_idx`` as (n,) int64; whole floats pass, the released VideoMME files hold them.

    Raises:
        EvaluationError: there is none, or it holds something else than ascending frame numbers.
    """
    where = f"question {question_id(doc)}"
    row = doc.get("frame_idx")
    if row is None:
        raise EvaluationError(
            f"{where}: no frame_idx; merge a selection into the labels with evaluation/change_score.py, "
            "or evaluate uniform frames with use_topk=False"
        )
    if not isinstance(row, Sequence) or isinstance(row, str | bytes):
        raise EvaluationError(f"{where}: frame_idx is {row!r}, not a list")
    for number in row:
        whole = isinstance(number, int | float) and not isinstance(number, bool) and number == int(number)
        if not whole or number < 0:
            raise EvaluationError(f"{where}: frame_idx holds {number!r}, no frame number")
    numbers = np.asarray(row, dtype=np.int64)
    if (np.diff(numbers) <= 0).any():
        raise EvaluationError(f"{where}: frame_idx is not ascending; frames would be shown out of order")
    return numbers


def read_frames(
    path: str | Path, choose: np.ndarray | Callable[[Video], np.ndarray], doc: Mapping[str, Any]
) -> tuple[DecodedFrames, Video]:
    """Decode the frames a question is shown.

    Args:
        path: the video.
        choose: frame numbers, or a rule that gives them for an open video; ascending, and a uniform
            rule may repeat them in a very short video.
        doc: the question, for messages.

    Returns:
        The frames in that order, and the (closed) video for its rate and length.

    Raises:
        EvaluationError: a number lies beyond the video, or the video cannot be read.
    """
    where = f"question {question_id(doc)}: {path}"
    try:
        with Video(path) as video:
            numbers = choose(video) if callable(choose) else choose
            distinct, places = np.unique(numbers, return_inverse=True)
            if distinct[-1] >= video.num_frames:
                raise EvaluationError(
                    f"{where}: keyframe {distinct[-1]} lies beyond the video's {video.num_frames} frames; "
                    "the selection was made for another video or label file"
                )
            batches = list(video.read(distinct))
    except VideoError as error:
        raise EvaluationError(f"{where}: {error}") from None
    frames = DecodedFrames(
        distinct[places],
        np.concatenate([batch.times_s for batch in batches])[places],
        np.concatenate([batch.pixels for batch in batches])[places],
    )
    return frames, video


def uniform_linspace(num_frames: int, budget: int) -> np.ndarray:
    """``budget`` frames from the first to the last, (budget,) int64; short videos repeat frames.

    LLaVA-OneVision's rule in lmms-eval, and what the released code shows in place of a short selection.
    """
    return np.linspace(0, num_frames - 1, budget, dtype=int).astype(np.int64)


def uniform_one_a_second(num_frames: int, fps: float, budget: int) -> np.ndarray:
    """A frame a second, ``budget`` of them from first to last where that would be more, (n,) int64.

    LLaVA-Video's rule in lmms-eval at its default of one frame a second.
    """
    every_second = np.arange(0, num_frames, max(1, round(fps)))
    return every_second if len(every_second) <= budget else uniform_linspace(num_frames, budget)


def uniform_qwen2(num_frames: int, fps: float, budget: int) -> np.ndarray:
    """qwen-vl-utils' two frames a second (4 to 768 of them), evenly thinned to the budget, (n,) int64.

    Qwen2-VL's rule in lmms-eval. None of a video of one frame, which qwen-vl-utils cannot sample.
    """
    read = min(min(max(num_frames / fps * 2, 4), min(768, num_frames) // 2 * 2), num_frames)
    sampled = _rounded_linspace(num_frames, int(read) // 2 * 2)
    if not len(sampled):
        return sampled
    return sampled[np.unique(np.linspace(0, len(sampled) - 1, budget, dtype=int))]


def uniform_qwen2_5(num_frames: int, fps: float, budget: int) -> np.ndarray:
    """As ``uniform_qwen2``, but never without the last frame, which shows two at a budget of one.

    Qwen2.5-VL's rule in lmms-eval.
    """
    shown = uniform_qwen2(num_frames, fps, budget)
    return np.union1d(shown, [num_frames - 1]) if len(shown) else shown


def uniform_qwen3(num_frames: int, fps: float, budget: int) -> np.ndarray:
    """As many as the budget and the video allow, an even number, first to last, (n,) int64.

    Qwen3-VL's rule in lmms-eval.
    """
    return _rounded_linspace(num_frames, round(min(budget, num_frames) / 2) * 2)


def _rounded_linspace(num_frames: int, count: int) -> np.ndarray:
    """qwen-vl-utils' positions, in float32 as torch computes them there."""
    return torch.linspace(0, num_frames - 1, count).round().long().numpy()


def check_video(path: str | Path, numbers: np.ndarray | None) -> str | None:
    """What is wrong with a video by its header alone, or None; cheap enough for a whole benchmark."""
    path = Path(path).absolute()
    if not path.is_file():
        return f"{path}: video file not found"
    reset_decoder_globals()
    try:
        announced = read_header(path).num_frames
    except VideoError as error:
        return f"{path}: {error}"
    if numbers is not None and announced and numbers[-1] >= announced:
        return f"{path}: keyframe {numbers[-1]} lies beyond the video's {announced} frames"
    return None


def count_below_budget(docs: Iterable[Mapping[str, Any]], budget: int) -> int:
    """How many documents have fewer keyframes than the budget."""
    return sum(len(frame_numbers(doc)) < budget for doc in docs)


UNIFORM_RULES: dict[str, Callable[[int, float, int], np.ndarray]] = {
    "linspace": lambda num_frames, fps, budget: uniform_linspace(num_frames, budget),
    "one_a_second": uniform_one_a_second,
    "qwen2": uniform_qwen2,
    "qwen2_5": uniform_qwen2_5,
    "qwen3": uniform_qwen3,
}
