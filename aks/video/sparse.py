"""Two readers on PyAV: one decodes everything, the other only what the wanted frames need.

:class:`SparseReader` is for sparse frames, one a second. It looks at every packet once
(:mod:`aks.video.packets`), then feeds the decoder as few as it can::

    packets   I P b b P b b P b b  I P b b P b b P b b  I P b b ...    I: decoding can begin here
    wanted              ^                                     ^        b: nothing is predicted from it
    decoded   I P     P b                               I P b

- nothing of a group of pictures behind its last wanted frame, and nothing of a group that holds none;
- no picture that nothing else is predicted from, unless it is wanted itself;
- and only wanted pictures become RGB.

Pictures that are stored behind their group's first one but shown before it are predicted from the group
before, too (an "open" group): for one of them both groups are decoded in one go.

The pixels are the same to the bit as if everything were decoded. Where that is not sure the reader
raises :class:`UnsupportedStream`, and :class:`SequentialReader` decodes the whole video, as a player does.
"""

from __future__ import annotations

import contextlib
import itertools
from array import array
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import SideData as SideDataBuffer
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import VideoReformatter

from aks.errors import VideoError, error_message
from aks.video import RATE_TOLERANCE
from aks.video.packets import UnsupportedBitstream, packet_inspector

# Containers that state every packet's time of presentation, and the coding parameters in their header.
CONTAINERS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}
MAX_REORDER = 16  # pictures by which decoding and presentation order differ, the codecs' most
# FFmpeg's words where it makes a picture up: of damaged parts, of nothing, or from references that are gone.
MADE_UP = ("concealing", "decode_slice_header error", "co located POCs unavailable")
MAX_STEP_S = 10.0  # ffmpeg takes a longer step of a broadcast's clock for a jump of it (dts_delta_threshold)


class UnsupportedStream(VideoError):
    """The fast reader cannot vouch for this video, or not from here on; another reader may read it."""


def open_container(path: Path) -> av.container.InputContainer:
    """Open a file with PyAV; titles and tags that are not UTF-8 do not matter here."""
    try:
        str(path).encode()
    except UnicodeEncodeError:  # PyAV takes no such name, but an open file
        return av.open(path.open("rb"), metadata_errors="ignore")
    return av.open(str(path), metadata_errors="ignore")


