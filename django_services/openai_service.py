"""The door to OpenAI: clients for any of its endpoints, and verbs for what is common.

``get_openai_client()`` returns the SDK's own client, made once for each process
and alias. Without a key, where that is allowed, it is answered in process by the
embedded model. Everything that has no verb here is the client's. The SDK and numpy
load on first use.

Completions go to ``/chat/completions``, not to ``/responses``: every compatible server
and gateway speaks it, so that an alias may change its server and not its code. What
the Responses API alone can do, such as its own tools and the conversations that it
keeps, is there through the client, under the same transport.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, overload

from . import conf, embedded
from .exceptions import ConfigurationError, InvalidInput, ServiceError, ServiceNotConfigured
from .lifecycle import Managed, ManagedPerLoop
from .openai_transport import catalogue, embedding_cache
from .openai_transport.context import attributed, profile, uncached
from .openai_transport.faults import error_of
from .privacy import Private

if TYPE_CHECKING:
    import numpy as np
    import openai
    from django.http import HttpRequest, StreamingHttpResponse

    from .embedded.transport import EmbeddedTransport
    from .openai_transport.completion_streams import AsyncCompletionStream, CompletionStream
    from .openai_transport.completions import Completion
    from .openai_transport.embedding_cache import EmbeddingCache
    from .openai_transport.moderation import Moderation
    from .openai_transport.prompts import Asked, Target
    from .openai_transport.work import EmbeddingWork

    Prompt = str | Sequence[Mapping[str, Any]]

M = TypeVar("M")

__all__ = [
    "acomplete",
    "aembed",
    "amoderate",
    "aping",
    "astream",
    "attributed",
    "calls_in_flight",
    "close",
    "complete",
    "count_tokens",
    "embed",
    "embed_outcomes",
    "embedding_space",
    "get_async_openai_client",
    "get_openai_client",
    "is_embedded",
    "moderate",
    "ping",
    "profile",
    "stream",
    "streaming_response",
    "uncached",
    "warm_up",
]


# Clients


def get_openai_client(alias: str = "default") -> openai.OpenAI:
    """Return the process's client of the alias, an ``openai.OpenAI``.

    Raises:
        ServiceNotConfigured: No key is set and the embedded model is not allowed.
    """
    return _clients.get(alias)


def get_async_openai_client(alias: str = "default") -> openai.AsyncOpenAI:
    """Return the running event loop's client of the alias, an ``openai.AsyncOpenAI``.

    It is closed when its loop ends.

    Raises:
        ServiceNotConfigured: No key is set and the embedded model is not allowed.
        RuntimeError: No event loop runs in this thread.
    """
    return _async_clients.get(alias)


def warm_up(*aliases: str) -> None:
    """Make now what the first call would wait for: the SDK's import, and the clients.

    For ``asgi.py``, after ``get_asgi_application()``: the import takes most of a second,
    in which an event loop would serve nobody. No call is made.

    Args:
        aliases: Whose clients are made; all that are configured if none is named.

    Raises:
        ServiceNotConfigured: An alias has no key.
    """
    for alias in aliases or conf.openai_aliases():
        client = get_openai_client(alias)
        # Each is a large module, which the SDK imports when it is first touched.
        _ = client.chat.completions, client.embeddings, client.responses, client.moderations


# Verbs of embeddings


def embed(
    texts: Sequence[str],
    *,
    alias: str = "default",
    model: str | None = None,
    dimensions: int | None = None,
    cache: bool | None = None,
) -> np.ndarray:
    """Return one vector for each text, in the order given.

    Args:
        texts: A list or tuple of strings, none of them blank. Any number: they
            are packed into requests by the API's limits, and equal texts are sent
            once. A text of more than 8,192 tokens is refused by the API; one of
            more than 1 MiB, which surely has more, is not sent. A NUL character
            is sent as it is.
        model: Embedding model; the alias's if None. `embedded.MODEL` is answered
            in process whatever the alias's key.
        dimensions: Length of the vectors; see `embedding_space`.
        cache: Whether embeddings of equal texts are taken from the cache and kept there:
            the alias's EMBEDDING_CACHE, else the default cache. None: if that is set.

    Returns:
        ``float32`` array of shape ``(len(texts), dimensions)``, rows of L2 norm 1;
        of shape ``(0, dimensions)`` for an empty list.

    Raises:
        InvalidInput: A text cannot be embedded; names its position.
        InvalidRequest: The service refused a text; names its position.
        InvalidResponse: The service's answer has no usable vector for a text.
        AuthenticationFailed: The service refused the key.
        QuotaExhausted: The account has no credit left.
        RateLimited: The rate limit was reached; ``retry_after`` says how long.
        ServiceUnavailable: No answer before the deadline; safe to try again.
    """
    private = Private(texts)
    del texts
    work = _work_on(private, alias, model, dimensions)
    work.raise_invalid()
    _embed(work, _cache_for(work, cache))
    return work.matrix()


async def aembed(
    texts: Sequence[str],
    *,
    alias: str = "default",
    model: str | None = None,
    dimensions: int | None = None,
    cache: bool | None = None,
) -> np.ndarray:
    """Return one vector for each text, in the order given; see `embed`."""
    private = Private(texts)
    del texts
    work = _work_on(private, alias, model, dimensions)
    work.raise_invalid()
    await _aembed(work, _cache_for(work, cache))
    return work.matrix()


def embed_outcomes(
    texts: Sequence[str],
    *,
    alias: str = "default",
    model: str | None = None,
    dimensions: int | None = None,
) -> list[np.ndarray | ServiceError]:
    """Return for each text its vector, or the error that concerns this text only.

    A request that the API refuses is halved until the text at fault stands alone:
    one bad text of n costs at most ``2 * log2(n) + 2`` calls and no other vector.
    Arguments as of `embed`.

    Returns:
        In the order given: a ``float32`` vector of L2 norm 1, or `InvalidInput`,
        `InvalidRequest`, `InvalidResponse` (``retryable``) or `DimensionMismatch`.

    Raises:
        ServiceError: What concerns every text: the key, the quota, the rate
            limit, an unknown model, no answer; as `embed` raises it.
    """
    private = Private(texts)
    del texts
    work = _work_on(private, alias, model, dimensions)
    _embed(work)
    return work.outcomes()


def embedding_space(
    alias: str = "default", model: str | None = None, dimensions: int | None = None
) -> tuple[str, int]:
    """Return which model will answer and the length of its vectors; no I/O.

    Args:
        alias: The service's name in ``DJANGO_SERVICES["OPENAI"]``.
        model: The alias's ``embedding_model`` if None.
        dimensions: The alias's ``dimensions`` if None (of its own model only),
            else the model's own length. Sent to OpenAI's models, which shorten
            their vectors; of other models it tells the length that they have.

    Raises:
        InvalidInput: The dimensions are none that the model has.
        ConfigurationError: The length of this model's vectors is not known.
    """
    _check_dimensions(dimensions)
    if model == embedded.MODEL:
        return embedded.MODEL, _embedded_dimensions(_configured_dimensions(alias), dimensions)
    settings = conf.openai(alias)
    if settings.is_embedded:
        return embedded.MODEL, _embedded_dimensions(settings.dimensions, dimensions)
    name = model or settings.embedding_model
    if dimensions is None and name == settings.embedding_model:
        dimensions = settings.dimensions
    dimensions = dimensions or _own_dimensions(name)
    if dimensions is None:
        raise ConfigurationError(
            f"The length of the vectors of model {name!r} is not known. Set "
            f'DJANGO_SERVICES["OPENAI"]["{alias}"]["DIMENSIONS"] to it.'
        )
    return name, dimensions


def is_embedded(alias: str = "default", model: str | None = None) -> bool:
    """Tell whether the embedded model answers, in this process; no I/O.

    Args:
        alias: The service's name in ``DJANGO_SERVICES["OPENAI"]``.
        model: The alias's ``embedding_model`` if None.
    """
    return model == embedded.MODEL or conf.openai(alias).is_embedded


def calls_in_flight(alias: str = "default", model: str | None = None, *, most: int) -> int:
    """Return how many calls to a model are worth having in flight at once; no I/O.

    Args:
        alias: The service's name in ``DJANGO_SERVICES["OPENAI"]``.
        model: The alias's ``embedding_model`` if None.
        most: The most; that, until an answer tells a lower rate limit.
    """
    from .openai_transport import pace

    return pace.in_flight(alias, model or conf.openai(alias).embedding_model, most)


# Verbs of completions


def complete(
    prompt: Prompt,
    *,
    instructions: str | None = None,
    response_model: type[M] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    model: str | None = None,
    max_output_tokens: int | None = None,
    temperature: float | None = None,
    alias: str = "default",
    **options: Any,
) -> Completion[M]:
    """Return a model's answer.

    Args:
        prompt: A text, or messages as ``chat.completions.create()`` takes them.
        instructions: What the model is told before: a system message.
        response_model: A Pydantic model, in whose shape the answer is: ``.parsed``.
        tools: As ``chat.completions.create()`` takes them. Those that the model wants
            to be called are ``.tool_calls``; nothing is called here.
        model: The alias's ``model`` if None.
        max_output_tokens: The most that the answer may have, reasoning included.
        temperature: From 0, the model's own if None.
        alias: The service's name in ``DJANGO_SERVICES["OPENAI"]``.
        options: Any other of ``chat.completions.create()``, passed on as it is.

    Raises:
        InvalidInput: What was asked cannot be sent; names its position.
        InvalidRequest: The service refused the request, or the model to answer
            (``code`` "refusal", "content_filter"), or the answer was cut off before it
            could be parsed ("length"). The same request would come to the same.
        InvalidResponse: The answer cannot be used, or does not fit ``response_model``.
        AuthenticationFailed: The service refused the key.
        QuotaExhausted: The account has no credit left, or a budget is spent.
        RateLimited: The rate limit was reached; ``retry_after`` says how long.
        ServiceUnavailable: No answer before the deadline; safe to try again.
    """
    asked = _asked(prompt, instructions, tools, options)
    del prompt, instructions, tools, options
    target = _target(alias, model, response_model, max_output_tokens, temperature)
    return _complete(target, asked)


async def acomplete(
    prompt: Prompt,
    *,
    instructions: str | None = None,
    response_model: type[M] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    model: str | None = None,
    max_output_tokens: int | None = None,
    temperature: float | None = None,
    alias: str = "default",
    **options: Any,
) -> Completion[M]:
    """Return a model's answer; see `complete`."""
    asked = _asked(prompt, instructions, tools, options)
    del prompt, instructions, tools, options
    target = _target(alias, model, response_model, max_output_tokens, temperature)
    return await _acomplete(target, asked)


