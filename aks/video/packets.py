"""What the bytes of a compressed picture tell without decoding it.

A reader that wants one frame a second need not decode the rest. What it can leave out stands in the
first bytes of every packet: whether decoding can begin there, and which pictures a picture is predicted
from. :func:`packet_inspector` knows where, codec by codec:

=======  =================================  =====================================================
codec    decoding can begin at              a picture may be predicted from
=======  =================================  =====================================================
H.264    IDR                                all before it that have a ``nal_ref_idc``
HEVC     IDR, CRA, BLA                      all before it, but for ``_N`` ones of the highest layer
AV1      shown key frames                   those in the slots that its header names
MPEG-4   I-VOPs                             all before it, but for B-VOPs
VP8, 9   key frames                         all before it (each adapts the next one's coding)
JPEG...  every picture                      none (all codecs that FFmpeg calls intra-only)
=======  =================================  =====================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

ALL_SLOTS = 0xFF


class UnsupportedBitstream(Exception):
    """A packet or a header is not of the plain kind that can be told by its first bytes."""


class PacketInfo(NamedTuple):
    """What a packet tells.

    References are told as AV1 has them: a decoder keeps pictures in eight slots. For the other codecs,
    one slot stands for all pictures so far.

    Attributes:
        entry: decoding can begin here: this picture, and all that are shown after it, come out exact.
        reads: slots with pictures that this one may be predicted from, one bit each; none at an entry.
        writes: slots that this picture is put into.
        parameters: headers in the packet that hold for more than this picture, and are not in the
            stream's global header.
        counted: the picture's own number follows from the pictures before it. Where it does not, a decoder
            makes pictures up for those that seem to be missing: then none may be left out.
    """

    entry: bool
    reads: int
    writes: int
    parameters: bytes = b""
    counted: bool = True


Inspector = Callable[[memoryview], PacketInfo]


def packet_inspector(codec: str, extradata: bytes | None, intra_only: bool = False) -> Inspector:
    """A function that looks at the packets of a stream, which it must be shown one after the other.

    Args:
        codec: FFmpeg's name of the codec.
        extradata: the stream's global header.
        intra_only: whether FFmpeg says that its pictures are never predicted from others.

    Raises:
        UnsupportedBitstream: the codec is none of those above, or is not packed as in MP4 and Matroska files.
    """
    if intra_only:
        return lambda packet: _single_slot(True, False)
    if codec not in _INSPECTORS:
        raise UnsupportedBitstream(f"codec {codec}")
    return _INSPECTORS[codec](extradata or b"")


def _single_slot(entry: bool, referenced: bool, parameters: bytes = b"") -> PacketInfo:
    """A picture that may be predicted from any before it, back to an entry."""
    return PacketInfo(entry, int(not entry), int(entry or referenced), parameters)


# H.264 and HEVC: a packet is a row of units ("NAL units"), each behind its length.


def _h264(extradata: bytes) -> Inspector:
    """ITU-T H.264, 7.3.1, 7.3.3 (frame_num) and table 7-1; the packing is ISO/IEC 14496-15's."""
    length_bytes = _length_bytes(extradata, 4)
    # Parameter sets stand in the global header, or only in front of the first picture.
    fields = _h264_frame_num(memoryview(extradata)[8:]) if extradata[5] & 31 else None
    last = 0  # frame_num of the last picture that others may be predicted from

    def inspect(packet: memoryview) -> PacketInfo:
        nonlocal fields, last
        entry = referenced = picture = False
        counted = True
        parameters = b""
        for unit in _nal_units(packet, length_bytes):
            kind = unit[0] & 31
            if kind in (1, 5):  # a slice, of an IDR picture if 5
                if fields is None:
                    raise UnsupportedBitstream("a picture before its parameters")
                bits = _BitReader(unit[1:20], escaped=True)
                is_first = bits.exp_golomb() == 0
                bits.exp_golomb()  # slice_type
                bits.exp_golomb()  # pic_parameter_set_id
                bits.read(fields[0])
                frame_num = bits.read(fields[1])
                expected = 0 if kind == 5 else (last + 1) % (1 << fields[1])
                counted &= is_first != picture and frame_num == expected
                picture = True
                entry |= kind == 5
                referenced |= bool(unit[0] & 0x60)
            elif kind in (7, 8, 13, 15):
                parameters += _inband_parameter_set(unit, extradata)
                if kind == 7:
                    fields = _h264_frame_num(unit)
            elif kind not in (6, 9, 12):  # supplemental information, delimiters, filler
                referenced = True
        if not picture:
            raise UnsupportedBitstream("a packet without a picture")
        if referenced:
            last = frame_num
        return _single_slot(entry, referenced, parameters)._replace(counted=counted)

    return inspect


