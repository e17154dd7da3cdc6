"""A reader for sparse frames, one a second, that decodes only what the wanted frames need.

:class:`SparseReader` inspects every packet once (:mod:`aks.video.packets`), then gives the decoder as few
packets as it can::

    packets   I P b b P b b P b b  I P b b P b b P b b  I P b b ...    I: random access point
    wanted              ^                                     ^        b: no other frame refers to it
    decoded   I P     P b                               I P b

- It skips groups of pictures without a wanted frame, and the part of a group behind its last wanted frame.
- It skips frames that no needed frame refers to, unless they are wanted themselves.
- It converts only wanted frames to RGB.

Leading frames are stored behind the first frame of their group but shown before it. They may refer to the
group before, too (an "open" group): for a wanted leading frame the reader decodes both groups in one go.

The pixels equal those of decoding everything, to the bit. Where that is not sure the reader raises
:class:`UnsupportedStream`; :class:`aks.video.backends.SequentialReader` then decodes the whole video.
"""

from __future__ import annotations

import contextlib
import itertools
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from aks.errors import VideoError, error_message
from aks.video.backends import (
    PyAVReader,
    RGBConverter,
    average_rate,
    open_container,
    seconds_from_first,
    select_video_stream,
)
from aks.video.codec_log import codec_messages
from aks.video.packets import UnsupportedBitstream, packet_inspector

# FFmpeg's names of the containers that state every packet's pts, and the coding parameters in their header.
EXACT_CONTAINERS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}
# FFmpeg's log messages for frames that it makes up: from damaged parts, nothing, or lost references.
CONCEALMENT_MESSAGES = ("concealing", "decode_slice_header error", "co located POCs unavailable")


class UnsupportedStream(VideoError):
    """The sparse reader cannot read this video exactly, or not from here on; another reader may."""