def select_video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The video stream that a player shows, by FFmpeg's choice; never a cover or another single picture.

    Raises:
        VideoError: there is none, or no decoder for it.
    """
    streams = container.streams.video
    cover = av.stream.Disposition.attached_pic
    moving = [stream for stream in streams if not stream.disposition & cover]
    moving = [stream for stream in moving if stream.frames != 1] or moving
    if not moving:
        raise VideoError("no video stream")
    moving = [stream for stream in moving if stream.codec_context is not None]
    if not moving:
        raise VideoError("no decoder for its video codec")
    best = container.streams.best("video")
    return best if best in moving else max(moving, key=lambda stream: stream.width * stream.height)


def average_rate(header: Fraction | None, seconds: np.ndarray) -> float:
    """Frames a second: the header's average, unless the frames' own times are against it.

    Headers of Matroska files and transport streams name the encoder's rate, of which a film of variable
    rate has no more than its densest parts.

    Args:
        header: what the container says; None or 0 if nothing.
        seconds: presentation times, (n,) float64 ascending.

    Raises:
        VideoError: neither tells.
    """
    rate = float(header or 0)
    steps, span = len(seconds) - 1, seconds[-1] - seconds[0]
    # How long the last frame is shown is not known: from no time to an average one.
    if (
        steps > 0
        and span > 0
        and not (steps / span * (1 - RATE_TOLERANCE) <= rate <= len(seconds) / span * (1 + RATE_TOLERANCE))
    ):
        return float(steps / span)
    if not rate:
        raise VideoError("the file states no frame rate")
    return rate


class SequentialReader:
    """Decodes everything from the start; frames are numbered in the order in which a player shows them.

    Opening decodes the video once to see which pictures come out: packets alone do not tell (recordings
    that begin between key frames, fields, dropped frames). Where some packets cannot be decoded, the
    packets' times number the frames, so that those behind the damage keep their numbers.

    One thread: with more, FFmpeg does not conceal damage in the same way every time.

    Attributes:
        num_frames, fps, is_edited: as of :class:`aks.video.reader.Video`.
        num_packets: pictures that are stored and shown.
    """

    name = "pyav"

    def __init__(self, path: Path) -> None:
        """Index a video.

        Raises:
            VideoError: it cannot be read.
        """
        self._path = path
        stored: list[int | None] = []
        self.is_edited = False
        frames = [frame and (frame.pts,) for frame in self._decode(stored)]
        shown = [pts for (pts,) in filter(None, frames)]
        if not shown:
            raise VideoError("no frame can be decoded" if stored else "its video stream is empty")
        self.num_packets = len(stored)
        self._numbers: dict[int, int] | None = None  # by the times of all packets, if some are damaged
        if None in frames and None not in stored and len(set(stored)) == len(stored):
            shown = sorted(stored)
            self._numbers = {pts: number for number, pts in enumerate(shown)}
        self.num_frames = len(shown)
        pts = self._clock(shown)
        if pts is None:
            self.fps = average_rate(self._rate, np.zeros(1))
            self._seconds = np.arange(self.num_frames) / self.fps
        else:
            self.fps = average_rate(self._rate, (pts - pts[0]) * float(self._time_base))
            self._seconds = _seconds(pts, pts[0] if self._start is None else self._start, self._time_base)

    def _clock(self, shown: list[int | None]) -> np.ndarray | None:
        """Times of presentation of the frames, ascending; None where they carry no usable ones."""
        if None in shown or self._time_base is None:
            return None
        pts = np.array(shown, dtype=np.int64)
        if self._has_jumps:
            steps = np.diff(pts)
            is_jump = (steps <= 0) | (steps * float(self._time_base) > MAX_STEP_S)
            if is_jump.any() and not is_jump.all():
                steps[is_jump] = np.median(steps[~is_jump])
                return pts[0] + np.append(0, np.cumsum(steps))
        # AVI and ASF files state when a picture is decoded: the same times, but not each at its picture.
        moved = np.abs(np.argsort(pts, kind="stable") - np.arange(len(pts))).max()
        pts = np.sort(pts)
        return pts if moved <= MAX_REORDER and (np.diff(pts) > 0).all() else None

    def times(self, numbers: np.ndarray) -> np.ndarray:
        """Times of frames in seconds from the first one."""
        return self._seconds[numbers]

    def chunks(self, numbers: np.ndarray, size: int) -> Iterator[np.ndarray]:
        """Pixels of ascending frames, at most ``size`` at a time."""
        return _chunked((pixels for _, pixels in self._frames(numbers)), len(numbers), size)

    def readable(self, numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Numbers and pixels of those of some frames that can be decoded, in one pass over the file."""
        return self._frames(numbers, tolerant=True)

    def _frames(self, numbers: np.ndarray, tolerant: bool = False) -> Iterator[tuple[int, np.ndarray]]:
        wanted = set(numbers.tolist())
        to_rgb, shape, count = _Converter(), None, 0
        for frame in self._decode():
            if frame is None and not tolerant:
                raise VideoError(f"decoding stops after {count} frames: the data is damaged")
            if frame is None:
                continue
            number = count if self._numbers is None else self._numbers.get(frame.pts)
            count += 1
            if number not in wanted or (tolerant and frame.is_corrupt):
                continue
            pixels = to_rgb(frame)
            shape = shape or pixels.shape
            if pixels.shape == shape:
                wanted.remove(number)
                yield number, pixels
            elif not tolerant:
                raise VideoError(f"the picture changes its size at frame {number}")
            if not wanted:
                return
        if wanted and not tolerant:
            raise VideoError(f"frame {min(wanted)} cannot be decoded (the stream has no such picture)")

    def _decode(self, stored: list[int | None] | None = None) -> Iterator[av.VideoFrame | None]:
        """All frames in order of presentation, None for each packet that cannot be decoded.

        Args:
            stored: is filled with the times of all packets with a picture that is to be shown.
        """
        begun = False  # before its first key frame a recording cannot be decoded, which is no damage
        try:
            with open_container(self._path) as container:
                stream = select_video_stream(container)
                self._rate, self._time_base, self._start = (
                    stream.average_rate,
                    stream.time_base,
                    stream.start_time,
                )
                self._has_jumps = bool(container.format.flags & av.format.Flags.ts_discont.value)
                stream.codec_context.thread_count = 1
                for packet in container.demux(stream):
                    if packet.size:
                        begun |= packet.is_keyframe
                        self.is_edited |= packet.is_discard
                        if stored is not None and begun and not packet.is_discard:
                            stored.append(packet.pts)
                    try:
                        frames = packet.decode()
                    except av.InvalidDataError:
                        if begun and _holds_picture(stream.codec_context.name, packet):
                            yield None
                        continue
                    yield from frames
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"cannot be decoded: {error_message(error)}") from None


