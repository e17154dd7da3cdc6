"""LLaVA-Video and LLaVA-OneVision in lmms-eval: which frames reach the model, and errors instead of answers.

With a small random checkpoint; on LLaVA-NeXT where it is installed, on transformers elsewhere.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_setup import (
    KEYFRAMES,
    QUESTIONS,
    VIDEOS,
    change_entry,
    fail_second,
    link_videos,
    merge_selection,
    read_frame_indices,
    results_in,
    run_lmms_eval,
    samples_in,
    sha256,
    spoil,
    write_longvideobench_labels,
    write_numbered_video,
    write_videomme_labels,
)
from llava_recorder import Call
from llava_setup import (
    LLAVA_NEXT,
    LLAVAS,
    TESTS,
    Evaluation,
    Llava,
    force_tokens,
    frames_of,
    offline,
    question_of,
    text_of,
    use_labels,
    write_checkpoint,
)
from transformers import AutoTokenizer

BUDGET = 8
FRAMES = {"long.mp4": 1100, "short.mp4": 150, "few.mp4": 5, "long.mkv": 300, "square.mp4": 90}
TASK = "longvideobench_val_v_aks"

both = pytest.mark.parametrize("llava", LLAVAS, ids=lambda llava: llava.name)


@pytest.fixture(scope="module")
def assets(tmp_path_factory) -> Path:
    """A folder with videos, checkpoints and the hub's cache."""
    assets = tmp_path_factory.mktemp("llava")
    for name, count in FRAMES.items():
        size = (128, 128) if name == "square.mp4" else (160, 128)
        fps = 24 if name == "short.mp4" else 30
        write_numbered_video(assets / "videos" / name, count, fps, size)
    with offline(assets / "hub", assets / "datasets_cache"):
        write_checkpoint(assets / "llava_video_7b", assets / "hub")
        (assets / "llava-video-7b-qwen2").symlink_to(assets / "llava_video_7b")
        yield assets


@pytest.fixture
def checkpoint(assets) -> Path:
    """A Qwen2 checkpoint in a folder whose name does not tell that."""
    return assets / "llava_video_7b"


@pytest.fixture
def labels(assets, tmp_path, monkeypatch) -> Path:
    """The questions with their keyframes merged in; the tasks read them."""
    merged = merge_selection(write_longvideobench_labels(tmp_path / "labels", VIDEOS), KEYFRAMES)
    use_labels(monkeypatch, "longvideobench", merged, assets / "videos")
    return merged


def evaluate(llava: Llava, checkpoint: Path, *arguments: str, task: str = TASK) -> Evaluation:
    model = llava.create(checkpoint, f"max_frames_num={BUDGET}", *arguments)
    return Evaluation(model, llava.name).run(task)


def refusal(llava: Llava, checkpoint: Path, *arguments: str, task: str = TASK) -> str:
    """The one line with which an evaluation ends that never asks its model."""
    calls = []
    with pytest.raises(SystemExit) as ended:
        evaluation = Evaluation(llava.create(checkpoint, *arguments), llava.name)
        calls = evaluation.calls
        evaluation.run(task)
    assert not calls
    line = ended.value.code
    assert isinstance(line, str) and line.startswith("error: ") and "\n" not in line
    return line


def uniform(video: str, budget: int = BUDGET) -> list[int]:
    """The released code's uniform frames."""
    return np.linspace(0, FRAMES[video] - 1, budget, dtype=int).tolist()


# Which frames


@dataclass
class Runs:
    """The questions answered on keyframes and on uniform frames, and what was logged."""

    llava: Llava
    keyframes: Evaluation
    uniform: Evaluation
    log: str


@pytest.fixture(scope="module", params=LLAVAS, ids=lambda llava: llava.name)
def runs(request, assets) -> Runs:
    llava, checkpoint = request.param, assets / "llava_video_7b"
    folder = assets / f"labels_{llava.name}"
    merged = merge_selection(write_longvideobench_labels(folder, VIDEOS), KEYFRAMES)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as log:
        use_labels(patch, "longvideobench", merged, assets / "videos")
        keyframes, uniform = (evaluate(llava, checkpoint, f"use_topk={shown}") for shown in (True, False))
    return Runs(llava, keyframes, uniform, log.getvalue())


