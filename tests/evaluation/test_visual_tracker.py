"""No answer counts whose visuals did not reach the model; loading that hangs ends the process."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loguru import logger

from evaluation.errors import EvaluationError
from evaluation.visual_tracker import VisualTracker, count_visuals

ROOT = Path(__file__).resolve().parents[2]
DOCS = [{"id": f"q{index}"} for index in range(3)]
PICTURES = [object(), object()]
VIDEO = [torch.zeros(4, 3, 2, 2)]


class Model:
    """Answers with the number of its visuals."""

    def generate(self, **inputs):
        return count_visuals(inputs)


def ask(tracker: VisualTracker, doc: dict, visuals: list) -> None:
    tracker.begin(doc)
    tracker.expect(doc, visuals)


@pytest.mark.parametrize(
    ("inputs", "count"),
    [
        ({}, 0),
        ({"images": None}, 0),
        ({"images": VIDEO}, 1),
        ({"images": [torch.zeros(0, 3, 2, 2)]}, 0),
        ({"images": torch.zeros(2, 3, 2, 2)}, 2),
        ({"image_grid_thw": torch.ones(3, 3), "video_grid_thw": None}, 3),
        ({"image_grid_thw": torch.ones(3, 3), "video_grid_thw": torch.ones(1, 3)}, 4),
    ],
)
def test_videos_and_pictures_are_counted(inputs, count):
    assert count_visuals(inputs) == count


def test_answers_pass_while_all_visuals_arrive():
    model = Model()
    tracker = VisualTracker(model, one_by_one=True)
    with tracker.watch():
        ask(tracker, DOCS[0], ["a.mp4"])
        assert model.generate(images=VIDEO) == 1
        ask(tracker, DOCS[1], PICTURES)
        assert model.generate(images=[*VIDEO, *VIDEO]) == 2
        ask(tracker, DOCS[2], [])
        assert model.generate() == 0
    assert "generate" not in vars(model)


@pytest.mark.parametrize("inputs", [{}, {"images": VIDEO * 2}], ids=["blind", "another's"])
def test_a_question_that_is_answered_with_other_visuals_is_named(inputs):
    tracker = VisualTracker(Model(), one_by_one=True)
    problem = r"question q0: a\.mp4: not all its pixels .* no frame left"
    with pytest.raises(EvaluationError, match=problem), tracker.watch():
        ask(tracker, DOCS[0], ["a.mp4"])
        logger.info("no frame\nleft")
        tracker._model.generate(**inputs)


@pytest.mark.parametrize("is_last", [False, True])
def test_a_question_that_is_passed_over_is_named(is_last):
    tracker = VisualTracker(Model(), one_by_one=True)
    problem = r"^error: question q0: a\.mp4: not all"
    with pytest.raises(EvaluationError, match=problem) as error, tracker.watch():
        ask(tracker, DOCS[0], ["a.mp4"])
        if not is_last:
            ask(tracker, DOCS[1], ["b.mp4"])
    assert "q1" not in error.value.code


def test_of_questions_answered_together_all_are_named_unless_it_is_known_which_video_was_not_read():
    class Path(str):
        was_read = True

    tracker = VisualTracker(Model(), one_by_one=False)
    with tracker.watch(), pytest.raises(EvaluationError, match=r"question q0: a; question q1: b: not all"):
        for doc, name in zip(DOCS, "ab", strict=False):
            ask(tracker, doc, [Path(name)])
        tracker._model.generate(images=VIDEO)

    unread = Path("b")
    unread.was_read = False
    with tracker.watch(), pytest.raises(EvaluationError, match=r"^error: question q1: b: not all"):
        for doc, visual in zip(DOCS, [Path("a"), unread], strict=False):
            ask(tracker, doc, [visual])
        tracker._model.generate(images=VIDEO * 2)


PREFETCHED = {"images": VIDEO, "input_ids": [[0]]}


def test_a_question_may_be_loaded_while_the_one_before_is_answered():
    model = Model()
    tracker = VisualTracker(model, one_by_one=True, prefetches=True)
    with tracker.watch():
        ask(tracker, DOCS[0], ["a.mp4"])
        ask(tracker, DOCS[1], ["b.mp4"])
        model.generate(**PREFETCHED)
        ask(tracker, DOCS[2], ["c.mp4"])
        model.generate(**PREFETCHED)
        model.generate(**PREFETCHED)


@pytest.mark.parametrize("passed_over", [0, 1])
def test_of_prefetched_questions_the_one_that_is_passed_over_is_named(passed_over):
    tracker = VisualTracker(Model(), one_by_one=True, prefetches=True)
    with (
        pytest.raises(EvaluationError, match=rf"^error: question q{passed_over}: v\.mp4: not"),
        tracker.watch(),
    ):
        for doc in DOCS[passed_over:2]:
            ask(tracker, doc, ["v.mp4"])
        if passed_over == 0:
            ask(tracker, DOCS[2], ["v.mp4"])
        tracker._model.generate(input_ids=[[0]])  # without its video


def test_an_error_of_the_model_names_its_question_even_where_upstream_goes_on():
    model = Model()
    model.generate = lambda **inputs: 1 / 0
    tracker = VisualTracker(model, one_by_one=True, prefetches=True, explain=lambda error: f"it {error}")
    with pytest.raises(EvaluationError, match=r"^error: question q0: it division by zero$"), tracker.watch():
        ask(tracker, DOCS[0], ["a.mp4"])
        ask(tracker, DOCS[1], ["b.mp4"])
        with contextlib.suppress(Exception):
            model.generate(**PREFETCHED)


# Sleeps in C, as a decoder that waits for a dead disk.
HANGS = """
import ctypes, sys
from evaluation.visual_tracker import VisualTracker
class Model:
    def generate(self, **inputs): return "A"
model = Model()
tracker = VisualTracker(model, True, timeout_s=1, prefetches={prefetches})
with tracker.watch():
    tracker.begin({{"id": "q0"}})
    if {has_videos}:
        tracker.expect({{"id": "q0"}}, [{video!r}])
    {then}
    ctypes.CDLL(None).sleep(2)
print("went on")
"""


@pytest.mark.parametrize(
    ("has_videos", "prefetches", "then", "is_loaded"),
    [
        (True, False, "pass", False),
        (False, False, "pass", False),
        (True, False, "model.generate(images=[[0]])", True),  # what the model takes is not loading
        (False, True, "tracker.loaded()", True),  # nor is the wait for the question before
        (True, True, "model.generate(input_ids=[])", False),  # the question before is asked
    ],
)
def test_loading_that_hangs_ends_the_process_and_names_the_video(
    tmp_path, has_videos, prefetches, then, is_loaded
):
    video = str(tmp_path / "a.mp4")
    code = HANGS.format(has_videos=has_videos, prefetches=prefetches, then=then, video=video)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    if is_loaded:
        assert (done.returncode, done.stdout) == (0, "went on\n")
        return
    assert (done.returncode, done.stdout) == (1, "")
    what = video if has_videos else "its pictures"
    assert done.stderr.splitlines()[-1].startswith(
        f"error: question q0: {what}: loading takes longer than 1 s; convert the video, or allow more"
    )
