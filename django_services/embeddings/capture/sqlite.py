"""Capture on SQLite: row triggers, compared with what the database holds.

A trigger names tables. SQLite refuses every statement on a table whose trigger
names one that is gone, so a trigger is only made where all that it names is
there; `migrate` and `mend` see to the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from django.db import models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from ..declaration import Embeddings
from ..models import Change, ChunkChange, Failure, Space
from .triggers import PREFIX, Column, absent, compare, labels, log_unfit, unique_name
from .triggers import Trigger as AnyTrigger
from .watch import Join, Watch, column, watches

#: The first row of a log that was begun anew stands for none.
NO_CHUNK = 0

#: Which images of a row an event has.
IMAGES = {"INSERT": ("NEW",), "UPDATE": ("OLD", "NEW"), "DELETE": ("OLD",)}


@dataclass(frozen=True, slots=True)
class Trigger(AnyTrigger):
    """A trigger as it should be."""

    #: Whether it keeps the log of chunks, and not the notes of changed sources.
    watches_chunks: bool = False


def install(connection: BaseDatabaseWrapper, indexes: Iterable[Embeddings]) -> list[str]:
    """Make the database's triggers those of the indexes, as far as its tables allow.

    Returns:
        Labels of the indexes that had a trigger missing or altered and have them all now.
    """
    wanted = [trigger for index in indexes for trigger in triggers(index, connection)]
    if compare(wanted, existing(connection), columns(connection)).is_none:
        return []
    with transaction.atomic(connection.alias), connection.cursor() as cursor:
        # Compared again: another process may have been here before the lock was ours.
        difference = compare(wanted, existing(connection), columns(connection))
        for name in difference.dropped:
            cursor.execute(f"DROP TRIGGER IF EXISTS {_quoted(name)}")
        for trigger in difference.created:
            cursor.execute(trigger.sql)
        _restart_chunk_logs(cursor, difference.created)
    log_unfit(difference, connection.alias)
    return difference.restored()


def uninstall(connection: BaseDatabaseWrapper) -> int:
    """Drop every trigger of this package, declared or not; return how many."""
    return drop(connection, existing(connection))


def missing(connection: BaseDatabaseWrapper, indexes: Iterable[Embeddings]) -> list[str]:
    """Return the labels of indexes whose triggers are not all there as they should be."""
    wanted = (trigger for index in indexes for trigger in triggers(index, connection))
    return absent(wanted, existing(connection))


def existing(connection: BaseDatabaseWrapper) -> dict[str, str]:
    """Return the SQL of every trigger of this package that the database holds, by name."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT name, sql FROM sqlite_master "
            "WHERE type = 'trigger' AND substr(name, 1, %s) = %s",
            [len(PREFIX), PREFIX],
        )
        return dict(cursor.fetchall())


def drop(connection: BaseDatabaseWrapper, names: Iterable[str]) -> int:
    """Drop triggers, all or none; return how many."""
    names = list(names)
    with transaction.atomic(connection.alias), connection.cursor() as cursor:
        for name in names:
            cursor.execute(f"DROP TRIGGER IF EXISTS {_quoted(name)}")
    return len(names)


def columns(connection: BaseDatabaseWrapper) -> set[Column]:
    """Return the columns of every table that can have triggers."""
    with connection.cursor() as cursor:
        # Views and virtual tables have no page of their own.
        cursor.execute(
            "SELECT lower(tables.name), lower(columns.name) "
            "FROM sqlite_master AS tables JOIN pragma_table_xinfo(tables.name) AS columns "
            "WHERE tables.type = 'table' AND tables.rootpage > 0"
        )
        return set(cursor.fetchall())


def triggers(index: Embeddings, connection: BaseDatabaseWrapper) -> list[Trigger]:
    """Return the triggers of an index."""
    source, *related = watches(index)
    writer = _Writer(index, connection)
    return [
        *writer.for_source(source),
        *(trigger for watch in related for trigger in writer.for_related(watch)),
        *writer.for_chunks(),
    ]


