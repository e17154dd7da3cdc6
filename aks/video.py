"""Candidate frames of a video: which ones, and their pixels, in decord's frame numbering.

Two readers give the same frame numbers and the same pixels: decord, and PyAV for what decord cannot
open (AV1, for one). Frames stream in chunks, so memory does not grow with the length of the video.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

import av
import decord
import numpy as np

from aks.errors import UserError, VideoError

DECODERS = ("auto", "decord", "pyav")
NEWER_THAN_DECORD = {"av1", "vvc"}  # codecs of which decord 0.6.0 knows nothing
CUT_SHORT = 0.95  # headers may count a little more than there is, but not this much
CHUNK_FRAMES = 16  # frames decoded at a time: 44 MB at 720p, 400 MB at 4K


@dataclass(frozen=True)
class Frames:
    """Decoded frames.

    Attributes:
        numbers: frame numbers, (n,) int64.
        times_s: presentation times in seconds from the first frame, (n,) float64.
        pixels: (n, height, width, 3) uint8 RGB.
    """

    numbers: np.ndarray
    times_s: np.ndarray
    pixels: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)


class _Reader(Protocol):
    name: str
    num_frames: int
    fps: float

    def times(self, numbers: np.ndarray) -> np.ndarray: ...

    def chunks(self, numbers: np.ndarray, size: int) -> Iterator[np.ndarray]: ...

    def close(self) -> None: ...


class Video:
    """An open video.

    >>> with Video("talk.mp4") as video:                      # doctest: +SKIP
    ...     for frames in video.read(video.candidates()):
    ...         print(frames.numbers, frames.times_s, frames.pixels.shape)

    Attributes:
        path: the file.
        decoder: ``decord`` or ``pyav``, whichever reads it.
        num_frames: frames in the video stream.
        fps: average frame rate in frames a second.
    """

    def __init__(self, path: str | Path, decoder: str = "auto") -> None:
        """Open a video.

        Args:
            path: a video file.
            decoder: ``decord``, ``pyav``, or ``auto``: decord, and PyAV where decord cannot open it.

        Raises:
            VideoError: the file is missing or no decoder can open it; the text is the reason.
            UserError: unknown decoder.
        """
        check_decoder(decoder)
        calm_decoders()
        # Absolute, because FFmpeg takes what stands before a colon for a protocol.
        self.path = Path(path).absolute()
        self._choice = decoder
        self._reader = _open(self.path, decoder)
        self.decoder = self._reader.name
        self.num_frames = self._reader.num_frames
        self.fps = self._reader.fps

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

    def read(self, numbers: Sequence[int] | np.ndarray, chunk_frames: int = CHUNK_FRAMES) -> Iterator[Frames]:
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
                    yield Frames(part, self.times_s(part), pixels)
                    done += len(pixels)
            except VideoError:
                if self._choice != "auto" or not self._take_other_reader():
                    raise

    def _take_other_reader(self) -> bool:
        """Go on with PyAV where decord fails in the middle; they number the frames alike."""
        if self._reader.name != "decord":
            return False
        try:
            other = _PyAVReader(self.path)
        except VideoError:
            return False
        if (other.num_frames, other.fps) != (self.num_frames, self.fps):
            return False
        self._reader.close()
        self._reader, self.decoder = other, other.name
        return True

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
        self._reader.close()

    def __enter__(self) -> Video:
        """Return the open video."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the decoder."""
        self.close()


def check_decoder(decoder: str) -> None:
    """Refuse an unknown decoder.

    Raises:
        UserError: it is none of ``DECODERS``.
    """
    if decoder not in DECODERS:
        raise UserError(f"--decoder {decoder}: use one of {', '.join(DECODERS)}")


def estimate_candidates(path: Path) -> int:
    """Candidates of a video by its header alone, for progress bars; 0 where it does not tell."""
    calm_decoders()
    try:
        if not path.is_file():
            return 0
        with _container(path.absolute()) as container:
            return int((container.duration or 0) / av.time_base)
    except (OSError, av.FFmpegError):
        return 0


def _container(path: Path) -> av.container.InputContainer:
    """Open a file with PyAV; titles and tags that are not UTF-8 do not matter here."""
    return av.open(str(path), metadata_errors="ignore")


def _open(path: Path, decoder: str) -> _Reader:
    try:
        if not path.exists():
            raise VideoError("file not found")
        if not path.is_file():  # a folder, or a pipe that might never answer
            raise VideoError("not a regular file")
        if path.stat().st_size == 0:
            raise VideoError("file is empty")
        # PyAV looks first: its reasons are clear, and decord logs to the terminal what it cannot open.
        with _container(path) as container:
            if not container.streams.video:
                raise VideoError("no video stream")
            codec = container.streams.video[0].codec_context
            if codec is None:
                raise VideoError("no decoder for its video codec")
            # decord shifts a transport stream's frames by its first group of pictures.
            decord_knows = (
                codec.codec.canonical_name not in NEWER_THAN_DECORD and container.format.name != "mpegts"
            )
            announced = container.streams.video[0].frames  # by the header; 0 where it does not say
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"cannot be opened: {_reason(error)}") from None
    if decoder == "pyav" or (decoder == "auto" and not decord_knows):
        reader: _Reader = _PyAVReader(path)
    elif decoder == "decord":
        reader = _DecordReader(path)
    else:
        try:
            reader = _DecordReader(path)
        except VideoError:
            reader = _PyAVReader(path)
    if not math.isfinite(reader.fps) or reader.fps <= 0:
        reader.close()
        raise VideoError("the file states no frame rate")
    if reader.num_frames < CUT_SHORT * announced:
        reader.close()
        raise VideoError(f"cut short: {reader.num_frames} of {announced} frames are there")
    return reader


