"""Times of a video as people write them."""

from __future__ import annotations

import re


def format_time(seconds: float) -> str:
    """Seconds as ``h:mm:ss.mmm``.

    >>> format_time(3675.25)
    '1:01:15.250'
    """
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest // 1000:02d}.{rest % 1000:03d}"


def parse_time(text: str) -> float:
    """Seconds of ``75``, ``75.25``, ``1:15.25`` or ``1:01:15.25``.

    Raises:
        ValueError: the text is none of these.
    """
    match = re.fullmatch(r"(?:(?:(\d+):)?([0-5]?\d):(?=[0-5]?\d(?:\D|$)))?(\d+(?:\.\d*)?)", text, re.ASCII)
    if not match:
        raise ValueError(f"{text}: use seconds or h:mm:ss, such as 75.5 or 1:15.5")
    hours, minutes, seconds = match.groups(default="0")
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
