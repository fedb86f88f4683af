"""Rows as the table has them, and the removal of old ones."""

from __future__ import annotations

import datetime

import pytest
from django.utils import timezone

from django_services import ledger
from django_services.ledger import storing
from django_services.ledger.models import database
from django_services.ledger.storing import Row, row_of, store, usage_of
from django_services.models import Usage

from .calls import PAYLOAD, end_call

both = pytest.mark.usefixtures("database")


@pytest.mark.django_db
@both
def test_rows_that_are_written_again_are_stored_once():
    # As after a connection that was lost in the middle of a commit.
    rows = [row_of(PAYLOAD) for _ in range(5)]

    store(rows[:3], 2)
    store(rows, 2)

    assert Usage.objects.count() == 5


def test_ids_are_in_the_order_of_time():
    ids = [Row(at, PAYLOAD, noise).id for at, noise in [(1.5, b"\xff" * 10), (2.0, b"\0" * 10)]]

    assert ids == sorted(ids)
    assert [each.version for each in ids] == [7, 7]
    assert {each.variant for each in ids} == {"specified in RFC 4122"}


@pytest.mark.django_db
@both
@pytest.mark.parametrize(
    ("told", "stored"), [("a\x00b", "ab"), ("a\ud800b", "a?b"), ("x" * 300, "x" * 255)]
)
def test_any_text_can_be_stored(told, stored):
    end_call(feature=told)

    assert Usage.objects.get().feature == stored


def test_times_are_naive_without_time_zones(settings):
    settings.USE_TZ = False
    row = row_of(PAYLOAD)

    assert usage_of(row).at.tzinfo is None


def test_times_are_utc():
    assert usage_of(Row(0.0, PAYLOAD, b"")).at == datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


@pytest.mark.django_db
@both
def test_prune_removes_what_is_older(monkeypatch):
    monkeypatch.setattr(storing, "PRUNED_AT_ONCE", 2)
    for _ in range(5):
        end_call()
    before = timezone.now()
    end_call(model="newer")

    assert ledger.prune(before) == 5
    assert Usage.objects.get().model == "newer"


@pytest.fixture
def two_databases(settings):
    settings.DATABASES = {**settings.DATABASES, "ledger": settings.DATABASES["default"]}
    return settings


@pytest.mark.filterwarnings("ignore:Overriding setting DATABASES")
def test_the_setting_says_which_database(two_databases):
    two_databases.DJANGO_SERVICES = {"LEDGER": {"DATABASE": "ledger"}}

    assert database() == "ledger"
    assert Usage.objects.all().db == "ledger"
    assert Usage.objects.using("default").all().db == "default"


class Router:
    def db_for_write(self, model, **hints):
        return "ledger" if model is Usage else None


def test_else_the_routers_say_it(settings):
    settings.DATABASE_ROUTERS = [Router()]

    assert Usage.objects.all().db == "ledger"