def test_the_model_is_shown_exactly_the_keyframes(runs):
    assert runs.keyframes.shown() == dict(enumerate(KEYFRAMES))


def test_uniform_frames_and_everything_else_are_upstreams_own(runs, assets, labels):
    # Named so that LLaVA-NeXT's builder takes the right class without our help.
    named_qwen = assets / "llava-video-7b-qwen2"
    model = runs.llava.create(named_qwen, f"max_frames_num={BUDGET}", upstreams=True)
    upstreams = Evaluation(model, runs.llava.name).run(TASK).by_question()
    ours = runs.uniform.by_question()

    assert ours.keys() == upstreams.keys() == set(QUESTIONS)
    for question, call in ours.items():
        assert (call.pixels == upstreams[question].pixels).all()
        assert_same_but_frames(call, upstreams[question])
        assert torch.equal(call.videos[0], upstreams[question].videos[0])
        assert call.answer == upstreams[question].answer


def test_nothing_but_the_frames_differs_from_a_uniform_run(runs):
    on_uniform = runs.uniform.by_question()
    for question, call in runs.keyframes.by_question().items():
        assert_same_but_frames(call, on_uniform[question])


def assert_same_but_frames(one: Call, other: Call) -> None:
    assert torch.equal(one.prompt, other.prompt)
    assert (one.modalities, one.stopping) == (other.modalities, other.stopping)
    assert one.videos[0].dtype == other.videos[0].dtype
    assert one.others.keys() == other.others.keys()
    for name, value in one.others.items():
        same = torch.equal if isinstance(value, torch.Tensor) else np.array_equal
        assert same(value, other.others[name]), name


def test_uniform_frames_are_the_published_rules(runs):
    expected = {question: uniform(video) for question, video in enumerate(VIDEOS)}
    if runs.llava.name == "llava_vid":  # one a second where that is not more than the budget
        expected |= {2: [0, 24, 48, 72, 96, 120, 144], 4: [0]}

    assert runs.uniform.shown() == expected


def test_short_selections_are_shown_as_selected_and_counted(runs):
    shown = runs.keyframes.shown()

    assert (shown[2], shown[3], shown[4]) == ([149], [7, 300, 1000], [0, 1, 2, 3, 4])
    assert "3 of 5 questions have fewer: they are shown as selected" in runs.log


@both
@pytest.mark.parametrize(
    ("use_topk", "consequence"),
    [(True, "keyframes selected elsewhere by its numbers may be others"), (False, "are what it shows")],
)
def test_questions_are_counted_in_whose_videos_decord_shows_other_frames(
    llava, assets, checkpoint, labels, tmp_path, monkeypatch, capsys, use_topk, consequence
):
    shutil.copytree(assets / "videos", tmp_path / "videos")
    write_numbered_video(
        tmp_path / "videos/few.mp4", FRAMES["few.mp4"], codec="mpeg2video", options={"qmax": "2", "bf": "2"}
    )
    use_labels(monkeypatch, "longvideobench", labels, tmp_path / "videos")
    evaluation = evaluate(llava, checkpoint, f"use_topk={use_topk}")
    if use_topk:
        assert evaluation.shown() == dict(enumerate(KEYFRAMES))
    log = capsys.readouterr().err
    assert (
        "in the videos of 1 questions decord shows other frames than players: " in log and consequence in log
    )


@both
def test_the_papers_way_refills_short_selections_and_counts_them(llava, checkpoint, labels, capsys):
    shown = evaluate(llava, checkpoint, "use_topk=True", "short_selection=paper").shown()

    assert [shown[0], shown[1]] == KEYFRAMES[:2]
    assert [shown[2], shown[3]] == [uniform("short.mp4"), uniform("long.mp4")]
    assert shown[4] == [0, 0, 1, 1, 2, 2, 3, 4]
    log = capsys.readouterr().err
    assert "3 of 5 questions have fewer: they are shown 8 uniform frames, as the released code does" in log


