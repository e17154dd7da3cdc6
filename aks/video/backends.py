"""Decoding backends: the two that read a whole video, and what all of them share.

:class:`SequentialReader` decodes every frame with PyAV, as a player does. :class:`DecordReader` reads with
decord, as the paper does. :class:`aks.video.sparse.SparseReader` is the third backend. All three offer what
:class:`PyAVReader` states.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.sidedata.sidedata import SideData as SideDataBuffer
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import VideoReformatter

from aks.errors import UserError, VideoError, error_message
from aks.video import RATE_TOLERANCE
from aks.video.codec_log import reset_decoder_globals

MAX_REORDER = 16  # frames between decoding and presentation order: the limit of H.264 and HEVC
MAX_STEP_S = 10.0  # ffmpeg's dts_delta_threshold: a longer step of a broadcast's clock is a discontinuity


def open_container(path: Path) -> av.container.InputContainer:
    """Open a file with PyAV, ignoring titles and tags that are not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:  # PyAV cannot take such a file name, but it can take an open file.
        return av.open(path.open("rb"), metadata_errors="ignore")
    return av.open(str(path), metadata_errors="ignore")


def select_video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """Select the video stream that a player shows: FFmpeg's choice, but no cover and no single image.

    Raises:
        VideoError: there is no such stream, or FFmpeg has no decoder for it.
    """
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    streams = [stream for stream in streams if stream.frames != 1] or streams
    if not streams:
        raise VideoError("no video stream")
    streams = [stream for stream in streams if stream.codec_context is not None]
    if not streams:
        raise VideoError("no decoder for its video codec")
    best = container.streams.best("video")
    return best if best in streams else max(streams, key=lambda stream: stream.width * stream.height)


def average_rate(header_rate: Fraction | None, seconds: np.ndarray) -> float:
    """Average frames per second: the header's, unless the frames' presentation times contradict it.

    Matroska and transport stream headers name the encoder's rate. A video of variable frame rate reaches it
    in its densest parts only.

    Args:
        header_rate: the rate in the header; None or 0 if it states none.
        seconds: presentation times, (n,) float64 ascending.

    Raises:
        VideoError: neither source gives a rate.
    """
    rate = float(header_rate or 0)
    steps, span = len(seconds) - 1, seconds[-1] - seconds[0]
    if steps > 0 and span > 0:
        # The last frame's duration is unknown: it lies between zero and an average frame's.
        lowest, highest = steps / span * (1 - RATE_TOLERANCE), len(seconds) / span * (1 + RATE_TOLERANCE)
        if not lowest <= rate <= highest:
            return float(steps / span)
    if not rate:
        raise VideoError("the file states no frame rate")
    return rate


def seconds_from_first(pts: np.ndarray, start: int, time_base: Fraction) -> np.ndarray:
    """Presentation times in seconds from the first frame, (n,) float64.

    The float32 step repeats decord's rounding, so that all backends write equal times.
    """
    seconds = ((pts - start) * float(time_base)).astype(np.float32).astype(np.float64)
    return seconds - seconds[0]


class RGBConverter:
    """Converts frames to RGB as a player shows them: by their own colour matrix and range, and upright."""

    _color_settings: tuple | None = None  # matrix and range of the latest frame

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """Return the pixels, (height, width, 3) uint8, as a view into the codec library's memory."""
        # A reformatter keeps the first matrix that it sees, and creating one costs as much as half a frame.
        settings = frame.colorspace, frame.color_range
        if settings != self._color_settings:
            self._color_settings, self._reformatter = settings, VideoReformatter()
        converted = self._reformatter.reformat(
            frame,
            format="rgb24",
            # PyAV applies the frame's own matrix only where source and target differ. ITU-R 601 is the
            # default of FFmpeg's converter, which is right for frames that name no matrix.
            dst_colorspace="ITU601",
            src_color_range=frame.color_range or None,
        )
        (plane,) = converted.planes
        rows = np.frombuffer(plane, dtype=np.uint8).reshape(-1, plane.line_size)[: converted.height]
        pixels = rows[:, : 3 * converted.width].reshape(converted.height, converted.width, 3)
        return _upright(pixels, frame.side_data.get(SideData.DISPLAYMATRIX))


