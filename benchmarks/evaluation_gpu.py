"""Measure seconds a question and peak memory of the evaluated models' published shapes, in lmms-eval.

    python benchmarks/evaluation_gpu.py --models llava_vid qwen2_vl --video demo/work/film.mp4
    python benchmarks/evaluation_gpu.py --models llava_onevision --video short.mp4 --device cpu --tiny

The weights are random, in the published shapes: the answers mean nothing, but the work is the same. All else
is real: lmms-eval's evaluator and model class, the processors, the plug-in's reader, the paper's number of
frames. An answer has two tokens, as a letter and its end have. One run measures uniform frames and keyframes.
A model of 7B needs a GPU with 24 GB, and 17 GB of disk; --device cpu --tiny tries the script out anywhere.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/support"))
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["FORCE_QWENVL_VIDEO_READER"] = "decord"

import internvl_setup
import llava_setup
import qwen_setup
import torch
from evaluation_setup import write_labels

from aks import errors
from aks.arguments import ArgumentParser
from aks.video.reader import Video
from evaluation.llava_on_transformers.config import TOWER_CONFIG
from evaluation.models import AVAILABLE_MODELS
from evaluation.run import MODELS as SPECS

ANSWER_TOKENS = 2
# The sizes in the published checkpoints' config.json.
QWEN2 = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
QWEN3 = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
TOKENS = 151647  # of LLaVA's tokenizer; its vocabulary is cut to them
MROPE = {"type": "mrope", "rope_type": "default", "mrope_section": [16, 24, 24]}
VISION = {
    "qwen2_vl": {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16, "mlp_ratio": 4},
    "qwen2_5_vl": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
    "qwen3_vl": {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "out_hidden_size": 4096,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [8, 16, 24],
    },
    "internvl3_5": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
}


def write_llava(folder: Path, device: str, tiny: bool, newline: str) -> None:
    """Write a LLaVA whose features of a frame end in such newlines."""
    sizes = {**QWEN2, "vision_config": TOWER_CONFIG, "mm_hidden_size": TOWER_CONFIG["hidden_size"]}
    entries = {"mm_newline_position": newline, **({} if tiny else sizes)}
    llava_setup.write_checkpoint(folder, None, device, 0 if tiny else TOKENS, **entries)


def write_qwen(folder: Path, device: str, tiny: bool, qwen: qwen_setup.Qwen, text: dict[str, Any]) -> None:
    """Write one of Qwen's video models."""
    sizes = {} if tiny else {"text": text, "vision": VISION[qwen.name], "dtype": torch.bfloat16}
    qwen_setup.write_checkpoint(folder, qwen, device=device, **sizes)


def write_internvl(folder: Path, device: str, tiny: bool) -> None:
    """Write an InternVL3.5."""
    sizes = {"text": QWEN3, "vision": VISION["internvl3_5"], "frame_size": 448, "dtype": torch.bfloat16}
    internvl_setup.write_checkpoint(folder, device=device, **({} if tiny else sizes))


QWEN3_ROPE = {"rope_type": "default", "mrope_section": [24, 20, 20]}
WRITE: dict[str, Callable[[Path, str, bool], None]] = {
    "llava_vid": partial(write_llava, newline="grid"),
    "llava_onevision": partial(write_llava, newline="one_token"),
    "qwen2_vl": partial(write_qwen, qwen=qwen_setup.QWEN2, text={**QWEN2, "rope_scaling": MROPE}),
    "qwen2_5_vl": partial(write_qwen, qwen=qwen_setup.QWEN2_5, text={**QWEN2, "rope_scaling": MROPE}),
    "qwen3_vl": partial(write_qwen, qwen=qwen_setup.QWEN3, text={**QWEN3, "rope_scaling": QWEN3_ROPE}),
    "internvl3_5": write_internvl,
}


