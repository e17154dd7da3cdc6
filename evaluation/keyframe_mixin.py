"""A mixin in front of lmms-eval's model classes: the keyframes of the current document, or no answer.

It adds the model arguments ``use_topk`` (False), ``short_selection`` (strict), ``frames_digest`` and
``answers``, checks every question and video before the first one is asked, and notes which document's
visuals are being loaded, so that a subclass has only to override how its upstream loads a video.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import try_to_load_from_cache

from aks.errors import VideoError
from aks.video.backends import reset_decoder_globals
from aks.video.reader import decord_differs
from evaluation.answer_cache import AnswerCache, weights_fingerprint
from evaluation.frame_policy import EvaluationError, FramePolicy, check_video, count_below_budget, question_id

SAVE_EVERY = 32  # questions between two writes: what a killed evaluation loses at most


class KeyframeMixin:
    """Comes before the upstream class in the bases.

    Attributes:
        showing: which frames the model shows.
        document: the document whose visuals were asked for last.
        visual_position: where ``doc_to_visual`` stands in a request's arguments; the document's number,
            task and split follow.
    """

    showing: FramePolicy
    document: Mapping[str, Any] | None = None
    visual_position = 2
    frames_argument = "max_frames_num"  # upstream's name for its number of frames
    rule_arguments: tuple[str, ...] = ()  # upstream's arguments that change which uniform frames it shows

    def __init__(
        self,
        *args: Any,
        use_topk: bool = False,
        short_selection: str = "strict",
        frames_digest: str = "",
        answers: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Take our arguments, check them before any weights load, give the rest to upstream."""
        budget = kwargs.get(self.frames_argument, self.upstream_default(self.frames_argument))
        # "sha256-" keeps lmms-eval from taking a digest of figures alone for a number.
        digest = str(frames_digest).removeprefix("sha256-")
        self.showing = FramePolicy(use_topk, budget, short_selection, digest)
        self.refuse(kwargs)
        self._other_rule = [
            f"{name}={kwargs[name]}"
            for name in self.rule_arguments
            if name in kwargs and kwargs[name] != self.upstream_default(name)
        ]
        self._answers_folder = answers
        super().__init__(*args, **kwargs)
        self._identity = {
            "model": type(self).__name__,
            "arguments": {name: str(value) for name, value in sorted(kwargs.items())},
            "weights": weights_fingerprint(_weights(**kwargs)) if "pretrained" in kwargs else None,
            "use_topk": use_topk,  # the frames in place of a short selection need not be the uniform ones
        }

    @classmethod
    def upstream_default(cls, argument: str) -> Any:
        """Upstream's own default for one of its arguments."""
        for base in cls.__mro__:
            if issubclass(base, KeyframeMixin):
                continue
            parameter = inspect.signature(base.__init__).parameters.get(argument)
            if parameter is not None:
                return parameter.default
        raise TypeError(f"{cls.__name__}: upstream has no argument {argument}")

    def refuse(self, arguments: dict[str, Any]) -> None:
        """Raise EvaluationError for upstream's arguments that would contradict the frames shown."""

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """Check all requests, then let upstream answer them."""
        reset_decoder_globals()  # torchvision, which upstream imports, would let a closing decoder hang
        self._check(requests)
        if self._answers_folder is None:
            return self._ask(requests)
        answers = AnswerCache(Path(self._answers_folder), self.rank, self._identity)
        keys = [self._key(answers, request) for request in requests]
        waiting = [
            (key, request) for key, request in zip(keys, requests, strict=True) if answers.get(key) is None
        ]
        if len(waiting) < len(requests):
            self._say(f"{len(requests) - len(waiting)} of {len(requests)} questions were answered before")
        for start in range(0, len(waiting), SAVE_EVERY):
            some = waiting[start : start + SAVE_EVERY]
            given = self._ask([request for _, request in some])
            answers.add(
                {
                    key: str(getattr(answer, "text", answer))
                    for (key, _), answer in zip(some, given, strict=True)
                }
            )
            self._say(f"{start + len(some)} of {len(waiting)} questions answered and kept")
        return [answers.get(key) for key in keys]

    def _ask(self, requests: list[Any]) -> list[Any]:
        try:
            given = super().generate_until([self._noting_document(request) for request in requests])
        except EvaluationError as error:
            text = str(error.code).removeprefix("error: ")
        else:
            self.after_generate(len(requests))
            return given
        # Anew, so that upstream's progress bar ends with its frames, and its line before the message.
        raise EvaluationError(text)

    def _key(self, answers: AnswerCache, request: Any) -> str:
        prompt, arguments = request.arguments[: self.visual_position]
        doc_to_visual, doc_id, task, split = request.arguments[self.visual_position :]
        doc = self.task_dict[task][split][doc_id]
        numbers = self.showing.keyframes(doc)
        # Pictures are chosen by the task; decoding them only to tell questions apart would double the work.
        visuals = [] if doc.get("pictures") else doc_to_visual(doc)
        # Earlier versions read these videos otherwise; their answers are about other frames.
        reader = ["player's frames" for visual in visuals if numbers is not None and _decord_differs(visual)]
        return answers.key(
            f"{task} {question_id(doc)} {prompt}",
            visuals,
            None if numbers is None else [*numbers.tolist(), *reader],
            arguments,
        )

    def _say(self, text: str) -> None:
        if self.rank == 0:
            print(text, file=sys.stderr, flush=True)

    def after_generate(self, count: int) -> None:
        """Called once upstream has answered ``count`` requests."""

    def wrap_visuals(self, doc: Mapping[str, Any], visuals: list[Any]) -> list[Any]:
        """What upstream gets in place of a document's visuals; here: the same."""
        return visuals

    def load_uniform_frames(self, load: Callable[..., Any], *args: Any) -> Any:
        """Upstream's uniform frames; where it fails, the evaluation ends instead of going on without.

        Raises:
            EvaluationError: naming the question, the video and the reason.
        """
        try:
            return load(*args)
        except Exception as error:  # upstream's callers would log it and answer all the same
            raise EvaluationError(
                f"question {question_id(self.document or {})}: {args[0]}: cannot be read: {error}"
            ) from None

    def check_video(self, path: str, numbers: np.ndarray | None) -> str | None:
        """What is wrong with a video before it is decoded, or None."""
        return check_video(path, numbers)

    def _noting_document(self, request: Any) -> Any:
        arguments = list(request.arguments)
        arguments[self.visual_position] = self._noting(arguments[self.visual_position])
        return dataclasses.replace(request, arguments=tuple(arguments))

    def _noting(self, doc_to_visual: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def noted(doc: Mapping[str, Any]) -> list[Any]:
            self.document = doc
            return self.wrap_visuals(doc, doc_to_visual(doc))

        return noted

    def _check(self, requests: list[Any]) -> None:
        """Every question's frames and every video's header, before the first answer.

        Raises:
            EvaluationError: naming what is wrong, the first ten in full.
        """
        problems: dict[str, None] = {}  # a video's problem is told once, not for each of its questions
        tasks: dict[tuple[str, str], int] = {}  # questions whose videos decord reads otherwise
        for request in requests:
            doc_to_visual, doc_id, task, split = request.arguments[self.visual_position :]
            tasks.setdefault((task, split), 0)
            doc = self.task_dict[task][split][doc_id]
            try:
                numbers = self.showing.keyframes(doc)
                self._check_task(task, doc)
            except EvaluationError as error:
                problems[str(error.code).removeprefix("error: ")] = None
                continue
            if doc.get("pictures"):
                continue  # decoded by the task itself, which ends the evaluation where it cannot
            for visual in doc_to_visual(doc):
                if problem := self.check_video(visual, numbers):
                    problems[problem] = None
                elif isinstance(visual, str):
                    tasks[task, split] += _decord_differs(visual)
        if problems:
            more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
            raise EvaluationError("; ".join(list(problems)[:10]) + more)
        for (task, split), questions in tasks.items():
            self._say(f"{task}: {self._summary(self.task_dict[task][split])}")
            if questions:
                told = (
                    "keyframes selected elsewhere by its numbers may be others here"
                    if self.showing.use_topk
                    else "the uniform frames are what it shows, as in lmms-eval"
                )
                self._say(
                    f"{task}: in the videos of {questions} questions decord shows other frames than players: "
                    f"{told}"
                )

    def _check_task(self, task: str, doc: Mapping[str, Any]) -> None:
        """A prompt or pictures made for other frames than the model shows are an error."""
        pictures = doc.get("pictures")
        if pictures and (pictures == "keyframes") != self.showing.use_topk:
            raise EvaluationError(
                f"task {task} shows {pictures} as pictures, the model has use_topk={self.showing.use_topk}; "
                "longvideobench_val_i_uni goes with False, longvideobench_val_i_aks with True"
            )
        if pictures and self.showing.short_selection == "paper":
            raise EvaluationError(
                f"task {task}: short_selection=paper is a rule for videos, not for pictures"
            )
        if doc.get("subtitle_frames") and (
            doc.get("use_topk") is not self.showing.use_topk or doc.get("frame_num") != self.showing.budget
        ):
            raise EvaluationError(
                f"task {task}: its subtitles are those of use_topk={doc.get('use_topk')}, "
                f"frame_num={doc.get('frame_num')}; run evaluation/insert_frame_num.py "
                f"--use_topk {self.showing.use_topk} --frame_num {self.showing.budget}"
            )
        if doc.get("subtitle_frames") and self.showing.refills(doc):
            raise EvaluationError(
                f"task {task}: question {question_id(doc)}: short_selection=paper shows uniform frames, "
                "the subtitles are those of its keyframes; use short_selection=strict"
            )
        if doc.get("subtitle_frames") and not self.showing.use_topk and self._other_rule:
            raise EvaluationError(
                f"task {task}: its subtitles are those of the model's uniform frames without "
                f"{', '.join(self._other_rule)}; leave that out"
            )

    def _summary(self, docs: Sequence[Mapping[str, Any]]) -> str:
        """What is shown, and how many questions of the task are short of the budget."""
        if not self.showing.use_topk:
            return f"uniform frames, the model's own {self.showing.budget} at most"
        short = count_below_budget(docs, self.showing.budget)
        told = {
            "strict": "they are shown as selected",
            "paper": f"they are shown {self.showing.budget} uniform frames, as the released code does",
        }
        return (
            f"keyframes, {self.showing.budget} at most; {short} of {len(docs)} questions have fewer: "
            f"{told[self.showing.short_selection]}"
        )


def _weights(pretrained: str, revision: str | None = None, **_: Any) -> Path:
    """A checkpoint's folder; of a hub name its revision's folder in the hub's cache."""
    name, cached = str(pretrained), None
    if not Path(name).exists():
        with contextlib.suppress(ValueError):  # no name that the hub could have
            cached = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(cached).parent if isinstance(cached, str) else Path(name)


@functools.cache
def _decord_differs(path: str) -> bool:
    try:
        return decord_differs(path)
    except VideoError:  # told where it is read
        return False
