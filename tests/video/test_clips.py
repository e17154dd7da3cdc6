"""Clips: the frames of a part, from the key frame before it, copied and not encoded again."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from media import copy_streams, rotate, write_audio, write_video

from aks.errors import VideoError
from aks.video.clips import _packets, clip_suffix, cut, merge_spans
from aks.video.reader import Video


def frames_of(path) -> np.ndarray:
    with Video(path) as video:
        return np.concatenate([chunk.pixels for chunk in video.read(np.arange(video.num_frames))])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {"options": {"bf": "2", "x264-params": "open-gop=1"}}),
        ("a.mkv", {"codec": "mpeg4", "options": {"bf": "2"}}),
        # No decoding times are known of the first packets.
        ("b.mkv", {"codec": "libx265", "options": {"x265-params": "bframes=3:b-adapt=0:log-level=none"}}),
        ("c.mkv", {"options": {"bf": "2", "x264-params": "open-gop=1"}}),
        ("a.webm", {"codec": "libvpx"}),
        ("a.ts", {"options": {"bf": "2"}}),
        ("a.wmv", {"codec": "wmv2"}),
        ("a.avi", {"codec": "mpeg4", "options": {"bf": "2"}}),
    ],
)
@pytest.mark.parametrize(("first_s", "last_s"), [(0.0, 0.5), (1.8, 2.2), (2.0, 9.0), (2.85, 2.95)])
def test_a_clip_holds_its_part_from_the_key_frame_before(tmp_path, name, options, first_s, last_s):
    video = write_video(tmp_path / name, frames=60, fps=20, gop=12, **options)  # a key frame every 0.6 s
    target = tmp_path / f"clip{clip_suffix(video)}"
    begins_s = cut(video, first_s, last_s, target)
    assert first_s - 0.6 - 1e-6 < begins_s <= first_s + 1e-6
    whole, clip = frames_of(video), frames_of(target)
    first, last = round(begins_s * 20), min(59, int(last_s * 20 + 1e-6))
    np.testing.assert_array_equal(clip[: last + 1 - first], whole[first : last + 1])
    assert len(clip) <= last + 1 - first + 3  # pictures that those in front of them need


def test_sound_is_copied_and_starts_with_the_picture(tmp_path):
    silent = write_video(tmp_path / "silent.mp4", frames=100, fps=20, gop=20)
    video = copy_streams(silent, write_audio(tmp_path / "sound.mp4", 220), to=tmp_path / "film.mp4")
    assert cut(video, 2.5, 3.5, tmp_path / "clip.mp4") == 2.0
    with av.open(str(tmp_path / "clip.mp4")) as container:
        starts = [float(stream.start_time * stream.time_base) for stream in container.streams]
        lengths = [float(stream.duration * stream.time_base) for stream in container.streams]
    assert len(starts) == 2 and max(starts) < 0.05
    np.testing.assert_allclose(lengths, 1.5, atol=0.16)


def test_read_from_the_start_a_part_begins_at_its_last_key_frame(tmp_path):
    silent = write_video(tmp_path / "silent.mp4", frames=100, fps=20, gop=20, options={"bf": "0"})
    video = copy_streams(silent, write_audio(tmp_path / "sound.mp4", 220), to=tmp_path / "film.mp4")
    with av.open(str(video)) as container:
        film, sound = container.streams
        found = list(_packets(container, film, [film, sound], Fraction(5, 2), Fraction(7, 2)))
    times = {
        stream: [float(p.pts * p.time_base) for p in found if p.stream is stream] for stream in (film, sound)
    }
    assert found[0].stream is film and times[film] == [2 + index / 20 for index in range(31)]
    np.testing.assert_allclose(times[sound], np.arange(times[sound][0], 3.5, 1024 / 44100), atol=1e-3)
    assert 2 <= times[sound][0] < 2.024


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("a.MP4", ".mp4"), ("a.m4v", ".mp4"), ("a.mov", ".mov"), ("a.webm", ".webm"), ("a.ts", ".mkv")],
)
def test_a_clip_is_of_its_video_s_kind_or_matroska(tmp_path, name, suffix):
    assert clip_suffix(tmp_path / name) == suffix


def test_a_clip_is_turned_as_its_video(tmp_path):
    upright = write_video(tmp_path / "upright.mp4", frames=10)
    turned = rotate(upright, tmp_path / "turned.mp4", 90)
    cut(turned, 0, 9, tmp_path / "clip.mp4")
    np.testing.assert_array_equal(frames_of(tmp_path / "clip.mp4"), frames_of(turned))
    assert frames_of(turned).shape[1:3] == frames_of(upright).shape[2:0:-1]


def test_neighbouring_moments_are_one_clip():
    assert merge_spans([13.0, 1.0, 10.0], 2.0) == [(0.0, 3.0), (8.0, 15.0)]
    assert merge_spans([4.0, 8.0, 12.1], 2.0) == [(2.0, 10.0), (10.1, 14.1)]


def test_what_cannot_be_copied_is_told(tmp_path):
    video = write_video(tmp_path / "a.avi", codec="wmv2")
    with pytest.raises(VideoError, match="'matroska' format does not support 'wmv2' codec"):
        cut(video, 0, 1, tmp_path / "clip.mkv")
    video.unlink()
    bare = write_video(tmp_path / "a.h264", frames=10)
    with pytest.raises(VideoError, match="its frames state no times"):
        cut(bare, 0, 1, tmp_path / "clip.mkv")
    bare.unlink()
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(VideoError, match="cannot be cut without encoding"):
        cut(tmp_path / "a.mp4", 0, 1, tmp_path / "clip.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
