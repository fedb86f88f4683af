"""How many calls are in flight, by what a server says."""

from __future__ import annotations

import pytest

from django_services import openai_service
from django_services.openai_transport import pace

MOST = 16


@pytest.fixture(autouse=True)
def nothing_learned():
    pace.forget()
    yield
    pace.forget()


def learn(seconds: float = 1.0, **limits: str) -> None:
    headers = {f"x-ratelimit-limit-{name}": value for name, value in limits.items()}
    pace.learn("default", "model", headers, seconds=seconds, tokens=None)


def in_flight() -> int:
    return pace.in_flight("default", "model", MOST)


def test_a_server_that_says_nothing_gets_the_most():
    learn()

    assert in_flight() == MOST


def test_as_many_as_begin_while_one_is_answered():
    learn(requests="300", seconds=1.0)

    assert in_flight() == 5


def test_tokens_may_be_the_narrower_limit():
    pace.learn(
        "default",
        "model",
        {"x-ratelimit-limit-requests": "6000", "x-ratelimit-limit-tokens": "600000"},
        seconds=1.0,
        tokens=5_000,
    )

    assert in_flight() == 2


def test_there_is_always_one():
    learn(requests="3", seconds=0.1)

    assert in_flight() == 1


def test_one_slow_answer_changes_the_mean_a_little():
    learn(requests="60", seconds=1.0)
    learn(requests="60", seconds=6.0)

    assert in_flight() == 2


@pytest.mark.parametrize("value", ["", "many", "-1", "1e3"])
def test_what_is_no_number_says_nothing(value):
    learn(requests=value)

    assert in_flight() == MOST


def test_models_have_their_own_limits():
    learn(requests="3", seconds=0.1)

    assert pace.in_flight("default", "other", MOST) == MOST


def test_an_answers_headers_are_learned_from(fake_openai):
    fake_openai.headers = {"x-ratelimit-limit-requests": "1"}

    openai_service.embed(["one"])

    assert openai_service.calls_in_flight(most=MOST) == 1
