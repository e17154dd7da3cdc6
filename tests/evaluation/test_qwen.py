"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL in lmms-eval: which frames reach the model, how large, at what times.

With lmms-eval's and qwen-vl-utils' own code and small random checkpoints. Qwen3-VL is tested where
transformers knows it.
"""

from __future__ import annotations

import functools
import importlib
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_setup import (
    KEYFRAMES,
    QUESTIONS,
    VIDEOS,
    change_entry,
    corrupt,
    fail_second,
    link_videos,
    merge_selection,
    read_frame_index,
    read_frame_indices,
    results_in,
    run_lmms_eval,
    samples_in,
    set_frame_num,
    spoil,
    write_av1,
    write_labels,
    write_longvideobench_labels,
    write_numbered_video,
    write_subtitles,
    write_videomme_labels,
)
from llava_setup import offline, use_labels
from qwen_recorder import Call
from qwen_setup import (
    QWEN2,
    QWEN2_5,
    QWEN2_5_CHAT,
    QWEN3,
    Qwen,
    answer_nothing,
    evaluate,
    frames_of,
    has_qwen3,
    images_of,
    in_pairs,
    prompt_of,
    question_of,
    recorded,
    upstream_readers,
    video_of,
    write_checkpoint,
)
from qwen_vl_utils import process_vision_info, vision_process

from aks.video.reader import Video
from evaluation import qwen2_load_video
from evaluation.errors import EvaluationError
from evaluation.qwen2_load_video import KeyframePath, wrap_readers

BUDGET = 8
FRAMES = {"long.mp4": 1100, "short.mp4": 150, "few.mp4": 5}
FPS = {"long.mp4": 30, "short.mp4": 24, "few.mp4": 30}
TASK = "longvideobench_val_v_aks"
READERS = sorted(upstream_readers())

needs_qwen3 = pytest.mark.skipif(
    not has_qwen3(), reason="transformers has no Qwen3VLForConditionalGeneration"
)
MODELS = [QWEN2, QWEN2_5, pytest.param(QWEN3, marks=needs_qwen3)]
each = pytest.mark.parametrize("qwen", MODELS, ids=lambda qwen: qwen.name)
each_class = pytest.mark.parametrize("qwen", [*MODELS, QWEN2_5_CHAT], ids=lambda qwen: qwen.name)
CHAT = pytest.param(QWEN2_5_CHAT, marks=pytest.mark.long)  # shares the code that is tested with the others
each_class_if_long = pytest.mark.parametrize("qwen", [*MODELS, CHAT], ids=lambda qwen: qwen.name)


@pytest.fixture(scope="module")
def assets(tmp_path_factory) -> Path:
    """A folder with videos and checkpoints."""
    assets = tmp_path_factory.mktemp("qwen")
    for name, count in FRAMES.items():
        write_numbered_video(assets / "videos" / name, count, fps=FPS[name])
    with offline(assets / "hub", assets / "datasets_cache"):
        for qwen in (QWEN2, QWEN2_5, *([QWEN3] if has_qwen3() else [])):
            write_checkpoint(assets / qwen.name, qwen)
        yield assets


@pytest.fixture(autouse=True)
def readers(monkeypatch) -> dict[str, Any]:
    """qwen-vl-utils with its own readers, not wrapped before a test needs it; decord first."""
    readers = upstream_readers()
    monkeypatch.setattr(vision_process, "VIDEO_READER_BACKENDS", readers)
    use_reader(monkeypatch, "decord")
    return readers


def use_reader(patch: pytest.MonkeyPatch, name: str) -> None:
    patch.setattr(vision_process, "get_video_reader_backend", lambda: name)


@pytest.fixture
def labels(assets, tmp_path, monkeypatch) -> Path:
    """The questions with their keyframes merged in; the tasks read them."""
    merged = merge_selection(write_longvideobench_labels(tmp_path / "labels", VIDEOS), KEYFRAMES)
    use_labels(monkeypatch, "longvideobench", merged, assets / "videos")
    return merged


def calls_of(
    qwen: Qwen, assets: Path, *arguments: str, task: str = TASK, upstreams: bool = False, generate: Any = None
) -> dict[int, Call]:
    """An evaluation's calls of the model by question."""
    model = qwen.create(assets / qwen.checkpoint, f"max_num_frames={BUDGET}", *arguments, upstreams=upstreams)
    with recorded(generate) as calls:
        evaluate(model, qwen.name, task)
    by_question = {question_of(call): call for call in calls}
    assert len(by_question) == len(calls), "a question was asked twice"
    return by_question


