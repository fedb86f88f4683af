"""Sends the verbs' requests through the official client; answers are read elsewhere.

What goes wrong is returned and not raised: the frames of the SDK hold texts and key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ..exceptions import InvalidInput, InvalidResponse, ServiceError, ServiceUnavailable
from ..privacy import Private
from .faults import error_of, is_about_one_text

if TYPE_CHECKING:
    import httpx2
    import openai

    from .prompts import Request
    from .reading import Reading
    from .work import EmbeddingWork, Refusal


class Reply(NamedTuple):
    """The service's good answer, or why there is none."""

    content: Private[bytes] = Private(b"")
    request_id: str | None = None
    error: ServiceError | None = None


# Completions and moderation


def post(client: openai.OpenAI, request: Request, alias: str) -> Reply:
    """Return the answer to a request, read."""
    response = open_stream(client, request, alias, is_stream=False)
    return _reply_of(response)


async def apost(client: openai.AsyncOpenAI, request: Request, alias: str) -> Reply:
    """Return the answer to a request, read."""
    return _reply_of(await aopen_stream(client, request, alias, is_stream=False))


def open_stream(
    client: openai.OpenAI, request: Request, alias: str, *, is_stream: bool = True
) -> httpx2.Response | ServiceError:
    """Return the good answer to a request, unread if it is a stream; else our error."""
    try:
        response: httpx2.Response = client.post(request.path, **_arguments(request, is_stream))
    except _errors() as error:
        return _ours(error, alias)
    return response


async def aopen_stream(
    client: openai.AsyncOpenAI, request: Request, alias: str, *, is_stream: bool = True
) -> httpx2.Response | ServiceError:
    """Return the good answer to a request, unread if it is a stream; else our error."""
    try:
        response: httpx2.Response = await client.post(
            request.path, **_arguments(request, is_stream)
        )
    except _errors() as error:
        return _ours(error, alias)
    return response


def request_id_of(response: httpx2.Response) -> str | None:
    """Return the service's id of a call."""
    return response.headers.get("x-request-id")


def broken_off(error: Exception, alias: str) -> ServiceUnavailable:
    """Return our error for a stream whose connection failed."""
    import httpx2

    is_silent = isinstance(error, httpx2.TimeoutException)
    reason = "nothing more came in time" if is_silent else "the connection broke"
    return ServiceUnavailable(
        f"OpenAI ({alias}): {reason} before the answer ended. Try again.", code="cut_off"
    )


def _arguments(request: Request, is_stream: bool) -> dict[str, Any]:
    import httpx2

    return {
        "body": request.body.reveal(),
        "options": request.options.reveal(),
        "cast_to": httpx2.Response,
        "stream": is_stream,
    }


def _reply_of(response: httpx2.Response | ServiceError) -> Reply:
    if isinstance(response, ServiceError):
        return Reply(error=response)
    return Reply(Private(response.content), request_id_of(response))


def _errors() -> tuple[type[Exception], ...]:
    import openai

    # Ours come from a key that is asked for; the last two from options that are none.
    return (openai.OpenAIError, ServiceError, TypeError, ValueError)


def _ours(error: Exception, alias: str) -> ServiceError:
    import openai

    if isinstance(error, openai.OpenAIError):
        return error_of(error, alias)
    if isinstance(error, ServiceError):
        # Its frames hold the request.
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)
    return InvalidInput(
        f"The request cannot be sent ({type(error).__name__}). Check extra_headers, "
        "extra_query and timeout."
    )


# Embeddings


def post_texts(client: openai.OpenAI, work: EmbeddingWork, request: range) -> Reading | Refusal:
    """Return the vectors of a request's texts, or why there are none."""
    import httpx2

    try:
        response = client.post("/embeddings", body=work.body(request), cast_to=httpx2.Response)
    except _errors() as error:
        return _reading_in(error, work.target.alias)
    return _reading_of(response, work.target.alias)


async def apost_texts(
    client: openai.AsyncOpenAI, work: EmbeddingWork, request: range
) -> Reading | Refusal:
    """Return the vectors of a request's texts, or why there are none."""
    import httpx2

    try:
        response = await client.post(
            "/embeddings", body=work.body(request), cast_to=httpx2.Response
        )
    except _errors() as error:
        return _reading_in(error, work.target.alias)
    return _reading_of(response, work.target.alias)


def _reading_of(response: httpx2.Response, alias: str) -> Reading | Refusal:
    from .call import reading_of
    from .work import Refusal

    # Every embeddings response that is one was read by the transport.
    return reading_of(response) or Refusal(
        InvalidResponse(f"OpenAI ({alias}) returned no embeddings. Check OPENAI_BASE_URL."), False
    )


def _reading_in(error: Exception, alias: str) -> Reading | Refusal:
    import openai

    from .call import reading_of
    from .work import Refusal

    if not isinstance(error, openai.OpenAIError):
        return Refusal(_ours(error, alias), False)
    # A response with some faulty rows is an error to the SDK; its other rows are good.
    reading = reading_of(error.response) if isinstance(error, openai.APIStatusError) else None
    return reading or Refusal(error_of(error, alias), is_about_one_text(error))
