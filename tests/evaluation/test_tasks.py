"""Tasks whose prompts depend on the frames shown, and the rules by which each model chooses uniform frames.

The rules are compared with what lmms-eval's own model classes read.
"""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import decord
import numpy as np
import pytest
from evaluation_setup import (
    change_entry,
    load_task,
    merge_selection,
    read_frame_indices,
    set_frame_num,
    write_labels,
    write_longvideobench_labels,
    write_numbered_video,
    write_subtitles,
    write_videomme_labels,
)
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.tasks.longvideobench import utils as upstream_longvideobench
from lmms_eval.tasks.videomme import utils as upstream_videomme
from qwen_setup import evaluate, upstream_readers
from qwen_vl_utils import vision_process

from evaluation.errors import EvaluationError
from evaluation.keyframe_mixin import KeyframeMixin
from evaluation.llava_implementation import provide_llava
from evaluation.uniform import UNIFORM_RULES

BUDGET = 8
VIDEOS = {"long": (1100, 30), "short": (150, 24), "few": (5, 30)}  # frames, frames a second
RULES = {
    "llava_onevision": "linspace",
    "llava_vid": "one_a_second",
    "qwen2_vl": "qwen2",
    "qwen2_5_vl": "qwen2_5",
    "qwen2_5_vl_chat": "qwen2_5_chat",
    "qwen3_vl": "qwen3",
}
UPSTREAM_CLASSES = {
    "llava_onevision": "Llava_OneVision",
    "llava_vid": "LlavaVid",
    "qwen2_vl": "Qwen2_VL",
    "qwen2_5_vl": "Qwen2_5_VL",
    "qwen2_5_vl_chat": "Qwen2_5_VL",
    "qwen3_vl": "Qwen3_VL",
}
models = pytest.mark.parametrize("model", RULES)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name, (frames, fps) in VIDEOS.items():
        write_numbered_video(folder / f"{name}.mp4", frames, fps)
    return folder


@pytest.fixture(autouse=True)
def readers(monkeypatch) -> None:
    """qwen-vl-utils reads with decord, unwrapped."""
    monkeypatch.setattr(vision_process, "VIDEO_READER_BACKENDS", upstream_readers())
    monkeypatch.setattr(vision_process, "get_video_reader_backend", lambda: "decord")


# The models' rules for uniform frames


class FramesKnown(Exception):
    """Raised when the frames are known; there is no model to ask."""


class Processor:
    """A tokenizer and processor for lmms-eval's Qwen classes that notes the frames it is given."""

    eos_token_id = pad_token_id = 0

    def encode(self, text: str) -> list[str]:
        return list(text)

    def decode(self, token: int) -> str:
        return "."

    def apply_chat_template(self, *messages: Any, **options: Any) -> str:
        return ""

    def __call__(self, videos: list[Any], **inputs: Any) -> None:
        self.frames = videos[0]
        raise FramesKnown


def upstream_frames(model: str, path: str, budget: int) -> np.ndarray:
    """The uniform frames, pixels, that lmms-eval's own class of this name reads of a video."""
    is_chat = model.endswith("_chat")
    folder = "chat" if is_chat else "simple"
    module = importlib.import_module(f"lmms_eval.models.{folder}.{model.removesuffix('_chat')}")
    upstream = object.__new__(getattr(module, UPSTREAM_CLASSES[model]))  # without weights
    if model == "llava_vid":
        return upstream.load_video(path, budget, 1)[0]
    if model == "llava_onevision":
        return upstream.load_video(path, budget)
    processor = Processor()
    upstream.__dict__.update(
        processor=processor, _tokenizer=processor, max_num_frames=budget, fps=None, total_pixels=None,
        min_pixels=1024, max_pixels=602112, system_prompt="", reasoning_prompt=None, enable_thinking=None,
        interleave_visuals=False, batch_size_per_gpu=1, device_map="cpu", _rank=0, use_cache=True,
        task_dict={"task": {"test": [{}]}},
    )  # fmt: skip
    message = {"role": "user", "content": [{"type": "video", "url": path}]}
    question = (lambda doc: [message], {}) if is_chat else ({}, lambda doc: [path])
    arguments = ("?", *question, 0, "task", "test")
    request = Instance("generate_until", arguments, 0, {"task": "task", "doc_id": 0, "repeats": 1})
    with pytest.raises(FramesKnown):
        upstream.generate_until([request])
    return processor.frames


