"""Redis: the real client, pooled, one for each process and alias.

A command is never sent twice: where its answer was lost it may have been
carried out, and an XADD or INCR sent again would count twice. A connection
that the server closed while it was idle is noticed and replaced before a
command uses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from . import conf
from .exceptions import AuthenticationFailed, ServiceError, ServiceUnavailable
from .lifecycle import Managed, ManagedPerLoop

if TYPE_CHECKING:
    import redis
    import redis.asyncio

_SETTINGS = frozenset({"DJANGO_SERVICES", "CACHES"})


def get_redis_client(alias: str = "default") -> redis.Redis:
    """Return the process's client of an alias; made on first use, shared by threads.

    It connects with its first command, so its errors are redis-py's own.
    Answers are bytes, redis-py's default.

    Raises:
        ServiceNotConfigured: No setting describes the alias; names REDIS_URL.
        ConfigurationError: The setting is wrong.
    """
    return _clients.get(alias)


def get_async_redis_client(alias: str = "default") -> redis.asyncio.Redis:
    """Return the running event loop's client of an alias, as `get_redis_client`.

    It is closed when its loop ends.

    Raises:
        RuntimeError: No event loop runs in this thread.
    """
    return _async_clients.get(alias)


def ping(alias: str = "default") -> None:
    """Return if the server answers and takes the password.

    Raises:
        AuthenticationFailed: The server refused the user name or password.
        ServiceUnavailable: It cannot be reached, or did not answer in time.
        ServiceNotConfigured: No setting describes the alias.
    """
    from redis.exceptions import RedisError

    client = get_redis_client(alias)
    try:
        client.ping()
    except RedisError as error:
        _raise(error, alias)


async def aping(alias: str = "default") -> None:
    """Do as `ping` with the client of the running event loop."""
    from redis.exceptions import RedisError

    client = get_async_redis_client(alias)
    try:
        await client.ping()
    except RedisError as error:
        _raise(error, alias)


def version(alias: str = "default") -> str:
    """Return the server's name and version, such as "redis 8.2.1".

    Raises:
        ServiceError: As `ping` raises it; also where the role may not ask.
    """
    from redis.exceptions import RedisError

    client = get_redis_client(alias)
    try:
        info = client.info("server")
    except RedisError as error:
        _raise(error, alias)
    # Valkey names the version of Redis that it agrees with, and its own.
    name = info.get("server_name", "redis")
    return f"{name} {info.get(f'{name}_version', info['redis_version'])}"


def close(alias: str | None = None) -> None:
    """Close the clients of one alias, or of all; the next use makes new ones."""
    _clients.close(alias)
    _async_clients.close(alias)


def _build(alias: str) -> redis.Redis:
    import redis

    settings = conf.redis(alias)
    pool = redis.BlockingConnectionPool.from_url(settings.url, **_options(settings))
    return redis.Redis.from_pool(pool)


def _build_async(alias: str) -> redis.asyncio.Redis:
    import redis.asyncio

    settings = conf.redis(alias)
    pool = redis.asyncio.BlockingConnectionPool.from_url(settings.url, **_options(settings))
    return redis.asyncio.Redis.from_pool(pool)


def _options(settings: conf.RedisSettings) -> dict[str, Any]:
    """Return how to connect, in redis-py's words."""
    options: dict[str, Any] = {
        "username": settings.username or None,
        "password": settings.password or None,
        "client_name": settings.client_name or None,
        "socket_timeout": settings.timeout,
        "socket_connect_timeout": settings.connect_timeout,
        "max_connections": settings.max_connections,
        "timeout": settings.connect_timeout,  # the wait for a free connection
    }
    if settings.url.startswith("rediss:"):
        options |= {
            "ssl_cert_reqs": settings.ssl_cert_reqs,
            "ssl_check_hostname": settings.ssl_check_hostname,
            "ssl_ca_certs": settings.ssl_ca_certs or None,
            "ssl_certfile": settings.ssl_certfile or None,
            "ssl_keyfile": settings.ssl_keyfile or None,
        }
    return options


def _raise(error: Exception, alias: str) -> NoReturn:
    """Raise a redis-py error as ours; its frames hold the password."""
    from redis import exceptions

    where = f"Redis {alias!r} at {conf.redis(alias).url}"
    fix = f'Check REDIS_URL (DJANGO_SERVICES["REDIS"]["{alias}"]).'
    if isinstance(error, exceptions.AuthenticationError | exceptions.NoPermissionError):
        raise AuthenticationFailed(f"{where} refused the user name or password. {fix}") from None
    if isinstance(error, exceptions.ConnectionError | exceptions.TimeoutError):
        raise ServiceUnavailable(f"{where} cannot be reached: {error} {fix}") from None
    raise ServiceError(f"{where} answered with an error: {error}") from None


_clients: Managed[redis.Redis] = Managed(
    "redis", _build, lambda client: client.close(), settings=_SETTINGS
)
_async_clients: ManagedPerLoop[redis.asyncio.Redis] = ManagedPerLoop(
    "redis (async)", _build_async, lambda client: client.aclose(), settings=_SETTINGS
)
