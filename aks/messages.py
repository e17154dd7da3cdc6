"""Keyframes as chat messages for a vision-language model, each with its true time; and a server's answer.

Keyframes are unevenly spaced, so a rate of frames does not tell when they are. ``to_messages`` therefore
writes the time of every frame, in the form that the model's processor keeps (read in transformers 4.51 and
4.57):

- Images with a text before each keep it in every model whose template leaves the order of a message alone,
  such as those of Qwen2.5-VL and Qwen3-VL.
- Qwen2.5-VL's video input knows one rate (``fps``, from which ``second_per_grid_ts`` comes) and counts from
  zero: no rate is true of keyframes.
- Qwen3-VL's writes ``<12.5 seconds>`` before every two frames, which is the mean of their times. So each
  frame goes in twice, for a time of its own.
- LLaVA-OneVision's template gathers images and videos before all text. Frames are numbered, so that a time in
  the text still names its frame.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aks.clock import format_time
from aks.errors import UserError, error_message

STYLES = ("openai", "transformers", "video", "qwen3_vl")
TICKS_PER_S = 1000  # of video_metadata: milliseconds
FRAMES_PER_PATCH = 2  # Qwen3-VL's temporal patch, which has one time
MAX_MESSAGE_CHARS = 300  # of a server's error


@dataclass(frozen=True)
class Frame:
    """A frame to show.

    Attributes:
        frame_index: number in the video.
        time_s: time in the video, in seconds.
        image: (height, width, 3) uint8 RGB, or a PIL image.
    """

    frame_index: int
    time_s: float
    image: np.ndarray | Image.Image


def read_frames(path: str | Path, frame_indices: Sequence[int]) -> list[Frame]:
    """Frames of a video file, with the times at which a player shows them.

    >>> read_frames("talk.mp4", [keyframe.frame_index for keyframe in keyframes])  # doctest: +SKIP

    Raises:
        VideoError: the video cannot be read.
        ValueError: the indices do not ascend, or the video has no such frame.
    """
    from aks.video.reader import Video

    with Video(path) as video:
        return [
            Frame(int(index), float(time_s), pixels)
            for frames in video.read(frame_indices)
            for index, time_s, pixels in zip(frames.frame_indices, frames.times_s, frames.pixels, strict=True)
        ]


def to_messages(
    question: str,
    frames: Sequence[Frame],
    *,
    style: str = "openai",
    longest_side: int | None = None,
    quality: int = 90,
) -> list[dict[str, Any]]:
    """One user message with frames, their times and a question.

    Args:
        question: stands after the frames.
        frames: in the order in which they are shown; for a video all of one size.
        style: the form of the message, see the module's text:

            ``openai``: JPEG data URLs, which JSON can hold, for :func:`ask`, vLLM and other servers.
            ``transformers``: PIL images, for ``processor.apply_chat_template`` and qwen-vl-utils.
            ``video``: a video of PIL images, then all times as text: LLaVA-OneVision.
            ``qwen3_vl``: a video that holds each frame twice; the processor writes the times of
            :func:`video_metadata`, to be passed with it.
        longest_side: larger images are reduced to it, in pixels; None keeps their size.
        quality: of the JPEG, 1 to 95.

    Raises:
        UserError: the question is empty.
        ValueError: no frames, an image that is not RGB, frames of a video that differ in size, or another
            argument out of range.
    """
    if not question.strip():
        raise UserError("the question is empty; say what to ask about the frames")
    if not frames:
        raise ValueError("no frames to show")
    if style not in STYLES:
        raise ValueError(f"style {style!r}: must be one of {', '.join(STYLES)}")
    if longest_side is not None and longest_side < 1:
        raise ValueError(f"longest_side {longest_side}: must be 1 or more")
    if not 1 <= quality <= 95:
        raise ValueError(f"quality {quality}: must be 1 to 95")
    images = [_to_pil(frame.image, longest_side) for frame in frames]
    labels = [f"Frame {number} at {format_time(f.time_s)}" for number, f in enumerate(frames, 1)]
    content: list[dict[str, Any]] = []
    if style in ("video", "qwen3_vl"):
        sizes = {image.size for image in images}
        if len(sizes) > 1:
            raise ValueError(f"frames of a video must have one size, these have {sorted(sizes)}")
        repeats = FRAMES_PER_PATCH if style == "qwen3_vl" else 1
        content.append({"type": "video", "video": [image for image in images for _ in range(repeats)]})
        if style == "video":
            question = "\n".join(["Times of the video's frames (h:mm:ss.mmm):", *labels, question])
    else:
        labels[0] = f"Frames of one video, each after its time (h:mm:ss.mmm).\n{labels[0]}"
        for label, image in zip(labels, images, strict=True):
            content.append({"type": "text", "text": f"{label}:"})
            if style == "openai":
                url = f"data:image/jpeg;base64,{jpeg_base64(image, quality)}"
                content.append({"type": "image_url", "image_url": {"url": url}})
            else:
                content.append({"type": "image", "image": image})
    content.append({"type": "text", "text": question})
    return [{"role": "user", "content": content}]


def with_data_urls(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages of style ``openai`` in the form of ``transformers``, which JSON can hold, too.

    ``processor.apply_chat_template`` and qwen-vl-utils read the data URLs as images.
    """

    def part(content: dict[str, Any]) -> dict[str, Any]:
        is_image = content["type"] == "image_url"
        return {"type": "image", "image": content["image_url"]["url"]} if is_image else content

    return [{**message, "content": [part(content) for content in message["content"]]} for message in messages]


