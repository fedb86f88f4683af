from __future__ import annotations

import asyncio
import inspect
import json
import logging
import math
import multiprocessing
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import openai
import pytest
from django.test import RequestFactory
from django.utils.functional import Promise
from django.utils.safestring import mark_safe
from django.utils.translation import gettext_lazy
from django.views.debug import ExceptionReporter
from pydantic import BaseModel

from django_services import embedded, openai_service
from django_services.exceptions import (
    AuthenticationFailed,
    ConfigurationError,
    DimensionMismatch,
    InvalidInput,
    InvalidRequest,
    InvalidResponse,
    QuotaExhausted,
    RateLimited,
    ServiceError,
    ServiceNotConfigured,
    ServiceUnavailable,
)
from django_services.openai_service import (
    acomplete,
    aembed,
    amoderate,
    aping,
    astream,
    complete,
    count_tokens,
    embed,
    embed_outcomes,
    embedding_space,
    get_async_openai_client,
    get_openai_client,
    moderate,
    ping,
    stream,
    warm_up,
)
from django_services.privacy import Texts

from .fake_openai import KEY, FakeOpenAI, chunk, encoded

EMBEDDED = {"OPENAI": {"default": {"BASE_URL": "embedded://"}}}


@pytest.fixture
def embedded_openai(settings):
    settings.DJANGO_SERVICES = EMBEDDED
    yield
    openai_service.close()


def kinds(outcomes):
    """Return each outcome's error class, None for a vector."""
    return [type(each) if isinstance(each, ServiceError) else None for each in outcomes]


def assert_vectors(vectors, fake_openai, texts):
    expected = np.stack([fake_openai.vector(text) for text in texts])
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


# Clients


def test_the_client_is_the_sdks_own(fake_openai):
    assert type(get_openai_client()) is openai.OpenAI


def test_the_client_is_made_once(fake_openai):
    with ThreadPoolExecutor(8) as threads:
        clients = set(threads.map(lambda _: get_openai_client(), range(50)))

    assert len(clients) == 1


def test_a_changed_setting_makes_a_new_client(fake_openai, settings):
    first = get_openai_client()

    settings.DJANGO_SERVICES = fake_openai.settings(API_KEY="sk-another")

    assert get_openai_client() is not first
    assert get_openai_client().api_key == "sk-another"
    assert first.is_closed()


def test_the_sdks_own_retries_and_redirects_are_off(fake_openai):
    client = get_openai_client()

    assert client.max_retries == 0
    assert client._client.follow_redirects is False


