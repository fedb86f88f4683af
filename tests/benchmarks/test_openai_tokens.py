"""What a call costs its caller in time: bounding, guessing, counting and pricing it.

Run: python -m pytest -m benchmark -s tests/benchmarks/test_openai_tokens.py
"""

from __future__ import annotations

import functools
import timeit
from collections.abc import Callable

import pytest

from django_services.openai_transport import catalogue, tokens
from django_services.openai_transport.usage import Usage

pytestmark = pytest.mark.benchmark

BODY = {
    "model": "gpt-6-luna",
    "messages": [
        {"role": "system", "content": "You are helpful, and you answer in one sentence."},
        {"role": "user", "content": "What is the capital of France, and how many live there?"},
    ],
    "temperature": 0,
    "max_completion_tokens": 200,
}
USED = Usage(input_tokens=1_200, cached_tokens=1_024, output_tokens=64)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("upper_bound", lambda: tokens.upper_bound(BODY)),
        ("estimate", lambda: tokens.estimate(BODY)),
        ("most_expensive", lambda: tokens.most_expensive(BODY, endpoint="/chat/completions")),
        ("cost", lambda: catalogue.cost("gpt-6-luna", USED)),
        ("find", lambda: catalogue.find("gpt-6-luna")),
    ],
)
def test_a_small_request_takes_less_than_50_microseconds(name, call):
    call()

    microseconds = min(timeit.repeat(call, number=2_000, repeat=7)) / 2_000 * 1e6

    print(f"\n{name}: {microseconds:.1f} µs")
    assert microseconds < 50


@pytest.mark.parametrize("function", [tokens.upper_bound, tokens.estimate, tokens.count])
def test_time_grows_with_the_text_and_no_faster(function):
    words = "the quick brown fox jumps over the lazy dog " * 2_000
    asked = [words, words * 8]
    if function is not tokens.count:
        asked = [BODY | {"messages": [{"role": "user", "content": text}]} for text in asked]
    function(asked[0])

    short, long = (seconds(functools.partial(function, given)) for given in asked)

    print(f"\n{function.__name__}: {long / short:.1f} times as long for 8 times the text")
    assert long < 20 * short


def seconds(call: Callable[[], object]) -> float:
    return min(timeit.repeat(call, number=3, repeat=5))
