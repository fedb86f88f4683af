"""Embeddings of equal texts, made once: kept in this process and in a cache of CACHES.

What is kept is a vector's numbers under a digest: a cache holds neither texts nor
tenants, and whoever can write to it brings no more in than a wrong vector. A cache
that fails, or does not answer, is a cache that knows nothing.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import logging
import math
import os
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from types import NoneType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard, TypeVar

from asgiref.sync import sync_to_async
from django.core.cache import InvalidCacheBackendError, caches
from django.core.signals import setting_changed

from .. import conf
from ..resilience import Breaker
from . import context

if TYPE_CHECKING:
    from django.core.cache.backends.base import BaseCache

    from .reading import Reading

logger = logging.getLogger(__name__)

MEMORY = 8 * 1024 * 1024  # bytes, of what one process keeps
MEMORY_TIMEOUT = 300.0  # seconds: what a cache was told to drop is forgotten by then
PAUSE = 5.0  # seconds for which a cache that failed is not asked
ITEM_SIZE = 4  # bytes of a float32

_OVERHEAD = 500  # bytes of an entry beside its vector: digest, tuples, the dict's own


def digests(
    texts: Iterable[str], *, server: str, model: str, dimensions: int | None = None
) -> list[str]:
    """Return the keys of texts, as the tenant of this context sees them.

    Args:
        texts: Any; lone surrogates too.
        server: Base URL: two servers may name two models alike.
        model: As the request names it.
        dimensions: As the request asks for; None where it leaves them to the model.
    """
    tenant = context.attribution().tenant
    common = _common(conf.fake_network, tenant, server, model, str(dimensions))
    found = []
    for text in texts:
        digest = common.copy()
        digest.update(text.encode("utf-8", "surrogatepass"))
        found.append(digest.hexdigest())
    return found


@functools.lru_cache(maxsize=256)
def _common(*parts: str) -> hashlib._Hash:
    # Each part with its length: no two lists of parts make the same bytes. The text is the last.
    seed = "".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.sha256(seed.encode("utf-8", "surrogatepass"))


class EmbeddingCache:
    """Vectors in one cache of CACHES; those used last in this process too.

    Args:
        alias: In CACHES.
        timeout: Seconds for which a vector is kept.
        purpose: Keeps apart what is not kept alike.
    """

    __slots__ = ("_alias", "_prefix", "_timeout")

    def __init__(self, alias: str, timeout: float, purpose: str = "embedding") -> None:
        self._alias = alias
        self._timeout = timeout
        self._prefix = f"django_services:{purpose}:"

    def get(self, digest: str, dimensions: int | None = None) -> bytes | None:
        """Return one vector, None if it is not known; see `get_many`.

        Apart from it, since a query waits for it.
        """
        vector = _memory.get((self._alias, self._prefix, digest))
        if vector is not None and _has_length(vector, dimensions):
            return vector
        key = self._prefix + digest
        value = _asking(self._alias, lambda cache: cache.get(key))
        if not _is_vector(value, dimensions):
            return None
        self._remembered({digest: value})
        return value

    def get_many(self, digests: Sequence[str], dimensions: int | None = None) -> dict[str, bytes]:
        """Return the vectors that are known, as bytes of little-endian float32.

        Args:
            digests: Of `digests`.
            dimensions: Length that a vector must have; any if None.

        Raises:
            InvalidCacheBackendError: The cache has no backend that can be loaded.
        """
        found, missing = self._in_process(digests, dimensions)
        if missing:
            found |= self._taken(self._fetch(missing), dimensions)
        return found

    async def aget_many(
        self, digests: Sequence[str], dimensions: int | None = None
    ) -> dict[str, bytes]:
        """Return the vectors that are known; see `get_many`."""
        found, missing = self._in_process(digests, dimensions)
        if missing:
            # As Django's caches do it: a backend may use the thread's database connection.
            found |= self._taken(await sync_to_async(self._fetch)(missing), dimensions)
        return found

    def set_many(self, vectors: Mapping[str, bytes]) -> None:
        """Keep vectors under their digests."""
        if kept := self._remembered(vectors):
            self._store(kept)

    async def aset_many(self, vectors: Mapping[str, bytes]) -> None:
        """Keep vectors under their digests; see `set_many`."""
        if kept := self._remembered(vectors):
            await sync_to_async(self._store)(kept)

    def _in_process(
        self, digests: Sequence[str], dimensions: int | None
    ) -> tuple[dict[str, bytes], list[str]]:
        """Return what this process knows, and the digests that it does not."""
        found: dict[str, bytes] = {}
        missing = []
        for digest in digests:
            vector = _memory.get((self._alias, self._prefix, digest))
            if vector is not None and _has_length(vector, dimensions):
                found[digest] = vector
            else:
                missing.append(digest)
        return found, missing

    def _remembered(self, vectors: Mapping[str, bytes]) -> dict[str, bytes]:
        """Remember vectors in this process; return what to store, by the cache's keys."""
        if self._timeout <= 0:
            return {}
        until = time.monotonic() + min(self._timeout, MEMORY_TIMEOUT)
        for digest, vector in vectors.items():
            _memory.put((self._alias, self._prefix, digest), vector, until)
        return {self._prefix + digest: vector for digest, vector in vectors.items()}

    def _taken(self, values: Mapping[str, Any], dimensions: int | None) -> dict[str, bytes]:
        """Return the values that are vectors, and remember them."""
        sound = {
            key.removeprefix(self._prefix): value
            for key, value in values.items()
            if _is_vector(value, dimensions)
        }
        self._remembered(sound)
        return sound

    def _fetch(self, digests: Sequence[str]) -> dict[str, Any]:
        keys = [self._prefix + digest for digest in digests]
        return _asking(self._alias, lambda cache: cache.get_many(keys)) or {}

    def _store(self, values: Mapping[str, bytes]) -> None:
        _asking(self._alias, lambda cache: cache.set_many(dict(values), self._timeout))


