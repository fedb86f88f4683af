"""Embeddings of equal texts are made once, told apart where they must be, and never in the way."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import threading
from typing import Any

import numpy as np
import pytest
from django.core.cache import InvalidCacheBackendError, caches
from django.core.cache.backends.locmem import LocMemCache

from django_services import conf, openai_service
from django_services.exceptions import InvalidRequest, InvalidResponse
from django_services.openai_transport import embedding_cache
from django_services.openai_transport.context import attributed, uncached
from django_services.openai_transport.embedding_cache import EmbeddingCache, digests
from django_services.openai_transport.reading import read_embeddings

from ..fake_openai import DIMENSIONS, encoded

SECRET = "canary-of-the-texts"
SERVER = {"server": "https://api.example/v1", "model": "m"}
VECTOR = np.array([3.0, 4.0], "<f4").tobytes()
REMOTE = conf.OpenAISettings(api_key="k", embedding_cache="default")


@pytest.fixture(autouse=True)
def empty_cache() -> Any:
    caches["default"].clear()
    yield
    caches["default"].clear()


@pytest.fixture
def cache() -> EmbeddingCache:
    return EmbeddingCache("default", timeout=60)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys that the cache of CACHES was asked for."""
    asked: list[str] = []
    get = LocMemCache.get

    def counted(self: LocMemCache, key: str, *args: Any, **options: Any) -> Any:
        asked.append(key)
        return get(self, key, *args, **options)

    monkeypatch.setattr(LocMemCache, "get", counted)
    return asked


class FailingCache(LocMemCache):
    calls = 0

    def get(self, *_: Any, **__: Any) -> Any:
        type(self).calls += 1
        raise ConnectionError(SECRET)

    set = get_many = set_many = get


# Keys --------------------------------------------------------------------------------


def test_every_part_of_a_key_tells_texts_apart(monkeypatch):
    found = digests(["a", "b", "\ud800"], **SERVER)
    found += digests(["a"], **SERVER, dimensions=8)
    found += digests(["a"], server="https://other.example/v1", model="m")
    found += digests(["a"], server=SERVER["server"], model="m2")
    with attributed(tenant="acme"):
        found += digests(["a"], **SERVER)
    monkeypatch.setattr(conf, "fake_network", "run-1")
    found += digests(["a"], **SERVER)

    assert len(set(found)) == len(found) == 8


def test_parts_of_a_key_do_not_run_into_each_other():
    keys = [
        digests(["c"], server="a", model="b"),
        digests(["bc"], server="a", model=""),
        digests(["c"], server="ab", model=""),
        digests(["1:bc"], server="a", model=""),
    ]

    assert len({key for (key,) in keys}) == 4


def test_users_and_features_of_a_tenant_share():
    with attributed(tenant="acme", user=1, feature="search"):
        first = digests(["a"], **SERVER)
    with attributed(tenant="acme", user=2):
        assert digests(["a"], **SERVER) == first


# The tiers ---------------------------------------------------------------------------


def test_what_was_kept_is_found_in_this_process_first(cache, reads):
    cache.set_many({"a": VECTOR})

    assert cache.get_many(["a", "b"], 2) == {"a": VECTOR}
    assert reads == ["django_services:embedding:b"]


def test_one_is_found_as_many_are(cache, reads):
    cache.set_many({"a": VECTOR})
    embedding_cache.forget()

    assert [cache.get("a"), cache.get("a", 2), cache.get("a", 3), cache.get("b")] == [
        VECTOR,
        VECTOR,
        None,
        None,
    ]
    assert len(reads) == 3  # the second was remembered


def test_another_process_finds_it_in_the_cache_and_remembers_it(cache, reads):
    cache.set_many({"a": VECTOR})
    embedding_cache.forget()

    assert [cache.get_many(["a"]) for _ in range(3)] == [{"a": VECTOR}] * 3
    assert len(reads) == 1


def test_the_cache_holds_plain_bytes_under_a_digest(cache):
    cache.set_many({digests([SECRET], **SERVER)[0]: VECTOR})

    ((key, _),) = caches["default"]._cache.items()
    assert SECRET not in key
    assert type(caches["default"].get(key.split(":", 2)[2])) is bytes


def test_purposes_and_caches_are_apart(cache, settings):
    settings.CACHES = {**settings.CACHES, "other": {**settings.CACHES["default"], "LOCATION": "2"}}
    cache.set_many({"a": VECTOR})

    assert EmbeddingCache("default", 60, "query").get_many(["a"]) == {}
    assert EmbeddingCache("other", 60).get_many(["a"]) == {}