def test_the_environment_does_not_reach_the_client(fake_openai, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_BASE_URL"):
        monkeypatch.setenv(name, "https://ambient")

    client = get_openai_client()

    assert (client.api_key, client.organization, client.project) == (KEY, None, None)
    assert str(client.base_url) == f"{fake_openai.url}/"


def test_organization_and_project_are_sent(fake_openai, settings):
    settings.DJANGO_SERVICES = fake_openai.settings(ORGANIZATION="org-1", PROJECT="proj-1")

    embed(["a text"])

    headers = {name.lower(): value for name, value in fake_openai.calls[0].headers.items()}
    assert headers["openai-organization"] == "org-1"
    assert headers["openai-project"] == "proj-1"
    assert headers["authorization"] == f"Bearer {KEY}"


def test_without_a_key_the_variable_is_named(settings):
    settings.DJANGO_SERVICES = {}
    settings.DEBUG = False

    with pytest.raises(ServiceNotConfigured, match="OPENAI_API_KEY"):
        get_openai_client()


def test_without_a_key_debug_gives_the_embedded_model(settings):
    settings.DJANGO_SERVICES = {}
    settings.DEBUG = True

    assert embedding_space() == (embedded.MODEL, embedded.DIMENSIONS)
    assert embed(["a text"]).shape == (1, embedded.DIMENSIONS)

    settings.DEBUG = False
    with pytest.raises(ServiceNotConfigured):
        get_openai_client()


def test_ping_returns_where_the_service_answers(fake_openai):
    ping()

    assert [call.path for call in fake_openai.calls] == ["/v1/models"]


def test_ping_raises_where_the_key_is_refused(fake_openai):
    fake_openai.fail(401)

    with pytest.raises(AuthenticationFailed, match="OPENAI_API_KEY"):
        ping()


def test_ping_of_the_embedded_model_answers(embedded_openai):
    ping()


def test_the_async_ping_does_the_same(fake_openai):
    asyncio.run(aping())
    fake_openai.fail(401)

    with pytest.raises(AuthenticationFailed, match="OPENAI_API_KEY"):
        asyncio.run(aping())


def test_the_async_ping_of_the_embedded_model_answers(embedded_openai):
    asyncio.run(aping())


def test_warm_up_makes_the_clients_without_a_call(fake_openai, settings):
    services = fake_openai.settings()
    services["OPENAI"]["archive"] = services["OPENAI"]["default"]
    settings.DJANGO_SERVICES = services

    warm_up("archive")
    assert not openai_service._clients.is_open("default")
    warm_up()

    assert openai_service._clients.is_open("archive")
    assert openai_service._clients.is_open("default")
    assert not fake_openai.calls


def test_warm_up_tells_at_once_that_there_is_no_key(settings):
    settings.DJANGO_SERVICES = {}
    settings.DEBUG = False

    with pytest.raises(ServiceNotConfigured, match="OPENAI_API_KEY"):
        warm_up()


# Other accounts, keys and servers


def call_all_ways(alias="default"):
    """Make one call with each verb and each client, sync and async."""

    async def call():
        await aembed(["async"], alias=alias)
        await acomplete("async", alias=alias)
        messages = [{"role": "user", "content": "async"}]
        client = get_async_openai_client(alias)
        await client.chat.completions.create(model="gpt-6-luna", messages=messages)

    embed(["sync"], alias=alias)
    complete("sync", alias=alias)
    list(stream("sync", alias=alias))
    moderate(["sync"], alias=alias)
    asyncio.run(call())


def keys_sent(fake_openai):
    calls = [{key.lower(): value for key, value in call.headers.items()} for call in fake_openai]
    return [call.get("authorization", call.get("api-key")) for call in calls]


def test_each_alias_has_its_own_key_and_server(fake_openai, settings):
    other = FakeOpenAI()
    other.start()
    archive = other.settings(API_KEY="sk-archive")["OPENAI"]["default"]
    settings.DJANGO_SERVICES = {"OPENAI": {**fake_openai.settings()["OPENAI"], "archive": archive}}

    call_all_ways("archive")
    embed(["a text"])
    openai_service.close()
    other.stop()

    assert set(keys_sent(other.calls)) == {"Bearer sk-archive"}
    assert len(other.calls) == 7
    assert keys_sent(fake_openai.calls) == [f"Bearer {KEY}"]


@pytest.mark.parametrize("kind", ["callable", "file"])
@pytest.mark.parametrize("api_version", ["", "2026-06-01"], ids=["openai", "azure"])
def test_a_rotated_key_is_the_next_calls_key(fake_openai, settings, tmp_path, kind, api_version):
    secret = tmp_path / "key"
    secret.write_text("sk-first\n")
    given = {"API_KEY_FILE": str(secret)} if kind == "file" else {"API_KEY": secret.read_text}
    settings.DJANGO_SERVICES = fake_openai.settings(
        **{"API_KEY": "", "API_VERSION": api_version} | given
    )

    call_all_ways()
    before = set(keys_sent(fake_openai.calls))
    fake_openai.calls.clear()
    secret.write_text("sk-second-key\n")
    call_all_ways()

    assert before == {"Bearer sk-first"}
    assert set(keys_sent(fake_openai.calls)) == {"Bearer sk-second-key"}


def test_azure_is_reached_at_its_deployments(fake_openai, settings):
    endpoint = fake_openai.url.removesuffix("/v1")
    settings.DJANGO_SERVICES = fake_openai.settings(BASE_URL=endpoint, API_VERSION="2026-06-01")

    call_all_ways()

    assert isinstance(get_openai_client(), openai.AzureOpenAI)
    assert set(keys_sent(fake_openai.calls)) == {KEY}
    assert {call.path for call in fake_openai.calls} == {
        "/openai/deployments/text-embedding-3-small/embeddings?api-version=2026-06-01",
        "/openai/deployments/gpt-6-luna/chat/completions?api-version=2026-06-01",
        "/openai/moderations?api-version=2026-06-01",  # which has no deployments
    }


@pytest.mark.parametrize("key", ["", "sk-\u00fcml\u00e4ut", "two words", None])
def test_a_key_function_that_gives_none_is_told_by_name(fake_openai, settings, key):
    settings.DJANGO_SERVICES = fake_openai.settings(API_KEY=lambda: key)

    with pytest.raises(ConfigurationError, match="API_KEY") as caught:
        embed(["a text"])

    frames = inspect.getinnerframes(caught.value.__traceback__)
    assert not [frame for frame in frames if "/openai/" in frame.filename]


# Tokens


def test_tokens_are_counted_without_a_call_or_a_key(settings):
    settings.DJANGO_SERVICES = {}
    settings.DEBUG = False
    messages = [{"role": "user", "content": "Hello world"}]

    assert count_tokens("Hello world") == 2
    assert count_tokens(["Hello world", "Hello"]) == [2, 1]
    assert count_tokens(messages) > 2
    assert count_tokens([]) == []


@pytest.mark.parametrize("given", [None, 7, b"bytes", ["text", None], [{"role": "user"}, "text"]])
def test_what_has_no_tokens_is_refused(fake_openai, given):
    with pytest.raises(InvalidInput):
        count_tokens(given)


# Vectors


def test_vectors_come_in_the_order_given(fake_openai):
    texts = ["one", "two", "three"]

    vectors = embed(texts)

    assert vectors.dtype == np.float32
    assert_vectors(vectors, fake_openai, texts)


def test_vectors_have_length_one(fake_openai):
    fake_openai.change(lambda rows: [row | {"embedding": encoded([3.0] * 8)} for row in rows])

    assert np.linalg.norm(embed(["a text"])[0]) == pytest.approx(1)


def test_no_texts_give_no_vectors_and_no_call(fake_openai):
    assert embed([]).shape == (0, fake_openai.dimensions)
    assert embed_outcomes([]) == []
    assert not fake_openai.calls


def test_equal_texts_are_sent_once(fake_openai):
    texts = ["a", "b", "a", mark_safe("b"), "a"]

    vectors = embed(texts)

    assert fake_openai.texts == ["a", "b"]
    assert_vectors(vectors, fake_openai, texts)


def test_many_texts_are_packed_into_requests(fake_openai):
    texts = [f"text {number}" for number in range(5_000)]

    vectors = embed(texts)

    assert [len(call.texts) for call in fake_openai.calls] == [2_048, 2_048, 904]
    assert_vectors(vectors, fake_openai, texts)


def test_the_async_verb_does_the_same(fake_openai):
    texts = ["one", "two", "one"]

    assert_vectors(asyncio.run(aembed(texts)), fake_openai, texts)
    assert fake_openai.texts == ["one", "two"]


def test_the_verbs_have_the_same_signature():
    assert inspect.signature(embed).parameters == inspect.signature(aembed).parameters


def test_dimensions_are_sent_where_the_model_can_shorten(fake_openai, settings):
    settings.DJANGO_SERVICES = fake_openai.settings(DIMENSIONS=None)

    embed(["a text"], dimensions=64)

    assert fake_openai.calls[0].body["dimensions"] == 64
    assert fake_openai.calls[0].body["encoding_format"] == "base64"


@pytest.mark.parametrize("model", ["nomic-embed-text", "text-embedding-3-small"])
def test_dimensions_are_not_sent_where_they_are_the_models_own(fake_openai, settings, model):
    own = 768 if model == "nomic-embed-text" else 1_536
    fake_openai.dimensions = own
    settings.DJANGO_SERVICES = fake_openai.settings(EMBEDDING_MODEL=model)

    assert embed(["a text"]).shape == (1, own)
    assert "dimensions" not in fake_openai.calls[0].body


# Which model, of which length


@pytest.mark.parametrize(
    ("options", "asked", "space"),
    [
        ({}, {}, ("text-embedding-3-small", 1_536)),
        ({}, {"dimensions": 512}, ("text-embedding-3-small", 512)),
        ({}, {"model": "text-embedding-3-large"}, ("text-embedding-3-large", 3_072)),
        ({"DIMENSIONS": 256}, {}, ("text-embedding-3-small", 256)),
        (
            {"DIMENSIONS": 256},
            {"model": "text-embedding-3-large"},
            ("text-embedding-3-large", 3_072),
        ),
        ({"EMBEDDING_MODEL": "own", "DIMENSIONS": 768}, {}, ("own", 768)),
        ({}, {"model": "own", "dimensions": 768}, ("own", 768)),
        (
            {"EMBEDDING_MODEL": "openai/text-embedding-3-large"},
            {},
            ("openai/text-embedding-3-large", 3_072),
        ),
        ({}, {"model": embedded.MODEL}, (embedded.MODEL, 256)),
        ({"DIMENSIONS": 1_536}, {"model": embedded.MODEL}, (embedded.MODEL, 256)),
        ({"DIMENSIONS": 64}, {"model": embedded.MODEL}, (embedded.MODEL, 64)),
        ({"BASE_URL": "embedded://"}, {}, (embedded.MODEL, 256)),
        ({"BASE_URL": "embedded://"}, {"dimensions": 32}, (embedded.MODEL, 32)),
    ],
)
def test_the_space_is_told_without_a_call(settings, options, asked, space):
    settings.DJANGO_SERVICES = {"OPENAI": {"default": {"API_KEY": KEY} | options}}

    assert embedding_space(**asked) == space


def test_an_unknown_model_needs_its_dimensions(settings):
    settings.DJANGO_SERVICES = {
        "OPENAI": {"default": {"API_KEY": KEY, "EMBEDDING_MODEL": "nomic-embed-text"}}
    }

    with pytest.raises(
        ConfigurationError, match=r'nomic-embed-text.*\["default"\]\["DIMENSIONS"\]'
    ):
        embedding_space()


@pytest.mark.parametrize("dimensions", [0, -1, 1.5, True, "256", 257])
def test_dimensions_that_the_model_does_not_have_are_refused(embedded_openai, dimensions):
    with pytest.raises(InvalidInput):
        embedding_space(dimensions=dimensions)


def test_the_embedded_model_answers_whatever_the_key(fake_openai):
    vectors = embed(["a text"], model=embedded.MODEL, dimensions=256)

    assert vectors.shape == (1, 256)
    assert not fake_openai.calls


def test_the_embedded_model_answers_without_any_setting(settings):
    settings.DJANGO_SERVICES = {}
    settings.DEBUG = False

    assert embed(["a text"], model=embedded.MODEL).shape == (1, 256)
    assert asyncio.run(aembed(["a text"], model=embedded.MODEL)).shape == (1, 256)


def test_the_embedded_model_says_so_to_the_raw_client(embedded_openai):
    response = get_openai_client().embeddings.create(input="x", model="text-embedding-3-small")

    assert response.model == embedded.MODEL


def test_what_the_embedded_model_cannot_do_names_the_variable(embedded_openai):
    with pytest.raises(openai.NotFoundError, match="OPENAI_API_KEY"):
        get_openai_client().responses.create(model="gpt-6-luna", input="hello")


# Bad inputs


@pytest.mark.parametrize(
    "texts", ["a text", b"bytes", None, 7, {"a set"}, (text for text in "ab"), gettext_lazy("Yes")]
)
@pytest.mark.parametrize("verb", [embed, embed_outcomes])
def test_what_is_no_list_of_texts_is_refused(fake_openai, verb, texts):
    with pytest.raises(InvalidInput, match="list or tuple"):
        verb(texts)

    assert not fake_openai.calls


@pytest.mark.parametrize("text", [None, 7, b"bytes", "", "  \n", "\ud800", "x" * 10_000_000])
def test_a_bad_text_is_named_by_position_before_any_call(fake_openai, text):
    with pytest.raises(InvalidInput, match=r"texts\[1\]"):
        embed(["fine", text])

    assert not fake_openai.calls


def test_a_bad_text_spoils_no_other_outcome(fake_openai):
    outcomes = embed_outcomes(["one", None, "two", "", "three"])

    assert kinds(outcomes) == [None, InvalidInput, None, InvalidInput, None]
    assert_vectors(outcomes[::2], fake_openai, ["one", "two", "three"])


@pytest.mark.parametrize(
    "text", ["a\x00b", "😀", "مرحبا", gettext_lazy("Yes"), mark_safe("<b>"), "x" * 9_000]
)
def test_unusual_texts_are_embedded(fake_openai, text):
    plain = str(text) if isinstance(text, Promise) else text

    assert_vectors(embed([text]), fake_openai, [plain])


def test_other_sequences_are_accepted(fake_openai):
    assert_vectors(embed(Texts(["one", "two"])), fake_openai, ["one", "two"])


# FO6: fewer, more, shuffled, duplicated vectors


def test_shuffled_vectors_are_mapped_by_index(fake_openai):
    fake_openai.change(lambda rows: rows[::-1])

    vectors = embed(["one", "two", "three"])

    assert_vectors(vectors, fake_openai, ["one", "two", "three"])


WRONG_ROWS = {
    "fewer": lambda rows: rows[:-1],
    "more": lambda rows: [*rows, rows[0]],
    "doubled": lambda rows: [rows[0], rows[0], *rows[2:]],
    "shifted": lambda rows: [row | {"index": row["index"] + 1} for row in rows],
    "none": lambda rows: [],
    "null": lambda rows: None,
}


@pytest.mark.parametrize("change", WRONG_ROWS.values(), ids=WRONG_ROWS)
def test_vectors_that_cannot_be_mapped_are_asked_for_again(fake_openai, change):
    fake_openai.change(change)

    assert_vectors(embed(["one", "two"]), fake_openai, ["one", "two"])


@pytest.mark.parametrize("change", WRONG_ROWS.values(), ids=WRONG_ROWS)
def test_vectors_that_can_never_be_mapped_reach_no_text(fake_openai, change):
    fake_openai.change(change, times=100)

    outcomes = embed_outcomes(["one", "two"])

    assert kinds(outcomes) == [InvalidResponse, InvalidResponse]
    assert all(outcome.retryable for outcome in outcomes)


# FO7: NaN, infinity, zero, wrong dimension, strings


@pytest.mark.parametrize(
    "row",
    [
        [math.nan] * 8,
        [math.inf] * 8,
        [0.0] * 8,
        [1.0] * 7,
        [1.0] * 9,
        ["1.0"] * 8,
        None,
        "no base64",
        encoded([math.nan] * 8),
        encoded([1.0] * 9),
    ],
)
def test_a_faulty_vector_spoils_only_its_own_text(fake_openai, row):
    fake_openai.change(lambda rows: [rows[0], rows[1] | {"embedding": row}, rows[2]])

    outcomes = embed_outcomes(["one", "two", "three"])

    assert kinds(outcomes) == [None, InvalidResponse, None]
    assert_vectors([outcomes[0], outcomes[2]], fake_openai, ["one", "three"])


def test_the_right_length_wins_against_a_majority(fake_openai):
    fake_openai.change(
        lambda rows: [rows[0], *(row | {"embedding": [1.0] * 9} for row in rows[1:])]
    )

    assert kinds(embed_outcomes(["one", "two", "three"])) == [
        None,
        InvalidResponse,
        InvalidResponse,
    ]


def test_embed_names_the_text_without_a_vector(fake_openai):
    fake_openai.change(lambda rows: [rows[0], rows[1] | {"embedding": [0.0] * 8}])

    with pytest.raises(InvalidResponse, match=r"texts\[2\].*all zeros"):
        embed(["one", "one", "two"])


def test_a_model_of_another_length_is_told_with_the_setting(fake_openai):
    fake_openai.change(lambda rows: [row | {"embedding": [1.0] * 12} for row in rows])

    with pytest.raises(DimensionMismatch, match=r'12 dimensions, not 8.*\["DIMENSIONS"\] to 12'):
        embed_outcomes(["one", "two"])


# FO9: one bad text in a batch


@pytest.mark.parametrize("bad", [0, 1, 37, 50, 98, 99])
def test_one_refused_text_costs_few_calls_and_no_other_vector(fake_openai, bad):
    texts = [f"text {number}" for number in range(100)]
    fake_openai.refuse(lambda text: text == texts[bad])

    outcomes = embed_outcomes(texts)

    assert [place for place, kind in enumerate(kinds(outcomes)) if kind] == [bad]
    assert isinstance(outcomes[bad], InvalidRequest)
    good = texts[:bad] + texts[bad + 1 :]
    assert_vectors(outcomes[:bad] + outcomes[bad + 1 :], fake_openai, good)
    assert len(fake_openai.calls) <= 2 * math.log2(100) + 2


def test_several_refused_texts_are_all_found(fake_openai):
    texts = [f"text {number}" for number in range(20)]
    bad = {texts[place] for place in (0, 1, 2, 9, 19)}
    fake_openai.refuse(lambda text: text in bad)

    outcomes = embed_outcomes(texts)

    assert {texts[place] for place, kind in enumerate(kinds(outcomes)) if kind} == bad


def test_embed_names_the_refused_text(fake_openai):
    fake_openai.refuse(lambda text: text == "bad")

    with pytest.raises(InvalidRequest, match=r"texts\[2\]"):
        embed(["one", "two", "bad"])


def test_a_request_refused_whatever_its_texts_is_not_halved_in_vain(fake_openai):
    fake_openai.refuse(lambda text: True)

    with pytest.raises(InvalidRequest):
        embed_outcomes([f"text {number}" for number in range(100)])

    assert len(fake_openai.calls) <= 2 * math.log2(100) + 2


def test_only_bad_texts_are_told_from_a_refused_request(fake_openai):
    fake_openai.refuse(lambda text: text.startswith("bad"))

    outcomes = embed_outcomes(["bad 1", "bad 2", "bad 3", "bad 4"])

    assert kinds(outcomes) == [InvalidRequest] * 4


@pytest.mark.parametrize("param", ["model", "dimensions"])
def test_a_refused_parameter_is_not_sought_among_the_texts(fake_openai, param):
    fake_openai.fail(400, param=param)

    with pytest.raises(InvalidRequest):
        embed_outcomes(["one", "two"])

    assert len(fake_openai.calls) == 1


# What concerns the whole service


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ((401, "invalid_api_key"), AuthenticationFailed, "OPENAI_API_KEY"),
        ((403, None), AuthenticationFailed, "OPENAI_API_KEY"),
        ((404, "model_not_found"), InvalidRequest, "model"),
        ((429, "insufficient_quota"), QuotaExhausted, "credit"),
        ((429, "rate_limit_exceeded"), RateLimited, "rate limit"),
        ((500, None), ServiceUnavailable, "later"),
        ((503, None), ServiceUnavailable, "later"),
    ],
)
@pytest.mark.parametrize("verb", [embed, embed_outcomes])
def test_what_concerns_the_service_is_raised(fake_openai, verb, fault, error, words):
    fake_openai.fail(*fault, times=100)

    with pytest.raises(error, match=words) as caught:
        verb(["one", "two"])

    assert type(caught.value) is error
    assert (caught.value.status, caught.value.code) == fault
    assert caught.value.request_id == "req-1"


