"""Which operations are recorded, and how it does no harm to the caller."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import closing
from decimal import Decimal

import pytest
from asgiref.sync import async_to_sync
from django.db import connection, connections, transaction

from django_services import ledger, openai_service
from django_services.models import Usage
from tests.testapp.models import Plain

from .calls import PAYLOAD, end_call

both = pytest.mark.usefixtures("database")
committed = pytest.mark.django_db(transaction=True)
rolled_back = pytest.mark.django_db


def ledger_settings(**section):
    return {"OPENAI": {"default": {"BASE_URL": "embedded://"}}, "LEDGER": section}


# In tests: at once, by the caller's own connection


@rolled_back
@both
def test_a_row_has_all_that_was_told():
    end_call()

    row = Usage.objects.values().get()
    told = PAYLOAD | {"ms": PAYLOAD["elapsed_ms"]}
    assert {name: row[name] for name in row if name in told} == {
        name: told[name] for name in row if name in told
    }
    assert set(row) - set(told) == {"id", "at"}
    assert abs(row["at"].timestamp() - time.time()) < 60


@rolled_back
def test_a_call_over_the_network_is_recorded(fake_openai):
    with openai_service.attributed(tenant="acme", feature="search"):
        openai_service.embed(["a text"])

    row = Usage.objects.get()
    assert (row.endpoint, row.model) == ("/embeddings", "text-embedding-3-small")
    assert (row.outcome, row.status, row.attempts) == ("ok", 200, 1)
    assert (row.tenant, row.feature) == ("acme", "search")
    assert row.input_tokens
    assert row.cost


@rolled_back
def test_an_async_call_is_recorded(fake_openai):
    async def call() -> int:
        await openai_service.aembed(["a text"])
        return await Usage.objects.acount()

    assert async_to_sync(call)() == 1


@rolled_back
def test_what_the_embedded_model_answered_is_not_recorded():
    end_call(is_embedded=True)

    assert not Usage.objects.exists()


@rolled_back
def test_nothing_is_recorded_where_the_ledger_is_off(settings):
    settings.DJANGO_SERVICES = ledger_settings(ENABLED=False)

    end_call()

    assert not Usage.objects.exists()


@rolled_back
@both
def test_what_nobody_knows_is_null():
    nobody_knows = dict.fromkeys(
        ("cost", "input_tokens", "output_tokens", "status", "request_id", "model")
    )

    end_call(**nobody_knows)

    row = Usage.objects.get()
    assert (row.cost, row.input_tokens, row.output_tokens, row.status) == (None,) * 4
    assert (row.request_id, row.model) == ("", "")


@rolled_back
def test_what_sent_nothing_cost_nothing():
    end_call(attempts=0, cost=None)

    assert Usage.objects.get().cost == Decimal()


def test_a_test_without_a_database_notices_nothing(caplog):
    end_call()

    assert not [each for each in caplog.records if each.levelno > logging.DEBUG]


@rolled_back
@both
def test_a_broken_transaction_is_left_alone():
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        transaction.set_rollback(True)
        end_call()
        raise ZeroDivisionError

    assert not Usage.objects.exists()


@rolled_back
@both
def test_a_missing_table_breaks_no_transaction(monkeypatch):
    monkeypatch.setattr(Usage._meta, "db_table", "nowhere")

    end_call()

    assert Plain.objects.create(name="lamp").pk


# In production: by a thread of the ledger's own


@committed
@both
def test_a_row_outlives_the_callers_rollback(in_thread):
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        Plain.objects.create(name="lamp")
        end_call()
        raise ZeroDivisionError

    assert ledger.flush()
    assert Usage.objects.count() == 1
    assert not Plain.objects.exists()


@committed
@both
def test_a_broken_transaction_loses_no_row(in_thread):
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        transaction.set_rollback(True)
        end_call()
        raise ZeroDivisionError

    assert ledger.flush()
    assert Usage.objects.count() == 1


@committed
def test_an_open_transaction_on_sqlite_is_not_written_into(in_thread, settings):
    settings.DJANGO_SERVICES = ledger_settings(FLUSH_SECONDS=0.01)
    tried = threading.Event()
    write, in_thread._write = in_thread._write, lambda rows: (tried.set(), write(rows))

    with transaction.atomic():
        end_call()
        was_tried = tried.wait(0.1)

    assert not was_tried
    assert tried.wait(10)
    assert ledger.flush()
    assert Usage.objects.count() == 1


@committed
def test_a_write_lock_that_somebody_holds_on_sqlite_loses_no_row(in_thread):
    with closing(connection.copy()) as other, other.cursor() as cursor:
        cursor.execute("BEGIN IMMEDIATE")
        end_call()
        in_time = ledger.flush(0.05)
        cursor.execute("COMMIT")

    assert not in_time
    assert ledger.flush(10)
    assert Usage.objects.count() == 1


@committed
@both
def test_rows_are_kept_until_the_table_is_there(in_thread, caplog):
    table = connection.ops.quote_name(Usage._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} RENAME TO away")
        try:
            end_call()
            flushed = [ledger.flush(), ledger.flush()]
        finally:
            cursor.execute(f"ALTER TABLE away RENAME TO {table}")

    assert flushed == [False, False]
    assert ledger.flush()
    assert Usage.objects.count() == 1
    assert len([each for each in caplog.records if each.levelno == logging.WARNING]) == 1


@committed
@both
def test_a_row_that_the_database_cannot_hold_keeps_none_of_the_others(in_thread, caplog):
    end_call()
    end_call(input_tokens=2**70)
    end_call()

    assert ledger.flush()
    assert Usage.objects.count() == 2
    assert "/chat/completions" in caplog.text


@committed
def test_the_ledger_takes_no_connection_of_the_pool(in_thread, database_of_thread):
    end_call()

    assert ledger.flush()
    assert "pool" not in database_of_thread["OPTIONS"]


@pytest.fixture
def database_of_thread(monkeypatch, settings):
    """The settings of the connection that the thread writes with, as the default has a pool."""
    from django_services.ledger import writer

    found = {}

    def store(rows, batch_size):
        found.update(connections["default"].settings_dict)

    options = connections.settings["default"]["OPTIONS"]
    monkeypatch.setitem(options, "pool", {"max_size": 1})
    monkeypatch.setattr(writer, "store", store)
    return found
