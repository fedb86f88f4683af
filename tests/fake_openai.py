"""An OpenAI that does as it is told: an HTTP server on loopback, with faults on demand.

It answers ``POST /v1/embeddings`` (base64 and float) and ``GET /v1/models``. What a
test programs is used up in order, one fault for each call, before it answers well
again. Vectors are made from the text's digest: equal texts, equal vectors.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from django.db import connections

from django_services import openai_service
from django_services.openai_transport import call
from django_services.resilience import Backoff

KEY = "sk-test-key"
DIMENSIONS = 8
DRIP = 5.0  # seconds, so that a test whose deadline does not hold fails and does not hang

#: Takes the handler of a request and answers it, well or not.
Answer = Callable[["_Handler"], None]

#: Takes the rows of a good response and returns what to send in their place.
Change = Callable[[list[dict[str, Any]]], object]


@dataclass
class Call:
    """A request that arrived."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def texts(self) -> list[str]:
        given = self.body.get("input", [])
        return given if isinstance(given, list) else [given]


@dataclass
class FakeOpenAI:
    """The server: what arrived, and what it is to do."""

    calls: list[Call] = field(default_factory=list)
    dimensions: int = DIMENSIONS
    latency: float = 0.0  # seconds before every answer
    headers: dict[str, str] = field(default_factory=dict)  # of every answer
    _answers: deque[Answer] = field(default_factory=deque)
    _hooks: deque[Callable[[], object]] = field(default_factory=deque)
    _changes: deque[Change] = field(default_factory=deque)
    _refused: Callable[[str], bool] = field(default=lambda text: False)
    _server: ThreadingHTTPServer | None = None

    # What arrived

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def texts(self) -> list[str]:
        """Every text that arrived, in order."""
        return [text for call in self.calls for text in call.texts]

    # What it is to do

    def on_request(self, do: Callable[[], object]) -> None:
        """Run this while the next request waits for its answer, in the server's thread."""
        self._hooks.append(do)

    def fail(
        self,
        status: int,
        code: str | None = None,
        *,
        message: str = "told to fail",
        param: str | None = None,
        headers: dict[str, str] | None = None,
        times: int = 1,
    ) -> None:
        """Answer the next calls with an error of the API's shape."""
        error = {"message": message, "type": code or "error", "param": param, "code": code}
        self.answer(json.dumps({"error": error}), status=status, headers=headers, times=times)

    def answer(
        self,
        content: str | bytes,
        *,
        status: int = 200,
        headers: dict[str, str] | None = None,
        times: int = 1,
    ) -> None:
        """Answer the next calls with exactly this."""
        raw = content.encode() if isinstance(content, str) else content
        self._answers.extend([lambda handler: handler.send(status, raw, headers)] * times)

    def redirect(self, url: str, status: int = 307) -> None:
        """Answer the next call with a redirect."""
        self.answer("", status=status, headers={"location": url})

    def reset(self, times: int = 1) -> None:
        """Close the connection of the next calls without an answer."""
        self._answers.extend([_Handler.hang_up] * times)

    def cut_short(self, times: int = 1) -> None:
        """Send half of what was announced, then close the connection."""
        self._answers.extend([_Handler.cut_short] * times)

    def drip(self, pause: float = 0.05) -> None:
        """Answer the next call byte by byte, with so many seconds between, for `DRIP`."""
        self._answers.append(lambda handler: handler.drip(pause))

    def change(self, change: Change, times: int = 1) -> None:
        """Pass the rows of the next good responses through a function."""
        self._changes.extend([change] * times)

    def refuse(self, is_refused: Callable[[str], bool]) -> None:
        """From now on answer 400 to every request that holds such a text."""
        self._refused = is_refused

    def vector(self, text: str, dimensions: int | None = None) -> np.ndarray:
        """Return the vector that this server gives for the text, at L2 norm 1."""
        size = dimensions or self.dimensions
        digest = hashlib.shake_256(text.encode("utf-8", "surrogatepass")).digest(size)
        numbers = np.frombuffer(digest, np.uint8).astype(np.float32) - 127.5
        return numbers / np.linalg.norm(numbers)

    # Serving

    def start(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.fake = self  # type: ignore[attr-defined]
        serve = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        serve.start()

    def stop(self) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    def settings(self, **options: Any) -> dict[str, Any]:
        """Return ``DJANGO_SERVICES`` with this server as the default OpenAI."""
        default = {"API_KEY": KEY, "BASE_URL": self.url, "DIMENSIONS": self.dimensions}
        return {"OPENAI": {"default": default | options}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept, as the API keeps them
    # A headers' packet that waits for its body costs 40 ms a call.
    wbufsize = -1

    def do_GET(self) -> None:
        self._respond({"object": "list", "data": [{"id": "a-model", "object": "model"}]})

    def do_POST(self) -> None:
        self._respond(None)

    @property
    def fake(self) -> FakeOpenAI:
        return self.server.fake  # type: ignore[attr-defined, no-any-return]

    def _respond(self, fixed: dict[str, Any] | None) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.call = Call(self.path, dict(self.headers), json.loads(raw) if raw else {})
        self.fake.calls.append(self.call)
        _run_next(self.fake._hooks)
        if self.fake.latency:  # a test may count the calls of time.sleep
            time.sleep(self.fake.latency)
        if self.fake._answers:
            self.fake._answers.popleft()(self)
        elif fixed is not None:
            self.send(200, json.dumps(fixed).encode())
        else:
            self._embed()

    def _embed(self) -> None:
        if any(self.fake._refused(text) for text in self.call.texts):
            error = {"message": "refused", "type": "invalid_request_error", "code": "refused"}
            self.send(400, json.dumps({"error": error}).encode())
            return
        self.send(200, self.embeddings())

    def embeddings(self) -> bytes:
        rows: list[dict[str, Any]] = [
            {"object": "embedding", "index": index, "embedding": self._row(text)}
            for index, text in enumerate(self.call.texts)
        ]
        changes = self.fake._changes
        data = changes.popleft()(rows) if changes else rows
        usage = {"prompt_tokens": len(rows), "total_tokens": len(rows)}
        model = self.call.body.get("model")
        body = {"object": "list", "data": data, "model": model, "usage": usage}
        return json.dumps(body).encode()

    def _row(self, text: str) -> str | list[float]:
        vector = self.fake.vector(text, self.call.body.get("dimensions"))
        if self.call.body.get("encoding_format") == "base64":
            return encoded(vector)
        return vector.tolist()

    def send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        given = {"content-type": "application/json", "x-request-id": "req-1"}
        given |= self.fake.headers | (headers or {})
        for name, value in (given | {"content-length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def hang_up(self) -> None:
        self.close_connection = True

    def cut_short(self) -> None:
        content = self.embeddings()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.close_connection = True

    def drip(self, pause: float) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("content-length", "1000000")
        self.end_headers()
        end = time.monotonic() + DRIP
        try:
            while time.monotonic() < end:
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(pause)
        except OSError:
            return  # the client had enough

    def log_message(self, *args: object) -> None:
        """Keep quiet."""


def encoded(vector: np.ndarray | list[float]) -> str:
    """Return the vector as the API's base64."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _run_next(hooks: deque[Callable[[], object]]) -> None:
    if not hooks:
        return
    try:
        hooks.popleft()()
    finally:
        connections.close_all()  # those of the server's thread


@pytest.fixture
def fake_openai(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOpenAI]:
    """A running `FakeOpenAI`, configured as the default OpenAI; retries do not wait."""
    for profile in call.BACKOFFS:
        monkeypatch.setitem(call.BACKOFFS, profile, Backoff(first=0.001, longest=0.001))
    fake = FakeOpenAI()
    fake.start()
    settings.DJANGO_SERVICES = fake.settings()
    yield fake
    openai_service.close()
    fake.stop()