class SparseReader(PyAVReader):
    """Decodes what the wanted frames need; numbers frames by presentation time, as decord does.

    Raises:
        UnsupportedStream: the video is not of a kind that this reader is known to read exactly.
        VideoError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._index = PacketIndex(path)
        self.num_packets, self.num_frames = len(self._index.pts), len(self._index.positions)
        self.is_edited = self.num_frames < self.num_packets
        pts = self._index.pts[self._index.positions]
        self.fps = average_rate(self._index.header_rate, (pts - pts[0]) * float(self._index.time_base))
        self._seconds = seconds_from_first(pts, self._index.start, self._index.time_base)

    def needed(self, frame_indices: np.ndarray) -> list[np.ndarray]:
        """Positions in the file of the packets that some frames need, one array per run of decoding."""
        runs = self._index.plan(self._index.positions[frame_indices])
        return [run.first + np.flatnonzero(np.frombuffer(run.needed, np.uint8)) for run in runs]

    def entry_distances(self, frame_indices: np.ndarray) -> np.ndarray:
        """Packets from where the decoding of each frame begins to the frame, (n,) int64."""
        positions = self._index.positions[frame_indices]
        groups, is_leading = self._index.groups_of(positions)
        return positions - self._index.entries[np.maximum(groups - is_leading, 0)]

    def independent_parts(self, frame_indices: np.ndarray, count: int) -> list[np.ndarray]:
        """Split ascending frame indices into at most ``count`` parts that share no group of pictures.

        So the same is decoded for each frame as if all were read together.
        """
        groups, is_leading = self._index.groups_of(self._index.positions[frame_indices])
        cuts = np.flatnonzero(groups[1:] - is_leading[1:] > np.maximum.accumulate(groups)[:-1]) + 1
        shares = np.arange(1, count) * len(frame_indices) / count
        return np.split(
            frame_indices, np.unique(cuts[np.searchsorted(cuts, shares[shares <= cuts.max(initial=0)])])
        )

    def _frames(self, frame_indices: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        positions = self._index.positions[frame_indices]
        to_rgb = RGBConverter()
        decoded = self._decode(positions)
        for index, pts in zip(frame_indices, self._index.pts[positions], strict=True):
            frame = next((frame for frame in decoded if frame.pts >= pts), None)
            if frame is None or frame.pts > pts:
                raise UnsupportedStream(f"frame {index} cannot be decoded (the stream has no such picture)")
            yield index, to_rgb(frame)

    def _decode(self, positions: np.ndarray) -> Iterator[av.VideoFrame]:
        """Frames in presentation order, among them those at the given positions; a frame may come twice."""
        try:
            yield from self._decode_runs(self._index.plan(positions))
        except (av.FFmpegError, OSError) as error:
            raise UnsupportedStream(f"decoding stops: {error_message(error)}") from None

    def _decode_runs(self, runs: Iterable[PacketRun], strict: bool = True) -> Iterator[av.VideoFrame]:
        """Decode runs of packets. If strict, decode an H.264 run with an error again, whole and not strict.

        Some videos violate the standard in places (they mark references that are gone), yet every frame
        comes out whole. A frame in which FFmpeg conceals damage is another matter: its content depends on
        everything decoded before, so that only decoding from the start gives it.
        """
        with open_container(self._path) as container:
            stream = select_video_stream(container)
            decoder = stream.codec_context
            decoder.thread_count = 1  # More threads do not pay where few packets in a row are decoded.
            if strict:  # A damaged frame must not be made up from whatever was decoded around it.
                decoder.options = {"err_detect": "explode"}
            packets = None
            for run in runs:
                packets = packets or self._packets(container, stream, run.first)
                had_error = False
                for packet in self._needed_packets(packets, run):
                    try:
                        frames = _decode_undamaged(decoder, packet)
                    except av.FFmpegError:
                        if not strict or self._index.codec != "h264":
                            raise
                        had_error = True
                        break
                    for frame in frames:
                        self._reject_unusual(frame)
                        yield frame
                decoder.flush_buffers()
                if had_error:
                    whole = PacketRun(run.first, bytearray(b"\1") * len(run.needed))
                    yield from self._decode_runs([whole], strict=False)

    def _packets(
        self, container: av.container.InputContainer, stream: av.VideoStream, first: int
    ) -> Iterator[tuple[int, av.Packet]]:
        """Packets with their positions, beginning at ``first``, a random access point, or before it."""
        packets = (packet for packet in container.demux(stream) if packet.size)
        if not first:
            return enumerate(packets)
        _prime_decoder(stream.codec_context, packets)
        previous = int(np.searchsorted(self._index.entries, first)) - 1
        if previous < 1:
            return enumerate(packets, 1)
        # Seek to the group before: containers seek by decoding time, which is earlier than the pts.
        container.seek(int(self._index.pts[self._index.entries[previous]]), stream=stream)
        first_pts = int(self._index.pts[first])
        return enumerate(itertools.dropwhile(lambda packet: packet.pts != first_pts, packets), first)

    def _needed_packets(
        self, packets: Iterator[tuple[int, av.Packet]], run: PacketRun
    ) -> Iterator[av.Packet | None]:
        """The needed packets of a run, then None, which makes the decoder return its last frames."""
        for position, packet in packets:
            if packet.pts != self._index.pts[position]:
                raise UnsupportedStream("the file changes while it is read")
            offset = position - run.first
            if offset >= 0 and run.needed[offset]:
                yield packet
            if offset + 1 == len(run.needed):
                yield None
                return

    def _reject_unusual(self, frame: av.VideoFrame) -> None:
        if frame.pts is None:
            raise UnsupportedStream("a frame without a time")
        if frame.is_corrupt:
            raise UnsupportedStream("a damaged frame")
        if (frame.width, frame.height, frame.format.name) != self._index.size:
            raise UnsupportedStream("the picture changes its size")
        if self._index.codec == "h264":
            _reject_interlaced(frame)


def _reject_interlaced(frame: av.VideoFrame) -> None:
    if frame.interlaced_frame:
        raise UnsupportedStream("two fields, which may be packets of their own")


def _decode_undamaged(decoder: av.VideoCodecContext, packet: av.Packet | None) -> list[av.VideoFrame]:
    """Decode a packet, or return the decoder's last frames for None.

    Raises:
        UnsupportedStream: FFmpeg conceals damage in a frame. Only its log says so.
    """
    with codec_messages() as messages:
        frames = decoder.decode(packet)
    if any(text.startswith(CONCEALMENT_MESSAGES) for _, _, text in messages):
        raise UnsupportedStream("a damaged picture")
    return frames


def _prime_decoder(decoder: av.VideoCodecContext, packets: Iterator[av.Packet]) -> None:
    """Decode a file's first packet: x264 signs it with its version, which changes how FFmpeg decodes."""
    with contextlib.suppress(av.FFmpegError):
        decoder.decode(next(packets))
        decoder.decode(None)
    decoder.flush_buffers()


class PacketRun(NamedTuple):
    """Packets that are decoded in one go: from position ``first`` on, those with a 1 in ``needed``."""

    first: int
    needed: bytearray


