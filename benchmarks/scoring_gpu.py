"""BLIP-large and SeViLA on a GPU: frames a second, share of the matrix units' ceiling, memory, selections.

    python benchmarks/scoring_gpu.py --models blip sevila --out scoring_gpu.json

The weights are random, in the shapes of the published checkpoints; they load as a user's do. Four parts:

- ceiling: the best rate of large square matrix products, in bfloat16 and float32, on this device;
- encoder: the image encoder alone, in the passes that extraction would use, as frames a second, as
  floating-point operations a second and their share of that ceiling, and peak memory;
- end to end: a film and one question, from the file to scores.json in memory, with decoding processes on
  this machine's cores, in bfloat16, beside the plain procedure (``decord.VideoReader[i]``, one frame at a
  time, float32) on its first frames;
- selections: how many of 64 keyframes bfloat16 and float32 have in common, for questions about the film.

``--device cpu --tiny`` tries it out anywhere, in small shapes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests")]

from extraction import FILM  # noqa: E402
from model_setup import save_blip, tiny_blip  # noqa: E402
from scoring import OPTIONS, QUESTIONS, blip_large, plain, sevila_xl  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from aks import errors, select_keyframes  # noqa: E402
from aks.benchmarks import Question, load_labels  # noqa: E402
from aks.cli import count_cores  # noqa: E402
from aks.extraction import extract  # noqa: E402
from aks.outscores import RunFolder  # noqa: E402
from aks.passes import frames_that_fit  # noqa: E402
from aks.scorers import Scorer, create_scorer  # noqa: E402
from aks.video import Video  # noqa: E402

BUDGET = 64
TYPES = ("float32", "bfloat16")


def blip_tiny(folder: Path) -> dict[str, str]:
    """BLIP in a few thousand weights."""
    return {"checkpoint": str(save_blip(tiny_blip(), folder / "tiny"))}


MODELS: dict[str, Callable[[Path], dict[str, str]]] = {"blip": blip_large, "sevila": sevila_xl}


def seconds(work: Callable[[], object], device: str, repeats: int) -> float:
    """The least time of some runs, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def ceiling(device: str, dtype: torch.dtype, side: int) -> float:
    """Operations a second of a product of two random square matrices."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b, device, 10)


def encoder(scorer: Scorer, frames: int, most: float) -> dict[str, float]:
    """The image encoder in passes of so many frames; ``most`` is the ceiling."""
    device = str(scorer.device)
    blank = scorer.prepare(np.zeros((32, 32, 3), dtype=np.uint8))
    inputs = torch.randn(frames, *blank.shape).to(scorer.device, scorer.dtype)
    counter = FlopCounterMode(display=False)
    with counter:
        scorer.encode_frames(inputs[:1])
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    took = seconds(lambda: scorer.encode_frames(inputs), device, 3)
    rate = counter.get_total_flops() * frames / took
    return {
        "frames a pass": frames,
        "frames/s": frames / took,
        "TFLOP a frame": counter.get_total_flops() / 1e12,
        "TFLOP/s": rate / 1e12,
        "share of ceiling": rate / most,
        "peak GB": torch.cuda.max_memory_allocated() / 1e9 if device != "cpu" else 0.0,
    }


def end_to_end(scorer: Scorer, folder: Path, workers: int) -> tuple[float, list, list]:
    """Seconds of scoring the label file in a folder, its scores and its frames."""
    start = time.perf_counter()
    run = RunFolder(folder / f"out {scorer.dtype}")
    labels = load_labels("custom", label_file=folder / "labels.json")
    summary = extract(labels, scorer, run, workers=workers)
    took = time.perf_counter() - start
    if not summary.complete:
        raise errors.UserError(f"the film cannot be scored: {summary.failures}")
    return took, *(json.loads((run.folder / f"{name}.json").read_text()) for name in ("scores", "frames"))


def measure(name: str, args: argparse.Namespace, folder: Path) -> dict[str, object]:
    """All parts for one model."""
    make = blip_tiny if args.tiny else MODELS[name]
    options = make(folder)
    text = [{"video": str(args.video.absolute()), "question": q} for q in QUESTIONS]
    found: dict[str, object] = {}
    scores = {}
    for dtype in TYPES if name == "blip" else (None,):  # SeViLA's parts have types of their own
        scorer = create_scorer(name, device=args.device, dtype=dtype, **options)
        kind = str(scorer.dtype).removeprefix("torch.")
        frames = frames_that_fit(scorer) if args.device != "cpu" else 4
        row: dict[str, object] = {"encoder": encoder(scorer, frames, args.ceilings[kind])}
        (folder / "labels.json").write_text(json.dumps(text[:1]))
        took, _, candidates = end_to_end(scorer, folder, args.workers)
        row["end to end frames/s"] = len(candidates[0]) / took
        (folder / "labels.json").write_text(json.dumps(text))
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            (Path(fresh) / "labels.json").write_text(json.dumps(text))
            _, scores[kind], candidates = end_to_end(scorer, Path(fresh), args.workers)
        if kind == TYPES[0] or name != "blip":
            with Video(args.video) as video:
                numbers = video.candidates()[: args.plain_frames].tolist()
            question = Question(0, "0", args.video.name, QUESTIONS[0], options_prompt=OPTIONS)
            plain(scorer, args.video, numbers[:1], [question])  # the first call allocates
            start = time.perf_counter()
            plain(scorer, args.video, numbers, [question])
            found["plain frames/s"] = len(numbers) / (time.perf_counter() - start)
        found[kind] = row
        del scorer
    last = found[kind]
    found["end to end / plain"] = last["end to end frames/s"] / found["plain frames/s"]
    if len(scores) == 2:
        selected = [
            [select_keyframes(row, at, budget=BUDGET) for row, at in zip(table, candidates, strict=True)]
            for table in scores.values()
        ]
        shares = [len(set(a) & set(b)) / len(a) for a, b in zip(*selected, strict=True)]
        found["identical selections"] = sum(a == b for a, b in zip(*selected, strict=True)) / len(shares)
        found["keyframes in common"] = float(np.mean(shares))
    return found


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--video", type=Path, default=FILM)
    parser.add_argument("--models", nargs="+", default=["blip"], choices=list(MODELS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--workers", type=int, default=max(1, count_cores() - 1))
    parser.add_argument("--plain_frames", type=int, default=50, help="frames of the plain procedure")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try it out")
    parser.add_argument("--out", type=Path, help="also write the figures there, as JSON")
    args = parser.parse_args()
    if not args.video.is_file():
        raise errors.UserError(
            f"--video {args.video}: file not found; bash demo.sh fetches it, or name another"
        )
    if args.device != "cpu" and not torch.cuda.is_available():
        raise errors.UserError("--device cuda: no GPU here; --device cpu --tiny tries the benchmark out")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    side = 512 if args.device == "cpu" else 8192
    args.ceilings = {name: ceiling(args.device, getattr(torch, name), side) for name in TYPES}
    results: dict[str, object] = {
        "device": "cpu" if args.device == "cpu" else torch.cuda.get_device_name(),
        "ceiling TFLOP/s": {name: rate / 1e12 for name, rate in args.ceilings.items()},
    }
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measure(name, args, Path(folder))
    print(json.dumps(results, indent=2))
    if args.out:
        args.out.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    errors.run(main)