@both
def test_videomme_is_shown_its_keyframes_from_any_container(llava, assets, checkpoint, tmp_path, monkeypatch):
    plain = write_videomme_labels(tmp_path, ["long", "short"])
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/long.mkv").symlink_to(assets / "videos/long.mkv")
    (tmp_path / "videos/short.MP4").symlink_to(assets / "videos/short.mp4")
    keyframes = [[3.0, 5.0, 299.0], [0, 149]]  # the released VideoMME selections hold whole floats
    use_labels(monkeypatch, "videomme", merge_selection(plain, keyframes, 8, "videomme"), tmp_path / "videos")

    shown = evaluate(llava, checkpoint, "use_topk=True", task="videomme_aks").shown()

    assert shown == {0: [3, 5, 299], 1: [0, 149]}


def test_onevision_takes_the_keyframes_as_pictures(assets, checkpoint, labels, tmp_path, monkeypatch):
    (tmp_path / "square_en.json").write_text(
        '[{"start": "00:00:00.5", "end": "00:00:01.5", "line": "Look!"}]'
    )
    monkeypatch.setenv("AKS_LONGVIDEOBENCH_SUBTITLES", str(tmp_path))
    plain = write_longvideobench_labels(tmp_path, ["square.mp4"])
    use_labels(
        monkeypatch, "longvideobench", merge_selection(plain, [[3, 30, 89]], BUDGET), assets / "videos"
    )

    run = evaluate(LLAVAS[1], checkpoint, "use_topk=True", task="longvideobench_val_i_aks")

    (call,) = run.calls
    assert read_frame_indices(call.videos) == [3, 30, 89]
    prompt = text_of(call, run.model.tokenizer)
    assert "<image>\n<image>\nLook!\n<image>\nWhat is shown" in prompt


def test_times_told_to_the_model_are_upstreams(checkpoint, labels):
    llava_vid = LLAVAS[0]
    run = evaluate(llava_vid, checkpoint, "use_topk=False", "add_time_instruction=True")
    prompt = text_of(run.by_question()[2], run.model.tokenizer)

    assert "lasts for 6.25 seconds, and 7 frames are uniformly sampled" in prompt


# Which model


@both
@pytest.mark.parametrize("stated", ["llava_qwen", "llava"])  # lmms-lab's own checkpoints say llava
def test_the_class_is_the_configurations_whatever_the_folder_is_called(llava, stated, checkpoint, tmp_path):
    folder = tmp_path / "video_7b"
    shutil.copytree(checkpoint, folder)
    change_configuration(folder, model_type=stated)

    assert type(llava.create(folder).model).__name__ == "LlavaQwenForCausalLM"