class ColourReader:
    """Stands in for decord's reader: a video's name tells its frame count and rate.

    Each frame has one colour, which spells its index.
    """

    def __init__(self, path: str, *options: Any, **more: Any) -> None:
        frames, fps = Path(path).stem.split("_")
        self.frames, self.fps = int(frames), float(fps)

    def __len__(self) -> int:
        return self.frames

    def get_avg_fps(self) -> float:
        return self.fps

    def __getitem__(self, frame_index: int) -> Any:
        return decord.nd.array(self.get_batch([frame_index]).asnumpy()[0])

    def get_batch(self, frame_indices: list[int]) -> Any:
        assert min(frame_indices) >= 0 and max(frame_indices) < self.frames
        colours = [
            [frame_index >> 16, frame_index >> 8 & 255, frame_index & 255] for frame_index in frame_indices
        ]
        pixels = np.array(colours, dtype=np.uint8)[:, None, None].repeat(32, axis=1).repeat(32, axis=2)
        return decord.nd.array(np.ascontiguousarray(pixels))


def colours(frames: Any) -> list[int]:
    """The indices of a ``ColourReader``'s frames, as it gives them or after qwen-vl-utils."""
    pixels = np.asarray(frames)
    corner = pixels[:, 0, 0] if pixels.shape[-1] == 3 else pixels[:, :, 0, 0]
    red, green, blue = corner.astype(int).T
    return ((red << 16) + (green << 8) + blue).tolist()


@pytest.fixture
def colour_reader(monkeypatch) -> None:
    provide_llava()
    for model in ("llava_vid", "llava_onevision"):  # imported before decord's reader is replaced
        module = importlib.import_module(f"lmms_eval.models.simple.{model}")
        monkeypatch.setattr(module, "VideoReader", ColourReader)
    monkeypatch.setattr(decord, "VideoReader", ColourReader)


def many_cases() -> list[tuple[int, float, int]]:
    """Frame counts, frames a second and budgets: the edges of every rule, and a hundred at random."""
    rng = np.random.default_rng(3)
    lengths = [2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 33, 64, 90, 150, 767, 768, 769, 1100, 1537, 5000, 108000]
    rates = [1, 2, 5, 12.5, 23.976, 24000 / 1001, 25, 29.97, 30, 59.94, 120]
    budgets = [1, 2, 3, 4, 5, 7, 8, 16, 32, 63, 64, 65, 128]
    edges = [(2, 30, 8), (3, 30, 8), (4, 30, 4), (5, 30, 8), (7, 30, 32), (9, 30, 32), (64, 1, 64)]
    edges += [(65, 1, 64), (1920, 30, 64), (1950, 30, 64), (16, 2, 1), (16, 2, 2), (1536, 4, 32)]
    edges += [(11520, 30, 32), (11535, 30, 32), (108000, 29.97, 64)]
    drawn = [tuple(rng.choice(values).item() for values in (lengths, rates, budgets)) for _ in range(100)]
    return edges + [(int(frames), fps, int(budget)) for frames, fps, budget in drawn]


