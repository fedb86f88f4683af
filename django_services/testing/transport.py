"""The fake in the network's place: HTTP requests in, HTTP answers out.

Imported when a client is built, since it loads httpx2.
"""

from __future__ import annotations

import asyncio
import email
import email.policy
import inspect
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx2
from asgiref.sync import sync_to_async

from .. import conf
from ..openai_transport.faults import MESSAGE
from .answers import Answer, Broken
from .calls import Call, endpoint_of, without_secrets
from .fake import FakeOpenAI


class FakeTransport(httpx2.BaseTransport, httpx2.AsyncBaseTransport):
    """Answers the requests of an alias's clients; opens no connection."""

    def __init__(self, fake: FakeOpenAI, alias: str) -> None:
        self._fake = fake
        self._alias = alias

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        # Not by request.read(), which would let the transport send an upload twice.
        call = self._call(request, b"".join(request.stream))  # type: ignore[arg-type]
        for hook in self._fake.arrive(call):
            hook(call)
        time.sleep(_patience(request, self._fake.latency))
        return self._response(request, call)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        content = b"".join([part async for part in request.stream])  # type: ignore[union-attr]
        call = self._call(request, content)
        for hook in self._fake.arrive(call):
            await _run(hook, call)
        await asyncio.sleep(_patience(request, self._fake.latency))
        return self._response(request, call)

    def _call(self, request: httpx2.Request, content: bytes) -> Call:
        return Call(
            method=request.method,
            endpoint=endpoint_of(request.url.path, conf.openai(self._alias).base_url),
            alias=self._alias,
            headers=without_secrets(request.headers),
            body=_decoded(request.headers.get("content-type", ""), content),
            query=dict(request.url.params),
        )

    def _response(self, request: httpx2.Request, call: Call) -> httpx2.Response:
        if self._fake.latency > _timeout(request):
            raise httpx2.ReadTimeout("The fake's latency is above the timeout.", request=request)
        answer = self._fake.decide(call)
        if isinstance(answer, Broken):
            raise _ERRORS[answer](f"The fake was told to: {answer.value}.", request=request)
        headers = {"x-request-id": self._fake.request_id(), **self._fake.headers, **answer.headers}
        body: dict[str, Any] = (
            {"stream": _Pieces(answer)}
            if isinstance(answer.content, tuple)
            else {"content": answer.content}
        )
        extensions = {MESSAGE: answer.words} if answer.words else {}
        return httpx2.Response(
            answer.status, headers=headers, extensions=extensions, request=request, **body
        )


_ERRORS = {
    Broken.TIMEOUT: httpx2.ReadTimeout,
    Broken.DISCONNECT: httpx2.RemoteProtocolError,
}


class _Pieces(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """The body of a stream, an event at a time."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        yield from self._answer.content  # type: ignore[misc]
        if self._answer.is_disconnected:
            raise httpx2.RemoteProtocolError("The fake was told to disconnect.")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            await asyncio.sleep(0)  # as on a network: other tasks run between two pieces
            yield piece


async def _run(hook: Callable[[Call], object], call: Call) -> None:
    if inspect.iscoroutinefunction(hook):
        await hook(call)
    else:
        # In the thread whose connections the test's own ORM uses.
        await sync_to_async(hook)(call)


def _timeout(request: httpx2.Request) -> float:
    read = request.extensions.get("timeout", {}).get("read")
    return float("inf") if read is None else float(read)


def _patience(request: httpx2.Request, latency: float) -> float:
    return min(latency, _timeout(request))


def _decoded(kind: str, content: bytes) -> dict[str, Any]:
    if kind.startswith("multipart/form-data"):
        return dict(_form_fields(kind, content))
    try:
        body = json.loads(content or b"{}")
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _form_fields(kind: str, content: bytes) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a form: a string, or the name and bytes of a file."""
    head = b"content-type: " + kind.encode() + b"\r\n\r\n"
    form = email.message_from_bytes(head + content, policy=email.policy.HTTP)
    for part in form.iter_parts():
        name = str(part.get_param("name", header="content-disposition"))
        value: Any = part.get_payload(decode=True)
        filename = part.get_filename()
        yield name, value.decode() if filename is None else (filename, value)