def stream(
    prompt: Prompt,
    *,
    instructions: str | None = None,
    response_model: type[M] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    model: str | None = None,
    max_output_tokens: int | None = None,
    temperature: float | None = None,
    alias: str = "default",
    **options: Any,
) -> CompletionStream[M]:
    """Return an iterator over the pieces of a model's answer, as they come.

    The call is made for the first piece. When the iterator ends, is closed or is
    garbage, the call upstream is closed. Its ``completion`` is the whole answer, after
    the last piece. Arguments and errors are those of `complete`; `InvalidInput` is
    raised at once, the others while iterating.

    Raises:
        InvalidResponse: Also where the stream ends before its answer does (``code``
            "cut_off").
    """
    asked = _asked(prompt, instructions, tools, options)
    del prompt, instructions, tools, options
    target = _target(alias, model, response_model, max_output_tokens, temperature)
    return _stream(target, asked)


def astream(
    prompt: Prompt,
    *,
    instructions: str | None = None,
    response_model: type[M] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    model: str | None = None,
    max_output_tokens: int | None = None,
    temperature: float | None = None,
    alias: str = "default",
    **options: Any,
) -> AsyncCompletionStream[M]:
    """Return an asynchronous iterator over the pieces of a model's answer; see `stream`."""
    asked = _asked(prompt, instructions, tools, options)
    del prompt, instructions, tools, options
    target = _target(alias, model, response_model, max_output_tokens, temperature)
    return _astream(target, asked)


