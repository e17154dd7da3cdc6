"""The SigLIP scorer: transformers' own numbers, for SigLIP and SigLIP 2."""

import pickle
import shutil

import numpy as np
import pytest
import torch
from model_setup import QUESTIONS, ask, edit_json, encode, fails, film_frames, save_tiny_siglip
from transformers import AutoModel, AutoProcessor
from transformers.utils import import_utils

from aks.scorers.base import load_scorer


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {
        version: save_tiny_siglip(tmp_path_factory.mktemp(f"siglip{version}"), version) for version in (1, 2)
    }


@pytest.fixture(scope="module", params=[1, 2])
def folder(request, folders):
    return folders[request.param]


@pytest.fixture(scope="module")
def scorer(folder):
    return load_scorer("siglip", checkpoint=str(folder))


def test_scores_order_frames_as_transformers_forward_does(scorer, folder):
    processor, model = AutoProcessor.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    texts = [text.lower() for text in QUESTIONS]
    settings = {"padding": "max_length", "truncation": True, "max_length": 64, "return_tensors": "pt"}
    inputs = processor(text=texts, images=film_frames(), **settings)
    with torch.no_grad():
        output = model(**inputs)
        expected = (output.text_embeds @ output.image_embeds.T).numpy()
        logits = output.logits_per_text.numpy()

    scores = scorer.score(encode(scorer, film_frames()), ask(scorer, QUESTIONS))
    assert scores.shape == (len(QUESTIONS), len(film_frames())) and scores.dtype == np.float64
    assert np.ptp(scores, axis=1).min() > 1e-3 and np.ptp(scores, axis=0).min() > 1e-3
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    np.testing.assert_array_equal(scores.argsort(axis=1), logits.argsort(axis=1))
    preprocess = pickle.loads(pickle.dumps(scorer.preprocessor))  # as it comes to decoding processes
    pixels = np.stack([preprocess(frame) for frame in film_frames()])
    np.testing.assert_array_equal(pixels, inputs["pixel_values"].numpy())


@pytest.mark.parametrize("shape", [(3, 40), (40, 3), (1, 1), (64, 64)])
def test_any_frame_shape_can_be_preprocessed(scorer, shape):
    inputs = scorer.preprocess(np.zeros((*shape, 3), dtype=np.uint8))
    assert inputs.shape == (3, 64, 64) and inputs.dtype == torch.float32


def test_text_is_lower_case_and_cut_at_64_tokens(scorer):
    small, large, long, longer = ask(scorer, ["a red bus", "A Red BUS", "the " * 70, "the " * 70 + "bus"])
    assert torch.equal(small, large) and torch.equal(long, longer)
    assert (small - long).abs().max() > 1e-3


def test_frames_encoded_one_by_one_score_the_same(scorer):
    inputs = torch.stack([scorer.preprocess(frame) for frame in film_frames()])
    texts = ask(scorer, QUESTIONS)
    together = scorer.score(scorer.encode_frames(inputs), texts)
    single = np.hstack([scorer.score(scorer.encode_frames(frame[None]), texts) for frame in inputs])
    np.testing.assert_allclose(together, single, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.05), ("float16", 0.01)])
def test_half_precision_stays_close(scorer, folder, dtype, tolerance):
    half = load_scorer("siglip", checkpoint=str(folder), dtype=dtype)
    features = encode(half, film_frames())
    assert features.dtype == half.dtype
    scores = half.score(features, ask(half, QUESTIONS[:1]))
    full = scorer.score(encode(scorer, film_frames()), ask(scorer, QUESTIONS[:1]))
    np.testing.assert_allclose(scores, full, atol=tolerance)


def test_the_fingerprint_names_checkpoint_and_type(scorer, folder):
    assert scorer.fingerprint() == {"scorer": "siglip", "checkpoint": str(folder), "dtype": "float32"}


def lose(name):
    return lambda folder: (folder / name).unlink()


# Of which version a checkpoint's folder is spoilt, how, and what is said of it beside its name.
DAMAGES = {
    "no spiece": (1, lose("spiece.model"), "spiece.model or tokenizer.json"),
    "no tokenizer": (2, lose("tokenizer.json"), "spiece.model or tokenizer.json"),
    "no settings": (2, lose("tokenizer_config.json"), "tokenizer_config.json"),
    "no processor": (1, lose("preprocessor_config.json"), "preprocessor_config.json"),
    "no weights": (1, lose("model.safetensors"), "model.safetensors"),
    "spiece": (1, lambda folder: (folder / "spiece.model").write_bytes(b"x"), "tokenizer cannot be loaded"),
    "size": (
        1,
        lambda folder: edit_json(folder / "preprocessor_config.json", size={"height": 32, "width": 64}),
        "makes pictures of {'height': 32, 'width': 64}, its model reads 64 x 64",
    ),
    "naflex": (
        2,
        lambda folder: edit_json(folder / "config.json", model_type="siglip2"),
        "model_type is 'siglip2', not 'siglip'",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_wrong_checkpoint_is_named(folders, tmp_path, damage):
    version, spoil, words = DAMAGES[damage]
    copy = shutil.copytree(folders[version], tmp_path / "copy")
    spoil(copy)
    fails(lambda: load_scorer("siglip", checkpoint=str(copy)), copy, words)


def test_missing_packages_are_named(folders, monkeypatch):
    monkeypatch.setitem(import_utils.BACKENDS_MAPPING, "protobuf", (lambda: False, "{0}: no protobuf"))
    remedy = "pip install sentencepiece protobuf"
    fails(lambda: load_scorer("siglip", checkpoint=str(folders[1])), folders[1], remedy)
    load_scorer("siglip", checkpoint=str(folders[2]))  # needs neither
