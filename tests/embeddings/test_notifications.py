"""Waking a watcher on a real server."""

from __future__ import annotations

import time

import psycopg
import pytest
from django.db import connection

from django_services.embeddings.models import CHANNEL
from django_services.embeddings.notifications import Notifications
from django_services.embeddings.threads import Stop

from .. import databases
from ..testapp.models import Article

LONG = 30.0  # seconds; a test that waits so long has failed


@pytest.fixture
def stop() -> Stop:
    return Stop()


def waited(notifications: Notifications, seconds: float, stop: Stop) -> float:
    start = time.monotonic()
    notifications.wait(seconds, stop)
    return time.monotonic() - start


@pytest.fixture
def notifications(without_inline):
    notifications = Notifications(["default"])
    yield notifications
    notifications.close()


@pytest.fixture
def without_inline(request, settings):
    settings.DJANGO_SERVICES = settings.DJANGO_SERVICES | {"EMBEDDINGS": {"ON_COMMIT": "off"}}
    request.getfixturevalue("transactional_db")


pytestmark = [pytest.mark.usefixtures("database"), pytest.mark.django_db(transaction=True)]

on_postgresql_only = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


@on_postgresql_only
def test_a_write_wakes_who_waits(notifications, stop):
    Article.objects.create(title="One")

    assert waited(notifications, LONG, stop) < LONG / 2


def test_nothing_written_wakes_nobody(notifications, stop):
    assert waited(notifications, 0.3, stop) >= 0.3


def test_a_stop_wakes_who_waits(notifications, stop):
    stop.set()

    assert waited(notifications, LONG, stop) < LONG / 2


@on_postgresql_only
def test_a_burst_wakes_once(notifications, stop):
    for number in range(5):
        Article.objects.create(title=str(number))
    notifications.wait(LONG, stop)

    assert waited(notifications, 0.3, stop) >= 0.3


@on_postgresql_only
def test_a_lost_session_is_opened_again(notifications, stop):
    with psycopg.connect(databases.address(connection), autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = %s",
            [f"LISTEN {CHANNEL}"],
        )
    notifications.wait(LONG, stop)

    waited(notifications, 0.1, stop)
    Article.objects.create(title="One")

    assert waited(notifications, LONG, stop) < LONG / 2


def test_a_project_may_choose_the_clock_alone(settings, stop, without_inline):
    settings.DJANGO_SERVICES = settings.DJANGO_SERVICES | {
        "EMBEDDINGS": {"ON_COMMIT": "off", "NOTIFY": False}
    }
    notifications = Notifications(["default"])
    Article.objects.create(title="One")

    assert waited(notifications, 0.3, stop) >= 0.3
