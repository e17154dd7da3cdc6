"""Of a damaged or truncated file the sparse reader gives right frames or none."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
import pytest
from media import everything, everything_by_pts, scenes, write_video

from aks import VideoError
from aks.video.codec_log import codec_messages, reset_decoder_globals
from aks.video.reader import Video
from aks.video.sparse import SparseReader


def frames_until_failure(reader, stride):
    """Every ``stride``-th frame that a reader gives before it fails, by frame index."""
    frame_indices = np.arange(0, reader.num_frames, stride)
    frames = {}
    with suppress(VideoError):
        for index, pixels in zip(frame_indices.tolist(), reader.chunks(frame_indices, 1), strict=True):
            frames[index] = pixels[0]
    return frames


def check_damaged(path, original):
    """Check that the sparse reader refuses a damaged file, or stops, or gives right frames.

    A frame is right if it equals the undamaged original, or what decoding everything gives: full decoding
    may spoil a whole frame by the damage of another one, which the sparse reader leaves out.

    Returns:
        How many frames were compared.
    """
    try:
        reader = SparseReader(path)
    except VideoError:
        return 0
    index_pts = reader._index.pts[reader._index.positions].tolist()
    frames = frames_until_failure(reader, 7)
    # What was decoded before makes no difference: FFmpeg's messages are the same as the first time.
    assert frames_until_failure(SparseReader(path), 7).keys() == frames.keys()
    by_pts = {index_pts[index]: pixels for index, pixels in frames.items()}
    all_frames = everything_by_pts(path)
    for pts in by_pts.keys() & all_frames.keys():
        if not np.array_equal(by_pts[pts], original.get(pts)):
            np.testing.assert_array_equal(by_pts[pts], all_frames[pts])
    return len(by_pts.keys() & all_frames.keys())


# Seeds of the damage to small films of 120 frames, among them seeds whose damage is hard to notice. The films
# are files, because the effect of damage depends on every byte, and encoders differ between processors.
DAMAGED = {
    "h264.mp4": (13, 14, 15, 23, 27, 94, 101, 153, 192, 0, 1, 2),
    "h264_open_groups.mp4": (86, 114, 129, 0, 1, 2, 3, 4),
    # Seed 9 is left out: FFmpeg's HEVC decoder does not notice its damage to a frame that others need.
    "hevc.mp4": [*range(9), 10, 11, 12],
    "vp9.webm": range(12),
    "av1.mkv": range(12),
    "mpeg4.mp4": range(12),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_frame_is_not_made_up(tmp_path, name):
    path = Path(__file__).parent / "data" / name
    whole = path.read_bytes()
    with av.open(str(path)) as container:
        locations = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    original = everything_by_pts(path)
    damaged, compared = tmp_path / f"damaged{path.suffix}", 0
    for seed in DAMAGED[name]:
        rng = np.random.default_rng(seed)
        data = bytearray(whole)
        for offset, size in rng.choice(locations, 3):
            first = int(rng.integers(size))
            count = int(rng.integers(1, min(40, size - first) + 1))
            data[offset + first : offset + first + count] = rng.bytes(count)
        damaged.write_bytes(data)
        compared += check_damaged(damaged, original)
    assert compared > 20


@pytest.mark.parametrize(
    ("name", "offset", "byte"),
    [
        ("h264.mp4", 6034, 0x7C),  # a key frame that FFmpeg flags without a log message
        ("h264.mp4", 7080, 0x05),  # a reference frame whose frame_num changes
        ("h264_open_groups.mp4", 20578, 0x97),  # a frame whose references are unknown
    ],
)
def test_a_frame_with_a_damaged_header_is_not_made_up(tmp_path, name, offset, byte):
    path, damaged = Path(__file__).parent / "data" / name, tmp_path / "damaged.mp4"
    data = bytearray(path.read_bytes())
    data[offset] = byte
    damaged.write_bytes(data)
    assert check_damaged(damaged, everything_by_pts(path))


# Without HEVC: where FFmpeg does not notice damage, its frames differ from run to run, in one thread, too.
@pytest.mark.parametrize("name", ["h264.mp4", "h264_open_groups.mp4"])
def test_several_threads_read_a_damaged_file_as_one_does(tmp_path, name):
    path = Path(__file__).parent / "data" / name
    whole, damaged, given_up = path.read_bytes(), tmp_path / "damaged.mp4", 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        data = bytearray(whole)
        for offset in rng.integers(len(whole) // 4, len(whole) * 3 // 4, 2):
            data[offset : offset + 8] = rng.bytes(8)
        damaged.write_bytes(data)
        pixels = []
        for threads in (1, 4):
            with suppress(VideoError), Video(damaged) as video:
                pixels.append(video.read_all(np.arange(0, video.num_frames, 7), threads).pixels)
        given_up += not pixels
        assert len(pixels) != 1 and (not pixels or np.array_equal(*pixels))
    assert given_up < 8


def test_a_thread_gets_its_own_messages_and_nobody_else_any(caplog, capfd):
    def log(text):
        av.logging.log(av.logging.ERROR, "h264", text)

    def listen_and_go_on():
        with suppress(VideoError), codec_messages() as messages:
            log("theirs")
            raise VideoError("stop")
        reset_decoder_globals()  # as opening a video does
        log("nobody's")
        return messages

    with codec_messages() as messages:
        with ThreadPoolExecutor(1) as pool:
            theirs = pool.submit(listen_and_go_on).result()
        log("ours")
    with av.logging.Capture() as later:
        log("after all")
    assert [text for *_, text in theirs] == ["theirs"] and [text for *_, text in messages] == ["ours"]
    assert (later, caplog.records, capfd.readouterr().err) == ([], [], "")


@pytest.mark.parametrize("file", ["v.mp4", "v.mkv"])
def test_the_frames_of_a_truncated_file_are_right(tmp_path, file):
    options = {"movflags": "faststart"} if file == "v.mp4" else {}
    path = write_video(tmp_path / file, frames=220, gop=40, draw=scenes(0), container_options=options)
    original, expected, whole = everything_by_pts(path), everything(path), path.read_bytes()
    for part in (0.3, 0.61, 0.9):
        path.write_bytes(whole[: int(len(whole) * part)])
        check_damaged(path, original)
        with Video(path, partial=True) as video:
            # The last frames are incomplete, because frames are not stored in presentation order.
            frame_indices = np.arange(0, video.num_frames - 6, 7)
            pixels = np.concatenate([frames.pixels for frames in video.read(frame_indices)])
        np.testing.assert_array_equal(pixels, expected[frame_indices])
