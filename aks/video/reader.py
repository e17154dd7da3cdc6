"""Candidate frames of a video: which ones, and their pixels.

PyAV reads every video: only what the frames need where that is sure to give the same pixels, else all of
it (:mod:`aks.video.sparse`). Frames and times are those that a player shows; their numbers and times are
decord's wherever decord is right. Frames stream in chunks, so memory does not grow with the length of the
video. ``decord``, the paper's reader, is there for comparison: it shows other frames than it is asked
for in many kinds of files, and decodes ahead of a slow consumer without bound.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from aks.errors import UserError, VideoError, error_message
from aks.video.sparse import (
    CONTAINERS,
    SequentialReader,
    SparseReader,
    open_container,
    select_video_stream,
    silence_codecs,
)

DECODERS = ("auto", "pyav", "decord")
DECORD_READS = {"h264", "hevc", "vp8", "vp9", "mpeg4"}  # codecs whose frames it finds in such containers
PROBE_S = 30.0  # of a video, in which open groups of pictures show
MIN_COMPLETE_FRACTION = 0.95  # headers may count a little more than there is, but not this much
CHUNK_FRAMES = 16  # frames decoded at a time: 44 MB at 720p, 400 MB at 4K


@dataclass(frozen=True)
class DecodedFrames:
    """Decoded frames.

    Attributes:
        frame_indices: frame numbers, (n,) int64.
        times_s: presentation times in seconds from the first frame, (n,) float64.
        pixels: (n, height, width, 3) uint8 RGB, as stored: a pixel aspect ratio is not applied.
    """

    frame_indices: np.ndarray
    times_s: np.ndarray
    pixels: np.ndarray


class Video:
    """An open video.

    >>> with Video("talk.mp4") as video:                      # doctest: +SKIP
    ...     for frames in video.read(video.candidates()):
    ...         print(frames.frame_indices, frames.times_s, frames.pixels.shape)

    Attributes:
        path: the file.
        requested_decoder: the decoder that was asked for: ``auto``, ``pyav`` or ``decord``.
        decoder: ``pyav`` or ``decord``, whichever reads it.
        num_frames: frames that the video shows.
        fps: average frame rate in frames a second.
        is_edited: whether an edit list leaves stored frames out. They have no number here; decord counts
            them, and its times run past the end.
        header_num_frames: more than ``num_frames`` where the file is cut short: what its header promises.
    """

    def __init__(self, path: str | Path, decoder: str = "auto", *, partial: bool = False) -> None:
        """Open a video.

        Args:
            path: a video file.
            decoder: ``auto``: PyAV, decoding no more than the frames need where that is exact; ``pyav``:
                the same frames by decoding everything, for comparison; ``decord``: those of the paper's
                reader.
            partial: open a file that is cut short, too.

        Raises:
            VideoError: the file is missing or cannot be read; the text is the reason.
            UserError: unknown decoder, or decord is not installed.
        """
        if decoder not in DECODERS:
            raise UserError(f"--decoder {decoder}: use one of {', '.join(DECODERS)}")
        reset_decoder_globals()
        # Absolute, because FFmpeg takes what stands before a colon for a protocol.
        self.path = Path(path).absolute()
        self.requested_decoder = decoder
        header = read_header(self.path)
        self._reader = self._open_reader()
        self.decoder = self._reader.name
        self.num_frames = self._reader.num_frames
        self.fps = self._reader.fps
        self.is_edited = self._reader.is_edited
        self.header_num_frames = self._announced(header)
        if self.header_num_frames > self.num_frames and not partial:
            self.close()
            raise VideoError(self.truncation_message())

    def _open_reader(self) -> SparseReader | SequentialReader | _DecordReader:
        if self.requested_decoder == "decord":
            return _DecordReader(self.path)
        if self.requested_decoder == "auto":
            with suppress(VideoError):
                return SparseReader(self.path)
        return SequentialReader(self.path)

    def _announced(self, header: VideoHeader) -> int:
        """How many frames there would be if the file were whole, by its header."""
        seconds = float(self._reader.times(np.array([self.num_frames - 1]))[0]) + 1 / self.fps
        # Some AVI files count fields, or pictures that repeat the one before: then the length tells.
        if (
            self._reader.num_packets >= MIN_COMPLETE_FRACTION * header.num_frames
            or seconds >= MIN_COMPLETE_FRACTION * header.seconds
        ):
            return self.num_frames
        return max(self.num_frames, min(header.num_frames, round(header.seconds * self.fps)))

    @property
    def is_seekable(self) -> bool:
        """Whether reading from the middle on costs no more than a group of pictures, and gives the same."""
        return isinstance(self._reader, SparseReader)

    def truncation_message(self) -> str:
        """How much is there of a file that is cut short, in words."""
        return f"cut short: {self.num_frames} of {self.header_num_frames} frames are there"

    @property
    def stride_frames(self) -> int:
        """Distance of candidates: the whole part of the frame rate, at least 1 (the paper's rule)."""
        return max(1, int(self.fps))

    def candidates(self) -> np.ndarray:
        """Frame numbers of the candidates, about one a second: ``num_frames // stride`` of them, int64.

        Source: the released code of the paper (``stride = int(avg_fps)``; its division by zero below
        1 fps is mended by a stride of 1).
        """
        return np.arange(self.num_frames // self.stride_frames, dtype=np.int64) * self.stride_frames

    def times_s(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """Presentation times of frames in seconds from the first frame, (n,) float64."""
        times = self._reader.times(self._checked(numbers))
        return np.round(times, 6)  # below a container's finest clock; keeps readers' files equal

    def read(
        self, numbers: Sequence[int] | np.ndarray, chunk_frames: int = CHUNK_FRAMES
    ) -> Iterator[DecodedFrames]:
        """Decode the given frames, in chunks of at most ``chunk_frames``.

        Args:
            numbers: ascending frame numbers, (n,).
            chunk_frames: how many decoded frames to hold at a time.

        Raises:
            VideoError: a frame cannot be decoded.
            ValueError: numbers out of range or not ascending.
        """
        numbers = self._checked(numbers)
        done = 0
        while done < len(numbers):
            try:
                for pixels in self._reader.chunks(numbers[done:], chunk_frames):
                    part = numbers[done : done + len(pixels)]
                    yield DecodedFrames(part, self.times_s(part), pixels)
                    done += len(pixels)
            except VideoError:
                if not self._decode_everything():
                    raise

    def _decode_everything(self) -> bool:
        """Go on without leaving anything out, where that is possible: the readers number frames alike."""
        if isinstance(self._reader, SparseReader):
            with suppress(VideoError):
                other = SequentialReader(self.path)
                if (other.num_frames, other.fps) == (self.num_frames, self.fps):
                    self._reader = other
                    return True
        return False

    def read_partial(self, numbers: Sequence[int] | np.ndarray) -> Iterator[DecodedFrames]:
        """What can be decoded of some frames where :meth:`read` fails, one by one; the others are left out.

        Args:
            numbers: ascending frame numbers, (n,).

        Raises:
            VideoError: the file cannot even be opened any more.
        """
        numbers = self._checked(numbers)
        reader = self._open_reader()
        whole = isinstance(reader, SequentialReader)
        for number, pixels in reader.readable(numbers) if whole else _one_by_one(reader, numbers):
            yield DecodedFrames(np.array([number]), self.times_s([number]), pixels[None])

    def _checked(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        numbers = np.asarray(numbers, dtype=np.int64)
        if len(numbers) and (
            numbers[0] < 0 or numbers[-1] >= self.num_frames or (np.diff(numbers) <= 0).any()
        ):
            raise ValueError(
                f"{self.path}: frame numbers must ascend from 0 or later to at most {self.num_frames - 1}"
            )
        return numbers

    def close(self) -> None:
        """Release the decoder."""
        self._reader = None

    def __enter__(self) -> Video:
        """Return the open video."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release the decoder."""
        self.close()


@dataclass(frozen=True)
class VideoHeader:
    """What a video's header says: frames of the film, and its seconds; 0 where it is silent.

    Attributes:
        num_frames: frames.
        seconds: length of the film.
        container_seconds: length of the file, sound included.
    """

    num_frames: int
    seconds: float
    container_seconds: float


def read_header(path: Path) -> VideoHeader:
    """Read a video's header.

    Raises:
        VideoError: the file cannot be opened, or holds no film.
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
            # Of an AVI file cut short FFmpeg shortens the duration; its frames are ticks of a clock.
            ticks = max(stream.duration or 0, stream.frames if container.format.name == "avi" else 0)
            seconds = float(ticks * (stream.time_base or 0))
            return VideoHeader(stream.frames, seconds, (container.duration or 0) / av.time_base)
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"cannot be opened: {error_message(error)}") from None


def estimate_candidates(path: Path) -> int:
    """Candidates of a video by its header alone, for progress bars; 0 where it does not tell."""
    reset_decoder_globals()
    try:
        return int(read_header(path.absolute()).container_seconds)
    except VideoError:
        return 0


def decord_differs(path: str | Path) -> bool:
    """Whether decord is known to number or to show frames of a video otherwise than a player.

    It knows nothing of edit lists, and loses its place in most containers and codecs where it has to jump,
    also in groups of pictures that lean on the one before. The first groups of a file tell.

    Raises:
        VideoError: the file cannot be read.
    """
    reset_decoder_globals()
    first = last = None  # times of key frames
    try:
        with open_container(Path(path).absolute()) as container:
            stream = select_video_stream(container)
            sound = container.format.name in CONTAINERS and stream.codec_context.name in DECORD_READS
            for packet in container.demux(stream) if sound else ():
                if packet.size and (packet.pts is None or packet.is_discard):
                    return True
                if packet.is_keyframe:
                    first, last = packet.pts if first is None else first, packet.pts
                elif packet.size and last is not None and packet.pts < last:
                    return True
                if packet.size and (packet.pts - (first or 0)) * stream.time_base > PROBE_S:
                    break
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"cannot be read: {error_message(error)}") from None
    return not sound


def _one_by_one(
    reader: SparseReader | _DecordReader, numbers: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    """The frames that a reader can jump to and decode."""
    for number in numbers.tolist():
        with suppress(VideoError):
            (pixels,) = reader.chunks(np.array([number]), 1)
            yield number, pixels[0]


def reset_decoder_globals() -> None:
    """Undo what other libraries in this process do to decord and PyAV; keep codec chatter off the terminal.

    LAVIS makes decord return torch tensors; torchvision routes FFmpeg's log through Python.
    """
    if decord := sys.modules.get("decord"):
        decord.bridge.set_bridge("native")
        decord.logging.set_level(decord.logging.FATAL)
    silence_codecs()


class _DecordReader:
    """decord, one thread: more gain little at one frame a second and break VP9."""

    name = "decord"

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
            self.is_edited = False
            self.fps = float(self._video.get_avg_fps())
        except self._errors as error:
            raise VideoError(f"decord: {error_message(error)}") from None
        if not 0 < self.fps < float("inf"):
            raise VideoError("the file states no frame rate")

    def times(self, numbers: np.ndarray) -> np.ndarray:
        if not len(numbers):
            return np.zeros(0)
        stamps = self._video.get_frame_timestamp([0, *numbers.tolist()])[:, 0].astype(np.float64)
        times = stamps[1:] - stamps[0]
        if np.isfinite(times).all() and (np.diff(times) > 0).all() and stamps[0] > -1e6:
            return times
        return numbers / self.fps  # the container carries no usable clock (MPEG program streams)

    def chunks(self, numbers: np.ndarray, size: int) -> Iterator[np.ndarray]:
        for start in range(0, len(numbers), size):
            part = numbers[start : start + size].tolist()
            try:
                yield self._video.get_batch(part).asnumpy()
            except self._errors as error:
                span = f"frames {part[0]} to {part[-1]}"
                raise VideoError(f"{span} cannot be decoded (decord: {error_message(error)})") from None
