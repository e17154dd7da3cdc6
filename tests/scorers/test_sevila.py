"""Our SeViLA, our model for LAVIS, LAVIS's own processors and SeViLA's own code give the same scores.

The weights are random but large, so that a wrong token, epsilon or activation shows in the scores.
"""

import importlib
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import decord
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_setup import edit_json, encode, fails, film_frames, tiny_blip
from PIL import Image
from safetensors.torch import load_file, save_file
from sevila_setup import bf16_steps, build_world, small_lavis

from aks.labels import Question, load_labels
from aks.scorers import sevila as module
from aks.scorers.attention import fuse_attention
from aks.scorers.lavis.blip import import_lavis
from aks.scorers.lavis.sevila import DEFAULT_T5, LavisSevilaScorer
from aks.scorers.sevila import ENDING, SevilaScorer, clean_caption, prompt_ids, prompt_text
from aks.scorers.sevila_weights import to_lavis_names

import_lavis()

from lavis.common.registry import registry  # noqa: E402
from lavis.models import load_model_and_preprocess  # noqa: E402
from lavis.processors.blip_processors import BlipCaptionProcessor, BlipImageEvalProcessor  # noqa: E402

import sevila  # noqa: E402

CPU = torch.device("cpu")
PRECISIONS = [None, torch.float32]
LONG = (
    "At the beginning of the video, a person wearing a grey hooded sweatshirt stands in front of a wooden "
    "house with a red roof, holding an umbrella in the left hand, when a white van passes behind the fence; "
    "which of the following objects appears next to the person after the van has driven away?"
)
WORDY = "Which antediluvian xylophonists ostentatiously chrysanthemumed " * 6  # 77 tokens before 50 words
LVB_ENTRY = {
    "id": "a_0",
    "video_path": "a.mp4",
    "question": "What is the rabbit (the big one) doing?",
    "candidates": ["Sleeping in its burrow", "Throwing nuts!"],
}
VIDEOMME_ENTRY = {
    "question_id": "001-1",
    "videoID": "b",
    "question": "Which animal is shown?",
    "options": ["A. Bird.", "B. Squirrel.", "C. Both."],
}
TOO_LONG = [False, True, False, True]  # of the questions


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    return build_world(tmp_path_factory.mktemp("sevila"))


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> list[Question]:
    """A short question and one that is too long in each label format, through the real label reader."""
    folder = tmp_path_factory.mktemp("labels")
    long = {**LVB_ENTRY, "id": "a_1", "question": LONG}
    wordy = {**VIDEOMME_ENTRY, "question_id": "001-2", "question": WORDY}
    questions = []
    for dataset, entries in (("longvideobench", [LVB_ENTRY, long]), ("videomme", [VIDEOMME_ENTRY, wordy])):
        path = folder / f"{dataset}.json"
        path.write_text(json.dumps(entries))
        questions += load_labels(dataset, label_file=path).questions
    return questions


@pytest.fixture(scope="module")
def ours(world):
    return {dtype: make_ours(world, dtype=dtype) for dtype in PRECISIONS}


@pytest.fixture(scope="module")
def lavis(world):
    return {dtype: make_lavis(world, dtype=dtype) for dtype in PRECISIONS}


@pytest.fixture(scope="module")
def keep(world):
    return make_ours(world, truncation="keep_prompt")


def make_ours(world, file="sevila_pretrained.pth", dtype=None, base="base", **options) -> SevilaScorer:
    return SevilaScorer(str(world / file), CPU, dtype, base=str(world / base), **options)


def make_lavis(world, file="sevila_pretrained.pth", dtype=None, **options) -> LavisSevilaScorer:
    with small_lavis(world / "parts"):
        return LavisSevilaScorer(str(world / file), CPU, dtype, **options)


def run(scorer, questions) -> tuple[torch.Tensor, np.ndarray]:
    """Features and scores of the film's frames."""
    features = encode(scorer, film_frames())
    return features, scorer.score(features, [scorer.encode_question(question) for question in questions])


def assert_same(scores, expected, dtype) -> None:
    scores, expected = torch.as_tensor(scores).double(), torch.as_tensor(expected).double()
    assert scores.std() > 0.1
    if dtype is None:
        assert bf16_steps(scores, expected).max() <= 1
    else:
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)


