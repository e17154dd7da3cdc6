"""Measure the scorers on a GPU: frames a second, share of the ceiling, memory, precision.

    python benchmarks/scoring_gpu.py --models blip sevila --out scoring_gpu.json

The weights are random, in the shapes of the published checkpoints, and load as a user's do. The parts are:

- encoder: the image encoder alone, in the passes that extraction would use. It reports frames a second,
  floating-point operations a second, their share of the best rate of large square matrix products (the
  ceiling), and peak memory;
- end_to_end: several videos, from the files to scores.json, with decoding processes on this machine's cores,
  in bfloat16 (SeViLA: its own mix), with one question a video and with three. The plain procedure runs beside
  it on the first frames of one video: ``decord.VideoReader[i]``, one frame at a time, question by question,
  in float32. The decoding processes without a model, and the model without decoding, show which of the two
  limits the rate;
- precision (all but SeViLA): keyframes that bfloat16 and float32 have in common, and the largest difference
  between the float32 scores of the GPU and of the CPU.

The videos are copies of one film, repeated without encoding to ``--minutes``; ``precision`` reads the film
itself. ``--device cpu --tiny --videos 1 --minutes 0.1`` tries the script out anywhere, in small shapes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/support"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from extraction import FILM, write_film
from model_setup import save_blip, save_tiny_clip, save_tiny_siglip, tiny_blip
from scoring import MODELS, OPTIONS, QUESTIONS, plain, sevila_xl
from torch.utils.flop_counter import FlopCounterMode

from aks import errors, select_keyframes
from aks.arguments import ArgumentParser
from aks.cores import count_cores
from aks.extraction.api import extract
from aks.extraction.batching import max_batch_size
from aks.extraction.config import BATCH_FRAMES, DecodeConfig
from aks.extraction.decoding import DecodeSpec, FrameBatch
from aks.extraction.workers import WorkerPool
from aks.extraction.writers import ScoreTable
from aks.labels import Question, VideoJob, load_labels
from aks.run_dir import RunDir
from aks.scorers.base import Scorer, load_scorer
from aks.video.reader import Video

Figures = dict[str, object]
PASSES = 8  # through the model without decoding
MORE_QUESTIONS = [f"{text[:-1]} in scene {part}?" for part in range(1, 6) for text in QUESTIONS]


def blip_tiny(folder: Path, device: str) -> dict[str, str]:
    """Write a BLIP of two small layers."""
    return {"checkpoint": str(save_blip(tiny_blip(), folder))}


def sevila_tiny(folder: Path, device: str) -> dict[str, str]:
    """Write a SeViLA with a small vision tower and a small T5."""
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    t5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    return sevila_xl(folder, device, vision, t5)


TINY: dict[str, Callable[[Path, str], dict[str, str]]] = {
    "blip": blip_tiny,
    "clip": lambda folder, device: {"checkpoint": str(save_tiny_clip(folder))},
    "siglip": lambda folder, device: {"checkpoint": str(save_tiny_siglip(folder))},
    "sevila": sevila_tiny,
}


def seconds(work: Callable[[], object], device: str, repeats: int) -> float:
    """Median time of some runs, after two that warm up."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return float(np.median(times[2:]))