def test_a_rate_limit_says_when_to_come_back(fake_openai):
    fake_openai.fail(429, headers={"retry-after": "3600"})

    with pytest.raises(RateLimited) as caught:
        embed(["one"])

    assert caught.value.retry_after == 3_600


def test_a_dead_server_is_unavailable(fake_openai, settings):
    settings.DJANGO_SERVICES = fake_openai.settings(BASE_URL="http://127.0.0.1:9/v1")

    with pytest.raises(ServiceUnavailable, match="OPENAI_BASE_URL"):
        embed(["one"])


def test_a_silent_server_is_unavailable_at_the_deadline(fake_openai, settings):
    settings.DJANGO_SERVICES = fake_openai.settings(DEADLINE=0.2, TIMEOUT=0.1)
    fake_openai.drip()

    with pytest.raises(ServiceUnavailable, match="DEADLINE"):
        embed(["one"])


@pytest.mark.parametrize("fault", [401, 429, 400, 500])
def test_errors_survive_a_pickle(fake_openai, fault):
    fake_openai.fail(fault, "a_code", headers={"retry-after": "3600"})
    with pytest.raises(ServiceError) as caught:
        embed(["one"])

    copy = pickle.loads(pickle.dumps(caught.value))

    assert type(copy) is type(caught.value)
    assert (str(copy), vars(copy)) == (str(caught.value), vars(caught.value))


