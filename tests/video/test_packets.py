"""What packet headers tell without decoding: random access points and references."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from aks.video import packets
from aks.video.packets import UnsupportedBitstream, packet_inspector


def test_only_frames_of_the_highest_hevc_layer_can_be_left_out():
    header = bytearray(23)
    header[0], header[21] = 1, 3 << 3 | 3  # three temporal layers; lengths of four bytes
    inspect = packet_inspector("hevc", bytes(header))
    for nal_type, layer, is_reference in [
        (0, 2, False),
        (0, 1, True),
        (1, 2, True),
        (8, 2, False),
        (20, 0, True),
    ]:
        packet = memoryview(bytes([0, 0, 0, 3, nal_type << 1, layer + 1, 0]))
        assert bool(inspect(packet).refresh_slots) == is_reference
    header[21] = 3  # an unknown number of layers
    assert packet_inspector("hevc", bytes(header))(memoryview(bytes([0, 0, 0, 3, 0, 3, 0]))).refresh_slots


@pytest.mark.parametrize(
    ("first_byte", "is_random_access"),
    [(0xB0, True), (0xB2, False), (0xB4, False), (0x80, True), (0x84, False), (0x88, False)],
)
def test_vp9_key_frames_are_recognized_in_every_profile(first_byte, is_random_access):
    # Profile 3 (B0) has one bit more than profile 0 (80) before show_existing_frame and frame_type.
    info = packet_inspector("vp9", b"")(memoryview(bytes([first_byte])))
    assert info.is_random_access == is_random_access
    assert info.refresh_slots  # other frames may refer to any VP9 frame


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_an_impossible_nal_length_is_an_error(codec):
    header = bytearray(23)
    header[0], header[4], header[21] = 1, 3, 3  # lengths of four bytes
    inspect = packet_inspector(codec, bytes(header))
    for packet in (bytes(4), bytes(3), b"\0\0\0\2\1", b"\0\0\0\0\1\1"):
        with pytest.raises(UnsupportedBitstream, match="lengths"):
            inspect(memoryview(packet))


@pytest.mark.parametrize("present", [None, 5, 6])
def test_scaling_matrices_are_skipped(present):
    """The first six lists (4x4 blocks) have 16 numbers each, the two behind them (8x8 blocks) 64."""
    lists = "".join("1" + "1" * (16 if index < 6 else 64) if index == present else "0" for index in range(8))
    # High profile, constraints, level; id 0, 4:2:0, 8 bit twice, no bypass; matrices; frame_num of 7 bits.
    fields = f"{100:08b}" + "0" * 16 + "1" + "010" + "11" + "0" + "1" + lists + "00100" + "1" * 8
    data = int(fields.ljust(-(-len(fields) // 8) * 8, "0"), 2).to_bytes(-(-len(fields) // 8), "big")
    assert packets._h264_frame_num_bits(memoryview(bytes([0x67]) + data)) == (0, 7)


@pytest.mark.parametrize(
    ("name", "codec", "message_types", "other_types"),
    [("h264.mp4", "h264", (6, 9, 12), (14,)), ("hevc.mp4", "hevc", (35, 38, 39, 40), (41,))],
)
def test_messages_beside_a_frame_do_not_make_it_a_reference(name, codec, message_types, other_types):
    with av.open(str(Path(__file__).parent / "data" / name)) as container:
        inspect = packet_inspector(codec, container.streams.video[0].codec_context.extradata)
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    unreferenced = next(packet for packet in packets if not inspect(memoryview(packet)).refresh_slots)
    for nal_types, is_reference in ((message_types, False), (other_types, True)):
        for nal_type in nal_types:
            nal = bytes([nal_type]) if codec == "h264" else bytes([nal_type << 1, 1])
            packet = len(nal).to_bytes(4, "big") + nal + unreferenced
            assert bool(inspect(memoryview(packet)).refresh_slots) == is_reference


@pytest.mark.parametrize(("codec", "size"), [("h264", 5), ("hevc", 22)])
def test_a_global_header_that_is_cut_is_not_read(codec, size):
    with pytest.raises(UnsupportedBitstream, match="not packed with lengths"):
        packet_inspector(codec, b"\x01" * size)
