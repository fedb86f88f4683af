"""Recording an operation: which are, and whether here or in the writer's thread."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from .. import conf
from ..exceptions import ConfigurationError
from .models import database
from .storing import Row, row_of, store
from .writer import writer

logger = logging.getLogger(__name__)


def record(payload: Mapping[str, Any]) -> None:
    """Record an operation as `signals.openai_call_finished` tells it; never raises.

    What the embedded model answered costs nothing, and is not recorded.
    """
    if payload["is_embedded"]:
        return
    try:
        settings = conf.ledger()
        if not settings.enabled:
            return
        connection = connections[database(settings)]
    except ConfigurationError as error:
        logger.warning("The ledger records nothing: %s", error)
        return
    row = row_of(payload)
    if _is_synchronous(connection):
        _store_here(row, connection)
    else:
        writer.put(row, after=_waited_for(connection))


def is_written_at_once() -> bool:
    """Tell whether an operation's row would be written before `record` returns; no I/O."""
    try:
        settings = conf.ledger()
        return settings.enabled and _is_synchronous(connections[database(settings)])
    except ConfigurationError:
        return False


def _is_synchronous(connection: BaseDatabaseWrapper) -> bool:
    """Tell whether rows are written in the caller's thread, within its transaction.

    In tests, which look at the rows and roll them back; and where no other
    connection would meet the same database.
    """
    return (
        # What setup_test_environment() sets, as every test runner does.
        hasattr(sys.modules.get("django.core.mail"), "outbox")
        or bool(conf.fake_network)
        or (connection.vendor == "sqlite" and connection.is_in_memory_db())  # type: ignore[attr-defined]
    )


def _waited_for(connection: BaseDatabaseWrapper) -> BaseDatabaseWrapper | None:
    # SQLite refuses the write of a transaction that has read what another changed since:
    # the caller's must not fail because of us.
    is_open = connection.vendor == "sqlite" and connection.in_atomic_block
    return connection if is_open else None


def _store_here(row: Row, connection: BaseDatabaseWrapper) -> None:
    was_open = connection.connection is not None
    try:
        if not was_open:
            _refuse_to_wait(connection)
        store([row], 1)
    except Exception as error:  # noqa: BLE001 - the call went well, whatever became of its row
        # A broken transaction, which would take the row back, or a test that may use no
        # database: no warning.
        logger.debug("The ledger did not record a call: %s", type(error).__name__)
    finally:
        if not was_open:
            # A thread of the test's own, which does not know that it has a connection now.
            connection.close()


def _refuse_to_wait(connection: BaseDatabaseWrapper) -> None:
    """Have SQLite say at once that it is locked, in a thread of the test's own.

    It is the test that holds the lock, and it may be waiting for this thread.
    """
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA busy_timeout = 0")