def ceiling(device: str, dtype: torch.dtype, side: int) -> float:
    """Operations a second of the product of two random square matrices."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b, device, 10)


def measure_encoder(scorer: Scorer, ceilings: dict[str, float]) -> Figures:
    """Measure the image encoder in the largest passes that fit, and with one frame at a time."""
    device = scorer.device.type
    count = max_batch_size(scorer) if device != "cpu" else 4
    blank = scorer.preprocess(np.zeros((32, 32, 3), dtype=np.uint8))
    inputs = torch.randn(count, *blank.shape).to(scorer.device, scorer.dtype)
    counter = FlopCounterMode(display=False)
    with counter:
        scorer.encode_frames(inputs[:1])
    flops = counter.get_total_flops()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    took = seconds(lambda: scorer.encode_frames(inputs), device, 5)
    peak = torch.cuda.max_memory_allocated() / 1e9 if device != "cpu" else 0.0
    alone = seconds(lambda: scorer.encode_frames(inputs[:1]), device, 5)
    # The vision tower does nearly all the work; SeViLA's is float16, whose rate is bfloat16's.
    kind = "float32" if scorer.dtype == torch.float32 else "bfloat16"
    return {
        "frames a pass": count,
        "frames/s": count / took,
        "frames/s one at a time": 1 / alone,
        "TFLOP a frame": flops / 1e12,
        "TFLOP/s": flops * count / took / 1e12,
        "share of ceiling": flops * count / took / ceilings[kind],
        "peak GB": peak,
    }


def run_extraction(scorer: Scorer, videos: list[Path], questions: int, workers: int) -> tuple[float, int]:
    """Score so many questions a video; return the seconds and the number of frames."""
    with tempfile.TemporaryDirectory(dir=videos[0].parent) as name:
        folder = Path(name)
        write_labels(folder, videos, QUESTIONS[:questions])
        start = time.perf_counter()
        _, frames = scores_of(scorer, folder, workers)
        took = time.perf_counter() - start
    return took, sum(len(row) for row in frames[::questions])


def write_labels(folder: Path, videos: list[Path], questions: list[str]) -> None:
    """Write a label file that asks all questions about every video."""
    entries = [
        {"video": str(video), "question": question, "options": OPTIONS.split(". ")[:2], "answer": 0}
        for video in videos
        for question in questions
    ]
    (folder / "labels.json").write_text(json.dumps(entries))


def scores_of(scorer: Scorer, folder: Path, workers: int) -> tuple[list, list]:
    """Extract; return scores and frame indices of every question of ``labels.json``."""
    run = RunDir(folder / "out")
    labels = load_labels("custom", label_file=folder / "labels.json")
    summary = extract(labels, scorer, run, workers=workers)
    if not summary.complete:
        raise errors.UserError(f"the film cannot be scored: {summary.failures}")
    scores, frames = (json.loads((run.folder / f"{name}.json").read_text()) for name in ("scores", "frames"))
    return scores, frames


def read_alone(scorer: Scorer, videos: list[Path], workers: int) -> float:
    """Frames a second of the decoding processes without a model."""
    jobs = [VideoJob(str(video), video) for video in videos]
    start, count = time.perf_counter(), 0
    with WorkerPool(DecodeSpec(scorer.preprocessor, "auto", BATCH_FRAMES, "skip"), workers) as pool:
        for _, event in pool.run(iter(jobs)):
            if isinstance(event, FrameBatch):
                count += len(event.frame_indices)
    return count / (time.perf_counter() - start)


def model_alone(scorer: Scorer, questions: int, frames_together: int | None = None) -> float:
    """Frames a second of encoding and scoring, when frames are always at hand.

    They are scored ``frames_together``; None: as in a run.
    """
    config = DecodeConfig.for_scorer(scorer)
    batch_size, together = config.encode_batch_size, frames_together or config.frames_together
    blank = scorer.preprocessor(np.zeros((32, 32, 3), dtype=np.uint8))
    inputs = np.random.default_rng(0).standard_normal((BATCH_FRAMES, *blank.shape), dtype=np.float32)
    indices = np.arange(BATCH_FRAMES)
    batches = PASSES * batch_size // BATCH_FRAMES
    job = VideoJob("", Path())
    frames = ((job, FrameBatch(i * BATCH_FRAMES, indices, indices / 1, inputs)) for i in range(batches))
    texts = [Question(0, "0", "", text) for text in QUESTIONS[:questions]]
    table = ScoreTable(scorer, texts, batches * BATCH_FRAMES, together)

    start = time.perf_counter()
    for _, batch in config.make_encoder(scorer).encode(frames):
        table.add(batch)
    table.result()
    return batches * BATCH_FRAMES / (time.perf_counter() - start)


def measure_end_to_end(scorer: Scorer, original: Scorer, args: argparse.Namespace, folder: Path) -> Figures:
    """Measure ours beside the plain procedure; ``original`` has the types of the scorer's original."""
    first = folder / "0.mp4"
    write_film(args.video, first, args.minutes)
    videos = [first, *(folder / f"{index}.mp4" for index in range(1, args.videos))]
    for video in videos[1:]:
        shutil.copyfile(first, video)
    found: Figures = {"workers": args.workers, "videos": args.videos}
    run_extraction(scorer, videos[:1], 1, args.workers)  # the files get into memory, and kernels are chosen
    found["decoding alone, frames/s"] = read_alone(scorer, videos, args.workers)
    found["by one process, frames/s"] = read_alone(scorer, [args.video], 1)
    with Video(first) as video:
        frame_indices = video.candidates()[: args.plain_frames].tolist()
    questions = [Question(i, str(i), "", text, options_prompt=OPTIONS) for i, text in enumerate(QUESTIONS)]
    plain(original, first, frame_indices[:1], questions[:1])  # the first call allocates
    for count in (1, 3):
        took, frames = run_extraction(scorer, videos, count, args.workers)
        start = time.perf_counter()
        plain(original, first, frame_indices, questions[:count])
        plain_took = time.perf_counter() - start
        ours_rate, plain_rate = frames / took, len(frame_indices) / plain_took
        found[f"questions: {count}"] = {
            "frames": frames,
            "ours s": took,
            "ours frames/s": ours_rate,
            "model alone, frames/s": model_alone(scorer, count),
            "the same, scored 16 at a time": model_alone(scorer, count, BATCH_FRAMES),
            "plain frames/s": plain_rate,
            "ours / plain": ours_rate / plain_rate,
        }
    return found


