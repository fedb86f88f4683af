"""The pieces of a completion as they come: iterators that own the call upstream.

The call is made for the first piece, and is over when the iterator ends, is closed,
or is garbage: then the connection is closed too, and the service stops writing. It is
made for whom the caller was attributed to when he asked for the stream.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Generator
from contextvars import Context, copy_context
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from ..exceptions import ServiceError
from .completions import Assembly, Completion
from .prompts import Request, Target
from .sending import aopen_stream, broken_off, open_stream, request_id_of

if TYPE_CHECKING:
    import openai

M = TypeVar("M")


class CompletionStream(Generic[M]):
    """Iterates over pieces of text; `completion` is there after the last.

    Args:
        target: What the stream is asked of.
        request: What is sent.
        client_of: Returns the client of an alias.
    """

    def __init__(
        self, target: Target[M], request: Request, client_of: Callable[[str], openai.OpenAI]
    ) -> None:
        self._assembly = Assembly(target)
        # A generator of no method: garbage as soon as this object is.
        self._pieces = _pieces(self._assembly, target.alias, request, client_of, copy_context())

    @property
    def completion(self) -> Completion[M] | None:
        """The whole answer; None until the stream ended well."""
        return self._assembly.completion

    def close(self) -> None:
        """Stop, and close the call upstream."""
        self._pieces.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        with contextlib.suppress(StopIteration):
            return next(self._pieces)
        self._assembly.raise_fault()
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncCompletionStream(Generic[M]):
    """Iterates over pieces of text in a coroutine; see `CompletionStream`."""

    def __init__(
        self, target: Target[M], request: Request, client_of: Callable[[str], openai.AsyncOpenAI]
    ) -> None:
        self._assembly = Assembly(target)
        self._pieces = _apieces(self._assembly, target.alias, request, client_of, copy_context())

    @property
    def completion(self) -> Completion[M] | None:
        """The whole answer; None until the stream ended well."""
        return self._assembly.completion

    async def aclose(self) -> None:
        """Stop, and close the call upstream."""
        await self._pieces.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        with contextlib.suppress(StopAsyncIteration):
            return await anext(self._pieces)
        self._assembly.raise_fault()
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


# The generators raise nothing of ours: their variables hold what the service wrote.


def _pieces(
    assembly: Assembly[M],
    alias: str,
    request: Request,
    client_of: Callable[[str], openai.OpenAI],
    context: Context,
) -> Generator[str, None, None]:
    import httpx2

    response = context.run(open_stream, client_of(alias), request, alias)
    if isinstance(response, ServiceError):
        assembly.fail(response)
        return
    try:
        for raw in response.iter_bytes():
            yield from assembly.take(raw)
            if assembly.is_over:
                break
    except (httpx2.HTTPError, httpx2.StreamError) as error:
        assembly.fail(broken_off(error, alias))
    finally:
        response.close()
    assembly.end(request_id_of(response))


async def _apieces(
    assembly: Assembly[M],
    alias: str,
    request: Request,
    client_of: Callable[[str], openai.AsyncOpenAI],
    context: Context,
) -> AsyncGenerator[str, None]:
    import httpx2

    opening = aopen_stream(client_of(alias), request, alias)
    response = await asyncio.create_task(opening, context=context)
    if isinstance(response, ServiceError):
        assembly.fail(response)
        return
    try:
        async for raw in response.aiter_bytes():
            for piece in assembly.take(raw):
                yield piece
            if assembly.is_over:
                break
    except (httpx2.HTTPError, httpx2.StreamError) as error:
        assembly.fail(broken_off(error, alias))
    finally:
        await response.aclose()
    assembly.end(request_id_of(response))
