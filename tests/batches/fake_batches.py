"""OpenAI's files and batches on loopback: it keeps what it is given and answers on demand.

A batch waits until a test says `work`; each of its lines is then answered as
``/v1/embeddings`` or ``/v1/responses`` would. What a test programs for a call, such
as that its answer is lost, is used up by the next call of that method and path.
"""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from django.db import connections

from django_services import openai_service
from django_services.openai_transport import call
from django_services.resilience import Backoff
from tests.fake_openai import DIMENSIONS, KEY, FakeOpenAI, encoded

MODEL = "text-embedding-3-small"

#: What a line of a batch is answered with: a status and a body; None is not in time.
Answer = tuple[int, Any] | None


@dataclass
class Arrived:
    """A request that arrived."""

    method: str
    path: str
    body: Any
    headers: dict[str, str]


@dataclass
class FakeBatches:
    """The server: what it keeps, what arrived, and what it is to do."""

    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # with their content
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    arrived: list[Arrived] = field(default_factory=list)
    answers: dict[str, Answer] = field(default_factory=dict)  # of lines, by a word in them
    vectors: FakeOpenAI = field(default_factory=FakeOpenAI)  # makes them
    keeps_metadata: bool = True
    _inputs: dict[str, bytes] = field(default_factory=dict)  # by batch, whatever is deleted
    _faults: dict[str, deque[Callable[[_Handler], bool]]] = field(default_factory=dict)
    _hooks: dict[str, deque[Callable[[], object]]] = field(default_factory=dict)
    _server: ThreadingHTTPServer | None = None

    # What arrived

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def sent(self) -> list[str]:
        """The texts of all batches that were created, in order."""
        return [text for batch in self.batches.values() for text in self.texts_of(batch)]

    @property
    def embedded(self) -> list[str]:
        """The texts that came to /embeddings, in order."""
        calls = [each.body for each in self.arrived if each.path == "/v1/embeddings"]
        return [text for body in calls for text in body["input"]]

    def texts_of(self, batch: dict[str, Any]) -> list[str]:
        return [line["body"]["input"] for line in self.lines_of(batch)]

    def lines_of(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._inputs[batch["id"]].splitlines()]

    def count(self, method: str, path: str) -> int:
        """Return how many requests of a method arrived whose path matches a pattern."""
        return sum(
            each.method == method and bool(re.fullmatch(path, each.path)) for each in self.arrived
        )

    # What it is to do

    def work(self, status: str = "completed", *, shuffled: bool = True) -> None:
        """End every batch that is under way."""
        for batch in self.batches.values():
            if batch["status"] == "in_progress":
                self._end(batch, status, shuffled)

    def take_batch(self) -> None:
        """Do nothing odd with the next batch: what is programmed then is for those after it."""
        self._program("POST /v1/batches", lambda _: False, 1)

    def refuse_batch(self, code: str, *, times: int = 1) -> None:
        """Have the next batches end as failed: their input is refused."""
        fault = {"code": code, "message": "told to fail", "line": None, "param": None}

        def refused(handler: _Handler) -> bool:
            batch = self._create(handler.body)
            batch |= {"status": "failed", "errors": {"object": "list", "data": [fault]}}
            handler.send(200, batch)
            return True

        self._program("POST /v1/batches", refused, times)

    def fail(self, call: str, status: int, code: str | None = None, *, times: int = 1) -> None:
        """Answer the next calls, such as ``"POST /v1/batches"``, with an error."""
        error = {"error": {"message": "told to fail", "type": "error", "code": code}}

        def failed(handler: _Handler) -> bool:
            handler.send(status, error)
            return True

        self._program(call, failed, times)

    def lose_answer(self, call: str) -> None:
        """Do what the next such call asks for, and close the connection."""

        def lost(handler: _Handler) -> bool:
            handler.is_muted = True
            return False

        self._program(call, lost, 1)

    def cut_short(self, call: str) -> None:
        """Send half of what the next such call is to be answered with."""

        def cut(handler: _Handler) -> bool:
            handler.is_cut = True
            return False

        self._program(call, cut, 1)

    def during(self, call: str, do: Callable[[], object]) -> None:
        """Run this while the next such call waits for its answer."""
        self._hooks.setdefault(call, deque()).append(do)

    def settings(self, **options: Any) -> dict[str, Any]:
        """Return ``DJANGO_SERVICES`` with this server as the default OpenAI."""
        default = {
            "API_KEY": KEY,
            "BASE_URL": self.url,
            "EMBEDDING_MODEL": MODEL,
            "DIMENSIONS": DIMENSIONS,
            "BREAKER_PAUSE": 0.001,
        }
        return {
            "OPENAI": {"default": default | options},
            "EMBEDDINGS": {"ON_COMMIT": "off"},
            # It would wait in its thread for what a test's transaction has locked.
            "LEDGER": {"ENABLED": False},
        }

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

    def _program(self, call: str, fault: Callable[[_Handler], bool], times: int) -> None:
        self._faults.setdefault(call, deque()).extend([fault] * times)

    def _add_file(self, name: str, content: bytes, purpose: str) -> dict[str, Any]:
        file = {
            "id": f"file-{uuid.uuid4().hex}",
            "object": "file",
            "bytes": len(content),
            "created_at": int(time.time()),
            "filename": name,
            "purpose": purpose,
            "status": "processed",
            "content": content,
        }
        self.files[str(file["id"])] = file
        return file

    def _create(self, asked: dict[str, Any]) -> dict[str, Any]:
        batch = {
            "id": f"batch_{uuid.uuid4().hex}",
            "object": "batch",
            "created_at": int(time.time()),
            "status": "in_progress",
            **asked,
        }
        if not self.keeps_metadata:
            batch["metadata"] = None
        self._inputs[str(batch["id"])] = self.files[asked["input_file_id"]]["content"]
        batch["request_counts"] = {"total": len(self.lines_of(batch)), "completed": 0, "failed": 0}
        self.batches[str(batch["id"])] = batch
        return batch

    def _end(self, batch: dict[str, Any], status: str, shuffled: bool) -> None:
        lines = self.lines_of(batch)
        done: list[Any] = []
        failed: list[Any] = []
        for line in lines[::-1] if shuffled else lines:
            answer = self._answer_to(line)
            if answer is None:
                error = {"code": "batch_expired", "message": "It came too late."}
                failed.append({"custom_id": line["custom_id"], "response": None, "error": error})
                continue
            code, body = answer
            response = {"status_code": code, "request_id": "req-1", "body": body}
            entry = {"custom_id": line["custom_id"], "response": response, "error": None}
            (done if code < 300 else failed).append(entry)
        batch["status"] = status
        batch["request_counts"] |= {"completed": len(done), "failed": len(failed)}
        for kind, entries in (("output_file_id", done), ("error_file_id", failed)):
            if entries:
                content = "\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
                file = self._add_file(f"{batch['id']}.jsonl", content.encode(), "batch_output")
                batch[kind] = file["id"]

    def _answer_to(self, line: dict[str, Any]) -> Answer:
        for word, answer in self.answers.items():
            if word in json.dumps(line["body"], ensure_ascii=False):
                return answer
        if line["url"] == "/v1/embeddings":
            return 200, self.embeddings(line["body"])
        usage = {"input_tokens": 10, "output_tokens": 2, "total_tokens": 12}
        return 200, {"object": "response", "output": line["body"]["input"].upper(), "usage": usage}

    def embeddings(self, asked: dict[str, Any]) -> dict[str, Any]:
        given = asked["input"]
        texts = given if isinstance(given, list) else [given]
        rows = [self.vector(text, asked.get("dimensions")) for text in texts]
        data = [
            {"object": "embedding", "index": index, "embedding": encoded(row)}
            for index, row in enumerate(rows)
        ]
        usage = {"prompt_tokens": 10 * len(texts), "total_tokens": 10 * len(texts)}
        return {"object": "list", "data": data, "model": asked["model"], "usage": usage}

    def vector(self, text: str, dimensions: int | None = None) -> np.ndarray:
        """Return the vector that this server gives for the text, at L2 norm 1."""
        return self.vectors.vector(text, dimensions)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    is_muted = False
    is_cut = False

    def handle_one_request(self) -> None:
        self.is_muted = self.is_cut = False
        super().handle_one_request()

    def do_GET(self) -> None:
        self._respond()

    def do_POST(self) -> None:
        self._respond()

    def do_DELETE(self) -> None:
        self._respond()

    @property
    def fake(self) -> FakeBatches:
        return self.server.fake  # type: ignore[attr-defined, no-any-return]

    def _respond(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length", 0)) or 0)
        if "chunked" in self.headers.get("transfer-encoding", ""):
            raw = self._dechunked()
        self.url = urlsplit(self.path)
        self.body: Any = self._decoded(raw)
        self.fake.arrived.append(
            Arrived(self.command, self.url.path, self.body, dict(self.headers))
        )
        call = f"{self.command} {re.sub(r'(file-|batch_)[0-9a-f]+', '*', self.url.path)}"
        if hooks := self.fake._hooks.get(call):
            try:
                hooks.popleft()()
            finally:
                connections.close_all()
        faults = self.fake._faults.get(call)
        if not (faults and faults.popleft()(self)):
            self._answer(call)

    def _answer(self, call: str) -> None:
        fake = self.fake
        name = self.url.path.split("/")[3] if self.url.path.count("/") > 2 else ""
        if (name.startswith("file-") and name not in fake.files) or (
            name.startswith("batch_") and name not in fake.batches
        ):
            self.send(404, {"error": {"message": "no such thing", "code": "not_found"}})
        elif call == "POST /v1/files":
            self.send(200, _shown(fake._add_file(*self.body)))
        elif call == "GET /v1/files":
            self.send(200, self._page([_shown(file) for file in fake.files.values()]))
        elif call == "DELETE /v1/files/*":
            del fake.files[name]
            self.send(200, {"id": name, "object": "file", "deleted": True})
        elif call == "GET /v1/files/*/content":
            self.send_raw(200, fake.files[name]["content"], "application/octet-stream")
        elif call == "POST /v1/batches":
            self.send(200, fake._create(self.body))
        elif call == "GET /v1/batches":
            self.send(200, self._page(list(fake.batches.values())))
        elif call == "POST /v1/batches/*/cancel":
            fake._end(fake.batches[name], "cancelled", True)
            self.send(200, fake.batches[name])
        elif call == "GET /v1/batches/*":
            self.send(200, fake.batches[name])
        else:
            self.send(200, fake.embeddings(self.body))

    def _page(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a page of two, the newest first, as OpenAI cuts longer ones."""
        newest = items[::-1]
        after = parse_qs(self.url.query).get("after")
        start = 1 + [[item["id"]] for item in newest].index(after) if after else 0
        data = newest[start : start + 2]
        return {"object": "list", "data": data, "has_more": len(newest) > start + 2}

    def _decoded(self, raw: bytes) -> Any:
        kind = self.headers.get("content-type", "")
        if not kind.startswith("multipart/"):
            return json.loads(raw) if raw else None
        message = BytesParser(policy=HTTP).parsebytes(
            b"Content-Type: " + kind.encode() + b"\r\n\r\n" + raw
        )
        parts = {
            part.get_param("name", header="content-disposition"): part
            for part in message.iter_parts()
        }
        purpose = parts["purpose"].get_payload(decode=True).decode()
        return parts["file"].get_filename(), parts["file"].get_payload(decode=True), purpose

    def _dechunked(self) -> bytes:
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def send(self, status: int, body: Any) -> None:
        self.send_raw(status, json.dumps(body).encode(), "application/json")

    def send_raw(self, status: int, content: bytes, kind: str) -> None:
        if self.is_muted:
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if self.is_cut else content)
        self.close_connection |= self.is_cut

    def log_message(self, *args: object) -> None:
        """Keep quiet."""


def _shown(file: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in file.items() if name != "content"}


@pytest.fixture
def fake_batches(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBatches]:
    """A running `FakeBatches`, configured as the default OpenAI; retries do not wait."""
    for profile in call.BACKOFFS:
        monkeypatch.setitem(call.BACKOFFS, profile, Backoff(first=0.001, longest=0.001))
    fake = FakeBatches()
    fake.start()
    settings.DJANGO_SERVICES = fake.settings()
    yield fake
    openai_service.close()
    fake.stop()
