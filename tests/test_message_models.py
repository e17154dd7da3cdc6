"""Messages through transformers' own processors: the images that reach a model, and the times in its prompt.

With small random checkpoints. Qwen3-VL is tested where transformers knows it (tests/newer_models.sh).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.transforms.v2
import transformers
from chat_receiver import ANSWER, decode_images, receiving
from evaluation_setup import read_frame_indices, write_numbered_video
from onevision_setup import save_tiny_onevision
from qwen_recorder import Call
from qwen_setup import QWEN2_5, QWEN3, has_qwen3, images_of, recorded, video_of, write_checkpoint
from qwen_vl_utils import process_vision_info
from test_documents import blocks

from aks.messages import Frame, format_time, read_frames, to_messages, video_metadata

ROOT = Path(__file__).resolve().parent.parent
QUESTION = "What is shown?"
INDICES = [3, 40, 41, 95]
PTS_MS = [40 * number + 3000 * (number >= 40) + 60_000 * (number >= 90) for number in range(100)]
CHECKPOINTS = {
    "Qwen/Qwen2.5-VL-7B-Instruct": lambda folder: write_checkpoint(folder, QWEN2_5),
    "Qwen/Qwen3-VL-8B-Instruct": lambda folder: write_checkpoint(folder, QWEN3),
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": save_tiny_onevision,
}
QWEN2_5_NAME, QWEN3_NAME, ONEVISION_NAME = CHECKPOINTS
can_convert = hasattr(torchvision.transforms.v2.functional, "grayscale_to_rgb")
onevision_video = pytest.mark.skipif(
    has_qwen3() and not can_convert, reason="transformers 4.57 converts LLaVA's videos with torchvision 0.18"
)
newer = pytest.mark.skipif(not has_qwen3(), reason="Qwen3-VL needs transformers 4.57")


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    """A folder with small checkpoints of the published ones' names, and a video of a variable rate."""
    folder = tmp_path_factory.mktemp("hub")
    for name, save in CHECKPOINTS.items():
        if name != QWEN3_NAME or has_qwen3():
            save(folder / name)
    write_numbered_video(folder / "talk.mp4", 100, fps=25)
    return folder


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> list[Frame]:
    """Frames of a video of a variable rate."""
    path = write_numbered_video(tmp_path_factory.mktemp("video") / "a.mp4", 100, pts=PTS_MS)
    return read_frames(path, INDICES)


@pytest.fixture(scope="module")
def names(hub) -> dict[str, Any]:
    """What the first block of docs/models.md makes: the four candidates of the video."""
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(hub)
        exec(blocks(ROOT / "docs/models.md", "python")[0], names)
    assert [frame.frame_index for frame in names["frames"]] == [0, 25, 50, 75]
    return names


def load(folder: Path) -> tuple[Any, Any]:
    processor = transformers.AutoProcessor.from_pretrained(folder)
    return processor, transformers.AutoModelForImageTextToText.from_pretrained(folder)


def generate(processor: Any, model: Any, inputs: Any) -> tuple[Call, str]:
    """What a model was given, and its prompt."""
    with recorded() as calls, torch.inference_mode():
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    return calls[0], processor.tokenizer.decode(inputs["input_ids"][0])


def test_times_vary_in_the_video(frames):
    assert [frame.time_s for frame in frames] == pytest.approx([0.12, 4.6, 4.64, 66.8])


def check_interleaved(prompt: str, frames: list[Frame]) -> None:
    """Each image stands after its own time, the question after all."""
    parts = prompt.split("<|vision_start|>")
    for part, frame in zip(parts, frames, strict=False):
        assert part.endswith(f"at {format_time(frame.time_s)}:")
    assert len(parts) == len(frames) + 1 and parts[-1].split("<|vision_end|>")[1].startswith(QUESTION)


