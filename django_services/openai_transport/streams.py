"""Answers that the caller reads piece by piece: watched as they pass, never held.

A stream's operation ends when its last piece was read, or when it is closed; only
then is known what it used. The pieces reach the caller unchanged.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import httpx2

from .usage import Usage, usage_in

#: The last event of a completion's stream, and of a response's.
_ENDS = (b"[DONE]", b'"response.completed"', b'"response.incomplete"')
_FAILURES = (b'"response.failed"', b'"error"')
_LONGEST_LINE = 4 * 1024 * 1024  # bytes; a longer one is not looked into


class Events:
    """What the server-sent events of a stream tell of its end and its usage.

    Args:
        encoding: The answer's content encoding.
        began: Called with each piece; the first one is of interest.
    """

    def __init__(self, encoding: str = "", began: Callable[[], object] = bool) -> None:
        self._began = began
        self.usage: Usage | None = None
        #: The stream said that it ends here.
        self.is_complete = False
        #: The service said that it failed.
        self.has_failed = False
        #: The last event that told the usage, decoded.
        self.last: dict[str, Any] = {}
        #: Pieces of the answer that passed: about as many tokens.
        self.pieces = 0
        self._decode = _DECODERS.get(encoding.strip().lower(), _unreadable)()
        self._rest = b""

    def pass_by(self, raw: bytes) -> None:
        """Look at what passes."""
        self._began()
        *lines, self._rest = (self._rest + self._decode(raw)).split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            self._rest = b""
        for line in lines:
            if line.startswith(b"data:"):
                self._look_at(line[5:].strip())

    def _look_at(self, data: bytes) -> None:
        if b'"delta"' in data:
            self.pieces += 1
        if any(end in data for end in _ENDS):
            # A word of the model may look like the end: what is told there decides.
            self.is_complete = self.is_complete or data == b"[DONE]" or _type(data) in _END_TYPES
        if any(failure in data for failure in _FAILURES):
            self.has_failed = self.has_failed or _tells_failure(data)
        if b'"usage"' in data:
            self._take_usage(_json(data))

    def _take_usage(self, event: dict[str, Any]) -> None:
        """Take the usage of a completion's last chunk, or of a response that ended."""
        body = event["response"] if isinstance(event.get("response"), dict) else event
        if usage := usage_in(body):
            self.usage, self.last = usage, body


_END_TYPES = frozenset({"response.completed", "response.incomplete"})


def _json(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _type(data: bytes) -> object:
    return _json(data).get("type")


def _tells_failure(data: bytes) -> bool:
    event = _json(data)
    return event.get("type") in {"error", "response.failed"} or bool(event.get("error"))


def _plain() -> Callable[[bytes], bytes]:
    return bytes


def _inflated() -> Callable[[bytes], bytes]:
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, by its header

    def decode(raw: bytes) -> bytes:
        try:
            return inflate.decompress(raw)
        except zlib.error:
            return b""

    return decode


def _unreadable() -> Callable[[bytes], bytes]:
    """Decode nothing: what a stream in another encoding used is estimated."""
    return lambda raw: b""  # noqa: ARG005


_DECODERS = {"": _plain, "identity": _plain, "gzip": _inflated, "deflate": _inflated}


class WatchedStream(httpx2.SyncByteStream):
    """A sync stream whose pieces are looked at, and whose end is told once.

    Args:
        inner: The answer's own stream.
        events: What looks at the pieces.
        ended: Called once, at the end: with the error that broke the stream, if one did,
            and whether it was read to its end.
    """

    def __init__(
        self,
        inner: httpx2.SyncByteStream,
        events: Events,
        ended: Callable[[BaseException | None, bool], object],
    ) -> None:
        self._inner = inner
        self._events = events
        self._ended: Callable[[BaseException | None, bool], object] | None = ended
        self._is_exhausted = False

    def __iter__(self) -> Iterator[bytes]:
        try:
            for piece in self._inner:
                self._events.pass_by(piece)
                yield piece
        except Exception as error:
            self._end(error)
            raise
        self._is_exhausted = True
        self._end()

    def close(self) -> None:
        try:
            self._inner.close()
        finally:
            self._end()

    def _end(self, error: BaseException | None = None) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(error, self._is_exhausted)

    def __del__(self) -> None:
        # Dropped by its reader without a word: what it used is settled all the same.
        self._end()


class AsyncWatchedStream(httpx2.AsyncByteStream):
    """An async stream that is watched; see `WatchedStream`."""

    def __init__(
        self,
        inner: httpx2.AsyncByteStream,
        events: Events,
        ended: Callable[[BaseException | None, bool], Coroutine[Any, Any, object]],
    ) -> None:
        self._inner = inner
        self._events = events
        self._ended = ended
        self._ending: asyncio.Task[object] | None = None
        self._is_exhausted = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._inner:
                self._events.pass_by(piece)
                yield piece
        except Exception as error:
            await self._end(error)
            raise
        self._is_exhausted = True
        await self._end()

    async def aclose(self) -> None:
        try:
            await self._inner.aclose()
        finally:
            await self._end()

    async def _end(self, error: BaseException | None = None) -> None:
        if self._ending is None:
            self._ending = asyncio.create_task(self._ended(error, self._is_exhausted))
        # The SDK bounds the reading of the rest, and a browser that leaves cancels its
        # reader: what the stream came to is settled and told all the same.
        await asyncio.shield(self._ending)
