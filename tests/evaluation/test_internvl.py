"""InternVL3.5 in lmms-eval: which frames reach the model, and what is no answer.

With lmms-eval's and transformers' own code and a small random checkpoint, where transformers knows InternVL.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import transformers
from evaluation_setup import (
    change_entry,
    corrupt,
    link_videos,
    merge_selection,
    read_frame_index,
    results_in,
    run_lmms_eval,
    set_frame_num,
    write_labels,
    write_longvideobench_labels,
    write_numbered_video,
    write_subtitles,
    write_videomme_labels,
)
from internvl_setup import VOCABULARY, answer_nothing, frames_of, has_internvl, write_checkpoint
from llava_setup import offline, use_labels
from qwen_recorder import Call
from qwen_setup import evaluate, recorded
from tokenizers.decoders import ByteLevel

from evaluation.errors import EvaluationError
from evaluation.uniform import uniform_internvl

pytestmark = pytest.mark.skipif(
    not has_internvl(), reason="transformers has no InternVLForConditionalGeneration"
)
if has_internvl():
    from lmms_eval.models.chat.internvl_hf import InternVLHf

    from evaluation.internvl3_5 import InternVL

BUDGET = 8
FRAMES = {"long.mp4": 1100, "short.mp4": 150}
FPS = {"long.mp4": 30, "short.mp4": 24}
VIDEOS = ["long.mp4", "long.mp4", "short.mp4"]
KEYFRAMES = [[0, 31, 257, 512, 600, 601, 1023, 1099], [7, 300, 1000], [149]]
TASK = "longvideobench_val_v_aks"
NAME = "internvl3_5"
ARGUMENTS = f"device_map=cpu,num_frames={BUDGET}"
both_ways = pytest.mark.parametrize("use_topk", [True, False], ids=["keyframes", "uniform"])


@pytest.fixture(scope="module")
def assets(tmp_path_factory) -> Path:
    """A folder with videos, a checkpoint and labels."""
    assets = tmp_path_factory.mktemp("internvl")
    for name, count in FRAMES.items():
        write_numbered_video(assets / "videos" / name, count, fps=FPS[name])
    merge_selection(write_longvideobench_labels(assets / "labels", VIDEOS), KEYFRAMES, BUDGET)
    with offline(assets / "hub", assets / "datasets_cache"):
        write_checkpoint(assets / "checkpoint")
        yield assets


@pytest.fixture
def labels(assets, tmp_path, monkeypatch) -> Path:
    """The questions with their keyframes, which the tasks read, and a folder of links to the videos."""
    merged = merge_selection(write_longvideobench_labels(tmp_path / "labels", VIDEOS), KEYFRAMES, BUDGET)
    use_labels(monkeypatch, "longvideobench", merged, link_videos(assets / "videos", tmp_path / "videos"))
    return merged


def create(assets: Path, *arguments: str, kind: type | None = None) -> Any:
    text = ",".join([f"pretrained={assets / 'checkpoint'}", ARGUMENTS, *arguments])
    return (kind or InternVL).create_from_arg_string(text, {"batch_size": "1", "device": "cpu"})


def prompt_of(call: Call) -> str:
    return ByteLevel().decode([VOCABULARY[token] for token in call.inputs["input_ids"][0].tolist()])


def calls_of(model: Any, task: str = TASK, generate: Any = None) -> dict[int, Call]:
    """An evaluation's calls of the model by question."""
    with recorded(generate) as calls:
        evaluate(model, NAME, task)
    return {int(prompt_of(call).split("What is shown in part ")[1].split("?")[0]): call for call in calls}


def refusal(model: Any, generate: Any = answer_nothing) -> tuple[str, list[Call]]:
    """The one line with which an evaluation ends, and the calls of the model until then."""
    with recorded(generate) as calls, pytest.raises(EvaluationError) as ended:
        evaluate(model, NAME, TASK)
    line = ended.value.code
    assert line.startswith("error: ") and "\n" not in line
    return line, calls


@pytest.fixture(scope="module")
def asked(assets) -> Callable[[bool], dict[int, Call]]:
    """The model's calls in an evaluation; each evaluation runs once."""

    @functools.cache
    def calls(use_topk: bool) -> dict[int, Call]:
        with pytest.MonkeyPatch.context() as patch:
            merged = assets / "labels/include_frame_idx.json"
            use_labels(patch, "longvideobench", merged, assets / "videos")
            return calls_of(create(assets, f"use_topk={use_topk}"))

    return calls