@models
def test_a_models_rule_is_what_its_upstream_reads(model, colour_reader):
    compared = 0
    for frames, fps, budget in many_cases():
        frame_indices = UNIFORM_RULES[RULES[model]](frames, fps, budget)
        try:
            expected = colours(upstream_frames(model, f"{frames}_{fps}.mp4", budget))
        except RuntimeError:  # qwen-vl-utils cannot sample it, and turns to torchvision, which finds no file
            shown = min(frames, budget)
            assert model == "qwen3_vl" and (shown == 1 or (shown % 4 == 3 and shown == frames))
            continue
        assert frame_indices.tolist() == expected, (frames, fps, budget)
        compared += 1
    assert compared > 90


@pytest.mark.parametrize("video", VIDEOS)
@models
def test_a_models_rule_is_what_its_upstream_reads_of_a_real_video(model, video, videos):
    frames = read_frame_indices(upstream_frames(model, str(videos / f"{video}.mp4"), BUDGET))

    assert UNIFORM_RULES[RULES[model]](*VIDEOS[video], BUDGET).tolist() == frames


@pytest.mark.parametrize("rule", UNIFORM_RULES)
def test_a_rule_keeps_within_the_shortest_videos(rule):
    for frames in range(1, 20):
        for fps in (0.5, 1, 30):
            for budget in (1, 2, 3, 8, 64):
                frame_indices = UNIFORM_RULES[rule](frames, fps, budget)
                assert frame_indices.dtype == np.int64 and (np.diff(frame_indices) >= 0).all()
                assert len(frame_indices) == 0 or (frame_indices[0] >= 0 and frame_indices[-1] < frames)


# LongVideoBench's pictures, with the subtitles between them

SUBTITLES = [  # the clip begins 100 s into its original
    {"timestamp": [99.5, 101.4], "text": "over the first picture"},
    {"timestamp": [102.0, 103.8], "text": "over no picture"},
    {"start": "00:01:44.100", "end": "00:01:44.700", "line": "shorter than a second, over the second"},
    {"timestamp": [109.9, 110.6], "text": "begins before the third"},
    {"timestamp": [123.0, 125.4], "text": "ends after the fourth"},
]
KEYFRAMES = [0, 45, 100, 250]  # at 0, 4.5, 10 and 25 seconds


@pytest.fixture
def interleaved(tmp_path, monkeypatch) -> Path:
    """Labels of one question about 30 seconds at 10 frames a second, with keyframes and subtitles."""
    write_numbered_video(tmp_path / "videos/clip.mp4", 300, 10)
    write_labels(tmp_path / "subtitles/clip_en.json", SUBTITLES)
    monkeypatch.setenv("AKS_LONGVIDEOBENCH_SUBTITLES", str(tmp_path / "subtitles"))
    monkeypatch.setenv("AKS_LONGVIDEOBENCH_VIDEOS", str(tmp_path / "videos"))
    plain = write_longvideobench_labels(
        tmp_path, ["clip.mp4"], duration=30.0, starting_timestamp_for_subtitles=100
    )
    return merge_selection(plain, [KEYFRAMES], BUDGET)


def pictures_task(kind: str, labels: Path, monkeypatch, tmp_path) -> tuple[Any, dict[str, Any]]:
    task, (doc,) = load_task(
        f"longvideobench_val_i_{kind}", monkeypatch, tmp_path, LONGVIDEOBENCH_LABELS=labels
    )
    return task, doc


def test_keyframes_and_subtitles_are_told_in_the_order_of_their_times(interleaved, monkeypatch, tmp_path):
    task, doc = pictures_task("aks", interleaved, monkeypatch, tmp_path)

    assert task.doc_to_text(doc).splitlines() == [
        "<image>",
        "over the first picture",
        "shorter than a second, over the second",
        "<image>",
        "<image>",
        "begins before the third",
        "ends after the fourth",
        "<image>",
        "What is shown in part 0?",
        "A. black and white blocks",
        "B. a rabbit",
        "C. a rocket",
        "D. nothing at all",
        "Answer with the option's letter from the given choices directly.",
    ]


