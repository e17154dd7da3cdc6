"""Step 1 from end to end on a real film, beside a plain reading of the released procedure.

    python benchmarks/extraction.py --minutes 2
    python benchmarks/extraction.py --growth

- plain: question by question and frame by frame, as the paper's released extractor works: open the
  video, ``decord.VideoReader[i]``, prepare, encode a batch of one, score one question, in float32;
- ours: ``feature_extract.py`` with all its defaults, as a user runs it, the start of Python included.

Both use the conse scorer on the CPU with the same weights, and must select the same frames. Each runs
in a process of its own, so that peak memory is its own, decoding processes included. ``--growth``
extracts videos of 10 minutes, 1 hour and 3 hours, the film repeated: seconds must grow with the
length, memory must not.
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

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from aks import errors, select_keyframes  # noqa: E402
from aks.cores import count_cores  # noqa: E402

QUESTIONS = [
    "What does the big grey rabbit do after it has left its burrow in front of the tree?",
    "Which animal is sitting on the branch when the butterfly appears for the first time?",
    "What colour is the flower that the rabbit smells before the apple falls down?",
]
BUDGET = 16
FILM = ROOT / "demo/work/sources/resources/bbb.mp4"  # as distributed: ten minutes of 720p H.264
GROWTH_MINUTES = (10, 60, 180)


def write_film(source: Path, target: Path, minutes: float) -> float:
    """Copy a film, without encoding, over and over until the length is reached; its seconds."""
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
                    # Whole groups of pictures only: what follows a key frame needs all of it.
                    if packet.is_keyframe and (packet.pts + offset) * pictures.time_base >= end_s:
                        return float((packet.pts + offset) * pictures.time_base)
                    last = max(last, packet.pts + length)
                    packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                    packet.stream = stream
                    output.mux(packet)
            offset += last


def plain(folder: Path, video: Path) -> None:
    """The released procedure, in this process; writes plain.json."""
    import decord
    import torch

    from aks.labels import load_labels
    from aks.scorers.base import load_scorer

    scorer = load_scorer("conse", device="cpu", dtype="float32")
    scores, frames = [], []
    for question in load_labels("custom", label_file=folder / "labels.json").questions:
        reader = decord.VideoReader(str(video), ctx=decord.cpu(0), num_threads=1)
        text = scorer.encode_question(question)
        numbers = [at * int(reader.get_avg_fps()) for at in range(len(reader) // int(reader.get_avg_fps()))]
        row = []
        for number in numbers:
            inputs = scorer.preprocess(reader[number].asnumpy())[None]
            row.append(float(scorer.score(scorer.encode_frames(inputs), [text])[0, 0]))
        scores.append(row)
        frames.append(numbers)
    (folder / "plain.json").write_text(json.dumps([scores, frames]))
    print(f"{torch.get_num_threads()} threads", file=sys.stderr)


def timed(command: list[object]) -> tuple[float, float]:
    """Run a command; wall seconds, and peak memory in MB of it and all its processes together.

    Memory is looked at once a second; what processes share counts once (the kernel's "Pss").
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
    """``feature_extract.py``; seconds, MB, scores, frames."""
    command = [sys.executable, ROOT / "feature_extract.py", "--dataset_name", "custom"]
    command += ["--label_file", folder / "labels.json", "--extract_feature_model", "conse"]
    command += ["--device", "cpu", "--output_file", out, *more]
    seconds, peak = timed(command)
    scores, frames = (
        json.loads((out / f"custom/conse/{name}.json").read_text()) for name in ("scores", "frames")
    )
    return seconds, peak, scores, frames


def write_questions(folder: Path, video: Path, count: int) -> None:
    """A label file with the first questions."""
    entries = [{"video": str(video), "question": text} for text in QUESTIONS[:count]]
    (folder / "labels.json").write_text(json.dumps(entries))


def compare(folder: Path, film: Path, minutes: float, more: list[str]) -> list[dict[str, float]]:
    """Both procedures with one question and with three.

    Raises:
        UserError: they select different frames.
    """
    video = folder / "film.mp4"
    write_film(film, video, minutes)
    rows = []
    for count in (1, 3):
        write_questions(folder, video, count)
        seconds, peak, scores, frames = ours(folder, folder / f"out {count}", more)
        theirs_s, theirs_mb = timed([sys.executable, __file__, "--plain", folder, video])
        theirs, their_frames = json.loads((folder / "plain.json").read_text())
        if frames != their_frames:
            raise errors.UserError("the two procedures have different candidate frames")
        difference = max(np.abs(np.subtract(a, b)).max() for a, b in zip(scores, theirs, strict=True))
        for a, b, row in zip(scores, theirs, frames, strict=True):
            if select_keyframes(a, row, budget=BUDGET) != select_keyframes(b, row, budget=BUDGET):
                raise errors.UserError(f"they select different frames; scores differ by {difference:g}")
        rows.append(
            {
                "questions": count,
                "frames": len(frames[0]),
                "plain s": theirs_s,
                "ours s": seconds,
                "plain / ours": theirs_s / seconds,
                "ours frames/s": len(frames[0]) / seconds,
                "plain MB": theirs_mb,
                "ours MB": peak,
                "largest difference": float(difference),
            }
        )
    return rows


def grow(folder: Path, film: Path, more: list[str]) -> list[dict[str, float]]:
    """Ours on videos of growing length."""
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
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--video",
        type=Path,
        default=ROOT / "demo/work/sources/resources/bbb.mp4",
        help="(default: the film that the demo fetches)",
    )
    parser.add_argument("--minutes", type=float, default=2, help="length to use (default: 2)")
    parser.add_argument("--growth", action="store_true", help="10 minutes, 1 hour and 3 hours instead")
    parser.add_argument("--workers", help="passed on to feature_extract.py")
    parser.add_argument("--out", type=Path, help="also write the figures there as JSON")
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
