"""Cuts parts out of a video without encoding: the packets are copied, sound and subtitles included.

A decoder can begin at a key frame alone, so a clip begins at the last key frame before the part asked for.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av

from aks.errors import VideoError, error_message
from aks.jsonio import write_atomically
from aks.video.backends import open_container, select_video_stream
from aks.video.codec_log import reset_decoder_globals

# Matroska takes most of what the others do not. A player at hand may prefer the first of these; the last hold
# codecs that it does not take.
CONTAINERS = {".mp4": ".mp4", ".m4v": ".mp4", ".mov": ".mov", ".webm": ".webm"}
CONTAINERS |= {suffix: suffix for suffix in (".asf", ".flv", ".wmv")}
SEEK_BACK_S = 10
INTERLEAVE_S = 5.0  # how far apart in a file packets of one time may be


def clip_suffix(path: Path) -> str:
    """The suffix of a clip of a video: its own kind of file, or ``.mkv``."""
    return CONTAINERS.get(path.suffix.lower(), ".mkv")


def merge_spans(times_s: Sequence[float], margin_s: float) -> list[tuple[float, float]]:
    """The parts of a video within a margin of some times, those that touch in one: (first, last) seconds.

    >>> merge_spans([1.0, 10.0, 13.0], 2.0)
    [(0.0, 3.0), (8.0, 15.0)]
    """
    spans: list[tuple[float, float]] = []
    for time_s in sorted(times_s):
        first, last = max(0.0, time_s - margin_s), time_s + margin_s
        if spans and first <= spans[-1][1]:
            first, _ = spans.pop()
        spans.append((first, last))
    return spans


def cut(video: Path, first_s: float, last_s: float, target: Path) -> float:
    """Copy a part of a video to a new file.

    Args:
        video: the file.
        first_s, last_s: the part in seconds from the first frame.
        target: the new file, with the suffix that :func:`clip_suffix` gives.

    Returns:
        Where the clip begins, in seconds from the video's first frame: a key frame, ``first_s`` or before.

    Raises:
        VideoError: the file cannot be read, or its packets cannot be copied.
        UserError: the clip cannot be written.
    """
    reset_decoder_globals()
    begins_s = first_s

    def write(path: Path) -> None:
        nonlocal begins_s
        try:
            begins_s = _cut(video, first_s, last_s, path)
        except (av.FFmpegError, ValueError) as error:  # of PyAV: a codec that this kind of file does not hold
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise
            raise VideoError(f"cannot be cut without encoding: {error_message(error)}") from None

    write_atomically(target, write)
    return begins_s


def _cut(video: Path, first_s: float, last_s: float, target: Path) -> float:
    with open_container(video.absolute()) as source:
        first = next(source.decode(select_video_stream(source)))
        if first.pts is None:  # a bare stream, such as .h264
            raise VideoError("cannot be cut without encoding: its frames state no times")
        zero = first.pts * first.time_base  # on the file's clock
    begin, end = zero + Fraction(first_s), zero + Fraction(last_s)
    # A file without an index is sought by guesses, which may end behind the key frame: seek further back,
    # then read from the start.
    for seek in (begin, begin - SEEK_BACK_S, None):
        with open_container(video.absolute()) as source:
            film = select_video_stream(source)
            kinds = ("audio", "subtitle")
            streams = [film, *(s for s in source.streams if s.type in kinds and s.codec_context)]
            if seek is not None:
                with contextlib.suppress(av.FFmpegError):  # it cannot be sought there: reads from the start
                    source.seek(round(seek / film.time_base), stream=film, backward=True)
            packets = _packets(source, film, streams, begin, end)
            if key := next(packets, None):
                origin = key.pts * key.time_base
                _copy(itertools.chain([key], packets), streams, origin, target)
                return float(origin - zero)
    raise VideoError(f"cannot be cut without encoding: no key frame before {first_s:.3f} s")


def _copy(
    packets: Iterable[av.Packet], streams: Sequence[av.stream.Stream], origin: Fraction, target: Path
) -> None:
    """Write packets to a new file whose time starts at ``origin``."""
    with av.open(str(target), "w") as output:
        copies = {stream.index: output.add_stream_from_template(stream, opaque=True) for stream in streams}
        for packet in packets:
            shift = round(origin / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = copies[packet.stream.index]
            output.mux(packet)


def _packets(
    source: av.container.InputContainer,
    film: av.VideoStream,
    streams: Sequence[av.stream.Stream],
    begin: Fraction,
    end: Fraction,
) -> Iterator[av.Packet]:
    """The packets of a part, from the key frame that it begins with; nothing if there is no such one."""
    origin: Fraction | None = None
    waiting: list[av.Packet] = []  # until it is known which key frame is the last one before the part
    has_begun = False
    first_dts: dict[int, int] = {}

    def ready() -> list[av.Packet]:
        # Pictures shown before the key frame need the group before it.
        return [packet for packet in waiting if packet.pts * packet.time_base >= origin]

    for packet in source.demux(streams):
        if packet.dts is None and packet.pts is None:  # the end of a stream
            continue
        if packet.dts is None:  # Matroska states none, and FFmpeg cannot tell those of the first packets
            early = packet.pts - round(SEEK_BACK_S / packet.time_base)  # before any that it can tell
            packet.dts = first_dts.setdefault(packet.stream.index, early)
        if packet.pts is None and packet.stream is film:
            raise VideoError("cannot be cut without encoding: its packets state no times")
        packet.pts = packet.dts if packet.pts is None else packet.pts
        presented, decoded = packet.pts * packet.time_base, packet.dts * packet.time_base
        if packet.stream is film and packet.is_keyframe and presented <= begin:
            origin = presented
            waiting = [packet, *(other for other in waiting if other.stream is not film)]
        elif origin is not None and decoded <= end:
            waiting.append(packet)
        has_begun |= packet.stream is film and decoded > begin
        if origin is not None and has_begun:
            yield from ready()
            waiting = []
        if decoded > end + INTERLEAVE_S:
            break
    if origin is not None:
        yield from ready()
