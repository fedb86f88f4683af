"""What governs a call besides its own retries: breaker, limits, budgets, cache, streams."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from decimal import Decimal

import openai
import pytest

from django_services import openai_service
from django_services.conf import Limit
from django_services.exceptions import (
    AuthenticationFailed,
    BudgetExceeded,
    ConfigurationError,
    QuotaExhausted,
    RateLimited,
    ServiceUnavailable,
)
from django_services.openai_service import attributed, embed, get_openai_client, profile
from django_services.openai_transport import call, telemetry, waiting
from django_services.openai_transport.controls import controls_of
from django_services.resilience import Backoff

CHAT = "gpt-6-luna"


@pytest.fixture
def configure(fake_openai, settings):
    """Give the fake's alias further settings."""

    def change(**entries):
        services = fake_openai.settings()
        services["OPENAI"]["default"] |= entries
        settings.DJANGO_SERVICES = services

    return change


@pytest.fixture
def waits(monkeypatch):
    """The seconds that were waited, in no time."""
    waited: list[float] = []
    monkeypatch.setattr(waiting, "instead", waited.append)
    return waited


def answer_chat(fake, *, prompt=10, completion=5, times=1):
    body = {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": CHAT,
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant"}}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion},
    }
    fake.answer(json.dumps(body), times=times)


def chat(content="hello", **options):
    return get_openai_client().chat.completions.create(
        model=CHAT, messages=[{"role": "user", "content": content}], **options
    )


def spent():
    return sum((each.usd for each in controls_of("default").budgets.spent()), Decimal(0))


# The breaker


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ((401, "invalid_api_key"), AuthenticationFailed),
        ((401, None), AuthenticationFailed),
        ((429, "insufficient_quota"), QuotaExhausted),
    ],
    ids=["key", "key without a code", "quota"],
)
def test_what_no_waiting_helps_is_asked_once(fake_openai, fault, error):
    fake_openai.fail(*fault, times=5)

    for _ in range(5):
        with pytest.raises(error):
            embed(["a text"])

    assert len(fake_openai.calls) == 1


def test_a_refusal_of_the_breaker_says_so_to_the_raw_client(caller, fake_openai, finished):
    fake_openai.fail(401)

    for _ in range(2):
        with pytest.raises(openai.AuthenticationError) as caught:
            caller.embed()

    assert "Not sent" in str(caught.value)
    assert [each["attempts"] for each in finished] == [1, 0]
    assert finished[-1]["cost"] == 0


def test_a_server_that_is_down_is_left_alone_and_then_probed(configure, fake_openai):
    configure(BREAKER_FAILURES=2, BREAKER_PAUSE=0.2)
    fake_openai.fail(503, times=call.BACKOFFS["request"].attempts)

    with pytest.raises(ServiceUnavailable):
        embed(["a text"])
    arrived = len(fake_openai.calls)
    with pytest.raises(ServiceUnavailable, match="Not sent"):
        embed(["a text"])
    assert len(fake_openai.calls) == arrived

    time.sleep(0.25)
    assert len(embed(["a text"])) == 1


def test_a_bad_key_of_one_caller_shuts_out_nobody_else(fake_openai):
    fake_openai.fail(401)
    theirs = get_openai_client().with_options(api_key="sk-of-a-user")

    with pytest.raises(openai.AuthenticationError):
        theirs.models.list()

    assert get_openai_client().models.list()


def test_a_refused_text_is_no_failure_of_the_server(configure, fake_openai):
    configure(BREAKER_FAILURES=1)
    fake_openai.fail(400, times=3)

    for _ in range(3):
        with pytest.raises(openai.BadRequestError):
            chat()

    assert len(fake_openai.calls) == 3


# Limits


def test_a_call_waits_for_its_turn(configure, fake_openai, waits, caller):
    configure(REQUESTS_PER_MINUTE=2, DEADLINE=90)

    for _ in range(3):
        caller.embed()

    assert len(waits) == 1
    assert 55 < waits[0] < 65
    assert len(fake_openai.calls) == 3


