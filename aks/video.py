"""Candidate frames of a video: which ones, and their pixels, in decord's frame numbering.

Three readers give the same frame numbers, times and pixels: PyAV decoding no more than the frames need
(:mod:`aks.fast_video`); decord, the reference; and PyAV decoding everything, which reads most. Where they
differ: in open groups of pictures, AVI files and edit lists, decord, which jumps to key frames, gives other
frames than those asked for. Frames stream in chunks, so memory does not grow with the length of the
video; but decord decodes ahead of a slow consumer, without bound, if it is not told to :meth:`Video.rest`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

import av
import decord
import numpy as np

from aks.errors import UserError, VideoError
from aks.fast_video import FastReader, PlainReader, open_container, reason

DECODERS = ("auto", "decord", "pyav")
NEWER_THAN_DECORD = {"av1", "vvc"}  # codecs of which decord 0.6.0 knows nothing
# Containers in which decord gives other frames than it is asked for: it shifts a transport stream's by its
# first group of pictures, and an AVI file's wherever it jumps, in some by another distance every time.
LOST_ON_DECORD = {"mpegts", "avi"}
CUT_SHORT = 0.95  # headers may count a little more than there is, but not this much
CHUNK_FRAMES = 16  # frames decoded at a time: 44 MB at 720p, 400 MB at 4K
MOST_READ_AGAIN = 32  # frames, of about a second each, that decord is made to read again after a rest


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

    def rest(self) -> None: ...

    def close(self) -> None: ...


class Video:
    """An open video.

    >>> with Video("talk.mp4") as video:                      # doctest: +SKIP
    ...     for frames in video.read(video.candidates()):
    ...         print(frames.numbers, frames.times_s, frames.pixels.shape)

    Attributes:
        path: the file.
        asked: the decoder that was asked for: ``decord``, ``pyav`` or ``auto``.
        decoder: ``decord`` or ``pyav``, whichever reads it.
        num_frames: frames in the video stream.
        fps: average frame rate in frames a second.
        announced_frames: more than ``num_frames`` where the file is cut short: what its header promises.
    """

    def __init__(self, path: str | Path, decoder: str = "auto", *, partial: bool = False) -> None:
        """Open a video.

        Args:
            path: a video file.
            decoder: ``decord``; ``pyav``; or ``auto``: PyAV where it is sure to give what decord gives, and
                where decord is known to fail (new codecs, transport streams, AVI files, open groups of
                pictures); else decord. Where a reader fails, also in the middle, ``auto`` and ``pyav`` go
                on with the next one.
            partial: open a file that is cut short, too.

        Raises:
            VideoError: the file is missing or no decoder can open it; the text is the reason.
            UserError: unknown decoder.
        """
        check_decoder(decoder)
        calm_decoders()
        # Absolute, because FFmpeg takes what stands before a colon for a protocol.
        self.path = Path(path).absolute()
        self.asked = decoder
        self._decord_knows, announced = _look(self.path)
        self._reader, self._others = self._choose()
        self.decoder = self._reader.name
        self.num_frames = self._reader.num_frames
        self.fps = self._reader.fps
        is_cut = self.num_frames < CUT_SHORT * announced
        self.announced_frames = announced if is_cut else self.num_frames
        if is_cut and not partial:
            self.close()
            raise VideoError(self.cut_short())

    @property
    def is_divisible(self) -> bool:
        """Whether reading from the middle on costs no more than a group of pictures, and gives the same."""
        return isinstance(self._reader, FastReader)

    def cut_short(self) -> str:
        """How much is there of a file that is cut short, in words."""
        return f"cut short: {self.num_frames} of {self.announced_frames} frames are there"

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
                if not self._take_next_reader():
                    raise

    def salvage(self, numbers: Sequence[int] | np.ndarray) -> Iterator[Frames]:
        """What can be decoded of some frames where :meth:`read` fails, one by one; the others are left out.

        Args:
            numbers: ascending frame numbers, (n,).

        Raises:
            VideoError: the file cannot even be opened any more.
        """
        numbers = self._checked(numbers)
        reader, others = self._choose()
        others.close()
        jumps = not isinstance(reader, PlainReader)
        found = _one_by_one(reader, numbers) if jumps else reader.readable(numbers)
        for number, pixels in found:
            yield Frames(np.array([number]), self.times_s([number]), pixels[None])

    def _choose(self) -> tuple[_Reader, Iterator[_Reader]]:
        readers = _choose(self.path, self.asked, self._decord_knows)
        reader = next(readers)
        if not math.isfinite(reader.fps) or reader.fps <= 0:
            reader.close()
            raise VideoError("the file states no frame rate")
        return reader, readers

    def rest(self) -> None:
        """Forget what was decoded ahead: the next frames are not wanted soon. It changes none of them.

        Call it before a long wait, also between two chunks of :meth:`read`, where memory matters: decord
        decodes on meanwhile, up to the end of the video. Up to 32 frames that are read already are then
        decoded again; where key frames lie further apart, it has no effect. PyAV never decodes ahead.

        Raises:
            VideoError: decord cannot go back to the start.
        """
        self._reader.rest()

    def _take_next_reader(self) -> bool:
        """Go on with another reader where one fails in the middle; they number the frames alike."""
        with suppress(VideoError):
            for other in self._others:
                if (other.num_frames, other.fps) == (self.num_frames, self.fps):
                    self._reader.close()
                    self._reader, self.decoder = other, other.name
                    return True
                other.close()
        return False

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
        self._others.close()

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
        with open_container(path.absolute()) as container:
            return int((container.duration or 0) / av.time_base)
    except (OSError, av.FFmpegError):
        return 0


def _look(path: Path) -> tuple[bool, int]:
    """Whether decord reads such files rightly, and how many frames the header announces; 0 if it is silent.

    Raises:
        VideoError: the file cannot be opened.
    """
    try:
        if not path.exists():
            raise VideoError("file not found")
        if not path.is_file():  # a folder, or a pipe that might never answer
            raise VideoError("not a regular file")
        if path.stat().st_size == 0:
            raise VideoError("file is empty")
        # PyAV looks first: its reasons are clear, and decord logs to the terminal what it cannot open.
        with open_container(path) as container:
            if not container.streams.video:
                raise VideoError("no video stream")
            codec = container.streams.video[0].codec_context
            if codec is None:
                raise VideoError("no decoder for its video codec")
            decord_knows = (
                codec.codec.canonical_name not in NEWER_THAN_DECORD
                and container.format.name not in LOST_ON_DECORD
            )
            return decord_knows, container.streams.video[0].frames
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"cannot be opened: {reason(error)}") from None


def _one_by_one(reader: _Reader, numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The frames that a reader can jump to and decode."""
    for number in numbers.tolist():
        with suppress(VideoError):
            (pixels,) = reader.chunks(np.array([number]), 1)
            yield number, pixels[0]