def streaming_response(
    request: HttpRequest,
    prompt: Prompt,
    *,
    instructions: str | None = None,
    model: str | None = None,
    max_output_tokens: int | None = None,
    temperature: float | None = None,
    alias: str = "default",
    **options: Any,
) -> StreamingHttpResponse:
    """Return a response that sends a completion to the browser as it comes.

    Server-sent events: ``data: {"text": …}`` for each piece, then ``event: done`` with
    the usage, or ``event: error`` with a code and words that are fit for anyone. When
    the browser leaves, the call upstream is closed. For WSGI and ASGI, by the kind of
    ``request``. Arguments are those of `complete`.

    Raises:
        InvalidInput: What was asked cannot be sent; names its position.
    """
    from .openai_transport import browser

    asked = _asked(prompt, instructions, None, options)
    del prompt, instructions, options
    target: Target[Any] = _target(alias, model, None, max_output_tokens, temperature)
    if browser.is_async(request):
        return browser.aresponse(_astream(target, asked))
    return browser.response(_stream(target, asked))


# Other verbs


def moderate(
    texts: Sequence[str], *, alias: str = "default", model: str | None = None
) -> list[Moderation]:
    """Return for each text, in the order given, whether it is harmful, and how.

    Args:
        texts: A list or tuple of strings, none of them blank. Any number.
        alias: The service's name in ``DJANGO_SERVICES["OPENAI"]``.
        model: The alias's ``moderation_model`` if None.

    Raises:
        InvalidInput: A text cannot be sent; names its position.
        ServiceError: As `complete` raises it.
    """
    from .openai_transport import sending
    from .openai_transport.moderation import ModerationWork

    private = Private(texts)
    del texts
    work = ModerationWork(private, alias, model or conf.openai(alias).moderation_model)
    for request in work.requests():
        work.take(request, sending.post(get_openai_client(alias), request, alias))
    return work.results()


