"""Two readers on PyAV: one decodes everything, the other only what the wanted frames need.

:class:`FastReader` is for sparse frames, one a second. It looks at every packet once
(:mod:`aks.bitstreams`), then feeds the decoder as few as it can::

    packets   I P b b P b b P b b  I P b b P b b P b b  I P b b ...    I: decoding can begin here
    wanted              ^                                     ^        b: nothing is predicted from it
    decoded   I P     P b                               I P b

- nothing of a group of pictures behind its last wanted frame, and nothing of a group that holds none;
- no picture that nothing else is predicted from, unless it is wanted itself;
- and only wanted pictures become RGB.

Pictures that are stored behind their group's first one but shown before it are predicted from the group
before, too (an "open" group): for one of them both groups are decoded in one go.

The pixels are the same to the bit as if everything were decoded. Where that is not sure the reader
raises :class:`Unsuited` and leaves the work to another.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from aks.bitstreams import Unclear, inspector
from aks.errors import VideoError

# Containers that state every packet's time of presentation, and the coding parameters in their header.
CONTAINERS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}


class Unsuited(VideoError):
    """The fast reader cannot vouch for this video, or not from here on; another reader may read it."""


class PlainReader:
    """Decodes everything from the start; frames are numbered by presentation time, as decord does."""

    name = "pyav"

    def __init__(self, path: Path) -> None:
        """Index a video.

        Raises:
            VideoError: it cannot be read.
        """
        self._path = path
        try:
            with open_container(path) as container:
                stream = container.streams.video[0]
                rate, self._time_base, self._start = stream.average_rate, stream.time_base, stream.start_time
                stamps = [packet.pts for packet in container.demux(stream) if packet.size]
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"cannot be indexed: {reason(error)}") from None
        self.fps = float(rate) if rate else math.nan
        self.num_frames = len(stamps)
        if not stamps:
            raise VideoError("its video stream is empty")
        # Without a distinct time on every packet (old AVI files), frames count in decoding order.
        usable = None not in stamps and len(set(stamps)) == len(stamps)
        self._stamps = np.sort(np.array(stamps, dtype=np.int64)) if usable else None

    def times(self, numbers: np.ndarray) -> np.ndarray:
        """Times of frames in seconds from the first one."""
        if self._stamps is None or self._time_base is None or self._start is None:
            return numbers / self.fps
        return _seconds(self._stamps, self._start, self._time_base, numbers)

    def chunks(self, numbers: np.ndarray, size: int) -> Iterator[np.ndarray]:
        """Pixels of ascending frames, at most ``size`` at a time."""
        return _stacked(self._pictures(numbers), len(numbers), size)

    def readable(self, numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Numbers and pixels of those of some frames that can be decoded, in one pass over the file."""
        wanted = set(numbers.tolist())
        to_rgb = _Converter()
        shape = None
        for number, frame in self._decode(tolerant=True):
            if number not in wanted or frame.is_corrupt:
                continue
            pixels = to_rgb(frame)
            shape = shape or pixels.shape
            if pixels.shape == shape:
                wanted.remove(number)
                yield number, pixels
            if not wanted:
                return

    def _pictures(self, numbers: np.ndarray) -> Iterator[np.ndarray]:
        wanted = set(numbers.tolist())
        to_rgb = _Converter()
        shape = None
        for number, frame in self._decode():
            if number not in wanted:
                continue
            wanted.remove(number)
            pixels = to_rgb(frame)
            if shape is not None and pixels.shape != shape:
                raise VideoError(f"the picture changes its size at frame {number}")
            shape = pixels.shape
            yield pixels
            if not wanted:
                return
        if wanted:
            raise VideoError(f"frame {min(wanted)} cannot be decoded (the stream has no such picture)")

    def _decode(self, tolerant: bool = False) -> Iterator[tuple[int, av.VideoFrame]]:
        count = 0
        try:
            with open_container(self._path) as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                for packet in container.demux(stream):
                    try:
                        frames = packet.decode()
                    except av.InvalidDataError:
                        if not tolerant or self._stamps is None:  # without times, what follows has no number
                            raise
                        continue
                    for frame in frames:
                        number = count
                        if self._stamps is not None:
                            number = int(np.searchsorted(self._stamps, frame.pts))
                        yield number, frame
                        count += 1
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"decoding stops after {count} frames: {reason(error)}") from None

    def rest(self) -> None:
        """Nothing is decoded ahead."""

    def close(self) -> None:
        """Forget the index."""
        self._stamps = None


