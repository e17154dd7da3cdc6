"""Measure seconds a question and peak memory of a Qwen2-VL of 7B shape on 32 keyframes, in lmms-eval.

    python benchmarks/evaluation_gpu.py --video demo/work/film.mp4 --out evaluation_gpu.json

The weights are random, in Qwen2-VL-7B's published shape and bfloat16: the answers mean nothing, but the work
is the same. All else is real: lmms-eval's evaluator and model class, qwen-vl-utils, the plug-in's reader. One
run measures uniform frames and keyframes. It needs a GPU with 24 GB, and 17 GB of disk; --layers 1 --device
cpu with a short --video tries it out anywhere.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/support"))
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["FORCE_QWENVL_VIDEO_READER"] = "decord"

import torch
import transformers
from evaluation_setup import write_labels
from qwen_setup import CHAT_TEMPLATE, QWEN2, TOKENS, VISION_TOKENS, evaluate, write_tokenizer

from aks import errors
from aks.arguments import ArgumentParser
from aks.video.reader import Video

FRAMES = 32
# Qwen/Qwen2-VL-7B-Instruct's config.json.
TEXT = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [16, 24, 24]},
}
VISION = {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16, "mlp_ratio": 4}


def main() -> None:
    """Evaluate a random checkpoint on uniform frames and on keyframes; print and write the figures."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--video", default="demo/work/film.mp4")
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--layers", type=int, help="fewer layers than published, to try the script out")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", help="also write the figures to this JSON file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(args, Path(folder))
    for name, row in figures["runs"].items():
        print(
            f"{name:10} {row['seconds_a_question']:7.2f} s a question, of which the model "
            f"{row['seconds_generating']:.2f}, {row['visual_tokens']:6} visual tokens, "
            f"peak {row['peak_gib']:.1f} GiB"
        )
    if args.out:
        Path(args.out).write_text(json.dumps(figures, indent=1))


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Evaluate twice with one set of weights. The first question of each run warms up and does not count."""
    write_checkpoint(folder / "checkpoint", args.layers, args.device)
    with Video(args.video) as video:
        candidates = video.candidates()
        keyframes = candidates[:: max(1, len(candidates) // FRAMES)][:FRAMES].tolist()
    entries = [
        {
            "video": str(Path(args.video).resolve()),
            "question": f"What is shown in part {index}?",
            "options": ["a rabbit", "a rocket"],
            "answer": 0,
            "frame_idx": keyframes,
        }
        for index in range(args.questions)
    ]
    os.environ["AKS_CUSTOM_LABELS"] = str(write_labels(folder / "labels.json", entries))
    runs = {}
    for name, use_topk in (("uniform", False), ("keyframes", True)):
        model = QWEN2.kind().create_from_arg_string(
            f"pretrained={folder / 'checkpoint'},device_map={args.device},max_num_frames={FRAMES},"
            f"use_topk={use_topk}",
            {"batch_size": "1", "device": args.device},
        )
        times, generating, tokens = record_answers(model)
        if args.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        evaluate(model, "qwen2_vl", "custom_aks")
        peak = torch.cuda.max_memory_allocated() / 2**30 if args.device != "cpu" else float("nan")
        runs[name] = {
            "seconds_a_question": (times[-1] - times[0]) / (len(times) - 1),
            "seconds_generating": sum(generating[1:]) / (len(generating) - 1),
            "visual_tokens": tokens[-1],
            "peak_gib": peak,
        }
        del model
        gc.collect()  # the model is part of a cycle, and would count as memory of the next one
    machine = torch.cuda.get_device_name() if args.device != "cpu" else "CPU"
    return {"machine": machine, "layers": args.layers or TEXT["num_hidden_layers"], "runs": runs}


def record_answers(model: Any) -> tuple[list[float], list[float], list[int]]:
    """Return lists that receive every answer's time, its seconds of generating and its visual tokens."""
    times: list[float] = []
    generating: list[float] = []
    tokens: list[int] = []
    generate = model.model.generate

    def record(**inputs: Any) -> torch.Tensor:
        start = time.perf_counter()
        answer = generate(**inputs)
        if answer.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter())
        generating.append(times[-1] - start)
        tokens.append(int((inputs["input_ids"] == VISION_TOKENS["video_token_id"]).sum()))
        return answer

    model.model.generate = record
    return times, generating, tokens


def write_checkpoint(folder: Path, layers: int | None, device: str) -> None:
    """Write random weights in the published shape, and a tokenizer of single bytes."""
    folder.mkdir()
    write_tokenizer(folder)
    text = {**TEXT, **({"num_hidden_layers": layers} if layers else {})}
    vision = {**VISION, **({"depth": layers} if layers else {})}
    config = transformers.Qwen2VLConfig(**text, **TOKENS, **VISION_TOKENS, vision_config=vision)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = transformers.Qwen2VLForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    transformers.Qwen2VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(),
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)


if __name__ == "__main__":
    errors.run_main(main)
