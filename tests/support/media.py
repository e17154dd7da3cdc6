"""Small videos that the tests encode with real codecs in real containers, and reference decoding."""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from aks.video.backends import RGBConverter
from aks.video.codec_log import reset_decoder_globals


def picture(number: int, width: int, height: int) -> np.ndarray:
    """A frame of colour blocks that move from frame to frame, (height, width, 3) uint8."""
    rng = np.random.default_rng(7)
    blocks = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    pixels = blocks.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    return np.roll(pixels, number * 3, axis=1)


def write_video(
    path: Path,
    *,
    frames: int = 60,
    fps: int = 24,
    size: tuple[int, int] = (96, 64),
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    gop: int = 12,
    pts: list[int] | None = None,
    draw=picture,
    container_options: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Encode a video of ``frames`` frames.

    Args:
        pts: presentation timestamps in milliseconds, for a variable frame rate.
        draw: function of frame index, width and height that returns (height, width, 3) uint8 pixels.
    """
    reset_decoder_globals()
    with av.open(str(path), "w", options=container_options or {}) as container:
        container.metadata.update(metadata or {})
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = pixel_format
        stream.options = options or {}
        stream.codec_context.gop_size = gop
        time_base = Fraction(1, 1000) if pts else Fraction(1, fps)
        stream.codec_context.time_base = time_base
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(draw(number, *size), format="rgb24").reformat(
                format=pixel_format
            )
            frame.pts = pts[number] if pts else number
            frame.time_base = time_base
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    # SVT-AV1 may leave the calling thread at a real-time priority. decord, which waits actively, would then
    # keep its own decoding thread off the core.
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return path


def numbered(number: int, width: int, height: int) -> np.ndarray:
    """A grey frame that spells a number from 0 to 219: its luma (limited range) is 16 + number."""
    return np.full((height, width, 3), round(number * 255 / 219), dtype=np.uint8)


def number_of(pixels: np.ndarray) -> int:
    """The number that a decoded frame of :func:`numbered` spells."""
    return round((float(pixels.mean()) + 0.5) * 219 / 255)


def copy_streams(
    *sources: Path,
    to: Path,
    begin: int = 0,
    stop: int | None = None,
    first_pts: int = 0,
    default: int = 0,
    cover: int | None = None,
    **options: str,
) -> Path:
    """Copy each file's first stream into one file, without decoding it.

    Args:
        sources: the files.
        to: the new file.
        begin: index of the first packet to copy.
        stop: index of the first packet behind those to copy.
        first_pts: pts, in frames, that becomes time zero.
        default: index of the stream that players choose.
        cover: index of the stream that is a cover.
        options: options of the container.
    """
    reset_decoder_globals()
    opened = [av.open(str(path)) for path in sources]
    with av.open(str(to), "w", options=options) as new:
        copied = [new.add_stream_from_template(old.streams[0], opaque=True) for old in opened]
        for index, stream in enumerate(copied):
            stream.disposition = av.stream.Disposition.default.value if index == default else 0
            if index == cover:
                stream.disposition = av.stream.Disposition.attached_pic.value
        for old, stream in zip(opened, copied, strict=True):
            packets = [packet for packet in old.demux(old.streams[0]) if packet.size][begin:stop]
            if to.suffix == ".avi":
                converter = av.bitstream.BitStreamFilterContext("h264_mp4toannexb", old.streams[0])
                packets = [new_packet for packet in packets for new_packet in converter.filter(packet)]
            shift = round(first_pts / 25 / old.streams[0].time_base)
            for packet in packets:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                new.mux(packet)
    for old in opened:
        old.close()
    return to


def trim(plain: Path, target: Path) -> Path:
    """Trim a film of groups of 50 frames as ``ffmpeg -ss 3.4 -c copy`` does.

    It copies all packets from the key frame on and adds an edit list. What remains starts at packet 50, and
    shows frames from 85 on.
    """
    copy_streams(plain, to=target, begin=50, first_pts=85, avoid_negative_ts="0")
    with av.open(str(target)) as container:
        assert any(packet.is_discard for packet in container.demux(video=0))
    return target


def write_audio(path: Path, frames: int = 20) -> Path:
    """Write a file with audio, 23 ms a frame, and no video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        for _ in range(frames):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 44100
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def write_bad_files(folder: Path) -> dict[str, str]:
    """Write files that cannot be read as videos; what is said of each, as a pattern, by name."""
    good = write_video(folder / "good.mp4").read_bytes()
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("this is no video\n" * 100)
    (folder / "without moov.mp4").write_bytes(good[: good.find(b"moov") - 4])
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    write_audio(folder / "sound.m4a")
    return {
        "absent.mp4": "file not found",
        "empty.mp4": "file is empty",
        "text.mp4": "cannot be opened: Invalid data",
        "without moov.mp4": "cannot be opened",
        "folder.mp4": "not a regular file",
        "pipe.mp4": "not a regular file",
        "loop.mp4": "cannot be opened|file not found|symbolic links",
        "sound.m4a": "no video stream",
    }


def rotate(source: Path, target: Path, degrees: int) -> Path:
    """Copy an MP4 file with a display matrix that rotates it."""
    one = 0x10000
    matrix = {
        90: (0, one, 0, -one, 0, 0, 0, 0, 0x40000000),
        180: (-one, 0, 0, 0, -one, 0, 0, 0, 0x40000000),
        270: (0, -one, 0, one, 0, 0, 0, 0, 0x40000000),
    }[degrees]
    data = bytearray(source.read_bytes())
    offset = data.find(b"tkhd") + 4 + 40  # version 0: 40 bytes before the matrix
    data[offset : offset + 36] = struct.pack(">9i", *matrix)
    target.write_bytes(data)
    return target


def scenes(seed):
    """A ``draw`` function for :func:`write_video`: blocks that move at random, cuts, and changing noise."""

    def draw(number, width, height):
        scene = np.random.default_rng([seed, number // 41])
        blocks = scene.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
        background = blocks.repeat(8, axis=0).repeat(8, axis=1)
        speed = scene.integers(-3, 4, 2)
        noise = np.random.default_rng([seed, number, 1])
        y, x = speed * number + noise.integers(-1, 2, 2)
        pixels = np.roll(background, (y, x), axis=(0, 1))[:height, :width].copy()
        top = noise.integers(0, height - 8)
        pixels[top : top + 8, : width // 2] ^= noise.integers(0, 64, (8, width // 2, 3), dtype=np.uint8)
        return pixels

    return draw


def everything(path):
    """All frames, decoded from the first to the last, (n, height, width, 3) uint8."""
    return np.stack(list(everything_by_pts(path).values()))


def everything_by_pts(path):
    """All frames by their pts, in the order in which FFmpeg returns them."""
    reset_decoder_globals()
    to_rgb, frames = RGBConverter(), {}
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # With several, FFmpeg conceals damage differently every time.
        for packet in container.demux(stream):
            with suppress(av.InvalidDataError):
                for frame in packet.decode():
                    frames[frame.pts] = to_rgb(frame).copy()
    return frames