@pytest.fixture(scope="module")
def asked(assets) -> Callable[[Qwen, bool], dict[int, Call]]:
    """The model's calls in an evaluation of the unchanged questions; each evaluation runs once."""
    merged = merge_selection(write_longvideobench_labels(assets / "labels", VIDEOS), KEYFRAMES)

    @functools.cache
    def calls(qwen: Qwen, use_topk: bool) -> dict[int, Call]:
        with pytest.MonkeyPatch.context() as patch:
            use_labels(patch, "longvideobench", merged, assets / "videos")
            return calls_of(qwen, assets, f"use_topk={use_topk}")

    return calls


def shown(qwen: Qwen, assets: Path, *arguments: str, task: str = TASK) -> dict[int, list[int]]:
    """The indices of the frames that reach the model, by question."""
    calls = calls_of(qwen, assets, *arguments, task=task, generate=answer_nothing)
    return {question: frames_of(call, qwen.patch_size) for question, call in sorted(calls.items())}


def refusal(qwen: Qwen, assets: Path, *arguments: str, task: str = TASK) -> tuple[str, list[Call]]:
    """The one line with which an evaluation ends, and the calls of the model until then."""
    with recorded(answer_nothing) as calls, pytest.raises(EvaluationError) as ended:
        model = qwen.create(assets / qwen.checkpoint, f"max_num_frames={BUDGET}", *arguments)
        evaluate(model, qwen.name, task)
    line = ended.value.code
    assert line.startswith("error: ") and "\n" not in line
    return line, calls


def linspace(video: str, budget: int = BUDGET) -> list[int]:
    """The released code's uniform frames."""
    return np.linspace(0, FRAMES[video] - 1, budget, dtype=int).tolist()


# Which frames


@each_class
def test_the_model_is_shown_exactly_the_keyframes(qwen, asked):
    calls = asked(qwen, use_topk=True)

    expected = {question: in_pairs(keyframes) for question, keyframes in enumerate(KEYFRAMES)}
    assert {question: frames_of(call, qwen.patch_size) for question, call in calls.items()} == expected


@each
def test_every_number_of_keyframes_up_to_the_budget_is_shown_whole(qwen, assets, tmp_path, monkeypatch):
    keyframes = [list(range(3, 3 + 7 * count, 7)) for count in range(1, 14)]
    plain = write_longvideobench_labels(tmp_path, ["short.mp4"] * 13)
    use_labels(monkeypatch, "longvideobench", merge_selection(plain, keyframes, 13), assets / "videos")

    frames = shown(qwen, assets, "max_num_frames=13", "use_topk=True")

    assert frames == {question: in_pairs(row) for question, row in enumerate(keyframes)}


@each
def test_a_video_of_one_frame_is_shown_as_selected(qwen, assets, tmp_path, monkeypatch):
    write_numbered_video(tmp_path / "videos/one.mp4", 1)
    merged = merge_selection(write_longvideobench_labels(tmp_path, ["one.mp4"]), [[0]], BUDGET)
    use_labels(monkeypatch, "longvideobench", merged, tmp_path / "videos")

    assert shown(qwen, assets, "use_topk=True") == {0: [0, 0]}


