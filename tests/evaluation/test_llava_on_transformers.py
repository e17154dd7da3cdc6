"""LLaVA on transformers computes what the rules say and what LLaVA-NeXT does, and refuses the rest.

The tests with LLaVA-NeXT run where it is installed, or its folder is on PYTHONPATH.
"""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llava_setup import LLAVA_NEXT, VISION, offline, write_checkpoint
from PIL import Image
from safetensors.torch import load_file, save_file

from evaluation.errors import EvaluationError
from evaluation.llava_on_transformers.checkpoint import load_pretrained_model
from evaluation.llava_on_transformers.pictures import ImageProcessor, process_images, tile_grid
from evaluation.llava_on_transformers.prompts import conv_templates, tokenizer_image_token

NEWLINES = ("grid", "frame", "one_token", "no_token")
DTYPES = ("float32", "bfloat16")
TOKENS_A_FRAME = {"grid": 210, "frame": 197, "one_token": 196, "no_token": 196}
next_only = pytest.mark.skipif(not LLAVA_NEXT, reason="LLaVA-NeXT is not installed")


@pytest.fixture(scope="module")
def assets(tmp_path_factory) -> Path:
    assets = tmp_path_factory.mktemp("llava")
    with offline(assets / "hub", assets / "datasets_cache"):
        write_checkpoint(assets / "llava", assets / "hub")
        yield assets


@pytest.fixture
def checkpoint(assets, tmp_path) -> Path:
    """A copy of the checkpoint, to change."""
    return Path(shutil.copytree(assets / "llava", tmp_path / "llava"))


def load(folder: Path, dtype: str = "float32", **options: Any) -> Any:
    return load_pretrained_model(str(folder), torch_dtype=dtype, device_map="cpu", **options)


def random_video(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 90, 160, 3), dtype=np.uint8)


def prompt_of(question: str, count: int = 1, template: str = "chatml_direct") -> str:
    conversation = conv_templates[template].copy()
    conversation.append_message(conversation.roles[0], "<image>" * count + f"\n{question}")
    conversation.append_message(conversation.roles[1], None)
    return conversation.get_prompt()


# What it computes


def test_prompts_are_qwens_chat_format_and_the_placeholder_is_no_text(assets):
    tokenizer = load(assets / "llava")[0]
    assert prompt_of("Why?") == (
        "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\nWhy?<|im_end|>"
        "<|im_start|>assistant\n"
    )
    assert prompt_of("Why?", template="qwen_1_5") == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image>\nWhy?"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer_image_token("a<image><image>b", tokenizer, return_tensors="pt")
    assert ids.tolist() == [*tokenizer("a").input_ids, -200, -200, *tokenizer("b").input_ids]