class PacketIndex:
    """What one pass over a file's packets tells. A position is a packet's index in the file.

    Attributes:
        codec: FFmpeg's name of the codec.
        size: width, height and pixel format.
        header_rate: average frame rate in the header; None if it states none.
        time_base: seconds per unit of pts.
        start: pts at which the stream starts.
        pts: presentation timestamp of each position, (n,) int64.
        positions: position of each frame index, (n,) int64. Frames that an edit list hides, in front of the
            first frame or behind the last one, have no index; other frames may refer to them.
        entries: positions of the random access points, ascending int64. A group of pictures begins at each.
    """

    def __init__(self, path: Path) -> None:
        pts, entries, is_hidden = array("q"), array("q"), bytearray()
        # By position, one byte each: PacketInfo's fields.
        self._ref_slots, self._refresh_slots, self._has_gap = bytearray(), bytearray(), bytearray()
        try:
            with open_container(path) as container:
                if container.format.name not in EXACT_CONTAINERS:
                    raise UnsupportedStream("not a file that states every frame's time")
                if "mp4" in container.format.name and not _has_one_stsd(path):
                    raise UnsupportedStream("its coding parameters change on the way")
                stream = select_video_stream(container)
                decoder = stream.codec_context
                self.codec = decoder.codec.canonical_name
                self.size = decoder.width, decoder.height, decoder.pix_fmt
                self.header_rate = stream.average_rate
                self.time_base, self.start = stream.time_base, stream.start_time
                inspect = packet_inspector(self.codec, decoder.extradata, decoder.codec.intra_only)
                for packet in container.demux(stream):
                    if not packet.size:
                        continue
                    if packet.pts is None or packet.is_corrupt:
                        raise UnsupportedStream("packets without a time, or damaged")
                    info = inspect(memoryview(packet))
                    if not pts:
                        parameter_sets = info.parameter_sets
                        if self.codec == "h264":
                            for frame in decoder.decode(packet) + decoder.decode(None):
                                _reject_interlaced(frame)
                    if info.parameter_sets != (parameter_sets if info.is_random_access else b""):
                        raise UnsupportedStream("its coding parameters change on the way")
                    if info.is_random_access:
                        if not packet.is_keyframe:
                            raise UnsupportedStream("a key frame of which the container does not know")
                        entries.append(len(pts))
                    pts.append(packet.pts)
                    is_hidden.append(packet.is_discard)
                    self._ref_slots.append(info.ref_slots)
                    self._refresh_slots.append(info.refresh_slots)
                    self._has_gap.append(info.has_gap)
        except UnsupportedBitstream as error:
            raise UnsupportedStream(str(error)) from None
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"cannot be indexed: {error_message(error)}") from None
        self.pts = np.array(pts, dtype=np.int64)
        self.entries = np.array(entries, dtype=np.int64)
        if not entries or entries[0] != 0 or None in (self.start, self.time_base):
            raise UnsupportedStream("it does not begin with a picture of its own")
        if len(np.unique(self.pts)) < len(self.pts):
            raise UnsupportedStream("two frames have the same time")
        order = np.argsort(self.pts)
        shown = np.flatnonzero(np.frombuffer(is_hidden, dtype=np.uint8)[order] == 0)
        if not len(shown) or shown[-1] - shown[0] + 1 != len(shown):
            raise UnsupportedStream("an edit list with several parts")
        self.positions = order[shown]

    def plan(self, positions: np.ndarray) -> Iterator[PacketRun]:
        """What to decode for the frames at the given positions (at least one)."""
        groups, is_leading = self.groups_of(positions)
        # A leading frame needs the group before its own, decoded to the end, in the same run.
        linked_groups = groups[is_leading & (groups > 0)]
        wanted = np.union1d(positions, self.entries[linked_groups] - 1)
        groups = self.group_of(wanted)
        begins_run = np.append(True, np.diff(groups) > 0) & ~np.isin(groups, linked_groups)
        for run in np.split(wanted, np.flatnonzero(begins_run)[1:]):
            first = int(self.entries[self.group_of(run[0])])
            yield PacketRun(first, self._needed_between(first, run))

    def group_of(self, positions: np.ndarray) -> np.ndarray:
        """Which group of pictures positions are in, from 0."""
        return np.searchsorted(self.entries, positions, side="right") - 1

    def groups_of(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Groups of positions, and whether their frames are leading ones, (n,) each."""
        groups = self.group_of(positions)
        return groups, self.pts[positions] < self.pts[self.entries[groups]]

    def _needed_between(self, first: int, wanted: np.ndarray) -> bytearray:
        """For each position from ``first`` to the last wanted one, whether the wanted frames need it."""
        stop = int(wanted[-1]) + 1
        if any(self._has_gap[first:stop]):
            return bytearray(b"\1") * (stop - first)
        needed = bytearray(stop - first)
        for position in wanted.tolist():
            needed[position - first] = 1
        live_slots = 0  # slots that a needed frame, later in the file, refers to
        for position in range(stop - 1, first - 1, -1):
            if needed[position - first] or self._refresh_slots[position] & live_slots:
                needed[position - first] = 1
                live_slots = live_slots & ~self._refresh_slots[position] | self._ref_slots[position]
        return needed


def _has_one_stsd(path: Path) -> bool:
    """Whether every track of an MP4 file has one sample description (ISO/IEC 14496-12, 8.5.2).

    With the first packet of another description, FFmpeg hands the decoder new coding parameters. PyAV does
    not show them.
    """
    with path.open("rb") as file:
        while len(head := file.read(16)) >= 8:
            size = int.from_bytes(head[:4], "big")
            body = file.tell() - len(head) + 8
            if size == 1:  # a large box, whose size follows
                size, body = int.from_bytes(head[8:], "big"), body + 8
            if head[4:8] == b"moov":
                file.seek(body)
                tables = file.read(size).split(b"stsd")[1:]
                return bool(tables) and all(table[4:8] == b"\0\0\0\1" for table in tables)
            if size < 8:
                break
            file.seek(body + size - (16 if head[:4] == b"\0\0\0\1" else 8))
    return False