class FastReader:
    """Decodes what the wanted frames need; frames are numbered by presentation time, as decord does.

    Attributes:
        num_frames, fps: as of :class:`aks.video.Video`.
        has_open_groups: whether a frame is shown before a key frame that it is stored behind. decord
            begins at key frames to reach such a frame, and gives another one.
    """

    name = "pyav"

    def __init__(self, path: Path) -> None:
        """Index a video.

        Raises:
            Unsuited: it is not of a kind that this reader is known to read exactly.
            VideoError: it cannot be read.
        """
        self._path = path
        self._index = _Index(path)
        self.fps = self._index.fps
        self.num_frames = len(self._index.stamps)
        self.has_open_groups = self._index.has_open_groups

    def times(self, numbers: np.ndarray) -> np.ndarray:
        """Times of frames in seconds from the first one."""
        index = self._index
        return _seconds(index.stamps[index.positions], index.start, index.time_base, numbers)

    def needed(self, numbers: np.ndarray) -> list[np.ndarray]:
        """Which packets of the file (0, 1, ...) are decoded for some frames, by what is decoded in one go."""
        runs = self._index.plan(self._index.positions[numbers])
        return [run.first + np.flatnonzero(np.frombuffer(run.needed, np.uint8)) for run in runs]

    def chunks(self, numbers: np.ndarray, size: int) -> Iterator[np.ndarray]:
        """Pixels of ascending frames, at most ``size`` at a time."""
        return _stacked(self._pictures(numbers), len(numbers), size)

    def _pictures(self, numbers: np.ndarray) -> Iterator[np.ndarray]:
        positions = self._index.positions[numbers]
        to_rgb = _Converter()
        frames = self._decode(positions)
        for number, stamp in zip(numbers, self._index.stamps[positions], strict=True):
            frame = next((frame for frame in frames if frame.pts >= stamp), None)
            if frame is None or frame.pts > stamp:
                raise Unsuited(f"frame {number} cannot be decoded (the stream has no such picture)")
            yield to_rgb(frame)

    def _decode(self, positions: np.ndarray) -> Iterator[av.VideoFrame]:
        """Frames in order of presentation, among them those at the given positions; some may come twice."""
        stamps = self._index.stamps
        try:
            with open_container(self._path) as container:
                (stream,) = container.streams.video
                decoder = stream.codec_context
                decoder.thread_count = 1  # more do not pay where few packets in a row are decoded
                # A damaged picture shall not be made up from whatever was decoded around it.
                decoder.options = {"err_detect": "explode"}
                packets = None
                for run in self._index.plan(positions):
                    packets = packets or self._packets(container, stream, run.first)
                    complaint = False
                    for position, packet in packets:
                        if packet.pts != stamps[position]:
                            raise Unsuited("the file changes while it is read")
                        end = position + 1 == run.first + len(run.needed)
                        needed = position >= run.first and run.needed[position - run.first]
                        for piece in [packet] * needed + [None] * end:
                            try:
                                frames = [] if complaint else decoder.decode(piece)
                            except av.FFmpegError:
                                if self._index.codec != "h264":
                                    raise
                                complaint, frames = True, []
                            yield from self._checked(frames)
                        if end:
                            break
                    decoder.flush_buffers()  # begin anew, whatever comes next
                    if complaint:
                        yield from self._decode_all_of(run)
        except (av.FFmpegError, OSError) as error:
            raise Unsuited(f"decoding stops: {reason(error)}") from None

    def _packets(
        self, container: av.container.InputContainer, stream: av.VideoStream, first: int
    ) -> Iterator[tuple[int, av.Packet]]:
        """Packets with their positions, from ``first`` on, which begins a group, or from the first of all."""
        packets = (packet for packet in container.demux(stream) if packet.size)
        if not first:
            return enumerate(packets)
        _introduce(stream.codec_context, packets)
        before = int(np.searchsorted(self._index.entries, first)) - 1
        if before < 1:
            return enumerate(packets, 1)
        # Containers look for a time of decoding, which lies before that of presentation: a group's length.
        container.seek(int(self._index.stamps[self._index.entries[before]]), stream=stream)
        start = int(self._index.stamps[first])
        return enumerate(itertools.dropwhile(lambda packet: packet.pts != start, packets), first)

    def _decode_all_of(self, run: _Run) -> Iterator[av.VideoFrame]:
        """All frames of a run of H.264 that the decoder finds fault with, as a reader without skill has them.

        Some films are formally wrong in places (references marked that are gone) and come out right all
        the same; and what is made of a damaged picture is the same if all around it is decoded, too.
        """
        first = int(self._index.stamps[run.first])
        left = len(run.needed)
        with open_container(self._path) as container:
            (stream,) = container.streams.video
            decoder = stream.codec_context
            decoder.thread_count = 1
            _introduce(decoder, (packet for packet in container.demux(stream) if packet.size))
            container.seek(first, stream=stream)
            for packet in container.demux(stream):
                if not packet.size or (left == len(run.needed) and packet.pts != first):
                    continue
                yield from self._checked(decoder.decode(packet))
                left -= 1
                if not left:
                    break
            yield from self._checked(decoder.decode(None))

    def _checked(self, frames: list[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        for frame in frames:
            if frame.pts is None:
                raise Unsuited("a frame without a time")
            if frame.is_corrupt:
                raise Unsuited("a damaged frame")
            if (frame.width, frame.height, frame.format.name) != self._index.size:
                raise Unsuited("the picture changes its size")
            if frame.interlaced_frame and self._index.codec == "h264":
                raise Unsuited("two fields, which may be packets of their own")
            yield frame

    def rest(self) -> None:
        """Nothing is decoded ahead."""

    def close(self) -> None:
        """Forget the index."""
        self._index = None


def _introduce(decoder: av.VideoCodecContext, packets: Iterator[av.Packet]) -> None:
    """Show a decoder a file's first packet: x264 signs it, and FFmpeg goes by the version from then on."""
    with suppress(av.FFmpegError):
        decoder.decode(next(packets))
        decoder.decode(None)
    decoder.flush_buffers()


class _Run(NamedTuple):
    """Packets that are decoded in one go, from the position ``first`` on, those with a 1 in ``needed``."""

    first: int
    needed: bytearray


class _Index:
    """What one pass over a file's packets tells. A packet's place in the file is called its position.

    Attributes:
        codec: FFmpeg's name of it.
        size: width, height and pixel format.
        fps: average frame rate.
        time_base: seconds that a stamp's unit lasts.
        start: stamp at which the stream starts.
        stamps: of each position, its time of presentation, (n,) int64.
        positions: of each frame number, its position, (n,) int64.
        entries: the positions at which decoding can begin, ascending int64. A group begins at each.
        has_open_groups: whether a picture is shown before a key frame that it is stored behind.
    """

    def __init__(self, path: Path) -> None:
        stamps, entries = array("q"), array("q")
        # The positions that position p is predicted from: _references[_ends[p - 1] : _ends[p]].
        self._references, self._ends = array("i"), array("i")
        slots = [-1] * 8  # the positions of the pictures that a decoder would keep
        parameters = b""
        key_stamp = None
        self.has_open_groups = False
        try:
            with open_container(path) as container:
                if container.format.name not in CONTAINERS or len(container.streams.video) != 1:
                    raise Unsuited("not a file with one video stream that states every frame's time")
                if "mp4" in container.format.name and not _has_single_descriptions(path):
                    raise Unsuited("its coding parameters change on the way")
                (stream,) = container.streams.video
                decoder = stream.codec_context
                self.codec = decoder.codec.canonical_name
                self.size = decoder.width, decoder.height, decoder.pix_fmt
                self.fps = float(stream.average_rate or math.nan)
                self.time_base, self.start = stream.time_base, stream.start_time
                look = inspector(self.codec, decoder.extradata)
                for packet in container.demux(stream):
                    if not packet.size:
                        continue
                    if packet.pts is None or packet.is_discard or packet.is_corrupt:
                        raise Unsuited("packets without a time, to be left out, or damaged")
                    seen = look(memoryview(packet))
                    position = len(stamps)
                    if not position:
                        parameters = seen.parameters
                    if seen.parameters != (parameters if seen.entry else b""):
                        raise Unsuited("its coding parameters change on the way")
                    stamps.append(packet.pts)
                    if packet.is_keyframe:
                        key_stamp = packet.pts
                    self.has_open_groups |= key_stamp is not None and packet.pts < key_stamp
                    if seen.entry:
                        entries.append(position)
                    self._references.extend({slots[n] for n in range(8) if seen.reads >> n & 1} - {-1})
                    self._ends.append(len(self._references))
                    if seen.writes:
                        slots = [position if seen.writes >> n & 1 else slots[n] for n in range(8)]
        except Unclear as error:
            raise Unsuited(str(error)) from None
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"cannot be indexed: {reason(error)}") from None
        self.stamps = np.array(stamps, dtype=np.int64)
        self.entries = np.array(entries, dtype=np.int64)
        self.positions = np.argsort(self.stamps, kind="stable")
        if not entries or entries[0] != 0 or None in (self.start, self.time_base):
            raise Unsuited("it does not begin with a picture of its own")
        if (np.diff(self.stamps[self.positions]) == 0).any():
            raise Unsuited("two frames have the same time")

    def leads(self, positions: np.ndarray) -> np.ndarray:
        """Whether pictures are shown before the one that begins their group."""
        return self.stamps[positions] < self.stamps[self.entries[self._groups(positions)]]

    def _groups(self, positions: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.entries, positions, side="right") - 1

    def plan(self, positions: np.ndarray) -> Iterator[_Run]:
        """What to decode for the pictures at some positions."""
        wanted: dict[int, list[int]] = {}  # of each group, the positions to decode it for
        linked = set()  # groups that need the one before decoded to its end
        groups, leads = self._groups(positions).tolist(), self.leads(positions)
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

    def _run(self, first: int, wanted: list[int]) -> _Run:
        needed = bytearray(max(wanted) + 1 - first)
        for position in wanted:
            needed[position - first] = 1
        # References lie before what is predicted from them: going back finds those of references, too.
        for position in range(first + len(needed) - 1, first, -1):
            if needed[position - first]:
                for reference in self._references[self._ends[position - 1] : self._ends[position]]:
                    needed[reference - first] = 1
        return _Run(first, needed)


def _has_single_descriptions(path: Path) -> bool:
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


def open_container(path: Path) -> av.container.InputContainer:
    """Open a file with PyAV; titles and tags that are not UTF-8 do not matter here."""
    return av.open(str(path), metadata_errors="ignore")


def reason(error: BaseException) -> str:
    """What the operating system or FFmpeg says, in one line."""
    return str(getattr(error, "strerror", None) or error).strip().split("\n")[0] or type(error).__name__


def _seconds(stamps: np.ndarray, start: int, time_base: Fraction, numbers: np.ndarray) -> np.ndarray:
    """Times from the first frame; rounded where decord rounds, to keep the readers' files equal."""
    seconds = (
        ((stamps[np.append(0, numbers)] - start) * float(time_base)).astype(np.float32).astype(np.float64)
    )
    return seconds[1:] - seconds[0]


def _stacked(pictures: Iterator[np.ndarray], count: int, size: int) -> Iterator[np.ndarray]:
    """``count`` pictures in arrays of at most ``size``."""
    for number, pixels in enumerate(pictures):
        at = number % size
        if at == 0:
            room = np.empty((min(size, count - number), *pixels.shape), dtype=np.uint8)
        room[at] = pixels
        if at + 1 == len(room):
            yield room


class _Converter:
    """Frames as decord shows them: RGB by their own colour matrix and range, turned upright."""

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
        return np.rot90(pixels, frame.rotation // 90)
