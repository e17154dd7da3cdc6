"""``feature_extract.py --backend lavis``, started as by a user, writes the files of the default backend.

LAVIS builds BLIP base and ViT-g at their real size, whatever a checkpoint holds; hence these tests use real
sizes and few frames. In the checkpoints all blocks of a tower share the weights of its first, stored once.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import check_mistake
from media import picture, write_video
from model_setup import QUESTIONS, bert_vocabulary, edit_json, randomise, tiny_blip
from safetensors.torch import load_file
from sevila_setup import EVA_FILE, VISION, build_world
from test_blip_lavis import to_transformers
from test_sevila import assert_same
from transformers import BertConfig, BlipConfig

from aks.errors import UserError
from aks.run_dir import RunDir
from aks.score_lists import read_scores
from aks.scorers.lavis.blip import BASE_CHECKPOINT, import_lavis

import_lavis()

from lavis.common.utils import get_abs_path  # noqa: E402
from lavis.models.blip_models.blip_image_text_matching import BlipITM  # noqa: E402
from lavis.models.med import XBertEncoder  # noqa: E402
from lavis.models.vit import VisionTransformerEncoder  # noqa: E402

VIT_G = {"hidden_size": 1408, "num_hidden_layers": 39, "num_attention_heads": 16}
FPS = 12
ENTRIES = [
    {"video": "one.mp4", "question": QUESTIONS[0], "options": ["Throw nuts", "Sleep"]},
    {"video": "two.mp4", "question": QUESTIONS[2]},
    {"video": "one.mp4", "question": QUESTIONS[1]},
]
FRAMES = [[0, FPS], [0], [0, FPS]]


class Setup(NamedTuple):
    """A working directory with a model's checkpoints, and the options that name them to each backend."""

    folder: Path
    model: str
    checkpoint: dict[str, list[str]]


def repeat_first_block(state: dict[str, torch.Tensor], stem: str, blocks: int) -> dict[str, torch.Tensor]:
    """A state dict whose first block, ``<stem>0.``, stands for ``blocks`` blocks that share its memory."""
    repeated = dict(state)
    for name, value in state.items():
        if name.startswith(f"{stem}0."):
            rest = name.removeprefix(f"{stem}0.")
            repeated |= {f"{stem}{block}.{rest}": value for block in range(blocks)}
    return repeated


def draw(index: int, width: int, height: int) -> np.ndarray:
    """A film's frame; the second second is inverted, so that its scores differ."""
    return picture(index, width, height) if index < FPS else 255 - picture(index, width, height)


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> Path:
    """The label file of three questions on two videos, beside them."""
    folder = tmp_path_factory.mktemp("clips")
    write_video(folder / "one.mp4", frames=2 * FPS, fps=FPS, draw=draw)
    write_video(folder / "two.mp4", frames=FPS, fps=FPS, size=(64, 96))
    (folder / "labels.json").write_text(json.dumps(ENTRIES))
    return folder / "labels.json"


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    """BLIP base as LAVIS's file and as a folder of the hub, and the tokenizer that LAVIS loads."""
    folder = tmp_path_factory.mktemp("blip")
    hub = folder / "checkpoints/blip-itm-base-coco"
    for tokenizer in (hub, folder / "bert-base-uncased"):
        tokenizer.mkdir(parents=True)
        shutil.copy(bert_vocabulary(), tokenizer)

    config = BertConfig.from_json_file(get_abs_path("configs/models/med_config.json"))
    layers, config.num_hidden_layers = config.num_hidden_layers, 1
    image_encoder = VisionTransformerEncoder(
        img_size=384, patch_size=16, embed_dim=768, depth=1, num_heads=12
    )
    image_encoder.vision_width = 768
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        model = BlipITM(image_encoder, XBertEncoder(config, add_pooling_layer=False))
    randomise(model, gain=1.0)
    state = repeat_first_block(model.state_dict(), "visual_encoder.blocks.", 12)
    state = repeat_first_block(state, "text_encoder.encoder.layer.", layers)

    BlipConfig(  # the other defaults are base
        vision_config={"image_size": 384},
        text_config={"vocab_size": config.vocab_size, "num_attention_heads": 12},
        image_text_hidden_size=256,
    ).save_pretrained(hub)
    torch.save(to_transformers(state), hub / "pytorch_model.bin")
    torch.save({"model": state}, folder / "checkpoints" / BASE_CHECKPOINT)
    names = {"lavis": BASE_CHECKPOINT, "transformers": "Salesforce/blip-itm-base-coco"}
    yield Setup(folder, "blip", {backend: ["--checkpoint", name] for backend, name in names.items()})
    shutil.rmtree(folder)  # hundreds of megabytes