def calm_decoders() -> None:
    """Undo what other libraries in this process do to decord and PyAV; keep codec chatter off the terminal.

    LAVIS makes decord return torch tensors. torchvision routes FFmpeg's log through Python: a codec's
    thread then waits for the interpreter lock while the thread that holds it waits for the codec to
    close, for ever.
    """
    decord.bridge.set_bridge("native")
    decord.logging.set_level(decord.logging.FATAL)
    av.logging.restore_default_callback()
    av.logging.set_libav_level(av.logging.PANIC)


class _DecordReader:
    """decord, one thread: more gain little at one frame a second and break VP9."""

    name = "decord"

    def __init__(self, path: Path) -> None:
        try:
            self._video = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
            self.num_frames = len(self._video)
            self.fps = float(self._video.get_avg_fps())
        except (RuntimeError, decord.DECORDError) as error:
            raise VideoError(f"decord: {_reason(error)}") from None

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
            except (RuntimeError, decord.DECORDError) as error:
                span = f"frames {part[0]} to {part[-1]}"
                raise VideoError(f"{span} cannot be decoded (decord: {_reason(error)})") from None

    def close(self) -> None:
        self._video = None


class _PyAVReader:
    """PyAV, decoding from the start; frames are numbered by ascending presentation time, as decord does."""

    name = "pyav"

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with _container(path) as container:
                stream = container.streams.video[0]
                rate, self._time_base = stream.average_rate, stream.time_base
                stamps = [packet.pts for packet in container.demux(stream) if packet.size]
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"cannot be indexed: {_reason(error)}") from None
        self.fps = float(rate) if rate else math.nan
        self.num_frames = len(stamps)
        if not stamps:
            raise VideoError("its video stream is empty")
        # Without a distinct time on every packet (old AVI files), frames count in decoding order.
        usable = None not in stamps and len(set(stamps)) == len(stamps)
        self._stamps = np.sort(np.array(stamps, dtype=np.int64)) if usable else None

    def times(self, numbers: np.ndarray) -> np.ndarray:
        if self._stamps is None or self._time_base is None:
            return numbers / self.fps
        return (self._stamps[numbers] - self._stamps[0]) * float(self._time_base)

    def chunks(self, numbers: np.ndarray, size: int) -> Iterator[np.ndarray]:
        wanted = set(numbers.tolist())
        chunk: list[np.ndarray] = []
        shape = None
        for number, frame in self._decode():
            if number not in wanted:
                continue
            wanted.remove(number)
            pixels = _to_rgb(frame)
            if shape is not None and pixels.shape != shape:
                raise VideoError(f"the picture changes its size at frame {number}")
            shape = pixels.shape
            chunk.append(pixels)
            if len(chunk) == size or not wanted:
                yield np.stack(chunk)
                chunk = []
            if not wanted:
                return
        if wanted:
            raise VideoError(f"frame {min(wanted)} cannot be decoded (the stream has no such picture)")

    def _decode(self) -> Iterator[tuple[int, av.VideoFrame]]:
        count = 0
        try:
            with _container(self._path) as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                for frame in container.decode(stream):
                    number = count
                    if self._stamps is not None:
                        number = int(np.searchsorted(self._stamps, frame.pts))
                    yield number, frame
                    count += 1
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"decoding stops after {count} frames: {_reason(error)}") from None

    def close(self) -> None:
        self._stamps = None


def _to_rgb(frame: av.VideoFrame) -> np.ndarray:
    """A frame as decord shows it: RGB by its own colour matrix and range, turned upright."""
    converted = frame.reformat(
        format="rgb24",
        # PyAV applies the frame's own matrix only if source and target differ; ITU-R 601 is the
        # converter's default, which is right for frames that name no matrix.
        dst_colorspace="ITU601",
        src_color_range=frame.color_range or None,
    )
    return np.ascontiguousarray(np.rot90(converted.to_ndarray(), frame.rotation // 90))


def _reason(error: BaseException) -> str:
    """The telling part of a decoder's message, in one line."""
    if getattr(error, "strerror", None):  # the operating system's and FFmpeg's errors
        return str(error.strerror)  # type: ignore[attr-defined]
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    text = re.sub(r"^\[\d\d:\d\d:\d\d\] \S+:\d+: ", "", text)  # decord's time and source line
    for mark in ("ERROR ", "Check failed: "):
        text = text.split(mark)[-1]
    return text.strip() or type(error).__name__