def of(settings: conf.OpenAISettings, *, wanted: bool | None = None) -> EmbeddingCache | None:
    """Return where the embeddings of an alias are kept; None where they are not.

    Args:
        settings: The alias's.
        wanted: None: as its EMBEDDING_CACHE says; True: in the default cache if that
            names none; False: nowhere. Under `uncached` nowhere either.
    """
    alias = settings.embedding_cache or ("default" if wanted else "")
    # The embedded model answers sooner than a server of a cache.
    is_kept = alias and wanted is not False and not settings.is_embedded
    if not is_kept or context.is_uncached():
        return None
    return EmbeddingCache(alias, settings.embedding_cache_timeout)


def forget() -> None:
    """Forget what this process knows; caches keep what they hold."""
    _memory.clear()
    _breakers.clear()


# Answering the raw client ------------------------------------------------------------

#: What a request may say; what else it says, such as an input type, may change the vectors.
_UNDERSTOOD = frozenset({"input", "model", "dimensions", "encoding_format", "user"})


def answer_for(asked: Mapping[str, Any], settings: conf.OpenAISettings) -> bytes | None:
    """Return the body of a whole answer to a request for embeddings.

    Args:
        asked: The request's decoded body.
        settings: The alias's.

    Returns:
        None if a text of the request is not known, if the alias keeps no embeddings,
        or if the request is of a kind that is not kept.
    """
    question = _question(asked, settings)
    if question is None:
        return None
    return question.answer(question.cache.get_many(question.digests, question.dimensions))


async def aanswer_for(asked: Mapping[str, Any], settings: conf.OpenAISettings) -> bytes | None:
    """Return the body of a whole answer to a request for embeddings; see `answer_for`."""
    question = _question(asked, settings)
    if question is None:
        return None
    return question.answer(await question.cache.aget_many(question.digests, question.dimensions))


def keep(asked: Mapping[str, Any], reading: Reading, settings: conf.OpenAISettings) -> None:
    """Keep the vectors of a good answer to a request, if it is of a kind that is kept."""
    question = _question(asked, settings)
    if question is not None:
        question.cache.set_many(question.told(reading))


async def akeep(asked: Mapping[str, Any], reading: Reading, settings: conf.OpenAISettings) -> None:
    """Keep the vectors of a good answer to a request; see `keep`."""
    question = _question(asked, settings)
    if question is not None:
        await question.cache.aset_many(question.told(reading))


