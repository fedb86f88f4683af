from __future__ import annotations

import json
import time
from decimal import Decimal

import httpx2
import openai
import pytest

from django_services import conf
from django_services.openai_service import get_openai_client
from django_services.openai_transport import call, waiting
from django_services.resilience import Backoff
from django_services.signals import openai_call_finished

from .conftest import MODEL, SyncCaller

ATTEMPTS = call.BACKOFFS["request"].attempts


# Retries


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
def test_a_passing_fault_is_retried(caller, fake_openai, status):
    fake_openai.fail(status, times=2)

    caller.embed()

    assert len(fake_openai.calls) == 3


def test_a_broken_connection_is_retried(caller, fake_openai):
    fake_openai.reset()
    fake_openai.cut_short()

    caller.embed()

    assert len(fake_openai.calls) == 3


@pytest.mark.parametrize(
    ("status", "code"), [(400, None), (401, None), (404, None), (429, "insufficient_quota")]
)
def test_a_lasting_fault_is_not_retried(caller, fake_openai, status, code):
    fake_openai.fail(status, code)

    with pytest.raises(openai.APIStatusError):
        caller.embed()

    assert len(fake_openai.calls) == 1


def test_attempts_end(caller, fake_openai):
    fake_openai.fail(500, times=100)

    with pytest.raises(openai.InternalServerError):
        caller.embed()

    assert len(fake_openai.calls) == ATTEMPTS


def test_a_call_that_the_sdk_retries_is_not_retried_below(caller, fake_openai):
    fake_openai.fail(500, times=100, headers={"retry-after-ms": "1"})

    with pytest.raises(openai.InternalServerError):
        caller.retrying(2)

    assert len(fake_openai.calls) == ATTEMPTS + 2


@pytest.mark.parametrize(("told", "calls"), [("false", 1), ("true", 2)])
def test_the_apis_own_word_on_retries_is_obeyed(caller, fake_openai, told, calls):
    status = 500 if told == "false" else 400
    fake_openai.fail(status, headers={"x-should-retry": told})

    if told == "false":
        with pytest.raises(openai.InternalServerError):
            caller.embed()
    else:
        caller.embed()

    assert len(fake_openai.calls) == calls


def test_retry_after_is_waited_for(fake_openai, monkeypatch):
    waits = []
    monkeypatch.setattr(waiting, "instead", waits.append)
    fake_openai.fail(429, headers={"retry-after": "7"})

    SyncCaller().embed()

    assert len(waits) == 1
    assert 7 <= waits[0] <= 7.7


def test_retry_after_beyond_the_deadline_is_told_and_not_waited_for(caller, fake_openai):
    fake_openai.fail(429, headers={"retry-after": "3600"})

    with pytest.raises(openai.RateLimitError):
        caller.embed()

    assert len(fake_openai.calls) == 1


def test_an_upload_that_can_be_read_once_is_not_sent_again(fake_openai):
    fake_openai.fail(500)
    request = httpx2.Request("POST", f"{fake_openai.url}/files", content=iter([b"{}"]))
    transport = get_openai_client()._client._transport

    assert transport.handle_request(request).status_code == 500
    assert len(fake_openai.calls) == 1


# Deadline


def test_slow_drip_ends_at_the_deadline(caller, fake_openai, settings):
    settings.DJANGO_SERVICES = fake_openai.settings(DEADLINE=0.3, TIMEOUT=0.2)
    fake_openai.drip(pause=0.02)
    started = time.monotonic()

    with pytest.raises(openai.APITimeoutError):
        caller.embed()

    assert time.monotonic() - started < 5
    assert len(fake_openai.calls) == 1


def test_the_deadline_counts_all_attempts(caller, fake_openai, settings, monkeypatch):
    settings.DJANGO_SERVICES = fake_openai.settings(DEADLINE=0.3, TIMEOUT=0.2)
    monkeypatch.setitem(call.BACKOFFS, "request", Backoff(attempts=1_000, first=0.1, longest=0.1))
    fake_openai.fail(503, times=1_000)
    started = time.monotonic()

    # The last answer before the deadline, or none where it passed during an attempt.
    with pytest.raises((openai.InternalServerError, openai.APITimeoutError)):
        caller.embed()

    assert time.monotonic() - started < 5
    assert len(fake_openai.calls) < 1_000


