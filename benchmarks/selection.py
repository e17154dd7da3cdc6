"""Measure the seconds that step 2 takes on a score file of LongVideoBench's size.

    python benchmarks/selection.py --repeats 5

Two programs select keyframes from the same generated files, in turns. Each is timed as a process of its own,
from its start to its end: it reads scores.json and frames.json, selects, and writes the frames.

- plain: follows the paper's section 3.3 word by word, one segment after the other, and reads files with json;
- ours: frame_select.py.

Both must write the same frames.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from aks import errors
from aks.arguments import ArgumentParser

ROOT = Path(__file__).resolve().parent.parent

# LongVideoBench's validation set: questions by length of their video, one candidate frame a second.
GROUPS = {(8, 15): 189, (15, 60): 172, (180, 600): 412, (900, 3600): 564}
CANDIDATES = 979_000
T1, MAX_DEPTH = 0.8, 5  # the defaults of both


def generate(folder: Path, seed: int) -> int:
    """Write scores.json and frames.json; return the number of scores.

    Scores are in turn mostly low with spikes, like BLIP's, and drifting, like CLIP's.
    """
    rng = np.random.default_rng(seed)
    seconds = [
        rng.beta(0.8, 3.2 if low == 900 else 0.8, questions) * (high - low) + low
        for (low, high), questions in GROUPS.items()
    ]
    seconds[-1] += (CANDIDATES - sum(map(np.sum, seconds))) / len(seconds[-1])
    scores, frames = [], []
    for index, count in enumerate(rng.permutation(np.concatenate(seconds)).round().astype(int)):
        spikes, drift = rng.random(count) ** 8, 0.25 + 0.003 * np.cumsum(rng.normal(size=count))
        # Models give single precision. As a float in JSON such a score takes up to 17 digits.
        scores.append((drift if index % 2 else spikes).astype(np.float32).tolist())
        frames.append((np.arange(count) * int(rng.choice([24, 25, 29, 30]))).tolist())
    (folder / "scores.json").write_text(json.dumps(scores))
    (folder / "frames.json").write_text(json.dumps(frames))
    return sum(map(len, scores))


def plain(folder: Path, budget: int) -> None:
    """Select as the paper writes it, from scores.json and frames.json; write plain.json."""
    selection = []
    all_scores = json.loads((folder / "scores.json").read_text())
    all_frames = json.loads((folder / "frames.json").read_text())
    for scores, frames in zip(all_scores, all_frames, strict=True):
        if len(scores) < budget:
            selection.append(frames)
            continue
        low, high = min(scores), max(scores)
        segments = [([(score - low) / (high - low) for score in scores], frames, 0)]
        chosen = []
        while segments:
            scores, frames, depth = segments.pop()
            best = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
            difference = np.mean([scores[index] for index in best[:budget]]) - np.mean(scores)
            if difference > T1 or depth == MAX_DEPTH:
                chosen += [frames[index] for index in best[: budget // 2**depth]]
            else:
                half = len(scores) // 2
                segments.append((scores[:half], frames[:half], depth + 1))
                segments.append((scores[half:], frames[half:], depth + 1))
        selection.append(sorted(chosen))
    (folder / "plain.json").write_text(json.dumps(selection))


def seconds(*command: object) -> float:
    """Run a Python process; return its wall time."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *map(str, command)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def measure(folder: Path, budget: int, repeats: int) -> dict[str, list[float]]:
    """Time both programs in turns; return wall times in seconds."""
    ours = [ROOT / "frame_select.py", "--score_path", folder / "scores.json", "--output_file", folder]
    ours += ["--max_num_frames", budget, "--t1", T1, "--all_depth", MAX_DEPTH]
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(repeats):
        times["plain"].append(seconds(__file__, "--plain", folder, "--budget", budget))
        times["ours"].append(seconds(*ours))
    expected = json.loads((folder / "plain.json").read_text())
    if expected != json.loads((folder / "longvideobench/blip/selected_frames.json").read_text()):
        raise errors.UserError("the two programs selected different frames")
    return times


def main() -> None:
    """Measure, print a table and write JSON."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="runs of each program")
    parser.add_argument("--budget", type=int, default=64, help="a multiple of 32, so that no quota is cut")
    parser.add_argument("--seed", type=int, default=0, help="of the generated scores")
    parser.add_argument("--out", type=Path, help="also write the figures to this file")
    parser.add_argument("--plain", type=Path, help=argparse.SUPPRESS)  # runs the plain program
    args = parser.parse_args()
    if args.plain:
        plain(args.plain, args.budget)
        return
    with tempfile.TemporaryDirectory() as name:
        count = generate(Path(name), args.seed)
        times = measure(Path(name), args.budget, args.repeats)
    results = {
        "questions": sum(GROUPS.values()),
        "scores": count,
        "budget": args.budget,
        "repeats": args.repeats,
        **{f"{side}_s": {"least": min(t), "median": statistics.median(t)} for side, t in times.items()},
        "ratio_of_medians": statistics.median(times["plain"]) / statistics.median(times["ours"]),
    }
    print(f"{results['questions']} questions, {count} scores, {args.budget} keyframes each, the same frames")
    print("| program | least, s | median, s |\n|---|---|---|")
    for side, values in times.items():
        print(f"| {side} | {min(values):.2f} | {statistics.median(values):.2f} |")
    print(f"ratio of the medians: {results['ratio_of_medians']:.1f}")
    if args.out:
        args.out.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    errors.run_main(main)