def test_the_async_verb_raises_the_same(fake_openai):
    fake_openai.fail(401)

    with pytest.raises(AuthenticationFailed):
        asyncio.run(aembed(["one"]))


# A redirect, FO12


def test_a_redirect_sends_no_text_on(fake_openai):
    fake_openai.redirect("http://127.0.0.1:9/elsewhere")

    with pytest.raises(ConfigurationError, match="OPENAI_BASE_URL"):
        embed(["a text"])

    assert len(fake_openai.calls) == 1


# FO10: fork after use, two event loops


def _embed_often(queue, start):
    try:
        for number in range(start, start + 50):
            embed([f"text {number}"])
        queue.put(None)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent is to see it
        queue.put(repr(error))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_children_forked_after_use_have_connections_of_their_own(fake_openai):
    embed(["before the fork"])
    fork = multiprocessing.get_context("fork")
    queue = fork.SimpleQueue()

    children = [
        fork.Process(target=_embed_often, args=(queue, number * 1_000)) for number in range(4)
    ]
    for child in children:
        child.start()
    embed(["beside the children"])
    errors = [queue.get() for _ in children]
    for child in children:
        child.join()

    assert errors == [None] * 4
    assert len(set(fake_openai.texts)) == 202


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_starts_without_a_client(fake_openai):
    get_openai_client()
    fork = multiprocessing.get_context("fork")
    queue = fork.SimpleQueue()

    child = fork.Process(target=lambda: queue.put(openai_service._clients.is_open("default")))
    child.start()
    is_open = queue.get()
    child.join()

    assert is_open is False
    assert openai_service._clients.is_open("default")


