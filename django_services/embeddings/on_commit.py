"""Noticing what a transaction wrote, so that it is embedded once it is committed."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable
from typing import Any

from django.core.signals import request_finished
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.signals import post_save

from .capture import wrap_connections
from .declaration import indexes_on

logger = logging.getLogger(__name__)

#: A statement that writes, and the table that it names.
_WRITE = (
    r"\s*(?:INSERT(?:\s+OR\s+\w+)?\s+INTO|REPLACE\s+INTO|UPDATE(?:\s+OR\s+\w+)?|DELETE\s+FROM)"
    r"\s+(?:\"([^\"]+)\"|(\w+))"
)


def connect() -> None:
    """Notice writes on every connection; called once, when the apps are ready."""
    # Signals see neither update() nor bulk_create() nor raw SQL; the connection does.
    wrap_connections(_notice_write)
    post_save.connect(_after_save, dispatch_uid=__name__)
    request_finished.connect(_after_request, dispatch_uid=__name__)


class _AfterCommit:
    """Works on a database's changes; one a transaction."""

    def __init__(self, alias: str) -> None:
        self.alias = alias

    def __call__(self) -> None:
        from .after_commit import work_on_changes  # not loaded where nothing is written

        work_on_changes(self.alias)


def _notice_write(
    execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]
) -> Any:
    connection = context["connection"]
    _work_on_finished(connection)
    result = execute(sql, params, many, context)
    write = re.match(_WRITE, sql, re.IGNORECASE) if isinstance(sql, str) else None
    if write is not None and write[write.lastindex or 0] in _watched_tables(connection.alias):
        if connection.in_atomic_block or " RETURNING " not in sql:
            _schedule(connection)
        else:
            # In autocommit the write is not over before its rows are fetched, which
            # the signal, the next statement or the end of the request tells.
            connection.django_services_wrote = True
    return result


@functools.cache
def _watched_tables(alias: str) -> frozenset[str]:
    from .capture.watch import tables

    return frozenset(table for index in indexes_on(alias) for table in tables(index))


def _after_save(using: str, **_: Any) -> None:
    _work_on_finished(connections[using])


def _after_request(**_: Any) -> None:
    for connection in connections.all(initialized_only=True):
        _work_on_finished(connection)


def _work_on_finished(connection: BaseDatabaseWrapper) -> None:
    if getattr(connection, "django_services_wrote", False) and not connection.in_atomic_block:
        connection.django_services_wrote = False  # type: ignore[attr-defined]
        _schedule(connection)


def _schedule(connection: BaseDatabaseWrapper) -> None:
    if not any(isinstance(entry[1], _AfterCommit) for entry in connection.run_on_commit):
        transaction.on_commit(_AfterCommit(connection.alias), connection.alias, robust=True)