@pytest.mark.parametrize(
    "planted",
    [b"", b"short", b"12345678" * 2, "text", 5, {"a": 1}, None, bytes(8), b"\xff" * 8]
    + [np.array(row, "<f4").tobytes() for row in ([np.inf, 1], [np.nan, 1], [3e38, 3e38])],
)
def test_what_was_planted_is_a_miss(planted, cache):
    caches["default"].set("django_services:embedding:a", planted)

    assert cache.get_many(["a"], 2) == {}
    assert cache.get("a", 2) is None


def test_a_vector_of_another_length_is_a_miss(cache):
    cache.set_many({"a": VECTOR})

    assert cache.get_many(["a"], 3) == {}


def test_a_timeout_of_zero_keeps_nothing(reads):
    cache = EmbeddingCache("default", timeout=0)
    cache.set_many({"a": VECTOR})

    assert cache.get_many(["a"]) == {}


def test_the_process_forgets_after_its_own_timeout(cache, reads, monkeypatch):
    cache.set_many({"a": VECTOR})
    now = embedding_cache.time.monotonic()
    monkeypatch.setattr(
        embedding_cache.time, "monotonic", lambda: now + embedding_cache.MEMORY_TIMEOUT + 1
    )
    caches["default"].clear()

    assert cache.get_many(["a"]) == {}


def test_a_changed_setting_forgets(cache, settings, reads):
    cache.set_many({"a": VECTOR})

    settings.DJANGO_SERVICES = {**settings.DJANGO_SERVICES}

    cache.get_many(["a"])
    assert len(reads) == 1


def test_memory_is_bounded_by_bytes_and_drops_what_was_used_longest_ago():
    entry = 1_000 + embedding_cache._OVERHEAD
    memory = embedding_cache._Memory(3 * entry)
    for key in "abc":
        memory.put(key, bytes(1_000), until=float("inf"))
    memory.get("a")

    memory.put("d", bytes(1_000), until=float("inf"))
    memory.put("d", bytes(1_000), until=float("inf"))

    assert [key for key in "abcd" if memory.get(key)] == ["a", "c", "d"]
    assert memory._size == 3 * entry


def test_a_value_larger_than_all_memory_is_not_kept():
    memory = embedding_cache._Memory(1_000)

    memory.put("a", bytes(2_000), until=float("inf"))

    assert memory.get("a") is None
    assert memory._size == 0


def test_threads_share_memory_and_its_size_stays_true():
    memory = embedding_cache._Memory(50_000)

    def work(seed: int) -> None:
        for number in range(500):
            memory.put((seed * number) % 97, bytes(number), until=float("inf"))
            memory.get((seed + number) % 97)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    held = sum(len(value) + embedding_cache._OVERHEAD for value, _ in memory._entries.values())
    assert memory._size == held <= 50_000


def test_a_forked_child_is_not_locked_out(cache):
    cache.set_many({"a": VECTOR})
    with embedding_cache._memory._lock:  # another thread's, at the moment of the fork
        pid = os.fork()
        if pid == 0:
            signal_after(5)
            os._exit(0 if cache.get_many(["a"]) == {"a": VECTOR} else 1)
    assert os.waitpid(pid, 0)[1] == 0


def signal_after(seconds: int) -> None:
    import signal

    signal.alarm(seconds)


# A cache that fails ------------------------------------------------------------------


@pytest.fixture
def failing(settings) -> type[FailingCache]:
    settings.CACHES = {"default": {"BACKEND": f"{__name__}.FailingCache"}}
    FailingCache.calls = 0
    return FailingCache


def test_a_failing_cache_knows_nothing_and_is_left_alone_for_a_pause(cache, failing, caplog):
    for key in "abc":
        assert cache.get_many([key]) == {}
        cache.set_many({key: VECTOR})

    assert failing.calls == 1
    assert "ConnectionError" in caplog.text
    assert SECRET not in caplog.text
    assert cache.get_many(["a"]) == {"a": VECTOR}  # as this process knows it


def test_a_failing_cache_is_asked_again_after_the_pause(cache, failing, monkeypatch):
    monkeypatch.setattr(embedding_cache, "PAUSE", 1e-9)

    cache.get_many(["a"])
    cache.get_many(["a"])

    assert failing.calls == 2


