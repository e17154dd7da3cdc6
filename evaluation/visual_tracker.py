"""Proves that the videos and pictures of every question reach the model, each within a time limit.

lmms-eval's models catch what fails between a question and the model's ``generate``: LLaVA-Video scores a text
of its own, LLaVA-OneVision and Qwen2-VL answer without the video. The tracker hears of every question before
its visuals are loaded, and sees what every ``generate`` is given. Where they do not match, it ends the
evaluation. Where loading takes too long, it ends the process, because nothing else ends a decoder that hangs.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from loguru import logger

from aks.errors import VideoError
from aks.video import default_timeout_s
from aks.video.reader import read_header
from evaluation.errors import EvaluationError, question_id

MAX_PROBLEMS = 10  # that a message names
MAX_REASON = 300  # characters of what lmms-eval logged


class VisualTracker:
    """Watches one model while it answers.

    Args:
        model: the module whose ``generate`` answers.
        one_by_one: whether each question is answered before the next one's visuals are loaded.
        timeout_s: seconds that loading a question's visuals may take; None for extraction's limit, 60 s
            plus four times the videos' length.
        prefetches: whether the next question's visuals are loaded, in a thread, while one is answered.
        have_arrived: whether the arguments of a ``generate`` hold all of some visuals, and no others.
        explain: a line about an error of ``generate``.
    """

    def __init__(
        self,
        model: Any,
        one_by_one: bool,
        timeout_s: float | None = None,
        *,
        prefetches: bool = False,
        have_arrived: Callable[[Mapping[str, Any], Sequence[Any]], bool] | None = None,
        explain: Callable[[Exception], str] = str,
    ) -> None:
        """Watch nothing yet."""
        self._model, self._one_by_one, self._timeout_s = model, one_by_one, timeout_s
        self._prefetches, self._explain = prefetches, explain
        self._have_arrived = have_arrived or (lambda inputs, visuals: count_visuals(inputs) == len(visuals))
        self._pending: list[tuple[Mapping[str, Any], Sequence[Any]]] = []  # documents and their visuals
        self._logged: list[str] = []  # by lmms-eval since the last question began
        self._watchdog = contextlib.ExitStack()  # of the visuals being loaded

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """See every ``generate`` in the block; at its end no visual may be missing.

        Raises:
            EvaluationError: naming the questions whose visuals did not reach ``generate``, or the one that
                ``generate`` failed on.
        """
        generate = self._model.generate
        was_set = "generate" in vars(self._model)  # on the object itself

        @functools.wraps(generate)
        def checked(*args: Any, **kwargs: Any) -> Any:
            doc = self._arrive(kwargs)
            try:
                return generate(*args, **kwargs)
            except Exception as error:  # InternVL's class would score an empty answer
                message = EvaluationError(self._explain(error), doc).message
            raise EvaluationError(message)

        sink = logger.add(self._logged.append, level="INFO", format="{message}")
        handler = logging.Handler()
        handler.emit = lambda record: self._logged.append(record.getMessage())
        logging.getLogger("lmms-eval").addHandler(handler)  # some models log there
        self._model.generate = checked
        try:
            yield
            self._refuse_missing(self._pending)
        finally:
            self._watchdog.close()
            if was_set:
                self._model.generate = generate
            else:
                del self._model.generate
            logging.getLogger("lmms-eval").removeHandler(handler)
            with contextlib.suppress(ValueError):  # lmms-eval has removed all sinks
                logger.remove(sink)

    def begin(self, doc: Mapping[str, Any]) -> None:
        """A question's visuals are going to be loaded.

        Raises:
            EvaluationError: those of the question before did not reach the model.
        """
        if self._one_by_one:
            # A prefetched question is not asked yet when the next one's visuals are loaded.
            self._refuse_missing(self._pending[:-1] if self._prefetches else self._pending)
        self._logged.clear()
        duration = doc.get("duration")  # LongVideoBench's, in seconds; VideoMME's is a word
        self._start_watchdog(doc, "its pictures", duration if isinstance(duration, int | float) else 0.0)

    def expect(self, doc: Mapping[str, Any], visuals: Sequence[Any]) -> None:
        """These visuals, of which videos are paths, must reach the model."""
        self._pending.append((doc, visuals))
        videos = [visual for visual in visuals if isinstance(visual, str)]
        if videos:
            self._start_watchdog(doc, ", ".join(videos), sum(map(_duration_s, videos)))

    def loaded(self) -> None:
        """The visuals are loaded that were expected last; where they are prefetched, ``generate`` waits."""
        self._watchdog.close()

    @property
    def pending_videos(self) -> list[str]:
        """Paths of the videos of which ``generate`` has not been given the pixels."""
        return [visual for _, visuals in self._pending for visual in visuals if isinstance(visual, str)]

    def _start_watchdog(self, doc: Mapping[str, Any], what: str, duration_s: float) -> None:
        limit = self._timeout_s or default_timeout_s(duration_s)
        message = (
            f"question {question_id(doc)}: {what}: loading takes longer than {limit:g} s; convert the video, "
            "or allow more with the model argument video_timeout=SECONDS"
        )
        self._watchdog.close()
        self._watchdog.enter_context(watchdog(limit, message))

    def _arrive(self, inputs: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Compare what ``generate`` is given with the visuals of the questions that it answers.

        Returns:
            The first of these questions, if there is one.
        """
        count = len(self._pending)
        if self._prefetches:
            count = len(inputs["input_ids"])
        else:
            self.loaded()
        asked, self._pending[:count] = self._pending[:count], []
        unread = [entry for entry in asked if not all(getattr(v, "was_read", True) for v in entry[1])]
        self._refuse_missing(unread)
        if not self._have_arrived(inputs, [visual for _, visuals in asked for visual in visuals]):
            self._refuse_missing(asked)
        return asked[0][0] if asked else None

    def _refuse_missing(self, questions: list[tuple[Mapping[str, Any], Sequence[Any]]]) -> None:
        if not questions:
            return
        named = [
            f"question {question_id(doc)}: {', '.join(map(str, visuals))}"
            for doc, visuals in questions[:MAX_PROBLEMS]
        ]
        if len(questions) > MAX_PROBLEMS:
            named.append(f"{len(questions) - MAX_PROBLEMS} more")
        reason = " ".join(" ".join(self._logged).split())[:MAX_REASON] or "nothing"
        raise EvaluationError(
            f"{'; '.join(named)}: not all its pixels reached the model, so no answer counts; lmms-eval "
            f"logged: {reason}"
        )


def count_visuals(inputs: Mapping[str, Any]) -> int:
    """The number of videos and pictures among the arguments of a model's ``generate``.

    LLaVA's are ``images``, a tensor each; Qwen's processors give a row of ``*_grid_thw`` for each.
    """
    images = inputs.get("images")
    if images is not None:
        return sum(len(image) > 0 for image in images)
    grids = [inputs.get(f"{kind}_grid_thw") for kind in ("image", "video")]
    return sum(len(grid) for grid in grids if grid is not None)


@contextlib.contextmanager
def watchdog(limit_s: float, message: str) -> Iterator[None]:
    """End the process, with one line and status 1, where the block takes too long; the message says what.

    A thread does, while the main thread waits in a decoder's C code, where no exception reaches it.
    """

    def end() -> None:
        sys.stderr.write(f"\nerror: {message}\n")  # a progress bar may have left its line open
        sys.stderr.flush()
        os._exit(1)

    timer = threading.Timer(limit_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@functools.cache  # a video has several questions
def _duration_s(path: str) -> float:
    """A video's length in seconds by its header; 0 where that does not tell."""
    try:
        header = read_header(Path(path))
    except VideoError:  # told when it is read
        return 0.0
    return max(header.seconds, header.container_seconds)
