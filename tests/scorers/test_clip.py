"""The CLIP scorer: transformers' own numbers, on version 4 and 5."""

import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from conftest import ROOT
from model_setup import QUESTIONS, ask, edit_json, encode, fails, film_frames, save_tiny_clip
from transformers import CLIPModel, CLIPTokenizer

from aks.scorers.base import load_scorer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def scorer(folder):
    return load_scorer("clip", checkpoint=str(folder))


def test_scores_are_those_of_transformers_forward(scorer, folder):
    processor_class = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    processor, tokenizer = processor_class.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    images = processor(film_frames(), return_tensors="pt")
    texts = tokenizer(QUESTIONS, padding=True, truncation=True, max_length=77, return_tensors="pt")
    model = CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        output = model(**images, **texts)
        expected = (output.logits_per_text / model.logit_scale.exp()).numpy()

    scores = scorer.score(encode(scorer, film_frames()), ask(scorer, QUESTIONS))
    assert scores.shape == (len(QUESTIONS), len(film_frames()))
    assert scores.dtype == np.float64
    assert np.ptp(scores, axis=1).min() > 1e-3  # the frames do differ
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_preprocessed_pixels_are_the_pil_processor_s(scorer):
    from PIL import Image

    frame = film_frames()[2]
    height, width = frame.shape[:2]
    image = Image.fromarray(frame).resize((int(224 * width / height), 224), Image.Resampling.BICUBIC)
    left = (image.width - 224) // 2
    pixels = np.asarray(image)[:, left : left + 224].astype(np.float32)
    mean = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
    std = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)
    expected = ((pixels / 255 - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(scorer.preprocess(frame).numpy(), expected, atol=1e-6)  # grey level: 1.5e-2


def test_a_decoding_process_starts_without_warnings(scorer):
    """It is sent the preprocessor, whose transformers imports torchvision."""
    command = [sys.executable, "-c", "import pickle, sys; pickle.load(sys.stdin.buffer)"]
    done = subprocess.run(command, input=pickle.dumps(scorer.preprocessor), cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("shape", [(3, 40), (40, 3), (1, 1), (224, 224), (300, 50)])
def test_any_frame_shape_can_be_preprocessed(scorer, shape):
    inputs = scorer.preprocess(np.zeros((*shape, 3), dtype=np.uint8))
    assert inputs.shape == (3, 224, 224)
    assert inputs.dtype == torch.float32


def test_text_is_cut_at_77_tokens(scorer):
    words = "tree " * 75
    whole, longer, shorter = ask(scorer, [words, words + "then a rabbit appears", "tree " * 74])
    torch.testing.assert_close(longer, whole, atol=0, rtol=0)
    assert (shorter - whole).abs().max() > 1e-3


def test_frames_encoded_one_by_one_score_the_same(scorer):
    inputs = torch.stack([scorer.preprocess(frame) for frame in film_frames()])
    texts = ask(scorer, QUESTIONS)
    together = scorer.score(scorer.encode_frames(inputs), texts)
    single = np.hstack([scorer.score(scorer.encode_frames(frame[None]), texts) for frame in inputs])
    np.testing.assert_allclose(together, single, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.05), ("float16", 0.01)])
def test_half_precision_stays_close(scorer, folder, dtype, tolerance):
    half = load_scorer("clip", checkpoint=str(folder), dtype=dtype)
    features = encode(half, film_frames())
    assert features.dtype == half.dtype
    scores = half.score(features, ask(half, QUESTIONS[:1]))
    full = scorer.score(encode(scorer, film_frames()), ask(scorer, QUESTIONS[:1]))
    np.testing.assert_allclose(scores, full, atol=tolerance)


def test_the_fingerprint_names_checkpoint_and_type(scorer, folder):
    assert scorer.fingerprint() == {"scorer": "clip", "checkpoint": str(folder), "dtype": "float32"}


def lose(name):
    return lambda folder: (folder / name).unlink()


def reconfigure(**changes):
    return lambda folder: edit_json(folder / "config.json", **changes)


FILES = ["config.json", "model.safetensors", "vocab.json", "merges.txt", "preprocessor_config.json"]
# How a checkpoint's folder is spoilt, and what is said of it beside its name.
DAMAGES = {
    **{f"no {name}": (lose(name), name) for name in FILES},
    "processor": (
        lambda folder: (folder / "preprocessor_config.json").write_text("{"),
        "image processor",
    ),
    "width": (
        reconfigure(projection_dim=16),
        "another model (of another shape: text_projection.weight, visual_projection.weight)",
    ),
    "type": (reconfigure(model_type="siglip"), "model_type is 'siglip', not 'clip'"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_wrong_checkpoint_is_named(folder, tmp_path, damage):
    copy = shutil.copytree(folder, tmp_path / "copy")
    spoil, words = DAMAGES[damage]
    spoil(copy)
    fails(lambda: load_scorer("clip", checkpoint=str(copy)), copy, words)