def test_a_place_in_the_prompt_is_that_of_a_picture(interleaved, monkeypatch, tmp_path):
    for keyframes in (KEYFRAMES, [249, 250, 251], [299], list(range(0, 300, 37))):
        change_entry(interleaved, 0, frame_idx=keyframes)
        task, doc = pictures_task("aks", interleaved, monkeypatch, tmp_path)
        assert read_frame_indices(map(np.asarray, task.doc_to_visual(doc))) == keyframes
        assert task.doc_to_text(doc).count("<image>") == len(keyframes)


@pytest.mark.parametrize("duration", [30.0, 16.5, 9.7])
def test_uniform_pictures_and_their_prompt_are_upstreams(interleaved, duration, monkeypatch, tmp_path):
    change_entry(interleaved, 0, duration=duration)
    task, doc = pictures_task("uni", interleaved, monkeypatch, tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "home/datasets").mkdir(parents=True)
    (tmp_path / "home/datasets/longvideobench").symlink_to(tmp_path)

    upstreams_text = upstream_longvideobench.longvideobench_doc_to_text(
        doc, {**task.config.lmms_eval_specific_kwargs["default"], "insert_interleave_subtitles": True}
    )
    assert task.doc_to_text(doc) == upstreams_text
    frame_indices = read_frame_indices(map(np.asarray, task.doc_to_visual(doc)))
    assert frame_indices == read_frame_indices(
        map(np.asarray, upstream_longvideobench.longvideobench_doc_to_visual_i(doc))
    )
    assert len(frame_indices) == min(16, int(duration)) == upstreams_text.count("<image>")


def test_a_missing_or_broken_subtitle_file_is_one_line(interleaved, monkeypatch, tmp_path):
    task, doc = pictures_task("aks", interleaved, monkeypatch, tmp_path)
    file = tmp_path / "subtitles/clip_en.json"
    file.write_text("<html>")
    with pytest.raises(EvaluationError, match=f"{file}: not JSON"):
        task.doc_to_text(doc)
    file.unlink()
    with pytest.raises(EvaluationError, match=f"{file}: subtitle file not found"):
        task.doc_to_text(doc)


@pytest.mark.parametrize(
    ("keyframes", "complaint"),
    [([0, 300], "keyframe 300 lies beyond the video's 300 frames"), ([], "its selection is empty")],
)
def test_pictures_that_are_not_there_are_an_error(interleaved, keyframes, complaint, monkeypatch, tmp_path):
    task, doc = pictures_task("aks", interleaved, monkeypatch, tmp_path)
    doc["frame_idx"] = keyframes

    for ask in (task.doc_to_text, task.doc_to_visual):
        with pytest.raises(EvaluationError, match=f"^error: question q0: .*{complaint}"):
            ask(doc)


@pytest.mark.parametrize("kind", ["aks", "uni"])
def test_pictures_of_a_video_that_cannot_be_read_are_an_error(interleaved, kind, monkeypatch, tmp_path):
    (tmp_path / "videos/clip.mp4").write_text("403 Forbidden")

    with pytest.raises(EvaluationError, match=r"^error: question q0: \S+/clip\.mp4: cannot be [^\n]+$"):
        task, doc = pictures_task(kind, interleaved, monkeypatch, tmp_path)
        task.doc_to_visual(doc)


class _Upstream(lmms):
    """An upstream model that answers A and notes the prompts."""

    def __init__(self, max_frames_num: int = BUDGET, fps: float | None = None, **unknown: Any) -> None:
        super().__init__()
        self.max_frames_num, self.prompts = max_frames_num, []
        self.model = SimpleNamespace(generate=lambda images: "A")

    def generate_until(self, requests: list[Instance]) -> list[str]:
        answers = []
        for prompt, _, doc_to_visual, index, task, split in (request.arguments for request in requests):
            self.prompts.append(prompt)
            visuals = doc_to_visual(self.task_dict[task][split][index])
            answers.append(self.model.generate(images=visuals))
        return answers

    def loglikelihood(self, requests: Any) -> None:
        raise NotImplementedError

    def generate_until_multi_round(self, requests: Any) -> None:
        raise NotImplementedError


