"""A completion on its way to the browser, as server-sent events under WSGI and ASGI."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Generator, Mapping
from typing import Any

from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, StreamingHttpResponse

from ..exceptions import (
    AuthenticationFailed,
    ConfigurationError,
    InvalidRequest,
    QuotaExhausted,
    RateLimited,
    ServiceError,
)
from .completion_streams import AsyncCompletionStream, CompletionStream
from .completions import Completion

logger = logging.getLogger(__name__)

#: Seconds of silence, after which a comment keeps proxies from closing the connection.
KEEP_ALIVE = 15.0

HEADERS = {
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",  # nginx would hold the events back
}

#: What of a completion's usage is told.
_TOLD = ("input_tokens", "cached_tokens", "output_tokens")

_COMMENT = b": keep-alive\n\n"

#: What a visitor is told; the error's own words name settings, and go to the log.
_WORDS: dict[type[ServiceError], str] = {
    RateLimited: "There are too many requests now. Try again in a moment.",
    InvalidRequest: "This request cannot be answered. Ask otherwise.",
    QuotaExhausted: "The service is not available at present.",
    AuthenticationFailed: "The service is not available at present.",
    ConfigurationError: "The service is not available at present.",
    ServiceError: "The answer could not be completed. Try again.",
}


def is_async(request: HttpRequest) -> bool:
    """Tell whether the request came by ASGI."""
    return isinstance(request, ASGIRequest)


def response(stream: CompletionStream[Any]) -> StreamingHttpResponse:
    """Return the response for WSGI."""
    return _response(_events(stream))


def aresponse(stream: AsyncCompletionStream[Any]) -> StreamingHttpResponse:
    """Return the response for ASGI."""
    return _response(_aevents(stream))


def _response(events: Any) -> StreamingHttpResponse:
    return StreamingHttpResponse(events, content_type="text/event-stream", headers=HEADERS)


def _events(stream: CompletionStream[Any]) -> Generator[bytes, None, None]:
    # No comments here: nobody can write while the next piece is waited for, which the
    # alias's TIMEOUT bounds.
    with stream:
        try:
            for piece in stream:
                yield event({"text": piece})
        except ServiceError as error:
            yield failure(error)
        else:
            yield done(stream.completion)


async def _aevents(stream: AsyncCompletionStream[Any]) -> AsyncGenerator[bytes, None]:
    waiting: asyncio.Queue[bytes | None] = asyncio.Queue()
    # One task reads the whole stream: its connection may not pass from task to task.
    reading = asyncio.create_task(_read(stream, waiting))
    try:
        while (coming := await _next(waiting)) is not None:
            yield coming
        await reading  # tells of a failure that no browser is told of
    finally:
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading


async def _read(stream: AsyncCompletionStream[Any], waiting: asyncio.Queue[bytes | None]) -> None:
    try:
        async with stream:
            async for piece in stream:
                waiting.put_nowait(event({"text": piece}))
        waiting.put_nowait(done(stream.completion))
    except ServiceError as error:
        waiting.put_nowait(failure(error))
    finally:
        waiting.put_nowait(None)


async def _next(waiting: asyncio.Queue[bytes | None]) -> bytes | None:
    try:
        async with asyncio.timeout(KEEP_ALIVE):
            return await waiting.get()
    except TimeoutError:
        return _COMMENT


def event(data: Mapping[str, Any], name: str = "") -> bytes:
    """Return a server-sent event. JSON has no line breaks, which would end it."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data)}\n\n".encode()


def done(completion: Completion[Any] | None) -> bytes:
    """Return the event after the last piece."""
    if completion is None:
        return event({}, "done")
    return event(
        {
            "finish_reason": completion.finish_reason,
            "model": completion.model,
            "usage": {name: getattr(completion.usage, name) for name in _TOLD},
        },
        "done",
    )


def failure(error: ServiceError) -> bytes:
    """Return the event in place of what is missing, and log why."""
    logger.warning("A completion for a browser failed: %s", error)
    words = next(text for kind, text in _WORDS.items() if isinstance(error, kind))
    data = {
        "code": error.code or type(error).__name__,
        "message": words,
        "retryable": error.retryable,
        "retry_after": error.retry_after,
    }
    return event(data, "error")
