"""Measure the milliseconds that reading one frame a second costs, by reader and codec.

    python benchmarks/decoding.py --clips h264 hevc vp9 av1

The readers run one after the other in this process, on one core:

- decord [i]: ``decord.VideoReader[i]``, the plain procedure, as the paper's released extractor reads;
- decord batch: decord's ``get_batch``, 16 frames at a time;
- decord, ours: ``Video(path, "decord")``;
- PyAV, all: PyAV, which decodes every frame;
- ours: ``Video(path)``. As for all readers, opening and indexing count. "pictures decoded" is the share of
  the pictures that it needs: the wanted ones and all that they refer to;
- those alone: the time of decoding these pictures alone, without opening, indexing and RGB, from packets in
  memory. No reader on FFmpeg that goes by packet headers can give the same pixels in less.

PyAV's encoders make the clips from a part of the film. The readers' pixels are compared. Times are medians
of ``--repeats`` runs: seconds of processor time in user mode, which other programs hardly disturb, and
seconds on the wall.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import decord
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from aks import errors
from aks.arguments import ArgumentParser
from aks.console import progress
from aks.cores import count_cores
from aks.extraction.decoding import DecodeSpec, FrameBatch
from aks.extraction.workers import WorkerPool
from aks.labels import VideoJob
from aks.scorers.preprocess import SquarePreprocessor
from aks.video.backends import RGBConverter, open_container, select_video_stream
from aks.video.codec_log import reset_decoder_globals
from aks.video.reader import CHUNK_FRAMES, Video
from aks.video.sparse import SparseReader

ROOT = Path(__file__).resolve().parent.parent

FILM = ROOT / "demo/work/sources/resources/bbb.mp4"  # as distributed: ten minutes of 720p H.264
# Name: file, encoder, its options.
CLIPS: dict[str, tuple[str, str, dict[str, str]]] = {
    "h264": ("h264.mp4", "libx264", {}),
    "h264, no B": ("h264-nob.mp4", "libx264", {"x264-params": "bframes=0"}),
    "h264, GOP 12": ("h264-gop12.mp4", "libx264", {"x264-params": "keyint=12"}),
    "h264, open GOP": ("h264-open.mkv", "libx264", {"x264-params": "open-gop=1:keyint=48"}),
    "h264, VFR": ("h264-vfr.mp4", "libx264", {}),
    "hevc": ("hevc.mp4", "libx265", {"preset": "fast", "x265-params": "open-gop=0:log-level=none"}),
    "hevc, open GOP": ("hevc-open.mkv", "libx265", {"preset": "fast", "x265-params": "log-level=none"}),
    "vp9": (
        "vp9.webm",
        "libvpx-vp9",
        {"crf": "32", "b": "0", "cpu-used": "5", "auto-alt-ref": "1", "lag-in-frames": "25", "row-mt": "1"},
    ),
    "av1": ("av1-svt.mp4", "libsvtav1", {"preset": "9", "crf": "35", "svtav1-params": "lp=2"}),
    "av1, aom": (
        "av1-aom.mkv",
        "libaom-av1",
        {"crf": "32", "b": "0", "cpu-used": "8", "lag-in-frames": "25", "row-mt": "1"},
    ),
    "mpeg4": ("mpeg4.mp4", "mpeg4", {"bf": "2", "g": "120", "b": "3M"}),
}


def make_clip(film: Path, path: Path, name: str, start_s: float, seconds: float) -> None:
    """Encode a part of the film with the codec of a clip."""
    _, codec, options = CLIPS[name]
    rng = np.random.default_rng(0)
    partial = path.with_name(f"partial-{path.name}")
    with av.open(str(film)) as source, av.open(str(partial), "w") as target:
        (stream,) = source.streams.video
        stream.thread_type = "AUTO"
        rate = stream.average_rate
        source.seek(int(start_s / stream.time_base), stream=stream)
        encoder = target.add_stream(codec, rate=rate)
        encoder.width, encoder.height, encoder.pix_fmt = stream.width, stream.height, "yuv420p"
        encoder.options = options
        encoder.codec_context.time_base = clock = Fraction(1, 1000) if "VFR" in name else 1 / rate
        count = int(seconds * rate)
        frames = progress(iterable=source.decode(stream), total=count, desc=name, unit="frame")
        for index, frame in enumerate(frames):
            if index == count:
                break
            if "VFR" in name and rng.random() < 0.3:  # the frame before stays longer
                continue
            frame.pts, frame.time_base = round(index / rate / clock), clock
            frame.pict_type = 0  # the encoder chooses picture types, not the film
            target.mux(encoder.encode(frame))
        target.mux(encoder.encode())
    # SVT-AV1 may leave the calling thread at a real-time priority. decord, which waits actively, would then
    # keep its own decoding thread off the core.
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    partial.rename(path)


def by_index(path: Path) -> Iterator[np.ndarray]:
    """Read frame by frame with decord, as the paper's released extractor does."""
    reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    for index in _candidates(len(reader), reader.get_avg_fps()):
        yield reader[index].asnumpy()


