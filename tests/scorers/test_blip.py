"""The BLIP scorer by itself; test_blip_lavis.py compares it with LAVIS."""

import json
import shutil

import numpy as np
import pytest
import torch
from model_setup import QUESTIONS, film_frames, question, save_blip, tiny_blip
from safetensors.torch import load_file, save_file
from transformers import BlipConfig, BlipForQuestionAnswering

from aks.errors import UserError
from aks.scorers import blip as blip_module
from aks.scorers import weights
from aks.scorers.attention import fuse_attention
from aks.scorers.base import load_scorer
from aks.scorers.blip import MAX_TOKENS, BlipScorer, clean_caption


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


def encode(scorer, frames):
    return scorer.encode_frames(torch.stack([scorer.preprocess(frame) for frame in frames]))


def texts(scorer, wanted=QUESTIONS):
    return [scorer.encode_question(question(text)) for text in wanted]


def test_caption_cleaning():
    assert clean_caption('  Who says "NO!" (twice)...  at #3:;~*end?\n') == "who says no twice at 3 end?"
    assert clean_caption("one two  three\n\nfour", max_words=3) == "one two three"
    assert len(clean_caption("a b " * 60).split(" ")) == 50


def test_frames_are_encoded_once_and_never_see_a_question(itm, itc):
    assert encode(itm, film_frames(2)).shape == (2, 577, 64)
    assert encode(itc, film_frames(2)).shape == (2, 256)


def test_scores_are_probabilities_that_tell_frames_and_questions_apart(itm):
    scores = itm.score(encode(itm, film_frames()), texts(itm))
    assert scores.shape == (len(QUESTIONS), len(film_frames()))
    assert scores.dtype == np.float64
    assert (scores > 0).all() and (scores < 1).all()
    assert np.ptp(scores, axis=0).min() > 1e-2
    assert np.ptp(scores, axis=1).min() > 1e-3


def test_many_questions_at_once_score_as_one_at_a_time(scorer):
    features = encode(scorer, film_frames())
    encoded = texts(scorer, QUESTIONS * 5)  # more tokens than one pass of the text encoder takes
    single = np.vstack([scorer.score(features, [text]) for text in encoded])
    np.testing.assert_allclose(scorer.score(features, encoded), single, atol=1e-6)


def test_vectors_of_many_questions_are_those_of_each(itm, monkeypatch):
    features, encoded = encode(itm, film_frames(2)), texts(itm, QUESTIONS * 3)
    single = torch.cat([itm.cross_encode(features, [text]) for text in encoded], dim=1)
    monkeypatch.setattr(blip_module, "TOKENS_PER_PASS", 20)  # several passes
    np.testing.assert_allclose(itm.cross_encode(features, encoded), single, atol=1e-5)


def test_fused_attention_of_the_gpu_gives_the_same_tokens(folder, itm):
    fused = load_scorer("blip", checkpoint=str(folder))
    fuse_attention(fused.model.vision_model)
    expected = encode(itm, film_frames(2))
    np.testing.assert_allclose(encode(fused, film_frames(2)), expected, atol=1e-5 * expected.abs().max())


def test_float32_convolutions_of_the_gpu_are_not_rounded_to_tf32(folder, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    load_scorer("blip", checkpoint=str(folder))
    assert not torch.backends.cudnn.allow_tf32


def test_scores_do_not_depend_on_the_batch_size(scorer):
    inputs = torch.stack([scorer.preprocess(frame) for frame in film_frames()])
    encoded = texts(scorer)
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
        torch.testing.assert_close(*texts(scorer, [whole, whole + "rabbit"]), atol=0, rtol=0)
    assert len(texts(itm)[3]) == MAX_TOKENS
    assert texts(itm)[0][[0, -1]].tolist() == [30523, 102]  # [ENC] first, [SEP] last


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.05), ("float16", 0.01)])
@pytest.mark.parametrize("head", ["itm", "itc"])
def test_half_precision_stays_close(folder, itm, itc, head, dtype, tolerance):
    half = load_scorer("blip", checkpoint=str(folder), dtype=dtype, blip_head=head)
    full = {"itm": itm, "itc": itc}[head]
    features = encode(half, film_frames())
    assert features.dtype == half.dtype
    scores, expected = half.score(features, texts(half)), full.score(encode(full, film_frames()), texts(full))
    np.testing.assert_allclose(scores, expected, atol=tolerance)


def test_features_stored_in_another_type_are_scored_in_the_model_s(itm):
    features = encode(itm, film_frames())
    stored = itm.score(features.half(), texts(itm))
    np.testing.assert_allclose(stored, itm.score(features, texts(itm)), atol=5e-3)