def _choose(path: Path, decoder: str, decord_knows: bool) -> Iterator[_Reader]:
    """Readers of a video, best first; the later ones are for where the ones before fail.

    Raises:
        VideoError: the last one cannot open it either.
    """
    if decoder == "decord":
        yield _DecordReader(path)
        return
    fast = None
    with suppress(VideoError):
        fast = FastReader(path)
    try_decord = decoder == "auto" and decord_knows
    if fast is not None and try_decord:
        with suppress(VideoError):
            by_decord = _DecordReader(path)  # costs some 0.05 s for a film of ten minutes
            if not _alike(fast, by_decord):
                fast = None
            by_decord.close()  # it decodes ahead
    if fast is not None:
        yield fast
    # In open groups of pictures decord jumps to other frames than it is asked for.
    if try_decord and not (fast is not None and fast.has_open_groups):
        with suppress(VideoError):
            yield _DecordReader(path)
    yield PlainReader(path)


def _alike(one: _Reader, other: _Reader) -> bool:
    """Whether two readers give the same frame numbers and times."""
    if (one.num_frames, one.fps) != (other.num_frames, other.fps):
        return False
    numbers = np.arange(one.num_frames)
    return np.array_equal(one.times(numbers), other.times(numbers))


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
            self._keys = np.array(self._video.get_key_indices())
        except (RuntimeError, decord.DECORDError) as error:
            raise VideoError(f"decord: {_reason(error)}") from None
        # What it gives in open groups of pictures depends on the way there: after a rest, it goes it again.
        self._at = 0
        self._way: list[int] = []  # frames read since it jumped
        self._rests = False

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
                yield self._get(part)
            except (RuntimeError, decord.DECORDError) as error:
                span = f"frames {part[0]} to {part[-1]}"
                raise VideoError(f"{span} cannot be decoded (decord: {_reason(error)})") from None

    def _get(self, part: list[int]) -> np.ndarray:
        if self._rests and not self._jumps_to(part[0]):
            for start in range(0, len(self._way), len(part)):
                self._video.get_batch(self._way[start : start + len(part)])
        self._rests = False
        pixels = self._video.get_batch(part).asnumpy()
        for number in part:
            if self._jumps_to(number):
                self._way = []
            self._way.append(number)
            self._at = number + 1
        return pixels

    def _jumps_to(self, number: int) -> bool:
        """Whether decord begins anew, at a key frame, to read this one."""
        before, after = np.searchsorted(self._keys, (self._at, number), side="right")
        return number < self._at or before != after

    def rest(self) -> None:
        if len(self._way) > MOST_READ_AGAIN or self._rests:
            return
        try:
            self._video.seek(0)  # forgets all that it has in work
        except (RuntimeError, decord.DECORDError) as error:
            raise VideoError(f"decord: {_reason(error)}") from None
        self._rests = True

    def close(self) -> None:
        self._video = None


def _reason(error: BaseException) -> str:
    """The telling part of decord's message, in one line."""
    text = str(error).strip().split("\n")[0]
    text = re.sub(r"^\[\d\d:\d\d:\d\d\] \S+:\d+: ", "", text)  # the time and decord's source line
    for mark in ("ERROR ", "Check failed: "):
        text = text.split(mark)[-1]
    return text.strip() or type(error).__name__