def test_a_turn_beyond_the_deadline_is_refused(configure, fake_openai, caller):
    configure(REQUESTS_PER_MINUTE=1, DEADLINE=10)
    caller.embed()

    with pytest.raises(openai.RateLimitError, match="REQUESTS_PER_MINUTE"):
        caller.embed()

    assert len(fake_openai.calls) == 1


def test_a_verb_tells_when_its_turn_would_come(configure):
    configure(REQUESTS_PER_MINUTE=1, DEADLINE=10)
    embed(["a text"])

    with pytest.raises(RateLimited) as caught:
        embed(["a text"])

    assert 50 < caught.value.retry_after < 70


def test_a_model_has_its_own_limit(configure, fake_openai):
    configure(MODEL_LIMITS={CHAT: {"REQUESTS_PER_MINUTE": 1}}, DEADLINE=10)
    answer_chat(fake_openai)
    chat()

    with pytest.raises(openai.RateLimitError):
        chat()

    assert len(embed(["another model"])) == 1


def test_the_tokens_really_used_are_counted(configure, fake_openai):
    configure(TOKENS_PER_MINUTE=1_000, DEADLINE=10)
    answer_chat(fake_openai, prompt=900, completion=50)
    chat()

    with pytest.raises(openai.RateLimitError, match="TOKENS_PER_MINUTE"):
        chat("word " * 90)


def test_texts_are_packed_by_what_a_minute_lets_through(configure, fake_openai, waits):
    configure(TOKENS_PER_MINUTE=400, DEADLINE=3_600)

    embed([f"{number} " + "word " * 30 for number in range(10)])

    assert len(fake_openai.texts) == 10
    assert len(fake_openai.calls) == 5


def test_a_long_retry_after_holds_back_every_later_call(fake_openai, caller):
    fake_openai.fail(429, headers={"retry-after": "3600"})

    for _ in range(3):
        with pytest.raises(openai.RateLimitError):
            caller.embed()

    assert len(fake_openai.calls) == 1


@pytest.mark.parametrize("kind", ["requests", "tokens"])
def test_a_limit_that_the_service_says_is_used_up_is_heeded(fake_openai, kind):
    fake_openai.headers |= {
        f"x-ratelimit-remaining-{kind}": "0",
        f"x-ratelimit-reset-{kind}": "6m0s",
    }
    embed(["a text"])

    with pytest.raises(RateLimited) as caught:
        embed(["a text"])

    assert 350 < caught.value.retry_after <= 360


def test_the_limit_that_the_service_tells_is_kept(fake_openai):
    fake_openai.headers["x-ratelimit-limit-requests"] = "1"
    embed(["the first answer tells"])
    embed(["the limit"])

    with profile("request"), pytest.raises(RateLimited):
        embed(["and it is kept"])

    assert len(fake_openai.calls) == 2


def test_a_call_that_is_cancelled_while_it_waits_gives_its_turn_back(configure, fake_openai):
    configure(REQUESTS_PER_MINUTE=1, DEADLINE=90)
    limiter = controls_of("default").limiter

    async def cancel():
        client = openai_service.get_async_openai_client()
        await client.embeddings.create(model="m", input="x")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.embeddings.create(model="m", input="x")

    asyncio.run(cancel())

    asked = limiter.book("m", tokens=0, limit=Limit(requests=1), patience=90)
    assert 50 < asked.delay < 65


# Profiles


def test_a_task_is_more_patient_than_a_request(monkeypatch, fake_openai, waits):
    monkeypatch.setitem(call.BACKOFFS, "task", Backoff(attempts=8, first=0.001))
    fake_openai.fail(500, times=6)

    with profile("task"):
        assert len(embed(["a text"])) == 1

    assert len(fake_openai.calls) == 7


def test_a_task_has_its_own_deadline(configure, fake_openai, waits):
    configure(DEADLINE=1, TASK_DEADLINE=100)
    fake_openai.fail(429, headers={"retry-after": "20"})

    with profile("task"):
        embed(["a text"])

    assert 20 <= waits[0] <= 22