# Scores


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_scores_are_lavis_scores(dtype, ours, lavis, questions):
    features, scores = run(ours[dtype], questions)
    expected_features, expected = run(lavis[dtype], questions)
    assert features.shape == (len(film_frames()), 32, 32)
    torch.testing.assert_close(features, expected_features, rtol=0, atol=1e-4)
    assert_same(scores, expected, dtype)


def test_released_procedure_on_lavis_gives_our_scores(world, ours, questions):
    """Frame by frame through LAVIS's own loader and processors, which on a CPU convert all to float32."""
    checkpoints = world / "parts" / "sevila_checkpoints"
    checkpoints.mkdir(exist_ok=True)
    shutil.copy(world / "sevila_pretrained.pth", checkpoints)
    with small_lavis(world / "parts"):
        model, image, text = load_model_and_preprocess(
            "sevila", "pretrain_flant5xl", is_eval=True, device="cpu"
        )
    assert type(model) is sevila.SeViLA

    def score(frame, question):
        pixels = image["eval"](Image.fromarray(frame))[None, None]
        return float(
            model.generate_score({"video": pixels, "loc_input": text["eval"](prompt_text(question))})
        )

    expected = [[score(frame, question) for frame in film_frames()] for question in questions]
    assert_same(run(ours[torch.float32], questions)[1], expected, torch.float32)


def test_generate_score_takes_several_videos_and_texts(lavis):
    model = lavis[torch.float32]._model
    video = torch.stack([lavis[torch.float32].preprocess(frame) for frame in film_frames()])
    videos = torch.stack([video[:2], video[2:4]])
    both = model.generate_score(
        {"video": videos, "loc_input": ["a rabbit?", "is it a bird"]}, frames_per_pass=1
    )
    one = model.generate_score({"video": videos, "loc_input": "is it a bird"})
    assert both.shape == one.shape == (2, 2)
    torch.testing.assert_close(both[1], one[1], rtol=0, atol=1e-5)
    assert (both[0] - one[0]).abs().min() > 1e-3
    with pytest.raises(ValueError, match="2 videos but 1 texts"):
        model.generate_score({"video": videos, "loc_input": ["only one"]})


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_one_decoder_step_is_the_first_of_generate(dtype, ours, lavis, questions):
    """The original generates up to 30 tokens and reads the scores of the first."""
    our_model, lavis_model = ours[dtype]._model, lavis[dtype]._model
    for scorer, t5, tokenizer in (
        (ours[dtype], our_model.language_model, ours[dtype].tokenizer),
        (lavis[dtype], lavis_model.t5_model, lavis_model.t5_tokenizer),
    ):
        features, scores = run(scorer, questions[:1])
        before, after = (
            t5.encoder.embed_tokens(torch.tensor([ids])).expand(len(features), -1, -1)
            for ids in (
                tokenizer("Frame: ", add_special_tokens=False).input_ids,
                scorer.encode_question(questions[0]).flatten().tolist(),
            )
        )
        inputs = torch.cat([before, features, after], dim=1)
        with torch.no_grad():
            steps = t5.generate(
                inputs_embeds=inputs,
                attention_mask=torch.ones(inputs.shape[:2], dtype=torch.long),
                do_sample=False,
                num_beams=1,
                max_new_tokens=30,
                min_length=1,
                return_dict_in_generate=True,
                output_scores=True,
            ).scores
        assert_same(scores[0], steps[0][:, module.YES_ID], dtype)


def test_features_know_no_question(ours, questions, monkeypatch):
    """Frames score the same, encoded once for all questions or anew for each, in passes of any size."""
    scorer = ours[None]
    features, scores = run(scorer, questions)
    assert len({tuple(row) for row in scores.tolist()}) == len(questions)
    monkeypatch.setattr(type(scorer), "frames_per_pass", 2)
    separate = np.concatenate([run(scorer, [question])[1] for question in questions])
    assert bf16_steps(torch.tensor(scores), torch.tensor(separate)).max() <= 1
    assert torch.equal(run(scorer, questions[:1])[0], features)


