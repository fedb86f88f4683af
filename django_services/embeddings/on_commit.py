"""Embedding what a transaction wrote, once it is committed: ``EMBED_ON_COMMIT``.

``inline`` embeds a few sources at the end of the request that wrote them,
``task`` hands them to a worker through Django's Tasks, ``off`` leaves them to
``manage.py embeddings sync``. A remote API is never called inside a request
unless the project says so.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable
from typing import Any

from django.core.cache import caches
from django.core.signals import request_finished
from django.db import DatabaseError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.signals import post_save

from .. import conf
from ..exceptions import ConfigurationError, ServiceError
from .capture import wrap_connections
from .capture.watch import tables
from .declaration import indexes_on
from .models import Change

logger = logging.getLogger(__name__)

#: A statement that writes, and the table that it names.
_WRITE = re.compile(
    r"\s*(?:INSERT(?:\s+OR\s+\w+)?\s+INTO|REPLACE\s+INTO|UPDATE(?:\s+OR\s+\w+)?|DELETE\s+FROM)"
    r"\s+(?:\"([^\"]+)\"|(\w+))",
    re.IGNORECASE,
)
_DEBOUNCE = 60  # seconds that one task may wait in the queue before another is added


def connect() -> None:
    """Notice writes on every connection; called once, when the apps are ready."""
    # Signals see neither update() nor bulk_create() nor raw SQL; the connection does.
    wrap_connections(_notice_write)
    post_save.connect(_after_save, dispatch_uid=__name__)
    request_finished.connect(_after_request, dispatch_uid=__name__)


def mode(alias: str) -> str:
    """Return what happens to a database's changes after a commit.

    Without a setting: ``inline`` where the embedded model answers, which costs a
    fraction of a millisecond a text, ``task`` where tasks run elsewhere, else ``off``.
    """
    chosen = conf.embeddings().on_commit
    if chosen is not None:
        return chosen
    try:
        services = {conf.openai(index.alias).is_embedded for index in indexes_on(alias)}
    except ConfigurationError:
        return "off"
    if services == {True}:
        return "inline"
    from .tasks import run_elsewhere

    return "task" if services and run_elsewhere() else "off"


class _AfterCommit:
    """Works on a database's changes; one a transaction."""

    def __init__(self, alias: str) -> None:
        self.alias = alias

    def __call__(self) -> None:
        chosen = mode(self.alias)
        if chosen == "inline":
            embed_inline(self.alias)
        elif chosen == "task":
            enqueue_task(self.alias)


def embed_inline(alias: str) -> None:
    """Embed up to ``INLINE_LIMIT`` pending sources; the writer never sees an error of it."""
    from .sync import sync_pending

    limit = conf.embeddings().inline_limit
    try:
        if not Change.objects.using(alias).exists():
            return
        sync_pending(alias, limit=limit)
        left = Change.objects.using(alias).exists()
    except (ServiceError, DatabaseError) as error:
        logger.warning(
            "The write is saved, its embeddings are pending (%s). "
            "Once that is mended, run: manage.py embeddings sync",
            type(error).__name__,
        )
        return
    if left:
        logger.info("More than %s sources are pending: run manage.py embeddings sync", limit)


def enqueue_task(alias: str) -> None:
    """Hand a database's changes to a worker; one waiting task serves many commits."""
    from .tasks import embed_changes

    if caches[conf.embeddings().query_cache].add(debounce_key(alias), 1, timeout=_DEBOUNCE):
        embed_changes.enqueue(alias)


def debounce_key(alias: str) -> str:
    return f"django_services:embed:{alias}"


def _notice_write(
    execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]
) -> Any:
    connection = context["connection"]
    _work_on_finished(connection)
    result = execute(sql, params, many, context)
    write = _WRITE.match(sql) if isinstance(sql, str) else None
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
