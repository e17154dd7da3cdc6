"""The BLIP scorer by itself; test_blip_lavis.py compares it with LAVIS."""

import os
import shutil

import numpy as np
import pytest
import torch
from model_setup import QUESTIONS, ask, edit_json, encode, fails, film_frames, save_blip, tiny_blip
from safetensors.torch import load_file, save_file
from transformers import BlipConfig, BlipForImageTextRetrieval, BlipForQuestionAnswering

from aks.scorers import blip as blip_module
from aks.scorers import weights
from aks.scorers.attention import fuse_attention
from aks.scorers.base import load_scorer
from aks.scorers.blip import MAX_TOKENS, clean_caption


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_blip(tiny_blip(), tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="module")
def itm(folder):
    return load_scorer("blip", checkpoint=str(folder))


@pytest.fixture(scope="module")
def itc(folder):
    return load_scorer("blip", checkpoint=str(folder), blip_head="itc")


@pytest.fixture(params=["itm", "itc"])
def scorer(request):
    return request.getfixturevalue(request.param)


def test_caption_cleaning():
    assert clean_caption('  Who says "NO!" (twice)...  at #3:;~*end?\n') == "who says no twice at 3 end?"
    assert clean_caption("one two  three\n\nfour", max_words=3) == "one two three"
    assert len(clean_caption("a b " * 60).split(" ")) == 50


def test_frames_are_encoded_once_and_never_see_a_question(itm, itc):
    assert encode(itm, film_frames(2)).shape == (2, 577, 64)
    assert encode(itc, film_frames(2)).shape == (2, 256)


def test_scores_are_probabilities_that_tell_frames_and_questions_apart(itm):
    scores = itm.score(encode(itm, film_frames()), ask(itm, QUESTIONS))
    assert scores.shape == (len(QUESTIONS), len(film_frames()))
    assert scores.dtype == np.float64
    assert (scores > 0).all() and (scores < 1).all()
    assert np.ptp(scores, axis=0).min() > 1e-2
    assert np.ptp(scores, axis=1).min() > 1e-3


def test_many_questions_at_once_score_as_one_at_a_time(scorer):
    features = encode(scorer, film_frames())
    encoded = ask(scorer, QUESTIONS * 5)  # more tokens than one pass of the text encoder takes
    single = np.vstack([scorer.score(features, [text]) for text in encoded])
    np.testing.assert_allclose(scorer.score(features, encoded), single, atol=1e-6)


def test_vectors_of_many_questions_are_those_of_each(itm, monkeypatch):
    features, encoded = encode(itm, film_frames(2)), ask(itm, QUESTIONS * 3)
    single = torch.cat([itm.cross_encode(features, [text]) for text in encoded], dim=1)
    monkeypatch.setattr(blip_module, "TOKENS_PER_PASS", 20)  # several passes
    np.testing.assert_allclose(itm.cross_encode(features, encoded), single, atol=1e-5)


def test_fused_attention_of_the_gpu_gives_the_same_tokens(folder, itm):
    fused = load_scorer("blip", checkpoint=str(folder))
    fuse_attention(fused.image_encoder.vision_model)
    expected = encode(itm, film_frames(2))
    np.testing.assert_allclose(encode(fused, film_frames(2)), expected, atol=1e-5 * expected.abs().max())


def test_float32_convolutions_of_the_gpu_are_not_rounded_to_tf32(folder, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    load_scorer("blip", checkpoint=str(folder))
    assert not torch.backends.cudnn.allow_tf32


def test_scores_do_not_depend_on_the_batch_size(scorer):
    inputs = torch.stack([scorer.preprocess(frame) for frame in film_frames()])
    encoded = ask(scorer, QUESTIONS)
    one_by_one = [scorer.encode_frames(frame[None]) for frame in inputs]
    expected = np.hstack([scorer.score(features, encoded) for features in one_by_one])
    scores = scorer.score(scorer.encode_frames(inputs), encoded)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    many = torch.cat(one_by_one).repeat(7, *[1] * (one_by_one[0].dim() - 1))
    assert len(many) > 2 * scorer.frames_per_pass and len(many) % scorer.frames_per_pass
    np.testing.assert_allclose(scorer.score(many, encoded), np.tile(expected, 7), atol=1e-6)


def test_text_is_cut_at_35_tokens(itm, itc):
    whole = "tree " * (MAX_TOKENS - 2)  # [ENC] and [SEP] are two of the 35
    for scorer in (itm, itc):
        torch.testing.assert_close(*ask(scorer, [whole, whole + "rabbit"]), atol=0, rtol=0)
    assert len(ask(itm, QUESTIONS)[3]) == MAX_TOKENS
    assert ask(itm, QUESTIONS)[0][[0, -1]].tolist() == [30523, 102]  # [ENC] first, [SEP] last


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.05), ("float16", 0.01)])
@pytest.mark.parametrize("head", ["itm", "itc"])
def test_half_precision_stays_close(folder, itm, itc, head, dtype, tolerance):
    half = load_scorer("blip", checkpoint=str(folder), dtype=dtype, blip_head=head)
    full = {"itm": itm, "itc": itc}[head]
    features = encode(half, film_frames())
    assert features.dtype == half.dtype
    scores, expected = (
        half.score(features, ask(half, QUESTIONS)),
        full.score(encode(full, film_frames()), ask(full, QUESTIONS)),
    )
    np.testing.assert_allclose(scores, expected, atol=tolerance)


def test_fingerprints_tell_heads_apart(itm, itc, folder):
    expected = {"scorer": "blip", "checkpoint": str(folder), "dtype": "float32", "blip_head": "itm"}
    assert itm.fingerprint() == expected
    assert itc.fingerprint() == {**expected, "blip_head": "itc"}