def _upright(pixels: np.ndarray, matrix: SideDataBuffer | None) -> np.ndarray:
    """Rotate by quarter turns and mirror as the display matrix says; ignore other angles.

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


class PyAVReader:
    """What the two backends on PyAV share.

    Opening a file indexes it, and raises a VideoError where that fails.

    Attributes:
        num_frames, fps, is_edited: as of :class:`aks.video.reader.Video`.
        num_packets: packets with a frame that is to be shown; in :class:`SparseReader` hidden ones, too.
    """

    name = "pyav"
    _seconds: np.ndarray  # of each frame, from the first one

    def times(self, frame_indices: np.ndarray) -> np.ndarray:
        """Presentation times in seconds from the first frame, (n,) float64."""
        return self._seconds[frame_indices]

    def chunks(self, frame_indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
        """Pixels of ascending frame indices, at most ``size`` frames at a time."""
        for offset, (_, pixels) in enumerate(self._frames(frame_indices)):
            if offset % size == 0:
                chunk = np.empty((min(size, len(frame_indices) - offset), *pixels.shape), dtype=np.uint8)
            chunk[offset % size] = pixels
            if offset % size + 1 == len(chunk):
                yield chunk

    def _frames(self, frame_indices: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Index and pixels of ascending frame indices."""
        raise NotImplementedError