class Model(KeyframeMixin, _Upstream):
    """Any model with keyframes."""

    rule_arguments = ("fps",)


def refusal(task: str, **arguments: Any) -> str:
    """The line with which an evaluation ends that never asks its model."""
    model = Model(**arguments)
    with pytest.raises(EvaluationError) as ended:
        evaluate(model, "model", task)
    assert not model.prompts
    return ended.value.code


@pytest.mark.parametrize(("kind", "use_topk"), [("aks", False), ("uni", True)])
def test_pictures_of_other_frames_than_the_models_are_refused(interleaved, kind, use_topk, monkeypatch):
    monkeypatch.setenv("AKS_LONGVIDEOBENCH_LABELS", str(interleaved))

    line = refusal(f"longvideobench_val_i_{kind}", use_topk=use_topk)
    assert f"the model has use_topk={use_topk}" in line


def test_pictures_are_not_refilled(interleaved, monkeypatch):
    monkeypatch.setenv("AKS_LONGVIDEOBENCH_LABELS", str(interleaved))

    line = refusal("longvideobench_val_i_aks", use_topk=True, short_selection="paper")
    assert "short_selection=paper is a rule for videos, not for pictures" in line


# VideoMME's subtitles at the frames shown

CHOSEN = {"long": [1, 45, 46, 600, 601, 1023], "short": [23, 24, 149], "few": [4]}


@pytest.fixture
def subtitled(videos, tmp_path, monkeypatch) -> Path:
    """Labels of a question a video, with keyframes and a subtitle line for every half second."""
    monkeypatch.setenv("AKS_VIDEOMME_VIDEOS", str(videos))
    monkeypatch.setenv("AKS_VIDEOMME_SUBTITLES", str(tmp_path / "subtitle"))
    for name in VIDEOS:
        write_subtitles(
            tmp_path / f"subtitle/{name}.srt",
            [(index / 2, index / 2 + 0.5, f"line {index}") for index in range(75)],
        )
    return merge_selection(
        write_videomme_labels(tmp_path, list(VIDEOS)), list(CHOSEN.values()), BUDGET, "videomme"
    )


def subtitle_lines(labels: Path, model: str, monkeypatch, tmp_path) -> dict[str, list[int]]:
    """The numbers of the subtitle lines in each video's prompt."""
    task, docs = load_task("videomme_w_subtitle_aks", monkeypatch, tmp_path, model, VIDEOMME_LABELS=labels)
    return {doc["videoID"]: list(map(int, re.findall(r"line (\d+)", task.doc_to_text(doc)))) for doc in docs}


def lines_at(video: str, frame_indices: list[int]) -> list[int]:
    """The subtitle lines spoken at frames of a video."""
    return sorted({int(frame_index / VIDEOS[video][1] * 2) for frame_index in frame_indices})


@models
def test_subtitles_are_those_at_the_keyframes(model, subtitled, monkeypatch, tmp_path):
    set_frame_num(subtitled, True, BUDGET)

    lines = subtitle_lines(subtitled, model, monkeypatch, tmp_path)
    assert lines == {video: lines_at(video, frame_indices) for video, frame_indices in CHOSEN.items()}


@models
def test_subtitles_are_those_at_the_uniform_frames_of_the_models_upstream(
    model, subtitled, videos, monkeypatch, tmp_path
):
    set_frame_num(subtitled, False, BUDGET)

    lines = subtitle_lines(subtitled, model, monkeypatch, tmp_path)
    for video in VIDEOS:
        shown = read_frame_indices(upstream_frames(model, str(videos / f"{video}.mp4"), BUDGET))
        assert lines[video] == lines_at(video, shown), video