def measure_precision(name: str, options: dict[str, str], args: argparse.Namespace, folder: Path) -> Figures:
    """Compare a scorer in bfloat16, and on the CPU, with float32 on the GPU, on the film itself."""
    write_labels(folder, [args.video.absolute()], MORE_QUESTIONS)
    tables, frames = {}, []
    for dtype in ("float32", "bfloat16"):
        scorer = load_scorer(name, device=args.device, dtype=dtype, **options)
        shutil.rmtree(folder / "out", ignore_errors=True)
        scores, frames = scores_of(scorer, folder, args.workers)
        tables[dtype] = np.array(scores)
        del scorer
    exact, half = tables["float32"], tables["bfloat16"]
    found: Figures = {
        "frames": exact.shape[1],
        "questions": len(exact),
        "mean standard deviation of a question's scores": float(exact.std(axis=1).mean()),
        "largest difference, bfloat16": float(np.abs(exact - half).max()),
        "mean difference, bfloat16": float(np.abs(exact - half).mean()),
    }
    for budget in (8, 32, 64):
        pairs = [
            [select_keyframes(table[row].tolist(), frames[row], budget=budget) for table in (exact, half)]
            for row in range(len(exact))
        ]
        found[f"{budget} keyframes"] = {
            "identical selections": sum(a == b for a, b in pairs) / len(pairs),
            "in common": float(np.mean([len(set(a) & set(b)) / len(a) for a, b in pairs])),
            "in common by chance": min(1.0, budget / exact.shape[1]),
        }
    with Video(args.video) as video:
        frame_indices = video.candidates()[:: max(1, exact.shape[1] // args.cpu_frames)][: args.cpu_frames]
        pixels = np.concatenate([batch.pixels for batch in video.read(frame_indices)])
    there, here = (scores_at_once(name, device, pixels, options) for device in (args.device, "cpu"))
    found["frames on the CPU"] = len(pixels)
    found["largest difference, GPU and CPU in float32"] = float(np.abs(there - here).max())
    return found


def scores_at_once(name: str, device: str, pixels: np.ndarray, options: dict[str, str]) -> np.ndarray:
    """Score some frames in float32; return scores (questions, frames)."""
    scorer = load_scorer(name, device=device, dtype="float32", **options)
    texts = [scorer.encode_question(Question(0, "0", "", text)) for text in MORE_QUESTIONS]
    inputs = torch.stack([scorer.preprocess(frame) for frame in pixels])
    return scorer.score(scorer.encode_frames(inputs), texts)


def measure(name: str, args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Figures]]:
    """Measure the parts for one model; yield each as it is finished."""
    options = (TINY if args.tiny else MODELS)[name](folder / name, args.device)
    half = "bfloat16" if name != "sevila" else None  # SeViLA's parts have types of their own
    scorer = load_scorer(name, device=args.device, dtype=half, **options)
    if "encoder" in args.parts:
        yield "encoder", measure_encoder(scorer, args.ceilings)
    if "end_to_end" in args.parts or (half and "encoder" in args.parts):
        original = load_scorer(name, device=args.device, **options) if half else scorer
        if half and "encoder" in args.parts:
            yield "encoder in float32", measure_encoder(original, args.ceilings)
        if "end_to_end" in args.parts:
            yield "end to end", measure_end_to_end(scorer, original, args, folder)
        del original
    del scorer
    if "precision" in args.parts and half:
        yield "precision", measure_precision(name, options, args, folder)


def main() -> None:
    """Measure, print and write JSON."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--video", type=Path, default=FILM)
    parser.add_argument("--videos", type=int, default=16, help="copies of the film to score (default: 16)")
    parser.add_argument("--minutes", type=float, default=10, help="length of each (default: 10)")
    parser.add_argument("--models", nargs="+", default=["blip"], choices=list(TINY))
    parts = ["encoder", "end_to_end", "precision"]
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts, help="(default: all)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--workers", type=int, default=max(1, count_cores() - 1))
    parser.add_argument("--plain_frames", type=int, default=50, help="frames of the plain procedure")
    parser.add_argument("--cpu_frames", type=int, default=16, help="frames to compare with the CPU")
    parser.add_argument("--tiny", action="store_true", help="use small shapes, to try the script out")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file after every part")
    args = parser.parse_args()
    if not args.video.is_file():
        raise errors.UserError(
            f"--video {args.video}: file not found; bash demo.sh fetches it, or name another"
        )
    if args.device != "cpu" and not torch.cuda.is_available():
        raise errors.UserError("--device cuda: no GPU here; --device cpu --tiny tries the benchmark out")
    side = 512 if args.device == "cpu" else 8192
    args.ceilings = {
        name: ceiling(args.device, getattr(torch, name), side) for name in ("float32", "bfloat16")
    }
    results: dict[str, object] = {
        "device": "cpu" if args.device == "cpu" else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "ceiling TFLOP/s": {name: rate / 1e12 for name, rate in args.ceilings.items()},
    }
    for name in args.models:
        results[name] = figures = {}
        with tempfile.TemporaryDirectory() as folder:
            for part, found in measure(name, args, Path(folder)):
                figures[part] = found
                print(f"{name} {part}: {json.dumps(found, indent=1)}", flush=True)
                if args.out:
                    args.out.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    errors.run_main(main)
