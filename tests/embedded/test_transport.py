from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator

import httpx2
import numpy as np
import openai
import pytest

from django_services import embedded
from django_services.embedded import transport
from django_services.embedded.transport import EmbeddedTransport

BASE_URL = "http://embedded/v1"


@pytest.fixture
def client() -> Iterator[openai.OpenAI]:
    http_client = openai.DefaultHttpx2Client(transport=EmbeddedTransport())
    with openai.OpenAI(
        api_key="none", base_url=BASE_URL, http_client=http_client, max_retries=0
    ) as client:
        yield client


def create(client, given="a text", **options):
    options.setdefault("model", "text-embedding-3-small")
    return client.embeddings.create(input=given, **options)


def test_the_sdk_parses_the_answer(client):
    response = create(client, ["a text", "another one"])

    assert [row.index for row in response.data] == [0, 1]
    assert [len(row.embedding) for row in response.data] == [embedded.DIMENSIONS] * 2
    assert response.object == "list"


def test_the_answer_says_which_model_gave_it(client):
    assert create(client, model="text-embedding-3-large").model == embedded.MODEL


def test_usage_counts_the_pieces(client):
    usage = create(client, ["a text", "open a file?"]).usage

    assert (usage.prompt_tokens, usage.total_tokens) == (6, 6)


def test_base64_and_floats_are_the_same_numbers(client):
    coded = create(client, encoding_format="base64").data[0].embedding
    floats = create(client, encoding_format="float").data[0].embedding

    assert np.array_equal(
        np.frombuffer(base64.b64decode(coded), "<f4"), np.asarray(floats, np.float32)
    )


def test_dimensions_shorten_the_vector(client):
    vector = create(client, dimensions=64).data[0].embedding

    assert len(vector) == 64
    assert np.linalg.norm(vector) == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"given": ""}, r"input\[0\].*empty string"),
        ({"given": ["fine", ""]}, r"input\[1\].*empty string"),
        ({"given": []}, "non-empty array"),
        ({"given": ["x"] * 2_049}, "2049 items.*2048"),
        ({"given": [[1, 2, 3]]}, "Token arrays"),
        ({"given": [1, 2, 3]}, "Token arrays"),
        ({"given": "file " * 8_193}, "8193 tokens.*8192"),
        ({"given": ["file " * 8_000] * 38}, "304000 tokens.*300000"),
        ({"dimensions": 257}, r"1 to 256.*DIMENSIONS.*OPENAI_API_KEY"),
        ({"dimensions": 0}, "1 to 256"),
        ({"extra_body": {"dimensions": True}}, "1 to 256"),
        ({"encoding_format": "int8"}, "'float' or 'base64'"),
        ({"extra_body": {"encoding_format": []}}, "'float' or 'base64'"),
        ({"extra_body": {"model": None}}, "model parameter"),
    ],
)
def test_a_bad_request_is_refused_as_by_the_api(client, options, words):
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        create(client, **options)

    assert caught.value.type == "invalid_request_error"
    assert caught.value.param in {"input", "dimensions", "encoding_format", "model"}


def test_another_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError, match="OPENAI_API_KEY") as caught:
        create(client, model="nomic-embed-text")

    assert caught.value.code == "model_not_found"


def test_other_endpoints_say_what_to_set_and_are_not_retried(client):
    answered: list[str] = []
    client._client.event_hooks = {"request": [lambda request: answered.append(request.url.path)]}

    with pytest.raises(openai.NotFoundError, match="OPENAI_API_KEY"):
        client.with_options(max_retries=3).chat.completions.create(model="gpt-6-luna", messages=[])

    assert answered == ["/v1/chat/completions"]


@pytest.mark.parametrize("content", [b"", b"no json", b"[]", b"\xff"])
def test_a_body_that_is_no_object_is_refused(content):
    request = httpx2.Request("POST", f"{BASE_URL}/embeddings", content=content)

    assert transport.answer(request).status_code == 400


@pytest.mark.parametrize("given", ["short", "long text " * 5_000])
def test_the_async_client_is_answered_alike(client, given):
    async def create_async() -> list[float]:
        http_client = openai.DefaultAsyncHttpx2Client(transport=EmbeddedTransport())
        async with openai.AsyncOpenAI(
            api_key="none", base_url=BASE_URL, http_client=http_client
        ) as async_client:
            response = await async_client.embeddings.create(
                input=given[:40_000], model=embedded.MODEL
            )
            return response.data[0].embedding

    assert asyncio.run(create_async()) == create(client, given[:40_000]).data[0].embedding


def test_a_long_request_does_not_hold_up_the_event_loop(monkeypatch):
    threads: list[object] = []
    monkeypatch.setattr(asyncio, "to_thread", lambda call, request: _noting(threads, call, request))
    body = b'{"model": "text-embedding-3-small", "input": "%s"}' % (b"x " * transport.INLINE_BYTES)
    request = httpx2.Request("POST", f"{BASE_URL}/embeddings", content=body)

    asyncio.run(EmbeddedTransport().handle_async_request(request))

    assert threads == [transport.answer]


async def _noting(threads: list[object], call, request) -> httpx2.Response:
    threads.append(call)
    return call(request)