@each_class
def test_uniform_frames_and_everything_else_are_upstreams_own(qwen, asked, assets, labels, monkeypatch):
    ours = asked(qwen, use_topk=False)
    monkeypatch.setattr(vision_process, "VIDEO_READER_BACKENDS", upstream_readers())
    upstreams = calls_of(qwen, assets, upstreams=True)

    assert ours.keys() == upstreams.keys() == set(QUESTIONS)
    for question, call in ours.items():
        assert_same(call.inputs, upstreams[question].inputs)
        assert torch.equal(call.answer, upstreams[question].answer)
        assert len(frames_of(call, qwen.patch_size)) == (4 if VIDEOS[question] == "few.mp4" else BUDGET)


@each_class_if_long
def test_nothing_but_the_frames_differs_from_a_uniform_run(qwen, asked):
    on_keyframes, on_uniform = asked(qwen, use_topk=True), asked(qwen, use_topk=False)

    for question, call in on_keyframes.items():
        assert without_video(prompt_of(call)) == without_video(prompt_of(on_uniform[question]))
        assert call.inputs.keys() == on_uniform[question].inputs.keys()
        if len(KEYFRAMES[question]) == BUDGET:
            frames = {"pixel_values_videos"}
            if qwen is QWEN3:  # its prompt tells times
                frames |= {"input_ids", "attention_mask", "mm_token_type_ids"}
            assert_same(call.inputs, on_uniform[question].inputs, but=frames)


def without_video(prompt: str) -> str:
    return re.sub(r"(<[\d.]+ seconds>)?<\|vision_start\|>(<\|video_pad\|>)+<\|vision_end\|>", "", prompt)


def assert_same(one: dict[str, Any], other: dict[str, Any], but: set[str] = frozenset()) -> None:
    assert one.keys() == other.keys()
    for name in one.keys() - but:
        same = torch.equal if isinstance(one[name], torch.Tensor) else lambda a, b: a == b
        assert same(one[name], other[name]), name


@each_class_if_long
def test_the_papers_way_refills_short_selections_and_counts_them(qwen, assets, labels, capsys):
    frames = shown(qwen, assets, "use_topk=True", "short_selection=paper")

    assert [frames[0], frames[1]] == KEYFRAMES[:2]
    assert [frames[2], frames[3], frames[4]] == [linspace(VIDEOS[question]) for question in (2, 3, 4)]
    log = capsys.readouterr().err
    assert "3 of 5 questions have fewer: they are shown 8 uniform frames, as the released code does" in log


@each
def test_the_budget_is_upstreams_default_where_none_is_given(qwen, assets, labels):
    with pytest.raises(EvaluationError, match="selected for 8 frames, the model shows 32"):
        evaluate(qwen.create(assets / qwen.checkpoint, "use_topk=True"), qwen.name, TASK)


@pytest.mark.parametrize("qwen", MODELS[1:], ids=lambda qwen: qwen.name)
def test_lmms_evals_chat_class_refuses_use_topk(qwen, assets):
    """Without --force_simple lmms-eval would take it, and it would show uniform frames."""
    chat = getattr(importlib.import_module(f"lmms_eval.models.chat.{qwen.name}"), qwen.upstreams)

    with pytest.raises(AssertionError, match="use_topk"):
        chat.create_from_arg_string(f"pretrained={assets / qwen.checkpoint},use_topk=True", {"device": "cpu"})


# Pictures instead of a video


@each_class_if_long
@pytest.mark.parametrize(("kind", "use_topk"), [("aks", True), ("uni", False)])
def test_pictures_reach_the_model_in_their_order(qwen, kind, use_topk, assets, labels, monkeypatch, tmp_path):
    for index in QUESTIONS:
        change_entry(labels, index, duration=FRAMES[VIDEOS[index]] / FPS[VIDEOS[index]] if index < 4 else 3.0)
    change_entry(labels, 4, video_path="short.mp4", frame_idx=[9, 99])
    for stem in ("long", "short"):
        write_labels(tmp_path / f"subtitles/{stem}_en.json", [])
    write_labels(tmp_path / "subtitles/few_en.json", [])
    monkeypatch.setenv("AKS_LONGVIDEOBENCH_SUBTITLES", str(tmp_path / "subtitles"))

    task = f"longvideobench_val_i_{kind}"
    calls = calls_of(qwen, assets, f"use_topk={use_topk}", task=task, generate=answer_nothing)

    frames = {
        question: [read_frame_index(image) for image in images_of(call, qwen.patch_size)]
        for question, call in calls.items()
    }
    every = 1100 // 16
    uniform = {
        0: [every * index for index in range(16)],
        1: [every * index for index in range(16)],
        2: [25 * index for index in range(6)],
        3: [every * index for index in range(16)],
        4: [24 * index for index in range(3)],
    }
    assert frames == (dict(enumerate([*KEYFRAMES[:4], [9, 99]])) if use_topk else uniform)