@pytest.mark.parametrize("kind", ["Qwen", "Llama", "Mistral", "Mixtral", "Gemma", "QwenMoe"])
def test_lmms_lab_s_checkpoints_of_every_language_model_are_known(kind, tmp_path):
    from evaluation.mm_utils import model_name_for

    config = {"model_type": "llava", "architectures": [f"Llava{kind}ForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert model_name_for(str(tmp_path)) == f"llava_{kind.lower().replace('qwenmoe', 'qwen_moe')}"


@both
@pytest.mark.parametrize(
    ("stated", "architecture"),
    [
        ("qwen2_vl", "Qwen2VLForConditionalGeneration"),
        ("llava", "LlavaForConditionalGeneration"),  # a conversion for transformers
        ("llava_onevision", "LlavaOnevisionForConditionalGeneration"),
        (None, None),
    ],
)
def test_a_checkpoint_that_is_no_llava_next_is_refused(llava, stated, architecture, checkpoint, tmp_path):
    folder = tmp_path / "llava-onevision-qwen2-7b-ov-hf"
    shutil.copytree(checkpoint, folder)
    change_configuration(folder, model_type=stated, architectures=[architecture])

    line = refusal(llava, folder)
    assert f"{folder}/config.json: model_type is {stated!r}" in line


@both
def test_a_configuration_that_is_none_is_refused(llava, checkpoint, tmp_path):
    folder = tmp_path / "llava"
    shutil.copytree(checkpoint, folder)
    (folder / "config.json").write_text("<html>not found</html>")

    assert f"{folder}/config.json: not a model's configuration" in refusal(llava, folder)


def change_configuration(folder: Path, **settings: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


# Where a generation ends


@pytest.fixture(scope="module")
def tokenizer(assets):
    return AutoTokenizer.from_pretrained(assets / "llava_video_7b")


@pytest.mark.parametrize("keyword", ["###", "<|im_end|>", "\nUSER:"])
def test_a_generation_ends_with_the_keyword(keyword, tokenizer):
    from evaluation.mm_utils import StopOnKeywords

    expected = f"B. ## is no sign{keyword}"
    prompt = torch.tensor([tokenizer("a long prompt that says ### itself").input_ids])
    generate = force_tokens(tokenizer(f"{expected} nor {keyword}").input_ids)

    assert tokenizer.decode(generate(StopOnKeywords([keyword], tokenizer, prompt))) == expected


@pytest.mark.parametrize("keywords", [[""], []])
def test_no_keyword_ends_nothing(keywords, tokenizer):
    from evaluation.mm_utils import StopOnKeywords

    tokens = tokenizer("to the very end").input_ids
    stop = StopOnKeywords(keywords, tokenizer, torch.tensor([tokens]))

    assert force_tokens(tokens)(stop) == tokens


def test_generations_are_ended_by_our_criterion(runs):
    assert {tuple(call.stopping) for call in runs.keyframes.calls} == {("StopOnKeywords",)}


@pytest.mark.skipif(not LLAVA_NEXT, reason="LLaVA-NeXT is not installed")
def test_llava_nexts_criterion_fails_where_ours_does_not(tokenizer):
    from llava.mm_utils import KeywordsStoppingCriteria

    prompt = torch.tensor([tokenizer("a prompt").input_ids])
    generate = force_tokens(tokenizer("B###").input_ids)

    with pytest.raises(RuntimeError):
        generate(KeywordsStoppingCriteria(["###"], tokenizer, prompt))


@pytest.mark.skipif(not LLAVA_NEXT, reason="LLaVA-NeXT is not installed")
def test_a_keyword_of_one_token_ends_a_generation_as_llava_nexts_does(tokenizer):
    from llava.mm_utils import KeywordsStoppingCriteria

    from evaluation.mm_utils import StopOnKeywords

    prompt = torch.tensor([tokenizer("a prompt that is longer than any answer").input_ids])
    generate = force_tokens(tokenizer("B<|im_end|>C<|im_end|>").input_ids)
    ours, upstreams = (
        kind(["<|im_end|>"], tokenizer, prompt) for kind in (StopOnKeywords, KeywordsStoppingCriteria)
    )

    assert generate(ours) == generate(upstreams) == tokenizer("B<|im_end|>").input_ids


# Errors instead of answers: mistakes in the labels


@both
def test_a_keyframe_beyond_the_video_is_refused(llava, checkpoint, labels):
    change_entry(labels, 4, frame_idx=[0, 4, 5])

    assert "few.mp4: keyframe 5 lies beyond the video's 5 frames" in refusal(
        llava, checkpoint, f"max_frames_num={BUDGET}", "use_topk=True"
    )


@both
def test_a_keyframe_beyond_a_video_that_does_not_tell_its_length_is_refused(llava, checkpoint, labels):
    for index in QUESTIONS:  # OneVision asks the longest prompt first
        change_entry(labels, index, video_path="long.mkv", frame_idx=[0, 299, 300])

    line = refusal(llava, checkpoint, f"max_frames_num={BUDGET}", "use_topk=True")
    assert "question q" in line
    assert "long.mkv: keyframe 300 lies beyond the video's 300 frames" in line


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"frame_idx": None}, "question q3: no frame_idx; merge a selection into the labels"),
        ({"frame_idx": []}, "question q3: its selection is empty"),
        ({"frame_idx": list(range(9))}, "question q3: 9 keyframes, the model shows 8"),
        ({"frame_budget": 32}, "question q3: its keyframes were selected for 32 frames, the model shows 8"),
        ({"frame_idx": [7, 5, 9]}, "question q3: frame_idx is not ascending"),
        ({"frame_idx": [7, 7, 9]}, "question q3: frame_idx is not ascending"),
        ({"frame_idx": [-1, 7]}, "question q3: frame_idx holds -1, no frame number"),
        ({"frame_idx": [7.5, 8]}, "question q3: frame_idx holds 7.5, no frame number"),
    ],
    ids=["none", "empty", "too long", "other budget", "unsorted", "repeated", "negative", "fraction"],
)
@both
def test_frames_that_do_not_fit_are_refused_naming_the_question(llava, fields, complaint, checkpoint, labels):
    change_entry(labels, 3, **fields)

    line = refusal(llava, checkpoint, f"max_frames_num={BUDGET}", "use_topk=True")
    assert complaint in line
    assert "q2" not in line and "q4" not in line