def test_each_event_loop_has_its_own_client(fake_openai):
    async def use() -> openai.AsyncOpenAI:
        await aembed(["a text"])
        return get_async_openai_client()

    first, second = asyncio.run(use()), asyncio.run(use())

    assert first is not second
    assert type(first) is openai.AsyncOpenAI


def test_two_loops_at_once_do_not_disturb_each_other(fake_openai):
    async def use(name):
        for number in range(20):
            await aembed([f"{name} {number}"])

    threads = [threading.Thread(target=lambda name=name: asyncio.run(use(name))) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(fake_openai.texts)) == 40


def test_the_end_of_a_loop_closes_its_client(fake_openai):
    async def use() -> openai.AsyncOpenAI:
        await aembed(["a text"])
        return get_async_openai_client()

    assert asyncio.run(use()).is_closed()


def test_close_closes_the_clients_of_both_kinds(fake_openai):
    async def use() -> openai.AsyncOpenAI:
        client = get_async_openai_client()
        openai_service.close()
        await asyncio.sleep(0.01)
        return client

    sync_client = get_openai_client()

    assert asyncio.run(use()).is_closed()
    assert sync_client.is_closed()


# FO11: keys and prompts stay out of what people and machines read


CANARIES = SimpleNamespace(key="sk-" + "canary" * 4, prompt="prompt" + "canary" * 3)


