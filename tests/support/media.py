"""Small real videos made by the tests: real containers, real codecs."""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from aks.video.backends import RGBConverter, reset_decoder_globals


def picture(number: int, width: int, height: int) -> np.ndarray:
    """A picture that differs in every frame: moving colour blocks, (height, width, 3) uint8."""
    rng = np.random.default_rng(7)
    blocks = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    whole = blocks.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    return np.roll(whole, number * 3, axis=1)


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
    """Encode ``frames`` pictures; ``pts`` in milliseconds makes the frame rate variable."""
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
    # Where it may, SVT-AV1 leaves the calling thread at a real-time priority: decord's waiting would then
    # keep its own decoding thread off the core.
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return path


def numbered(number: int, width: int, height: int) -> np.ndarray:
    """A grey picture that tells its number, 0 to 219: the luma of limited range is 16 + number."""
    return np.full((height, width, 3), round(number * 255 / 219), dtype=np.uint8)


def number_of(pixels: np.ndarray) -> int:
    """The number of a picture of :func:`numbered`, whatever a codec did to it."""
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
    """Copy the packets, not the pictures, of each file's first stream into one file.

    Args:
        sources: the files.
        to: the new file.
        begin: the first packet to copy, in the order of the file.
        stop: the first one not to copy.
        first_pts: packets with an earlier time of presentation, in frames, lie before the beginning.
        default: number of the stream that players are to choose.
        cover: number of the stream that is a cover picture.
        options: of the container.
    """
    reset_decoder_globals()
    opened = [av.open(str(path)) for path in sources]
    with av.open(str(to), "w", options=options) as new:
        made = [new.add_stream_from_template(old.streams[0], opaque=True) for old in opened]
        for number, stream in enumerate(made):
            stream.disposition = av.stream.Disposition.default.value if number == default else 0
            if number == cover:
                stream.disposition = av.stream.Disposition.attached_pic.value
        for old, stream in zip(opened, made, strict=True):
            packets = [packet for packet in old.demux(old.streams[0]) if packet.size][begin:stop]
            if to.suffix == ".avi":
                converter = av.bitstream.BitStreamFilterContext("h264_mp4toannexb", old.streams[0])
                packets = [one for packet in packets for one in converter.filter(packet)]
            shift = round(first_pts / 25 / old.streams[0].time_base)
            for packet in packets:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                new.mux(packet)
    for old in opened:
        old.close()
    return to


def write_audio(path: Path) -> Path:
    """A file with sound and no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        for _ in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 44100
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def rotate(source: Path, target: Path, degrees: int) -> Path:
    """Copy an MP4 with another display matrix in its track header."""
    one = 0x10000
    matrix = {
        90: (0, one, 0, -one, 0, 0, 0, 0, 0x40000000),
        180: (-one, 0, 0, 0, -one, 0, 0, 0, 0x40000000),
        270: (0, -one, 0, one, 0, 0, 0, 0, 0x40000000),
    }[degrees]
    data = bytearray(source.read_bytes())
    at = data.find(b"tkhd") + 4 + 40  # version 0: 40 bytes before the matrix
    data[at : at + 36] = struct.pack(">9i", *matrix)
    target.write_bytes(data)
    return target


def scenes(seed):
    """A picture for every frame number: blocks that move at random, cuts, and changing noise."""

    def draw(number, width, height):
        scene = np.random.default_rng([seed, number // 41])
        blocks = scene.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
        ground = blocks.repeat(8, axis=0).repeat(8, axis=1)
        speed = scene.integers(-3, 4, 2)
        noise = np.random.default_rng([seed, number, 1])
        y, x = speed * number + noise.integers(-1, 2, 2)
        shown = np.roll(ground, (y, x), axis=(0, 1))[:height, :width].copy()
        at = noise.integers(0, height - 8)
        shown[at : at + 8, : width // 2] ^= noise.integers(0, 64, (8, width // 2, 3), dtype=np.uint8)
        return shown

    return draw


def everything(path):
    """All frames, decoded from the first to the last."""
    return np.stack(list(everything_by_pts(path).values()))


def everything_by_pts(path):
    """All frames by their times of presentation, in the order in which FFmpeg gives them."""
    reset_decoder_globals()
    to_rgb, pictures = RGBConverter(), {}
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # with more, damage is not concealed alike every time
        for packet in container.demux(stream):
            with suppress(av.InvalidDataError):
                for frame in packet.decode():
                    pictures[frame.pts] = to_rgb(frame).copy()
    return pictures