def _h264_frame_num(sequence: memoryview) -> tuple[int, int]:
    """Of a sequence parameter set (7.3.2.1.1): bits before each slice's frame_num, and bits that it takes."""
    bits = _BitReader(sequence[1:400], escaped=True)
    profile = bits.read(8)
    bits.read(16)  # constraints, level
    bits.exp_golomb()  # its number
    colour_plane_bits = 0
    if profile in (44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244):
        chroma = bits.exp_golomb()
        if chroma == 3:
            colour_plane_bits = 2 * bits.read(1)
        bits.exp_golomb()  # bit depths
        bits.exp_golomb()
        bits.read(1)
        if bits.read(1):  # scaling matrices
            for index in range(12 if chroma == 3 else 8):
                scale = 8 * bits.read(1)
                for _ in range(16 if index < 6 else 64):
                    if scale % 256 == 0:
                        break
                    step = bits.exp_golomb()
                    scale += (step + 1) // 2 if step % 2 else -(step // 2)
    return colour_plane_bits, bits.exp_golomb() + 4


def _hevc(extradata: bytes) -> Inspector:
    """ITU-T H.265, 7.3.1.2 and table 7-1."""
    length_bytes = _length_bytes(extradata, 21)
    # An _N picture is none that others of its own layer are predicted from; those of a higher one may be.
    highest = ((extradata[21] >> 3) & 7) - 1

    def inspect(packet: memoryview) -> PacketInfo:
        entry = referenced = picture = False
        parameters = b""
        for unit in _nal_units(packet, length_bytes):
            kind = (unit[0] >> 1) & 63
            if len(unit) < 2 or unit[0] & 1 or unit[1] & 0xF8:
                raise UnsupportedBitstream("several pictures in one")  # a second view or resolution
            if kind <= 21:
                picture = True
                entry |= kind >= 16
                layer = (unit[1] & 7) - 1
                if layer > highest >= 0:
                    raise UnsupportedBitstream("more layers than announced")
                referenced |= kind >= 16 or bool(kind & 1) or layer != highest
            elif kind in (32, 33, 34):
                parameters += _inband_parameter_set(unit, extradata)
            elif kind not in (35, 38, 39, 40):  # delimiters, filler, supplemental information
                referenced = True
        if not picture:
            raise UnsupportedBitstream("a packet without a picture")
        return _single_slot(entry, referenced, parameters)

    return inspect


def _length_bytes(extradata: bytes, at: int) -> int:
    if len(extradata) <= at or extradata[0] != 1:
        raise UnsupportedBitstream("not packed with lengths")
    return (extradata[at] & 3) + 1


def _inband_parameter_set(unit: memoryview, extradata: bytes) -> bytes:
    """A parameter set, if it is not in the global header, where it would stand behind its length."""
    return b"" if len(unit).to_bytes(3, "big")[1:] + unit in extradata else bytes(unit)


def _nal_units(packet: memoryview, length_bytes: int) -> Iterator[memoryview]:
    at, end = 0, len(packet)
    while at < end:
        start = at + length_bytes
        at = start + int.from_bytes(packet[start - length_bytes : start], "big")
        if at <= start or at > end:
            raise UnsupportedBitstream("damaged lengths")
        yield packet[start:at]


# AV1: a packet is a row of units ("OBUs") with a type and a length.


def _av1(extradata: bytes) -> Inspector:
    """AV1 bitstream specification, 5.3 to 5.9.2."""
    sequence: _Av1Sequence | None = None

    def inspect(packet: memoryview) -> PacketInfo:
        nonlocal sequence
        entry = frames = False
        reads = writes = 0
        parameters = b""
        for kind, unit in _obus(packet):
            if kind == 1:
                if bytes(unit) not in extradata:
                    parameters += unit
                if sequence is None or unit != sequence.unit:
                    sequence = _Av1Sequence(unit)
            elif kind in (3, 6):  # a frame's header, alone or with the frame
                if sequence is None:
                    raise UnsupportedBitstream("a frame before its sequence header")
                frame = sequence.frame(unit)
                entry |= frame.entry and not frames
                reads |= frame.reads & ~writes  # a packet may hold hidden frames, for its own, too
                writes |= frame.writes
                frames = True
        if not frames:
            raise UnsupportedBitstream("a packet without a picture")
        return PacketInfo(entry, reads, writes, parameters)

    return inspect


def _obus(packet: memoryview) -> Iterator[tuple[int, memoryview]]:
    at = 0
    while at < len(packet):
        head = packet[at]
        if head & 0b1000_0101 or not head & 2:  # several layers; no length
            raise UnsupportedBitstream("AV1 of an unusual kind")
        size = shift = 0
        while True:
            at += 1
            if at == len(packet) or shift > 28:
                raise UnsupportedBitstream("damaged lengths")
            size |= (packet[at] & 127) << shift
            shift += 7
            if packet[at] < 128:
                break
        at += 1 + size
        if at > len(packet):
            raise UnsupportedBitstream("damaged lengths")
        yield (head >> 3) & 15, packet[at - size : at]