def _fault(fake_openai, kind):
    # A server may quote the key and the prompt wherever it likes.
    quoting = f"{CANARIES.key} {CANARIES.prompt}"
    faults = {
        "refused": lambda: fake_openai.fail(400, quoting, message=quoting, param=quoting),
        "key": lambda: fake_openai.fail(401, message=quoting),
        "limit": lambda: fake_openai.fail(429, message=quoting, headers={"retry-after": "3600"}),
        "server": lambda: fake_openai.fail(500, message=quoting, times=9),
        "reset": lambda: fake_openai.reset(times=9),
        "redirect": lambda: fake_openai.redirect(f"http://127.0.0.1:9/{quoting.replace(' ', '')}"),
        "vector": lambda: fake_openai.change(
            lambda rows: [rows[0] | {"embedding": quoting}], times=9
        ),
        "rows": lambda: fake_openai.change(lambda rows: [], times=9),
        "no json": lambda: fake_openai.answer(quoting, times=9),
        "answer": lambda: fake_openai.answer(
            json.dumps({"choices": [{"message": {"content": [quoting]}}], "results": [quoting]}),
            times=9,
        ),
        "refusal": lambda: fake_openai.say("", refusal=quoting),
        "shape": lambda: fake_openai.say(json.dumps({quoting: quoting, "name": [quoting]})),
        "event": lambda: fake_openai.stream({"error": {"message": quoting, "code": quoting}}),
        "odd event": lambda: fake_openai.stream(quoting),
        "cut": lambda: fake_openai.stream(chunk(content=quoting), is_cut=True),
    }
    faults[kind]()