def test_the_model_is_shown_exactly_the_keyframes(asked):
    calls = asked(use_topk=True)

    assert [frames_of(calls[question]) for question in range(3)] == KEYFRAMES
    for question, keyframes in enumerate(KEYFRAMES):
        numbers = re.findall(r"Frame(\d+): <img>(?:<IMG_CONTEXT>)+</img>\n", prompt_of(calls[question]))
        assert numbers == [str(number) for number in range(1, len(keyframes) + 1)]


@pytest.mark.skipif(
    not hasattr(torchvision.io, "read_video") and importlib.util.find_spec("torchcodec") is None,
    reason="transformers cannot read videos: torchvision has no reader, torchcodec is not installed",
)
def test_uniform_frames_and_everything_else_are_upstreams_own(asked, assets, labels):
    ours, upstreams = asked(use_topk=False), calls_of(create(assets, kind=InternVLHf))

    assert ours.keys() == upstreams.keys() == {0, 1, 2}
    for question, call in ours.items():
        assert_same(call.inputs, upstreams[question].inputs)
        assert torch.equal(call.answer, upstreams[question].answer)


def test_nothing_but_the_pixels_differs_from_a_uniform_run(asked):
    assert_same(asked(use_topk=True)[0].inputs, asked(use_topk=False)[0].inputs, but={"pixel_values"})


def assert_same(one: dict[str, Any], other: dict[str, Any], but: set[str] = frozenset()) -> None:
    assert one.keys() == other.keys()
    for name in one.keys() - but:
        same = torch.equal if isinstance(one[name], torch.Tensor) else lambda a, b: a == b
        assert same(one[name], other[name]), name


def test_the_papers_way_refills_short_selections(assets, labels):
    calls = calls_of(create(assets, "use_topk=True", "short_selection=paper"), generate=answer_nothing)

    refilled = [np.linspace(0, FRAMES[video] - 1, BUDGET, dtype=int).tolist() for video in VIDEOS[1:]]
    assert [frames_of(calls[question]) for question in range(3)] == [KEYFRAMES[0], *refilled]


def test_the_rule_is_transformers_own():
    processor = transformers.InternVLVideoProcessor()
    for num_frames in (1, 8, 9, 31, 32, 150, 1100, 5000, 107999):
        for budget in (1, 7, 8, 32, 64):
            metadata = transformers.video_utils.VideoMetadata(num_frames, 30)
            if budget > num_frames:
                with pytest.raises(ValueError, match="exceeds"):
                    processor.sample_frames(metadata, budget)
                assert not len(uniform_internvl(num_frames, 30, budget))
            else:
                expected = processor.sample_frames(metadata, budget).tolist()
                assert uniform_internvl(num_frames, 30, budget).tolist() == expected


@both_ways
def test_pictures_reach_the_model_in_their_order(use_topk, assets, labels, tmp_path, monkeypatch):
    for question, video in enumerate(VIDEOS):
        change_entry(labels, question, duration=FRAMES[video] / FPS[video])
    for stem in ("long", "short"):
        write_labels(tmp_path / f"subtitles/{stem}_en.json", [])
    monkeypatch.setenv("AKS_LONGVIDEOBENCH_SUBTITLES", str(tmp_path / "subtitles"))

    model = create(assets, f"use_topk={use_topk}", "max_patches=1")  # a picture is one tile
    calls = calls_of(model, f"longvideobench_val_i_{'aks' if use_topk else 'uni'}", answer_nothing)

    frames = [
        [read_frame_index(tile) for tile in calls[question].inputs["pixel_values"]] for question in calls
    ]
    uniform = [1100 // 16 * index for index in range(16)]
    expected = KEYFRAMES if use_topk else [uniform, uniform, [25 * index for index in range(6)]]
    assert frames == [expected[question] for question in calls]


@both_ways
def test_the_prompts_subtitles_are_spoken_at_the_frames_shown(use_topk, assets, tmp_path, monkeypatch):
    names = [Path(video).stem for video in VIDEOS]
    merged = merge_selection(write_videomme_labels(tmp_path, names), KEYFRAMES, BUDGET, "videomme")
    for stem in names:
        write_subtitles(
            tmp_path / f"subtitle/{stem}.srt", [(s, s + 1, f"said in second {s}") for s in range(40)]
        )
    use_labels(monkeypatch, "videomme", merged, assets / "videos")
    monkeypatch.setenv("AKS_VIDEOMME_SUBTITLES", str(tmp_path / "subtitle"))
    set_frame_num(merged, use_topk, BUDGET)

    calls = calls_of(create(assets, f"use_topk={use_topk}"), "videomme_w_subtitle_aks", answer_nothing)

    assert len(calls) == 3
    for question, call in calls.items():
        seconds = sorted({index // FPS[VIDEOS[question]] for index in frames_of(call)})
        assert re.findall(r"said in second (\d+)", prompt_of(call)) == list(map(str, seconds)), question


# Errors instead of answers


def test_a_checkpoint_that_brings_its_own_code_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "internvl_chat"}))
    with pytest.raises(EvaluationError, match=f"{tmp_path}: holds a internvl_chat model, .* ends in -HF"):
        InternVL(pretrained=str(tmp_path), use_topk=True)