def test_fingerprints_tell_heads_apart(itm, itc, folder):
    expected = {"scorer": "blip", "checkpoint": str(folder), "dtype": "float32", "blip_head": "itm"}
    assert itm.fingerprint() == expected
    assert itc.fingerprint() == {**expected, "blip_head": "itc"}


def test_a_folder_under_checkpoints_is_found_by_the_hub_s_name(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "checkpoints" / "blip-itm-large-coco")
    monkeypatch.chdir(tmp_path)
    scorer = BlipScorer()
    assert scorer.checkpoint == "Salesforce/blip-itm-large-coco"


def test_pytorch_weights_and_shards_are_read(folder, itm, tmp_path):
    features = encode(itm, film_frames(2))
    expected = itm.score(features, texts(itm))

    binary = shutil.copytree(folder, tmp_path / "binary")
    state = load_file(binary / "model.safetensors")
    (binary / "model.safetensors").unlink()
    torch.save(
        {**state, "text_encoder.embeddings.position_ids": torch.arange(512)[None]},
        binary / "pytorch_model.bin",
    )
    scorer = BlipScorer(str(binary))
    np.testing.assert_array_equal(scorer.score(encode(scorer, film_frames(2)), texts(scorer)), expected)

    sharded = shutil.copytree(folder, tmp_path / "sharded")
    (sharded / "model.safetensors").unlink()
    itm.model.save_pretrained(sharded, max_shard_size="4MB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    scorer = BlipScorer(str(sharded))
    np.testing.assert_array_equal(scorer.score(encode(scorer, film_frames(2)), texts(scorer)), expected)


def fails(checkpoint, *parts, **options):
    with pytest.raises(UserError) as caught:
        BlipScorer(str(checkpoint), **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


@pytest.fixture()
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_an_unknown_head_is_refused(folder):
    fails(folder, "--blip_head both", "itm, itc", blip_head="both")


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "vocab.txt"])
def test_a_missing_file_is_named(copy, missing):
    (copy / missing).unlink()
    fails(copy, str(copy), missing)


def test_a_missing_shard_is_named(copy, itm):
    (copy / "model.safetensors").unlink()
    itm.model.save_pretrained(copy, max_shard_size="4MB")
    shard = sorted(copy.glob("model-*.safetensors"))[1]
    shard.unlink()
    fails(copy, shard.name)


def test_a_truncated_weight_file_is_named(copy):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    fails(copy, str(path), "download it again")


def test_a_truncated_pytorch_file_is_one_line(copy, folder):
    (copy / "model.safetensors").unlink()
    torch.save(load_file(folder / "model.safetensors"), copy / "pytorch_model.bin")
    path = copy / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    fails(copy, str(copy), "cannot be loaded")


def test_a_pickled_object_is_not_executed(copy):
    class Evil:
        def __reduce__(self):
            return open, (str(copy / "executed"), "w")

    (copy / "model.safetensors").unlink()
    torch.save({"itm_head.weight": Evil()}, copy / "pytorch_model.bin")
    fails(copy, str(copy), "cannot be loaded")
    with pytest.raises(UserError, match="cannot be read as weights"):
        weights.read_state_dict(copy / "pytorch_model.bin")
    assert not (copy / "executed").exists()


def test_weights_of_another_head_are_refused_and_keys_named(copy):
    model = BlipForQuestionAnswering(BlipConfig.from_pretrained(copy))
    model.save_pretrained(copy)
    fails(
        copy,
        str(copy),
        "another model",
        "missing: itm_head.bias, itm_head.weight",
        "unexpected: text_decoder.",
    )


def test_weights_of_another_size_are_refused_and_keys_named(copy, tmp_path):
    tiny_blip(hidden_size=48).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", copy)
    fails(copy, "another model", "of another shape: ")


def test_one_missing_tensor_is_refused(copy):
    state = load_file(copy / "model.safetensors")
    del state["vision_model.encoder.layers.1.mlp.fc1.bias"]
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    fails(copy, "missing: vision_model.encoder.layers.1.mlp.fc1.bias")


def test_another_type_of_model_is_refused(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "clip"}))
    fails(copy, "config.json", "'clip'")


def test_another_vocabulary_is_refused(copy):
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["vocab_size"] = 30522
    (copy / "config.json").write_text(json.dumps(config))
    fails(copy, "config.json", "30522")


def test_a_damaged_configuration_is_named(copy):
    (copy / "config.json").write_text('{"model_type": ')
    fails(copy, "config.json", "JSON")


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    fails(tmp_path / "nowhere", "nowhere", "no such checkpoint folder")


def test_a_file_for_a_folder_is_one_line(folder):
    fails(folder / "model.safetensors", "is a file")


def test_offline_says_what_to_download_and_where_to_put_it(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    command = "hf download Salesforce/blip-itm-base-coco --local-dir checkpoints/blip-itm-base-coco"
    fails("Salesforce/blip-itm-base-coco", command)


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