def by_batch(path: Path) -> Iterator[np.ndarray]:
    """Read several frames at a time with decord."""
    reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    frame_indices = _candidates(len(reader), reader.get_avg_fps())
    for start in range(0, len(frame_indices), CHUNK_FRAMES):
        yield from reader.get_batch(frame_indices[start : start + CHUNK_FRAMES]).asnumpy()


def by_decord(path: Path) -> Iterator[np.ndarray]:
    """Read with this project's reader on decord."""
    with Video(path, "decord") as video:
        for frames in video.read(video.candidates()):
            yield from frames.pixels


def by_everything(path: Path) -> Iterator[np.ndarray]:
    """Decode every frame with PyAV."""
    with Video(path) as video:
        wanted = set(video.candidates().tolist())
    to_rgb = RGBConverter()
    with open_container(path) as container:
        stream = select_video_stream(container)
        stream.codec_context.thread_count = 1
        for index, frame in enumerate(container.decode(stream)):
            if index in wanted:
                yield to_rgb(frame)


def by_ours(path: Path) -> Iterator[np.ndarray]:
    """Read as extraction does by default."""
    with Video(path) as video:
        for frames in video.read(video.candidates()):
            yield from frames.pixels


READERS: dict[str, Callable[[Path], Iterator[np.ndarray]]] = {
    "decord [i]": by_index,
    "decord batch": by_batch,
    "decord, ours": by_decord,
    "PyAV, all": by_everything,
    "ours": by_ours,
}


def decode_alone(path: Path, runs: list[np.ndarray]) -> float:
    """Seconds of processor time in user mode that decoding runs of packets takes, from memory."""
    with open_container(path) as container:
        (stream,) = container.streams.video
        packets = [packet for packet in container.demux(stream) if packet.size]
        decoder = stream.codec_context
        decoder.thread_count = 1
        start = _user_s()
        for run in runs:
            for position in run:
                decoder.decode(packets[position])
            decoder.decode(None)
            decoder.flush_buffers()
        return _user_s() - start


