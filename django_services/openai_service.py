"""The door to OpenAI: clients for any of its endpoints, and verbs for embeddings.

``get_openai_client()`` returns the SDK's own client, made once for each process
and alias. Without a key, where that is allowed, it is answered in process by the
embedded model. The SDK and numpy load on first use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import conf, embedded
from .exceptions import (
    ConfigurationError,
    InvalidInput,
    InvalidResponse,
    ServiceError,
    ServiceNotConfigured,
)
from .lifecycle import Managed, ManagedPerLoop
from .openai_transport import embedding_cache
from .openai_transport.context import uncached
from .openai_transport.faults import error_of, is_about_one_text
from .privacy import Private

if TYPE_CHECKING:
    import httpx2
    import numpy as np
    import openai

    from .embedded.transport import EmbeddedTransport
    from .openai_transport.embedding_cache import EmbeddingCache
    from .openai_transport.reading import Reading
    from .openai_transport.work import EmbeddingWork, Refusal

#: Length of the vectors of OpenAI's models, where the request does not say another.
MODEL_DIMENSIONS = {
    "text-embedding-3-small": 1_536,
    "text-embedding-3-large": 3_072,
    "text-embedding-ada-002": 1_536,
}


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


# Verbs


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
    # Gateways put the provider's name in front: "openai/text-embedding-3-small".
    return MODEL_DIMENSIONS.get(model.rsplit("/", 1)[-1])


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
        server="" if is_embedded else conf.openai(alias).base_url,
    )
    return EmbeddingWork(texts, target)


# Sending


def _cache_for(work: EmbeddingWork, wanted: bool | None) -> EmbeddingCache | None:
    if work.target.is_embedded:  # answers sooner than a server of a cache
        return None
    return embedding_cache.of(conf.openai(work.target.alias), wanted=wanted)


def _embed(work: EmbeddingWork, cache: EmbeddingCache | None = None) -> None:
    clients = _embedded_clients if work.target.is_embedded else _clients
    if cache is not None:
        work.recall(cache.get_many(work.digests(), work.target.dimensions))
    with uncached():  # what the transport does for the raw client is done here already
        for request in work.requests():
            work.take(request, _send(clients.get(work.target.alias), work, request))
            if cache is not None:
                cache.set_many(work.learned())


async def _aembed(work: EmbeddingWork, cache: EmbeddingCache | None = None) -> None:
    clients = _async_embedded_clients if work.target.is_embedded else _async_clients
    if cache is not None:
        work.recall(await cache.aget_many(work.digests(), work.target.dimensions))
    with uncached():
        for request in work.requests():
            client = clients.get(work.target.alias)
            work.take(request, await _asend(client, work, request))
            if cache is not None:
                await cache.aset_many(work.learned())


def _send(client: openai.OpenAI, work: EmbeddingWork, request: range) -> Reading | Refusal:
    # Returned and not raised: the frames of the SDK hold texts and key.
    import httpx2
    import openai

    try:
        response = client.post("/embeddings", body=work.body(request), cast_to=httpx2.Response)
    except openai.OpenAIError as error:
        return _reply_to_error(error, work.target.alias)
    return _reply_to(response, work.target.alias)


async def _asend(
    client: openai.AsyncOpenAI, work: EmbeddingWork, request: range
) -> Reading | Refusal:
    import httpx2
    import openai

    try:
        response = await client.post(
            "/embeddings", body=work.body(request), cast_to=httpx2.Response
        )
    except openai.OpenAIError as error:
        return _reply_to_error(error, work.target.alias)
    return _reply_to(response, work.target.alias)


def _reply_to(response: httpx2.Response, alias: str) -> Reading | Refusal:
    from .openai_transport.governor import reading_of
    from .openai_transport.work import Refusal

    # Every embeddings response that is one was read by the transport.
    return reading_of(response) or Refusal(
        InvalidResponse(f"OpenAI ({alias}) returned no embeddings. Check OPENAI_BASE_URL."), False
    )


def _reply_to_error(error: openai.OpenAIError, alias: str) -> Reading | Refusal:
    import openai

    from .openai_transport.governor import reading_of
    from .openai_transport.work import Refusal

    # A response with some faulty rows is an error to the SDK; its other rows are good.
    reading = reading_of(error.response) if isinstance(error, openai.APIStatusError) else None
    return reading or Refusal(error_of(error, alias), is_about_one_text(error))
