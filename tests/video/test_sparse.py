"""The sparse reader gives the pixels and times of decoding everything, from far fewer packets."""

from __future__ import annotations

import time
from pathlib import Path

import av
import decord
import numpy as np
import pytest
from media import everything, rotate, scenes, write_video

from aks.extraction.decoding import DecodeSpec, EndOfVideo, FrameBatch
from aks.extraction.workers import WorkerPool
from aks.labels import VideoJob
from aks.scorers.preprocess import SquarePreprocessor
from aks.video import sparse
from aks.video.reader import Video
from aks.video.sparse import SparseReader, UnsupportedStream

STRIDES = (1, 7, 24, 30, 100)


def decode_all_with_decord(path):
    """All frames by decord, one by one, so that it never seeks; None where it cannot open the file."""
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
    except (RuntimeError, decord.DECORDError):
        return None
    return np.stack([reader[index].asnumpy() for index in range(len(reader))])


def check_sparse_reading(path, strides=STRIDES):
    """Check the sparse reader's frames of every stride; return whether decord seeks right in this file."""
    whole = everything(path)
    by_decord = decode_all_with_decord(path)
    if by_decord is not None:
        np.testing.assert_array_equal(by_decord, whole)
    reader = SparseReader(path)
    decord_seeks_right = True
    for stride in strides:
        frame_indices = np.arange(0, len(whole), stride)
        chunks = list(reader.chunks(frame_indices, 16))
        assert all(len(chunk) == 16 for chunk in chunks[:-1])
        np.testing.assert_array_equal(np.concatenate(chunks), whole[frame_indices])
        middle = frame_indices[len(frame_indices) * 2 // 3 :]
        np.testing.assert_array_equal(np.concatenate(list(reader.chunks(middle, 16))), whole[middle])
        with Video(path) as video:
            parts = list(video.read(frame_indices))
            assert video.is_seekable
            np.testing.assert_array_equal(
                np.concatenate([part.pixels for part in parts]), whole[frame_indices]
            )
            times = video.times_s(frame_indices)
            at_once = video.read_all(frame_indices, 3)
            np.testing.assert_array_equal(at_once.pixels, whole[frame_indices])
            np.testing.assert_array_equal(at_once.times_s, times)
        if by_decord is None:
            continue
        with Video(path, "decord") as video:
            np.testing.assert_array_equal(video.times_s(frame_indices), times)
            assert (video.num_frames, video.fps) == (reader.num_frames, reader.fps)
            pixels = np.concatenate([part.pixels for part in video.read(frame_indices)])
            decord_seeks_right &= np.array_equal(pixels, whole[frame_indices])
    return decord_seeks_right


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
    "h264, intra refresh": ("v.mp4", x264("intra-refresh=1:keyint=24")),
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
    assert check_sparse_reading(make(tmp_path, *CLOSED[name])) or "intra refresh" in name


@pytest.mark.parametrize("name", OPEN)
def test_in_open_groups_the_requested_frames_are_read(tmp_path, name):
    # decord reads these files right from the start, but seeks to frames up to a group of pictures away.
    assert not check_sparse_reading(make(tmp_path, *OPEN[name]))


def test_random_x264_settings(tmp_path):
    rng = np.random.default_rng(4)
    for seed in range(6):
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
        path = make(tmp_path, f"{seed}.{rng.choice(['mp4', 'mkv'])}", {**options, "frames": 100}, seed)
        check_sparse_reading(path, (1, 9, 24))


def test_what_is_not_needed_is_not_decoded(tmp_path, monkeypatch):
    fed = []
    decode = sparse._decode_undamaged

    def counting(decoder, packet):
        fed.append(packet)
        return decode(decoder, packet)

    monkeypatch.setattr(sparse, "_decode_undamaged", counting)
    path = make(
        tmp_path, "v.mp4", x264("keyint=40:min-keyint=40:scenecut=0:bframes=3:b-adapt=0:b-pyramid=none")
    )
    reader = SparseReader(path)
    list(reader.chunks(np.array([0, 80]), 16))
    assert len(fed) == 2 + 2  # a packet and a flush in each of two groups
    fed.clear()
    list(reader.chunks(np.array([22]), 16))
    assert len(fed) <= 1 + 6 + 1 + 1  # I; P at 4, 8 ... 24; b at 22; a flush
    fed.clear()
    next(reader.chunks(np.arange(220), 1))
    assert len(fed) < 20  # the reader does not run ahead of a slow consumer


@pytest.mark.parametrize("name", ["hevc, no B", "hevc, short open groups"])
def test_a_frame_s_distance_bounds_what_it_needs(tmp_path, name):
    reader = SparseReader(make(tmp_path, *{**CLOSED, **OPEN}[name]))
    distances = reader.entry_distances(np.arange(reader.num_frames))
    runs = [reader.needed(np.array([index])) for index in range(reader.num_frames)]
    assert distances.tolist() == [int(run[-1] - run[0]) for (run,) in runs]
    assert 0 in distances and distances.max() >= 6


@pytest.mark.parametrize("name", ["h264, keys every 5", "mpeg4", "hevc, short open groups"])
def test_threads_decode_what_one_would(tmp_path, name):
    reader = SparseReader(make(tmp_path, *{**CLOSED, **OPEN}[name]))
    for stride in (1, 7, 100):
        frame_indices = np.arange(3, reader.num_frames, stride)
        for count in (2, 5, 300):
            parts = reader.independent_parts(frame_indices, count)
            assert len(parts) <= count
            assert len(parts) > 1 or (stride == 1 and name in OPEN)  # each group needs the one before
            assert np.array_equal(np.concatenate(parts), frame_indices)
            together = np.concatenate(reader.needed(frame_indices))
            assert np.array_equal(np.concatenate([run for p in parts for run in reader.needed(p)]), together)
            if stride == 1 and count == 5 and name in CLOSED:
                assert max(map(len, parts)) < len(frame_indices) / 3  # fairly shared
    (alone,) = reader.independent_parts(np.array([5]), 4)
    assert alone.tolist() == [5]


def remux(source, target, *, shift=0, before_middle=b"", also=()):
    """Copy a stream, shifted by ``shift`` frames.

    Args:
        before_middle: bytes to put in front of the middle packet.
        also: codecs and pixel formats of other streams to add.
    """
    with av.open(str(source)) as old, av.open(str(target), "w", options={"avoid_negative_ts": "0"}) as new:
        (stream,) = old.streams.video
        copied = new.add_stream_from_template(stream)
        others = [new.add_stream(codec, rate=24, width=64, height=64, pix_fmt=form) for codec, form in also]
        for other in others:
            if other.codec.name == "png":
                other.disposition = av.stream.Disposition.attached_pic.value
        packets = [packet for packet in old.demux(stream) if packet.size]
        step = round(1 / 24 / stream.time_base)
        for index, packet in enumerate(packets):
            copy = av.Packet((before_middle if index == len(packets) // 2 else b"") + bytes(packet))
            copy.pts, copy.dts = packet.pts + shift * step, packet.dts + shift * step
            copy.time_base, copy.is_keyframe, copy.stream = packet.time_base, packet.is_keyframe, copied
            new.mux(copy)
        for other in others:
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8)).reformat(format=other.pix_fmt)
            new.mux([*other.encode(frame), *other.encode()])
    return target


def parameter_set(path):
    """The first parameter set of an H.264 file's global header, packed as in a packet."""
    with av.open(str(path)) as container:
        header = container.streams.video[0].codec_context.extradata
    size = int.from_bytes(header[6:8], "big")
    return size.to_bytes(4, "big") + header[8 : 8 + size]


def duplicate_sample_description(path):
    """Write an MP4 file's sample description, its coding parameters, a second time."""
    data = bytearray(path.read_bytes())
    moov = data.rfind(b"moov")  # behind the media data
    start = data.find(b"stsd", moov) - 4
    size = int.from_bytes(data[start : start + 4], "big")
    entry = data[start + 16 : start + size]
    data[start + 12 : start + 16] = b"\0\0\0\2"
    data[start + size : start + size] = entry
    for box in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd"):
        start = data.find(box, moov) - 4
        data[start : start + 4] = (int.from_bytes(data[start : start + 4], "big") + len(entry)).to_bytes(
            4, "big"
        )
    path.write_bytes(data)
    return path


UNEVEN = {"frames": 100, "pts": np.cumsum(np.random.default_rng(0).integers(5, 90, 100)).tolist()}
ALPHA = {"codec": "libvpx-vp9", "pixel_format": "yuva420p", "options": VP9_GOOD, "frames": 60}
FIELDS = {"options": {"flags": "+ilme+ildct", "x264-params": "interlaced=1:tff=1"}, "frames": 60}
# How to make each file from a plain MP4 of 120 frames, and whether the sparse reader reads it.
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
    "parameters stated twice": (lambda plain, folder: duplicate_sample_description(plain), False),
    "transparent": (lambda plain, folder: make(folder, "v.webm", ALPHA), True),
    "interlaced": (lambda plain, folder: make(folder, "v.mp4", FIELDS), False),
    "flv": (lambda plain, folder: make(folder, "v.flv", {"frames": 100}), False),
    "mpeg2": (lambda plain, folder: make(folder, "v.mp4", {"codec": "mpeg2video", "frames": 100}), False),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_files_are_read_as_decord_reads_them_without_seeking(tmp_path, name):
    build, is_seekable = ODD[name]
    path = build(make(tmp_path, "plain.mp4", {"frames": 120, "gop": 24}), tmp_path)
    expected = decode_all_with_decord(path)
    for stride in (1, 7, 24):
        with Video(path) as video, Video(path, "decord") as reference:
            frame_indices = np.arange(0, video.num_frames, stride)
            assert video.num_frames == reference.num_frames
            if name == "variable rate, mkv":  # its header names the encoder's rate
                assert video.fps == pytest.approx(99 / video.times_s([99])[0])
            else:
                assert video.fps == reference.fps
            np.testing.assert_array_equal(video.times_s(frame_indices), reference.times_s(frame_indices))
            pixels = np.concatenate([frames.pixels for frames in video.read(frame_indices)])
            np.testing.assert_array_equal(pixels, expected[frame_indices])
            assert video.is_seekable == is_seekable


def test_matroska_frames_with_negative_pts_are_shown(tmp_path):
    plain = make(tmp_path, "plain.mp4", {"frames": 120, "gop": 24})
    with Video(remux(plain, tmp_path / "r.mkv", shift=-10)) as video:
        (frames,) = video.read(np.arange(video.num_frames), 120)
    np.testing.assert_array_equal(frames.pixels, everything(plain))


@pytest.mark.parametrize("options", [{"codec": "mpeg4", "options": {"bf": "2"}}, {"options": {"bf": "0"}}])
def test_in_avi_files_the_requested_frames_are_read(tmp_path, options):
    path = make(tmp_path, "v.avi", {**options, "frames": 240, "gop": 60})
    whole = everything(path)
    frame_indices = np.arange(0, 240, 24)
    with Video(path) as video:
        assert video.num_frames == 240
        pixels = np.concatenate([part.pixels for part in video.read(frame_indices)])
    np.testing.assert_array_equal(pixels, whole[frame_indices])


@pytest.mark.parametrize("file", ["v.ts", "v.h264"])
def test_files_without_an_index_or_times_are_unsupported(tmp_path, file):
    with pytest.raises(UnsupportedStream):
        SparseReader(make(tmp_path, file, {"frames": 60}))


def test_a_change_of_coding_parameters_is_unsupported(tmp_path):
    plain = make(tmp_path, "plain.mp4", {"frames": 60})
    others = parameter_set(make(tmp_path, "other.mp4", {"frames": 10, "size": (128, 96)}))
    with pytest.raises(UnsupportedStream, match="parameters change"):
        SparseReader(remux(plain, tmp_path / "v.mp4", before_middle=others))


@pytest.mark.parametrize("groups", ["closed", "open"])
def test_where_the_sparse_reader_fails_the_sequential_reader_continues(tmp_path, monkeypatch, groups):
    file, options = CLOSED["h264"] if groups == "closed" else OPEN["h264, short open groups"]
    path = make(tmp_path, file, options)
    expected = everything(path)
    chunks = SparseReader.chunks

    def failing(self, frame_indices, size):
        for count, pixels in enumerate(chunks(self, frame_indices, size)):
            if count == 2:
                raise UnsupportedStream("a damaged frame")
            yield pixels

    monkeypatch.setattr(SparseReader, "chunks", failing)
    with Video(path) as video:
        frame_indices = np.arange(0, video.num_frames, 7)
        assert video.is_seekable
        parts = list(video.read(frame_indices, 4))
        assert not video.is_seekable
    np.testing.assert_array_equal(np.concatenate([part.frame_indices for part in parts]), frame_indices)
    np.testing.assert_array_equal(np.concatenate([part.pixels for part in parts]), expected[frame_indices])


def test_the_x264_version_in_the_first_packet_counts_wherever_reading_begins(tmp_path):
    draw = scenes(4)
    path = write_video(
        tmp_path / "v.mp4", frames=200, gop=20, draw=draw, options={"qp": "0", "profile": "high444"}
    )
    data = path.read_bytes()
    offset = data.index(b" core ")
    # FFmpeg decodes the lossless frames of x264 before version 151 in another way.
    path.write_bytes(data[:offset] + b" core 142" + data[offset + 9 :])
    expected = everything(path)
    reader = SparseReader(path)
    for first in (30, 100, 150):
        frame_indices = np.arange(first, 200, 24)
        np.testing.assert_array_equal(
            np.concatenate(list(reader.chunks(frame_indices, 4))), expected[frame_indices]
        )
    path.write_bytes(data)
    assert not np.array_equal(expected, everything(path))


def resident_bytes(process="self"):
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096


def test_memory_stays_flat_with_a_slow_consumer(tmp_path):
    path = write_video(tmp_path / "long.mp4", frames=400, fps=10, size=(640, 360), gop=100)
    with Video(path) as video:
        frames = video.read(video.candidates(), 4)
        next(frames)
        before = resident_bytes()
        for count, _ in enumerate(frames):
            if count < 3:
                time.sleep(0.3)  # A decoder that runs ahead would have read the rest by now: 270 MB.
        assert resident_bytes() - before < 90e6


@pytest.mark.long  # the reader's memory is tested alone
def test_decoding_processes_stay_small_with_a_slow_model(tmp_path):
    path = write_video(tmp_path / "long.flv", frames=500, fps=10, size=(640, 360), gop=100, codec="flv")
    sizes = []
    with WorkerPool(DecodeSpec(SquarePreprocessor(8), "auto", 8, "skip"), num_workers=1) as pool:
        for count, (_, event) in enumerate(pool.run(iter([VideoJob("long", path)]))):
            if isinstance(event, FrameBatch) and count < 4:
                time.sleep(0.5)
                sizes.append(resident_bytes(pool._workers[0]._process.pid))
    assert isinstance(event, EndOfVideo)
    assert max(sizes) < 300e6, sizes  # all frames of the video: 340 MB


# For each film in data/, how many packets are decoded for one frame, and for every 24th.
NEEDED = {
    "h264.mp4": (10, 36),
    "h264_open_groups.mp4": (30, 48),
    "hevc.mp4": (8, 25),
    "vp9.webm": (21, 75),
    "av1.mkv": (4, 12),
    "mpeg4.mp4": (7, 11),
}


@pytest.mark.parametrize("name", NEEDED)
def test_packets_that_are_not_needed_are_left_out_in_every_codec(name):
    reader = SparseReader(Path(__file__).parent / "data" / name)
    requests = np.array([60]), np.arange(0, 120, 24)
    assert tuple(sum(map(len, reader.needed(indices))) for indices in requests) == NEEDED[name]


def test_where_a_reference_is_missing_every_packet_is_decoded(tmp_path):
    whole, path = write_video(tmp_path / "whole.mp4", frames=60, gop=60, draw=scenes(1)), tmp_path / "gap.mp4"
    with av.open(str(whole)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0], opaque=True)
        packets = [packet for packet in old.demux(video=0) if packet.size]
        del packets[next(i for i, packet in enumerate(packets) if i > 10 and not packet.is_disposable)]
        for packet in packets:
            packet.stream = stream
            new.mux(packet)
    needed = {}
    for name in (whole, path):
        (needed[name],) = SparseReader(name).needed(np.array([35]))
    assert len(needed[whole]) < needed[whole][-1] + 1
    assert len(needed[path]) == needed[path][-1] + 1  # FFmpeg makes up frames for the one that is missing