def _candidates(num_frames: int, fps: float) -> list[int]:
    stride = max(1, int(fps))
    return [index * stride for index in range(num_frames // stride)]


def measure(path: Path, repeats: int, readers: list[str]) -> dict[str, object]:
    """Compare and time all readers on one file; times are milliseconds a frame."""
    digests: dict[str, list[str]] = {}
    for name in readers:
        try:
            digests[name] = [hashlib.sha256(pixels).hexdigest() for pixels in READERS[name](path)]
        except (RuntimeError, decord.DECORDError, errors.VideoError):
            continue  # decord does not read AV1
    count = len(digests["ours"])
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in digests}
    with Video(path) as video:
        backend, num_frames = video.decoder, video.num_frames
        needed = SparseReader(path).needed(video.candidates()) if video.is_seekable else None
    alone = []
    for _ in range(repeats):  # the readers take turns, so that other programs disturb them alike
        for name, times in runs.items():
            user, wall = _user_s(), time.perf_counter()
            for pixels in READERS[name](path):
                del pixels
            times.append((_user_s() - user, time.perf_counter() - wall))
        if needed:
            alone.append(decode_alone(path, needed) * 1000 / count)
    result: dict[str, object] = {"file": path.name, "frames": count, "ours reads by": backend}
    if needed:
        result["pictures decoded"] = sum(map(len, needed)) / num_frames
        result["those alone, user_ms"] = statistics.median(alone)
    for name, times in runs.items():
        same = sum(a == b for a, b in zip(digests[name], digests["ours"], strict=True))
        user, wall = (statistics.median(column) * 1000 / count for column in zip(*times, strict=True))
        result[name] = {"user_ms": user, "wall_ms": wall, "frames_as_ours": same}
    return result


def _user_s() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


def print_table(results: dict[str, dict], readers: list[str]) -> None:
    """Print milliseconds a frame, and how many times as long as ours the others take."""
    print("user ms a frame (wall ms); frames that differ from ours are counted behind a !")
    heads = [
        "",
        "frames",
        *readers,
        "decord [i] / ours",
        "PyAV, all / ours",
        "pictures decoded",
        "those alone",
    ]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for name, row in results.items():
        cells = [name, str(row["frames"])]
        for reader in readers:
            if reader not in row:
                cells.append("-")
                continue
            cell = row[reader]
            differing = row["frames"] - cell["frames_as_ours"]
            mark = f" !{differing}" if differing else ""
            cells.append(f"{cell['user_ms']:.1f} ({cell['wall_ms']:.1f}){mark}")
        for reader in ("decord [i]", "PyAV, all"):
            there = reader in row
            cells.append(f"{row[reader]['user_ms'] / row['ours']['user_ms']:.2f}" if there else "-")
        if "pictures decoded" in row:
            cells += [f"{row['pictures decoded']:.0%}", f"{row['those alone, user_ms']:.1f}"]
        else:
            cells += ["all", "-"]
        print(f"| {' | '.join(cells)} |")


def share(film: Path, repeats: int) -> dict[str, object]:
    """Time the decoding of one film, preprocessed for BLIP, by one process and by one for each core."""
    spec = DecodeSpec(SquarePreprocessor(384), "auto", CHUNK_FRAMES, "skip")
    workers = sorted({1, count_cores()})
    times: dict[int, list[float]] = {count: [] for count in workers}
    digests = set()
    for _ in range(repeats):
        for count in workers:
            start, batches = time.perf_counter(), {}
            with WorkerPool(spec, count) as pool:
                for _, event in pool.run(iter([VideoJob(film.name, film)])):
                    if isinstance(event, FrameBatch):
                        batches[event.offset] = hashlib.sha256(event.inputs).hexdigest()
            times[count].append(time.perf_counter() - start)
            digests.add(json.dumps(batches, sort_keys=True))
    if len(digests) != 1:
        raise errors.UserError(f"{film}: the processes' frames differ")
    seconds = {count: statistics.median(runs) for count, runs in times.items()}
    for count, median in seconds.items():
        print(
            f"{film.name} by {count} processes: {median:.1f} s, {seconds[1] / median:.2f} times as fast as 1"
        )
    return {"file": film.name, "seconds by processes": seconds}


def read_keyframes(film: Path, repeats: int, num_frames: int = 64) -> dict[str, object]:
    """Time the reading of frames spread over a film, as the evaluation reads keyframes, beside decord."""
    with Video(film) as video:
        frame_indices = np.linspace(0, video.num_frames - 1, num_frames, dtype=np.int64)

    def ours(threads: int) -> np.ndarray:
        with Video(film) as video:
            return video.read_all(frame_indices, threads).pixels

    def by_decord(threads: int) -> np.ndarray:
        return decord.VideoReader(str(film), num_threads=threads).get_batch(frame_indices).asnumpy()

    times: dict[str, list[float]] = {}
    for _ in range(repeats):
        digests = set()
        for name, read in (("ours", ours), ("decord", by_decord)):
            for threads in sorted({1, count_cores()}):
                start = time.perf_counter()
                pixels = read(threads)
                label = f"{name}, {threads} thread{'s' * (threads > 1)}"
                times.setdefault(label, []).append(time.perf_counter() - start)
                digests.add(hashlib.sha256(pixels).hexdigest())
        if len(digests) != 1:
            raise errors.UserError(f"{film}: the readers' frames differ")
    seconds = {name: statistics.median(runs) for name, runs in times.items()}
    print(f"{num_frames} frames of {film.name}; times as fast as ours, 1 thread:")
    for name, median in seconds.items():
        print(f"{name:18} {median:6.2f} s {seconds['ours, 1 thread'] / median:6.2f} x")
    return {"file": film.name, "frames": num_frames, "seconds": seconds}


def main() -> None:
    """Make the clips, measure the readers, print a table and write JSON."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--video", type=Path, default=FILM, help="(default: the film that the demo fetches)")
    parser.add_argument("--film", action="store_true", help="also read the whole film")
    parser.add_argument("--share", action="store_true", help="also read the film by several processes")
    parser.add_argument("--keyframes", action="store_true", help="also read 64 frames of it by threads")
    parser.add_argument("--clips", nargs="*", default=list(CLIPS), choices=list(CLIPS), help="(default: all)")
    parser.add_argument("--readers", nargs="+", default=list(READERS), choices=list(READERS))
    parser.add_argument("--start", type=float, default=60, help="second of the film where the clips begin")
    parser.add_argument("--seconds", type=float, default=60, help="length of the clips")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, help="keep the clips in this folder, and use those already in it"
    )
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    args = parser.parse_args()
    if not args.video.is_file():
        raise errors.UserError(f"--video {args.video}: no such file (bash demo.sh makes the demo's film)")
    if "ours" not in args.readers:
        args.readers.append("ours")
    reset_decoder_globals()
    results = {}
    shared = share(args.video, args.repeats) if args.share else None
    keyframes = read_keyframes(args.video, args.repeats) if args.keyframes else None
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        files = {name: folder / CLIPS[name][0] for name in args.clips}
        if args.film:
            files["film"] = args.video
        for name, path in files.items():
            if not path.exists():
                make_clip(args.video, path, name, args.start, args.seconds)
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # one core for the threads of every reader
        for name, path in files.items():
            results[name] = measure(path, args.repeats, args.readers)
            print(f"{name}: done", file=sys.stderr)
    if results:
        print_table(results, args.readers)
    if shared:
        results["shared"] = shared
    if keyframes:
        results["keyframes"] = keyframes
    if args.out:
        args.out.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    errors.run_main(main)
