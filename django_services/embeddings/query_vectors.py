"""What a search looks for, and its vector in the space that answers.

A text's vector is made when the search is evaluated, by the model of the active
space, so that vectors of two models never meet. It is kept in Django's cache.
"""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from typing import Any

from django.core.cache import InvalidCacheBackendError, caches
from django.db import models
from django.utils.functional import Promise

from .. import conf, openai_service
from ..exceptions import DimensionMismatch, InvalidInput, ServiceNotConfigured
from ..privacy import Private, private
from ..vectors import encoding
from . import spaces
from .declaration import Embeddings
from .models import Space

logger = logging.getLogger(__name__)

CACHE_PREFIX = "django_services:query:"


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
        if not spaces.can_be_embedded(space, index):
            raise ServiceNotConfigured(
                f"The embeddings of {index.label} were made by {space.model}, which searches "
                f"need too: set OPENAI_API_KEY, or run: manage.py embeddings sync {index.label}"
            )
        key = self._cache_key(space)
        found = _cached(key, space.dimensions)
        if found is None:
            made = openai_service.embed(
                [self._text.reveal()],
                alias=index.alias,
                model=space.model,
                dimensions=space.dimensions,
            )
            found = encoding.encode(made[0], dimensions=space.dimensions)
            _cache(key, found)
        return found

    def _cache_key(self, space: Space) -> str:
        seed = f"{space.model}\n{space.dimensions}\n{self._text.reveal()}"
        return CACHE_PREFIX + hashlib.sha256(seed.encode()).hexdigest()


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


def _cached(key: str, dimensions: int) -> bytes | None:
    try:
        found = caches[conf.embeddings().query_cache].get(key)
    except InvalidCacheBackendError:
        raise
    except Exception as error:  # noqa: BLE001
        # Each backend has errors of its own, and a broken cache must not break search.
        logger.warning("The cache of query vectors failed: %s", type(error).__name__)
        return None
    # Whoever can write to the cache must not bring more than a wrong vector in.
    if not isinstance(found, bytes) or len(found) != dimensions * encoding.ITEM_SIZE:
        return None
    try:
        return encoding.encode(found)
    except InvalidInput:
        return None


def _cache(key: str, vector: bytes) -> None:
    settings = conf.embeddings()
    try:
        caches[settings.query_cache].set(key, bytes(vector), settings.query_cache_timeout)
    except Exception as error:  # noqa: BLE001
        # As above.
        logger.warning("The cache of query vectors failed: %s", type(error).__name__)