class _Av1Sequence:
    """A sequence header, as far as reading frame headers takes it, and what its frames left in the slots."""

    def __init__(self, unit: memoryview) -> None:
        self.unit = bytes(unit)
        self._key_slots = 0  # those that hold key frames
        bits = _BitReader(unit[:32])
        bits.read(3)  # profile
        if bits.read(2):
            raise UnsupportedBitstream("an AV1 still picture")
        if bits.read(1):
            raise UnsupportedBitstream("AV1 with timing information")
        delays = bits.read(1)
        if bits.read(5):
            raise UnsupportedBitstream("AV1 with several operating points")
        bits.read(12)
        if bits.read(5) > 7:  # level
            bits.read(1)  # tier
        if delays and bits.read(1):
            bits.read(4)
        width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
        bits.read(width_bits)
        bits.read(height_bits)
        if bits.read(1):
            raise UnsupportedBitstream("AV1 with frame numbers")
        bits.read(7)  # which tools are used, up to enable_dual_filter
        self._ordered = bits.read(1)
        if self._ordered:
            bits.read(2)
        # 0 and 1: off and on in all frames; 2: each frame says
        self._screen_content = 2 if bits.read(1) else bits.read(1)
        self._integer_motion = 2
        if self._screen_content and not bits.read(1):
            self._integer_motion = bits.read(1)
        self._order_bits = bits.read(3) + 1 if self._ordered else 0

    def frame(self, unit: memoryview) -> PacketInfo:
        """What the header of the next frame tells."""
        bits = _BitReader(unit[:32])
        if bits.read(1):  # only shows what a slot holds; of a key frame, that goes into all of them
            slot = 1 << bits.read(3)
            return self._look(slot, ALL_SLOTS if slot & self._key_slots else 0, key=True)
        kind, shown = bits.read(2), bits.read(1)  # kinds: key, inter, intra, switch
        if not shown:
            bits.read(1)
        if kind == 0 and shown:
            return self._look(0, ALL_SLOTS, key=True)._replace(entry=True)
        if kind == 3:
            return self._look(ALL_SLOTS, ALL_SLOTS)
        resilient = bits.read(1)
        bits.read(1)  # disable_cdf_update
        screen_content = bits.read(1) if self._screen_content == 2 else self._screen_content
        if screen_content and self._integer_motion == 2:
            bits.read(1)
        bits.read(1 + self._order_bits)
        if kind == 1 and not resilient:
            bits.read(3)  # primary_ref_frame, one of those below
        writes = bits.read(8)
        if kind != 1:
            return self._look(0, writes, key=kind == 0)
        if resilient or (self._ordered and bits.read(1)):  # slots follow from the order of what they hold
            return self._look(ALL_SLOTS, writes)
        reads = 0
        for _ in range(7):
            reads |= 1 << bits.read(3)
        return self._look(reads, writes)

    def _look(self, reads: int, writes: int, key: bool = False) -> PacketInfo:
        self._key_slots = self._key_slots | writes if key else self._key_slots & ~writes
        return PacketInfo(False, reads, writes)


class _BitReader:
    """The first bits of a header, one field after the other."""

    def __init__(self, data: memoryview, escaped: bool = False) -> None:
        head = bytes(data)
        if escaped:  # H.264 puts a 3 behind two zeros
            head = head.replace(b"\0\0\3", b"\0\0")
        self._value, self._left = int.from_bytes(head, "big"), 8 * len(head)

    def read(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise UnsupportedBitstream("damaged header")
        return (self._value >> self._left) & ((1 << count) - 1)

    def exp_golomb(self) -> int:
        """An unsigned number of variable length (ITU-T H.264, 9.1)."""
        zeros = self._left - (self._value & ((1 << self._left) - 1)).bit_length()
        return self.read(2 * zeros + 1) - 1


# The rest: one picture a packet, told by its first byte or by a start code.


def _vp8(packet: memoryview) -> PacketInfo:
    """RFC 6386, 9.1."""
    return _single_slot(not packet[0] & 1, True)


def _vp9(packet: memoryview) -> PacketInfo:
    """VP9 bitstream specification, 6.2; of a packet with a hidden frame, that one comes first."""
    if packet[0] >> 4 == 0b1011:  # profile 3 has one bit more
        return _single_slot(not packet[0] & 0b0110, True)
    return _single_slot(not packet[0] & 0b1100, True)


def _mpeg4(extradata: bytes) -> Inspector:
    """ISO/IEC 14496-2, 6.2.5: a picture begins with the start code B6 and the two bits of its kind."""

    def inspect(packet: memoryview) -> PacketInfo:
        data = bytes(packet)
        at = data.find(b"\0\0\1\xb6")
        if at < 0 or at + 4 >= len(data) or data.find(b"\0\0\1\xb6", at + 4) >= 0:
            raise UnsupportedBitstream("not one picture a packet")  # old AVI files hide B-VOPs behind others
        kind = data[at + 4] >> 6  # I, P, B, S
        group = data.find(b"\0\0\1\xb3", 0, at)  # a time code, of this picture only
        parameters = data[: at if group < 0 else group]
        return _single_slot(kind == 0, kind != 2, b"" if parameters in extradata else parameters)

    return inspect


_INSPECTORS: dict[str, Callable[[bytes], Inspector]] = {
    "h264": _h264,
    "hevc": _hevc,
    "av1": _av1,
    "vp8": lambda _: _vp8,
    "vp9": lambda _: _vp9,
    "mpeg4": _mpeg4,
}
