"""Candidate frames: the rule, frame indices, equal pixels from all backends, and failures with a reason."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import decord
import numpy as np
import pytest
from media import picture, write_bad_files, write_video

from aks import UserError, VideoError
from aks.video.backends import MAX_REORDER, SequentialReader, average_rate
from aks.video.reader import CandidateRule, Video, estimate_candidates


def read_all(path, decoder):
    with Video(path, decoder) as video:
        parts = list(video.read(np.arange(video.num_frames), chunk_frames=7))
    return (
        np.concatenate([part.frame_indices for part in parts]),
        np.concatenate([part.times_s for part in parts]),
        np.concatenate([part.pixels for part in parts]),
    )


@pytest.mark.parametrize(
    ("fps", "frames", "stride", "count"),
    [(24, 60, 24, 2), (25, 125, 25, 5), (1, 5, 1, 5), (30, 29, 30, 0), (1, 1, 1, 1)],
)
def test_candidates_follow_the_papers_rule(tmp_path, fps, frames, stride, count):
    path = write_video(tmp_path / "v.mp4", fps=fps, frames=frames)
    for decoder in ("auto", "pyav", "decord"):
        with Video(path, decoder) as video:
            assert (video.num_frames, video.fps, video.stride_frames) == (frames, fps, stride)
            assert video.candidates().tolist() == [k * stride for k in range(count)]


@pytest.mark.parametrize("file", ["v.mp4", "v.mkv"])
@pytest.mark.parametrize(("rate", "stride"), [(Fraction(24000, 1001), 23), (Fraction(30000, 1001), 29)])
def test_stride_is_the_whole_part_of_a_fractional_rate(tmp_path, file, rate, stride):
    path = write_video(tmp_path / file, frames=70, fps=rate)
    for decoder in ("auto", "pyav", "decord"):
        with Video(path, decoder) as video:
            assert video.fps == pytest.approx(float(rate), abs=1e-3) and video.fps % 1 > 0.9
            assert video.candidates().tolist() == [k * stride for k in range(70 // stride)]
            times = video.times_s(video.candidates())
            clock_s = 1e-3 if file == "v.mkv" else 1e-6
            np.testing.assert_allclose(times, video.candidates() / float(rate), atol=clock_s)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ((1,), range(0, 58, 29)),  # int(29.97); 70 frames hold two whole steps
        ((10,), range(0, 70, 2)),
        ((20,), range(70)),
        ((100,), range(70)),
        ((0.5,), range(0, 59, 59)),
        ((0.1,), ()),
        ((10, 1.0, 1.5), range(30, 45, 2)),  # frame 30 is at 1.001 s, 44 at 1.468 s
        ((10, 30 * 1001 / 30000, 32 * 1001 / 30000), (30, 32)),  # both ends are included
        ((1, 1.5), ()),
    ],
)
def test_candidates_of_another_rate_and_of_a_part_follow_the_same_rule(ntsc, rule, expected):
    with Video(ntsc) as video:
        assert video.candidates(CandidateRule(*rule)).tolist() == [*expected]


@pytest.fixture(scope="module")
def ntsc(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("ntsc") / "v.mp4", frames=70, fps=Fraction(30000, 1001))


@pytest.mark.parametrize("rule", [(0,), (-1,), (float("nan"),), (1, -1), (1, 3, 2), (1, float("nan"))])
def test_a_rule_without_frames_is_refused(rule):
    with pytest.raises(ValueError, match=r"must be a number above 0|use 0 <= start <= end"):
        CandidateRule(*rule)


def test_below_one_frame_a_second_every_frame_is_a_candidate(tmp_path):
    path = write_video(tmp_path / "slow.mp4", frames=5, pts=[0, 4000, 8000, 12000, 16000])
    with Video(path) as video:
        assert video.fps < 1
        assert video.candidates().tolist() == [0, 1, 2, 3, 4]


VARIANTS = {
    "h264": ("v.mp4", {}),
    "hevc": ("v.mp4", {"codec": "libx265", "options": {"x265-params": "log-level=none"}}),
    "vp9": ("v.webm", {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}}),
    "mkv": ("v.mkv", {}),
    "mpeg4 avi": ("v.avi", {"codec": "mpeg4"}),
    "mpeg2 program stream": ("v.mpg", {"codec": "mpeg2video", "fps": 25}),
    "variable rate": ("v.mp4", {"pts": [0, 30, 100, 110, 300, 340, 400, 480, 500, 900], "frames": 10}),
    "odd sizes": ("v.mkv", {"codec": "ffv1", "size": (97, 65)}),
    "10 bit": (
        "v.mp4",
        {"codec": "libx265", "pixel_format": "yuv420p10le", "options": {"x265-params": "log-level=none"}},
    ),
    "4:4:4": ("v.mp4", {"pixel_format": "yuv444p", "size": (97, 65)}),
    "full range": ("v.mp4", {"options": {"x264-params": "fullrange=on"}}),
    "bt709": ("v.mp4", {"options": {"x264-params": "colormatrix=bt709:colorprim=bt709:transfer=bt709"}}),
    "bt709 full range": ("v.mp4", {"options": {"x264-params": "fullrange=on:colormatrix=bt709"}}),
    "interlaced": ("v.mp4", {"options": {"flags": "+ilme+ildct", "x264-params": "interlaced=1:tff=1"}}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_all_backends_give_the_same_frames(tmp_path, name):
    file, options = VARIANTS[name]
    path = write_video(tmp_path / file, **{"frames": 30, **options})
    decord_indices, decord_times, decord_pixels = read_all(path, "decord")
    for decoder in ("auto", "pyav"):
        frame_indices, times, pixels = read_all(path, decoder)
        np.testing.assert_array_equal(decord_indices, frame_indices)
        np.testing.assert_array_equal(decord_pixels, pixels)
        # decord reads no pts from a program stream; there its times follow from the frame rate.
        np.testing.assert_allclose(decord_times, times, atol=0.05 if name == "mpeg2 program stream" else 0)


def test_frames_are_the_ones_that_were_encoded(tmp_path):
    path = write_video(tmp_path / "v.mkv", codec="ffv1", pixel_format="bgr0", frames=30)  # lossless
    for decoder in ("auto", "pyav", "decord"):
        with Video(path, decoder) as video:
            frame_indices = [3, 4, 17, 29]
            (frames,) = video.read(frame_indices)
        assert frames.frame_indices.tolist() == frame_indices
        for index, pixels in zip(frame_indices, frames.pixels, strict=True):
            np.testing.assert_array_equal(pixels, picture(index, 96, 64))


def test_times_are_presentation_times_where_the_rate_varies(tmp_path):
    pts_ms = [0, 40, 500, 520, 1000, 2500]
    path = write_video(tmp_path / "v.mp4", frames=6, pts=pts_ms)
    for decoder in ("auto", "pyav", "decord"):
        with Video(path, decoder) as video:
            np.testing.assert_allclose(video.times_s(range(6)), np.array(pts_ms) / 1000, atol=1e-6)


def test_chunks_bound_how_many_frames_are_held(tmp_path):
    path = write_video(tmp_path / "v.mp4", frames=50)
    for decoder in ("auto", "pyav", "decord"):
        with Video(path, decoder) as video:
            sizes = [len(part.frame_indices) for part in video.read(range(0, 50, 5), chunk_frames=4)]
            assert sizes == [4, 4, 2]


def test_av1_is_read_by_pyav_automatically(tmp_path):
    path = write_video(tmp_path / "v.mp4", codec="libaom-av1", frames=25, fps=5, options={"cpu-used": "8"})
    with Video(path) as video:
        assert video.decoder == "pyav"
        assert len(video.candidates()) == 5
        assert sum(len(part.frame_indices) for part in video.read(video.candidates())) == 5
    with pytest.raises(VideoError, match="decord"):
        Video(path, "decord")


def test_frames_stay_arrays_if_another_library_makes_decord_return_tensors(tmp_path):
    path = write_video(tmp_path / "v.mp4")
    decord.bridge.set_bridge("torch")
    try:
        assert type(next(Video(path, "decord").read([0])).pixels) is np.ndarray
    finally:
        decord.bridge.set_bridge("native")


def test_reading_does_not_hang_if_another_library_routes_codec_logs_through_python(tmp_path):
    path = write_video(tmp_path / "v.mp4", frames=50)
    # Importing torchvision sets this level. A reader that is dropped early closes while codec threads work.
    code = (
        "import av, sys; from aks.video.reader import Video; av.logging.set_level(av.logging.ERROR)\n"
        "for _ in range(200):\n"
        "    with Video(sys.argv[1], 'pyav') as video: next(video.read([0, 5, 10], chunk_frames=1))"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=root, check=True, timeout=60)


def test_a_bad_file_is_an_error_with_a_reason(tmp_path):
    for name, reason in write_bad_files(tmp_path).items():
        with pytest.raises(VideoError, match=reason) as caught:
            Video(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_a_file_cut_short_is_an_error_that_says_so(tmp_path, decoder):
    options = {"container_options": {"movflags": "faststart"}, "options": {"bf": "0"}}
    whole = write_video(tmp_path / "v.mp4", frames=200, **options)
    with av.open(str(whole)) as container:
        ends = [packet.pos + packet.size for packet in container.demux(video=0) if packet.size]
    for count in (1, 100, 120, 160, 189):
        (tmp_path / "part.mp4").write_bytes(whole.read_bytes()[: ends[count - 1]])
        with pytest.raises(VideoError, match=f"cut short: {count} of 200 frames"):
            Video(tmp_path / "part.mp4", decoder)
    (tmp_path / "part.mp4").write_bytes(
        whole.read_bytes()[: ends[190]]
    )  # A header may count a few frames too many.
    with Video(tmp_path / "part.mp4", decoder) as video:
        assert video.num_frames == video.header_num_frames == 191


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_with_partial_a_file_cut_short_gives_the_frames_that_are_there(tmp_path, decoder):
    whole = write_video(tmp_path / "v.mp4", frames=250, container_options={"movflags": "faststart"})
    (tmp_path / "half.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with Video(whole, decoder, partial=True) as video:
        assert (video.num_frames, video.header_num_frames) == (250, 250)
        expected = np.concatenate([part.pixels for part in video.read(range(0, 250, 24))])
    with Video(tmp_path / "half.mp4", decoder, partial=True) as video:
        assert video.header_num_frames == 250
        assert 24 < video.num_frames < 200
        frame_indices = video.candidates()
        # The last group of pictures may be incomplete.
        frame_indices = frame_indices[frame_indices < video.num_frames - 12]
        pixels = np.concatenate([part.pixels for part in video.read(frame_indices)])
    np.testing.assert_array_equal(pixels, expected[: len(frame_indices)])
    with Video(write_video(tmp_path / "v.mkv")) as video:  # its header does not count frames
        assert video.header_num_frames == video.num_frames


def test_a_title_that_is_not_utf8_is_ignored(tmp_path):
    path = write_video(tmp_path / "v.mkv", frames=30, metadata={"title": "XXXXXXXX"})
    path.write_bytes(path.read_bytes().replace(b"XXXXXXXX", b"caf\xe9 \xff\xfe!"))
    assert (estimate_candidates(path), estimate_candidates(tmp_path / "absent.mkv")) == (1, 0)
    with Video(path) as video:
        assert video.num_frames == 30


def test_a_colon_in_a_file_name_is_not_a_protocol(tmp_path, monkeypatch):
    write_video(tmp_path / "Intro: x.mp4")
    monkeypatch.chdir(tmp_path)
    for decoder in ("auto", "pyav", "decord"):
        with Video("Intro: x.mp4", decoder) as video:
            assert video.num_frames == 60


def test_a_change_of_frame_size_is_an_error(tmp_path):
    parts = [
        write_video(tmp_path / f"{n}.h264", frames=30, size=size)
        for n, size in enumerate([(96, 64), (64, 96)])
    ]
    (tmp_path / "both.h264").write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(VideoError, match=r"changes its size|cannot be decoded|decoding stops"):
        read_all(tmp_path / "both.h264", "pyav")


def test_a_damaged_stream_is_an_error_and_not_other_frames(tmp_path):
    data = bytearray(write_video(tmp_path / "v.mp4", frames=200, gop=10).read_bytes())
    start = data.find(b"mdat") + 8
    middle = start + (len(data) - start) // 2
    data[middle:] = b"\0" * (len(data) - middle)
    if data.find(b"moov") < 0 or data.find(b"moov") > middle:  # keep the index, which lies behind the data
        original = (tmp_path / "v.mp4").read_bytes()
        moov = original.rfind(b"moov") - 4
        data[moov:] = original[moov:]
    (tmp_path / "damaged.mp4").write_bytes(data)
    for decoder in ("auto", "pyav", "decord"):
        with (
            pytest.raises(VideoError, match=r"cannot be decoded|decoding stops"),
            Video(tmp_path / "damaged.mp4", decoder) as video,
        ):
            list(video.read(video.candidates()))


@pytest.mark.parametrize("decoder", ["auto", "decord", "pyav"])
def test_a_video_may_be_closed_twice(tmp_path, decoder):
    with Video(write_video(tmp_path / "v.mp4"), decoder) as video:
        video.close()


def test_an_unknown_decoder_and_frame_indices_out_of_range_are_errors(tmp_path):
    path = write_video(tmp_path / "v.mp4", frames=10)
    with pytest.raises(UserError, match="--decoder gpu"):
        Video(path, "gpu")
    with Video(path) as video:
        for frame_indices in ([-1], [10], [3, 3], [4, 2]):
            with pytest.raises(ValueError, match="frame numbers must ascend"):
                next(video.read(frame_indices))


@pytest.mark.parametrize(
    ("header", "times_s", "expected"),
    [
        (Fraction(24000, 1001), np.arange(100) / 24, 24000 / 1001),
        (Fraction(24), np.arange(1000) / 25, 24),  # within the tolerance: rounding
        (Fraction(30), np.arange(1000) / 25, 25),  # beyond it: a variable rate
        (Fraction(20), np.arange(1000) / 25, 25),
        (Fraction(3, 2), np.arange(3), 1.5),  # the last frame may last no time
        (None, np.arange(9) / 25, 25),
        (Fraction(25), np.zeros(1), 25),
    ],
)
def test_the_headers_rate_counts_unless_the_pts_contradict_it(header, times_s, expected):
    assert average_rate(header, times_s) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("distance", "usable"), [(1, True), (MAX_REORDER, True), (MAX_REORDER + 1, False)])
def test_decoding_times_are_presentation_times_in_another_order_within_the_codecs_limit(
    clips, distance, usable
):
    """Times farther from their place are no reordering: the frames are then timed by the rate."""
    order = np.arange(100)
    order[10 : 10 + distance + 1] = np.roll(order[10 : 10 + distance + 1], 1)
    pts = SequentialReader(clips / "one.mp4")._ascending_pts(order.tolist())
    assert (pts is not None) == usable
    if usable:
        np.testing.assert_array_equal(pts, np.arange(100))


def test_a_rate_in_neither_header_nor_pts_is_an_error():
    with pytest.raises(VideoError, match="states no frame rate"):
        average_rate(None, np.zeros(1))