async def amoderate(
    texts: Sequence[str], *, alias: str = "default", model: str | None = None
) -> list[Moderation]:
    """Return for each text, in the order given, whether it is harmful; see `moderate`."""
    from .openai_transport import sending
    from .openai_transport.moderation import ModerationWork

    private = Private(texts)
    del texts
    work = ModerationWork(private, alias, model or conf.openai(alias).moderation_model)
    for request in work.requests():
        work.take(request, await sending.apost(get_async_openai_client(alias), request, alias))
    return work.results()


@overload
def count_tokens(  # type: ignore[overload-overlap]  # a str is a sequence of them too
    given: str, *, model: str | None = None, alias: str = "default"
) -> int: ...


@overload
def count_tokens(
    given: Sequence[str], *, model: str | None = None, alias: str = "default"
) -> list[int]: ...


@overload
def count_tokens(
    given: Sequence[Mapping[str, Any]], *, model: str | None = None, alias: str = "default"
) -> int: ...


def count_tokens(
    given: Prompt | Sequence[str], *, model: str | None = None, alias: str = "default"
) -> int | list[int]:
    """Return how many tokens a text, each of a list of texts, or messages have; offline.

    The first call loads a vocabulary, in about half a second.

    Args:
        given: A text, a list of texts, or messages as `complete` takes them, whose count
            includes what frames them.
        model: Whose tokens are counted; the alias's ``model`` if None.
        alias: The service's name in ``DJANGO_SERVICES["OPENAI"]``; it needs no key.

    Raises:
        InvalidInput: It is none of them; names the position.
    """
    from .openai_transport import tokens

    private: Private[Any] = Private(given)
    del given
    name = model or conf.openai_section(alias).model
    if isinstance(private.reveal(), str):
        return tokens.count(private.reveal(), name)
    if _is_messages(private):
        return tokens.count_messages(private.reveal(), name)
    return tokens.count_many(private.reveal(), name)


# State