def test_a_frozen_redis_costs_one_timeout(settings, redis_server):
    settings.CACHES = {
        "default": {
            "BACKEND": "django_services.cache.RedisCache",
            "LOCATION": redis_server.url,
            "OPTIONS": {"SOCKET_TIMEOUT": 0.2},
        }
    }
    cache = EmbeddingCache("default", timeout=60)
    cache.set_many({"a": VECTOR})
    embedding_cache.forget()
    redis_server.freeze()
    started = embedding_cache.time.monotonic()

    for _ in range(20):
        assert cache.get_many(["a"]) == {}

    assert embedding_cache.time.monotonic() - started < 2  # 20 timeouts are 4 s


def test_redis_gives_back_what_it_was_given(settings, redis_url):
    settings.CACHES = {
        "default": {"BACKEND": "django_services.cache.RedisCache", "LOCATION": redis_url}
    }
    cache = EmbeddingCache("default", timeout=60)
    vectors = dict(zip(digests(["a", "b"], **SERVER), (VECTOR, VECTOR[4:] * 2), strict=True))
    cache.set_many(vectors)
    embedding_cache.forget()

    assert cache.get_many([*vectors, "unknown"], 2) == vectors


def test_a_backend_that_does_not_load_is_said(cache, settings):
    settings.CACHES = {"default": {"BACKEND": "no.such.Cache"}}

    with pytest.raises(InvalidCacheBackendError):
        cache.get_many(["a"])


# embed() -----------------------------------------------------------------------------


@pytest.fixture
def kept(settings, fake_openai):
    settings.DJANGO_SERVICES = fake_openai.settings(EMBEDDING_CACHE="default")
    return fake_openai


def embed(*texts: str, **options: Any) -> np.ndarray:
    return openai_service.embed(texts, **options)


def aembed(*texts: str, **options: Any) -> np.ndarray:
    return asyncio.run(openai_service.aembed(texts, **options))


@pytest.mark.parametrize("verb", [embed, aembed])
def test_only_texts_that_are_not_known_are_sent(verb, kept):
    first = verb("a", "b")

    second = verb("c", "b", "d", "a", "c")

    assert kept.texts == ["a", "b", "c", "d"]
    assert second[1].tolist() == first[1].tolist()
    expected = [kept.vector(text) for text in ("c", "b", "d", "a", "c")]
    np.testing.assert_allclose(second, expected, atol=1e-6)


@pytest.mark.parametrize("verb", [embed, aembed])
def test_known_texts_are_no_request(verb, kept):
    verb("a")
    embedding_cache.forget()

    np.testing.assert_array_equal(verb("a"), verb("a"))
    assert len(kept.calls) == 1


def test_without_the_setting_every_text_is_sent(fake_openai):
    embed("a")
    embed("a")

    assert fake_openai.texts == ["a", "a"]


def test_a_call_may_ask_for_the_cache_or_against_it(kept, settings):
    embed("a", cache=False)
    embed("a")
    embed("a", cache=False)
    with uncached():
        embed("a")
    assert kept.texts == ["a"] * 4
    settings.DJANGO_SERVICES = kept.settings()

    embed("b", cache=True)
    embed("b", cache=True)

    assert kept.texts == ["a"] * 4 + ["b"]


def test_tenants_do_not_share_embeddings(kept):
    for tenant in ("acme", "other", "acme"):
        with attributed(tenant=tenant):
            embed("a")

    assert kept.texts == ["a", "a"]


def test_lengths_are_kept_apart(kept):
    for dimensions in (8, 4, 8, 4):
        assert embed("a", dimensions=dimensions).shape == (1, dimensions)

    assert len(kept.calls) == 2


def test_outcomes_are_never_taken_from_the_cache(kept):
    embed("a")
    openai_service.embed_outcomes(["a"])

    assert kept.texts == ["a", "a"]


def test_an_error_names_the_position_that_was_given(kept):
    embed("a", "b")
    kept.refuse(lambda text: text == "bad")

    with pytest.raises(InvalidRequest, match=r"texts\[3\]"):
        embed("a", "new", "b", "bad", "newer")


def test_what_was_paid_for_before_an_error_is_kept(kept):
    kept.refuse(lambda text: text == "bad")
    with pytest.raises(InvalidRequest):
        embed("a", "bad", "b")
    paid = len(kept.calls)

    embed("a", "b")

    assert len(kept.calls) == paid


