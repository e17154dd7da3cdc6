"""Seconds that step 2 takes on a score file of LongVideoBench's size.

    python benchmarks/selection.py --repeats 5

Two programs select keyframes from the same generated files, by turns. Each is timed as a process of its
own, from its start to its end: reading scores.json and frames.json, selecting, writing the frames.

- plain: the paper's section 3.3 word by word, one segment after the other, files by json;
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

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from aks import errors  # noqa: E402

# LongVideoBench's validation set: questions by length of their video, one candidate frame a second.
GROUPS = {(8, 15): 189, (15, 60): 172, (180, 600): 412, (900, 3600): 564}
CANDIDATES = 979_000
T1, MAX_DEPTH = 0.8, 5  # the defaults of both


def generate(folder: Path, seed: int) -> int:
    """scores.json and frames.json: by turns mostly low with spikes, as BLIP's, and drifting, as CLIP's.

    Returns:
        The number of scores.
    """
    rng = np.random.default_rng(seed)
    seconds = [
        rng.beta(0.8, 3.2 if low == 900 else 0.8, questions) * (high - low) + low
        for (low, high), questions in GROUPS.items()
    ]
    seconds[-1] += (CANDIDATES - sum(map(np.sum, seconds))) / len(seconds[-1])
    scores, frames = [], []
    for at, count in enumerate(rng.permutation(np.concatenate(seconds)).round().astype(int)):
        spikes, drift = rng.random(count) ** 8, 0.25 + 0.003 * np.cumsum(rng.normal(size=count))
        # Models give single precision, which takes up to 17 digits as JSON.
        scores.append((drift if at % 2 else spikes).astype(np.float32).tolist())
        frames.append((np.arange(count) * int(rng.choice([24, 25, 29, 30]))).tolist())
    (folder / "scores.json").write_text(json.dumps(scores))
    (folder / "frames.json").write_text(json.dumps(frames))
    return sum(map(len, scores))


def plain(folder: Path, budget: int) -> None:
    """The procedure as the paper writes it: scores.json and frames.json to plain.json."""
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
            difference = np.mean([scores[at] for at in best[:budget]]) - np.mean(scores)
            if difference > T1 or depth == MAX_DEPTH:
                chosen += [frames[at] for at in best[: budget // 2**depth]]
            else:
                half = len(scores) // 2
                segments.append((scores[:half], frames[:half], depth + 1))
                segments.append((scores[half:], frames[half:], depth + 1))
        selection.append(sorted(chosen))
    (folder / "plain.json").write_text(json.dumps(selection))


def seconds(*command: object) -> float:
    """Wall time of a Python process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *map(str, command)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def measure(folder: Path, budget: int, repeats: int) -> dict[str, list[float]]:
    """Wall times in seconds of both programs, by turns."""
    ours = [ROOT / "frame_select.py", "--score_path", folder / "scores.json", "--output_file", folder]
    ours += ["--max_num_frames", budget, "--t1", T1, "--all_depth", MAX_DEPTH]
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(repeats):
        times["plain"].append(seconds(__file__, "--plain", folder, "--budget", budget))
        times["ours"].append(seconds(*ours))
    theirs = json.loads((folder / "plain.json").read_text())
    if theirs != json.loads((folder / "longvideobench/blip/selected_frames.json").read_text()):
        raise errors.UserError("the two programs selected different frames")
    return times


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--repeats", type=int, default=5, help="runs of each program")
    parser.add_argument("--budget", type=int, default=64, help="a multiple of 32, so that no quota is cut")
    parser.add_argument("--seed", type=int, default=0, help="of the generated scores")
    parser.add_argument("--out", type=Path, help="also write the figures there")
    parser.add_argument("--plain", type=Path, help=argparse.SUPPRESS)  # this script is the plain program, too
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