# Budgets


def test_a_budget_refuses_what_it_may_not_cover(configure, fake_openai, caller):
    configure(DAILY_BUDGET=0.000001)

    with pytest.raises(openai.RateLimitError, match=r"budget of the alias is .* a day"):
        caller.embed("word " * 1_000)

    assert not fake_openai.calls


def test_a_verb_raises_what_names_the_budget(configure):
    configure(MONTHLY_BUDGET=0)

    with pytest.raises(BudgetExceeded, match=r"budget of the alias is .* a month") as caught:
        embed(["a text"])

    assert caught.value.retry_after > 0
    assert not caught.value.retryable


def test_what_a_call_cost_is_taken_from_its_budget(configure, fake_openai):
    configure(DAILY_BUDGET=10)
    answer_chat(fake_openai, prompt=1_000, completion=2_000)

    chat(max_completion_tokens=5_000)

    assert spent() == Decimal("0.1") * 1_000 / 10**6 + Decimal("0.5") * 2_000 / 10**6


@pytest.mark.parametrize("status", [400, 404, 429])
def test_a_refused_call_costs_nothing(configure, fake_openai, status):
    configure(DAILY_BUDGET=10)
    fake_openai.fail(status, headers={"x-should-retry": "false"})

    with pytest.raises(openai.APIStatusError):
        chat(max_completion_tokens=5_000)

    assert spent() == 0


def test_a_tenants_budget_is_its_own(configure, fake_openai):
    configure(BUDGETS=[{"PER": "tenant", "PERIOD": "day", "USD": 0, "NAME": "poor"}])

    with attributed(tenant="poor"), pytest.raises(BudgetExceeded, match="poor"):
        embed(["a text"])
    with attributed(tenant="rich"):
        assert len(embed(["a text"])) == 1


def test_a_model_without_a_price_is_not_sent_under_a_budget(configure, fake_openai):
    configure(DAILY_BUDGET=10)

    with pytest.raises(ConfigurationError, match=r'"my-model".*PRICES|my-model.*PRICES'):
        embed(["a text"], model="my-model", dimensions=8)

    assert not fake_openai.calls


def test_a_price_of_the_project_makes_a_model_affordable(configure, fake_openai):
    configure(DAILY_BUDGET=10, PRICES={"my-model": {"INPUT": 1.0}})

    embed(["a text"], model="my-model", dimensions=8)

    assert spent() > 0


def test_looking_up_costs_nothing(fake_openai, finished):
    get_openai_client().models.list()

    assert [each["cost"] for each in finished] == [0]


def test_what_costs_nothing_needs_no_budget(configure):
    configure(DAILY_BUDGET=0)

    assert get_openai_client().models.list()


# Equal texts


def test_the_raw_client_is_answered_by_the_cache(configure, fake_openai, caller, finished):
    configure(EMBEDDING_CACHE="default")

    first, second = caller.embed("a text"), caller.embed("a text")

    assert second.data[0].embedding == pytest.approx(first.data[0].embedding)
    assert second.usage.total_tokens == 0
    assert len(fake_openai.calls) == len(finished) == 1


def test_the_cache_is_passed_by_on_request(configure, fake_openai, caller):
    configure(EMBEDDING_CACHE="default")
    caller.embed("a text")

    with openai_service.uncached():
        caller.embed("a text")

    assert len(fake_openai.calls) == 2


def test_tenants_share_no_cached_embedding(configure, fake_openai, caller):
    configure(EMBEDDING_CACHE="default")

    for tenant in ("one", "two"):
        with attributed(tenant=tenant):
            caller.embed("a text")

    assert len(fake_openai.calls) == 2


# Streams


def event(body):
    return f"data: {json.dumps(body)}\n\n"


PIECE = event({"id": "1", "choices": [{"index": 0, "delta": {"content": "word"}}]})
USAGE = event(
    {"id": "1", "choices": [], "usage": {"prompt_tokens": 1_000, "completion_tokens": 2_000}}
)
DONE = "data: [DONE]\n\n"
EVENTS = {"content-type": "text/event-stream"}


