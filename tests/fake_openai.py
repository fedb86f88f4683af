"""An OpenAI that does as it is told: an HTTP server on loopback, with faults on demand.

It answers ``/embeddings`` (base64 and float), ``/chat/completions`` and ``/responses``,
whole and as streams, ``/moderations``, uploads to ``/files``, and ``GET /models``. What
a test programs is used up in order, one fault for each call, before it answers well
again. Vectors are made from the text's digest: equal texts, equal vectors.
"""

from __future__ import annotations

import base64
import contextlib
import email
import hashlib
import itertools
import json
import re
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
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

SAID = "Hello to you, world."
USAGE = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}

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
    _always: Callable[[], object] = field(default=lambda: None)
    _changes: deque[Change] = field(default_factory=deque)
    _replies: deque[dict[str, Any]] = field(default_factory=deque)
    #: Set when a client left in the middle of a stream.
    left: threading.Event = field(default_factory=threading.Event)
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

    def always(self, do: Callable[[], object]) -> None:
        """Run this while each request from now on waits for its answer."""
        self._always = do

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

    def say(self, text: str = SAID, **choice: Any) -> None:
        """Answer the next completion with this text, and with what else its choice has.

        Args:
            text: Sent in pieces of a word, if it is streamed.
            choice: ``finish_reason``, ``tool_calls``, ``refusal``.
        """
        self._replies.append({"text": text, **choice})

    def stream(
        self, *events: object, pause: float = 0.0, is_cut: bool = False, is_endless: bool = False
    ) -> None:
        """Answer the next call with these server-sent events, be they right or wrong.

        Args:
            events: A dict or a text each; bytes are sent as they are.
            pause: Seconds before each.
            is_cut: Whether the connection breaks after the last.
            is_endless: Whether the last is sent again and again, for `DRIP`, until `left`.
        """
        sent = itertools.chain(events, itertools.repeat(events[-1]) if is_endless else ())
        self._answers.append(lambda handler: handler.send_events(sent, pause, is_cut))

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
        serve = threading.Thread(target=self._server.serve_forever, args=(0.001,), daemon=True)
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
        is_json = self.headers.get("content-type", "").startswith("application/json")
        self.raw = raw
        self.call = Call(self.path, dict(self.headers), json.loads(raw) if is_json else {})
        self.fake.calls.append(self.call)
        _run_next(self.fake._hooks)
        self.fake._always()
        if self.fake.latency:  # a test may count the calls of time.sleep
            time.sleep(self.fake.latency)
        if self.fake._answers:
            self.fake._answers.popleft()(self)
        elif fixed is not None:
            self.send(200, json.dumps(fixed).encode())
        else:
            self._answer_well()

    def _answer_well(self) -> None:
        path = self.call.path.partition("?")[0]
        for ending, answer in _ENDPOINTS.items():
            if path.endswith(ending):
                answer(self)
                return
        self._embed()

    def _complete(self) -> None:
        replies = self.fake._replies
        reply = replies.popleft() if replies else {"text": SAID}
        if self.call.body.get("stream"):
            self.send_events(self._chunks(reply))
            return
        message = {"role": "assistant", "content": reply["text"]}
        message |= {key: reply[key] for key in ("tool_calls", "refusal") if key in reply}
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": reply.get("finish_reason", "stop"),
        }
        self._send_json({"object": "chat.completion", "choices": [choice], "usage": USAGE})

    def _chunks(self, reply: dict[str, Any]) -> Iterator[object]:
        yield chunk(role="assistant", content="")
        for word in re.findall(r"\S+\s*|\s+", reply["text"]):
            yield chunk(content=word)
        if reply.get("refusal"):
            yield chunk(refusal=reply["refusal"])
        for index, tool in enumerate(reply.get("tool_calls", [])):
            arguments = tool["function"]["arguments"]
            begun = tool | {"index": index, "function": tool["function"] | {"arguments": ""}}
            yield chunk(tool_calls=[begun])
            for half in (arguments[:5], arguments[5:]):
                yield chunk(tool_calls=[{"index": index, "function": {"arguments": half}}])
        yield chunk(finish_reason=reply.get("finish_reason", "stop"))
        if (self.call.body.get("stream_options") or {}).get("include_usage"):
            yield {"object": "chat.completion.chunk", "choices": [], "usage": USAGE}
        yield "[DONE]"

    def _respond_to_input(self) -> None:
        usage = {"input_tokens": 11, "output_tokens": 5, "total_tokens": 16}
        text = {"type": "output_text", "text": SAID, "annotations": []}
        message = {"id": "msg-1", "type": "message", "role": "assistant", "content": [text]}
        body = {
            "id": "resp-1",
            "object": "response",
            "status": "completed",
            "model": self.call.body.get("model"),
            "output": [message],
            "usage": usage,
        }
        if not self.call.body.get("stream"):
            self._send_json(body)
            return
        self.send_events(
            [
                {"type": "response.output_text.delta", "delta": SAID, "output_index": 0},
                {"type": "response.completed", "response": body},
            ]
        )

    def _moderate(self) -> None:
        self._send_json({"results": [_moderation(text) for text in self.call.texts]})

    def _upload(self) -> None:
        head = f"content-type: {self.headers['content-type']}\r\n\r\n".encode()
        parts = email.message_from_bytes(head + self.raw).get_payload()
        assert isinstance(parts, list)
        fields = {part.get_param("name", header="content-disposition"): part for part in parts}
        content = fields["file"].get_payload(decode=True)
        self._send_json(
            {
                "id": "file-1",
                "object": "file",
                "bytes": len(content),
                "filename": fields["file"].get_filename(),
                "purpose": fields["purpose"].get_payload(),
            }
        )

    def _send_json(self, body: dict[str, Any]) -> None:
        self.send(200, json.dumps({"model": self.call.body.get("model"), **body}).encode())

    def send_events(
        self, events: Iterable[object], pause: float = 0.0, is_cut: bool = False
    ) -> None:
        self.send_response(200)
        given = {"content-type": "text/event-stream", "x-request-id": "req-1"}
        for name, value in (given | {"transfer-encoding": "chunked"}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.flush()
        end = time.monotonic() + DRIP
        try:
            for event in events:
                time.sleep(pause)
                self._send_chunk(_encoded_event(event))
                if time.monotonic() > end:
                    break
            if not is_cut:
                self._send_chunk(b"")
        except OSError:
            self.fake.left.set()
        self.close_connection = True

    def _send_chunk(self, content: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(content), content))
        self.wfile.flush()

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

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the client left before the last byte
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(OSError):  # as above
            super().finish()

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