def test_an_argument_that_upstream_passes_over_is_refused(assets):
    with pytest.raises(EvaluationError, match="model argument max_num_frames: lmms-eval's InternVLHf has no"):
        create(assets, "max_num_frames=8")


@both_ways
def test_a_video_corrupt_in_the_middle_is_no_answer(use_topk, assets, labels):
    change_entry(labels, 2, frame_idx=[0, 40, 75, 100, 149])
    video = labels.parents[1] / "videos/short.mp4"
    whole = video.read_bytes()
    video.unlink()
    video.write_bytes(corrupt(whole))

    line, calls = refusal(create(assets, f"use_topk={use_topk}"))
    assert line.startswith(f"error: question q2: {video}: ")
    assert len(calls) <= 2 and all("part 2?" not in prompt_of(call) for call in calls)


def test_a_video_too_short_for_uniform_frames_is_an_error(assets, labels):
    video = labels.parents[1] / "videos/short.mp4"
    video.unlink()
    write_numbered_video(video, 5)

    line, _ = refusal(create(assets, "use_topk=False"))
    assert f"question q2: {video}: cannot be read: Video can't be sampled. The `num_frames=8` exceeds" in line


def test_a_model_that_fails_is_no_empty_answer(assets, labels, capsys):
    """Upstream would log the error and score an empty text."""

    def fails(model, **inputs):
        raise RuntimeError("no room for keys")

    line, _ = refusal(create(assets, "use_topk=True"), fails)
    assert re.fullmatch(r"error: question q\d: RuntimeError: no room for keys", line)
    assert "in fails" in capsys.readouterr().err  # where it comes from


@pytest.mark.parametrize("lost", ["all", "one"])
def test_an_answer_without_all_frames_does_not_count(lost, assets, labels):
    model = create(assets, "use_topk=True")
    fetch = model.fetch_videos

    def fetch_less(paths, sample_indices_fn):
        videos, metadata = fetch(paths, sample_indices_fn)
        return [video[1:] if lost == "one" else video[:0] for video in videos], metadata

    model.processor.video_processor.fetch_videos = fetch_less
    line, calls = refusal(model)
    assert re.match(r"error: question q\d: ", line) and not calls


def test_the_command_shows_the_keyframes_and_writes_results(assets, labels):
    folder = labels.parent
    done = run_lmms_eval(
        NAME,
        f"pretrained={assets / 'checkpoint'},{ARGUMENTS},use_topk=True",
        TASK,
        folder / "results",
        labels=labels,
        videos=assets / "videos",
        python_path=[Path(__file__).parents[1] / "support"],
        environment={
            "LMMS_EVAL_PLUGINS": "evaluation,qwen_recorder",
            "AKS_RECORDED_CALLS": str(folder / "calls"),
        },
    )
    assert done.returncode == 0, done.stderr
    calls = [Call(**torch.load(path, weights_only=False)) for path in sorted((folder / "calls").iterdir())]
    assert sorted(map(frames_of, calls)) == sorted(KEYFRAMES)
    (results,) = results_in(folder / "results")
    assert "lvb_acc,none" in json.loads(results.read_text())["results"][TASK]