@pytest.fixture(scope="module")
def sevila(tmp_path_factory):
    """SeViLA with ViT-g and otherwise small parts, where the two backends look by themselves."""
    world = tmp_path_factory.mktemp("sevila")
    blocks = VIT_G["num_hidden_layers"]
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {**VIT_G, "num_hidden_layers": 1}.items():
            patch.setitem(VISION, key, value)
        build_world(world)
    folder = world / "parts"
    eva = folder / "torch/hub/checkpoints/eva_vit_g.pth"
    eva.parent.mkdir(parents=True)
    torch.save(repeat_first_block(torch.load(folder / EVA_FILE), "blocks.", blocks), eva)

    base = folder / "checkpoints/blip2-flan-t5-xl"
    shutil.copytree(world / "base", base)
    config = json.loads((base / "config.json").read_text())
    edit_json(base / "config.json", vision_config={**config["vision_config"], "num_hidden_layers": blocks})
    state = repeat_first_block(load_file(base / "model.safetensors"), "vision_model.encoder.layers.", blocks)
    torch.save(state, base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    shutil.copy(world / "sevila_pretrained.pth", folder / "checkpoints")
    yield Setup(folder, "sevila", {"lavis": [], "transformers": []})
    shutil.rmtree(world)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> dict[tuple[str, ...], Path]:
    """Output folders of the runs that tests share, by model, backend and further options."""
    return {}


@pytest.fixture
def extract(run_script, labels, monkeypatch):
    """Run feature_extract.py with a setup, on a CPU; returns the finished process."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(setup: Setup, backend: str, out: Path, *options, fresh: bool = False):
        monkeypatch.setenv("TORCH_HOME", str(setup.folder / "torch"))
        given = ["--backend", backend] if backend != "transformers" else []
        return run_script(
            *("feature_extract.py", "--dataset_name", "custom", "--label_file", labels, "--device", "cpu"),
            *("--extract_feature_model", setup.model, *setup.checkpoint[backend], *given, *options),
            *("--output_file", out),
            cwd=setup.folder,
            fresh=fresh,
            kind="lavis" if backend == "lavis" else "torch",
        )

    return run


@pytest.fixture
def run_of(extract, finished, tmp_path_factory):
    """Output folder of a finished run; runs it at the first use."""

    def make(setup: Setup, backend: str, *options: str) -> Path:
        key = (setup.model, backend, *options)
        if key not in finished:
            out = tmp_path_factory.mktemp("out")
            done = extract(setup, backend, out, *options)
            assert done.returncode == 0, done.stderr
            assert re.search(r"(\d) videos?: \1 scored now, 0 finished before, 0 failed", done.stdout)
            finished[key] = out
        return finished[key]

    return make


def result(out: Path, model: str) -> RunDir:
    return RunDir(out / "custom" / model)


def scores_of(run: RunDir) -> np.ndarray:
    """All five scores of the three questions in a row."""
    scores, _ = read_scores(run.folder / "scores.json", run.folder / "frames.json")
    return np.concatenate(scores)


def record(run: RunDir) -> dict[str, object]:
    return json.loads((run.folder / "run.json").read_text())


def same_frames(runs: list[RunDir]) -> None:
    """All runs have the expected frame indices, and the same files of indices and times to the byte."""
    assert json.loads((runs[0].folder / "frames.json").read_text()) == FRAMES
    for name in ("frames.json", "times.json"):
        assert len({(run.folder / name).read_bytes() for run in runs}) == 1


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """Every file's bytes and modification time."""
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.long  # test_blip_lavis.py compares the scores
def test_blip_gives_the_default_backends_files(blip, run_of):
    runs = [result(run_of(blip, backend, "--blip_head", "itm"), "blip") for backend in blip.checkpoint]
    same_frames(runs)
    scores, expected = map(scores_of, runs)
    assert np.abs(scores[[1, 4]] - scores[[0, 3]]).min() > 1e-3  # the frames of one video do differ
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)
    assert [record(run).get("backend") for run in runs] == ["lavis", None]
    assert [record(run)["blip_head"] for run in runs] == ["itm", "itm"]