class SequentialReader(PyAVReader):
    """Decodes a video from its start and numbers frames in the order in which a player shows them.

    Opening decodes the whole video once, because packets alone do not tell which frames come out: recordings
    begin between key frames, packets hold fields, encoders drop frames. If some packets cannot be decoded,
    the pts of all packets number the frames, so that frames behind the damage keep their indices.

    Decoding uses one thread: with several, FFmpeg conceals damage differently from run to run.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.is_edited = False
        packet_pts: list[int | None] = []
        frame_pts: list[int | None] = []
        is_damaged = False
        for frame in self._decode(packet_pts):
            if frame is None:
                is_damaged = True
            else:
                frame_pts.append(frame.pts)
        if not frame_pts:
            raise VideoError("no frame can be decoded" if packet_pts else "its video stream is empty")
        self.num_packets = len(packet_pts)
        self._index_of_pts: dict[int, int] | None = None  # set if damage makes counting frames unreliable
        if is_damaged and None not in packet_pts and len(set(packet_pts)) == len(packet_pts):
            frame_pts = sorted(packet_pts)
            self._index_of_pts = {pts: index for index, pts in enumerate(frame_pts)}
        self.num_frames = len(frame_pts)
        pts = self._ascending_pts(frame_pts)
        if pts is None:
            self.fps = average_rate(self._header_rate, np.zeros(1))
            self._seconds = np.arange(self.num_frames) / self.fps
        else:
            self.fps = average_rate(self._header_rate, (pts - pts[0]) * float(self._time_base))
            start = pts[0] if self._start is None else self._start
            self._seconds = seconds_from_first(pts, start, self._time_base)

    def _ascending_pts(self, frame_pts: list[int | None]) -> np.ndarray | None:
        """The frames' pts in presentation order, strictly ascending; None where they are unusable."""
        if None in frame_pts or self._time_base is None:
            return None
        pts = np.array(frame_pts, dtype=np.int64)
        if self._has_discontinuities:
            steps = np.diff(pts)
            is_jump = (steps <= 0) | (steps * float(self._time_base) > MAX_STEP_S)
            if is_jump.any() and not is_jump.all():
                steps[is_jump] = np.median(steps[~is_jump])
                return pts[0] + np.append(0, np.cumsum(steps))
        # AVI and ASF files state decoding times: the right times, but in another order than the frames.
        displacement = np.abs(np.argsort(pts, kind="stable") - np.arange(len(pts))).max()
        pts = np.sort(pts)
        return pts if displacement <= MAX_REORDER and (np.diff(pts) > 0).all() else None

    def read_partial(self, frame_indices: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Index and pixels of those of the given frames that can be decoded, in one pass over the file."""
        return self._frames(frame_indices, skip_damaged=True)

    def _frames(
        self, frame_indices: np.ndarray, skip_damaged: bool = False
    ) -> Iterator[tuple[int, np.ndarray]]:
        wanted = set(frame_indices.tolist())
        to_rgb, shape, count = RGBConverter(), None, 0
        for frame in self._decode():
            if frame is None:
                if skip_damaged:
                    continue
                raise VideoError(f"decoding stops after {count} frames: the data is damaged")
            index = count if self._index_of_pts is None else self._index_of_pts.get(frame.pts)
            count += 1
            if index not in wanted or (skip_damaged and frame.is_corrupt):
                continue
            pixels = to_rgb(frame)
            shape = shape or pixels.shape
            if pixels.shape == shape:
                wanted.remove(index)
                yield index, pixels
            elif not skip_damaged:
                raise VideoError(f"the picture changes its size at frame {index}")
            if not wanted:
                return
        if wanted and not skip_damaged:
            raise VideoError(f"frame {min(wanted)} cannot be decoded (the stream has no such picture)")

    def _decode(self, packet_pts: list[int | None] | None = None) -> Iterator[av.VideoFrame | None]:
        """Decode all frames in presentation order; yield None for each packet that cannot be decoded.

        Args:
            packet_pts: receives the pts of every packet with a frame that is to be shown.
        """
        has_key_frame = False  # A recording cannot be decoded before its first key frame: no damage.
        try:
            with open_container(self._path) as container:
                stream = select_video_stream(container)
                self._header_rate, self._time_base = stream.average_rate, stream.time_base
                self._start = stream.start_time
                self._has_discontinuities = bool(container.format.flags & av.format.Flags.ts_discont.value)
                stream.codec_context.thread_count = 1
                for packet in container.demux(stream):
                    if packet.size:
                        has_key_frame |= packet.is_keyframe
                        self.is_edited |= packet.is_discard
                        if packet_pts is not None and has_key_frame and not packet.is_discard:
                            packet_pts.append(packet.pts)
                    try:
                        frames = packet.decode()
                    except av.InvalidDataError:
                        if has_key_frame and _holds_picture(stream.codec_context.name, packet):
                            yield None
                        continue
                    yield from frames
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"cannot be decoded: {error_message(error)}") from None


def _holds_picture(codec: str, packet: av.Packet) -> bool:
    """Whether a packet holds a picture, not only a message (SEI).

    FFmpeg's parser of ASF files splits messages from the H.264 pictures that they belong to.
    """
    data = memoryview(packet)
    return codec != "h264" or len(data) > 64 or len(data) < 5 or data[4] & 31 != 6


class DecordReader:
    """Reads with decord in one thread: more threads gain little at one frame a second and break VP9.

    Raises:
        VideoError: decord cannot read the file.
        UserError: decord is not installed.
    """

    name = "decord"
    is_edited = False

    def __init__(self, path: Path) -> None:
        try:
            import decord
        except ImportError:
            raise UserError("--decoder decord: decord is not installed: pip install decord") from None
        reset_decoder_globals()
        self._errors = (RuntimeError, decord.DECORDError)
        try:
            self._video = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
            self.num_frames = self.num_packets = len(self._video)
            self.fps = float(self._video.get_avg_fps())
        except self._errors as error:
            raise VideoError(f"decord: {error_message(error)}") from None
        if not 0 < self.fps < float("inf"):
            raise VideoError("the file states no frame rate")

    def times(self, frame_indices: np.ndarray) -> np.ndarray:
        """Presentation times in seconds from the first frame, (n,) float64."""
        if not len(frame_indices):
            return np.zeros(0)
        pts = self._video.get_frame_timestamp([0, *frame_indices.tolist()])[:, 0].astype(np.float64)
        times = pts[1:] - pts[0]
        if np.isfinite(times).all() and (np.diff(times) > 0).all() and pts[0] > -1e6:
            return times
        return frame_indices / self.fps  # decord finds no usable pts in MPEG program streams.

    def chunks(self, frame_indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
        """Pixels of ascending frame indices, at most ``size`` frames at a time."""
        for start in range(0, len(frame_indices), size):
            chunk = frame_indices[start : start + size].tolist()
            try:
                yield self._video.get_batch(chunk).asnumpy()
            except self._errors as error:
                span = f"frames {chunk[0]} to {chunk[-1]}"
                raise VideoError(f"{span} cannot be decoded (decord: {error_message(error)})") from None
