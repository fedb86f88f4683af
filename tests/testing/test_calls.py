from __future__ import annotations

import pytest

from django_services.testing.calls import Arrivals, Call, endpoint_of, without_secrets

EMBEDDED = {"model": "text-embedding-3-small", "input": ["Bake the bread.", "Stir the soup."]}


def post(endpoint, **body):
    return Call(method="POST", endpoint=endpoint, body=body)


@pytest.fixture
def arrived():
    arrivals = Arrivals()
    arrivals.calls += [
        post("/embeddings", **EMBEDDED),
        post("/chat/completions", model="gpt-6-luna", messages=[{"content": "Hello."}]),
    ]
    return arrivals


# What a call holds


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        ({"input": "one"}, ["one"]),
        ({"input": ["one", "two"]}, ["one", "two"]),
        ({"input": [1, 2, 3]}, []),
        ({"messages": [{"role": "user", "content": "one"}]}, ["one"]),
        ({"messages": [{"content": [{"type": "text", "text": "one"}]}]}, ["one"]),
        ({"instructions": "zero", "input": [{"content": "one"}]}, ["zero", "one"]),
        ({"input": [{"type": "function_call_output", "output": "one"}]}, ["one"]),
        ({"messages": [{"role": "assistant", "content": None}]}, []),
        ({}, []),
    ],
)
def test_the_texts_of_a_call_are_found(body, texts):
    assert post("/any", **body).texts == texts


def test_a_call_shows_no_text():
    shown = repr(post("/embeddings", model="a-model", input=["a secret"]))

    assert shown == "<Call POST /embeddings a-model, 1 texts>"


@pytest.mark.parametrize(
    ("path", "base_url"),
    [
        ("/v1/embeddings", "https://api.openai.com/v1"),
        ("/llm/v2/embeddings", "https://example.com/llm/v2/"),
        ("/openai/deployments/mine/embeddings", "https://mine.openai.azure.com"),
        ("/openai/v1/embeddings", "https://mine.openai.azure.com"),
        ("/v1/embeddings", "http://other"),
        ("/embeddings", "http://other"),
    ],
)
def test_the_endpoint_is_the_path_below_the_base_url(path, base_url):
    assert endpoint_of(path, base_url) == "/embeddings"


def test_keys_are_left_out_of_headers():
    headers = {"authorization": "Bearer key", "api-key": "key", "accept": "application/json"}

    assert without_secrets(headers) == {"accept": "application/json"}


# Assertions


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"times": 2},
        {"endpoint": "/embeddings"},
        {"endpoint": "embeddings", "model": "text-embedding-3-small", "times": 1},
        {"model": "gpt-6-luna"},
        {"endpoint": "/responses", "times": 0},
    ],
)
def test_calls_that_arrived_are_found(arrived, options):
    arrived.assert_called(**options)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"endpoint": "/responses"}, "Expected a call of /responses, found none."),
        ({"times": 3}, "Expected 3 calls, found 2."),
        ({"model": "other"}, "Expected a call with model 'other', found none."),
    ],
)
def test_a_call_that_did_not_arrive_is_told_with_those_that_did(arrived, options, told):
    with pytest.raises(AssertionError) as caught:
        arrived.assert_called(**options)

    first, *rest = str(caught.value).splitlines()
    assert first == told
    assert rest == [
        "What was called:",
        '  POST /embeddings (text-embedding-3-small): "Bake the bread.", "Stir the soup."',
        '  POST /chat/completions (gpt-6-luna): "Hello."',
    ]


def test_nothing_is_told_where_nothing_arrived():
    with pytest.raises(AssertionError, match=r"found none. What was called: nothing"):
        Arrivals().assert_called()


def test_a_call_that_should_not_arrive_is_told(arrived):
    with pytest.raises(AssertionError, match="Expected no call of /embeddings, found 1"):
        arrived.assert_not_called("/embeddings")


def test_no_call_is_as_it_should_be(arrived):
    arrived.assert_not_called("/responses")
    Arrivals().assert_not_called()


@pytest.mark.parametrize("text", ["Bake the bread.", lambda text: "soup" in text])
def test_a_text_that_was_embedded_is_found(arrived, text):
    arrived.assert_embedded(text, model="text-embedding-3-small", times=1)


def test_a_text_that_was_not_embedded_is_told_with_the_nearest(arrived):
    with pytest.raises(AssertionError) as caught:
        arrived.assert_embedded("Bake the breads.")

    assert str(caught.value).splitlines() == [
        'Expected "Bake the breads." to be embedded, found none. The nearest is "Bake the bread.".',
        "What was embedded:",
        '  "Bake the bread."',
        '  "Stir the soup."',
    ]


def test_a_text_of_another_endpoint_is_not_embedded(arrived):
    arrived.assert_not_embedded("Hello.")


def test_a_text_that_should_not_be_embedded_is_told(arrived):
    with pytest.raises(AssertionError, match="not to be embedded, found 1"):
        arrived.assert_not_embedded("Stir the soup.")


def test_a_text_that_was_embedded_too_often_is_told(arrived):
    arrived.calls.append(post("/embeddings", **EMBEDDED))

    with pytest.raises(AssertionError, match="to be embedded 1 times, found 2"):
        arrived.assert_embedded("Stir the soup.", times=1)


def test_long_texts_and_lists_are_told_in_short():
    arrivals = Arrivals()
    arrivals.calls += [post("/embeddings", input=["word " * 1_000] * 30)]

    with pytest.raises(AssertionError) as caught:
        arrivals.assert_embedded("other")

    assert len(str(caught.value)) < 2_000
    assert str(caught.value).endswith("… and 20 more")