def test_a_folder_under_checkpoints_is_found_by_the_hub_s_name(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "checkpoints" / "blip-itm-large-coco")
    monkeypatch.chdir(tmp_path)
    scorer = load_scorer("blip")
    assert scorer.checkpoint == "Salesforce/blip-itm-large-coco"


def shard(folder):
    """Divide a folder's weights into several files."""
    model = BlipForImageTextRetrieval.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="4MB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1


def to_pytorch(folder):
    """Turn a folder's weights into a PyTorch file, with a buffer that older versions of transformers save."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    state["text_encoder.embeddings.position_ids"] = torch.arange(512)[None]
    torch.save(state, folder / "pytorch_model.bin")


@pytest.fixture()
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.mark.parametrize("change", [shard, to_pytorch])
def test_pytorch_weights_and_shards_are_read(copy, itm, change):
    expected = itm.score(encode(itm, film_frames(2)), ask(itm, QUESTIONS))
    change(copy)
    scorer = load_scorer("blip", checkpoint=str(copy))
    scores = scorer.score(encode(scorer, film_frames(2)), ask(scorer, QUESTIONS))
    np.testing.assert_array_equal(scores, expected)


def test_an_unknown_head_is_refused():
    fails(lambda: load_scorer("blip", blip_head="both"), "--blip_head both", "itm, itc")


def test_a_pickled_object_is_not_executed(copy):
    class Evil:
        def __reduce__(self):
            return open, (str(copy / "executed"), "w")

    (copy / "model.safetensors").unlink()
    torch.save({"itm_head.weight": Evil()}, copy / "pytorch_model.bin")
    fails(lambda: load_scorer("blip", checkpoint=str(copy)), copy, "cannot be loaded")
    fails(lambda: weights.read_state_dict(copy / "pytorch_model.bin"), "cannot be read as weights")
    assert not (copy / "executed").exists()


def lose(name):
    return lambda folder: (folder / name).unlink()


def lose_a_shard(folder):
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def truncate_pytorch_file(folder):
    to_pytorch(folder)
    truncate(folder / "pytorch_model.bin")


def take_another_head(folder):
    BlipForQuestionAnswering(BlipConfig.from_pretrained(folder)).save_pretrained(folder)


def take_another_size(folder):
    config = (folder / "config.json").read_text()
    tiny_blip(hidden_size=48).save_pretrained(folder)
    (folder / "config.json").write_text(config)


def lose_a_tensor(folder):
    state = load_file(folder / "model.safetensors")
    del state["vision_model.encoder.layers.1.mlp.fc1.bias"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def reconfigure(**changes):
    return lambda folder: edit_json(folder / "config.json", **changes)


# How a checkpoint's folder is spoilt, and what is said of it beside its name.
DAMAGES = {
    "no configuration": (lose("config.json"), ["config.json"]),
    "no weights": (lose("model.safetensors"), ["model.safetensors"]),
    "no vocabulary": (lose("vocab.txt"), ["vocab.txt"]),
    "no shard": (lose_a_shard, ["model-00002-of-00002.safetensors"]),
    "truncated": (
        lambda folder: truncate(folder / "model.safetensors"),
        ["model.safetensors", "download it again"],
    ),
    "truncated PyTorch file": (truncate_pytorch_file, ["cannot be loaded"]),
    "another head": (
        take_another_head,
        ["another model", "missing: itm_head.bias, itm_head.weight", "unexpected: text_decoder."],
    ),
    "another size": (take_another_size, ["another model", "of another shape: "]),
    "no tensor": (lose_a_tensor, ["missing: vision_model.encoder.layers.1.mlp.fc1.bias"]),
    "another type": (reconfigure(model_type="clip"), ["config.json", "'clip'"]),
    "another vocabulary": (reconfigure(text_config={"vocab_size": 30522}), ["config.json", "30522"]),
    "damaged configuration": (
        lambda folder: (folder / "config.json").write_text('{"model_type": '),
        ["config.json", "JSON"],
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_wrong_checkpoint_is_named(copy, damage):
    spoil, words = DAMAGES[damage]
    spoil(copy)
    fails(lambda: load_scorer("blip", checkpoint=str(copy)), copy, *words)


def test_a_damaged_vision_tower_is_told_when_it_is_loaded(copy):
    lose_a_tensor(copy)
    scorer = load_scorer("blip", checkpoint=str(copy), with_image_encoder=False)
    fails(lambda: scorer.image_encoder, copy, "missing: vision_model.encoder.layers.1.mlp.fc1.bias")


def test_what_is_no_folder_is_one_line(folder):
    fails(lambda: load_scorer("blip", checkpoint="nowhere"), "nowhere", "no such checkpoint folder")
    fails(lambda: load_scorer("blip", checkpoint=str(folder / "model.safetensors")), "is a file")


def test_offline_says_what_to_download_and_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    command = "hf download Salesforce/blip-itm-base-coco --local-dir checkpoints/blip-itm-base-coco"
    fails(lambda: load_scorer("blip", checkpoint="Salesforce/blip-itm-base-coco"), command)


def test_a_checkpoint_at_the_given_path_comes_before_one_of_that_name_elsewhere(
    folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "checkpoints" / folder.name)
    assert weights.resolve_checkpoint(str(folder), model_type="blip") == folder
    file = tmp_path / "model.pth"
    for path in (file, tmp_path / "checkpoints" / file.name):
        path.touch()
    assert weights.find_file(str(file), source="the hub") == file
