"""Videos: which frames are candidates, and their pixels.

:class:`Video` reads with PyAV. It decodes only what the wanted frames need where that surely gives the same
pixels (:mod:`aks.video.sparse`), and the whole video elsewhere. Frames and times are those that a player
shows; frame indices and times equal decord's wherever decord is right. Frames arrive in chunks, so memory
does not grow with the length of the video.

The paper's reader, decord, is available for comparison. In many kinds of files it returns other frames than
it is asked for, and it decodes ahead of a slow consumer without bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from aks.errors import UserError, VideoError, error_message
from aks.video.backends import DecordReader, SequentialReader, open_container, select_video_stream
from aks.video.codec_log import reset_decoder_globals
from aks.video.sparse import EXACT_CONTAINERS, SparseReader

DECODERS = ("auto", "pyav", "decord")
DECORD_EXACT_CODECS = {"h264", "hevc", "vp8", "vp9", "mpeg4"}  # decord jumps right in EXACT_CONTAINERS
OPEN_GROUP_SEARCH_S = 30.0  # the part of a video in which decord_differs() looks for open groups of pictures
MIN_COMPLETE_FRACTION = 0.95  # a whole file may hold a little less than its header counts
CHUNK_FRAMES = 16  # frames decoded at a time: 44 MB at 720p, 400 MB at 4K


@dataclass(frozen=True)
class DecodedFrames:
    """Decoded frames.

    Attributes:
        frame_indices: frame indices in the video, (n,) int64.
        times_s: presentation times in seconds from the first frame, (n,) float64.
        pixels: (n, height, width, 3) uint8 RGB, as stored: a pixel aspect ratio is not applied.
    """

    frame_indices: np.ndarray
    times_s: np.ndarray
    pixels: np.ndarray


@dataclass(frozen=True)
class CandidateRule:
    """Which frames of a video are candidates; by default about one a second of all of it, the paper's rule.

    Attributes:
        per_second: candidates a second of video, above 0: every ``int(rate / per_second)``-th frame counting
            from the first, at least every one.
        start_s, end_s: seconds from the first frame between which they are, both included.
        positions: of those so given, the candidates are only these, ascending from 0; None for all.

    Raises:
        ValueError: there can be no such frame.
    """

    per_second: float = 1.0
    start_s: float = 0.0
    end_s: float = math.inf
    positions: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.per_second < math.inf:
            raise ValueError(f"fps is {self.per_second:g}; it must be a number above 0")
        if not 0 <= self.start_s <= self.end_s:
            raise ValueError(
                f"start and end are {self.start_s:g} and {self.end_s:g} s; use 0 <= start <= end"
            )

    def stride(self, fps: float) -> int:
        """Frames from one candidate to the next, in a video of so many frames a second."""
        return max(1, int(fps / self.per_second))


EVERY_SECOND = CandidateRule()


class Video(AbstractContextManager):
    """An open video.

    >>> with Video("talk.mp4") as video:                      # doctest: +SKIP
    ...     for frames in video.read(video.candidates()):
    ...         print(frames.frame_indices, frames.times_s, frames.pixels.shape)

    Attributes:
        path: the file.
        requested_decoder: the decoder that the caller asked for: ``auto``, ``pyav`` or ``decord``.
        decoder: the library that reads the video: ``pyav`` or ``decord``.
        num_frames: frames that the video shows.
        fps: average frame rate in frames per second.
        is_edited: whether an edit list hides stored frames. Hidden frames have no index here; decord counts
            them, and its times run past the end.
        header_num_frames: frames that the header promises, more than ``num_frames`` where the file is cut
            short; otherwise ``num_frames``.
    """

    def __init__(self, path: str | Path, decoder: str = "auto", *, partial: bool = False) -> None:
        """Open a video.

        Args:
            path: a video file.
            decoder: ``auto``: PyAV, which decodes no more than the frames need where that is exact; ``pyav``:
                the same frames by decoding everything, for comparison; ``decord``: the paper's reader.
            partial: accept a file that is cut short.

        Raises:
            VideoError: the file is missing, cannot be read, or is cut short; the text is the reason.
            UserError: the decoder is unknown, or decord is not installed.
        """
        if decoder not in DECODERS:
            raise UserError(f"--decoder {decoder}: use one of {', '.join(DECODERS)}")
        reset_decoder_globals()
        # An absolute path, because FFmpeg takes the text before a colon for a protocol.
        self.path = Path(path).absolute()
        self.requested_decoder = decoder
        header = read_header(self.path)
        self._reader = self._open_reader()
        self.decoder = self._reader.name
        self.num_frames = self._reader.num_frames
        self.fps = self._reader.fps
        self.is_edited = self._reader.is_edited
        self.header_num_frames = self._promised_frames(header)
        if self.header_num_frames > self.num_frames and not partial:
            self.close()
            raise VideoError(self.truncation_message())

    def _open_reader(self) -> SparseReader | SequentialReader | DecordReader:
        if self.requested_decoder == "decord":
            return DecordReader(self.path)
        if self.requested_decoder == "auto":
            with suppress(VideoError):
                return SparseReader(self.path)
        return SequentialReader(self.path)

    def _promised_frames(self, header: VideoHeader) -> int:
        """How many frames the whole file would have, by its header."""
        seconds = float(self._reader.times(np.array([self.num_frames - 1]))[0]) + 1 / self.fps
        # The headers of some AVI files count fields, or repeated frames; their duration is right.
        if (
            self._reader.num_packets >= MIN_COMPLETE_FRACTION * header.num_frames
            or seconds >= MIN_COMPLETE_FRACTION * header.seconds
        ):
            return self.num_frames
        return max(self.num_frames, min(header.num_frames, round(header.seconds * self.fps)))

    @property
    def is_seekable(self) -> bool:
        """Whether reading may start anywhere: the frames stay exact, at the cost of one group of pictures."""
        return isinstance(self._reader, SparseReader)

    def truncation_message(self) -> str:
        """Say how much of a file that is cut short is there."""
        return f"cut short: {self.num_frames} of {self.header_num_frames} frames are there"

    @property
    def stride_frames(self) -> int:
        """Frames from one candidate to the next: the whole part of the frame rate, at least 1."""
        return EVERY_SECOND.stride(self.fps)

    def candidates(self, rule: CandidateRule = EVERY_SECOND) -> np.ndarray:
        """Frame indices of the candidates, int64: ``num_frames // stride`` of them in a whole video.

        Source: the paper's released code (``stride = int(avg_fps)``). Below 1 fps that code divides by zero;
        a stride of 1 replaces it here.
        """
        stride = rule.stride(self.fps)
        indices = np.arange(self.num_frames // stride, dtype=np.int64) * stride
        if rule.start_s > 0 or rule.end_s < math.inf:
            times = self.times_s(indices)
            indices = indices[(rule.start_s <= times) & (times <= rule.end_s)]
        return indices if rule.positions is None else indices[list(rule.positions)]

    def entry_distances(self, frame_indices: np.ndarray) -> np.ndarray:
        """How many packets lie between a frame and the one where its decoding begins, (n,) int64.

        Zeros where decoding begins at the start of the file.
        """
        if isinstance(self._reader, SparseReader):
            return self._reader.entry_distances(frame_indices)
        return np.zeros(len(frame_indices), dtype=np.int64)

    def times_s(self, frame_indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Presentation times of frames in seconds from the first frame, (n,) float64.

        Times have microseconds, finer than any container's clock, so that all backends write equal times.
        """
        return np.round(self._reader.times(self._validated(frame_indices)), 6)

    def read(
        self, frame_indices: Sequence[int] | np.ndarray, chunk_frames: int = CHUNK_FRAMES
    ) -> Iterator[DecodedFrames]:
        """Decode the frames of ascending indices, (n,), in chunks of at most ``chunk_frames``.

        Raises:
            VideoError: a frame cannot be decoded.
            ValueError: the frame indices are out of range or do not ascend.
        """
        frame_indices = self._validated(frame_indices)
        done = 0
        while done < len(frame_indices):
            try:
                for pixels in self._reader.chunks(frame_indices[done:], chunk_frames):
                    indices = frame_indices[done : done + len(pixels)]
                    yield DecodedFrames(indices, self.times_s(indices), pixels)
                    done += len(pixels)
            except VideoError:
                if not self._fall_back():
                    raise

    def read_all(self, frame_indices: Sequence[int] | np.ndarray, threads: int = 1) -> DecodedFrames:
        """Decode the frames of ascending indices, (n,), into one array.

        Args:
            frame_indices: at least one.
            threads: most that decode a part of the frames each, where decoding may begin anywhere. The
                pixels do not depend on them.

        Raises:
            VideoError: a frame cannot be decoded.
            ValueError: the frame indices are out of range or do not ascend.
        """
        frame_indices, reader = self._validated(frame_indices), self._reader
        if isinstance(reader, SparseReader) and threads > 1:
            parts = reader.independent_parts(frame_indices, threads)
            with ThreadPoolExecutor(len(parts)) as pool, suppress(VideoError):
                # Every thread opens the file for itself; the index is shared.
                pixels = pool.map(lambda part: next(reader.chunks(part, len(part))), parts)
                return DecodedFrames(frame_indices, self.times_s(frame_indices), np.concatenate(list(pixels)))
        batches = list(self.read(frame_indices))  # also where a thread failed: another reader may go on
        pixels = np.concatenate([batch.pixels for batch in batches])
        return DecodedFrames(frame_indices, self.times_s(frame_indices), pixels)

    def _fall_back(self) -> bool:
        """Replace the sparse reader by the sequential one, if both number the frames alike."""
        if isinstance(self._reader, SparseReader):
            with suppress(VideoError):
                sequential = SequentialReader(self.path)
                if (sequential.num_frames, sequential.fps) == (self.num_frames, self.fps):
                    self._reader = sequential
                    return True
        return False

    def read_partial(self, frame_indices: Sequence[int] | np.ndarray) -> Iterator[DecodedFrames]:
        """Decode, one by one, those of the given frames that can be decoded, where :meth:`read` fails.

        Raises:
            VideoError: the file can no longer be opened.
            ValueError: the frame indices are out of range or do not ascend.
        """
        frame_indices = self._validated(frame_indices)
        reader = self._open_reader()
        if isinstance(reader, SequentialReader):
            frames = reader.read_partial(frame_indices)
        else:
            frames = _read_one_by_one(reader, frame_indices)
        for index, pixels in frames:
            yield DecodedFrames(np.array([index]), self.times_s([index]), pixels[None])

    def _validated(self, frame_indices: Sequence[int] | np.ndarray) -> np.ndarray:
        indices = np.asarray(frame_indices, dtype=np.int64)
        if len(indices) and (
            indices[0] < 0 or indices[-1] >= self.num_frames or (np.diff(indices) <= 0).any()
        ):
            raise ValueError(
                f"{self.path}: frame numbers must ascend from 0 or later to at most {self.num_frames - 1}"
            )
        return indices

    def close(self) -> None:
        """Release the decoder."""
        self._reader = None

    def __exit__(self, *_: object) -> None:
        self.close()


