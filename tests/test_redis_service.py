"""django_services.redis_service against a real Redis."""

from __future__ import annotations

import asyncio
import threading

import pytest
import redis
import redis.asyncio
from django.views.debug import ExceptionReporter

from django_services import redis_service
from django_services.exceptions import (
    AuthenticationFailed,
    ServiceNotConfigured,
    ServiceUnavailable,
)
from django_services.redis_service import get_async_redis_client, get_redis_client

CANARY = "canary-7f3a"


@pytest.fixture(autouse=True)
def closed_clients():
    yield
    redis_service.close()


@pytest.fixture
def configure(settings):
    def set_redis(**keys: object) -> None:
        settings.DJANGO_SERVICES = {"REDIS": {"default": keys}}

    return set_redis


@pytest.fixture
def server(redis_server, configure):
    configure(URL=redis_server.url, TIMEOUT=1, CONNECT_TIMEOUT=1)
    get_redis_client().flushall()
    return redis_server


@pytest.fixture
def protected(server):
    """The server, asking for a password that no client gives."""
    admin = get_redis_client()
    admin.config_set("requirepass", "the real one")
    yield server
    with redis.Redis.from_url(server.url, password="the real one") as admin:
        admin.config_set("requirepass", "")


# The client --------------------------------------------------------------------------


def test_the_examples_of_the_guide_work(server):
    client = get_redis_client()

    client.set("key", "value", ex=3600)

    assert type(client) is redis.Redis
    assert client.get("key") == b"value"
    assert 0 < client.ttl("key") <= 3600


def test_threads_share_one_client(server):
    found = []
    threads = [threading.Thread(target=lambda: found.append(get_redis_client())) for _ in range(8)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {id(client) for client in found} == {id(get_redis_client())}


def test_without_a_setting_the_variable_is_named(settings):
    settings.DJANGO_SERVICES = {}

    with pytest.raises(ServiceNotConfigured, match="REDIS_URL"):
        get_redis_client()


def test_a_cache_in_redis_is_enough(redis_server, settings):
    settings.DJANGO_SERVICES = {}
    settings.CACHES = settings.CACHES | {
        "shared": {"BACKEND": "django_services.cache.RedisCache", "LOCATION": redis_server.url}
    }

    assert get_redis_client().ping()


def test_a_changed_setting_makes_a_new_client(server, configure):
    before = get_redis_client()

    configure(URL=server.url, CLIENT_NAME="renamed")

    assert get_redis_client() is not before
    assert get_redis_client().client_getname() == "renamed"


def test_close_returns_the_sockets(server):
    client = get_redis_client()
    connected = client.client_id()

    redis_service.close()

    assert get_redis_client() is not client
    assert connected not in {int(other["id"]) for other in get_redis_client().client_list()}


def test_timeouts_and_pool_follow_the_setting(configure):
    configure(URL="redis://h", TIMEOUT=1.5, CONNECT_TIMEOUT=0.5, MAX_CONNECTIONS=3)

    pool = get_redis_client().connection_pool

    assert pool.connection_kwargs["socket_timeout"] == 1.5
    assert pool.connection_kwargs["socket_connect_timeout"] == 0.5
    assert pool.max_connections == 3


@pytest.mark.parametrize(
    "url", ["redis://h/1", "rediss://h/1?ssl_cert_reqs=none", "unix:///r.sock?db=1"]
)
def test_every_kind_of_url_makes_connections(configure, url):
    configure(URL=url)

    connection = get_redis_client().connection_pool.make_connection()

    assert connection.db == 1


def test_a_command_is_not_sent_twice(server):
    client = get_redis_client()
    client.ping()

    server.freeze()
    with pytest.raises(redis.TimeoutError):
        client.xadd("stream", {"a": 1})
    server.thaw()

    assert client.xlen("stream") <= 1


def test_a_restarted_server_fails_no_command(server):
    client = get_redis_client()
    client.ping()

    server.stop()
    server.start()

    assert client.ping()


def test_a_forked_child_uses_connections_of_its_own(run_python, redis_url):
    result = run_python(
        f"""
        import os
        from django.conf import settings
        from django_services.redis_service import get_redis_client

        settings.DJANGO_SERVICES = {{"REDIS": {{"default": {{"URL": "{redis_url}"}}}}}}
        client = get_redis_client()
        mine = client.client_id()
        child = os.fork()
        if not child:
            other = get_redis_client()
            os._exit(0 if other is not client and other.client_id() != mine else 1)
        _, status = os.waitpid(child, 0)
        print(status, client.client_id() == mine)
        """
    )

    assert result.stdout.split() == ["0", "True"]


# Async -------------------------------------------------------------------------------


def test_the_async_twin(server):
    async def use() -> bytes:
        client = get_async_redis_client()
        assert type(client) is redis.asyncio.Redis
        assert get_async_redis_client() is client
        await client.set("key", "value")
        await redis_service.aping()
        return await client.get("key")

    assert asyncio.run(use()) == b"value"


def test_each_loop_has_its_client_and_closes_it(server):
    async def use() -> redis.asyncio.Redis:
        client = get_async_redis_client()
        await client.ping()
        return client

    clients = [asyncio.run(use()) for _ in range(3)]

    assert len({id(client) for client in clients}) == 3
    # Closed sockets do not show among the server's clients, apart from ours that asks.
    assert len(get_redis_client().client_list()) == 1


def test_without_a_loop_there_is_no_async_client(server):
    with pytest.raises(RuntimeError, match="no running event loop"):
        get_async_redis_client()


# ping --------------------------------------------------------------------------------


def test_ping_and_version(server):
    redis_service.ping()

    assert redis_service.version().startswith("redis ")


def test_a_server_that_is_down_is_unavailable(server):
    server.stop()

    with pytest.raises(ServiceUnavailable, match="REDIS_URL") as caught:
        redis_service.ping()

    assert caught.value.retryable


def test_a_frozen_server_is_unavailable_within_the_timeout(server):
    redis_service.ping()
    server.freeze()

    with pytest.raises(ServiceUnavailable):
        redis_service.ping()


@pytest.mark.parametrize("ping", [redis_service.ping, lambda: asyncio.run(redis_service.aping())])
def test_a_wrong_password_is_told(protected, configure, ping):
    configure(URL=protected.url, PASSWORD=CANARY)

    with pytest.raises(AuthenticationFailed, match="REDIS_URL") as caught:
        ping()

    assert CANARY not in str(caught.value)


def test_a_missing_password_is_told(protected, configure):
    configure(URL=protected.url)

    with pytest.raises(AuthenticationFailed, match="REDIS_URL"):
        redis_service.ping()


def test_the_password_is_on_no_page_of_the_raw_client(protected, configure, rf):
    configure(URL=protected.url, PASSWORD=CANARY)

    with pytest.raises(redis.AuthenticationError) as caught:
        get_redis_client().get("key")

    reporter = ExceptionReporter(rf.get("/"), caught.type, caught.value, caught.value.__traceback__)
    assert CANARY not in reporter.get_traceback_html()
