"""What a search looks for, and its vector in the space that answers.

A text's vector is made when the search is evaluated, by the model of the active
space, so that vectors of two models never meet. It is kept in this process and in
the cache that ``DJANGO_SERVICES["EMBEDDINGS"]["QUERY_CACHE"]`` names.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from typing import Any

from django.db import models
from django.utils.functional import Promise

from .. import conf, embedded, openai_service
from ..exceptions import DimensionMismatch, InvalidInput, ServiceNotConfigured
from ..openai_transport import context, embedding_cache
from ..openai_transport.embedding_cache import EmbeddingCache
from ..privacy import Private, private
from ..vectors import encoding
from .declaration import Embeddings
from .models import Space


class Wanted(ABC):
    """What is looked for. Its parts are private: a query is the user's own."""

    @abstractmethod
    def vector(self, index: Embeddings, space: Space) -> bytes:
        """Return its encoded vector in a space of the index."""


class WantedNothing(Wanted):
    """What a query looks for that is never evaluated."""

    def vector(self, index: Embeddings, space: Space) -> bytes:
        raise NotImplementedError


class WantedText(Wanted):
    """What a text means.

    Raises:
        InvalidInput: No text, or a blank one.
    """

    def __init__(self, text: Any) -> None:
        text = private(text)
        self._text = Private(_checked_text(text))

    def vector(self, index: Embeddings, space: Space) -> bytes:
        cache = _cache()
        (digest,) = embedding_cache.digests(
            [self._text.reveal()],
            server=_server_of(space, index),
            model=space.model,
            dimensions=space.dimensions,
        )
        known = cache.get(digest, space.dimensions) if cache else None
        if known is not None:
            return encoding.Encoded(known)  # the cache has checked it
        made = openai_service.embed(
            [self._text.reveal()],
            alias=index.alias,
            model=space.model,
            dimensions=space.dimensions,
            cache=False,  # queries have one of their own
        )
        vector = encoding.encode(made[0], dimensions=space.dimensions)
        if cache:
            cache.set_many({digest: bytes(vector)})
        return vector


class WantedVector(Wanted):
    """What is near to a vector.

    Raises:
        InvalidInput: No vector, or one without direction: zero, NaN, infinity.
    """

    def __init__(self, vector: Any) -> None:
        vector = private(vector)
        encoded = encoding.encode(vector.reveal())
        if not any(encoded):
            raise InvalidInput("nearest() takes a vector that is not zero: zero has no direction.")
        self._vector = Private(encoded)

    def vector(self, index: Embeddings, space: Space) -> bytes:
        got = encoding.dimensions_of(self._vector.reveal())
        if got != space.dimensions:
            raise DimensionMismatch(
                f"{index.label} holds vectors of {space.dimensions} dimensions ({space.model}), "
                f"nearest() was given one of {got}. Take one of the same model."
            )
        return self._vector.reveal()


class WantedLike(Wanted):
    """What resembles a row: the mean direction of its chunks, as they are stored.

    Raises:
        InvalidInput: The row is not saved.
    """

    def __init__(self, instance: models.Model) -> None:
        if instance.pk is None or instance._state.adding:
            raise InvalidInput(
                f"similar_to() takes a saved {instance._meta.object_name}: save it first."
            )
        self.key = instance.pk

    def vector(self, index: Embeddings, space: Space) -> bytes:
        chunks = index.chunk_model._default_manager.using(space._state.db)
        stored = list(
            chunks.filter(source=self.key, space=space.pk).values_list("vector", flat=True)
        )
        if not stored:
            hint = " or the row does not match its condition" if index.condition else ""
            raise InvalidInput(
                f"{index.model._meta.object_name} {self.key} has no embeddings yet{hint}. "
                f"Run: manage.py embeddings sync {index.label}"
            )
        return _mean_direction(stored)


def _mean_direction(vectors: list[Any]) -> bytes:
    import numpy as np

    rows = np.stack(vectors).astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    mean = (rows / np.where(lengths > 0, lengths, 1.0)).mean(axis=0)
    length = np.linalg.norm(mean)
    # Chunks that point in opposite ways have no mean: the first one speaks for the row.
    return encoding.encode(mean / length if length > 0 else vectors[0])


def _checked_text(text: Private[Any]) -> str:
    value = text.reveal()
    if isinstance(value, Promise):
        value = str(value)
    if not isinstance(value, str):
        raise InvalidInput(f"search() takes a text (str), not {type(value).__name__}.")
    if not value.strip():
        raise InvalidInput("search() takes a text that is not empty; for all rows use .all().")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidInput("search() takes a text without lone surrogates: decode it properly.")
    return value


def _cache() -> EmbeddingCache | None:
    if context.is_uncached():
        return None
    settings = conf.embeddings()
    return _cache_in(settings.query_cache, settings.query_cache_timeout)


@functools.cache
def _cache_in(alias: str, timeout: int) -> EmbeddingCache:
    return EmbeddingCache(alias, timeout, "query")


def _server_of(space: Space, index: Embeddings) -> str:
    """Return what names the server that makes vectors of the space.

    Raises:
        ServiceNotConfigured: Nothing makes them any more.
    """
    if space.model == embedded.MODEL:
        return conf.EMBEDDED_URL
    settings = conf.openai(index.alias)
    if settings.is_embedded:
        raise ServiceNotConfigured(
            f"The embeddings of {index.label} were made by {space.model}, which searches "
            f"need too: set OPENAI_API_KEY, or run: manage.py embeddings sync {index.label}"
        )
    return settings.base_url
