"""The far end misbehaves: no vector lands on a wrong row, and only bad rows fail."""

import math

import numpy as np
import pytest
from django.db import connection

from django_services.embeddings.declaration import get_index
from django_services.embeddings.models import Failure
from django_services.embeddings.status import status
from django_services.exceptions import AuthenticationFailed, QuotaExhausted
from django_services.testing import embed_pending

from .stored import TOLERANCE
from .stored import create_products as create

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