@both
def test_a_selection_for_32_frames_is_not_shown_by_a_model_of_64(
    llava, checkpoint, assets, tmp_path, monkeypatch
):
    plain = write_longvideobench_labels(tmp_path, ["long.mp4", "long.mp4"])
    merged = merge_selection(plain, [range(0, 1088, 34), range(0, 300, 10)])
    use_labels(monkeypatch, "longvideobench", merged, assets / "videos")

    line = refusal(llava, checkpoint, "max_frames_num=64", "use_topk=True")
    assert "question q0: its keyframes were selected for 32 frames, the model shows 64" in line
    assert "question q1: its keyframes were selected for 32 frames, the model shows 64" in line


@both
def test_the_budget_is_upstreams_default_where_none_is_given(llava, checkpoint, labels):
    frames = {"llava_vid": 20, "llava_onevision": 32}[llava.name]

    line = refusal(llava, checkpoint, "use_topk=True")
    assert f"its keyframes were selected for 8 frames, the model shows {frames}" in line


# Errors instead of answers: damaged videos


@pytest.fixture
def video_folder(assets, labels, tmp_path, monkeypatch) -> Path:
    """A folder of the videos, whose short.mp4 (of question q2) may be damaged."""
    folder = link_videos(assets / "videos", tmp_path / "videos")
    use_labels(monkeypatch, "longvideobench", labels, folder)
    return folder


@both
@pytest.mark.parametrize("use_topk", [True, False], ids=["keyframes", "uniform"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("missing", "video file not found"),
        ("text", "cannot be opened"),
        ("empty", "file is empty"),
        ("cut", "cannot be opened"),
    ],
)
def test_a_bad_video_ends_the_evaluation_before_any_question(
    llava, use_topk, damage, reason, checkpoint, video_folder
):
    video = spoil(video_folder / "short.mp4", damage)

    line = refusal(llava, checkpoint, f"max_frames_num={BUDGET}", f"use_topk={use_topk}")
    assert f"{video}: {reason}" in line


@both
@pytest.mark.parametrize("use_topk", [True, False], ids=["keyframes", "uniform"])
def test_a_video_corrupt_in_the_middle_ends_the_evaluation_without_a_result(
    llava, use_topk, checkpoint, labels, video_folder
):
    change_entry(labels, 2, frame_idx=[0, 40, 75, 100, 149])
    video = spoil(video_folder / "short.mp4", "corrupt")
    evaluation = Evaluation(
        llava.create(checkpoint, f"max_frames_num={BUDGET}", f"use_topk={use_topk}"), llava.name
    )

    with pytest.raises(SystemExit, match=rf"^error: question q2: {video}: [^\n]+$"):
        evaluation.run(TASK)
    assert 2 not in evaluation.by_question()
    assert not evaluation.results