KINDS = ["refused", "key", "limit", "server", "reset", "redirect", "vector", "rows", "no json"]


@pytest.fixture
def canaries(fake_openai, settings):
    settings.DJANGO_SERVICES = fake_openai.settings(API_KEY=CANARIES.key)
    return (CANARIES.key, CANARIES.prompt)


def _raised_by(call) -> ServiceError:
    """Return the error without the frames of the test, which hold the canaries."""
    try:
        call()
    except ServiceError as error:
        frames = error.__traceback__
        while not frames.tb_frame.f_globals["__name__"].startswith("django_services."):
            frames = frames.tb_next
        return error.with_traceback(frames)
    pytest.fail("nothing was raised")


def _pages(error: ServiceError) -> str:
    report = ExceptionReporter(RequestFactory().get("/"), type(error), error, error.__traceback__)
    return report.get_traceback_html() + report.get_traceback_text()


class _Shape(BaseModel):
    name: str


async def _read(pieces):
    return [piece async for piece in pieces]


PROMPT = [{"role": "user", "content": CANARIES.prompt, "name": CANARIES.prompt}]
ASKED = {"instructions": CANARIES.prompt, "user": CANARIES.prompt, "response_model": _Shape}
VERBS = {
    "embed": lambda: embed([CANARIES.prompt]),
    "aembed": lambda: asyncio.run(aembed([CANARIES.prompt])),
    "complete": lambda: complete(PROMPT, **ASKED),
    "acomplete": lambda: asyncio.run(acomplete(PROMPT, **ASKED)),
    "stream": lambda: list(stream(PROMPT, **ASKED)),
    "astream": lambda: asyncio.run(_read(astream(PROMPT, **ASKED))),
    "moderate": lambda: moderate([CANARIES.prompt]),
    "amoderate": lambda: asyncio.run(amoderate([CANARIES.prompt])),
}
COMMON_KINDS = ["refused", "key", "limit", "server", "reset", "redirect", "no json"]
FAULTS_OF_VERBS = [
    *((verb, kind) for verb in VERBS for kind in COMMON_KINDS),
    *((verb, kind) for verb in ("embed", "aembed") for kind in ("vector", "rows")),
    *((verb, "answer") for verb in ("complete", "acomplete", "moderate", "amoderate")),
    *((verb, kind) for verb in ("complete", "astream", "stream") for kind in ("refusal", "shape")),
    *((verb, kind) for verb in ("stream", "astream") for kind in ("event", "odd event", "cut")),
]


