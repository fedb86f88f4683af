"""django_services.cache against a real Redis: data in, data out, never code."""

from __future__ import annotations

import datetime
import decimal
import os
import pickle
import uuid

import pytest
import redis
from django.core.cache import caches
from django.utils.safestring import mark_safe

from django_services.cache import DataSerializer, OptionsConnectionFactory
from django_services.env import Env

VALUES = [
    None,
    True,
    0,
    -7,
    2**70,
    1.5,
    "",
    "text ü \ud800",
    b"\x00\xff",
    b"",
    b"5",
    [b"inside"],
    [1, [2, "x"]],
    (1, (2, [3])),
    {1, 2},
    frozenset({"a"}),
    {"a": {"b": [None]}},
    {1: "one", (2, 3): "pair"},
    {"__type__": "not ours"},
    datetime.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC),
    datetime.date(2026, 1, 2),
    datetime.time(3, 4),
    datetime.timedelta(days=-1, microseconds=5),
    decimal.Decimal("1.10"),
    uuid.UUID(int=5),
]


class Bomb:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def redis_client(redis_server):
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def configure(settings, monkeypatch, tmp_path):
    def set_caches(**urls: str) -> None:
        found = {}
        for alias, url in urls.items():
            monkeypatch.setenv("REDIS_URL", url)
            found[alias] = Env(tmp_path).cache()
        settings.CACHES = found

    yield set_caches
    OptionsConnectionFactory.close_pools()


@pytest.fixture
def cache(redis_server, redis_client, configure):
    configure(default=redis_server.url)
    return caches["default"]


# Values ------------------------------------------------------------------------------


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_comes_back_as_it_was(cache, value):
    cache.set("key", value)

    found = cache.get("key", "missing")

    assert found == value
    assert type(found) is type(value)


def test_bytes_are_stored_as_they_are(cache, redis_client):
    cache.set("key", b"a vector's numbers")

    assert redis_client.get(cache.make_key("key")).endswith(b"a vector's numbers")


@pytest.mark.parametrize("size", [1, 10_000])  # a compressor leaves short ones as they are
def test_bytes_come_back_through_a_compressor(size, cache, settings):
    options = {"COMPRESSOR": "django_redis.compressors.zlib.ZlibCompressor"}
    settings.CACHES = {"default": {**settings.CACHES["default"], "OPTIONS": options}}
    caches["default"].set_many({"one": bytes(size), "two": b"\x01" * size})

    assert caches["default"].get("one") == bytes(size)
    assert caches["default"].get_many(["two"]) == {"two": b"\x01" * size}


def test_a_subclass_comes_back_as_its_base(cache):
    cache.set("key", mark_safe("<b>"))

    assert type(cache.get("key")) is str


def test_an_object_is_refused_by_name():
    with pytest.raises(TypeError, match="cannot hold a Bomb"):
        DataSerializer({}).dumps({"deep": [Bomb("x")]})


def test_the_methods_of_a_cache_work(cache):
    cache.set_many({"a": 1, "b": [2]})
    cache.add("a", "other")
    cache.incr("a", 4)

    assert cache.get_many(["a", "b", "c"]) == {"a": 5, "b": [2]}
    assert cache.get_or_set("c", (1, 2)) == (1, 2)
    assert cache.touch("a", 60)
    assert cache.delete("b")
    assert "b" not in cache


def test_a_missing_number_is_not_counted(cache):
    with pytest.raises(ValueError, match="not found"):
        cache.incr("missing")


# Foreign bytes (FR14) ----------------------------------------------------------------

FOREIGN = {
    "text": b"not json",
    "binary": b"\x80\x05\xff",
    "unknown type": b'{"__type__":["module","os"]}',
    "no pair": b'{"__type__":[]}',
    "bad decimal": b'{"__type__":["decimal","x"]}',
    "bad uuid": b'{"__type__":["uuid",5]}',
    "bad set": b'{"__type__":["set",[[1]]]}',
    "bad bytes": b'{"__type__":["bytes","*"]}',
    "deep": b"[" * 100_000,
}


@pytest.fixture
def plant(cache, redis_client):
    def write(key: str, value: bytes) -> None:
        redis_client.set(cache.make_key(key), value)

    return write


def test_pickled_bytes_are_a_miss_and_never_run(cache, plant, tmp_path):
    mark = tmp_path / "it-ran"
    plant("key", pickle.dumps(Bomb(mark)))
    assert pickle.loads(pickle.dumps(Bomb(tmp_path / "armed"))) is None

    found = cache.get("key", "missing")

    assert found == "missing"
    assert (tmp_path / "armed").exists()
    assert not mark.exists()


@pytest.mark.parametrize("value", FOREIGN.values(), ids=FOREIGN)
def test_foreign_bytes_are_a_miss(cache, plant, value):
    plant("key", value)

    assert cache.get("key", "missing") == "missing"


def test_foreign_bytes_do_not_spoil_their_neighbours(cache, plant):
    cache.set_many({"a": 1, "b": None})
    plant("bad", pickle.dumps("x"))

    assert cache.get_many(["a", "bad", "b", "missing"]) == {"a": 1, "b": None}


def test_foreign_bytes_can_be_replaced(cache, plant):
    plant("key", pickle.dumps("x"))

    cache.set("key", "fresh")

    assert cache.get("key") == "fresh"


def test_foreign_bytes_are_no_number(cache, plant):
    plant("key", pickle.dumps(1))

    with pytest.raises(ValueError, match="not found"):
        cache.incr("key")


def test_foreign_bytes_are_logged_without_them(cache, plant, caplog):
    plant("secret-key", b"canary")

    cache.get("secret-key")

    assert "is skipped" in caplog.text
    assert "canary" not in caplog.text


# Connections -------------------------------------------------------------------------


def test_caches_that_connect_alike_share_a_pool(redis_server, configure):
    configure(default=redis_server.url, other=redis_server.url)

    pools = [caches[alias].client.get_client().connection_pool for alias in caches]

    assert pools[0] is pools[1]


@pytest.mark.parametrize("option", ["timeout=1.5", "max_connections=7", "client_name=x"])
def test_caches_of_one_url_with_other_options_do_not(redis_server, configure, option):
    configure(default=redis_server.url, other=f"{redis_server.url}?{option}")

    pools = [caches[alias].client.get_client().connection_pool for alias in caches]

    assert pools[0] is not pools[1]


def test_caches_with_other_passwords_do_not_share_a_pool(configure):
    configure(default="redis://:one@h", other="redis://:two@h")

    pools = [caches[alias].client.get_client().connection_pool for alias in caches]

    assert [pool.connection_kwargs["password"] for pool in pools] == ["one", "two"]


def test_timeouts_bound_every_operation(redis_server, configure):
    configure(default=redis_server.url)

    options = caches["default"].client.get_client().connection_pool.connection_kwargs

    assert options["socket_timeout"] == 2.0
    assert options["socket_connect_timeout"] == 1.0


def test_changed_caches_close_their_connections(cache, settings):
    cache.set("key", 1)
    pool = cache.client.get_client().connection_pool

    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}

    assert all(connection._sock is None for connection in pool._connections)


def test_a_cache_outlives_a_restart(cache, redis_server):
    cache.set("key", 1)

    redis_server.stop()
    redis_server.start()

    assert cache.get("key", "empty after the restart") == "empty after the restart"