def test_fused_attention_of_the_gpu_gives_the_same_features(world, ours, questions):
    fused = make_ours(world, dtype=torch.float32)
    expected, _ = run(make_ours(world, dtype=torch.float32), questions)
    fuse_attention(fused._model.vision_model)
    found, _ = run(fused, questions)
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_default_precision_is_the_originals(ours, questions):
    """T5 computes in bfloat16: its scores are bfloat16 numbers, but not float32's scores rounded."""
    scores = run(ours[None], questions)[1]
    exact = run(ours[torch.float32], questions)[1]
    assert torch.equal(torch.tensor(scores).bfloat16().double(), torch.tensor(scores))
    assert bf16_steps(torch.tensor(scores), torch.tensor(exact)).max() > 1
    fingerprint = ours[None].fingerprint()
    assert fingerprint["precision"] == {"vision": "float32", "qformer": "float32", "t5": "bfloat16"}
    assert fingerprint["truncation"] == "paper" and fingerprint["base"] == ours[None].base


def test_all_bfloat16_runs_and_is_another_run(world, ours, questions):
    scorer = make_ours(world, dtype=torch.bfloat16)
    features, scores = run(scorer, questions)
    assert features.dtype == torch.bfloat16
    assert np.abs(scores - run(ours[None], questions)[1]).max() < 0.5
    assert scorer.fingerprint() != ours[None].fingerprint()


def test_layer_norms_have_lavis_epsilons(ours, lavis):
    """Too small a difference for the scores to show: 8e-5 with the real weights."""
    vision_model, lavis_model = ours[None]._model.vision_model, lavis[None]._model
    assert vision_model.post_layernorm.eps == lavis_model.ln_vision_loc.eps == 1e-5
    layers, blocks = vision_model.encoder.layers, lavis_model.visual_encoder.blocks
    assert layers[0].layer_norm1.eps == blocks[0].norm1.eps == layers[0].layer_norm2.eps == 1e-6


def test_preprocessed_frames_are_lavis_frames_to_the_bit(ours):
    image = BlipImageEvalProcessor(image_size=224)
    for frame in film_frames():
        assert torch.equal(ours[None].preprocess(frame), image(Image.fromarray(frame)))


@pytest.mark.skipif("AKS_SEVILA_SOURCE" not in os.environ, reason="AKS_SEVILA_SOURCE: no SeViLA checkout")
@pytest.mark.parametrize("replaced", [False, True], ids=["original", "our-file-in-its-place"])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_scores_are_the_original_codes(dtype, replaced, world, ours, questions, tmp_path):
    """SeViLA's checkout on the same weights, with its own model file and with ours in its place."""
    checkout = tmp_path / "checkout"
    shutil.copytree(Path(os.environ["AKS_SEVILA_SOURCE"]) / "lavis", checkout / "lavis")
    if replaced:
        shutil.copy(sevila.__file__, checkout / "lavis/models/sevila_models/sevila.py")
    np.save(world / "frames.npy", np.stack(film_frames()))
    (world / "prompts.json").write_text(json.dumps([prompt_text(question) for question in questions]))
    here = Path(__file__).parents[1] / "support"
    subprocess.run(
        [sys.executable, here / "sevila_original.py", world, "float32" if dtype else "default"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (checkout, here, here.parent)))},
        check=True,
    )
    expected = json.loads((world / "original.json").read_text())
    scores = run(ours[dtype], questions)[1]
    difference = torch.tensor(scores) - torch.tensor(expected, dtype=torch.float64)
    steps = bf16_steps(torch.tensor(scores), torch.tensor(expected, dtype=torch.float64))
    print(f"{dtype}: largest difference {difference.abs().max():.1e}, bfloat16 steps {steps.max()}")
    assert_same(scores, expected, dtype)


# Prompts


def test_prompts_are_the_papers(questions):
    assert prompt_text(questions[0]) == (
        "Question: What is the rabbit (the big one) doing? Candidate: A. Sleeping in its burrow "
        "B. Throwing nuts! . Is this a good frame can answer the question?"
    )
    assert prompt_text(questions[2]) == (
        "Question: Which animal is shown? Candidate: A. Bird.B. Squirrel.C. Both.. "
        "Is this a good frame can answer the question?"
    )
    assert prompt_text(Question(0, "0", "v", text="Who?")) == f"Question: Who?. {ENDING}"


def ending_survives(scorer, ids) -> bool:
    return scorer.tokenizer.decode(ids).endswith(f"{clean_caption(ENDING)}</s>")


