"""What codec libraries keep for a whole process: FFmpeg's log, here silent or collected, and decord's bridge.

Only the log tells of damage that FFmpeg conceals in a frame.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import av

_listening = threading.Lock()
_num_listeners = 0  # threads that collect FFmpeg's messages
av.logging.set_skip_repeated(False)  # or PyAV drops a message that equals the last one, of any video
logging.getLogger("libav").setLevel(logging.CRITICAL + 1)  # where PyAV sends what nobody collects meanwhile


def reset_decoder_globals() -> None:
    """Undo what other libraries change in decord and PyAV, and keep codec messages off the terminal.

    LAVIS makes decord return torch tensors; torchvision routes FFmpeg's log through Python.
    """
    if decord := sys.modules.get("decord"):
        decord.bridge.set_bridge("native")
        decord.logging.set_level(decord.logging.FATAL)
    silence_codecs()


def silence_codecs() -> None:
    """Keep FFmpeg's log off the terminal and out of Python.

    A log that is routed through Python can deadlock: a codec's thread waits for the interpreter lock while
    the thread that holds the lock waits for the codec to close.
    """
    with _listening:
        if _num_listeners:  # in another thread, which does this at its end
            return
        # The level first: with it, FFmpeg's own callback prints nothing. Not set_level(None): a message of
        # another thread that is on its way would be compared with None.
        av.logging.set_libav_level(av.logging.PANIC)
        av.logging.restore_default_callback()


@contextmanager
def codec_messages() -> Iterator[list[tuple[int, str, str]]]:
    """Collect what FFmpeg logs in this thread; other threads may do the same meanwhile."""
    global _num_listeners
    with _listening:
        _num_listeners += 1
        av.logging.set_level(av.logging.INFO)
    try:
        with av.logging.Capture() as messages:
            yield messages
    finally:
        with _listening:
            _num_listeners -= 1
        silence_codecs()