@both
def test_a_video_cut_short_after_its_header_is_refused(llava, assets, checkpoint, video_folder):
    video = video_folder / "short.mp4"
    video.unlink()
    streamed = write_numbered_video(
        assets / f"streamed_{llava.name}.mp4", 150, fps=24, container_options={"movflags": "faststart"}
    )
    video.write_bytes(streamed.read_bytes()[: streamed.stat().st_size * 2 // 3])
    evaluation = Evaluation(llava.create(checkpoint, f"max_frames_num={BUDGET}", "use_topk=True"), llava.name)

    with pytest.raises(SystemExit, match=rf"^error: question q2: {video}: cut short: \d+ of 150 frames"):
        evaluation.run(TASK)


# Errors instead of answers: what fails between decoding and generating


@both
@pytest.mark.parametrize("use_topk", [True, False], ids=["keyframes", "uniform"])
def test_an_image_processor_that_fails_ends_the_evaluation_and_keeps_no_answer(
    llava, use_topk, checkpoint, labels, assets, tmp_path, monkeypatch
):
    """Upstream's LLaVA-Video scores a text of its own, LLaVA-OneVision answers without the video."""
    answers = tmp_path / "answers"
    model = llava.create(checkpoint, f"max_frames_num={BUDGET}", f"use_topk={use_topk}", f"answers={answers}")
    evaluation = Evaluation(model, llava.name)
    fail_second(monkeypatch, model._image_processor, "preprocess")

    with pytest.raises(SystemExit) as ended:
        evaluation.run(TASK)
    assert ended.value.code.startswith(
        f"error: question q1: {assets / 'videos' / VIDEOS[1]}: not all its pixels reached the model, so no "
        "answer counts; lmms-eval logged: "
    )
    assert "no room for pixels" in ended.value.code
    assert list(evaluation.by_question()) == [0] and not answers.exists()


@both
def test_a_full_gpu_ends_the_evaluation_in_one_line(llava, checkpoint, labels, monkeypatch, capsys):
    model = llava.create(checkpoint, f"max_frames_num={BUDGET}", "use_topk=True")
    fail_second(monkeypatch, model.model, "generate", torch.cuda.OutOfMemoryError("tried to allocate 9 GiB."))
    with pytest.raises(SystemExit) as ended:
        Evaluation(model, llava.name).run(TASK)
    assert ended.value.code == (
        "error: question q1: the GPU's memory does not suffice (tried to allocate 9 GiB); show fewer frames, "
        "or spread the model over several GPUs"
    )
    assert "Traceback" not in capsys.readouterr().err


@both
@pytest.mark.parametrize("limit", ["0", "soon"])
def test_a_time_limit_is_a_number_of_seconds(llava, checkpoint, labels, limit):
    line = refusal(llava, checkpoint, f"video_timeout={limit}")
    assert line == f"error: model argument video_timeout={limit}: use seconds above 0"


def test_a_decoders_message_of_several_lines_becomes_one():
    from evaluation.errors import EvaluationError

    assert (
        EvaluationError("question q1: a.mp4:\nsending failed\n").code
        == "error: question q1: a.mp4: sending failed"
    )


# Errors instead of answers: arguments that contradict the frames


@both
def test_other_decoders_are_refused(llava, checkpoint, labels):
    assert "video_decode_backend=pyav: only decord is supported" in refusal(
        llava, checkpoint, "video_decode_backend=pyav"
    )


def test_telling_the_model_of_uniform_frames_is_refused_with_keyframes(checkpoint, labels):
    assert "add_time_instruction=True" in refusal(
        LLAVAS[0], checkpoint, "use_topk=True", "add_time_instruction=True"
    )


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("use_topk=yes", "use_topk=yes: use True or False"),
        ("use_topk=1", "use_topk=1: use True or False"),
        ("short_selection=pad", "short_selection=pad: use strict or paper"),
        ("max_frames_num=0", "0 frames a question: must be a whole number, 1 or more"),
        ("max_frames_num=8.5", "8.5 frames a question: must be a whole number, 1 or more"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(argument, complaint, checkpoint, labels):
    assert complaint in refusal(LLAVAS[1], checkpoint, argument)


@both
def test_a_selection_is_shown_only_under_its_own_digest(llava, checkpoint, labels):
    digest = sha256(labels.with_name("chosen.json"))
    arguments = (f"max_frames_num={BUDGET}", "use_topk=True")

    line = refusal(llava, checkpoint, *arguments, "frames_digest=sha256-0123456789abcdef")
    assert f"question q0: its keyframes come from selection {digest}, not from 0123456789abcdef" in line
    evaluate(llava, checkpoint, "use_topk=True", f"frames_digest=sha256-{digest[:16]}")


# The command


def run_command(
    llava: Llava,
    assets: Path,
    folder: Path,
    labels: Path,
    videos: Path,
    *arguments: str,
    flags: tuple[str, ...] = (),
) -> subprocess.CompletedProcess:
    """``python -m lmms_eval`` on keyframes; results and recorded calls go into ``folder``."""
    model_args = [
        f"pretrained={assets / 'llava_video_7b'}",
        llava.arguments,
        "use_topk=True",
        f"max_frames_num={BUDGET}",
    ]
    return run_lmms_eval(
        llava.name,
        ",".join([*model_args, *arguments]),
        TASK,
        folder / "results",
        *flags,
        labels=labels,
        videos=videos,
        python=sys.executable
        if LLAVA_NEXT
        else None,  # the vision tower is not in a fork server's cache of the hub
        python_path=[TESTS],
        environment={
            "LMMS_EVAL_PLUGINS": "evaluation,llava_recorder",
            "AKS_RECORDED_CALLS": str(folder / "calls"),
            "HF_HUB_CACHE": str(assets / "hub"),
        },
    )


@pytest.mark.parametrize(
    "llava",
    # The documented scripts of test_evaluation_scripts.py run it with the other one.
    [pytest.param(model, marks=[pytest.mark.long] * (model.name == "llava_vid")) for model in LLAVAS],
    ids=lambda llava: llava.name,
)
def test_the_command_shows_the_keyframes_and_writes_results(llava, assets, labels, tokenizer, tmp_path):
    digest = sha256(labels.with_name("chosen.json"))[:16]
    done = run_command(
        *(llava, assets, tmp_path, labels, assets / "videos", f"frames_digest=sha256-{digest}"),
        flags=("--use_cache", str(tmp_path / "cache")),
    )
    assert done.returncode == 0, done.stderr
    calls = [Call(**torch.load(path, weights_only=False)) for path in sorted((tmp_path / "calls").iterdir())]

    assert {question_of(call, tokenizer): frames_of(call) for call in calls} == dict(enumerate(KEYFRAMES))
    assert "keyframes, 8 at most; 3 of 5 questions have fewer: they are shown as selected" in done.stderr
    (results,) = results_in(tmp_path / "results")
    score = json.loads(results.read_text())["results"][TASK]["lvb_acc,none"]
    answers = [sample["lvb_acc"] for sample in samples_in(tmp_path / "results")]
    assert [answer["id"] for answer in answers] == [f"q{question}" for question in QUESTIONS]
    assert score == pytest.approx(np.mean([answer["parsed_pred"] == "A" for answer in answers]))


def test_the_command_fails_on_a_corrupt_video(assets, labels, video_folder, tmp_path):
    for question in QUESTIONS:
        change_entry(labels, question, video_path="short.mp4", frame_idx=[0, 40, 75, 100, 149])
    video = spoil(video_folder / "short.mp4", "corrupt")

    done = run_command(LLAVAS[0], assets, tmp_path, labels, video_folder)
    assert_failed(done, tmp_path, f"error: question q0: {video}: decoding stops after")


def assert_failed(done: subprocess.CompletedProcess, folder: Path, line: str) -> None:
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(line)
    assert "Traceback" not in done.stderr + done.stdout
    assert not results_in(folder) and not samples_in(folder)
    assert not list(folder.glob("calls/*"))