class _Question(NamedTuple):
    """A request for embeddings that may be answered from a cache."""

    cache: EmbeddingCache
    digests: list[str]
    model: str
    dimensions: int | None
    is_base64: bool

    def answer(self, known: Mapping[str, bytes]) -> bytes | None:
        if any(digest not in known for digest in self.digests):
            return None
        rows = [known[digest] for digest in self.digests]
        if len(set(map(len, rows))) > 1:
            return None
        data = [
            {"object": "embedding", "index": index, "embedding": self._encoded(row)}
            for index, row in enumerate(rows)
        ]
        usage = {"prompt_tokens": 0, "total_tokens": 0}
        body = {"object": "list", "data": data, "model": self.model, "usage": usage}
        return json.dumps(body, separators=(",", ":")).encode()

    def told(self, reading: Reading) -> dict[str, bytes]:
        if reading.faults:
            return {}
        return {digest: reading.row(at) for at, digest in enumerate(self.digests)}

    def _encoded(self, row: bytes) -> str | list[float]:
        if self.is_base64:
            return base64.b64encode(row).decode()
        return list(struct.unpack(f"<{len(row) // ITEM_SIZE}f", row))


def _question(asked: Mapping[str, Any], settings: conf.OpenAISettings) -> _Question | None:
    cache = of(settings)
    if cache is None or not _UNDERSTOOD.issuperset(asked):
        return None
    given, model, dimensions = asked.get("input"), asked.get("model"), asked.get("dimensions")
    texts = [given] if isinstance(given, str) else given
    # Tokens are not kept: their texts are.
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return None
    if not texts or not isinstance(model, str) or type(dimensions) not in {int, NoneType}:
        return None
    return _Question(
        cache,
        digests(texts, server=settings.base_url, model=model, dimensions=dimensions),
        model,
        dimensions,
        asked.get("encoding_format") == "base64",
    )


# What is kept ------------------------------------------------------------------------


def _has_length(value: bytes, dimensions: int | None) -> bool:
    return dimensions is None or len(value) == dimensions * ITEM_SIZE


def _is_vector(value: object, dimensions: int | None) -> TypeGuard[bytes]:
    """Tell whether a cache's value is a vector that has a direction."""
    if not isinstance(value, bytes) or not value or len(value) % ITEM_SIZE:
        return False
    if not _has_length(value, dimensions):
        return False
    import numpy as np

    numbers = np.frombuffer(value, "<f4")
    # vdot warns of no overflow; NaN and infinity are in no open interval.
    return bool(0 < np.vdot(numbers, numbers) < math.inf)


# The cache of CACHES -----------------------------------------------------------------

T = TypeVar("T")

_breakers: dict[str, Breaker] = {}


def _asking(alias: str, ask: Callable[[BaseCache], T]) -> T | None:
    """Return what a cache answers; None where it fails, and for a pause after that."""
    breaker = _breakers.get(alias) or _breakers.setdefault(alias, Breaker(1, PAUSE))
    if breaker.refused_for() is not None:
        return None
    try:
        answer = ask(caches[alias])
    except InvalidCacheBackendError:
        breaker.released()
        raise
    except Exception as error:  # noqa: BLE001
        # Each backend has errors of its own, and a broken cache must not break a call.
        breaker.failed()
        logger.warning(
            "The cache %r of embeddings failed, and is not asked for %.0f s: %s",
            alias,
            PAUSE,
            type(error).__name__,
        )
        return None
    breaker.succeeded()
    return answer


# This process ------------------------------------------------------------------------


class _Memory:
    """What was used last, up to so many bytes; shared by threads."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self.clear()

    def get(self, key: Hashable) -> bytes | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            if entry[1] <= time.monotonic():
                self._drop(key)
                return None
            self._entries.move_to_end(key)
            return entry[0]

    def put(self, key: Hashable, value: bytes, until: float) -> None:
        """Keep a value until a time of the monotonic clock."""
        with self._lock:
            if key in self._entries:
                self._drop(key)
            self._entries[key] = value, until
            self._size += len(value) + _OVERHEAD
            while self._size > self._most:
                self._drop(next(iter(self._entries)))

    def clear(self) -> None:
        # Also in a forked child, whose parent may have held the lock.
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, tuple[bytes, float]] = OrderedDict()
        self._size = 0

    def _drop(self, key: Hashable) -> None:
        value, _ = self._entries.pop(key)
        self._size -= len(value) + _OVERHEAD


_memory = _Memory(MEMORY)


def _forget_changed(*, setting: str, **_: Any) -> None:
    if setting in {"CACHES", "DJANGO_SERVICES"}:
        forget()


setting_changed.connect(_forget_changed, dispatch_uid="django_services.embedding_cache")
os.register_at_fork(after_in_child=_memory.clear)