# What the processor and the model learn of the frames


def qwen_video(path: Path, frames: list[int] | int | None = None) -> KeyframePath:
    """A path as our models hand it to qwen-vl-utils."""
    video = KeyframePath(path)
    video.doc, video.patch_size = {"id": "q7"}, 14
    video.frames = np.array(frames) if isinstance(frames, list) else frames
    return video


def process(video: str, metadata: bool = False, **element: Any) -> tuple[Any, dict[str, Any]]:
    """What qwen-vl-utils makes of a video: the video (with metadata), and arguments for the processor."""
    part = {"type": "video", "video": video, "min_pixels": 3136, "max_pixels": 602112, **element}
    _, videos, video_kwargs = process_vision_info(
        [{"role": "user", "content": [part]}],
        return_video_kwargs=True,
        return_video_metadata=metadata,
    )
    return videos[0], video_kwargs


@pytest.mark.parametrize("question", QUESTIONS)
def test_metadata_are_the_true_numbers_and_the_videos_rate(question, assets):
    name, keyframes = QUESTIONS[question]
    wrap_readers()

    (frames, metadata), _ = process(qwen_video(assets / "videos" / name, keyframes), metadata=True)

    assert read_frame_indices(frames) == keyframes
    assert metadata["frames_indices"] == keyframes
    assert (metadata["fps"], metadata["total_num_frames"]) == (FPS[name], FRAMES[name])
    with Video(assets / "videos" / name) as video:
        times_s = video.times_s(keyframes)
    assert np.array(metadata["frames_indices"]) / metadata["fps"] == pytest.approx(times_s, abs=1e-3)


def test_metadata_have_the_form_of_upstreams(assets):
    wrap_readers()
    path = assets / "videos/short.mp4"

    (_, ours), _ = process(qwen_video(path, [3, 5]), metadata=True)
    (_, upstreams), _ = process(str(path), metadata=True)

    assert {name: type(value) for name, value in ours.items()} == {
        name: type(value) for name, value in upstreams.items()
    }
    assert (ours["video_backend"], upstreams["video_backend"]) == ("pyav", "decord")


def test_refilled_frames_have_their_own_numbers_in_the_metadata(assets):
    wrap_readers()

    (frames, metadata), _ = process(qwen_video(assets / "videos/few.mp4", 8), metadata=True)

    assert read_frame_indices(frames) == metadata["frames_indices"] == linspace("few.mp4")


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_sampling_rate_is_the_shown_frames_over_the_duration(question, assets):
    name, keyframes = QUESTIONS[question]
    wrap_readers()

    _, video_kwargs = process(qwen_video(assets / "videos" / name, keyframes))

    assert video_kwargs["fps"] == [pytest.approx(len(keyframes) / (FRAMES[name] / FPS[name]))]


def test_the_sampling_rate_of_as_many_uniform_frames_is_the_same(assets):
    wrap_readers()
    path = assets / "videos/long.mp4"

    assert process(qwen_video(path, KEYFRAMES[0]))[1] == process(str(path), nframes=BUDGET)[1]