def main() -> None:
    """Evaluate random checkpoints on uniform frames and on keyframes; print and write the figures."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--models", nargs="+", default=["llava_vid"], choices=list(WRITE))
    parser.add_argument("--video", type=Path, default=Path("demo/work/film.mp4"))
    parser.add_argument("--questions", type=int, default=4, help="of which the first does not count")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="use small shapes, to try the script out")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file after every model")
    args = parser.parse_args()
    if not args.video.is_file():
        raise errors.UserError(
            f"--video {args.video}: file not found; bash demo.sh makes one, or name another"
        )
    machine = torch.cuda.get_device_name() if args.device != "cpu" else "CPU"
    figures: dict[str, Any] = {"machine": machine, "torch": torch.__version__, "tiny": args.tiny}
    for name in args.models:
        figures[name] = runs = {}
        with tempfile.TemporaryDirectory() as folder:
            for frames, row in measure(name, args, Path(folder)):
                runs[frames] = row
                print(
                    f"{name:15} {frames:10} {row['seconds_a_question']:7.2f} s a question, the model's "
                    f"{row['seconds_generating']:.2f} among them, {row['prompt_tokens']:6} tokens in the "
                    f"prompt, peak {row['peak_gib']:.1f} GiB",
                    flush=True,
                )
        if args.out:
            args.out.write_text(json.dumps(figures, indent=1))


def measure(name: str, args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Evaluate twice with one set of weights, and yield the figures of each run.

    The first question of a run warms up and does not count.
    """
    WRITE[name](folder / "checkpoint", args.device, args.tiny)
    spec = SPECS[name]
    with Video(args.video) as video:
        candidates = video.candidates()
        keyframes = candidates[:: max(1, len(candidates) // spec.max_frames)][: spec.max_frames].tolist()
    entries = [
        {
            "video": str(args.video.resolve()),
            "question": f"What is shown in part {index}?",
            "options": ["a rabbit", "a rocket"],
            "answer": 0,
            "frame_idx": keyframes,
        }
        for index in range(args.questions)
    ]
    os.environ["AKS_CUSTOM_LABELS"] = str(write_labels(folder / "labels.json", entries))
    for frames, use_topk in (("uniform", False), ("keyframes", True)):
        # Libraries may hold on to an earlier model.
        held = torch.cuda.memory_allocated() if args.device != "cpu" else 0
        model = create(name, folder / "checkpoint", args.device, f"use_topk={use_topk}")
        times, generating, tokens = record_answers(model)
        if args.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        qwen_setup.evaluate(model, name, "custom_aks")
        peak = torch.cuda.max_memory_allocated() - held if args.device != "cpu" else float("nan")
        row = {
            "seconds_a_question": (times[-1] - times[0]) / (len(times) - 1),
            "seconds_generating": sum(generating[1:]) / (len(generating) - 1),
            "prompt_tokens": max(tokens),
            "peak_gib": peak / 2**30,
        }
        del model
        gc.collect()  # the model is part of a cycle, and would count as memory of the next one
        if args.device != "cpu":
            torch.cuda.empty_cache()
        yield frames, row


def create(name: str, checkpoint: Path, device: str, *arguments: str) -> Any:
    """The plug-in's model with the arguments that evaluation/run.py gives it."""
    spec = SPECS[name]
    kind = getattr(importlib.import_module(f"evaluation.{name}"), AVAILABLE_MODELS[name])
    given = dict(
        text.split("=") for text in (*spec.model_args, *(spec.cpu_model_args if device == "cpu" else ()))
    )
    given |= {"device_map": device} if "llava" not in name and device != "cpu" else {}
    given |= {"pretrained": str(checkpoint), spec.frames_argument: str(spec.max_frames)}
    text = ",".join([*(f"{key}={value}" for key, value in given.items()), *arguments])
    return kind.create_from_arg_string(text, {"batch_size": "1", "device": device})


def record_answers(model: Any) -> tuple[list[float], list[float], list[int]]:
    """Return lists that receive every answer's time, its seconds of generating, and lengths of prompts."""
    times: list[float] = []
    generating: list[float] = []
    tokens: list[int] = []
    generate = model.model.generate

    def record(*inputs: Any, **options: Any) -> torch.Tensor:
        start = time.perf_counter()
        # Random weights hardly end an answer.
        options |= {"max_new_tokens": ANSWER_TOKENS, "min_new_tokens": ANSWER_TOKENS}
        answer = generate(*inputs, **options)
        if answer.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter())
        generating.append(times[-1] - start)
        return answer

    model.model.generate = record
    layer = next(part for part in model.model.modules() if type(part).__name__.endswith("DecoderLayer"))
    layer.register_forward_pre_hook(
        lambda _, inputs, named: tokens.append((inputs or (named["hidden_states"],))[0].shape[1]),
        with_kwargs=True,
    )
    return times, generating, tokens


if __name__ == "__main__":
    errors.run_main(main)
