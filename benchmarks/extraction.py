"""Time step 1 from end to end on a real film, beside a plain reading of the released procedure.

    python benchmarks/extraction.py --minutes 2
    python benchmarks/extraction.py --growth

- plain: question by question and frame by frame, as the paper's released extractor works. It opens the video,
  reads ``decord.VideoReader[i]``, preprocesses, encodes a batch of one and scores one question, in float32;
- ours: ``feature_extract.py`` with all its defaults, as a user runs it. The start of Python counts.

Both use the conse scorer on the CPU with the same weights, and must select the same frames. Each runs in a
process of its own, so that its peak memory can be told; that of decoding processes counts. ``--growth``
extracts videos of 10 minutes, 1 hour and 3 hours, which repeat the film: the time must grow with the length,
and memory must not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from aks import errors, select_keyframes
from aks.arguments import ArgumentParser
from aks.cores import count_cores

ROOT = Path(__file__).resolve().parent.parent

QUESTIONS = [
    "What does the big grey rabbit do after it has left its burrow in front of the tree?",
    "Which animal is sitting on the branch when the butterfly appears for the first time?",
    "What colour is the flower that the rabbit smells before the apple falls down?",
]
BUDGET = 16
FILM = ROOT / "demo/work/sources/resources/bbb.mp4"  # as distributed: ten minutes of 720p H.264
GROWTH_MINUTES = (10, 60, 180)


def write_film(source: Path, target: Path, minutes: float) -> float:
    """Copy a film without encoding, again and again, until it is long enough; return its seconds."""
    end_s = 60 * minutes
    with av.open(str(target), "w") as output:
        stream, offset = None, 0
        while True:
            with av.open(str(source)) as film:
                pictures = film.streams.video[0]
                stream = stream or output.add_stream_from_template(pictures)
                last = 0
                for packet in film.demux(pictures):
                    if packet.dts is None:
                        continue
                    length = packet.duration or 0
                    # The copy ends between groups of pictures, so that every frame can be decoded.
                    if packet.is_keyframe and (packet.pts + offset) * pictures.time_base >= end_s:
                        return float((packet.pts + offset) * pictures.time_base)
                    last = max(last, packet.pts + length)
                    packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                    packet.stream = stream
                    output.mux(packet)
            offset += last


def plain(folder: Path, video: Path) -> None:
    """Run the released procedure in this process; write plain.json."""
    import decord
    import torch

    from aks.labels import load_labels
    from aks.scorers.base import load_scorer

    scorer = load_scorer("conse", device="cpu", dtype="float32")
    scores, frames = [], []
    for question in load_labels("custom", label_file=folder / "labels.json").questions:
        reader = decord.VideoReader(str(video), ctx=decord.cpu(0), num_threads=1)
        text = scorer.encode_question(question)
        stride = int(reader.get_avg_fps())
        frame_indices = [index * stride for index in range(len(reader) // stride)]
        row = []
        for index in frame_indices:
            inputs = scorer.preprocess(reader[index].asnumpy())[None]
            row.append(float(scorer.score(scorer.encode_frames(inputs), [text])[0, 0]))
        scores.append(row)
        frames.append(frame_indices)
    (folder / "plain.json").write_text(json.dumps([scores, frames]))
    print(f"{torch.get_num_threads()} threads", file=sys.stderr)


def timed(command: list[object]) -> tuple[float, float]:
    """Run a command; return its wall seconds, and the peak memory in MB of all its processes together.

    Memory is read once a second. Memory that processes share counts once (the kernel's "Pss").
    """
    start, peak = time.perf_counter(), 0.0
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL)
    while True:
        try:
            status = process.wait(1)
            break
        except subprocess.TimeoutExpired:
            peak = max(peak, sum(map(memory_mb, tree(process.pid))))
    if status:
        raise errors.UserError(f"{' '.join(map(str, command))}: exit status {status}")
    return time.perf_counter() - start, peak


def tree(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                found += tree(int(child))
    return found


def memory_mb(pid: int) -> float:
    """A process's share of the memory, in MB; 0 for one that has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def ours(folder: Path, out: Path, more: list[str]) -> tuple[float, float, list, list]:
    """Run ``feature_extract.py``; return seconds, MB, scores and frames."""
    command = [sys.executable, ROOT / "feature_extract.py", "--dataset_name", "custom"]
    command += ["--label_file", folder / "labels.json", "--extract_feature_model", "conse"]
    command += ["--device", "cpu", "--output_file", out, *more]
    seconds, peak = timed(command)
    scores, frames = (
        json.loads((out / f"custom/conse/{name}.json").read_text()) for name in ("scores", "frames")
    )
    return seconds, peak, scores, frames


def write_questions(folder: Path, video: Path, count: int) -> None:
    """Write a label file with the first questions."""
    entries = [{"video": str(video), "question": text} for text in QUESTIONS[:count]]
    (folder / "labels.json").write_text(json.dumps(entries))


def compare(folder: Path, film: Path, minutes: float, more: list[str]) -> list[dict[str, float]]:
    """Measure both procedures with one question and with three.

    Raises:
        UserError: the procedures select different frames.
    """
    video = folder / "film.mp4"
    write_film(film, video, minutes)
    rows = []
    for count in (1, 3):
        write_questions(folder, video, count)
        seconds, peak, scores, frames = ours(folder, folder / f"out {count}", more)
        plain_s, plain_mb = timed([sys.executable, __file__, "--plain", folder, video])
        plain_scores, plain_frames = json.loads((folder / "plain.json").read_text())
        if frames != plain_frames:
            raise errors.UserError("the two procedures have different candidate frames")
        difference = max(np.abs(np.subtract(a, b)).max() for a, b in zip(scores, plain_scores, strict=True))
        for a, b, row in zip(scores, plain_scores, frames, strict=True):
            if select_keyframes(a, row, budget=BUDGET) != select_keyframes(b, row, budget=BUDGET):
                raise errors.UserError(
                    f"the procedures select different frames; scores differ by {difference:g}"
                )
        rows.append(
            {
                "questions": count,
                "frames": len(frames[0]),
                "plain s": plain_s,
                "ours s": seconds,
                "plain / ours": plain_s / seconds,
                "ours frames/s": len(frames[0]) / seconds,
                "plain MB": plain_mb,
                "ours MB": peak,
                "largest difference": float(difference),
            }
        )
    return rows


def grow(folder: Path, film: Path, more: list[str]) -> list[dict[str, float]]:
    """Measure ours on videos of growing length."""
    rows = []
    for minutes in GROWTH_MINUTES:
        video = folder / f"{minutes}.mp4"
        write_film(film, video, minutes)
        write_questions(folder, video, 1)
        seconds, peak, _, frames = ours(folder, folder / f"out {minutes}", more)
        video.unlink()
        count = len(frames[0])
        rows.append(
            {"minutes": minutes, "frames": count, "s": seconds, "s/frame": seconds / count, "MB": peak}
        )
    return rows


def main() -> None:
    """Measure, print a table and write JSON."""
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--video",
        type=Path,
        default=FILM,
        help="(default: the film that the demo fetches)",
    )
    parser.add_argument("--minutes", type=float, default=2, help="length to use (default: 2)")
    parser.add_argument("--growth", action="store_true", help="10 minutes, 1 hour and 3 hours instead")
    parser.add_argument("--workers", help="passed on to feature_extract.py")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    parser.add_argument("--plain", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plain:
        plain(*args.plain)
        return
    if not args.video.is_file():
        raise errors.UserError(
            f"--video {args.video}: file not found; bash demo.sh fetches it, or name another"
        )
    more = ["--workers", args.workers] if args.workers else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = (
            grow(folder, args.video, more) if args.growth else compare(folder, args.video, args.minutes, more)
        )
    print(f"conse on the CPU, {count_cores()} cores")
    print("| " + " | ".join(rows[0]) + " |")
    print("|---" * len(rows[0]) + "|")
    for row in rows:
        print(
            "| "
            + " | ".join(f"{value:.3g}" if value < 100 else f"{value:.0f}" for value in row.values())
            + " |"
        )
    if args.out:
        args.out.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    errors.run_main(main)