@needs_qwen3
def test_qwen3s_prompt_tells_the_keyframes_true_times(asked):
    calls = asked(QWEN3, use_topk=True)

    for question, (name, keyframes) in QUESTIONS.items():
        times = (
            np.array(in_pairs(keyframes)).reshape(-1, 2) / FPS[name]
        )  # one time for a pair of frames: its middle
        seconds = re.findall(r"<([\d.]+) seconds><\|vision_start\|>", prompt_of(calls[question]))
        assert seconds == [f"{time:.1f}" for time in times.mean(axis=1)], question


@needs_qwen3
def test_qwen3s_prompt_tells_the_refilled_frames_times(assets, labels):
    calls = calls_of(QWEN3, assets, "use_topk=True", "short_selection=paper", generate=answer_nothing)

    times = np.array(linspace("long.mp4")).reshape(-1, 2) / FPS["long.mp4"]
    seconds = re.findall(r"<([\d.]+) seconds>", prompt_of(calls[3]))
    assert seconds == [f"{time:.1f}" for time in times.mean(axis=1)]


# How large the frames are

SIZES = [  # frames, frames a second, width and height
    (30, 10, (640, 480)),
    (5, 10, (640, 480)),
    (24, 2, (640, 480)),
    (24, 2, (272, 640)),
    (24, 1, (350, 262)),
    (12, 2, (1280, 720)),
    (24, 3, (64, 48)),
]