_ENDPOINTS: dict[str, Answer] = {
    "/chat/completions": _Handler._complete,
    "/responses": _Handler._respond_to_input,
    "/moderations": _Handler._moderate,
    "/files": _Handler._upload,
}


def chunk(*, finish_reason: str | None = None, **delta: Any) -> dict[str, Any]:
    """Return a piece of a streamed completion."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {"object": "chat.completion.chunk", "model": "gpt-6-luna", "choices": [choice]}


def _encoded_event(event: object) -> bytes:
    if isinstance(event, bytes):
        return event
    data = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)
    return f"data: {data}\n\n".encode()


def _moderation(text: str) -> dict[str, Any]:
    is_bad = "bad" in text
    return {
        "flagged": is_bad,
        "categories": {"harassment": is_bad, "violence": False},
        "category_scores": {"harassment": 0.9 if is_bad else 0.1, "violence": 0.0},
    }


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
    for profile, patience in call.BACKOFFS.items():
        quick = Backoff(attempts=patience.attempts, first=0.001, longest=0.001)
        monkeypatch.setitem(call.BACKOFFS, profile, quick)
    fake = FakeOpenAI()
    fake.start()
    settings.DJANGO_SERVICES = fake.settings()
    yield fake
    openai_service.close()
    fake.stop()