@pytest.mark.parametrize("name", [QWEN2_5_NAME, pytest.param(QWEN3_NAME, marks=newer)])
def test_qwen_is_shown_each_image_after_its_time(hub, frames, name):
    processor, model = load(hub / name)
    messages = to_messages(QUESTION, frames, style="transformers")
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    call, prompt = generate(processor, model, inputs)
    assert read_frame_indices(images_of(call, model.config.vision_config.patch_size)) == INDICES
    check_interleaved(prompt, frames)

    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    images, videos = process_vision_info(messages)
    again = processor(text=[text], images=images, videos=videos, return_tensors="pt")
    assert read_frame_indices(images_of(Call(again, None), model.config.vision_config.patch_size)) == INDICES
    check_interleaved(processor.tokenizer.decode(again["input_ids"][0]), frames)


@newer
def test_qwen3_vl_is_shown_a_video_with_the_time_of_every_frame(hub, frames):
    processor, model = load(hub / QWEN3_NAME)
    inputs = processor.apply_chat_template(
        to_messages(QUESTION, frames, style="qwen3_vl"),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        do_sample_frames=False,
        video_metadata=[video_metadata(frames)],
    )
    call, prompt = generate(processor, model, inputs)
    shown = read_frame_indices(video_of(call, model.config.vision_config.patch_size))
    assert shown == [index for index in INDICES for _ in range(2)]
    parts = prompt.split("<|vision_start|>")
    for part, frame in zip(parts, frames, strict=False):
        assert part.endswith(f"<{frame.time_s:.1f} seconds>")
    assert len(parts) == len(frames) + 1 and QUESTION in parts[-1]


@onevision_video
def test_llava_onevision_is_shown_a_video_and_all_times(hub, frames):
    processor, model = load(hub / ONEVISION_NAME)
    messages = to_messages(QUESTION, frames, style="video")
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=prompt, videos=[messages[0]["content"][0]["video"]], return_tensors="pt")
    call, prompt = generate(processor, model, inputs)
    (video,) = call.inputs["pixel_values_videos"]
    assert read_frame_indices(video) == INDICES
    place = prompt.rindex("<video>")
    for number, frame in enumerate(frames, 1):
        place = prompt.index(f"Frame {number} at {format_time(frame.time_s)}\n", place)
    assert QUESTION in prompt[place:]


def test_images_that_a_template_gathers_are_still_named_by_their_times(hub, frames):
    processor, _ = load(hub / ONEVISION_NAME)
    messages = to_messages(QUESTION, frames, style="transformers")
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    # The first of each image's patches is the whole image.
    assert read_frame_indices(patches[0] for patches in inputs["pixel_values"]) == INDICES
    prompt = processor.tokenizer.decode(inputs["input_ids"][0])
    place = prompt.rindex("<image>")
    for number, frame in enumerate(frames, 1):
        place = prompt.index(f"Frame {number} at {format_time(frame.time_s)}:", place)


@pytest.mark.parametrize(
    "name",
    [
        "",
        QWEN2_5_NAME,
        pytest.param(QWEN3_NAME, marks=newer),
        pytest.param(ONEVISION_NAME, marks=onevision_video),
    ],
)
def test_the_documented_code_runs(hub, names, monkeypatch, capsys, name):
    """Each model's block of docs/models.md, by the published name; without a name, the server's."""
    monkeypatch.chdir(hub)  # where a model's name is a folder
    mark = f'name = "{name}"' if name else "ask("
    (code,) = [block for block in blocks(ROOT / "docs/models.md", "python")[1:] if mark in block]
    with receiving() as receiver, recorded() as calls:
        exec(code.replace("http://localhost:8000/v1", receiver.url), dict(names))
    shown = capsys.readouterr().out
    if name:
        assert len(calls) == 1 and shown.endswith("\n")
    else:
        images = decode_images(receiver.requests[0][3]["messages"])
        assert read_frame_indices(images) == [0, 25, 50, 75]
        assert shown == ANSWER["choices"][0]["message"]["content"] + "\n"