def _holds_picture(codec: str, packet: av.Packet) -> bool:
    """Whether a packet is more than a message, which FFmpeg's parser of ASF files cuts off H.264 pictures."""
    data = memoryview(packet)
    return codec != "h264" or len(data) > 64 or len(data) < 5 or data[4] & 31 != 6


class SparseReader:
    """Decodes what the wanted frames need; frames are numbered by presentation time, as decord does.

    Attributes:
        num_frames, fps, is_edited: as of :class:`aks.video.reader.Video`.
        num_packets: pictures that are stored.
    """

    name = "pyav"

    def __init__(self, path: Path) -> None:
        """Index a video.

        Raises:
            UnsupportedStream: it is not of a kind that this reader is known to read exactly.
            VideoError: it cannot be read.
        """
        self._path = path
        self._index = _PacketIndex(path)
        self.num_packets, self.num_frames = len(self._index.stamps), len(self._index.positions)
        self.is_edited = self.num_frames < self.num_packets
        shown = self._index.stamps[self._index.positions]
        self.fps = average_rate(self._index.rate, (shown - shown[0]) * float(self._index.time_base))
        self._seconds = _seconds(shown, self._index.start, self._index.time_base)

    def times(self, numbers: np.ndarray) -> np.ndarray:
        """Times of frames in seconds from the first one."""
        return self._seconds[numbers]

    def needed(self, numbers: np.ndarray) -> list[np.ndarray]:
        """Which packets of the file (0, 1, ...) are decoded for some frames, by what is decoded in one go."""
        runs = self._index.plan(self._index.positions[numbers])
        return [run.first + np.flatnonzero(np.frombuffer(run.needed, np.uint8)) for run in runs]

    def chunks(self, numbers: np.ndarray, size: int) -> Iterator[np.ndarray]:
        """Pixels of ascending frames, at most ``size`` at a time."""
        return _chunked(self._pictures(numbers), len(numbers), size)

    def _pictures(self, numbers: np.ndarray) -> Iterator[np.ndarray]:
        positions = self._index.positions[numbers]
        to_rgb = _Converter()
        frames = self._decode(positions)
        for number, stamp in zip(numbers, self._index.stamps[positions], strict=True):
            frame = next((frame for frame in frames if frame.pts >= stamp), None)
            if frame is None or frame.pts > stamp:
                raise UnsupportedStream(f"frame {number} cannot be decoded (the stream has no such picture)")
            yield to_rgb(frame)

    def _decode(self, positions: np.ndarray) -> Iterator[av.VideoFrame]:
        """Frames in order of presentation, among them those at the given positions; some may come twice."""
        try:
            yield from self._decode_runs(self._index.plan(positions))
        except (av.FFmpegError, OSError) as error:
            raise UnsupportedStream(f"decoding stops: {error_message(error)}") from None

    def _decode_runs(self, runs: Iterable[_PacketRun], strict: bool = True) -> Iterator[av.VideoFrame]:
        """The frames of some runs; if strict, H.264 that FFmpeg finds fault with is decoded anew, whole.

        Some films are formally wrong in places (references marked that are gone), and every picture comes
        out whole all the same. A picture that FFmpeg has to conceal damage in is another matter: what it
        fills in depends on all that it decoded before, so that only decoding from the start gives it.
        """
        with open_container(self._path) as container:
            stream = select_video_stream(container)
            decoder = stream.codec_context
            decoder.thread_count = 1  # more do not pay where few packets in a row are decoded
            if strict:  # a damaged picture shall not be made up from whatever was decoded around it
                decoder.options = {"err_detect": "explode"}
            packets = None
            for run in runs:
                packets = packets or self._packets(container, stream, run.first)
                had_error = False
                for position, packet in packets:
                    if packet.pts != self._index.stamps[position]:
                        raise UnsupportedStream("the file changes while it is read")
                    end = position + 1 == run.first + len(run.needed)
                    needed = position >= run.first and run.needed[position - run.first]
                    for piece in [packet] * needed + [None] * end:
                        try:
                            frames = [] if had_error else _decode_whole(decoder, piece)
                        except av.FFmpegError:
                            if not strict or self._index.codec != "h264":
                                raise
                            had_error, frames = True, []
                        yield from self._checked(frames)
                    if end:
                        break
                decoder.flush_buffers()  # begin anew, whatever comes next
                if had_error:
                    whole = _PacketRun(run.first, bytearray(b"\1") * len(run.needed))
                    yield from self._decode_runs([whole], strict=False)

    def _packets(
        self, container: av.container.InputContainer, stream: av.VideoStream, first: int
    ) -> Iterator[tuple[int, av.Packet]]:
        """Packets with their positions, from ``first`` on, which begins a group, or from the first of all."""
        packets = (packet for packet in container.demux(stream) if packet.size)
        if not first:
            return enumerate(packets)
        _prime_decoder(stream.codec_context, packets)
        before = int(np.searchsorted(self._index.entries, first)) - 1
        if before < 1:
            return enumerate(packets, 1)
        # Containers look for a time of decoding, which lies before that of presentation: a group's length.
        container.seek(int(self._index.stamps[self._index.entries[before]]), stream=stream)
        start = int(self._index.stamps[first])
        return enumerate(itertools.dropwhile(lambda packet: packet.pts != start, packets), first)

    def _checked(self, frames: list[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        for frame in frames:
            if frame.pts is None:
                raise UnsupportedStream("a frame without a time")
            if frame.is_corrupt:
                raise UnsupportedStream("a damaged frame")
            if (frame.width, frame.height, frame.format.name) != self._index.size:
                raise UnsupportedStream("the picture changes its size")
            if self._index.codec == "h264":
                _refuse_fields([frame])
            yield frame


def _refuse_fields(frames: list[av.VideoFrame]) -> None:
    if any(frame.interlaced_frame for frame in frames):
        raise UnsupportedStream("two fields, which may be packets of their own")


def _decode_whole(decoder: av.VideoCodecContext, packet: av.Packet | None) -> list[av.VideoFrame]:
    """Decode a packet, or None for what is left.

    Raises:
        UnsupportedStream: FFmpeg fills in a picture, or parts of it, which it says in its log alone.
    """
    av.logging.set_level(av.logging.INFO)
    try:
        with av.logging.Capture() as messages:
            frames = decoder.decode(packet)
    finally:
        silence_codecs()
    if any(text.startswith(MADE_UP) for _, _, text in messages):
        raise UnsupportedStream("a damaged picture")
    return frames


def silence_codecs() -> None:
    """Keep FFmpeg's log off the terminal, and out of Python.

    torchvision routes it through Python: a codec's thread then waits for the interpreter lock while the
    thread that holds it waits for the codec to close, for ever.
    """
    av.logging.set_level(None)
    av.logging.restore_default_callback()
    av.logging.set_libav_level(av.logging.PANIC)


def _prime_decoder(decoder: av.VideoCodecContext, packets: Iterator[av.Packet]) -> None:
    """Show a decoder a file's first packet: x264 signs it, and FFmpeg goes by the version from then on."""
    with contextlib.suppress(av.FFmpegError):
        decoder.decode(next(packets))
        decoder.decode(None)
    decoder.flush_buffers()


class _PacketRun(NamedTuple):
    """Packets that are decoded in one go, from the position ``first`` on, those with a 1 in ``needed``."""

    first: int
    needed: bytearray


class _PacketIndex:
    """What one pass over a file's packets tells. A packet's place in the file is called its position.

    Attributes:
        codec: FFmpeg's name of it.
        size: width, height and pixel format.
        rate: average frame rate by the header, None if it is silent.
        time_base: seconds that a stamp's unit lasts.
        start: stamp at which the stream starts.
        stamps: of each position, its time of presentation, (n,) int64.
        positions: of each frame number, its position, (n,) int64. Those that an edit list leaves out, in
            front of the first frame or behind the last one, have no number; others may need them.
        entries: the positions at which decoding can begin, ascending int64. A group begins at each.
    """

    def __init__(self, path: Path) -> None:
        stamps, entries, hidden = array("q"), array("q"), bytearray()
        # The positions that position p is predicted from: _references[_ends[p - 1] : _ends[p]].
        self._references, self._ends = array("i"), array("i")
        self._uncounted = array("i")  # positions at which a decoder takes pictures for missing
        slots = [-1] * 8  # the positions of the pictures that a decoder would keep
        parameters = b""
        try:
            with open_container(path) as container:
                if container.format.name not in CONTAINERS:
                    raise UnsupportedStream("not a file that states every frame's time")
                if "mp4" in container.format.name and not _has_one_stsd(path):
                    raise UnsupportedStream("its coding parameters change on the way")
                stream = select_video_stream(container)
                decoder = stream.codec_context
                self.codec = decoder.codec.canonical_name
                self.size = decoder.width, decoder.height, decoder.pix_fmt
                self.rate = stream.average_rate
                self.time_base, self.start = stream.time_base, stream.start_time
                look = packet_inspector(self.codec, decoder.extradata, decoder.codec.intra_only)
                for packet in container.demux(stream):
                    if not packet.size:
                        continue
                    if packet.pts is None or packet.is_corrupt:
                        raise UnsupportedStream("packets without a time, or damaged")
                    seen = look(memoryview(packet))
                    position = len(stamps)
                    if not position:
                        parameters = seen.parameters
                        if self.codec == "h264":
                            _refuse_fields(decoder.decode(packet) + decoder.decode(None))
                    if seen.parameters != (parameters if seen.entry else b""):
                        raise UnsupportedStream("its coding parameters change on the way")
                    stamps.append(packet.pts)
                    hidden.append(packet.is_discard)
                    if seen.entry and not packet.is_keyframe:
                        raise UnsupportedStream("a key frame of which the container does not know")
                    if seen.entry:
                        entries.append(position)
                    self._references.extend({slots[n] for n in range(8) if seen.reads >> n & 1} - {-1})
                    self._ends.append(len(self._references))
                    if not seen.counted:
                        self._uncounted.append(position)
                    if seen.writes:
                        slots = [position if seen.writes >> n & 1 else slots[n] for n in range(8)]
        except UnsupportedBitstream as error:
            raise UnsupportedStream(str(error)) from None
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"cannot be indexed: {error_message(error)}") from None
        self.stamps = np.array(stamps, dtype=np.int64)
        self.entries = np.array(entries, dtype=np.int64)
        if not entries or entries[0] != 0 or None in (self.start, self.time_base):
            raise UnsupportedStream("it does not begin with a picture of its own")
        if len(np.unique(self.stamps)) < len(self.stamps):
            raise UnsupportedStream("two frames have the same time")
        order, hidden = np.argsort(self.stamps), np.frombuffer(hidden, dtype=bool)
        self.positions = order[~hidden[order]]
        shown = np.flatnonzero(~hidden[order])
        if not len(shown) or shown[-1] - shown[0] + 1 != len(shown):
            raise UnsupportedStream("an edit list with several parts")

    def is_leading(self, positions: np.ndarray) -> np.ndarray:
        """Whether pictures are shown before the one that begins their group."""
        return self.stamps[positions] < self.stamps[self.entries[self._groups(positions)]]

    def _groups(self, positions: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.entries, positions, side="right") - 1

    def plan(self, positions: np.ndarray) -> Iterator[_PacketRun]:
        """What to decode for the pictures at some positions."""
        wanted: dict[int, list[int]] = {}  # of each group, the positions to decode it for
        linked = set()  # groups that need the one before decoded to its end
        groups, leads = self._groups(positions).tolist(), self.is_leading(positions)
        for position, group, lead in zip(positions.tolist(), groups, leads, strict=True):
            wanted.setdefault(group, []).append(position)
            if lead and group > 0:
                wanted.setdefault(group - 1, []).append(int(self.entries[group]) - 1)
                linked.add(group)
        run: list[int] = []
        first = 0
        for group in sorted(wanted):
            if group not in linked:
                if run:
                    yield self._run(first, run)
                run, first = [], int(self.entries[group])
            run += wanted[group]
        if run:
            yield self._run(first, run)

    def _run(self, first: int, wanted: list[int]) -> _PacketRun:
        stop = max(wanted) + 1
        if np.diff(np.searchsorted(self._uncounted, [first, stop]))[0]:
            return _PacketRun(first, bytearray(b"\1") * (stop - first))
        needed = bytearray(stop - first)
        for position in wanted:
            needed[position - first] = 1
        # References lie before what is predicted from them: going back finds those of references, too.
        for position in range(first + len(needed) - 1, first, -1):
            if needed[position - first]:
                for reference in self._references[self._ends[position - 1] : self._ends[position]]:
                    needed[reference - first] = 1
        return _PacketRun(first, needed)


def _has_one_stsd(path: Path) -> bool:
    """Whether every track of an MP4 file has one set of coding parameters (ISO/IEC 14496-12, 8.5.2).

    FFmpeg hands the decoder another set with the first packet it is for, where PyAV does not show it.
    """
    with path.open("rb") as file:
        while len(head := file.read(16)) >= 8:
            size = int.from_bytes(head[:4], "big")
            body = file.tell() - len(head) + 8
            if size == 1:  # a large box: its size follows
                size, body = int.from_bytes(head[8:], "big"), body + 8
            if head[4:8] == b"moov":
                file.seek(body)
                tables = file.read(size).split(b"stsd")[1:]
                return bool(tables) and all(table[4:8] == b"\0\0\0\1" for table in tables)
            if size < 8:
                break
            file.seek(body + size - (16 if head[:4] == b"\0\0\0\1" else 8))
    return False


def _seconds(pts: np.ndarray, start: int, time_base: Fraction) -> np.ndarray:
    """Times from the first frame; rounded where decord rounds, to keep the readers' files equal."""
    seconds = ((pts - start) * float(time_base)).astype(np.float32).astype(np.float64)
    return seconds - seconds[0]


def _chunked(pictures: Iterator[np.ndarray], count: int, size: int) -> Iterator[np.ndarray]:
    """``count`` pictures in arrays of at most ``size``."""
    for number, pixels in enumerate(pictures):
        at = number % size
        if at == 0:
            room = np.empty((min(size, count - number), *pixels.shape), dtype=np.uint8)
        room[at] = pixels
        if at + 1 == len(room):
            yield room


class _Converter:
    """Frames as a player shows them: RGB by their own colour matrix and range, turned upright."""

    def __init__(self) -> None:
        self._state: tuple | None = None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """The pixels, (height, width, 3) uint8; a view into memory of the codec library's."""
        # Setting a converter up costs as much as half a frame; but it keeps the last matrix.
        state = frame.colorspace, frame.color_range
        if state != self._state:
            self._state, self._reformatter = state, VideoReformatter()
        converted = self._reformatter.reformat(
            frame,
            format="rgb24",
            # PyAV applies the frame's own matrix only if source and target differ; ITU-R 601 is the
            # converter's default, which is right for frames that name no matrix.
            dst_colorspace="ITU601",
            src_color_range=frame.color_range or None,
        )
        (plane,) = converted.planes
        rows = np.frombuffer(plane, dtype=np.uint8).reshape(-1, plane.line_size)[: converted.height]
        pixels = rows[:, : 3 * converted.width].reshape(converted.height, converted.width, 3)
        return _upright(pixels, frame.side_data.get(SideData.DISPLAYMATRIX))


def _upright(pixels: np.ndarray, matrix: SideDataBuffer | None) -> np.ndarray:
    """Turn and mirror a picture by its display matrix, in quarter turns; other angles leave it as it is.

    Source: ISO/IEC 14496-12, 6.2.2: x' = ax + cy, y' = bx + dy.
    """
    if matrix is None:
        return pixels
    a, b, _, c, d = np.frombuffer(matrix, dtype="<i4")[:5].tolist()
    if a == d == 0:
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    elif b or c:
        return pixels
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
