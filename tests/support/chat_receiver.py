"""An HTTP server for the tests: keeps the requests that arrive and answers with what a test says."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

ANSWER = {"choices": [{"message": {"role": "assistant", "content": "At 0:00:02.500."}}]}


class Receiver(ThreadingHTTPServer):
    """Listens at ``url``.

    Attributes:
        requests: method, path, headers and parsed body of each request.
        status, kind, body: what every request is answered with.
        first: status and body for the first requests, in place of these.
        headers: further headers of the answers.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        self.status, self.kind, self.body = 200, "application/json", json.dumps(ANSWER)
        self.first: list[tuple[int, str]] = []
        self.headers: dict[str, str] = {}
        self.released = threading.Event()
        self.released.set()


class Handler(BaseHTTPRequestHandler):
    """Answers for the receiver, as soon as that is released."""

    server: Receiver

    def handle_request(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append((self.command, self.path, headers, json.loads(content or "null")))
        self.server.released.wait(60)
        status, body = (
            self.server.first.pop(0) if self.server.first else (self.server.status, self.server.body)
        )
        self.send_response(status)
        self.send_header("Content-Type", self.server.kind)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())

    do_GET = do_POST = handle_request

    def log_message(self, *_: Any) -> None:
        """Be quiet."""


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver, for the block."""
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()


def decode_images(messages: list[dict[str, Any]]) -> list[np.ndarray]:
    """The JPEG images of OpenAI's messages, (height, width, 3) uint8 each."""
    prefix = "data:image/jpeg;base64,"
    urls = [part["image_url"]["url"] for part in messages[0]["content"] if part["type"] == "image_url"]
    assert all(url.startswith(prefix) for url in urls)
    images = [Image.open(io.BytesIO(base64.b64decode(url[len(prefix) :], validate=True))) for url in urls]
    assert {image.format for image in images} <= {"JPEG"}
    return [np.asarray(image) for image in images]