@pytest.mark.parametrize(("verb", "kind"), FAULTS_OF_VERBS)
def test_no_error_shows_key_or_prompt(fake_openai, settings, canaries, kind, verb):
    settings.DEBUG = True
    settings.DJANGO_SERVICES = fake_openai.settings(API_KEY=CANARIES.key)
    _fault(fake_openai, kind)

    error = _raised_by(VERBS[verb])

    seen = [_pages(error), repr(error), str(error), repr(vars(error)), repr(pickle.dumps(error))]
    assert "django_services/openai_" in seen[0]
    assert [canary for canary in canaries if any(canary in text for text in seen)] == []


@pytest.mark.parametrize(
    "texts",
    [
        CANARIES.prompt,
        CANARIES.prompt.encode(),
        {CANARIES.prompt},
        [CANARIES.prompt, None],
        [CANARIES.prompt + "\ud800"],
        [CANARIES.prompt * 300_000],
    ],
    ids=["str", "bytes", "set", "list with None", "surrogate", "too long"],
)
@pytest.mark.parametrize("verb", [embed, moderate])
def test_no_bad_input_shows_on_the_debug_page(settings, canaries, texts, verb):
    settings.DEBUG = True

    error = _raised_by(lambda: verb(texts))

    assert isinstance(error, InvalidInput)
    assert CANARIES.prompt not in _pages(error)


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        (CANARIES.prompt.encode(), {}),
        ([CANARIES.prompt], {}),
        (CANARIES.prompt * 1_000_000, {}),
        ([{"role": "user", "content": CANARIES.prompt + "\ud800"}], {}),
        ([{"role": "user", "content": CANARIES.prompt, "name": {CANARIES.prompt}}], {}),
        (CANARIES.prompt, {"instructions": CANARIES.prompt + "\ud800"}),
        (CANARIES.prompt, {"user": {CANARIES.prompt}}),
        (CANARIES.prompt, {"tools": [{CANARIES.prompt}]}),
        (CANARIES.prompt, {"extra_headers": {"x-own": CANARIES.prompt + "\ud800"}}),
    ],
)
@pytest.mark.parametrize(
    "verb", [complete, lambda *given, **options: list(stream(*given, **options))]
)
def test_no_bad_prompt_shows_on_the_debug_page(settings, canaries, prompt, options, verb):
    settings.DEBUG = True

    error = _raised_by(lambda: verb(prompt, **options))

    assert isinstance(error, InvalidInput)
    assert CANARIES.prompt not in _pages(error)


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_no_log_shows_key_or_prompt(fake_openai, canaries, caplog, kind):
    caplog.set_level(logging.DEBUG)
    if kind:
        _fault(fake_openai, kind)

    for verb in VERBS.values():
        try:
            verb()
        except ServiceError:
            continue

    assert {"openai._base_client", "httpx2"} <= {record.name for record in caplog.records} or kind
    shown = [f"{record.getMessage()} {record.__dict__}" for record in caplog.records]
    leaks = [
        (canary, text)
        for canary in canaries
        for text in shown
        # The redirect's own address and the answer's headers are the server's to choose.
        if canary in text and kind != "redirect"
    ]
    assert leaks == []


def test_no_repr_shows_the_key(fake_openai, canaries):
    client = get_openai_client()

    shown = [repr(client), str(client), repr(client._client), repr(client._client._transport)]
    shown += [repr(openai_service._clients), repr(vars(openai_service._clients))]
    assert not any(CANARIES.key in text for text in shown)