def test_a_line_is_told_from_its_first_frame_to_the_one_before_its_end(subtitled, monkeypatch, tmp_path):
    set_frame_num(subtitled, True, BUDGET)
    lines = [(0.5, 1.5, "line 1"), (1.5, 2.0, "line 2"), (2.0, 20.0, "line 3"), (19.5, 20.5, "line 4")]
    write_subtitles(tmp_path / "subtitle/long.srt", lines)

    for frames, expected in (
        ([14], []),
        ([15], [1]),
        ([44], [1]),
        ([45], [2]),
        ([59, 60], [2, 3]),
        ([599], [3, 4]),
        ([600, 614], [4]),
        ([615], []),
    ):
        change_entry(subtitled, 0, frame_idx=frames)
        assert subtitle_lines(subtitled, "qwen2_vl", monkeypatch, tmp_path)["long"] == expected, frames


def test_the_prompt_with_subtitles_is_upstreams(subtitled, videos, monkeypatch, tmp_path):
    set_frame_num(subtitled, False, BUDGET)
    task, docs = load_task(
        "videomme_w_subtitle_aks", monkeypatch, tmp_path, "llava_onevision", VIDEOMME_LABELS=subtitled
    )
    home = tmp_path / "home" / upstream_videomme.cache_name
    home.mkdir(parents=True)
    (home / "data").symlink_to(videos)
    (home / "subtitle").symlink_to(tmp_path / "subtitle")
    monkeypatch.setattr(upstream_videomme, "base_cache_dir", str(tmp_path / "home"))

    for doc in docs:
        ours = task.doc_to_text(doc)
        upstreams = upstream_videomme.videomme_doc_to_text_subtitle(doc, {"frame_num": BUDGET})
        assert re.sub(r"line \d+", "line", ours) == re.sub(r"line \d+", "line", upstreams)
        # Upstream collects its lines in a set, so that they have no order.
        assert sorted(ours.splitlines()) == sorted(upstreams.splitlines())


def test_a_video_without_subtitles_says_so(subtitled, monkeypatch, tmp_path):
    set_frame_num(subtitled, True, BUDGET)
    (tmp_path / "subtitle/few.srt").unlink()
    task, docs = load_task(
        "videomme_w_subtitle_aks", monkeypatch, tmp_path, "qwen2_vl", VIDEOMME_LABELS=subtitled
    )

    assert task.doc_to_text(docs[2]).startswith(
        "This video's subtitles are listed below: \nNo subtitles available\nSelect the best answer"
    )


def test_every_model_of_ours_has_its_rule():
    """Those that are not named here have the default."""
    from lmms_eval.utils import load_yaml_config

    from aks.lmms_eval_models import SUFFIX
    from evaluation.models import AVAILABLE_MODELS

    yaml = Path(__file__).resolve().parents[2] / "datasets/videomme/videomme_w_subtitle.yaml"
    named = load_yaml_config(str(yaml), mode="simple")["lmms_eval_specific_kwargs"]
    for suffix in ("", SUFFIX):  # its name in lmms-eval's plug-in, and where the project is installed
        rules = {model: named.get(model + suffix, named["default"])["uniform"] for model in AVAILABLE_MODELS}
        own = RULES | {"internvl3_5": "internvl"}  # which tests/evaluation/test_internvl.py compares
        assert rules == dict.fromkeys(AVAILABLE_MODELS, "linspace") | own


@pytest.mark.parametrize("use_topk", [True, False])
def test_a_model_that_shows_the_frames_of_the_subtitles_is_asked(subtitled, use_topk, monkeypatch):
    set_frame_num(subtitled, use_topk, BUDGET)
    monkeypatch.setenv("AKS_VIDEOMME_LABELS", str(subtitled))
    model = Model(use_topk=use_topk)

    results = evaluate(model, "model", "videomme_w_subtitle_aks")
    assert len(model.prompts) == 3
    assert results["results"]["videomme_w_subtitle_aks"]["videomme_perception_score,none"] == 100


