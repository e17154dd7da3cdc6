"""What the first bytes of a packet tell about its frame, without decoding it.

:func:`packet_inspector` reads, codec by codec, whether decoding can begin at a packet and which earlier
frames its frame may refer to:

=======  =================================  =====================================================
codec    random access points               a frame may refer to
=======  =================================  =====================================================
H.264    IDR                                all before it that have a ``nal_ref_idc``
HEVC     IDR, CRA, BLA                      all before it, but for ``_N`` ones of the highest layer
AV1      shown key frames                   those in the slots that its header names
MPEG-4   I-VOPs                             all before it, but for B-VOPs
VP8, 9   key frames                         all before it (each adapts the next one's coding)
JPEG...  every frame                        none (all codecs that FFmpeg calls intra-only)
=======  =================================  =====================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

ALL_SLOTS = 0xFF


class UnsupportedBitstream(Exception):
    """The first bytes of a packet or of a header do not tell what the reader needs to know."""


class PacketInfo(NamedTuple):
    """What a packet tells.

    References follow AV1's model: a decoder keeps frames in eight slots, one bit each in the masks below. For
    the other codecs slot 0 stands for all frames so far.

    Attributes:
        is_random_access: decoding can begin here: this frame, and all that are shown after it, are exact.
        ref_slots: slots whose frames this one may refer to; none at a random access point.
        refresh_slots: slots that this frame is stored in.
        parameter_sets: headers in the packet that hold for more than this frame, and are not in the
            stream's global header.
        has_gap: H.264's frame_num does not follow from the frames before. A decoder then makes up frames
            that seem to be missing, so no frame may be left out around this one.
    """

    is_random_access: bool
    ref_slots: int
    refresh_slots: int
    parameter_sets: bytes = b""
    has_gap: bool = False


Inspector = Callable[[memoryview], PacketInfo]


def packet_inspector(codec: str, extradata: bytes | None, intra_only: bool = False) -> Inspector:
    """Return a function that inspects the packets of a stream. It must see them all, in the file's order.

    Codec, global header (``extradata``) and ``intra_only`` are FFmpeg's.

    Raises:
        UnsupportedBitstream: the codec is not in the table above, or is not packed as in MP4 and Matroska.
    """
    if intra_only:
        return lambda packet: _single_slot(True, False)
    if codec not in _INSPECTORS:
        raise UnsupportedBitstream(f"codec {codec}")
    return _INSPECTORS[codec](extradata or b"")


def _single_slot(is_random_access: bool, is_reference: bool, *details: bytes | bool) -> PacketInfo:
    """A frame that may refer to any before it, back to a random access point."""
    refresh_slots = int(is_random_access or is_reference)
    return PacketInfo(is_random_access, int(not is_random_access), refresh_slots, *details)


class _BitReader:
    """Reads the bit fields at the beginning of a header."""

    def __init__(self, data: memoryview, escaped: bool = False) -> None:
        head = bytes(data)
        if escaped:  # emulation prevention (ITU-T H.264, 7.4.1): H.264 puts a 3 behind two zeros
            head = head.replace(b"\0\0\3", b"\0\0")
        self._value, self._remaining = int.from_bytes(head, "big"), 8 * len(head)

    def read(self, count: int) -> int:
        self._remaining -= count
        if self._remaining < 0:
            raise UnsupportedBitstream("damaged header")
        return (self._value >> self._remaining) & ((1 << count) - 1)

    def exp_golomb(self) -> int:
        """An unsigned number of variable length, ue(v) (ITU-T H.264, 9.1)."""
        zeros = self._remaining - (self._value & ((1 << self._remaining) - 1)).bit_length()
        return self.read(2 * zeros + 1) - 1


# H.264 and HEVC: a packet is a sequence of NAL units, each behind its length (ISO/IEC 14496-15).


def _h264(extradata: bytes) -> Inspector:
    """ITU-T H.264, 7.3.1, 7.3.3 (frame_num) and table 7-1."""
    length_size = _nal_length_size(extradata, 4)
    # Parameter sets stand in the global header, or only in front of the first frame.
    field_bits = _h264_frame_num_bits(memoryview(extradata)[8:]) if extradata[5] & 31 else None
    reference_frame_num = 0  # of the latest frame that others may refer to

    def inspect(packet: memoryview) -> PacketInfo:
        nonlocal field_bits, reference_frame_num
        is_idr = is_reference = has_slice = has_gap = False
        parameter_sets = b""
        for nal in _nal_units(packet, length_size):
            nal_type = nal[0] & 31
            if nal_type in (1, 5):  # a slice; 5: of an IDR picture
                if field_bits is None:
                    raise UnsupportedBitstream("a picture before its parameters")
                bits = _BitReader(nal[1:20], escaped=True)
                is_first_slice = bits.exp_golomb() == 0  # first_mb_in_slice
                bits.exp_golomb()  # slice_type
                bits.exp_golomb()  # pic_parameter_set_id
                bits.read(field_bits[0])
                frame_num = bits.read(field_bits[1])
                expected = 0 if nal_type == 5 else (reference_frame_num + 1) % (1 << field_bits[1])
                has_gap |= is_first_slice == has_slice or frame_num != expected
                has_slice = True
                is_idr |= nal_type == 5
                is_reference |= bool(nal[0] & 0x60)  # nal_ref_idc
            elif nal_type in (7, 8, 13, 15):  # parameter sets
                parameter_sets += _inband_parameter_set(nal, extradata)
                if nal_type == 7:
                    field_bits = _h264_frame_num_bits(nal)
            elif nal_type not in (6, 9, 12):  # SEI, delimiter, filler
                is_reference = True
        if not has_slice:
            raise UnsupportedBitstream("a packet without a picture")
        if is_reference:
            reference_frame_num = frame_num
        return _single_slot(is_idr, is_reference, parameter_sets, has_gap)

    return inspect


def _h264_frame_num_bits(nal: memoryview) -> tuple[int, int]:
    """From a sequence parameter set (7.3.2.1.1): bits in front of a slice's frame_num, and bits of it."""
    bits = _BitReader(nal[1:400], escaped=True)
    profile = bits.read(8)
    bits.read(16)  # constraints, level_idc
    bits.exp_golomb()  # seq_parameter_set_id
    colour_plane_bits = 0
    if profile in (44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244):
        chroma_format = bits.exp_golomb()
        if chroma_format == 3:
            colour_plane_bits = 2 * bits.read(1)
        bits.exp_golomb()  # bit_depth_luma_minus8
        bits.exp_golomb()  # bit_depth_chroma_minus8
        bits.read(1)
        if bits.read(1):  # seq_scaling_matrix_present_flag
            for index in range(12 if chroma_format == 3 else 8):
                next_scale = 8 * bits.read(1)
                for _ in range(16 if index < 6 else 64):
                    if next_scale % 256 == 0:
                        break
                    delta = bits.exp_golomb()  # as se(v)
                    next_scale += (delta + 1) // 2 if delta % 2 else -(delta // 2)
    return colour_plane_bits, bits.exp_golomb() + 4


