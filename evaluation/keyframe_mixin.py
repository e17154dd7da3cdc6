"""A mixin in front of lmms-eval's model classes that shows them the keyframes of the current document.

It adds the model arguments ``use_topk`` (False), ``short_selection`` (strict), ``frames_digest``,
``answers`` and ``video_timeout``, and checks every question and video before the first question is asked. It
tracks which document's visuals are being loaded, so that a subclass only overrides how its upstream loads a
video. No answer counts whose visuals did not reach the model (:mod:`evaluation.visual_tracker`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import try_to_load_from_cache

from aks.errors import VideoError, error_message, is_out_of_memory
from aks.video.codec_log import reset_decoder_globals
from aks.video.reader import decord_differs
from evaluation.answer_cache import AnswerCache, file_fingerprint
from evaluation.errors import EvaluationError, question_id
from evaluation.frame_policy import FramePolicy, check_video, parse_frame_idx
from evaluation.visual_tracker import MAX_PROBLEMS, VisualTracker, count_visuals, watchdog

SAVE_EVERY = 32  # questions; a killed evaluation loses the answers of so many at most
HEADER_TIMEOUT_S = 60.0  # for a look at a video's header


class KeyframeMixin:
    """Shows an lmms-eval model the keyframes and checks that they arrive.

    It stands before the upstream class in the bases.

    Attributes:
        policy: which frames the model shows.
        frames_argument: upstream's name for its number of frames.
        rule_arguments: upstream's arguments that change which uniform frames it shows, other than
            ``frames_argument``; prompts with subtitles refuse them, because their rule does not know them.
        prefetches: whether upstream loads the next question's visuals while it answers one; the subclass then
            calls ``tracker.loaded()`` when they are loaded.
    """

    policy: FramePolicy
    frames_argument = "max_frames_num"
    rule_arguments: tuple[str, ...] = ()
    prefetches = False
    tracker: VisualTracker
    _document: Mapping[str, Any] | None = None

    def __init__(
        self,
        *args: Any,
        use_topk: bool = False,
        short_selection: str = "strict",
        frames_digest: str = "",
        answers: str | None = None,
        video_timeout: float | None = None,
        **kwargs: Any,
    ) -> None:
        """Take our arguments, check them before any weights load, give the rest to upstream."""
        budget = kwargs.get(self.frames_argument, self.upstream_default(self.frames_argument))
        # The prefix "sha256-" keeps lmms-eval from taking a digest of figures alone for a number.
        digest = str(frames_digest).removeprefix("sha256-")
        self.policy = FramePolicy(use_topk, budget, short_selection, digest)
        self.validate_model_args(kwargs)
        self._changed_rule = [
            f"{name}={kwargs[name]}"
            for name in self.rule_arguments
            if name in kwargs and kwargs[name] != self.upstream_default(name)
        ]
        self._answers_folder = answers
        if video_timeout is not None and not (
            isinstance(video_timeout, int | float) and 0 < video_timeout < float("inf")
        ):
            raise EvaluationError(f"model argument video_timeout={video_timeout}: use seconds above 0")
        self._video_timeout = video_timeout
        super().__init__(*args, **kwargs)
        self._identity = {
            "model": type(self).__name__,
            "arguments": {name: str(value) for name, value in sorted(kwargs.items())},
            "weights": file_fingerprint(_weights_folder(**kwargs)) if "pretrained" in kwargs else None,
            # The frames in place of a short selection need not be the model's uniform frames.
            "use_topk": use_topk,
            # Of an answer without this entry it is not known whether its visuals reached the model.
            "visuals": "proven",
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

    # Hooks for subclasses

    def validate_model_args(self, arguments: dict[str, Any]) -> None:
        """Raise EvaluationError for arguments of upstream that would contradict the frames shown."""

    def check_video(self, path: str, frame_indices: np.ndarray | None) -> str | None:
        """What is wrong with a video before it is decoded, or None."""
        return check_video(path, frame_indices)

    def wrap_visuals(self, doc: Mapping[str, Any], visuals: list[Any]) -> list[Any]:
        """What upstream gets in place of a document's visuals; here the same."""
        return visuals

    def have_arrived(self, inputs: Mapping[str, Any], visuals: Sequence[Any]) -> bool:
        """Whether the arguments of upstream's ``generate`` hold all these visuals, and no others."""
        return count_visuals(inputs) == len(visuals)

    def explain(self, error: Exception, videos: list[str]) -> str:
        """One line about what ended upstream while it loaded these videos, or answered."""
        if is_out_of_memory(error):
            return (
                f"the GPU's memory does not suffice ({error_message(error)}); show fewer frames, or spread "
                "the model over several GPUs"
            )
        traceback.print_exception(error)  # nobody expects it: where it comes from helps to mend it
        return f"{type(error).__name__}: {error_message(error)}"

    # How lmms-eval asks; a chat class is asked otherwise (evaluation/chat.py)

    def parse_request(self, request: Any) -> tuple[str, Any, Callable[..., Any], Any, str, str]:
        """Prompt, generation's arguments, what loads the visuals, and document number, task and split."""
        return request.arguments

    def visuals_in(self, loaded: Any) -> list[Any]:
        """The visuals in what the request's function loads."""
        return loaded

    def replace_visuals(self, loaded: Any, visuals: list[Any]) -> Any:
        """What the request's function loads, with other visuals."""
        return visuals

    # What a subclass needs to load a video

    @property
    def document(self) -> Mapping[str, Any]:
        """The document whose visuals were asked for last.

        Raises:
            EvaluationError: none was; upstream loads videos by another way than ``generate_until``.
        """
        if self._document is None:
            raise EvaluationError("only generate_until knows which question a video is loaded for")
        return self._document

    def load_uniform_frames(self, load: Callable[..., Any], path: str, *args: Any) -> Any:
        """Upstream's uniform frames; where upstream fails, the evaluation ends instead of going on without.

        Raises:
            EvaluationError: naming the question, the video and the reason.
        """
        try:
            return load(path, *args)
        except Exception as error:  # upstream's callers would log it and answer all the same
            raise EvaluationError(f"{path}: cannot be read: {error}", self.document) from None

    # Answering

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """Check all requests, then let upstream answer those without a kept answer."""
        reset_decoder_globals()  # torchvision, which upstream imports, would let a closing decoder hang
        self._check(requests)
        if self._answers_folder is None:
            return self._ask_upstream(requests)
        cache = AnswerCache(Path(self._answers_folder), self.rank, self._identity)
        keys = [self._answer_key(cache, request) for request in requests]
        pending = [
            (key, request) for key, request in zip(keys, requests, strict=True) if cache.get(key) is None
        ]
        if len(pending) < len(requests):
            self._log(f"{len(requests) - len(pending)} of {len(requests)} questions were answered before")
        for start in range(0, len(pending), SAVE_EVERY):
            batch = pending[start : start + SAVE_EVERY]
            answers = self._ask_upstream([request for _, request in batch])
            texts = [str(getattr(answer, "text", answer)) for answer in answers]
            cache.add({key: text for (key, _), text in zip(batch, texts, strict=True)})
            self._log(f"{start + len(batch)} of {len(pending)} questions answered and kept")
        return [cache.get(key) for key in keys]

    def _ask_upstream(self, requests: list[Any]) -> list[Any]:
        self.tracker = VisualTracker(
            self.model,
            int(getattr(self, "batch_size", 1)) == 1,
            self._video_timeout,
            prefetches=self.prefetches,
            have_arrived=self.have_arrived,
            explain=lambda error: self.explain(error, []),
        )
        try:
            with self.tracker.watch():
                return super().generate_until([self._track_document(request) for request in requests])
        except EvaluationError as error:
            message = error.message
        except Exception as error:  # lmms-eval would catch it, and end with status 0
            videos = self.tracker.pending_videos
            message = EvaluationError(self.explain(error, videos), self._document).message
        # Raised again outside, so that upstream's progress bar ends with its frame, before the message.
        raise EvaluationError(message)

    def _track_document(self, request: Any) -> Any:
        """The request, but what loads its visuals keeps the document and wraps them."""
        load = self.parse_request(request)[2]

        def tracked(doc: Mapping[str, Any]) -> Any:
            self._document = doc
            self.tracker.begin(doc)
            loaded = load(doc)
            visuals = self.wrap_visuals(doc, self.visuals_in(loaded))
            self.tracker.expect(doc, visuals)
            return self.replace_visuals(loaded, visuals)

        arguments = tuple(tracked if argument is load else argument for argument in request.arguments)
        return dataclasses.replace(request, arguments=arguments)

    def _answer_key(self, cache: AnswerCache, request: Any) -> str:
        prompt, generation_arguments, load, doc_id, task, split = self.parse_request(request)
        doc = self.task_dict[task][split][doc_id]
        keyframes = self.policy.keyframes(doc)
        # The task chooses pictures by the document; to decode them for the key would double the work.
        visuals = [] if doc.get("pictures") else self.visuals_in(load(doc))
        frames = None
        if keyframes is not None:
            # Earlier versions read these videos otherwise; their answers are about other frames.
            frames = [*keyframes.tolist(), *("player's frames" for path in visuals if _decord_differs(path))]
        return cache.key(f"{task} {question_id(doc)} {prompt}", visuals, frames, generation_arguments)

    def _log(self, text: str) -> None:
        if self.rank == 0:
            print(text, file=sys.stderr, flush=True)

    # Checking

    def _check(self, requests: list[Any]) -> None:
        """Check every question's frames and every video's header before the first answer.

        Raises:
            EvaluationError: naming what is wrong, the first ten problems in full.
        """
        problems: dict[str, None] = {}  # without repeats: a video may have many questions
        # Questions whose videos decord reads otherwise, by task and split.
        num_differing: dict[tuple[str, str], int] = {}
        for request in requests:
            _, _, load, doc_id, task, split = self.parse_request(request)
            num_differing.setdefault((task, split), 0)
            doc = self.task_dict[task][split][doc_id]
            try:
                keyframes = self.policy.keyframes(doc)
                self._check_document(task, doc)
            except EvaluationError as error:
                problems[error.message] = None
                continue
            if doc.get("pictures"):
                continue  # the task decodes them itself, and ends the evaluation where it cannot
            for visual in self.visuals_in(load(doc)):
                limit = self._video_timeout or HEADER_TIMEOUT_S
                with watchdog(limit, f"{visual}: reading its header takes longer than {limit:g} s"):
                    if problem := self.check_video(visual, keyframes):
                        problems[problem] = None
                    elif isinstance(visual, str):
                        num_differing[task, split] += _decord_differs(visual)
        if problems:
            more = f"; and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
            raise EvaluationError("; ".join(list(problems)[:MAX_PROBLEMS]) + more)
        for (task, split), count in num_differing.items():
            self._log(f"{task}: {self._describe_frames(self.task_dict[task][split])}")
            if count:
                consequence = (
                    "keyframes selected elsewhere by its numbers may be others here"
                    if self.policy.use_topk
                    else "the uniform frames are what it shows, as in lmms-eval"
                )
                self._log(
                    f"{task}: in the videos of {count} questions decord shows other frames than players: "
                    f"{consequence}"
                )

    def _check_document(self, task: str, doc: Mapping[str, Any]) -> None:
        """Refuse pictures or subtitles that were made for other frames than the model shows."""
        policy = self.policy
        pictures = doc.get("pictures")
        if pictures and (pictures == "keyframes") != policy.use_topk:
            raise EvaluationError(
                f"task {task} shows {pictures} as pictures, the model has use_topk={policy.use_topk}; "
                "longvideobench_val_i_uni goes with False, longvideobench_val_i_aks with True"
            )
        if pictures and policy.short_selection == "paper":
            raise EvaluationError(
                f"task {task}: short_selection=paper is a rule for videos, not for pictures"
            )
        if not doc.get("subtitle_frames"):
            return
        if doc.get("use_topk") is not policy.use_topk or doc.get("frame_num") != policy.budget:
            raise EvaluationError(
                f"task {task}: its subtitles are those of use_topk={doc.get('use_topk')}, "
                f"frame_num={doc.get('frame_num')}; run evaluation/insert_frame_num.py "
                f"--use_topk {policy.use_topk} --frame_num {policy.budget}"
            )
        if policy.uses_uniform_fallback(doc):
            raise EvaluationError(
                f"task {task}: question {question_id(doc)}: short_selection=paper shows uniform frames, "
                "the subtitles are those of its keyframes; use short_selection=strict"
            )
        if not policy.use_topk and self._changed_rule:
            raise EvaluationError(
                f"task {task}: its subtitles are those of the model's uniform frames without "
                f"{', '.join(self._changed_rule)}; leave that out"
            )

    def _describe_frames(self, docs: Any) -> str:
        """What is shown, and how many questions of the task are short of the budget."""
        budget = self.policy.budget
        if not self.policy.use_topk:
            return f"uniform frames, the model's own {budget} at most"
        remedy = {
            "strict": "they are shown as selected",
            "paper": f"they are shown {budget} uniform frames, as the released code does",
        }[self.policy.short_selection]
        short = sum(len(parse_frame_idx(doc)) < budget for doc in docs)
        return f"keyframes, {budget} at most; {short} of {len(docs)} questions have fewer: {remedy}"


def _weights_folder(pretrained: str, revision: str | None = None, **_: Any) -> Path:
    """A checkpoint's folder; for a hub name the folder of its revision in the hub's cache."""
    name, cached = str(pretrained), None
    if not Path(name).exists():
        with contextlib.suppress(ValueError):  # the hub could have no such name
            cached = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(cached).parent if isinstance(cached, str) else Path(name)


@functools.cache
def _decord_differs(path: str) -> bool:
    try:
        return decord_differs(path)
    except VideoError:  # told when it is read
        return False