@pytest.mark.parametrize(
    ("subtitles", "model"),
    [
        ({"use_topk": False}, {"use_topk": True}),
        ({"use_topk": True}, {"use_topk": False}),
        ({"use_topk": False, "frame_num": 16}, {"use_topk": False}),
        ({"use_topk": False}, {"use_topk": False, "max_frames_num": 16}),
    ],
)
def test_subtitles_of_other_frames_than_the_models_are_refused(subtitled, subtitles, model, monkeypatch):
    set_frame_num(subtitled, **{"frame_num": BUDGET, **subtitles})
    monkeypatch.setenv("AKS_VIDEOMME_LABELS", str(subtitled))

    line = refusal("videomme_w_subtitle_aks", **model)
    frame_num = subtitles.get("frame_num", BUDGET)
    assert f"its subtitles are those of use_topk={subtitles['use_topk']}, frame_num={frame_num}" in line
    flags = f"--use_topk {model['use_topk']} --frame_num {model.get('max_frames_num', 8)}"
    assert f"run evaluation/insert_frame_num.py {flags}" in line


def test_subtitles_of_keyframes_are_refused_where_uniform_frames_take_their_place(subtitled, monkeypatch):
    set_frame_num(subtitled, True, BUDGET)
    monkeypatch.setenv("AKS_VIDEOMME_LABELS", str(subtitled))

    line = refusal("videomme_w_subtitle_aks", use_topk=True, short_selection="paper")
    assert "question 001-1: short_selection=paper shows uniform frames" in line


def test_subtitles_of_a_rule_that_an_argument_changes_are_refused(subtitled, monkeypatch):
    set_frame_num(subtitled, False, BUDGET)
    monkeypatch.setenv("AKS_VIDEOMME_LABELS", str(subtitled))

    assert "uniform frames without fps=1" in refusal("videomme_w_subtitle_aks", fps=1)


@pytest.mark.parametrize(
    ("model", "arguments"),
    [("llava_vid", ("video_fps", "force_sample")), ("qwen3_vl", ("fps", "total_pixels"))],
)
def test_the_arguments_that_change_a_models_rule_are_known(model, arguments):
    from evaluation.models import AVAILABLE_MODELS

    ours = getattr(importlib.import_module(f"evaluation.{model}"), AVAILABLE_MODELS[model])
    assert ours.rule_arguments == arguments
    for argument in arguments:
        ours.upstream_default(argument)  # which raises where upstream has none of that name


def test_subtitles_without_a_word_on_the_frames_are_refused(subtitled, monkeypatch, tmp_path):
    with pytest.raises(EvaluationError, match=r"no 'frame_num'.*python evaluation/insert_frame_num\.py"):
        load_task("videomme_w_subtitle_aks", monkeypatch, tmp_path, VIDEOMME_LABELS=subtitled)


@pytest.mark.parametrize("task", ["videomme_aks", "videomme_w_subtitle_aks"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("duration", "Short"),
        ("domain", "Knowlege"),
        ("sub_category", "Astronomy "),
        ("task_type", "Counting"),
    ],
)
def test_a_category_that_the_aggregation_does_not_know_is_refused_up_front(
    task, field, value, subtitled, monkeypatch, tmp_path
):
    set_frame_num(subtitled, True, BUDGET)
    change_entry(subtitled, 1, **{field: value})

    with pytest.raises(EvaluationError, match=re.escape(f"entry 1: {field} is {value!r}, which lmms-eval's")):
        load_task(task, monkeypatch, tmp_path, VIDEOMME_LABELS=subtitled)


def test_every_category_of_the_real_labels_is_known(reference, monkeypatch, tmp_path):
    labels = reference / "videomme/videomme.json"
    _, docs = load_task("videomme_aks", monkeypatch, tmp_path, VIDEOMME_LABELS=labels)

    assert len(docs) == len(json.loads(labels.read_text(encoding="utf-8"))) == 2700