def _hevc(extradata: bytes) -> Inspector:
    """ITU-T H.265, 7.3.1.2 and table 7-1."""
    length_size = _nal_length_size(extradata, 21)
    # Frames of the same temporal layer never refer to an _N frame; frames of a higher layer may.
    highest_layer = ((extradata[21] >> 3) & 7) - 1

    def inspect(packet: memoryview) -> PacketInfo:
        is_irap = is_reference = has_slice = False
        parameter_sets = b""
        for nal in _nal_units(packet, length_size):
            nal_type = (nal[0] >> 1) & 63
            if len(nal) < 2 or nal[0] & 1 or nal[1] & 0xF8:  # nuh_layer_id: a second view or resolution
                raise UnsupportedBitstream("several pictures in one")
            if nal_type <= 21:  # a slice; 16 and above: of an IRAP picture; below, even numbers: _N
                has_slice = True
                is_irap |= nal_type >= 16
                layer = (nal[1] & 7) - 1
                if layer > highest_layer >= 0:
                    raise UnsupportedBitstream("more layers than announced")
                is_reference |= nal_type >= 16 or bool(nal_type & 1) or layer != highest_layer
            elif nal_type in (32, 33, 34):  # parameter sets
                parameter_sets += _inband_parameter_set(nal, extradata)
            elif nal_type not in (35, 38, 39, 40):  # delimiter, filler, SEI
                is_reference = True
        if not has_slice:
            raise UnsupportedBitstream("a packet without a picture")
        return _single_slot(is_irap, is_reference, parameter_sets)

    return inspect