class _Writer:
    """Writes the SQL of an index's triggers, and what each of them requires."""

    def __init__(self, index: Embeddings, connection: BaseDatabaseWrapper) -> None:
        self.index = index
        self.quote = connection.ops.quote_name
        self.label = "'" + index.label.replace("'", "''") + "'"
        self.key = column(index.model)
        self.table = index.model._meta.db_table

    # -- the source's own table ------------------------------------------

    def for_source(self, watch: Watch) -> Iterator[Trigger]:
        note = self._note_source("NEW")
        needs = self._columns(Change, "index", "source")
        needs |= {(_plain(self.table), _plain(self.key))}
        yield self._trigger(watch, "INSERT", note, needs)
        if watch.columns:
            yield self._trigger(watch, "UPDATE", note, needs)
        forget = self._forget_source()
        needs |= self._columns(self.index.chunk_model, "source")
        needs |= self._columns(Failure, "index", "source")
        yield self._trigger(watch, "DELETE", forget, needs)
        # A changed key is one source less and one more.
        rekeyed = Watch(table=watch.table, columns=(self.key,))
        yield self._trigger(rekeyed, "UPDATE", f"{forget} {note}", needs, purpose="key")

    def _note_source(self, image: str) -> str:
        source = self._as_text(f"{image}.{self.quote(self.key)}")
        return f"{self._insert_into(Change, 'index', 'source')} VALUES ({self.label}, {source});"

    def _forget_source(self) -> str:
        key = f"OLD.{self.quote(self.key)}"
        chunk, failure = self.index.chunk_model, Failure
        return (
            f"DELETE FROM {self._name(chunk)} WHERE {self._name(chunk, 'source')} = {key}; "
            f"DELETE FROM {self._name(failure)} "
            f"WHERE {self._name(failure, 'index')} = {self.label} "
            f"AND {self._name(failure, 'source')} = {self._as_text(key)};"
        )

    # -- tables that lookups pass ----------------------------------------

    def for_related(self, watch: Watch) -> Iterator[Trigger]:
        needs = self._columns(Change, "index", "source") | {(_plain(self.table), _plain(self.key))}
        table = self.table
        for join in watch.joins:
            needs |= {(_plain(table), _plain(column)) for column in join.near}
            needs |= {(_plain(join.table), _plain(column)) for column in join.far}
            table = join.table
        for event in IMAGES:
            yield self._trigger(watch, event, self._note_sources(watch.joins, event), needs)

    def _note_sources(self, joins: tuple[Join, ...], event: str) -> str:
        """Note every source that the row led to before, or leads to now."""
        *passed, last = joins
        tables = [f"{self.quote(self.table)} AS {_alias(0)}"]
        for position, join in enumerate(passed, start=1):
            tables.append(
                f"JOIN {self.quote(join.table)} AS {_alias(position)} "
                f"ON {self._equal(join, position)}"
            )
        near = ", ".join(f"{_alias(len(passed))}.{self.quote(column)}" for column in last.near)
        images = ", ".join(
            "(" + ", ".join(f"{image}.{self.quote(column)}" for column in last.far) + ")"
            for image in IMAGES[event]
        )
        # Only a table in between can lead to one source twice.
        distinct = "DISTINCT " if passed else ""
        source = self._as_text(f"{_alias(0)}.{self.quote(self.key)}")
        return (
            f"{self._insert_into(Change, 'index', 'source')} "
            f"SELECT {distinct}{self.label}, {source} FROM {' '.join(tables)} "
            f"WHERE ({near}) IN (VALUES {images});"
        )

    def _equal(self, join: Join, position: int) -> str:
        return " AND ".join(
            f"{_alias(position - 1)}.{self.quote(near)} = {_alias(position)}.{self.quote(far)}"
            for near, far in zip(join.near, join.far, strict=True)
        )

    # -- the table of chunks ---------------------------------------------

    def for_chunks(self) -> Iterator[Trigger]:
        table = self.index.chunk_model._meta.db_table
        needs = self._columns(ChunkChange, "space", "chunk", "token")
        needs |= self._columns(self.index.chunk_model, "id", "space")
        needs |= self._columns(Space, "id", "index")
        for event, images in IMAGES.items():
            body = " ".join(self._log_chunk(image) for image in images)
            yield self._trigger(Watch(table, ()), event, body, needs, watches_chunks=True)

    def _log_chunk(self, image: str) -> str:
        chunk = self.index.chunk_model
        return (
            f"{self._insert_into(ChunkChange, 'space', 'chunk', 'token')} "
            f"VALUES ({image}.{self._name(chunk, 'space')}, {image}.{self._name(chunk, 'id')}, "
            "randomblob(8));"
        )

    # -- parts -----------------------------------------------------------

    def _trigger(
        self,
        watch: Watch,
        event: str,
        body: str,
        needs: set[Column],
        *,
        purpose: str = "",
        watches_chunks: bool = False,
    ) -> Trigger:
        name = self._trigger_name(watch, event, purpose)
        sql = (
            f"CREATE TRIGGER {_quoted(name)} AFTER {self._event(watch, event)} "
            f"ON {self.quote(watch.table)} FOR EACH ROW {self._when(watch, event)}BEGIN {body} END"
        )
        if event == "UPDATE":
            needs = needs | {(_plain(watch.table), _plain(column)) for column in watch.columns}
        return Trigger(self.index.label, name, sql, frozenset(needs), watches_chunks)

    def _trigger_name(self, watch: Watch, event: str, purpose: str) -> str:
        return unique_name(event, self.index.label, watch.table, watch.joins, event, purpose)

    def _event(self, watch: Watch, event: str) -> str:
        if event != "UPDATE" or watch.is_computed or not watch.columns:
            return event
        return "UPDATE OF " + ", ".join(self.quote(column) for column in watch.columns)

    def _when(self, watch: Watch, event: str) -> str:
        if event != "UPDATE" or not watch.columns:
            return ""
        # The column's own collation may call texts equal that are not.
        differs = (
            f"OLD.{self.quote(column)} COLLATE BINARY IS NOT NEW.{self.quote(column)}"
            for column in watch.columns
        )
        return f"WHEN {' OR '.join(differs)} "

    def _insert_into(self, model: type[models.Model], *fields: str) -> str:
        columns = ", ".join(self._name(model, field) for field in fields)
        return f"INSERT INTO {self._name(model)} ({columns})"

    def _name(self, model: type[models.Model], field: str | None = None) -> str:
        return self.quote(column(model, field) if field else model._meta.db_table)

    def _columns(self, model: type[models.Model], *fields: str) -> set[Column]:
        table = _plain(model._meta.db_table)
        return {(table, _plain(column(model, field))) for field in fields}

    def _as_text(self, expression: str) -> str:
        return f"CAST({expression} AS TEXT)"


def _restart_chunk_logs(cursor: Any, created: Iterable[Trigger]) -> None:
    """Make every process read its vectors anew: chunks may have changed unseen.

    A reader whose last row is no longer in the log cannot go on from it.
    """
    log, spaces = ChunkChange._meta.db_table, Space._meta.db_table
    for label in labels(trigger for trigger in created if trigger.watches_chunks):
        of_index = f'FROM "{spaces}" WHERE "index" = %s'
        cursor.execute(f'DELETE FROM "{log}" WHERE "space" IN (SELECT "id" {of_index})', [label])
        cursor.execute(
            f'INSERT INTO "{log}" ("space", "chunk", "token") '
            f'SELECT "id", {NO_CHUNK}, randomblob(8) {of_index}',
            [label],
        )


def _alias(position: int) -> str:
    """Return the name of a joined table, by which `mend` knows an error as ours."""
    return f"{PREFIX}{position}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _plain(name: str) -> str:
    """Return a name as SQLite's catalogue compares it; Django lets one come quoted."""
    return name[1:-1].lower() if name[:1] == name[-1:] == '"' else name.lower()