def test_truncations_are_lavis_s_and_differ_only_where_something_is_cut(world, ours, lavis, keep, questions):
    """LAVIS's text processor and tokenizer give our ids; long questions lose the final sentence."""
    lavis_keep = make_lavis(world, truncation="keep_prompt")
    for question, is_long in zip(questions, TOO_LONG, strict=True):
        cut, kept = (scorer.encode_question(question) for scorer in (ours[None], keep))
        assert torch.equal(cut[None], lavis[None].encode_question(question))
        assert torch.equal(kept[None], lavis_keep.encode_question(question))
        assert ending_survives(ours[None], cut) == torch.equal(cut, kept) == (not is_long)
    words, tokens = (len(ours[None].encode_question(questions[i])) for i in (1, 3))
    assert words < 77 == tokens
    assert keep.fingerprint() != ours[None].fingerprint()


@pytest.mark.parametrize("index", [1, 3], ids=["50 words", "77 tokens"])
def test_keep_prompt_shortens_what_comes_before(index, ours, keep, questions):
    kept, cut = (scorer.encode_question(questions[index]) for scorer in (keep, ours[None]))
    assert ending_survives(keep, kept)
    text = keep.tokenizer.decode(kept, skip_special_tokens=True)
    words = len(text.split(" "))
    assert words == 50 if index == 1 else 70 < len(kept) <= 77 and words < 50
    head = text.removesuffix(clean_caption(ENDING))
    assert ours[None].tokenizer.decode(cut).startswith(head)


WORDS = st.text("abé .,!?\"'()*#:;~\t\n-ßİ01", max_size=40)


@settings(max_examples=150, deadline=None)
@given(text=WORDS | st.lists(st.sampled_from(["what", "Antediluvian", "x" * 300, "is;", "7"]), max_size=70))
def test_both_truncations_keep_their_limits(ours, text):
    tokenizer = ours[None].tokenizer
    question = Question(
        0, "0", "v", text=text if isinstance(text, str) else " ".join(text), options_prompt="A. b "
    )
    cleaned = BlipCaptionProcessor()(prompt_text(question))
    paper = prompt_ids(tokenizer, question, "paper")
    assert paper == tokenizer(cleaned, truncation=True, max_length=77).input_ids
    keep = prompt_ids(tokenizer, question, "keep_prompt")
    assert len(keep) <= 77 and ending_survives(ours[None], keep)
    if ending_survives(ours[None], paper):
        assert keep == paper


# Weights


def training_checkpoint(world, folder):
    """SeViLA's training saves no answerer, but two copies of T5's embedding."""
    state = torch.load(world / "sevila_pretrained.pth", weights_only=True)["model"]
    state = {key: value for key, value in state.items() if "_loc" in key and "position_ids" not in key}
    shared = load_file(world / "base/model.safetensors")["language_model.shared.weight"]
    for part in ("encoder", "decoder"):
        state[f"t5_model.{part}.embed_tokens.weight"] = shared
    torch.save({"model": state, "optimizer": {"state": {}}, "scaler": None}, folder / "checkpoint_best.pth")
    return make_ours(world, folder / "checkpoint_best.pth")