def _read_one_by_one(
    reader: SparseReader | DecordReader, frame_indices: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    for index in frame_indices.tolist():
        with suppress(VideoError):
            (pixels,) = reader.chunks(np.array([index]), 1)
            yield index, pixels[0]


@dataclass(frozen=True)
class VideoHeader:
    """What a file's header states; 0 where it states nothing.

    Attributes:
        num_frames: frames of the video stream.
        seconds: duration of the video stream.
        container_seconds: duration of the file, audio included.
    """

    num_frames: int
    seconds: float
    container_seconds: float


def read_header(path: Path) -> VideoHeader:
    """Read a video's header.

    Raises:
        VideoError: the file cannot be opened, or holds no video.
    """
    try:
        if not path.exists():
            raise VideoError("file not found")
        if not path.is_file():  # a folder, or a pipe that might never answer
            raise VideoError("not a regular file")
        if path.stat().st_size == 0:
            raise VideoError("file is empty")
        with open_container(path) as container:
            stream = select_video_stream(container)
            # FFmpeg shortens the duration of an AVI file that is cut short. The frame count of its header
            # stays, in ticks of the stream's clock.
            ticks = max(stream.duration or 0, stream.frames if container.format.name == "avi" else 0)
            seconds = float(ticks * (stream.time_base or 0))
            return VideoHeader(stream.frames, seconds, (container.duration or 0) / av.time_base)
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"cannot be opened: {error_message(error)}") from None