def test_a_longer_timeout_of_the_call_moves_its_deadline(fake_openai):
    settings = conf.OpenAISettings(deadline=1)
    policy = call.Policy(alias="default", base_url=fake_openai.url, settings=settings)
    request = httpx2.Request(
        "GET", f"{fake_openai.url}/models", extensions={"timeout": {"read": 600.0}}
    )

    assert call.Call(policy, request).deadline.remaining > 500


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(caller, fake_openai, status):
    fake_openai.redirect(f"{fake_openai.url}/elsewhere", status)

    with pytest.raises(openai.APIStatusError, match="OPENAI_BASE_URL"):
        caller.embed("a prompt")

    assert [call.path for call in fake_openai.calls] == ["/v1/embeddings"]


# Validation


@pytest.mark.parametrize(
    "content",
    [
        "",
        "null",
        "<html>",
        '{"data": [',
        '{"data": []}',
        '{"object": "list"}',
        json.dumps({"data": [{"index": 3, "embedding": [1.0]}]}),
    ],
)
def test_an_unusable_answer_is_retried(caller, fake_openai, content):
    fake_openai.answer(content)

    response = caller.embed()

    assert len(response.data) == 1
    assert len(fake_openai.calls) == 2


def test_the_raw_client_never_gets_an_unusable_answer(caller, fake_openai):
    fake_openai.change(lambda rows: rows[:-1], times=100)

    with pytest.raises(openai.InternalServerError, match="1 embeddings for 2 texts"):
        caller.embed(["one", "two"])


def test_the_raw_client_never_gets_a_faulty_vector(caller, fake_openai):
    fake_openai.change(lambda rows: [rows[0], rows[1] | {"embedding": [0.0] * 8}])

    with pytest.raises(openai.InternalServerError, match=r"index 1.*all zeros"):
        caller.embed(["one", "two"])

    assert len(fake_openai.calls) == 1


def test_other_endpoints_pass_untouched(caller, fake_openai):
    assert [model.id for model in caller.models()] == ["a-model"]


def test_a_good_answer_knows_how_long_it_took(fake_openai):
    response = get_openai_client().embeddings.with_raw_response.create(input="x", model=MODEL)

    assert response.elapsed.total_seconds() > 0


def test_a_stream_reaches_the_caller_piece_by_piece(fake_openai):
    fake_openai.answer(
        'data: {"id": "1", "choices": []}\n\ndata: [DONE]\n\n',
        headers={"content-type": "text/event-stream"},
    )

    stream = get_openai_client().chat.completions.create(model="m", messages=[], stream=True)

    assert not stream.response.is_stream_consumed
    assert [chunk.id for chunk in stream] == ["1"]


# The signal


def test_the_signal_tells_of_a_good_call(caller, fake_openai, finished):
    caller.embed(["one", "two"])

    (payload,) = finished
    assert payload.pop("elapsed_ms") > 0
    assert payload == {
        "alias": "default",
        "endpoint": "/embeddings",
        "model": MODEL,
        "outcome": "ok",
        "status": 200,
        "request_id": "req-1",
        "attempts": 1,
        "input_tokens": 2,
        "cached_tokens": 0,
        "output_tokens": None,
        "is_estimated": False,
        "cost": Decimal("0.00000004"),
        "is_embedded": False,
        "tenant": "",
        "user": "",
        "feature": "",
    }


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ((401, None), "AuthenticationFailed"),
        ((429, "insufficient_quota"), "QuotaExhausted"),
        ((400, None), "InvalidRequest"),
    ],
)
def test_the_signal_names_the_error(caller, fake_openai, finished, fault, outcome):
    fake_openai.fail(*fault)

    with pytest.raises(openai.APIStatusError):
        caller.embed()

    assert [(each["outcome"], each["status"]) for each in finished] == [(outcome, fault[0])]


def test_the_signal_tells_once_of_a_call_of_several_attempts(caller, fake_openai, finished):
    fake_openai.reset(times=ATTEMPTS)

    with pytest.raises(openai.APIConnectionError):
        caller.embed()

    assert [(each["outcome"], each["status"]) for each in finished] == [
        ("ServiceUnavailable", None)
    ]


def test_a_receiver_that_fails_does_not_fail_the_call(caller, fake_openai):
    def fail(**payload):
        raise ValueError

    openai_call_finished.connect(fail)
    try:
        assert caller.embed().data
    finally:
        openai_call_finished.disconnect(fail)
