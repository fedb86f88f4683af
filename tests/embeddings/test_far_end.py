"""The far end misbehaves: no vector lands on a wrong row, and only bad rows fail."""

import datetime
import math
import random
import time
from email.utils import format_datetime

import numpy as np
import pytest
from django.db import connection

from django_services.embeddings import sync
from django_services.embeddings.declaration import get_index
from django_services.embeddings.models import Failure
from django_services.embeddings.status import status
from django_services.exceptions import AuthenticationFailed, QuotaExhausted, RateLimited
from django_services.openai_transport import call
from django_services.testing import embed_pending

from .stored import TOLERANCE
from .stored import create_products as create

#: Seconds after the first call in which those that were sent beside it arrive.
IN_FLIGHT = 0.3

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("database")]


@pytest.fixture
def index(fake_openai, settings):
    settings.DJANGO_SERVICES = fake_openai.settings() | {"EMBEDDINGS": {"ON_COMMIT": "off"}}
    return get_index("testapp.Product")


def status_of(index):
    (found,) = status("default", [index])
    return found


def assert_every_vector_is_its_texts(index, fake_openai):
    for chunk in index.chunk_model.objects.all():
        np.testing.assert_allclose(
            chunk.vector, fake_openai.vector(chunk.text), atol=TOLERANCE[connection.vendor]
        )


def test_vectors_in_another_order_land_on_their_rows(index, fake_openai):
    create(20)
    fake_openai.change(lambda rows: rows[::-1])

    embed_pending()

    assert status_of(index).fresh == 20
    assert_every_vector_is_its_texts(index, fake_openai)


@pytest.mark.parametrize(
    "change",
    [lambda rows: rows[:-1], lambda rows: [*rows, rows[0]], lambda rows: [rows[0], *rows[:-1]]],
    ids=["fewer", "more", "duplicated"],
)
def test_a_wrong_number_of_vectors_stores_nothing_wrong(index, fake_openai, change):
    create(20)
    fake_openai.change(change, times=100)

    embed_pending()

    found = status_of(index)
    assert (found.fresh, found.pending) == (0, 20)
    assert index.chunk_model.objects.count() == 0
    fake_openai._changes.clear()
    Failure.objects.update(retry_at=0)
    embed_pending()
    assert_every_vector_is_its_texts(index, fake_openai)
    assert status_of(index).fresh == 20


@pytest.mark.parametrize(
    "vector",
    [[math.nan] * 8, [math.inf] + [0.5] * 7, [0.0] * 8, [0.5] * 7, ["a"] * 8],
    ids=["NaN", "infinity", "zero", "wrong dimension", "strings"],
)
def test_only_the_row_of_a_bad_vector_fails(index, fake_openai, vector):
    create(20)

    def spoil(rows):
        rows[7]["embedding"] = vector
        return rows

    fake_openai.change(spoil, times=100)

    embed_pending()

    found = status_of(index)
    assert (found.fresh, found.pending) == (19, 1)
    assert Failure.objects.get().error == "InvalidResponse"
    assert_every_vector_is_its_texts(index, fake_openai)


def test_one_bad_text_of_a_hundred_leaves_the_others_stored(index, fake_openai):
    create(100)
    fake_openai.refuse(lambda text: text == "text 61")

    embed_pending()

    found = status_of(index)
    assert (found.fresh, found.failed) == (99, 1)
    assert len(fake_openai.calls) <= 2 * math.log2(100) + 2
    assert_every_vector_is_its_texts(index, fake_openai)


@pytest.mark.parametrize(
    ("status_code", "code", "error"),
    [(429, "insufficient_quota", QuotaExhausted), (401, "invalid_api_key", AuthenticationFailed)],
)
def test_an_account_that_is_refused_costs_one_call_and_no_attempt(
    index, fake_openai, status_code, code, error
):
    create(20)
    fake_openai.fail(status_code, code, times=100)

    with pytest.raises(error):
        embed_pending()

    assert len(fake_openai.calls) == 1
    assert status_of(index).pending == 20
    assert not Failure.objects.exists()