def video_metadata(frames: Sequence[Frame]) -> dict[str, Any]:
    """What tells Qwen3-VL's processor the times of a message of style ``qwen3_vl``.

    Pass it on as ``video_metadata=[video_metadata(frames)], do_sample_frames=False``. transformers divides
    ``frames_indices`` by ``fps``. The indices are therefore milliseconds, at a thousand a second, because
    frame numbers at an average rate miss the times of a video whose rate varies.
    """
    indices = [round(frame.time_s * TICKS_PER_S) for frame in frames for _ in range(FRAMES_PER_PATCH)]
    # transformers wants a total, for sampling, which is off: here up to the last frame.
    return {"fps": float(TICKS_PER_S), "frames_indices": indices, "total_num_frames": max(indices) + 1}


def ask(
    url: str,
    model: str,
    messages: Sequence[dict[str, Any]],
    *,
    timeout_s: float = 600.0,
    **options: Any,
) -> str:
    """The answer of an OpenAI-compatible server, such as vLLM, ``transformers serve`` or a hosted one.

    >>> ask("http://localhost:8000/v1", "Qwen/Qwen2.5-VL-7B-Instruct", messages)  # doctest: +SKIP

    The environment variable OPENAI_API_KEY holds the key of a server that wants one.

    Args:
        url: the server's base, to which ``/chat/completions`` is added.
        model: a name that the server knows.
        messages: of style ``openai``.
        timeout_s: how long the server may be silent, in seconds.
        options: further fields of the request, such as ``max_tokens=64`` or ``temperature=0``.

    Raises:
        UserError: the server cannot be reached, refuses, or gives no text; in one line.
    """
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if key := check_server(url):
        headers["Authorization"] = f"Bearer {key}"
    endpoint = f"{url.rstrip('/')}/chat/completions"
    body = json.dumps({"model": model, "messages": list(messages), **options}).encode()
    try:
        request = urllib.request.Request(endpoint, body, headers)
        opener = urllib.request.build_opener(_NoRedirect)
        try:
            with opener.open(request, timeout=timeout_s) as response:
                is_stream = response.headers.get_content_type() == "text/event-stream"
                answer = response.read()
        except urllib.error.HTTPError as error:
            said = error.headers.get("Location") or _server_message(error.read())
            raise UserError(f"{endpoint}: HTTP {error.code} {error.reason}: {said}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = getattr(error, "reason", error)  # URLError's, an exception or a text
        if isinstance(cause, TimeoutError):
            remedy = f"silent for {timeout_s:g} s; allow more time, or send fewer frames"
        else:
            remedy = f"{error_message(cause)}; is a server running at this address?"
        raise UserError(f"{endpoint}: {remedy}") from None
    return _join_stream(answer, endpoint) if is_stream else _text_of(answer, endpoint)


def check_server(url: str) -> str:
    """Refuse an address or a key that :func:`ask` cannot use, before keyframes are sought for it.

    Returns:
        The key; empty for none.

    Raises:
        UserError: says which.
    """
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError("OPENAI_API_KEY holds characters that no key has; set it anew")
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{url}: the server's address must begin with http:// or https://")
    return key


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: urllib would follow by GET, without the messages, but with the key."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _to_pil(image: np.ndarray | Image.Image, longest_side: int | None) -> Image.Image:
    if isinstance(image, Image.Image):
        image = image.convert("RGB")
    elif image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        image = Image.fromarray(image)
    else:
        raise ValueError(f"image {image.shape} {image.dtype}: must be (height, width, 3) uint8")
    if longest_side is not None:
        image.thumbnail((longest_side, longest_side))
    return image


def jpeg_base64(image: Image.Image, quality: int) -> str:
    """A picture as JPEG of a quality from 1 to 95, in base64."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return base64.b64encode(buffer.getvalue()).decode()


def _text_of(answer: bytes, endpoint: str) -> str:
    """The text of a whole answer."""
    try:
        choice = json.loads(answer)["choices"][0]
        text = choice["message"]["content"]
    except (ValueError, LookupError, TypeError):
        raise UserError(f"{endpoint}: an answer without choices: {_server_message(answer)}") from None
    if not isinstance(text, str):
        raise UserError(f"{endpoint}: an answer without text (finish_reason: {choice.get('finish_reason')})")
    return text


def _join_stream(answer: bytes, endpoint: str) -> str:
    """The text of an answer in pieces; transformers serve 4.57 sends all answers so."""
    parts = []
    for line in answer.decode(errors="replace").splitlines():
        with suppress(ValueError, LookupError, TypeError):  # [DONE], and chunks that hold no choice
            parts.append(json.loads(line.removeprefix("data:"))["choices"][0]["delta"].get("content"))
    if not parts:
        raise UserError(f"{endpoint}: an answer without choices: {_server_message(answer)}")
    return "".join(part or "" for part in parts)


def _server_message(body: bytes) -> str:
    """What an error's body says, in one line: OpenAI's and vLLM's ``error.message``, FastAPI's ``detail``."""
    text = body.decode(errors="replace")
    said: Any = text
    with suppress(ValueError):
        said = json.loads(text)
    while isinstance(said, dict) and (names := [n for n in ("error", "message", "detail") if n in said]):
        said = said[names[0]]
    line = " ".join((said if isinstance(said, str) else text).split())
    return line[:MAX_MESSAGE_CHARS] or "no message"