def ping(alias: str = "default") -> None:
    """Make the cheapest call there is; return if the service answers and takes the key.

    Raises:
        ServiceError: As `embed` raises it.
    """
    import openai

    if is_embedded(alias):
        embed(["ping"], alias=alias)
        return
    try:
        get_openai_client(alias).models.with_raw_response.list()
    except openai.OpenAIError as error:
        fault = error_of(error, alias)
    else:
        return
    raise fault


async def aping(alias: str = "default") -> None:
    """Return if the service answers and takes the key; see `ping`."""
    import openai

    if is_embedded(alias):
        await aembed(["ping"], alias=alias)
        return
    try:
        await get_async_openai_client(alias).models.with_raw_response.list()
    except openai.OpenAIError as error:
        fault = error_of(error, alias)
    else:
        return
    raise fault


def close(alias: str | None = None) -> None:
    """Close and drop the clients of one alias, or all; the next use makes new ones."""
    for clients in _all_clients:
        clients.close(alias)


# Making clients


def _build(alias: str) -> openai.OpenAI:
    return _client(alias, conf.openai(alias))


def _build_async(alias: str) -> openai.AsyncOpenAI:
    return _async_client(alias, conf.openai(alias))


def _build_embedded(alias: str) -> openai.OpenAI:
    return _client(alias, _EMBEDDED_SETTINGS)


def _build_async_embedded(alias: str) -> openai.AsyncOpenAI:
    return _async_client(alias, _EMBEDDED_SETTINGS)


_EMBEDDED_SETTINGS = conf.OpenAISettings(base_url=conf.EMBEDDED_URL)


def _client(alias: str, settings: conf.OpenAISettings) -> openai.OpenAI:
    from .openai_transport.clients import open_client

    return open_client(alias, settings, _in_process(settings))


def _async_client(alias: str, settings: conf.OpenAISettings) -> openai.AsyncOpenAI:
    from .openai_transport.clients import open_async_client

    return open_async_client(alias, settings, _in_process(settings))


def _in_process(settings: conf.OpenAISettings) -> EmbeddedTransport | None:
    from .embedded.transport import EmbeddedTransport

    return EmbeddedTransport() if settings.is_embedded else None


def _close_client(client: openai.OpenAI) -> None:
    client.close()


async def _close_async_client(client: openai.AsyncOpenAI) -> None:
    await client.close()


# DEBUG decides too: it lets the embedded model stand in where there is no key.
_SETTINGS = frozenset({"DJANGO_SERVICES", "DEBUG"})

_clients = Managed("OpenAI", _build, _close_client, settings=_SETTINGS)
_async_clients = ManagedPerLoop(
    "OpenAI (async)", _build_async, _close_async_client, settings=_SETTINGS
)
# Apart from the alias's own, since `embedded.MODEL` is answered whatever its key.
_embedded_clients = Managed("embedded OpenAI", _build_embedded, _close_client)
_async_embedded_clients = ManagedPerLoop(
    "embedded OpenAI (async)", _build_async_embedded, _close_async_client
)
_all_clients = (
    _clients,
    _async_clients,
    _embedded_clients,
    _async_embedded_clients,
)


# Which model, of which length


def _configured_dimensions(alias: str) -> int | None:
    try:
        return conf.openai(alias).dimensions
    except ServiceNotConfigured:
        return None


def _embedded_dimensions(configured: int | None, asked: int | None) -> int:
    if asked is not None and asked > embedded.DIMENSIONS:
        raise InvalidInput(
            f"The embedded model gives vectors of at most {embedded.DIMENSIONS} dimensions, not "
            f"{asked}. Ask for fewer, or set OPENAI_API_KEY to reach a real model."
        )
    # A length set for the real model stands for "as long as can be" here.
    return asked or min(configured or embedded.DIMENSIONS, embedded.DIMENSIONS)


def _own_dimensions(model: str) -> int | None:
    known = catalogue.find(model)
    return known.dimensions if known else None


def _check_dimensions(dimensions: object) -> None:
    is_number = isinstance(dimensions, int) and not isinstance(dimensions, bool)
    if dimensions is not None and not (is_number and dimensions >= 1):  # type: ignore[operator]
        raise InvalidInput(f"dimensions must be a whole number of 1 or more, not {dimensions!r}.")