@pytest.mark.parametrize("calls_in_flight", [1, 8])
def test_an_account_that_is_refused_is_asked_by_the_first_calls_only(
    index, fake_openai, settings, monkeypatch, calls_in_flight
):
    # FO3, over several batches: what was in flight is all that arrives.
    settings.DJANGO_SERVICES["EMBEDDINGS"] |= {"CONCURRENCY": calls_in_flight, "BATCH_SIZE": 20}
    monkeypatch.setattr(sync, "TEXTS_IN_CALL", 2)
    create(100)
    fake_openai.fail(401, "invalid_api_key", times=100)

    for _ in range(2):
        with pytest.raises(AuthenticationFailed):
            embed_pending()

    assert len(fake_openai.calls) <= calls_in_flight
    assert status_of(index).pending == 100


def _soon() -> str:
    """Return the next second but one, as HTTP writes a date."""
    moment = datetime.datetime.fromtimestamp(math.ceil(time.time()) + 1, datetime.UTC)
    return format_datetime(moment, usegmt=True)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)  # it is the transport's
@pytest.mark.parametrize(
    "header",
    [
        lambda: {"retry-after": "1"},
        lambda: {"retry-after-ms": "700"},
        lambda: {"retry-after": _soon()},
    ],
    ids=["seconds", "ms", "date"],
)
def test_retry_after_holds_back_every_worker(index, fake_openai, monkeypatch, header):
    # FO1: one call is told to wait, and nobody sends before.
    monkeypatch.setattr(sync, "TEXTS_IN_CALL", 5)
    create(60)
    told = header()
    fake_openai.fail(429, headers=told)
    arrivals = []
    fake_openai.always(lambda: arrivals.append(time.monotonic()))

    embed_pending()

    at = arrivals[0]
    asked = 0.7 if "retry-after-ms" in told else 0.9
    # What was in flight already may still arrive.
    early = [each for each in arrivals[1:] if IN_FLIGHT < each - at < asked]
    assert not early
    assert status_of(index).fresh == 60
    assert_every_vector_is_its_texts(index, fake_openai)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)  # it is the transport's
def test_a_wait_of_an_hour_puts_no_worker_to_sleep(index, fake_openai):
    # FO2: the rows stay pending for later, and nothing is asked meanwhile.
    create(20)
    fake_openai.fail(429, headers={"retry-after": "3600"})
    started = time.monotonic()

    for _ in range(3):
        with pytest.raises(RateLimited) as caught:
            embed_pending()

    assert caught.value.retry_after > 3_000
    assert time.monotonic() - started < 60
    assert len(fake_openai.calls) == 1
    assert status_of(index).pending == 20
    assert not Failure.objects.exists()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)  # it is the transport's
def test_a_third_of_random_faults_costs_few_calls_more(index, fake_openai, monkeypatch):
    # FO4: 500, 503, a reset, half an answer.
    monkeypatch.setattr(sync, "TEXTS_IN_CALL", 2)
    create(200)
    drawn = random.Random(0)
    faults = [
        lambda: fake_openai.fail(500),
        lambda: fake_openai.fail(503),
        fake_openai.reset,
        fake_openai.cut_short,
    ]

    def perhaps_fail():
        if drawn.random() < 0.3:
            drawn.choice(faults)()

    fake_openai.always(perhaps_fail)

    embed_pending()

    assert status_of(index).fresh == 200
    assert 100 < len(fake_openai.calls) <= 1.6 * 100
    assert_every_vector_is_its_texts(index, fake_openai)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)  # it is the transport's
@pytest.mark.parametrize("content", ['{"data": [', "<html>", "null"])
def test_an_unusable_answer_fails_its_rows_for_now_and_no_worker(index, fake_openai, content):
    # FO5: an error of ours that may pass, so the rows are tried again.
    create(3)
    fake_openai.answer(content, times=call.BACKOFFS["task"].attempts)

    embed_pending()
    failures = list(Failure.objects.values_list("error", "set_aside"))
    Failure.objects.update(retry_at=0)
    embed_pending()

    assert set(failures) == {("InvalidResponse", False)}
    assert status_of(index).fresh == 3


def test_a_storm_of_faults_is_outlasted(index, fake_openai):
    create(50)
    fake_openai.fail(500)
    fake_openai.reset()
    fake_openai.cut_short()
    fake_openai.answer("<html>bad gateway</html>")

    for _ in range(3):
        embed_pending()
        Failure.objects.update(retry_at=0)

    assert status_of(index).fresh == 50
    assert_every_vector_is_its_texts(index, fake_openai)
    assert not Failure.objects.exists()
