"""Capture around migrations: after each, the triggers are those of the models.

Indexes of which one was missing or altered are noted as a whole. PostgreSQL's
triggers are there all the time. SQLite alters a table by rebuilding it, which
triggers do not survive and may forbid. So there they are dropped before and made
again after, and what was written in between is looked at. A migration that fails
midway sends no `post_migrate`: its triggers stay missing, which `services check`
says, until the next ``migrate`` or ``embeddings sync``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations import Migration, RunPython, RunSQL, SeparateDatabaseAndState
from django.db.migrations.operations.base import Operation

from ..declaration import Embeddings, indexes_on
from ..statements import own_transaction
from . import CAPTURE, install, missing, sqlite
from .backlog import enqueue_all, forget_gone
from .watch import tables

#: Operations of these modules do what the statements say that they run.
_PLAIN_OPERATIONS = (
    "django.db.migrations.operations.",
    "django.contrib.postgres.operations",
    "django.contrib.contenttypes.management",  # renames content types
)

#: Statements that change no row of a table that is there.
_HARMLESS = re.compile(
    r"\s*(SELECT|CREATE|PRAGMA|SAVEPOINT|RELEASE|ROLLBACK|BEGIN|COMMIT|EXPLAIN)\b", re.IGNORECASE
)
_REFERENCE = re.compile(r'\bREFERENCES\s+("[^"]+"|\w+)', re.IGNORECASE)


class Absence:
    """The time without triggers on one connection, and what is seen of it.

    Args:
        intact: Labels of the indexes whose triggers were all there before.
        opaque: Whether the plan has operations that may write unseen.
    """

    def __init__(
        self, connection: BaseDatabaseWrapper, *, intact: set[str], opaque: bool, names: set[str]
    ) -> None:
        self.intact = intact
        self.opaque = opaque
        self._connection = connection
        self._session = connection.connection
        self._version = _data_version(connection)
        self._watched = _any_of(names)
        self._written: set[str] = set()
        connection.execute_wrappers.insert(0, self._look)

    def end(self) -> None:
        """Look no longer."""
        self._connection.execute_wrappers.remove(self._look)

    def may_have_missed(self, index: Embeddings) -> bool:
        """Tell whether a write to an index's sources may have gone by unnoted."""
        return (
            self.opaque
            or index.label not in self.intact
            or self._others_wrote()
            or not self._written.isdisjoint(_compared(_tables(index)))
        )

    def _look(
        self,
        execute: Callable[..., Any],
        sql: str,
        params: Any,
        many: bool,
        context: dict[str, Any],
    ) -> Any:
        if not _HARMLESS.match(sql):
            found = self._watched.findall(_REFERENCE.sub("", sql))
            self._written.update(_compared(found))
        return execute(sql, params, many, context)

    def _others_wrote(self) -> bool:
        # The number can only be compared within one session.
        return (
            self._connection.connection is not self._session
            or _data_version(self._connection) != self._version
        )


_absences: dict[str, Absence] = {}


def before(*, using: str, plan: Iterable[tuple[Migration, bool]] | None = None, **_: Any) -> None:
    """Drop the triggers that the plan's table rebuilds would meet (`pre_migrate`)."""
    connection = connections[using]
    plan = list(plan or ())
    if connection.vendor != "sqlite" or not plan:
        return
    if using in _absences:
        # That of a migration of this process that failed: its triggers are missing.
        _absences.pop(using).end()
    indexes = indexes_on(using)
    with transaction.atomic(using):
        incomplete = sqlite.missing(connection, indexes)
        sqlite.uninstall(connection)
        _absences[using] = Absence(
            connection,
            intact={index.label for index in indexes}.difference(incomplete),
            opaque=any(map(_is_opaque, _operations(plan))),
            names={name for index in indexes for name in _tables(index)},
        )


def after(*, using: str, **kwargs: Any) -> None:
    """Make the triggers again, and note what may have changed meanwhile (`post_migrate`)."""
    connection = connections[using]
    if connection.vendor not in CAPTURE:
        return
    absence = _absences.pop(using, None)
    indexes = {index.label: index for index in indexes_on(using)}
    with own_transaction(using):
        # What is installed is locked: nobody else writes from here on.
        for index in (indexes[label] for label in install(using)):
            if absence is None or absence.may_have_missed(index):
                enqueue_all(index, using)
    if absence is not None:
        absence.end()
    if "plan" not in kwargs:
        _forget_flushed(using, indexes.values())


def _forget_flushed(using: str, indexes: Iterable[Embeddings]) -> None:
    """Take back the notes that flush made in emptying one table after the other."""
    incomplete = missing(using)
    for index in indexes:
        if index.label not in incomplete:
            forget_gone(index, using)


def _operations(plan: Iterable[tuple[Migration, bool]]) -> Iterable[Operation]:
    for migration, _ in plan:
        yield from _parts(migration.operations)


def _parts(operations: Iterable[Operation]) -> Iterable[Operation]:
    """Return operations without those that only hold others or change no database."""
    for operation in operations:
        if isinstance(operation, SeparateDatabaseAndState):
            yield from _parts(operation.database_operations)
        else:
            yield operation


def _is_opaque(operation: Operation) -> bool:
    """Tell whether an operation may write rows by ways that its statements do not show."""
    if type(operation) in (RunPython, RunSQL):
        return True
    return not type(operation).__module__.startswith(_PLAIN_OPERATIONS)


def _tables(index: Embeddings) -> set[str]:
    return {*tables(index), index.chunk_model._meta.db_table}


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    # Longest first, since the first alternative that matches wins.
    words = sorted(map(re.escape, _compared(names)), key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(words) or '(?!)'})(?!\w)", re.IGNORECASE)


def _compared(names: Iterable[str]) -> set[str]:
    return {name.strip('"').lower() for name in names}


def _data_version(connection: BaseDatabaseWrapper) -> int:
    """Return a number that changes when another connection writes to the database."""
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA data_version")
        return int(cursor.fetchone()[0])