@pytest.mark.long  # test_blip_lavis.py compares the scores
def test_blip_gives_the_default_backends_files_with_the_itc_head(blip, labels, run_of):
    """A single frame, decoded without workers, each of which would import LAVIS."""
    short = labels.with_name("short.json")
    short.write_text(json.dumps(ENTRIES[1:2]))
    options = ["--blip_head", "itc", "--label_file", str(short), "--workers", "0"]
    runs = [result(run_of(blip, backend, *options), "blip") for backend in blip.checkpoint]
    np.testing.assert_allclose(*map(scores_of, runs), rtol=0, atol=1e-5)
    assert [record(run)["blip_head"] for run in runs] == ["itc", "itc"]


@pytest.mark.long  # the other scorers' runs share the code
def test_a_second_run_on_lavis_does_no_work(blip, run_of, extract):
    out = run_of(blip, "lavis", "--blip_head", "itm")
    run = result(out, "blip")
    parts, scores = contents(run.parts), (run.folder / "scores.json").read_bytes()
    assert len(parts) == 2
    done = extract(blip, "lavis", out, fresh=True)  # itm is the default
    assert done.returncode == 0, done.stderr
    assert "2 videos: 0 scored now, 2 finished before, 0 failed" in done.stdout
    assert done.stderr == ""  # nor a progress bar
    assert contents(run.parts) == parts
    assert (run.folder / "scores.json").read_bytes() == scores


@pytest.mark.long  # test_blip_lavis.py has the backend in the settings, test_extraction.py their comparison
def test_lavis_does_not_go_on_with_the_default_backends_run(blip, run_of, extract):
    out = run_of(blip, "transformers", "--blip_head", "itm")
    before = contents(out)
    done = extract(blip, "lavis", out)
    check_mistake(done, "run.json: made with other settings (backend None there, 'lavis' now; checkpoint ")
    assert contents(out) == before


@pytest.mark.skipif(
    not os.environ.get("AKS_SLOW_TESTS"),
    reason="two minutes: LAVIS builds ViT-g in full (AKS_SLOW_TESTS)",
)
def test_sevila_gives_the_default_backends_files(sevila, run_of):
    runs = [result(run_of(sevila, backend), "sevila") for backend in sevila.checkpoint]
    same_frames(runs)
    assert_same(*map(scores_of, runs), None)
    # The files cannot be mixed, although the two commands differ in the backend alone.
    for run, other in (runs, runs[::-1]):
        settings = record(other)
        del settings["format"]
        with pytest.raises(UserError, match=r"made with other settings \(backend .*'lavis' .*; base "):
            run.open_or_create(settings)


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("blip", ["--checkpoint", "Salesforce/blip-itm-base-coco"], "/model_large_retrieval_coco.pth to "),
        ("blip", [], "model_large_retrieval_coco.pth: is not LAVIS's BLIP"),
        ("sevila", [], "sevila_pretrained.pth: cannot be read as weights"),
        ("sevila", ["--sevila_base", "base"], "--sevila_base does not go with the sevila scorer (lavis)"),
    ],
)
def test_a_missing_or_wrong_checkpoint_or_option_is_one_line(model, options, words, extract, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    torch.save(tiny_blip().state_dict(), tmp_path / "checkpoints/model_large_retrieval_coco.pth")
    (tmp_path / "checkpoints/sevila_pretrained.pth").write_text("version https://git-lfs.github.com/spec/v1")
    done = extract(Setup(tmp_path, model, {"lavis": []}), "lavis", tmp_path / "out", *options)
    check_mistake(done, words)
    assert not (tmp_path / "out").exists()