def _work_on(
    texts: Private[Sequence[str]], alias: str, model: str | None, dimensions: int | None
) -> EmbeddingWork:
    from .openai_transport.work import EmbeddingWork, Target

    name, length = embedding_space(alias, model, dimensions)
    is_embedded = name == embedded.MODEL
    # Other servers' models often refuse the parameter, and the model's own length needs none.
    is_shortened = _own_dimensions(name) not in (None, length)
    target = Target(
        alias=alias,
        # The embedded model refuses, as the API would, a name that it does not answer for.
        model=model or name,
        dimensions=length,
        sends_dimensions=is_embedded or is_shortened,
        is_embedded=is_embedded,
    )
    if not is_embedded:
        settings = conf.openai(alias)
        target = replace(
            target,
            server=settings.base_url,
            tokens_per_minute=settings.limit_of(target.model).tokens,
        )
    return EmbeddingWork(texts, target)


# What a verb asks, and of whom


def _asked(
    prompt: object, instructions: object, tools: object, options: Mapping[str, Any]
) -> Asked:
    from .openai_transport.prompts import Asked

    return Asked(prompt, instructions, tools, options)


def _target(
    alias: str,
    model: str | None,
    response_model: type[M] | None,
    max_output_tokens: int | None,
    temperature: float | None,
) -> Target[M]:
    from .openai_transport.prompts import Target

    name = model or conf.openai(alias).model
    return Target(alias, name, response_model, max_output_tokens, temperature)


def _is_messages(given: Private[Any]) -> bool:
    held = given.reveal()
    return isinstance(held, Sequence) and bool(held) and isinstance(held[0], Mapping)


# Sending


def _cache_for(work: EmbeddingWork, wanted: bool | None) -> EmbeddingCache | None:
    if work.target.is_embedded:  # answers sooner than a server of a cache
        return None
    return embedding_cache.of(conf.openai(work.target.alias), wanted=wanted)


def _embed(work: EmbeddingWork, cache: EmbeddingCache | None = None) -> None:
    from .openai_transport import sending

    clients = _embedded_clients if work.target.is_embedded else _clients
    if cache is not None:
        work.recall(cache.get_many(work.digests(), work.target.dimensions))
    with uncached():  # what the transport does for the raw client is done here already
        for request in work.requests():
            client = clients.get(work.target.alias)
            work.take(request, sending.post_texts(client, work, request))
            if cache is not None:
                cache.set_many(work.learned())


async def _aembed(work: EmbeddingWork, cache: EmbeddingCache | None = None) -> None:
    from .openai_transport import sending

    clients = _async_embedded_clients if work.target.is_embedded else _async_clients
    if cache is not None:
        work.recall(await cache.aget_many(work.digests(), work.target.dimensions))
    with uncached():
        for request in work.requests():
            client = clients.get(work.target.alias)
            work.take(request, await sending.apost_texts(client, work, request))
            if cache is not None:
                await cache.aset_many(work.learned())


def _complete(target: Target[M], asked: Asked) -> Completion[M]:
    from .openai_transport import completions, prompts, sending

    request = prompts.request_of(asked, target)
    reply = sending.post(get_openai_client(target.alias), request, target.alias)
    return completions.completion_of(reply, target)


async def _acomplete(target: Target[M], asked: Asked) -> Completion[M]:
    from .openai_transport import completions, prompts, sending

    request = prompts.request_of(asked, target)
    client = get_async_openai_client(target.alias)
    return completions.completion_of(await sending.apost(client, request, target.alias), target)


def _stream(target: Target[M], asked: Asked) -> CompletionStream[M]:
    from .openai_transport import completion_streams, prompts

    request = prompts.request_of(asked, target, is_stream=True)
    return completion_streams.CompletionStream(target, request, get_openai_client)


def _astream(target: Target[M], asked: Asked) -> AsyncCompletionStream[M]:
    from .openai_transport import completion_streams, prompts

    request = prompts.request_of(asked, target, is_stream=True)
    return completion_streams.AsyncCompletionStream(target, request, get_async_openai_client)