def _nal_length_size(extradata: bytes, offset: int) -> int:
    if len(extradata) <= offset + 1 or extradata[0] != 1:  # with at least the number of parameter sets behind
        raise UnsupportedBitstream("not packed with lengths")
    return (extradata[offset] & 3) + 1


def _inband_parameter_set(nal: memoryview, extradata: bytes) -> bytes:
    """A parameter set, or nothing if the global header holds it, behind its length of two bytes."""
    return b"" if len(nal).to_bytes(3, "big")[1:] + nal in extradata else bytes(nal)


def _nal_units(packet: memoryview, length_size: int) -> Iterator[memoryview]:
    end = 0
    while end < len(packet):
        start = end + length_size
        end = start + int.from_bytes(packet[start - length_size : start], "big")
        if end <= start or end > len(packet):
            raise UnsupportedBitstream("damaged lengths")
        yield packet[start:end]


# AV1: a packet is a sequence of OBUs, each with a type and a length.


def _av1(extradata: bytes) -> Inspector:
    """AV1 bitstream specification, 5.3 to 5.9.2."""
    sequence: _Av1Sequence | None = None

    def inspect(packet: memoryview) -> PacketInfo:
        nonlocal sequence
        is_random_access = has_frame = False
        ref_slots = refresh_slots = 0
        parameter_sets = b""
        for obu_type, obu in _obus(packet):
            if obu_type == 1:  # a sequence header
                if bytes(obu) not in extradata:
                    parameter_sets += obu
                if sequence is None or obu != sequence.obu:
                    sequence = _Av1Sequence(obu)
            elif obu_type in (3, 6):  # a frame's header, alone or with the frame
                if sequence is None:
                    raise UnsupportedBitstream("a frame before its sequence header")
                frame = sequence.inspect_frame(obu)
                is_random_access |= frame.is_random_access and not has_frame
                ref_slots |= frame.ref_slots & ~refresh_slots  # A packet may hold the frames it refers to.
                refresh_slots |= frame.refresh_slots
                has_frame = True
        if not has_frame:
            raise UnsupportedBitstream("a packet without a picture")
        return PacketInfo(is_random_access, ref_slots, refresh_slots, parameter_sets)

    return inspect


def _obus(packet: memoryview) -> Iterator[tuple[int, memoryview]]:
    offset = 0
    while offset < len(packet):
        header = packet[offset]
        if header & 0b1000_0101 or not header & 2:  # several layers, or no length
            raise UnsupportedBitstream("AV1 of an unusual kind")
        size = shift = 0
        while True:  # leb128 (4.10.5)
            offset += 1
            if offset == len(packet) or shift > 28:
                raise UnsupportedBitstream("damaged lengths")
            size |= (packet[offset] & 127) << shift
            shift += 7
            if packet[offset] < 128:
                break
        offset += 1 + size
        if offset > len(packet):
            raise UnsupportedBitstream("damaged lengths")
        yield (header >> 3) & 15, packet[offset - size : offset]