@pytest.fixture(scope="module")
def sizes(tmp_path_factory) -> Path:
    """Videos of several lengths and resolutions, as labels with four keyframes each (or all)."""
    folder = tmp_path_factory.mktemp("sizes")
    for index, (frames, fps, size) in enumerate(SIZES):
        write_numbered_video(
            folder / f"videos/{index}.mp4", frames, fps, size, options={"preset": "ultrafast"}
        )
    keyframes = [list(range(frames))[:: max(1, frames // 4)][:4] for frames, _, _ in SIZES]
    labels = write_longvideobench_labels(folder, [f"{index}.mp4" for index in range(len(SIZES))])
    return merge_selection(labels, keyframes, 4)


@pytest.mark.parametrize(
    ("qwen", "argument"),
    [
        (QWEN2, "max_pixels=602112"),
        pytest.param(QWEN2, "max_pixels=100352", marks=pytest.mark.long),
        pytest.param(QWEN2_5, "max_pixels=1605632", marks=pytest.mark.long),
        pytest.param(QWEN2_5_CHAT, "max_pixels=1605632", marks=pytest.mark.long),
        # More than the budget leaves for each of 24 frames.
        pytest.param(QWEN2_5, "min_pixels=260000", marks=pytest.mark.long),
        pytest.param(QWEN3, "max_pixels=1605632", marks=needs_qwen3),
        pytest.param(QWEN3, "fps=2", marks=needs_qwen3),
        pytest.param(QWEN3, "total_pixels=2000000", marks=needs_qwen3),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_keyframes_are_as_large_as_uniform_frames(qwen, argument, assets, sizes, monkeypatch):
    use_labels(monkeypatch, "longvideobench", sizes, sizes.parent / "videos")
    # A whole prompt's budget is cut to a 32nd, so that 24 frames are limited as 768 frames usually are.
    monkeypatch.setattr(vision_process, "MODEL_SEQ_LEN", vision_process.MODEL_SEQ_LEN // 32)

    def size_by_question(use_topk: bool) -> dict[int, tuple[int, ...]]:
        arguments = ("max_num_frames=4", argument, f"use_topk={use_topk}")
        calls = calls_of(qwen, assets, *arguments, generate=answer_nothing)
        return {
            question: tuple(video_of(call, qwen.patch_size).shape[-2:]) for question, call in calls.items()
        }

    on_keyframes, on_uniform = size_by_question(True), size_by_question(False)
    assert on_keyframes == on_uniform
    assert len(on_uniform) == len(SIZES) and len(set(on_uniform.values())) > 3


@pytest.fixture(scope="module")
def long_video(tmp_path_factory) -> Path:
    """400 seconds at two frames a second, so that qwen-vl-utils would read its most, 768 frames."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    return write_numbered_video(path, 800, 2, (560, 448), options={"preset": "ultrafast"})


def test_keyframes_of_a_long_video_are_as_small_as_its_768_uniform_frames(long_video, monkeypatch):
    wrap_readers()
    sizes = []

    def noted_resize(video, size, **options):
        sizes.append((len(video), *size))
        return video[:1]

    monkeypatch.setattr(vision_process.transforms.functional, "resize", noted_resize)
    process(qwen_video(long_video, [0, 99, 300, 799]))
    process(str(long_video))
    process(str(long_video), nframes=4)

    (shown, *size), (read, *uniform_size), (_, *size_of_four) = sizes
    assert (shown, read) == (4, 768)
    assert size == uniform_size < size_of_four == [448, 560]


# The readers of qwen-vl-utils


def test_every_reader_is_wrapped_once(readers):
    own = dict(readers)
    wrap_readers()
    first = dict(readers)
    wrap_readers()

    assert readers == first and sorted(readers) == READERS
    for name, reader in readers.items():
        assert (reader.func, reader.args) == (qwen2_load_video.read, (own[name],))


@pytest.mark.parametrize("name", READERS)
def test_every_reader_reads_a_path_with_frames_at_its_frames(name, assets, monkeypatch):
    wrap_readers()
    use_reader(monkeypatch, name)

    frames, _ = process(qwen_video(assets / "videos/long.mp4", KEYFRAMES[0]))

    assert read_frame_indices(frames) == KEYFRAMES[0]


@pytest.mark.parametrize("name", ["decord", "torchvision"])
def test_an_ordinary_path_is_read_as_before(name, assets, monkeypatch):
    use_reader(monkeypatch, name)
    path = str(assets / "videos/short.mp4")
    (before, metadata), video_kwargs = process(path, metadata=True)
    wrap_readers()
    (after, metadata_after), video_kwargs_after = process(path, metadata=True)

    assert torch.equal(before, after) and video_kwargs == video_kwargs_after
    assert list(metadata["frames_indices"]) == list(metadata_after["frames_indices"])


def test_an_ordinary_path_still_falls_back_to_torchvision(assets, readers, monkeypatch):
    def fails(element):
        raise RuntimeError("no reader today")

    readers["decord"] = fails
    wrap_readers()

    (_, metadata), _ = process(str(assets / "videos/short.mp4"), metadata=True)
    assert metadata["video_backend"] == "torchvision"


@pytest.mark.parametrize("keyframes", [[0, 40, 75, 100, 149], None], ids=["keyframes", "uniform"])
@pytest.mark.parametrize("name", READERS)
def test_a_video_that_cannot_be_read_is_an_error_and_never_other_frames(
    name, keyframes, assets, tmp_path, readers, monkeypatch
):
    asked = []

    def other(element):
        asked.append(element)
        raise RuntimeError("moov atom\nnot found")

    readers.update(dict.fromkeys(readers, other))
    wrap_readers()
    use_reader(monkeypatch, name)
    path = tmp_path / "corrupt.mp4"
    path.write_bytes(corrupt((assets / "videos/short.mp4").read_bytes()))

    with pytest.raises(EvaluationError, match=rf"^error: question q7: {path}: [^\n]+$"):
        process(qwen_video(path, keyframes))
    assert len(asked) == (keyframes is None)  # upstream's own reader once, and no second reader


# Errors instead of answers


@pytest.fixture
def video_folder(assets, labels, tmp_path, monkeypatch) -> Path:
    """A folder of the videos, whose short.mp4 (of question q2) may be damaged."""
    folder = link_videos(assets / "videos", tmp_path / "videos")
    use_labels(monkeypatch, "longvideobench", labels, folder)
    return folder


both_ways = pytest.mark.parametrize("use_topk", [True, False], ids=["keyframes", "uniform"])


@each
@both_ways
def test_a_text_named_mp4_ends_the_evaluation_before_any_question(qwen, use_topk, assets, video_folder):
    video = spoil(video_folder / "short.mp4", "text")

    line, calls = refusal(qwen, assets, f"use_topk={use_topk}")
    assert f"{video}: cannot be opened" in line
    assert not calls


@each
@both_ways
def test_a_codec_that_upstream_cannot_open_is_no_answer(qwen, use_topk, assets, labels, video_folder):
    """Upstream's Qwen2-VL logs an error and answers without the video; the others stop with status 0."""
    change_entry(labels, 2, frame_idx=[19])
    video = spoil(video_folder / "short.mp4", "av1")

    line, _ = refusal(qwen, assets, f"use_topk={use_topk}")
    assert f"question q2: {video}" in line
    assert "q0" not in line and "q4" not in line


@each_class_if_long
@both_ways
def test_a_video_corrupt_in_the_middle_is_no_answer(qwen, use_topk, assets, labels, video_folder):
    change_entry(labels, 2, frame_idx=[0, 40, 75, 100, 149])
    video = spoil(video_folder / "short.mp4", "corrupt")

    line, calls = refusal(qwen, assets, f"use_topk={use_topk}")
    assert line.startswith(f"error: question q2: {video}: ")
    assert 2 not in map(question_of, calls)


@pytest.mark.parametrize("qwen", MODELS[:2], ids=lambda qwen: qwen.name)
@both_ways
@pytest.mark.parametrize("extension", [".mkv", ".MP4"])
def test_an_ending_that_upstream_passes_over_is_refused_before_any_question(
    qwen, use_topk, extension, assets, labels, video_folder
):
    video = write_numbered_video(video_folder / f"other{extension.lower()}", 60)
    video = video.rename(video.with_suffix(extension))
    change_entry(labels, 3, video_path=video.name, frame_idx=[0, 30, 59])

    line, calls = refusal(qwen, assets, f"use_topk={use_topk}")
    assert f"{video}: lmms-eval's {qwen.ours} reads only .mp4, .avi, .mov" in line
    assert not calls


@needs_qwen3
@both_ways
def test_qwen3_reads_what_its_upstream_reads(use_topk, assets, labels, video_folder):
    for index, extension in ((2, ".mkv"), (3, ".MP4")):
        video = write_numbered_video(video_folder / f"other{extension.lower()}", 60)
        video.rename(video.with_suffix(extension))
        change_entry(labels, index, video_path=f"other{extension}", frame_idx=[0, 30, 59])

    frames = shown(QWEN3, assets, f"use_topk={use_topk}")
    expected = [0, 30, 59, 59] if use_topk else linspace_of(60)
    assert [frames[2], frames[3]] == [expected] * 2


def linspace_of(num_frames: int) -> list[int]:
    return np.linspace(0, num_frames - 1, BUDGET).round().astype(int).tolist()


@each_class_if_long
def test_a_keyframe_beyond_the_video_is_refused(qwen, assets, labels):
    change_entry(labels, 4, frame_idx=[0, 4, 5])

    line, calls = refusal(qwen, assets, "use_topk=True")
    assert "few.mp4: keyframe 5 lies beyond the video's 5 frames" in line
    assert not calls


@each
def test_a_video_too_short_for_upstreams_uniform_frames_is_an_error(
    qwen, assets, labels, video_folder, readers
):
    (video_folder / "short.mp4").unlink()
    video = write_numbered_video(video_folder / "short.mp4", 1)

    line, _ = refusal(qwen, assets, "use_topk=False")
    assert f"question q2: {video}: cannot be read: nframes should in interval" in line


@each_class
def test_a_processor_that_fails_ends_the_evaluation_and_keeps_no_answer(
    qwen, assets, labels, tmp_path, monkeypatch, capsys
):
    model = qwen.create(
        assets / qwen.checkpoint,
        f"max_num_frames={BUDGET}",
        "use_topk=True",
        f"answers={tmp_path / 'answers'}",
    )
    fail_second(monkeypatch, type(model.processor), "__call__")
    with recorded(answer_nothing) as calls, pytest.raises(EvaluationError) as ended:
        evaluate(model, qwen.name, TASK)
    assert ended.value.code == "error: question q1: RuntimeError: no room for pixels"
    assert "in preprocess_second" in capsys.readouterr().err  # where it comes from
    assert len(calls) == 1 and not (tmp_path / "answers").exists()


# Subtitles are those of the frames that reach the model


@each_class_if_long
@both_ways
def test_the_prompts_subtitles_are_spoken_at_the_frames_shown(qwen, use_topk, assets, tmp_path, monkeypatch):
    merged = merge_selection(
        write_videomme_labels(tmp_path, ["long", "long", "short"]), KEYFRAMES[:3], BUDGET, "videomme"
    )
    for stem in ("long", "short"):
        write_subtitles(
            tmp_path / f"subtitle/{stem}.srt", [(s, s + 1, f"said in second {s}") for s in range(40)]
        )
    use_labels(monkeypatch, "videomme", merged, assets / "videos")
    monkeypatch.setenv("AKS_VIDEOMME_SUBTITLES", str(tmp_path / "subtitle"))
    set_frame_num(merged, use_topk, BUDGET)

    calls = calls_of(
        qwen, assets, f"use_topk={use_topk}", task="videomme_w_subtitle_aks", generate=answer_nothing
    )

    for question, call in calls.items():
        fps = FPS[VIDEOS[question]]
        seconds = sorted({frame_index // fps for frame_index in frames_of(call, qwen.patch_size)})
        found = re.findall(r"said in second (\d+)", prompt_of(call))
        assert found == list(map(str, seconds)), question
    assert len(calls) == 3


# The command


def run_command(qwen: Qwen, assets: Path, labels: Path, videos: Path) -> subprocess.CompletedProcess:
    """The command, with results and recorded calls in folders beside the labels."""
    folder = labels.parent
    return run_lmms_eval(
        qwen.name,
        f"pretrained={assets / qwen.checkpoint},{qwen.arguments},max_num_frames={BUDGET},use_topk=True",
        TASK,
        folder / "results",
        *qwen.flags,
        labels=labels,
        videos=videos,
        python_path=[Path(__file__).parents[1] / "support"],
        environment={
            "LMMS_EVAL_PLUGINS": "evaluation,qwen_recorder",
            "AKS_RECORDED_CALLS": str(folder / "calls"),
        },
    )


@each_class_if_long
def test_the_command_shows_the_keyframes_and_writes_results(qwen, assets, labels):
    done = run_command(qwen, assets, labels, assets / "videos")
    assert done.returncode == 0, done.stderr
    files = sorted((labels.parent / "calls").iterdir())
    calls = [Call(**torch.load(path, weights_only=False)) for path in files]

    frames = {question_of(call): frames_of(call, qwen.patch_size) for call in calls}
    assert frames == {question: in_pairs(keyframes) for question, keyframes in enumerate(KEYFRAMES)}
    assert "keyframes, 8 at most; 3 of 5 questions have fewer: they are shown as selected" in done.stderr
    (results,) = results_in(labels.parent / "results")
    score = json.loads(results.read_text())["results"][TASK]["lvb_acc,none"]
    samples = samples_in(labels.parent / "results")
    assert [sample["lvb_acc"]["id"] for sample in samples] == [f"q{question}" for question in QUESTIONS]
    correct = [sample["lvb_acc"]["parsed_pred"] == "A" for sample in samples]
    assert score == pytest.approx(np.mean(correct))


def test_the_command_gives_no_score_for_answers_without_the_video(assets, tmp_path):
    video = write_av1(tmp_path / "videos/a.mp4")
    labels = merge_selection(write_longvideobench_labels(tmp_path / "labels", ["a.mp4"]), [[19]], BUDGET)
    done = run_command(QWEN2, assets, labels, tmp_path / "videos")

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        f"error: question q0: {video}: not all its pixels reached the model, so no answer counts; lmms-eval "
        f"logged: Failed to process video {video}: "
    )
    assert not results_in(labels.parent / "results") and not samples_in(labels.parent / "results")