def estimate_candidates(path: Path) -> int:
    """Estimate a video's candidates by its header alone, for progress bars; 0 where it states no duration."""
    reset_decoder_globals()
    try:
        return int(read_header(path.absolute()).container_seconds)
    except VideoError:
        return 0


def decord_differs(path: str | Path) -> bool:
    """Whether decord is known to number or to show frames of a video otherwise than a player.

    decord ignores edit lists. In most containers and codecs, and in open groups of pictures, it returns wrong
    frames after a jump. The first :data:`OPEN_GROUP_SEARCH_S` seconds show whether groups are open.

    Raises:
        VideoError: the file cannot be read.
    """
    reset_decoder_globals()
    first = last = None  # pts of the first and of the latest key frame
    try:
        with open_container(Path(path).absolute()) as container:
            stream = select_video_stream(container)
            codec = stream.codec_context.name
            if container.format.name not in EXACT_CONTAINERS or codec not in DECORD_EXACT_CODECS:
                return True
            for packet in container.demux(stream):
                if packet.size and (packet.pts is None or packet.is_discard):
                    return True
                if packet.is_keyframe:
                    first, last = packet.pts if first is None else first, packet.pts
                elif packet.size and last is not None and packet.pts < last:
                    return True
                if packet.size and (packet.pts - (first or 0)) * stream.time_base > OPEN_GROUP_SEARCH_S:
                    break
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"cannot be read: {error_message(error)}") from None
    return False
