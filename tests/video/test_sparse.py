"""Reading sparse frames: the same pixels and times as decoding everything, from far fewer packets."""

from __future__ import annotations

import time
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import decord
import numpy as np
import pytest
from media import everything, everything_by_pts, rotate, scenes, write_video

from aks import VideoError
from aks.extraction.decoding import DecodeSpec, EndOfVideo, FrameBatch
from aks.extraction.workers import VideoJob, WorkerPool
from aks.scorers.preprocess import SquarePreprocessor
from aks.video import packets
from aks.video.packets import UnsupportedBitstream, packet_inspector
from aks.video.reader import Video
from aks.video.sparse import SparseReader, UnsupportedStream, average_rate

STRIDES = (1, 7, 24, 30, 100)


def in_decords_order(path):
    """All frames by decord, one by one, so that it never jumps; None where it cannot open the file."""
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
    except (RuntimeError, decord.DECORDError):
        return None
    return np.stack([reader[number].asnumpy() for number in range(len(reader))])


def check_fast_reading(path, strides=STRIDES):
    """The fast reader gives the frames of every stride; returns whether decord jumps right in this file."""
    whole = everything(path)
    by_decord = in_decords_order(path)
    if by_decord is not None:
        np.testing.assert_array_equal(by_decord, whole)
    reader = SparseReader(path)
    jumps = True
    for stride in strides:
        numbers = np.arange(0, len(whole), stride)
        chunks = list(reader.chunks(numbers, 16))
        assert all(len(chunk) == 16 for chunk in chunks[:-1])
        np.testing.assert_array_equal(np.concatenate(chunks), whole[numbers])
        middle = numbers[len(numbers) * 2 // 3 :]  # from there on
        np.testing.assert_array_equal(np.concatenate(list(reader.chunks(middle, 16))), whole[middle])
        with Video(path) as video:
            parts = list(video.read(numbers))
            assert video.is_seekable
            np.testing.assert_array_equal(np.concatenate([part.pixels for part in parts]), whole[numbers])
            times = video.times_s(numbers)
        if by_decord is None:
            continue
        with Video(path, "decord") as video:
            np.testing.assert_array_equal(video.times_s(numbers), times)
            assert (video.num_frames, video.fps) == (reader.num_frames, reader.fps)
            pixels = np.concatenate([part.pixels for part in video.read(numbers)])
            jumps &= np.array_equal(pixels, whole[numbers])
    return jumps


def x264(parameters, **more):
    return {"options": {"x264-params": parameters}, **more}


def x265(parameters, **more):
    return {"codec": "libx265", "options": {"x265-params": f"log-level=none:{parameters}"}, **more}


VP9 = {"codec": "libvpx-vp9", "frames": 160}
VP9_GOOD = {"deadline": "good", "cpu-used": "8", "auto-alt-ref": "1", "lag-in-frames": "16"}
AOM = {"codec": "libaom-av1", "frames": 130, "size": (64, 64)}

CLOSED = {
    "h264": ("v.mp4", {"gop": 250, "frames": 330}),
    "h264, every frame a key": ("v.mp4", {"gop": 1}),
    "h264, keys every 5": ("v.mkv", {"gop": 5}),
    "h264, keys every 300": ("v.mp4", {"gop": 300, "frames": 400}),
    "h264, B-pyramid": ("v.mp4", x264("bframes=4:b-pyramid=normal:b-adapt=0:keyint=48")),
    "h264, strict B-pyramid": ("v.mkv", x264("bframes=4:b-pyramid=strict:b-adapt=0:weightp=2:ref=5")),
    "h264, one B": ("v.mp4", x264("bframes=1:b-adapt=0:keyint=30")),
    "h264, no B": ("v.mp4", x264("bframes=0:weightp=2:keyint=60")),
    "h264, CAVLC": ("v.mp4", x264("cabac=0:8x8dct=0:bframes=3:keyint=40")),
    "h264, slices": ("v.mp4", x264("slices=4:keyint=40")),
    "h264, baseline": ("v.mp4", {"options": {"profile": "baseline"}, "gop": 40}),
    "h264, refreshed bit by bit": ("v.mp4", x264("intra-refresh=1:keyint=24")),
    "h264, 4:4:4": ("v.mp4", {"pixel_format": "yuv444p", "size": (97, 65), "gop": 30}),
    "h264, 10 bit": ("v.mp4", {"pixel_format": "yuv420p10le", "gop": 30}),
    "h264, odd size": ("v.mp4", {"size": (98, 66), "gop": 30}),
    "h264, full range bt709": ("v.mp4", x264("fullrange=on:colormatrix=bt709:keyint=30")),
    "h264, mov": ("v.mov", {"gop": 30}),
    "h264, fragments": ("v.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}, "gop": 30}),
    "hevc": ("v.mp4", x265("open-gop=0:keyint=48:bframes=4:b-adapt=0")),
    "hevc, no B": ("v.mkv", x265("open-gop=0:keyint=30:bframes=0")),
    "hevc, layers": ("v.mp4", x265("open-gop=0:keyint=60:temporal-layers=3:bframes=3:b-adapt=0")),
    "hevc, slices": ("v.mp4", x265("open-gop=0:keyint=40:slices=2", size=(256, 256), frames=100)),
    "hevc, 10 bit": ("v.mp4", x265("open-gop=0:keyint=30", pixel_format="yuv420p10le")),
    "vp9": ("v.webm", {**VP9, "options": VP9_GOOD, "gop": 40}),
    "vp9, long groups": ("v.mkv", {**VP9, "options": VP9_GOOD, "gop": 300}),
    "vp9, live": ("v.webm", {**VP9, "options": {"deadline": "realtime", "cpu-used": "8"}, "gop": 30}),
    "vp9 in mp4": ("v.mp4", {**VP9, "options": VP9_GOOD, "gop": 24}),
    "vp8": ("v.webm", {**VP9, "codec": "libvpx", "options": VP9_GOOD, "gop": 40}),
    "av1": ("v.mp4", {**AOM, "options": {"cpu-used": "8", "lag-in-frames": "19"}, "gop": 40}),
    "av1, live": ("v.mkv", {**AOM, "options": {"usage": "realtime", "cpu-used": "8"}, "gop": 30}),
    "av1, svt": ("v.mkv", {**AOM, "codec": "libsvtav1", "options": {"preset": "12"}, "gop": 40}),
    "mpeg4, no B": ("v.mp4", {"codec": "mpeg4", "gop": 30}),
    "motion jpeg": ("v.mov", {"codec": "mjpeg", "pixel_format": "yuvj420p", "frames": 60}),
    "prores": ("v.mov", {"codec": "prores_ks", "pixel_format": "yuv422p10le", "frames": 60}),
}
OPEN = {
    "h264, open groups": (
        "v.mp4",
        x264("open-gop=1:bframes=3:b-pyramid=normal:b-adapt=0:keyint=24:scenecut=0"),
    ),
    "h264, short open groups": (
        "v.mkv",
        x264("open-gop=1:bframes=3:b-adapt=0:keyint=8:min-keyint=8:scenecut=0"),
    ),
    "hevc, open groups": ("v.mp4", x265("keyint=24:bframes=4:b-adapt=0")),
    "hevc, short open groups": ("v.mkv", x265("keyint=6:min-keyint=6:bframes=3:b-adapt=0:scenecut=0")),
    "mpeg4": ("v.mp4", {"codec": "mpeg4", "options": {"bf": "2"}, "gop": 24}),
}


def make(tmp_path, file, options, seed=0):
    return write_video(tmp_path / file, **{"frames": 220, "draw": scenes(seed), **options})


@pytest.mark.parametrize("name", CLOSED)
def test_sparse_frames_are_those_of_decoding_everything(tmp_path, name):
    assert check_fast_reading(make(tmp_path, *CLOSED[name])) or "bit by bit" in name


@pytest.mark.parametrize("name", OPEN)
def test_in_open_groups_frames_are_the_ones_that_are_asked_for(tmp_path, name):
    # decord reads these right one by one, but jumps to wrong ones: up to a group of pictures away.
    assert not check_fast_reading(make(tmp_path, *OPEN[name]))


def test_x264s_settings_at_random(tmp_path):
    rng = np.random.default_rng(4)
    for number in range(6):
        settings = {
            "keyint": rng.integers(5, 80),
            "bframes": rng.integers(0, 6),
            "b-pyramid": rng.choice(["none", "strict", "normal"]),
            "ref": rng.integers(1, 6),
            "weightp": rng.integers(0, 3),
            "b-adapt": rng.integers(0, 2),
            "open-gop": rng.integers(0, 2),
            "direct": rng.choice(["spatial", "temporal"]),
        }
        options = x264(":".join(f"{name}={value}" for name, value in settings.items()))
        path = make(tmp_path, f"{number}.{rng.choice(['mp4', 'mkv'])}", {**options, "frames": 100}, number)
        check_fast_reading(path, (1, 9, 24))


def test_what_is_not_needed_is_not_decoded(tmp_path, monkeypatch):
    fed = []
    checked = SparseReader._checked

    def counting(self, frames):
        fed.append(len(frames))
        return checked(self, frames)

    monkeypatch.setattr(SparseReader, "_checked", counting)
    path = make(
        tmp_path, "v.mp4", x264("keyint=40:min-keyint=40:scenecut=0:bframes=3:b-adapt=0:b-pyramid=none")
    )
    reader = SparseReader(path)
    list(reader.chunks(np.array([0, 80]), 16))
    assert len(fed) == 2 + 2  # a packet and the decoder's end in each of two groups
    fed.clear()
    list(reader.chunks(np.array([22]), 16))
    assert len(fed) <= 1 + 6 + 1 + 1  # I; P at 4, 8 ... 24; b at 22; the end
    fed.clear()
    next(reader.chunks(np.arange(220), 1))
    assert len(fed) < 20  # a slow consumer need not store what it has not asked for


def remux(source, target, *, shift=0, before_middle=b"", also=()):
    """Copy a stream: ``shift`` frames later, bytes before its middle packet, other streams beside it."""
    with av.open(str(source)) as old, av.open(str(target), "w", options={"avoid_negative_ts": "0"}) as new:
        (stream,) = old.streams.video
        made = new.add_stream_from_template(stream)
        others = [new.add_stream(codec, rate=24, width=64, height=64, pix_fmt=form) for codec, form in also]
        for other in others:
            if other.codec.name == "png":
                other.disposition = av.stream.Disposition.attached_pic.value
        packets = [packet for packet in old.demux(stream) if packet.size]
        step = round(1 / 24 / stream.time_base)
        for number, packet in enumerate(packets):
            copy = av.Packet((before_middle if number == len(packets) // 2 else b"") + bytes(packet))
            copy.pts, copy.dts = packet.pts + shift * step, packet.dts + shift * step
            copy.time_base, copy.is_keyframe, copy.stream = packet.time_base, packet.is_keyframe, made
            new.mux(copy)
        for other in others:
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8)).reformat(format=other.pix_fmt)
            new.mux([*other.encode(frame), *other.encode()])
    return target


def parameter_set(path):
    """The first one of an H.264 file's global header, as it would stand in a packet."""
    with av.open(str(path)) as container:
        header = container.streams.video[0].codec_context.extradata
    size = int.from_bytes(header[6:8], "big")
    return size.to_bytes(4, "big") + header[8 : 8 + size]


def with_two_descriptions(path):
    """State an MP4 file's coding parameters twice."""
    data = bytearray(path.read_bytes())
    tables = data.rfind(b"moov")  # behind the pictures
    at = data.find(b"stsd", tables) - 4
    size = int.from_bytes(data[at : at + 4], "big")
    entry = data[at + 16 : at + size]
    data[at + 12 : at + 16] = b"\0\0\0\2"
    data[at + size : at + size] = entry
    for box in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd"):
        at = data.find(box, tables) - 4
        data[at : at + 4] = (int.from_bytes(data[at : at + 4], "big") + len(entry)).to_bytes(4, "big")
    path.write_bytes(data)
    return path


UNEVEN = {"frames": 100, "pts": np.cumsum(np.random.default_rng(0).integers(5, 90, 100)).tolist()}
ALPHA = {"codec": "libvpx-vp9", "pixel_format": "yuva420p", "options": VP9_GOOD, "frames": 60}
FIELDS = {"options": {"flags": "+ilme+ildct", "x264-params": "interlaced=1:tff=1"}, "frames": 60}
# What is made of a plain MP4 of 120 frames, and whether the fast reader reads it.
ODD = {
    "turned by 90 degrees": (lambda plain, folder: rotate(plain, folder / "r.mp4", 90), True),
    "turned by 180 degrees": (lambda plain, folder: rotate(plain, folder / "r.mp4", 180), True),
    "turned by 270 degrees": (lambda plain, folder: rotate(plain, folder / "r.mp4", 270), True),
    "variable rate, mp4": (lambda plain, folder: make(folder, "v.mp4", UNEVEN), True),
    "variable rate, mkv": (lambda plain, folder: make(folder, "v.mkv", UNEVEN), True),
    "late start, mp4": (lambda plain, folder: remux(plain, folder / "r.mp4", shift=50), True),
    "late start, mkv": (lambda plain, folder: remux(plain, folder / "r.mkv", shift=50), True),
    "cover picture": (lambda plain, folder: remux(plain, folder / "r.mp4", also=[("png", "rgb24")]), True),
    "two streams": (lambda plain, folder: remux(plain, folder / "r.mkv", also=[("mpeg4", "yuv420p")]), True),
    "parameters repeated": (
        lambda plain, folder: remux(plain, folder / "r.mp4", before_middle=parameter_set(plain)),
        True,
    ),
    "parameters stated twice": (lambda plain, folder: with_two_descriptions(plain), False),
    "transparent": (lambda plain, folder: make(folder, "v.webm", ALPHA), True),
    "interlaced": (lambda plain, folder: make(folder, "v.mp4", FIELDS), False),
    "flv": (lambda plain, folder: make(folder, "v.flv", {"frames": 100}), False),
    "mpeg2": (lambda plain, folder: make(folder, "v.mp4", {"codec": "mpeg2video", "frames": 100}), False),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_files_are_read_as_decord_reads_them_one_by_one(tmp_path, name):
    build, fast = ODD[name]
    path = build(make(tmp_path, "plain.mp4", {"frames": 120, "gop": 24}), tmp_path)
    expected = in_decords_order(path)
    for stride in (1, 7, 24):
        with Video(path) as video, Video(path, "decord") as reference:
            numbers = np.arange(0, video.num_frames, stride)
            assert video.num_frames == reference.num_frames
            if name == "variable rate, mkv":  # whose header names the encoder's rate
                assert video.fps == pytest.approx(99 / video.times_s([99])[0])
            else:
                assert video.fps == reference.fps
            np.testing.assert_array_equal(video.times_s(numbers), reference.times_s(numbers))
            pixels = np.concatenate([frames.pixels for frames in video.read(numbers)])
            np.testing.assert_array_equal(pixels, expected[numbers])
            assert video.is_seekable == fast


def test_frames_before_a_matroska_files_beginning_are_shown(tmp_path):
    plain = make(tmp_path, "plain.mp4", {"frames": 120, "gop": 24})
    with Video(remux(plain, tmp_path / "r.mkv", shift=-10)) as video:
        (frames,) = video.read(np.arange(video.num_frames), 120)
    np.testing.assert_array_equal(frames.pixels, everything(plain))


@pytest.mark.parametrize("options", [{"codec": "mpeg4", "options": {"bf": "2"}}, {"options": {"bf": "0"}}])
def test_in_avi_files_frames_are_the_ones_that_are_asked_for(tmp_path, options):
    path = make(tmp_path, "v.avi", {**options, "frames": 240, "gop": 60})
    whole = everything(path)
    numbers = np.arange(0, 240, 24)
    with Video(path) as video:
        assert video.num_frames == 240
        pixels = np.concatenate([part.pixels for part in video.read(numbers)])
    np.testing.assert_array_equal(pixels, whole[numbers])


@pytest.mark.parametrize("file", ["v.ts", "v.h264"])
def test_files_without_an_index_or_times_are_left_to_others(tmp_path, file):
    with pytest.raises(UnsupportedStream):
        SparseReader(make(tmp_path, file, {"frames": 60}))


def test_other_coding_parameters_on_the_way_are_left_to_others(tmp_path):
    plain = make(tmp_path, "plain.mp4", {"frames": 60})
    others = parameter_set(make(tmp_path, "other.mp4", {"frames": 10, "size": (128, 96)}))
    with pytest.raises(UnsupportedStream, match="parameters change"):
        SparseReader(remux(plain, tmp_path / "v.mp4", before_middle=others))


@pytest.mark.parametrize("groups", ["closed", "open"])
def test_where_the_fast_reader_fails_in_the_middle_another_goes_on(tmp_path, monkeypatch, groups):
    file, options = CLOSED["h264"] if groups == "closed" else OPEN["h264, short open groups"]
    path = make(tmp_path, file, options)
    expected = everything(path)
    chunks = SparseReader.chunks

    def failing(self, numbers, size):
        for count, pixels in enumerate(chunks(self, numbers, size)):
            if count == 2:
                raise UnsupportedStream("a damaged frame")
            yield pixels

    monkeypatch.setattr(SparseReader, "chunks", failing)
    with Video(path) as video:
        numbers = np.arange(0, video.num_frames, 7)
        assert video.is_seekable
        parts = list(video.read(numbers, 4))
        assert not video.is_seekable
    np.testing.assert_array_equal(np.concatenate([part.frame_indices for part in parts]), numbers)
    np.testing.assert_array_equal(np.concatenate([part.pixels for part in parts]), expected[numbers])


def test_only_pictures_of_the_highest_layer_can_be_left_out():
    header = bytearray(23)
    header[0], header[21] = 1, 3 << 3 | 3  # three layers; lengths of four bytes
    look = packet_inspector("hevc", bytes(header))
    for kind, layer, referenced in [(0, 2, False), (0, 1, True), (1, 2, True), (8, 2, False), (20, 0, True)]:
        packet = memoryview(bytes([0, 0, 0, 3, kind << 1, layer + 1, 0]))
        assert bool(look(packet).writes) == referenced
    header[21] = 3  # nobody knows how many layers
    assert packet_inspector("hevc", bytes(header))(memoryview(bytes([0, 0, 0, 3, 0, 3, 0]))).writes


def test_x264s_signature_in_the_first_packet_counts_wherever_reading_begins(tmp_path):
    draw = scenes(4)
    path = write_video(
        tmp_path / "v.mp4", frames=200, gop=20, draw=draw, options={"qp": "0", "profile": "high444"}
    )
    data = path.read_bytes()
    at = data.index(b" core ")
    # FFmpeg decodes the lossless pictures of a version before 151 in another way.
    path.write_bytes(data[:at] + b" core 142" + data[at + 9 :])
    signed = everything(path)
    reader = SparseReader(path)
    for first in (30, 100, 150):
        numbers = np.arange(first, 200, 24)
        np.testing.assert_array_equal(np.concatenate(list(reader.chunks(numbers, 4))), signed[numbers])
    path.write_bytes(data)
    assert not np.array_equal(signed, everything(path))


def frames_until_failure(reader, stride):
    """What a reader gives of every ``stride``-th frame before it fails, by number."""
    numbers = np.arange(0, reader.num_frames, stride)
    frames = {}
    with suppress(VideoError):
        for number, pixels in zip(numbers, reader.chunks(numbers, 1), strict=True):
            frames[int(number)] = pixels[0]
    return frames


def check_damaged(path, original):
    """The fast reader refuses a damaged file, or stops, or gives what is right.

    That is what decoding everything gives, or the picture as it was encoded: damage to a picture that is
    left out may spoil, for one who decodes it, others that are whole.

    Returns how many frames were compared.
    """
    try:
        fast = SparseReader(path)
    except VideoError:
        return 0
    pts = fast._index.stamps[fast._index.positions]
    ours = {int(pts[number]): pixels for number, pixels in frames_until_failure(fast, 7).items()}
    all_frames = everything_by_pts(path)
    for at in ours.keys() & all_frames.keys():
        if not np.array_equal(ours[at], original.get(at)):
            np.testing.assert_array_equal(ours[at], all_frames[at])
    return len(ours.keys() & all_frames.keys())


# Small films of 120 frames, kept as files: what damage does depends on every byte, and encoders write other
# bytes on every processor. By which seeds they are damaged: among them those whose damage is hard to notice.
DAMAGED = {
    "h264.mp4": (13, 14, 15, 23, 27, 94, 101, 153, 192, 0, 1, 2),
    "h264_open_groups.mp4": (86, 114, 129, 0, 1, 2, 3, 4),
    # Seed 9 damages a picture that others need in a way that FFmpeg's HEVC decoder does not notice.
    "hevc.mp4": [*range(9), 10, 11, 12],
    "vp9.webm": range(12),
    "av1.mkv": range(12),
    "mpeg4.mp4": range(12),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_picture_is_not_made_up(tmp_path, name):
    path = Path(__file__).parent / "data" / name
    whole = path.read_bytes()
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    original = everything_by_pts(path)
    bad, compared = tmp_path / f"bad{path.suffix}", 0
    for seed in DAMAGED[name]:
        rng = np.random.default_rng(seed)
        data = bytearray(whole)
        for at, size in rng.choice(places, 3):
            first = int(rng.integers(size))
            count = int(rng.integers(1, min(40, size - first) + 1))
            data[at + first : at + first + count] = rng.bytes(count)
        bad.write_bytes(data)
        compared += check_damaged(bad, original)
    assert compared > 20


@pytest.mark.parametrize("file", ["v.mp4", "v.mkv"])
def test_of_a_truncated_file_the_frames_that_are_there_come_right(tmp_path, file):
    options = {"movflags": "faststart"} if file == "v.mp4" else {}
    path = make(tmp_path, file, {"gop": 40, "container_options": options})
    original, expected, whole = everything_by_pts(path), everything(path), path.read_bytes()
    for part in (0.3, 0.61, 0.9):
        path.write_bytes(whole[: int(len(whole) * part)])
        check_damaged(path, original)
        with Video(path, partial=True) as video:
            numbers = np.arange(
                0, video.num_frames - 6, 7
            )  # the end is torn: pictures are not stored in order
            pixels = np.concatenate([frames.pixels for frames in video.read(numbers)])
        np.testing.assert_array_equal(pixels, expected[numbers])


def resident(process="self"):
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096


def test_memory_stays_flat_however_slow_the_reader_of_the_frames_is(tmp_path):
    path = write_video(tmp_path / "long.mp4", frames=400, fps=10, size=(640, 360), gop=100)
    with Video(path) as video:
        frames = video.read(video.candidates(), 4)
        next(frames)
        before = resident()
        for number, _ in enumerate(frames):
            if number < 3:
                time.sleep(0.3)  # a decoder that runs ahead would have read the rest by now: 270 MB
        assert resident() - before < 90e6


def test_decoding_processes_stay_small_however_slow_the_model_is(tmp_path):
    path = write_video(tmp_path / "long.flv", frames=500, fps=10, size=(640, 360), gop=100, codec="flv")
    sizes = []
    with WorkerPool(DecodeSpec(SquarePreprocessor(8), "auto", 8, "skip"), num_workers=1) as pool:
        for number, (_, event) in enumerate(pool.run(iter([VideoJob("long", path)]))):
            if isinstance(event, FrameBatch) and number < 4:
                time.sleep(0.5)
                sizes.append(resident(pool._workers[0]._process.pid))
    assert isinstance(event, EndOfVideo)
    assert max(sizes) < 300e6, sizes  # all frames of the video: 340 MB


@pytest.mark.parametrize(
    ("header", "times_s", "expected"),
    [
        (Fraction(24000, 1001), np.arange(100) / 24, 24000 / 1001),
        (Fraction(24), np.arange(1000) / 25, 24),  # as far off as that is a matter of rounding
        (Fraction(30), np.arange(1000) / 25, 25),  # and this a variable rate
        (Fraction(20), np.arange(1000) / 25, 25),
        (Fraction(3, 2), np.arange(3), 1.5),  # the last frame may be shown for no time
        (None, np.arange(9) / 25, 25),
        (Fraction(25), np.zeros(1), 25),
    ],
)
def test_the_header_s_rate_counts_unless_the_frames_times_are_against_it(header, times_s, expected):
    assert average_rate(header, times_s) == pytest.approx(expected, rel=1e-9)


def test_without_a_rate_in_header_or_times_there_is_none():
    with pytest.raises(VideoError, match="states no frame rate"):
        average_rate(None, np.zeros(1))


# Packets of the films in tests/data that are decoded for one frame, and for every 24th.
NEEDED = {
    "h264.mp4": (10, 36),
    "h264_open_groups.mp4": (30, 48),
    "hevc.mp4": (8, 25),
    "vp9.webm": (21, 75),
    "av1.mkv": (4, 12),
    "mpeg4.mp4": (7, 11),
}


@pytest.mark.parametrize("name", NEEDED)
def test_of_every_codec_what_is_not_needed_is_left_out(name):
    reader = SparseReader(Path(__file__).parent / "data" / name)
    wanted = np.array([60]), np.arange(0, 120, 24)
    assert tuple(sum(map(len, reader.needed(numbers))) for numbers in wanted) == NEEDED[name]


@pytest.mark.parametrize(
    ("first", "entry"),
    [(0xB0, True), (0xB2, False), (0xB4, False), (0x80, True), (0x84, False), (0x88, False)],
)
def test_of_vp9_key_frames_are_told_in_every_profile(first, entry):
    # Profile 3 (B0) has one bit more than profile 0 (80) before "shows an earlier one" and "no key frame".
    look = packet_inspector("vp9", b"")(memoryview(bytes([first])))
    assert look.entry == entry and look.writes  # a VP9 picture may be what others are predicted from


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_a_length_that_cannot_be_is_told(codec):
    header = bytearray(23)
    header[0], header[4], header[21] = 1, 3, 3  # lengths of four bytes
    look = packet_inspector(codec, bytes(header))
    for packet in (bytes(4), bytes(3), b"\0\0\0\2\1", b"\0\0\0\0\1\1"):
        with pytest.raises(UnsupportedBitstream, match="lengths"):
            look(memoryview(packet))


@pytest.mark.parametrize(
    ("name", "at", "byte"),
    [
        ("h264.mp4", 6034, 0x7C),  # a key frame, which FFmpeg flags, without a word in its log
        ("h264.mp4", 7080, 0x05),  # one that others lean on, whose number is another
        ("h264_open_groups.mp4", 20578, 0x97),  # one whose references cannot be told
    ],
)
def test_a_picture_with_a_damaged_header_is_not_made_up(tmp_path, name, at, byte):
    path, bad = Path(__file__).parent / "data" / name, tmp_path / "bad.mp4"
    data = bytearray(path.read_bytes())
    data[at] = byte
    bad.write_bytes(data)
    assert check_damaged(bad, everything_by_pts(path))


@pytest.mark.parametrize("stated", [None, 5, 6])
def test_scaling_matrices_are_passed_over(stated):
    """Those of 4x4 blocks have 16 numbers, the two of 8x8 blocks behind them 64."""
    lists = "".join("1" + "1" * (16 if at < 6 else 64) if at == stated else "0" for at in range(8))
    # High profile, constraints, level; number 0, 4:2:0, 8 bit twice, no bypass; matrices; frame_num: 7.
    fields = f"{100:08b}" + "0" * 16 + "1" + "010" + "11" + "0" + "1" + lists + "00100" + "1" * 8
    data = int(fields.ljust(-(-len(fields) // 8) * 8, "0"), 2).to_bytes(-(-len(fields) // 8), "big")
    assert packets._h264_frame_num(memoryview(bytes([0x67]) + data)) == (0, 7)


@pytest.mark.parametrize(
    ("name", "codec", "messages", "others"),
    [("h264.mp4", "h264", (6, 9, 12), (14,)), ("hevc.mp4", "hevc", (35, 38, 39, 40), (41,))],
)
def test_messages_beside_a_picture_do_not_make_it_one_that_is_needed(name, codec, messages, others):
    with av.open(str(Path(__file__).parent / "data" / name)) as container:
        look = packet_inspector(codec, container.streams.video[0].codec_context.extradata)
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    picture = next(packet for packet in packets if not look(memoryview(packet)).writes)
    for kinds, is_needed in ((messages, False), (others, True)):
        for kind in kinds:
            unit = bytes([kind]) if codec == "h264" else bytes([kind << 1, 1])
            packet = len(unit).to_bytes(4, "big") + unit + picture
            assert bool(look(memoryview(packet)).writes) == is_needed
