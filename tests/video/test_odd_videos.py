"""Videos as people have them: trimmed, remuxed, mirrored, with covers and several tracks.

The pixels of every frame spell its number in the source film, so that no backend serves as the reference for
another. At each candidate's time, the frame must be the one that a player shows.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from extraction_setup import ToyScorer, of_version_1, results, write_labels
from media import copy_streams, number_of, numbered, trim, write_audio, write_video
from safetensors import safe_open
from safetensors.torch import save_file

from aks import UserError, VideoError
from aks.extraction.api import extract, store_features
from aks.extraction.feature_store import FeatureStore
from aks.run_dir import FORMAT, RunDir
from aks.video.reader import Video, decord_differs, estimate_candidates
from evaluation.frame_policy import read_frames

FPS = 25
EVERY_SECOND = [(float(second), second * FPS) for second in range(8)]


def film(folder, name="film.mp4", **options):
    """Write 200 frames that spell their numbers, 25 a second."""
    settings = {"frames": 200, "fps": FPS, "size": (64, 64), "gop": 50, "draw": numbered, **options}
    if "codec" not in options:
        settings.setdefault("options", {"x264-params": "scenecut=0"})
    return write_video(folder / name, **settings)


def shown(path, decoder="auto"):
    """For each candidate, its time and the number that its pixels spell."""
    with Video(path, decoder) as video:
        return [
            (round(float(time_s), 2), number_of(pixels))
            for frames in video.read(video.candidates())
            for time_s, pixels in zip(frames.times_s, frames.pixels, strict=True)
        ]


X265 = {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=50:bframes=4:b-adapt=0"}}
CODECS = {
    "h264": {},
    "hevc, closed groups": {
        "codec": "libx265",
        "options": {"x265-params": "log-level=none:keyint=50:open-gop=0:bframes=4:b-adapt=0"},
    },
    "av1": {"codec": "libaom-av1", "options": {"cpu-used": "8", "usage": "realtime"}},
}


@pytest.mark.parametrize("codec", CODECS)
def test_a_film_trimmed_without_encoding_shows_the_frames_of_a_player(tmp_path, codec):
    path = trim(film(tmp_path, **CODECS[codec]), tmp_path / "trimmed.mp4")
    for decoder in ("auto", "pyav"):
        assert shown(path, decoder) == [(0.0, 85), (1.0, 110), (2.0, 135), (3.0, 160)]
    with Video(path) as video:
        assert (video.num_frames, video.fps, video.is_seekable) == (115, 25, True)
        # A frame index gives the same frame, however few frames are read.
        for index in (0, 7, 50, 114):
            (frames,) = video.read([index])
            assert number_of(frames.pixels[0]) == 85 + index


def test_evaluation_shows_the_scored_frames_of_a_trimmed_film(tmp_path, run):
    path = trim(film(tmp_path), tmp_path / "trimmed.mp4")
    extract(write_labels(tmp_path, ["trimmed.mp4"]), ToyScorer(), run)
    part = run.read_part("trimmed.mp4")
    assert (part.decoder, part.is_edited, part.frames) == ("pyav", True, [0, 25, 50, 75])
    scored = [number for _, number in shown(path)]
    for selected in ([50], [0, 75], part.frames):
        frames, _ = read_frames(path, np.array(selected), {"id": "q"})
        assert [number_of(pixels) for pixels in frames.pixels] == [scored[n // 25] for n in selected]


def test_files_in_which_decord_differs_are_recognized(tmp_path):
    plain = film(tmp_path)
    for differing in (
        trim(plain, tmp_path / "trimmed.mp4"),
        copy_streams(plain, to=tmp_path / "v.avi"),
        copy_streams(plain, to=tmp_path / "v.ts"),
        film(tmp_path, "v.mkv", **X265),
        film(tmp_path, "av1.mp4", **CODECS["av1"]),
    ):
        assert decord_differs(differing), differing
    for same in (
        plain,
        copy_streams(plain, to=tmp_path / "v.mkv"),
        film(tmp_path, "h.mp4", **CODECS["hevc, closed groups"]),
    ):
        assert not decord_differs(same), same


def test_videos_that_an_earlier_version_may_have_misread_are_named_and_read_again(tmp_path, caplog):
    names = ["good.mp4", "cut.mp4", "bursts.mkv", "old.avi", "away.mp4"]
    for name in names:
        film(tmp_path, name, frames=50, **({"options": {"bf": "0"}} if name == "old.avi" else {}))
    labels, run = write_labels(tmp_path, names), RunDir(tmp_path / "out")
    extract(labels, ToyScorer(), run)
    expected = results(run)
    of_version_1(run.part_path("good.mp4"))
    of_version_1(run.part_path("old.avi"))
    of_version_1(run.part_path("bursts.mkv"), fps=50.0)
    for name in ("cut.mp4", "away.mp4"):
        of_version_1(run.part_path(name), decoder="decord", frames=[0, 3], times_s=[0.0, 0.12])
    of_version_1(run.folder / "run.json")
    (tmp_path / "away.mp4").rename(tmp_path / "hidden.mp4")

    summary = extract(labels, ToyScorer(), run)
    assert (summary.scored, summary.reused) == (3, 2)
    log = caplog.text
    for name in ("cut.mp4", "bursts.mkv", "old.avi"):
        assert (
            f"{name}: an earlier version may have read other frames than a player shows; it is read again"
            in log
        )
    assert "away.mp4: an earlier version" in log and "it is kept" in log and "good.mp4" not in log

    (tmp_path / "hidden.mp4").rename(tmp_path / "away.mp4")
    assert extract(labels, ToyScorer(), run).scored == 1
    of_version_1(run.part_path("good.mp4"), format=2)
    assert {name: json.loads(data) for name, data in results(run).items()} == {
        name: json.loads(data) for name, data in expected.items()
    }
    caplog.clear()
    extract(labels, ToyScorer(), run)
    assert "earlier version" not in caplog.text
    assert json.loads((run.folder / "run.json").read_text())["format"] == FORMAT  # later runs skip the check


def test_features_of_an_earlier_version_are_refused_and_can_be_stored_again(tmp_path):
    film(tmp_path, "cut.mp4", frames=50)
    labels, store = write_labels(tmp_path, ["cut.mp4"]), FeatureStore(tmp_path / "features", "float32")
    store_features(labels, ToyScorer(), store)
    path = store.part_path("cut.mp4")
    whole = path.read_bytes()
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        metadata = {key: value for key, value in file.metadata().items() if key != "format"}
    save_file(tensors, path, {**metadata, "decoder": "decord"})
    of_version_1(store.folder / "run.json")
    with pytest.raises(UserError, match=r"1 videos \(cut.mp4\).*feature_extract_store.py reads these again"):
        extract(labels, ToyScorer(), RunDir(tmp_path / "out"), features=store)
    assert store_features(labels, ToyScorer(), store).scored == 1
    assert path.read_bytes() == whole
    extract(labels, ToyScorer(), RunDir(tmp_path / "out"), features=store)


def test_frames_of_decord_and_of_a_player_do_not_mix_in_a_run(tmp_path):
    film(tmp_path, "v.mp4", frames=50)
    labels, run = write_labels(tmp_path, ["v.mp4"]), RunDir(tmp_path / "out")
    extract(labels, ToyScorer(), run, decoder="decord")
    with pytest.raises(UserError, match="decoder 'decord' there, None now"):
        extract(labels, ToyScorer(), run)


def with_edits(source, target, edits):
    """Copy an MP4 file with an edit list that shows these parts: (first frame, number of frames) each."""
    data = bytearray(source.read_bytes())
    moov = data.rfind(b"moov") - 4
    assert moov > data.find(b"mdat")  # so that the moov box may grow
    old = data.find(b"edts", moov) - 4
    old_size = int.from_bytes(data[old : old + 4], "big")
    (media_start,) = struct.unpack(">i", data[old + 28 : old + 32])  # behind its first entry's duration
    scale = data.find(b"mvhd", moov) + 16
    (movie_scale,) = struct.unpack(">I", data[scale : scale + 4])
    scale = data.find(b"mdhd", moov) + 16
    (media_scale,) = struct.unpack(">I", data[scale : scale + 4])
    entries = b"".join(
        struct.pack(">IiI", count * movie_scale // FPS, media_start + first * media_scale // FPS, 0x10000)
        for first, count in edits
    )
    box = struct.pack(">I4sI", 0, b"elst", 0)[4:] + struct.pack(">I", len(edits)) + entries
    box = struct.pack(">I", len(box) + 4) + box
    box = struct.pack(">I4s", len(box) + 8, b"edts") + box
    data[old : old + old_size] = box
    for name in (b"moov", b"trak"):
        start = data.find(name, moov) - 4
        size = int.from_bytes(data[start : start + 4], "big") + len(box) - old_size
        data[start : start + 4] = size.to_bytes(4, "big")
    target.write_bytes(data)
    return target


def test_an_edit_list_of_several_parts_shows_them_one_after_the_other(tmp_path):
    path = with_edits(film(tmp_path), tmp_path / "cut.mp4", [(25, 50), (130, 50)])
    assert [number for _, number in shown(path)] == [25, 50, 130, 155]


def test_an_edit_list_hides_frames_at_the_end_too(tmp_path):
    path = with_edits(film(tmp_path), tmp_path / "cut.mp4", [(30, 55)])
    assert shown(path) == [(0.0, 30), (1.0, 55)]


CONTAINERS = {
    "avi": "v.avi",
    "asf": "v.asf",
    "flv": "v.flv",
    "nut": "v.nut",
    "matroska": "v.mkv",
    "transport stream": "v.ts",
    "playlist": "v.m3u8",
    "raw": "v.h264",
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("groups", ["closed", "open"])
def test_h264_is_read_alike_in_every_container(tmp_path, container, groups):
    x264_params = "bframes=3:b-adapt=0:scenecut=0:keyint=50" + ":open-gop=1" * (groups == "open")
    path = copy_streams(
        film(tmp_path, options={"x264-params": x264_params}), to=tmp_path / CONTAINERS[container]
    )
    assert shown(path) == EVERY_SECOND


OTHER_CODECS = {
    "mpeg-2 program stream": ("v.mpg", {"codec": "mpeg2video", "options": {"qmax": "2"}}),
    "mpeg-2 in matroska, B-frames": (
        "v.mkv",
        {"codec": "mpeg2video", "options": {"qmax": "2", "bf": "2"}, "gop": 15},
    ),
    "wmv": ("v.wmv", {"codec": "wmv2", "options": {"qmax": "2"}}),
    "mpeg-4 in avi, B-frames": ("v.avi", {"codec": "mpeg4", "options": {"qmax": "2", "bf": "2"}}),
    "h264 in avi": ("v.avi", {}),
    "hevc, open groups": ("v.mkv", X265),
}


@pytest.mark.parametrize("kind", OTHER_CODECS)
def test_other_codecs_show_every_second(tmp_path, kind):
    name, options = OTHER_CODECS[kind]
    for (time_s, number), (second, expected) in zip(
        shown(film(tmp_path, name, **options)), EVERY_SECOND, strict=True
    ):
        assert number == expected
        assert time_s == pytest.approx(second, abs=0.05)  # a program stream's clock


BURSTS = [40 * number for number in range(200) if number % 50 < 10]  # pts of the frames in milliseconds


def draw_in_bursts(index, width, height):
    return numbered(BURSTS[index] // 40, width, height)


@pytest.mark.parametrize("name", ["v.mkv", "v.mp4"])
def test_candidates_of_a_variable_rate_are_about_one_a_second(tmp_path, name):
    path = film(tmp_path, name, frames=len(BURSTS), pts=BURSTS, draw=draw_in_bursts)
    expected = [(BURSTS[n] / 1000, BURSTS[n] // 40) for n in range(0, 36, 6)]
    assert shown(path) == expected


def write_avi_in_bursts(folder):
    """Write an AVI file in which most ticks of the clock have no frame."""
    return film(
        folder,
        "v.avi",
        frames=len(BURSTS),
        pts=BURSTS,
        draw=draw_in_bursts,
        codec="mpeg4",
        options={"qmax": "2"},
    )


def test_avi_files_with_dropped_frames_are_complete(tmp_path):
    path = write_avi_in_bursts(tmp_path)
    with Video(path) as video:
        assert video.num_frames == video.header_num_frames == len(BURSTS)
    assert [number for _, number in shown(path)] == [BURSTS[n] // 40 for n in range(0, 36, 6)]


def test_an_avi_file_cut_short_is_an_error(tmp_path):
    path = film(tmp_path, "v.avi", codec="mpeg4", options={"qmax": "2"})
    whole = path.read_bytes()
    with av.open(str(path)) as container:
        ends = [packet.pos + packet.size for packet in container.demux(video=0) if packet.size]
    for count in (100, 120, 180):
        path.write_bytes(whole[: ends[count]])
        with pytest.raises(VideoError, match=r"cut short: 1?\d\d of 200 frames"):
            Video(path)


def test_a_recording_begins_at_its_first_key_frame(tmp_path):
    path = copy_streams(film(tmp_path), to=tmp_path / "v.ts", begin=20)
    assert shown(path) == [(float(second), 50 + second * FPS) for second in range(6)]


def write_cover(path, codec="mjpeg", pixel_format="yuvj420p"):
    return write_video(path, frames=1, codec=codec, pixel_format=pixel_format, size=(320, 240), fps=FPS)


def test_neither_a_cover_nor_a_single_image_is_the_film(tmp_path):
    plain, cover = film(tmp_path), write_cover(tmp_path / "cover.mov")
    assert shown(copy_streams(cover, plain, to=tmp_path / "before.mov")) == EVERY_SECOND
    assert shown(copy_streams(cover, plain, to=tmp_path / "cover.mkv", cover=0)) == EVERY_SECOND


def test_of_two_tracks_the_default_one_is_read(tmp_path):
    other = write_video(
        tmp_path / "other.mp4", frames=240, fps=30, size=(128, 96), draw=lambda n, w, h: numbered(0, w, h)
    )
    path = copy_streams(other, film(tmp_path), to=tmp_path / "two.mp4", default=1)
    assert shown(path) == EVERY_SECOND


def test_audio_with_a_cover_is_not_a_video(tmp_path):
    sound, cover = write_audio(tmp_path / "sound.m4a"), write_cover(tmp_path / "cover.mov")
    with pytest.raises(VideoError, match="no video stream"):
        Video(copy_streams(sound, cover, to=tmp_path / "s.mp4", cover=1))


def draw_quarters(index, width, height):
    """Four quarters of different grey, whose places show how a frame was rotated and mirrored."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[: height // 2, width // 2 :] = 60
    pixels[height // 2 :, : width // 2] = 120
    pixels[height // 2 :, width // 2 :] = 180
    return pixels


ONE = 0x10000
# a, b, c, d of the display matrix, and the quarters that it shows, row by row.
MATRICES = {
    "as it is": ((ONE, 0, 0, ONE), [[0, 1], [2, 3]]),
    "mirrored": ((-ONE, 0, 0, ONE), [[1, 0], [3, 2]]),
    "upside down": ((ONE, 0, 0, -ONE), [[2, 3], [0, 1]]),
    "half a turn": ((-ONE, 0, 0, -ONE), [[3, 2], [1, 0]]),
    "clockwise": ((0, ONE, -ONE, 0), [[2, 0], [3, 1]]),
    "counter-clockwise": ((0, -ONE, ONE, 0), [[1, 3], [0, 2]]),
    "transposed": ((0, ONE, ONE, 0), [[0, 2], [1, 3]]),
    "transposed, half a turn": ((0, -ONE, -ONE, 0), [[3, 1], [2, 0]]),
}


@pytest.mark.parametrize("name", MATRICES)
def test_frames_are_rotated_and_mirrored_by_the_display_matrix(tmp_path, name):
    (a, b, c, d), expected = MATRICES[name]
    path = write_video(tmp_path / "v.mp4", frames=30, fps=FPS, size=(96, 64), draw=draw_quarters)
    data = bytearray(path.read_bytes())
    offset = data.find(b"tkhd") + 4 + 40  # version 0: 40 bytes before the matrix
    data[offset : offset + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(data)
    for decoder in ("auto", "pyav"):
        with Video(path, decoder) as video:
            (frames,) = video.read([0])
        height, width = frames.pixels.shape[1:3]
        assert (width, height) == ((96, 64) if b == 0 else (64, 96))
        corners = frames.pixels[0, [[4], [-4]], [4, -4]].mean(axis=-1)
        np.testing.assert_array_equal(np.round(corners / 60), expected)


def test_a_file_name_that_is_not_utf8_is_read(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4"))
    film(tmp_path).rename(path)
    for decoder in ("auto", "pyav"):
        assert shown(path, decoder) == EVERY_SECOND
    assert estimate_candidates(path) == 8


def repeat_pts(source, target, damaged=None):
    """Copy a file. Give packet 30 the pts of packet 31, and fill packet ``damaged`` with zeros."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0], opaque=True)
        packets = [packet for packet in old.demux(video=0) if packet.size]
        packets[30].pts = packets[31].pts
        for index, packet in enumerate(packets):
            if index == damaged:
                memoryview(packet)[:] = bytes(packet.size)
            packet.stream = stream
            new.mux(packet)
    return target


STEADY, SLOWER = [40 * n for n in range(75)], [40 * n if n < 50 else 200 * n - 8000 for n in range(75)]


@pytest.mark.parametrize(("name", "pts"), [("v.mkv", STEADY), ("v.mov", STEADY), ("v.ts", SLOWER)])
def test_two_frames_with_the_same_pts_are_both_shown_and_times_ascend(tmp_path, name, pts):
    path = film(tmp_path, frames=75, options={"bf": "0"}, pts=pts)
    path = repeat_pts(path, tmp_path / name)
    for decoder in ("auto", "pyav", *(["decord"] if name != "v.ts" else [])):
        with Video(path, decoder) as video:
            frames = list(video.read(range(75)))
        assert [number_of(pixels) for part in frames for pixels in part.pixels] == list(range(75))
        times = np.concatenate([part.times_s for part in frames])
        assert (np.diff(times) > 0).all()
        np.testing.assert_allclose(times, np.array(pts) / 1000, atol=0.05)


def test_damage_beside_repeated_pts_costs_no_other_frame(tmp_path):
    path = repeat_pts(film(tmp_path, frames=75, gop=1), tmp_path / "v.mkv", damaged=55)
    with Video(path) as video:
        numbers = [number_of(frames.pixels[0]) for frames in video.read_partial(range(video.num_frames))]
    assert numbers == [number for number in range(75) if number != 55]


def test_an_avi_file_cut_short_does_not_count_dropped_frames(tmp_path):
    path = write_avi_in_bursts(tmp_path)
    with av.open(str(path)) as container:
        ends = [packet.pos + packet.size for packet in container.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[: ends[24]])
    with pytest.raises(VideoError, match=r"cut short: \d\d of [345]\d frames"):  # not 6400, one a millisecond
        Video(path)


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_frames_that_an_edit_list_hides_do_not_count_as_missing(tmp_path, decoder):
    cut = {"begin": 50, "first_pts": 85, "avoid_negative_ts": "0", "video_track_timescale": str(FPS)}
    path = copy_streams(film(tmp_path), to=tmp_path / "trimmed.mp4", **cut)
    with Video(path, decoder) as video:
        assert video.num_frames == video.header_num_frames == 115


@pytest.mark.parametrize(("later_s", "gap_s"), [(-4, 0), (8, 8), (12, 0), (3600, 0)])
def test_clock_jumps_of_a_broadcast_take_no_time_but_pauses_do(tmp_path, later_s, gap_s):
    plain, path = film(tmp_path, options={"bf": "0", "x264-params": "scenecut=0"}), tmp_path / "both.ts"
    first = copy_streams(plain, to=tmp_path / "1.ts", stop=100)
    second = copy_streams(plain, to=tmp_path / "2.ts", begin=100, first_pts=-FPS * later_s)
    path.write_bytes(first.read_bytes() + second.read_bytes())
    with Video(path) as video:
        indices = np.arange(200)
        numbers = [number_of(pixels) for frames in video.read(indices) for pixels in frames.pixels]
        assert numbers == indices.tolist()
        expected = indices / FPS + gap_s * (indices >= 100)
        np.testing.assert_allclose(video.times_s(indices), expected, atol=1e-3)


def test_scores_from_features_of_a_trimmed_film_say_so_too(tmp_path):
    trim(film(tmp_path), tmp_path / "trimmed.mp4")
    labels, store = write_labels(tmp_path, ["trimmed.mp4"]), FeatureStore(tmp_path / "features", "float32")
    store_features(labels, ToyScorer(), store)
    direct, stored = RunDir(tmp_path / "direct"), RunDir(tmp_path / "stored")
    extract(labels, ToyScorer(), direct)
    extract(labels, ToyScorer(), stored, features=FeatureStore.open(store.folder))
    assert direct.read_part("trimmed.mp4") == stored.read_part("trimmed.mp4")