def sharded_base(world, folder):
    """The base's weights in two files."""
    shutil.copytree(world / "base", folder / "base")
    path = folder / "base/model.safetensors"
    tensors = load_file(path)
    path.unlink()
    index = {}
    for part, keys in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2])):
        shard = f"model-{part}.safetensors"
        save_file({key: tensors[key] for key in keys}, folder / "base" / shard, {"format": "pt"})
        index.update(dict.fromkeys(keys, shard))
    path.with_suffix(".safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return make_ours(world, base=folder / "base")


def in_one_folder(world, folder):
    """A folder that holds the checkpoint and the base."""
    shutil.copytree(world / "base", folder / "both")
    shutil.copy(world / "sevila_pretrained.pth", folder / "both")
    scorer = SevilaScorer(str(folder / "both"), CPU, None)
    assert scorer.base == str(folder / "both")
    return scorer


# A saved LAVIS model is whole; the vision tower and T5 of the base are then not used.
FORMS = {
    "whole": lambda world, _: make_ours(world, "whole.pth"),
    "whole, float32": lambda world, _: make_ours(world, "whole.pth", torch.float32),
    "training": training_checkpoint,
    "sharded": sharded_base,
    "one folder": in_one_folder,
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_weights_in_every_form_give_the_same_scores(form, world, ours, questions, tmp_path):
    dtype = torch.float32 if "float32" in form else None
    scorer = FORMS[form](world, tmp_path)
    assert np.array_equal(run(scorer, questions)[1], run(ours[dtype], questions)[1])


def test_our_weights_are_lavis_s_under_its_names(world, ours, lavis, questions, tmp_path):
    path = tmp_path / "ours.pth"
    torch.save(to_lavis_names(ours[None]._model.state_dict()), path)
    with small_lavis(world / "parts"):
        (world / "parts" / "eva.pth").rename(tmp_path / "eva.pth")  # without it LAVIS's tower is random
        try:
            scorer = LavisSevilaScorer(str(path), CPU, None)
        finally:
            (tmp_path / "eva.pth").rename(world / "parts" / "eva.pth")
    expected = lavis[None]._model.state_dict()
    found = scorer._model.state_dict()
    assert found.keys() == expected.keys()
    for name in found:
        assert torch.equal(found[name], expected[name]), name
    assert_same(run(scorer, questions)[1], run(ours[None], questions)[1], None)
    assert_same(run(make_ours(world, path), questions)[1], run(ours[None], questions)[1], None)


@pytest.mark.parametrize(
    ("changes", "needle"),
    [
        ({"t5_proj_loc.weight": None}, "missing: t5_proj_loc.weight"),
        (
            {"Qformer_loc.bert.encoder.layer.1.output_query.dense.bias": None},
            "layer.1.output_query.dense.bias",
        ),
        ({"ln_vision_loc.extra": torch.zeros(1)}, "unexpected: ln_vision_loc.extra"),
        ({"query_tokens_loc": torch.zeros(1, 16, 24)}, "of another shape: query_tokens_loc"),
        (
            {"visual_encoder.cls_token": torch.zeros(1, 1, 32)},
            "missing: visual_encoder.blocks.0.attn.proj.bias",
        ),
        ({"t5_model.lm_head.weight": torch.zeros(32128, 32)}, "missing: t5_model.decoder"),
    ],
)
def test_a_wrong_key_is_named(changes, needle, world, tmp_path):
    state = torch.load(world / "sevila_pretrained.pth", weights_only=True)["model"]
    state = {key: value for key, value in {**state, **changes}.items() if value is not None}
    path = tmp_path / "wrong.pth"
    torch.save(state, path)
    fails(lambda: make_ours(world, path), path, needle)
    if needle.startswith("missing: visual") or needle.startswith("missing: t5_model"):
        return  # LAVIS has loaded these parts from elsewhere already
    fails(lambda: make_lavis(world, path), path, needle)
    with pytest.raises(RuntimeError, match="not SeViLA's weights") as caught, small_lavis(world / "parts"):
        sevila.SeViLA(t5_model="google/flan-t5-xl", vit_precision="fp32").load_checkpoint(str(path))
    assert next(iter(changes)) in str(caught.value)


def make_folder(path):
    path.unlink()
    path.mkdir()


class Code:
    """Unpickled, it makes a folder."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


# How the file is spoilt, and what is said of it.
WRONG_FILES = {
    "another model": (lambda path: torch.save(tiny_blip().state_dict(), path), "weights of another model"),
    "truncated": (lambda path: os.truncate(path, path.stat().st_size // 2), "cannot be read"),
    "text": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"), "cannot be read"),
    "not tensors": (lambda path: torch.save({"query_tokens_loc": 3}, path), "is not a state dict"),
    "code": (lambda path: torch.save({"query_tokens_loc": Code()}, path), "cannot be read"),
    "none": (Path.unlink, "no such checkpoint file; download sevila_pretrained.pth"),
    "folder": (make_folder, "has no sevila_pretrained.pth"),
}


@pytest.mark.parametrize("kind", WRONG_FILES)
def test_a_wrong_file_is_named(kind, world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path(shutil.copy(world / "sevila_pretrained.pth", tmp_path))
    spoil, needle = WRONG_FILES[kind]
    spoil(path)
    for make in (make_ours, make_lavis):
        fails(partial(make, world, path), path, needle)
    assert not (tmp_path / "executed").exists()


def test_nothing_local_and_no_hub_says_what_to_get(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    fails(lambda: SevilaScorer(None, CPU, None), "hf download Shoubin/SeViLA")
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(world / "sevila_pretrained.pth", tmp_path / "checkpoints")
    fails(lambda: SevilaScorer(None, CPU, None), "Salesforce/blip2-flan-t5-xl")
    shutil.copytree(world / "base", tmp_path / "checkpoints/blip2-flan-t5-xl")
    assert SevilaScorer(None, CPU, None).preprocessor.side == 224


def lose(name):
    return lambda folder: (folder / name).unlink()


def truncate(folder):
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1000)


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def lose_tokenizer(folder):
    lose("tokenizer.json")(folder)
    lose("spiece.model")(folder)


def rename_yes(folder):
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"▁yes"', '"▁yess"', 1))


BIAS = "vision_model.encoder.layers.1.mlp.fc1.bias"


@pytest.mark.parametrize(
    ("damage", "needle"),
    [
        (lose("config.json"), "has no config.json"),
        (lose("model.safetensors"), "has no model.safetensors"),
        (lose_tokenizer, "has no tokenizer.json or spiece.model"),
        (truncate, "damaged or incomplete"),
        (lambda folder: change_tensors(folder, lambda tensors: tensors.pop(BIAS)), f"missing: {BIAS}"),
        (
            lambda folder: change_tensors(folder, lambda tensors: tensors.update(ghost=torch.zeros(1))),
            "unexpected: ghost",
        ),
        (
            lambda folder: edit_json(folder / "config.json", model_type="blip"),
            "another model: model_type is 'blip', not 'blip-2'",
        ),
        (
            lambda folder: edit_json(folder / "config.json", text_config={"model_type": "opt"}),
            "language model is opt, not t5",
        ),
        (rename_yes, "is not token 4273"),
    ],
)
def test_a_wrong_base_is_named(damage, needle, world, tmp_path):
    folder = shutil.copytree(world / "base", tmp_path / "base")
    damage(folder)
    fails(lambda: make_ours(world, base=folder), folder, needle)


def test_unknown_options(world):
    for make in (make_ours, make_lavis):
        fails(partial(make, world, truncation="long"), "--truncation long", "paper, keep_prompt")
        fails(partial(make, world, dtype=torch.float16), "--dtype")


# LAVIS


def test_registered_and_decord_left_alone():
    assert registry.get_model_class("sevila") is sevila.SeViLA
    decord.bridge.set_bridge("torch")  # what importing LAVIS does
    assert importlib.reload(sevila).SeViLA is registry.get_model_class("sevila")
    assert decord.bridge._CURRENT_BRIDGE.type == "native"


def test_answers_are_refused(lavis):
    with pytest.raises(NotImplementedError, match="scores frames"):
        lavis[None]._model.generate({})


def test_without_lavis_or_its_parts_the_error_is_one_line(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    make = partial(LavisSevilaScorer, str(world / "sevila_pretrained.pth"), CPU, None)
    fails(make, "LAVIS cannot load")
    monkeypatch.setitem(sys.modules, "lavis.models", None)
    fails(make, "--backend lavis", "requirements-lavis.txt")


def test_a_run_on_lavis_is_known_by_all_that_changes_a_score(lavis, world):
    """A run with another value of any of these must count as another run."""
    assert lavis[None].fingerprint() == {
        "scorer": "sevila",
        "checkpoint": str(world / "sevila_pretrained.pth"),
        "dtype": "bfloat16",
        "t5_model": DEFAULT_T5,
        "precision": {"vision": "float32", "qformer": "float32", "t5": "bfloat16"},
        "truncation": "paper",
        "backend": "lavis",
    }


@pytest.mark.parametrize("vision", [torch.float32, torch.float16, torch.bfloat16])
def test_lavis_takes_frames_in_the_type_of_its_layers_but_casts_to_half_by_itself(lavis, vision, monkeypatch):
    scorer = lavis[None]
    monkeypatch.setitem(scorer.precision, "vision", vision)
    monkeypatch.setattr(scorer._model, "encode_frames", lambda inputs: inputs.dtype)
    expected = torch.float32 if vision == torch.float16 else vision
    assert scorer.encode_frames(torch.zeros(1, 3, 224, 224)) == expected