def test_a_faulty_vector_is_not_kept(kept):
    kept.change(lambda rows: [{**rows[0], "embedding": encoded([0.0] * DIMENSIONS)}], times=9)
    with pytest.raises(InvalidResponse):
        embed("a")
    kept._changes.clear()

    np.testing.assert_allclose(embed("a")[0], kept.vector("a"), atol=1e-6)


def test_a_fault_beside_known_texts_is_the_new_texts(kept):
    embed("a", "b")
    kept.change(lambda rows: [{**row, "embedding": encoded([0.0] * 8)} for row in rows], times=9)

    with pytest.raises(InvalidResponse, match=r"texts\[2\]"):
        embed("a", "b", "new")


def test_a_planted_vector_is_embedded_anew(kept, monkeypatch):
    monkeypatch.setattr(LocMemCache, "get", lambda *_, **__: b"planted")

    np.testing.assert_allclose(embed("a")[0], kept.vector("a"), atol=1e-6)


def test_the_embedded_model_needs_no_cache(settings, reads):
    options = {"BASE_URL": conf.EMBEDDED_URL, "EMBEDDING_CACHE": "default"}
    settings.DJANGO_SERVICES = {"OPENAI": {"default": options}}

    embed("a")

    assert reads == []


def test_a_failing_cache_does_not_break_a_call(kept, failing, caplog):
    caplog.set_level(logging.DEBUG)

    np.testing.assert_allclose(embed(SECRET)[0], kept.vector(SECRET), atol=1e-6)
    assert SECRET not in caplog.text


# The raw client ----------------------------------------------------------------------


def answer(**asked: Any) -> dict[str, Any] | None:
    body = embedding_cache.answer_for({"model": "m", **asked}, REMOTE)
    assert asyncio.run(embedding_cache.aanswer_for({"model": "m", **asked}, REMOTE)) == body
    return json.loads(body) if body else None


def keep(*texts: str, **asked: Any) -> None:
    rows = [{"index": index, "embedding": [3.0, 4.0 + index]} for index in range(len(texts))]
    reading = read_embeddings({"data": rows}, len(texts))
    embedding_cache.keep({"model": "m", "input": list(texts), **asked}, reading, REMOTE)


def test_a_request_whose_texts_are_all_known_is_answered_whole():
    keep("a", "b")

    assert answer(input=["b", "a"]) == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [3.0, 5.0]},
            {"object": "embedding", "index": 1, "embedding": [3.0, 4.0]},
        ],
        "model": "m",
        "usage": {"prompt_tokens": 0, "total_tokens": 0},
    }


def test_an_answer_comes_in_the_encoding_that_was_asked_for():
    keep("a")

    (row,) = answer(input="a", encoding_format="base64")["data"]
    assert base64.b64decode(row["embedding"]) == VECTOR


def test_async_answers_are_kept_too():
    reading = read_embeddings({"data": [{"index": 0, "embedding": [3.0, 4.0]}]}, 1)
    asyncio.run(embedding_cache.akeep({"model": "m", "input": "a"}, reading, REMOTE))

    assert answer(input=["a"]) is not None


@pytest.mark.parametrize(
    "asked",
    [
        {"input": ["a", "unknown"]},
        {"input": "a", "dimensions": 2},
        {"input": "a", "dimensions": True},
        {"input": "a", "model": "other"},
        {"input": "a", "model": None},
        {"input": "a", "input_type": "query"},  # of other servers: another vector
        {"input": [1, 2, 3]},
        {"input": [[1, 2], [3]]},
        {"input": []},
        {"input": None},
        {},
    ],
)
def test_what_is_not_known_for_sure_is_not_answered(asked):
    keep("a")

    assert answer(**asked) is None


def test_an_answer_with_faults_is_not_kept():
    reading = read_embeddings({"data": [{"index": 0, "embedding": [3.0, float("nan")]}]}, 1)
    embedding_cache.keep({"model": "m", "input": "a"}, reading, REMOTE)

    assert answer(input="a") is None


def test_vectors_of_two_lengths_are_no_answer():
    keep("a")
    caches["default"].set(
        "django_services:embedding:" + digests(["b"], server=REMOTE.base_url, model="m")[0],
        VECTOR * 2,
    )

    assert answer(input=["a", "b"]) is None


def test_uncached_and_an_alias_without_the_setting_ask_nobody(reads):
    keep("a")
    asked = {"model": "m", "input": "a"}

    with uncached():
        assert embedding_cache.answer_for(asked, REMOTE) is None
    assert embedding_cache.answer_for(asked, conf.OpenAISettings(api_key="k")) is None
    assert reads == []