def test_pixels_are_siglips_preprocessing():
    from transformers import SiglipImageProcessor

    siglip = SiglipImageProcessor(
        size={"height": 384, "width": 384}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    video = random_video(3)
    expected = siglip(images=list(video), return_tensors="pt")["pixel_values"]
    pixels = ImageProcessor().preprocess(video)["pixel_values"]
    assert torch.equal(pixels, expected) and pixels.is_contiguous()


@pytest.mark.parametrize("newline", NEWLINES)
@pytest.mark.parametrize("mode", ["bilinear", "average", "max"])
def test_a_videos_tokens_go_frame_by_frame_and_row_by_row(assets, newline, mode):
    overrides = {"mm_newline_position": newline, "mm_spatial_pool_mode": mode}
    _, model, processor, _ = load(assets / "llava", overwrite_config=overrides)
    pixels = processor.preprocess(random_video(2))["pixel_values"]
    features = model._project(pixels)
    side = 14 if mode == "bilinear" else 13
    expected = []
    for frame in features.unflatten(1, (27, 27)):
        # By hand: bilinear without a filter takes the features around each center, the others 2 x 2 blocks.
        for row in range(side):
            for column in range(side):
                if mode == "bilinear":
                    vertical, horizontal = (weights(index, 27, side) for index in (row, column))
                    token = sum(
                        v * h * frame[y, x] for y, v in vertical.items() for x, h in horizontal.items()
                    )
                else:
                    block = frame[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten(0, 1)
                    token = block.mean(0) if mode == "average" else block.max(0).values
                expected.append(token)
            if newline == "grid":
                expected.append(model.model.image_newline)
        if newline == "frame":
            expected.append(model.model.image_newline)
    if newline == "one_token":
        expected.append(model.model.image_newline)
    tokens = model.encode([pixels], modalities=["video"])[0]
    torch.testing.assert_close(tokens, torch.stack(expected), atol=1e-4, rtol=1e-3)
    if mode == "bilinear":
        assert len(expected) == 2 * TOKENS_A_FRAME[newline] + (newline == "one_token")


def weights(index: int, size: int, half: int) -> dict[int, float]:
    """Which of ``size`` positions a bilinear output position mixes, and how much of each."""
    center = (index + 0.5) * size / half - 0.5
    low = max(0, math.floor(center))
    share = max(0.0, center - low)
    return {low: 1 - share, **({low + 1: share} if share and low + 1 < size else {})}


def test_the_language_model_reads_words_and_frames_in_the_prompts_order(assets):
    tokenizer, model, processor, _ = load(assets / "llava")
    pixels = processor.preprocess(random_video(1))["pixel_values"]
    ids = tokenizer_image_token("a<image>bc", tokenizer, return_tensors="pt")
    words, [tokens] = model.get_input_embeddings(), model.encode([pixels], modalities="video")
    embeddings = model.embed(ids, [pixels], modalities="video")
    expected = [words(ids[:1]), tokens, words(ids[2:])]
    assert torch.equal(embeddings, torch.cat(expected))
    logits = model.model(inputs_embeds=embeddings[None]).last_hidden_state @ model.lm_head.weight.T
    first = logits[0, -1].argmax().item()
    answer = model.generate(ids[None], images=[pixels], modalities="video", do_sample=False, max_new_tokens=5)
    assert answer[0, 0] == first  # greedy, and the prompt is not repeated


def test_the_generation_config_of_the_checkpoint_ends_answers(assets, checkpoint):
    ids = torch.tensor([[65, 66, 67]])
    ended = load(assets / "llava")[1].generate(ids, do_sample=False, max_new_tokens=40)
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": [258]}')
    longer = load(checkpoint)[1].generate(ids, do_sample=False, max_new_tokens=40)
    assert ended.shape[1] < longer.shape[1] and ended[0, -1] % 4 == 0


def test_another_attention_of_the_tower_hardly_changes_features(assets):
    pixels = ImageProcessor().preprocess(random_video(2))["pixel_values"]
    eager, sdpa = (
        load(assets / "llava", tower_attention=attention)[1].encode([pixels], modalities="video")[0]
        for attention in ("eager", "sdpa")
    )
    torch.testing.assert_close(sdpa, eager, atol=1e-4, rtol=1e-3)
    assert not torch.equal(sdpa, eager)  # or the argument does nothing


# Checkpoints


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None], single: bool = True) -> None:
    """Change the weights of a checkpoint, which become one file."""
    state: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        state |= load_file(path)
        path.unlink()
    (folder / "model.safetensors.index.json").unlink()
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("form", ["one file", "pytorch shards", "tied", "device map"])
def test_every_form_of_a_checkpoint_loads(assets, checkpoint, form):
    options = {}
    if form == "one file":
        rewrite(checkpoint, dict)
    elif form == "pytorch shards":
        index = json.loads((checkpoint / "model.safetensors.index.json").read_text())["weight_map"]
        for path in checkpoint.glob("*.safetensors"):
            torch.save(load_file(path), path.with_suffix(".bin"))
            path.unlink()
        (checkpoint / "model.safetensors.index.json").unlink()
        index = {name: file.replace(".safetensors", ".bin") for name, file in index.items()}
        (checkpoint / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    elif form == "tied":
        rewrite(checkpoint, lambda state: state.pop("lm_head.weight"))
        change_config(checkpoint, tie_word_embeddings=True)
    else:
        options["device_map"] = {"model.vision_tower": "cpu", "": "cpu"}
    expected = load(assets / "llava")[1]
    model = load_pretrained_model(str(checkpoint), torch_dtype="float32", **{"device_map": "cpu", **options})[
        1
    ]
    state = expected.state_dict()
    if form == "tied":
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert (
        len(model.lm_head.weight) == len(model.get_input_embeddings().weight) == 259
    )  # the tokens there are


def change_config(folder: Path, **entries: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


PROJECTOR, TOWER_WEIGHT = "model.mm_projector.2.weight", "vision_model.encoder.layers.0.mlp.fc1.weight"
FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "projector": (
        lambda f: change_config(f, mm_projector_type="linear"),
        "mm_projector_type is 'linear'; only",
    ),
    "tower": (
        lambda f: change_config(f, mm_vision_tower="openai/clip-vit-large-patch14-336", vision_config=None),
        "mm_vision_tower is 'openai/clip-vit-large-patch14-336'; only google/siglip-so400m-patch14-384",
    ),
    "patches": (
        lambda f: change_config(f, vision_config={**VISION, "patch_size": 16}),
        "vision_config: pictures of 384 pixels in patches of 16",
    ),
    "newline": (
        lambda f: change_config(f, mm_newline_position="row"),
        "mm_newline_position is 'row'; only 'grid'",
    ),
    "pooling": (
        lambda f: change_config(f, mm_spatial_pool_mode="median"),
        "mm_spatial_pool_mode is 'median'; only",
    ),
    "merge": (lambda f: change_config(f, mm_patch_merge_type="flat"), "mm_patch_merge_type is 'flat'; only"),
    "resampler": (
        lambda f: change_config(f, mm_resampler_type="qformer"),
        "mm_resampler_type is 'qformer'; only",
    ),
    "fast frames": (
        lambda f: change_config(f, add_faster_video=True),
        "add_faster_video is True; only False",
    ),
    "language model": (
        lambda f: change_config(f, architectures=["LlavaLlamaForCausalLM"]),
        "with architectures ['LlavaLlamaForCausalLM']; only LlavaQwenForCausalLM",
    ),
    "conversion": (lambda f: change_config(f, text_config={}), "text_config: the checkpoint is a conversion"),
    "missing": (
        lambda f: rewrite(f, lambda state: state.pop(PROJECTOR)),
        f"llava: {PROJECTOR} is in none of its weight files; fetch the checkpoint again",
    ),
    "unexpected": (
        lambda f: rewrite(f, lambda state: state.update({"model.adapter.weight": torch.ones(2)})),
        "model.safetensors: model.adapter.weight is no weight of LLaVA over Qwen2 with SigLIP; fetch",
    ),
    "shape": (
        lambda f: change_config(f, vision_config={**VISION, "intermediate_size": 40}),
        f"{TOWER_WEIGHT} has the shape (32, 16), config.json asks for (40, 16); fetch",
    ),
    "shard": (
        lambda f: (f / "model-00002-of-00002.safetensors").unlink(),
        "has no model-00002-of-00002.safetensors, which its index lists",
    ),
    "cut": (
        lambda f: cut(f / "model-00001-of-00002.safetensors"),
        "model-00001-of-00002.safetensors: damaged or incomplete",
    ),
    "tokenizer": (lambda f: (f / "vocab.json").unlink(), "has no tokenizer.json or vocab.json"),
    "no configuration": (lambda f: (f / "config.json").write_text("[]"), "config.json: holds no JSON object"),
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(("damage", "complaint"), FAULTS.values(), ids=FAULTS)
def test_a_wrong_checkpoint_is_refused_in_one_line(checkpoint, damage, complaint):
    damage(checkpoint)
    with pytest.raises(EvaluationError) as refused:
        load(checkpoint)
    assert complaint in refused.value.message and str(checkpoint) in refused.value.message


@pytest.mark.parametrize(
    "argument",
    [
        {"torch_dtype": "int8"},
        {"attn_implementation": "paged"},
        {"tower_attention": "fast"},
        {"attn_implementation": "flash_attention_2"},  # not installed here
    ],
    ids=str,
)
def test_an_argument_that_is_not_supported_is_refused(assets, argument):
    with pytest.raises(EvaluationError, match=next(iter(argument))):
        load_pretrained_model(str(assets / "llava"), device_map="cpu", **argument)


# Prompts that do not fit


def test_a_prompt_of_other_pictures_or_too_many_is_refused(assets):
    tokenizer, model, processor, _ = load(assets / "llava")
    pixels = processor.preprocess(random_video(2))["pixel_values"]
    ids = tokenizer_image_token(prompt_of("Is <image> a tag?"), tokenizer, return_tensors="pt")[None]
    with pytest.raises(EvaluationError, match="the prompt has 2 <image> for 1 videos or pictures; remove"):
        model.generate(ids, images=[pixels], modalities="video")
    model.config.tokenizer_model_max_length = 400
    with pytest.raises(
        EvaluationError, match=r"tokens with its pictures, the checkpoint reads 400 .*fewer frames"
    ):
        model.embed(ids[0, :-20][ids[0, :-20] != -200].new_tensor([-200]), [pixels], modalities="video")
    with pytest.raises(EvaluationError, match="2 prompts at once"):
        model.generate(ids.repeat(2, 1))


def test_another_way_to_show_pictures_is_refused(assets):
    _, model, processor, _ = load(assets / "llava", overwrite_config={"image_aspect_ratio": "highres"})
    with pytest.raises(EvaluationError, match="image_aspect_ratio is 'highres'"):
        process_images([Image.new("RGB", (9, 9))], processor, model.config)


@pytest.mark.parametrize(
    ("size", "grid"),
    [((384, 384), (1, 1)), ((1280, 720), (4, 2)), ((300, 900), (1, 3)), ((2000, 300), (6, 1))],
)
def test_a_picture_gets_the_grid_of_tiles_that_keeps_most_of_it(size, grid):
    pinpoints = [[384 * i, 384 * j] for i in range(1, 7) for j in range(1, 7)]
    assert (
        tile_grid(size, pinpoints)
        == tile_grid(size, "(1x1),...,(6x6)")
        == tile_grid(size, str(pinpoints))
        == grid
    )


# Against LLaVA-NeXT


@pytest.fixture(scope="module")
def pair(assets) -> Callable[..., tuple[Any, Any, Any]]:
    """A function that loads the checkpoint with LLaVA-NeXT and here; both language models use sdpa."""
    from llava.model.builder import load_pretrained_model as load_next
    from llava.model.language_model.llava_qwen import LlavaQwenForCausalLM

    loaded: dict[str, Any] = {}

    def get(newline: str, dtype: str, tower: str = "eager") -> tuple[Any, Any, Any]:
        for key, make in (
            (f"next {dtype}", lambda: load_next(str(assets / "llava"), None, "llava_qwen", device_map="auto",
                torch_dtype="bfloat16", attn_implementation="sdpa")),
            (f"{tower} {dtype}", lambda: load(assets / "llava", dtype, tower_attention=tower)),
        ):  # fmt: skip
            if key not in loaded:
                loaded[key] = make()
        tokenizer, original, processor, _ = loaded[f"next {dtype}"]
        assert type(original) is LlavaQwenForCausalLM
        # Its builder knows no float32. (To bfloat16 this would round the rotary embedding's frequencies.)
        original = original.float() if dtype == "float32" else original
        ours = loaded[f"{tower} {dtype}"][1]
        for model in (original, ours):
            model.config.mm_newline_position = newline
        return original, ours, (tokenizer, processor)

    return get


def compare(pair: Any, images: Any, count: int, question: str, **options: Any) -> tuple[float, float, bool]:
    """Largest differences of the embeddings and the logits, and whether 16 greedy tokens are the same."""
    original, ours, (tokenizer, _) = pair
    ids = tokenizer_image_token(prompt_of(question, count), tokenizer, return_tensors="pt")[None]
    mask = torch.ones_like(ids)
    sizes, modalities = options.get("image_sizes"), options.get("modalities", ["image"])
    with torch.inference_mode():
        theirs = original.prepare_inputs_labels_for_multimodal(
            ids, None, mask, None, None, images, modalities, image_sizes=sizes
        )[4]
        embeddings = ours.embed(ids[0], images, sizes, modalities)[None]
        assert embeddings.shape == theirs.shape
        difference = (embeddings - theirs).abs().max().item()
        logits = [model(inputs_embeds=theirs).logits for model in (original, ours)]
        greedy = {"do_sample": False, "max_new_tokens": 16, "pad_token_id": 256, "eos_token_id": 258}
        answers = [
            model.generate(ids, images=images, attention_mask=mask, **options, **greedy)
            for model in (original, ours)
        ]
    return difference, (logits[0] - logits[1]).abs().max().item(), torch.equal(*answers)


@next_only
@pytest.mark.parametrize("frames", [1, 8])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("newline", NEWLINES)
def test_a_video_is_llava_nexts_to_the_bit(pair, newline, dtype, frames):
    models = pair(newline, dtype)
    theirs = models[2][1].preprocess(random_video(frames), return_tensors="pt")["pixel_values"]
    pixels = ImageProcessor().preprocess(random_video(frames))["pixel_values"]
    assert torch.equal(pixels, theirs)
    found = compare(models, [pixels.to(getattr(torch, dtype))], 1, "What is it?", modalities=["video"])
    assert found == (0, 0, True)


@next_only
@pytest.mark.parametrize("mode", ["pad", "anyres_max_9", "anyres_max_2", "anyres"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_pictures_are_llava_nexts_to_the_bit(pair, dtype, mode):
    from llava.mm_utils import process_images as process_next

    models = pair("one_token", dtype)
    shapes = [(90, 160), (720, 1280), (384, 384), (700, 100)][: 4 if mode == "pad" else 3]
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in shapes]
    for model in models[:2]:
        model.config.image_aspect_ratio = mode
    groups = [pictures] if mode == "pad" else [[picture] for picture in pictures] + [pictures]
    for group in groups:
        pixels = process_images(group, ImageProcessor(), models[1].config)
        theirs = process_next(group, models[2][1], models[0].config)
        assert all(map(torch.equal, pixels, theirs))
        to = getattr(torch, dtype)
        pixels = pixels.to(to) if isinstance(pixels, torch.Tensor) else [tiles.to(to) for tiles in pixels]
        sizes = [picture.size for picture in group]
        assert compare(models, pixels, len(group), "What is it?", image_sizes=sizes) == (0, 0, True)


@next_only
def test_two_hundred_answers_are_llava_nexts(pair):
    models = pair("grid", "float32")
    letters = random.Random(0)
    for seed in range(200):
        question = "".join(letters.choices("abcdefgh ?.", k=letters.randrange(5, 80)))
        pixels = ImageProcessor().preprocess(random_video(1, seed))["pixel_values"]
        assert compare(models, [pixels], 1, question, modalities=["video"]) == (0, 0, True), question


@next_only
@pytest.mark.parametrize("template", conv_templates)
def test_prompts_and_tokens_are_llava_nexts(pair, template):
    from llava.conversation import conv_templates as formats
    from llava.mm_utils import tokenizer_image_token as tokenize

    conversation = formats[template].copy()
    conversation.append_message(conversation.roles[0], "<image><image>\nWhy?")
    conversation.append_message(conversation.roles[1], None)
    prompt = conversation.get_prompt()
    assert prompt_of("Why?", 2, template) == prompt
    assert conv_templates[template].sep == conversation.sep
    tokenizer = pair("grid", "float32")[2][0]
    assert torch.equal(
        *(f(prompt, tokenizer, return_tensors="pt") for f in (tokenizer_image_token, tokenize))
    )