class _Av1Sequence:
    """The part of a sequence header (5.5) that frame headers depend on, and which slots hold key frames."""

    def __init__(self, obu: memoryview) -> None:
        self.obu = bytes(obu)
        self._key_slots = 0
        bits = _BitReader(obu[:32])
        bits.read(3)  # seq_profile
        if bits.read(3):
            raise UnsupportedBitstream("an AV1 still picture, or timing information")
        has_display_delay = bits.read(1)
        if bits.read(5):
            raise UnsupportedBitstream("AV1 with several operating points")
        bits.read(12)  # operating_point_idc
        if bits.read(5) > 7:  # seq_level_idx
            bits.read(1)  # seq_tier
        if has_display_delay and bits.read(1):
            bits.read(4)
        width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
        bits.read(width_bits + height_bits)
        if bits.read(1):
            raise UnsupportedBitstream("AV1 with frame numbers")
        bits.read(7)  # coding tools, up to enable_dual_filter
        self._has_order_hint = bits.read(1)
        if self._has_order_hint:
            bits.read(2)
        # 0 and 1: off and on in all frames; 2: each frame says
        self._screen_content = 2 if bits.read(1) else bits.read(1)
        self._integer_motion = 2
        if self._screen_content and not bits.read(1):
            self._integer_motion = bits.read(1)
        self._order_hint_bits = bits.read(3) + 1 if self._has_order_hint else 0

    def inspect_frame(self, obu: memoryview) -> PacketInfo:
        """Inspect the next frame header (5.9.2)."""
        bits = _BitReader(obu[:32])
        if bits.read(1):  # show_existing_frame; showing a key frame stores it in all slots
            slot = 1 << bits.read(3)
            return self._store(slot, ALL_SLOTS if slot & self._key_slots else 0, is_key=True)
        frame_type, is_shown = bits.read(2), bits.read(1)  # types: key, inter, intra-only, switch
        if not is_shown:
            bits.read(1)  # showable_frame
        if frame_type == 0 and is_shown:
            return self._store(0, ALL_SLOTS, is_key=True)._replace(is_random_access=True)
        if frame_type == 3:
            return self._store(ALL_SLOTS, ALL_SLOTS)
        is_resilient = bits.read(1)
        bits.read(1)  # disable_cdf_update
        screen_content = bits.read(1) if self._screen_content == 2 else self._screen_content
        if screen_content and self._integer_motion == 2:
            bits.read(1)
        bits.read(1 + self._order_hint_bits)
        if frame_type == 1 and not is_resilient:
            bits.read(3)  # primary_ref_frame, one of those below
        refresh_slots = bits.read(8)
        if frame_type != 1:
            return self._store(0, refresh_slots, is_key=frame_type == 0)
        # Some frames do not name their slots: those follow from the order hints of what the slots hold.
        if is_resilient or (self._has_order_hint and bits.read(1)):
            return self._store(ALL_SLOTS, refresh_slots)
        ref_slots = 0
        for _ in range(7):  # ref_frame_idx
            ref_slots |= 1 << bits.read(3)
        return self._store(ref_slots, refresh_slots)

    def _store(self, ref_slots: int, refresh_slots: int, is_key: bool = False) -> PacketInfo:
        self._key_slots = self._key_slots | refresh_slots if is_key else self._key_slots & ~refresh_slots
        return PacketInfo(False, ref_slots, refresh_slots)


# The other codecs: one frame a packet, told by its first byte or by a start code.


def _vp8(packet: memoryview) -> PacketInfo:
    """RFC 6386, 9.1."""
    return _single_slot(not packet[0] & 1, True)


def _vp9(packet: memoryview) -> PacketInfo:
    """VP9 bitstream specification, 6.2. Of a packet with a hidden frame, that frame comes first."""
    is_profile_3 = packet[0] >> 4 == 0b1011  # which has one bit more in front of these two
    return _single_slot(not packet[0] & (0b0110 if is_profile_3 else 0b1100), True)


def _mpeg4(extradata: bytes) -> Inspector:
    """ISO/IEC 14496-2, 6.2.5: a VOP begins with the start code B6 and the two bits of its type."""

    def inspect(packet: memoryview) -> PacketInfo:
        data = bytes(packet)
        offset = data.find(b"\0\0\1\xb6")
        if offset < 0 or offset + 4 >= len(data) or data.find(b"\0\0\1\xb6", offset + 4) >= 0:
            raise UnsupportedBitstream("not one picture a packet")  # Old AVI files pack B-VOPs behind others.
        vop_type = data[offset + 4] >> 6  # I, P, B, S
        group = data.find(b"\0\0\1\xb3", 0, offset)  # a group header: a time code, of this frame only
        headers = data[: offset if group < 0 else group]
        return _single_slot(vop_type == 0, vop_type != 2, b"" if headers in extradata else headers)

    return inspect


_INSPECTORS: dict[str, Callable[[bytes], Inspector]] = {
    "h264": _h264,
    "hevc": _hevc,
    "av1": _av1,
    "vp8": lambda _: _vp8,
    "vp9": lambda _: _vp9,
    "mpeg4": _mpeg4,
}
