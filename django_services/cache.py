"""The cache in Redis: django-redis with values that are data, never code.

Only Django loads this module, when a cache of CACHES is first used: it imports
django-redis and redis-py.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import decimal
import json
import logging
import threading
import uuid
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any

from django.core.signals import setting_changed
from django_redis.cache import RedisCache as DjangoRedisCache  # noqa: TID253
from django_redis.client import DefaultClient  # noqa: TID253
from django_redis.exceptions import CompressorError  # noqa: TID253
from django_redis.pool import ConnectionFactory  # noqa: TID253
from django_redis.serializers.base import BaseSerializer  # noqa: TID253

logger = logging.getLogger(__name__)

_DEFAULTS = {
    "CLIENT_CLASS": "django_services.cache.CacheClient",
    "CONNECTION_FACTORY": "django_services.cache.OptionsConnectionFactory",
    "SERIALIZER": "django_services.cache.DataSerializer",
    "SOCKET_TIMEOUT": 2.0,  # seconds
    "SOCKET_CONNECT_TIMEOUT": 1.0,  # seconds
    # One that waits for a free connection, where the other kind raises.
    "CONNECTION_POOL_CLASS": "redis.connection.BlockingConnectionPool",
}
_POOL_DEFAULTS = {
    "max_connections": 50,
    "timeout": 1.0,  # seconds, the wait for a free connection
}


class RedisCache(DjangoRedisCache):  # type: ignore[misc]  # django-redis ships no types
    """The backend of ``env.cache()``; takes the OPTIONS of django-redis.

    It stores what `DataSerializer` does, and reads whatever else stands under
    a key, such as pickled bytes, as a miss.
    """

    def __init__(self, server: str, params: dict[str, Any]) -> None:
        options = {**_DEFAULTS, **params.get("OPTIONS", {})}
        options["CONNECTION_POOL_KWARGS"] = {
            **_POOL_DEFAULTS,
            **options.get("CONNECTION_POOL_KWARGS", {}),
        }
        super().__init__(server, {**params, "OPTIONS": options})


class Unreadable(ValueError):
    """Bytes under a key that the serializer did not write."""


class CacheClient(DefaultClient):  # type: ignore[misc]  # django-redis ships no types
    """Reads a value that cannot be read as one that is not there."""

    def decode(self, value: bytes | int | str) -> Any:
        try:
            if isinstance(value, bytes) and value.startswith(_BYTES):
                # Else it would first be tried as a number, which takes long for a long value.
                with contextlib.suppress(CompressorError):  # short ones are not compressed
                    value = self._compressor.decompress(value)
                return self._serializer.loads(value)
            return super().decode(value)
        except ValueError:
            logger.warning("A value in the cache is not one that this cache writes; it is skipped.")
            raise Unreadable("The cache holds a value that this cache did not write.") from None

    def get(
        self, key: str, default: Any = None, version: int | None = None, client: Any = None
    ) -> Any:
        try:
            return super().get(key, default=default, version=version, client=client)
        except Unreadable:
            return default

    def get_many(
        self, keys: Collection[str], version: int | None = None, client: Any = None
    ) -> dict[str, Any]:
        keys = list(keys)
        try:
            return dict(super().get_many(keys, version=version, client=client))
        except Unreadable:
            missing = object()
            found = {key: self.get(key, missing, version, client) for key in keys}
            return {key: value for key, value in found.items() if value is not missing}

    def _incr(self, key: str, *args: Any, **kwargs: Any) -> int:
        try:
            return int(super()._incr(key, *args, **kwargs))
        except TypeError:
            # It adds to what get() gave, None for a value that is not there.
            raise ValueError(f"Key {key!r} not found, or no number") from None


class OptionsConnectionFactory(ConnectionFactory):  # type: ignore[misc]  # ships no types
    """Shares a pool among caches that connect alike, not among all of one URL."""

    _options_pools: dict[Hashable, Any] = {}
    _lock = threading.Lock()

    def get_or_create_connection_pool(self, params: dict[str, Any]) -> Any:
        key = self._key(params)
        with self._lock:
            if key not in self._options_pools:
                self._options_pools[key] = self.get_connection_pool(params)
            return self._options_pools[key]

    def _key(self, params: Mapping[str, Any]) -> Hashable:
        named = {**params, **self.pool_cls_kwargs}
        # Not repr() of a text: a password's shows nothing.
        described = ((name, v if isinstance(v, str) else repr(v)) for name, v in named.items())
        return self.pool_cls, self.redis_client_cls, tuple(sorted(described))

    @classmethod
    def close_pools(cls) -> None:
        """Disconnect every pool; the next use of a cache makes a new one."""
        with cls._lock:
            pools = list(cls._options_pools.values())
            cls._options_pools.clear()
        for pool in pools:
            pool.disconnect()


class DataSerializer(BaseSerializer):  # type: ignore[misc]  # django-redis ships no types
    """JSON that gives back what it was given.

    Stored: None, bool, int, float, str, bytes, list, tuple, set, frozenset,
    dict with keys of any of these, date, datetime, time, timedelta, Decimal and
    UUID; a subclass of them, such as SafeString, comes back as its base.

    Raises:
        TypeError: A value is of another type; names it.
    """

    def dumps(self, value: Any) -> bytes:
        if isinstance(value, bytes):
            return _BYTES + value
        return json.dumps(_packed(value), separators=(",", ":")).encode()

    def loads(self, value: bytes) -> Any:
        if value.startswith(_BYTES):
            return value[len(_BYTES) :]
        try:
            return _unpacked(json.loads(value))
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError):
            raise ValueError("The bytes are not what this serializer writes.") from None


#: Precedes bytes that are stored as they are; no JSON begins so. Others are inside JSON as base64.
_BYTES = b"\x00"

#: The key of a dict that stands for a value JSON does not know: {_TAG: [kind, data]}.
_TAG = "__type__"


def _packed_dict(value: Mapping[Any, Any]) -> list[list[Any]]:
    return [[_packed(key), _packed(item)] for key, item in value.items()]


def _unpacked_dict(data: list[list[Any]]) -> dict[Any, Any]:
    return {_unpacked(key): _unpacked(item) for key, item in data}


def _packed_items(value: Collection[Any]) -> list[Any]:
    return [_packed(item) for item in value]


def _unpacked_as(kind: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    return lambda data: kind([_unpacked(item) for item in data])


def _delta(value: datetime.timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


#: How a type is written and read; the first that fits, so a subclass stands before its base.
_TYPES: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "tuple": (tuple, _packed_items, _unpacked_as(tuple)),
    "set": (set, _packed_items, _unpacked_as(set)),
    "frozenset": (frozenset, _packed_items, _unpacked_as(frozenset)),
    "bytes": (
        bytes,
        lambda v: base64.b64encode(v).decode(),
        lambda d: base64.b64decode(d, validate=True),
    ),
    "datetime": (
        datetime.datetime,
        datetime.datetime.isoformat,
        datetime.datetime.fromisoformat,
    ),
    "date": (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    "time": (datetime.time, datetime.time.isoformat, datetime.time.fromisoformat),
    "timedelta": (datetime.timedelta, _delta, lambda data: datetime.timedelta(*data)),
    "decimal": (decimal.Decimal, str, decimal.Decimal),
    "uuid": (uuid.UUID, str, uuid.UUID),
    "dict": (dict, _packed_dict, _unpacked_dict),
}


def _packed(value: Any) -> Any:
    """Return a value as JSON's types."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return _packed_items(value)
    if isinstance(value, dict) and _TAG not in value and all(isinstance(k, str) for k in value):
        return {key: _packed(item) for key, item in value.items()}
    for name, (kind, write, _) in _TYPES.items():
        if isinstance(value, kind):
            return {_TAG: [name, write(value)]}
    raise TypeError(
        f"A cache in Redis cannot hold a {type(value).__qualname__}: it stores data, "
        "not objects. Cache what the object is made from."
    )


def _unpacked(data: Any) -> Any:
    """Return what `_packed` was given."""
    if isinstance(data, list):
        return [_unpacked(item) for item in data]
    if not isinstance(data, dict):
        return data
    if _TAG not in data:
        return {key: _unpacked(item) for key, item in data.items()}
    name, content = data[_TAG]
    if name not in _TYPES:
        raise ValueError("unknown type")
    return _TYPES[name][2](content)


def _close_changed(*, setting: str, **_: Any) -> None:
    if setting == "CACHES":
        OptionsConnectionFactory.close_pools()


setting_changed.connect(_close_changed, dispatch_uid="django_services.cache")