def test_a_stream_ends_with_its_last_piece(configure, fake_openai, finished):
    configure(DAILY_BUDGET=10)
    fake_openai.answer(PIECE + USAGE + DONE, headers=EVENTS)

    stream = chat(stream=True, max_completion_tokens=5_000)
    before = list(finished)
    list(stream)

    assert not before
    [told] = finished
    assert (told["outcome"], told["input_tokens"], told["output_tokens"]) == ("ok", 1_000, 2_000)
    assert not told["is_estimated"]
    assert spent() == told["cost"] > 0


def test_a_stream_without_usage_is_estimated(fake_openai, finished):
    fake_openai.answer(PIECE * 3 + DONE, headers=EVENTS)

    list(chat(stream=True))

    [told] = finished
    assert told["is_estimated"]
    assert told["output_tokens"] == 3
    assert told["input_tokens"] > 0


@pytest.mark.parametrize(
    ("content", "outcome"),
    [
        (PIECE, "InvalidResponse"),
        (PIECE + event({"error": {"message": "overloaded"}}), "InvalidResponse"),
    ],
    ids=["truncated", "told"],
)
def test_a_broken_stream_is_told(fake_openai, finished, content, outcome):
    fake_openai.answer(content, headers=EVENTS)

    with contextlib.suppress(openai.APIError):
        list(chat(stream=True))

    assert [each["outcome"] for each in finished] == [outcome]


def test_a_download_ends_with_its_bytes(fake_openai, finished):
    fake_openai.answer(b"\0" * 100_000, headers={"content-type": "application/octet-stream"})

    with get_openai_client().files.with_streaming_response.content("file-1") as response:
        size = sum(len(piece) for piece in response.iter_bytes())

    assert size == 100_000
    assert [(each["outcome"], each["input_tokens"]) for each in finished] == [("ok", None)]


def test_a_stream_that_its_reader_leaves_is_told(fake_openai, finished):
    fake_openai.answer(PIECE * 10_000 + DONE, headers=EVENTS)

    stream = chat(stream=True)
    next(iter(stream))
    stream.close()

    assert [each["outcome"] for each in finished] == ["closed"]


def test_an_async_stream_ends_with_its_last_piece(fake_openai, finished):
    fake_openai.answer(PIECE + USAGE + DONE, headers=EVENTS)

    async def read():
        stream = await openai_service.get_async_openai_client().chat.completions.create(
            model=CHAT, messages=[], stream=True
        )
        return [piece async for piece in stream]

    pieces = asyncio.run(read())

    assert len(pieces) == 2
    assert [(each["outcome"], each["output_tokens"]) for each in finished] == [("ok", 2_000)]


# For whom


def test_the_signal_tells_for_whom(caller, finished, fake_openai):
    with attributed(tenant="acme", user=7), attributed(feature="search"):
        caller.embed()

    assert [(each["tenant"], each["user"], each["feature"]) for each in finished] == [
        ("acme", "7", "search")
    ]


def test_a_cancelled_call_is_told(fake_openai, finished):
    fake_openai.latency = 0.5

    async def cancel():
        arrived, loop = asyncio.Event(), asyncio.get_running_loop()
        fake_openai.on_request(lambda: loop.call_soon_threadsafe(arrived.set))
        client = openai_service.get_async_openai_client()
        task = asyncio.create_task(client.embeddings.create(model="m", input="x"))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())

    assert [each["outcome"] for each in finished] == ["CancelledError"]


def test_an_answer_of_the_cache_begins_no_span(configure, monkeypatch, caller):
    configure(EMBEDDING_CACHE="default")
    begun = []
    begin = telemetry.begin
    monkeypatch.setattr(
        telemetry, "begin", lambda *args, **kw: begun.append(1) or begin(*args, **kw)
    )

    caller.embed("a text")
    caller.embed("a text")

    assert len(begun) == 1
