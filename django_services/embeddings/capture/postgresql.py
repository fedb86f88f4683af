"""Capture on PostgreSQL: triggers for each statement, with transition tables.

Every trigger runs a function of its own name, in the schema of our tables, with
the rights of its owner: a writer needs none on our tables. A function only
appends. It neither updates nor deletes a row of ours, so that no writer waits
for a worker or fails because of one, whatever its isolation; what was stored of
a row that is gone is therefore removed by the worker that reads the note.

What a function names may be gone, since triggers survive migrations. That must
not fail a write. The functions of a source's own table ask the catalogue first:
an exception block would cost each statement a subtransaction, of which a
transaction keeps no more than 64 cheaply, and reading columns through
``to_jsonb(row)`` would cost whole documents. Those of other tables, which a
migration may alter between question and answer, do have the block.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from django.db import OperationalError, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from ... import conf
from ..declaration import Embeddings
from ..models import CHANNEL, Change, Failure
from .triggers import PREFIX, Column, Trigger, absent, compare, log_unfit, unique_name
from .watch import Join, Watch, column, watches

#: Bits of ``pg_trigger.tgtype`` of triggers AFTER the event FOR EACH STATEMENT.
EVENTS = {4: "INSERT", 8: "DELETE", 16: "UPDATE", 32: "TRUNCATE"}

#: The transition tables of an event.
_ROWS = {
    "INSERT": "REFERENCING NEW TABLE AS new_rows ",
    "UPDATE": "REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows ",
    "DELETE": "REFERENCING OLD TABLE AS old_rows ",
    "TRUNCATE": "",
}

#: Holds back a second process that installs: any number that others do not use.
LOCK = int.from_bytes(hashlib.sha256(b"django_services.capture").digest()[:8], signed=True)

LOCK_TIMEOUT = "500ms"  # below the server's deadlock_timeout, so that no writer is cancelled
LOCK_ATTEMPTS = 60
LOCK_PAUSE = 0.5  # seconds in which writers go on

#: Of a statement that noted something; the watcher is woken once a transaction.
_NOTIFY = f"    IF FOUND THEN PERFORM pg_notify('{CHANNEL}', ''); END IF;\n"

#: What is raised where a table, a column or the owner's right to it is gone.
_GONE = (
    "undefined_table OR undefined_column OR undefined_function OR invalid_schema_name "
    "OR insufficient_privilege"
)

#: Types of which any two can be compared, and one's index serves the other.
_FAMILIES = ({"int2", "int4", "int8"}, {"text", "varchar"})


@dataclass(frozen=True, slots=True)
class StatementTrigger(Trigger):
    """A trigger and its function; ``sql`` is the head of the one, the body of the other."""

    table: str  # qualified and quoted
    event: str
    body: str
    #: Whether the function wakes the watcher; that is no matter of what is captured.
    notifies: bool


@dataclass(frozen=True, slots=True)
class Held:
    """A function of ours that the database holds, and where its trigger is."""

    function: str  # qualified and quoted
    sql: str  # empty if it captures nothing: disabled, or nowhere
    table: str | None
    notifies: bool


def install(connection: BaseDatabaseWrapper, indexes: Iterable[Embeddings]) -> list[str]:
    """Make the database's triggers those of the indexes, as far as its tables allow.

    Where nothing is to do, no lock is taken. Else it waits for the writers of the
    tables whose triggers change, and lets others go ahead of it.

    Returns:
        Labels of the indexes that had a trigger missing or altered and have them all now.
    """
    indexes = list(indexes)
    if _Plan(connection, indexes).is_none:
        return []
    with transaction.atomic(connection.alias), connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
        # Compared again: another process may have been here before the lock was ours.
        plan = _Plan(connection, indexes)
        _lock_tables(connection, plan.locks())
        for statement in plan.statements():
            cursor.execute(statement)
    log_unfit(plan.difference, connection.alias)
    return plan.difference.restored()


def uninstall(connection: BaseDatabaseWrapper) -> int:
    """Drop every trigger of this package, declared or not; return how many."""
    with transaction.atomic(connection.alias), connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
        held = existing(connection).values()
        _lock_tables(connection, {one.table: "ACCESS EXCLUSIVE" for one in held if one.table})
        for one in held:
            cursor.execute(_drop(one))
    return len(held)


def missing(connection: BaseDatabaseWrapper, indexes: Iterable[Embeddings]) -> list[str]:
    """Return the labels of indexes whose triggers are not all there as they should be."""
    indexes = list(indexes)
    wanted = triggers(indexes, Catalogue(connection, indexes))
    return absent(wanted, _sql(existing(connection)))


def existing(connection: BaseDatabaseWrapper) -> dict[str, Held]:
    """Return what the database holds of this package, in the schema of our tables, by name."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT
                function.proname,
                format('%%I.%%I()', schema.nspname, function.proname),
                quote_ident(of_table.nspname) || '.' || quote_ident(tables.relname),
                trigger.tgtype,
                trigger.tgenabled IN ('O', 'A') AND function.prosecdef,
                function.prosrc
            FROM pg_catalog.pg_proc AS function
            JOIN pg_catalog.pg_namespace AS schema ON schema.oid = function.pronamespace
            LEFT JOIN pg_catalog.pg_trigger AS trigger
                ON trigger.tgfoid = function.oid AND trigger.tgname = function.proname
            LEFT JOIN pg_catalog.pg_class AS tables ON tables.oid = trigger.tgrelid
            LEFT JOIN pg_catalog.pg_namespace AS of_table ON of_table.oid = tables.relnamespace
            WHERE starts_with(function.proname, %s) AND function.prorettype = 'trigger'::regtype
            AND CASE
                WHEN to_regclass(%s) IS NULL THEN schema.nspname = ANY (current_schemas(false))
                ELSE schema.oid = (
                    SELECT relnamespace FROM pg_catalog.pg_class WHERE oid = to_regclass(%s)
                )
            END
            """,
            [PREFIX, *[connection.ops.quote_name(Change._meta.db_table)] * 2],
        )
        return {
            name: Held(
                function,
                _shown(table, EVENTS.get(kind, ""), body) if works else "",
                table if kind is not None else None,
                _NOTIFY in body,
            )
            for name, function, table, kind, works, body in cursor.fetchall()
        }


class Catalogue:
    """What the database knows of the tables that some indexes are concerned with."""

    def __init__(self, connection: BaseDatabaseWrapper, indexes: Iterable[Embeddings]) -> None:
        self._quote = connection.ops.quote_name
        names = {Change._meta.db_table, Failure._meta.db_table}
        for index in indexes:
            names |= {index.chunk_model._meta.db_table, *(w.table for w in watches(index))}
        #: Qualified and quoted names, by the models' names.
        self.tables: dict[str, str] = {}
        #: Number and type of columns, which others of the same name may not share.
        self.columns: dict[Column, str] = {}
        #: Columns that are computed when they are read.
        self.virtual: set[Column] = set()
        #: PostgreSQL's own types of columns; None of others.
        self._types: dict[Column, str | None] = {}
        with connection.cursor() as cursor:
            # Views and foreign tables have no transition tables, nor temporary ones our schema.
            cursor.execute(
                """
                SELECT
                    wanted.name,
                    format('%%I.%%I', schema.nspname, tables.relname),
                    columns.attname,
                    columns.attnum,
                    CASE WHEN types.typnamespace = 'pg_catalog'::regnamespace
                        THEN types.typname END,
                    format_type(columns.atttypid, columns.atttypmod),
                    columns.attgenerated = 'v'
                FROM unnest(%s::text[], %s::text[]) AS wanted (name, quoted)
                JOIN pg_catalog.pg_class AS tables ON tables.oid = to_regclass(wanted.quoted)
                JOIN pg_catalog.pg_namespace AS schema ON schema.oid = tables.relnamespace
                JOIN pg_catalog.pg_attribute AS columns ON columns.attrelid = tables.oid
                JOIN pg_catalog.pg_type AS types ON types.oid = columns.atttypid
                WHERE tables.relkind IN ('r', 'p') AND tables.relpersistence <> 't'
                AND columns.attnum > 0 AND NOT columns.attisdropped
                """,
                [list(names), [self._quote(name) for name in names]],
            )
            for name, table, attribute, number, kind, declared, virtual in cursor.fetchall():
                self.tables[name] = table
                self.columns[name, attribute] = f"{number} {declared}"
                self._types[name, attribute] = kind
                if virtual:
                    self.virtual.add((name, attribute))

    def table(self, name: str) -> str:
        """Return a table's qualified name; of one that is not there, the name alone."""
        return self.tables.get(name) or self._quote(name)

    @property
    def schema(self) -> str:
        """The quoted schema of our tables; empty if they are not there."""
        return self.table(Change._meta.db_table).rpartition(".")[0]

    def are_alike(self, one: Column, other: Column) -> bool:
        """Tell whether two columns can be compared as they are.

        An extension's operators are not on the search path of the functions.
        """
        kinds = {self._types.get(one), self._types.get(other)}
        if None in kinds:
            return False
        return len(kinds) == 1 or any(kinds <= family for family in _FAMILIES)


class _Plan:
    """How to come from the triggers that a database holds to those that are wanted."""

    def __init__(self, connection: BaseDatabaseWrapper, indexes: Sequence[Embeddings]) -> None:
        self.catalogue = Catalogue(connection, indexes)
        self.held = existing(connection)
        wanted = triggers(indexes, self.catalogue)
        self.difference = compare(wanted, _sql(self.held), self.catalogue.columns)
        created = {trigger.name: trigger for trigger in self.difference.created}
        self._dropped = [
            self.held[name]
            for name in self.difference.dropped
            # One that is made anew where it is needs no drop, which would lock out readers.
            if name not in created or self.held[name].table != created[name].table
        ]
        #: Functions that capture what they should, and wake the watcher or not.
        self._restated = [
            trigger
            for trigger in wanted
            if trigger.name in self.held
            and self.held[trigger.name].sql == trigger.sql
            and self.held[trigger.name].notifies != trigger.notifies
        ]

    @property
    def is_none(self) -> bool:
        return self.difference.is_none and not self._restated

    def locks(self) -> dict[str, str]:
        """Return the mode in which to lock each table, by its name."""
        # A writer of before sees the old triggers: what it writes must be there to be noted.
        locks = {trigger.table: "SHARE ROW EXCLUSIVE" for trigger in self.difference.created}
        return locks | {held.table: "ACCESS EXCLUSIVE" for held in self._dropped if held.table}

    def statements(self) -> Iterator[str]:
        """Yield the SQL that does it."""
        schema = self.catalogue.schema
        for held in self._dropped:
            yield _drop(held)
        for trigger in (*self._restated, *self.difference.created):
            yield (
                f"CREATE OR REPLACE FUNCTION {schema}.{trigger.name}() RETURNS trigger "
                "LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp "
                f"AS {_literal(trigger.body)}"
            )
            # Firing needs no right; making a trigger of one's own that runs it would.
            yield f"REVOKE ALL ON FUNCTION {schema}.{trigger.name}() FROM PUBLIC"
        for trigger in self.difference.created:
            yield (
                f"CREATE OR REPLACE TRIGGER {trigger.name} AFTER {trigger.event} "
                f"ON {trigger.table} {_ROWS[trigger.event]}"
                f"FOR EACH STATEMENT EXECUTE FUNCTION {schema}.{trigger.name}()"
            )


def _sql(held: Mapping[str, Held]) -> dict[str, str]:
    return {name: one.sql for name, one in held.items()}


def _drop(held: Held) -> str:
    return f"DROP FUNCTION IF EXISTS {held.function} CASCADE"


def _lock_tables(connection: BaseDatabaseWrapper, modes: Mapping[str, str]) -> None:
    """Lock tables, all or none, without standing in the way of writers for long.

    A lock that waits makes all wait that come after it, and two that wait for
    each other would cost one of them its transaction.

    Raises:
        OperationalError: A writer held a table for half a minute.
    """
    for attempt in range(1, LOCK_ATTEMPTS + 1):
        try:
            with transaction.atomic(connection.alias), connection.cursor() as cursor:
                cursor.execute("SELECT current_setting('lock_timeout')")
                (before,) = cursor.fetchone()
                cursor.execute("SELECT set_config('lock_timeout', %s, true)", [LOCK_TIMEOUT])
                for table, mode in sorted(modes.items()):
                    cursor.execute(f"LOCK TABLE ONLY {table} IN {mode} MODE")
                cursor.execute("SELECT set_config('lock_timeout', %s, true)", [before])
            return
        except OperationalError as error:
            is_busy = getattr(error.__cause__, "sqlstate", None) == "55P03"
            if not is_busy or attempt == LOCK_ATTEMPTS:
                raise
            time.sleep(LOCK_PAUSE)


def triggers(indexes: Iterable[Embeddings], catalogue: Catalogue) -> list[StatementTrigger]:
    """Return the triggers of some indexes."""
    found: list[StatementTrigger] = []
    for index in indexes:
        source, *related = watches(index)
        writer = _Writer(index, catalogue)
        found += writer.for_source(source)
        for watch in related:
            found += writer.for_related(watch)
    return found


class _Writer:
    """Writes the functions of an index's triggers, and what each of them requires."""

    def __init__(self, index: Embeddings, catalogue: Catalogue) -> None:
        self.index = index
        self.catalogue = catalogue
        self.label = _literal(index.label)
        self.key = _plain(column(index.model))
        self.table = index.model._meta.db_table

    # -- the source's own table ------------------------------------------

    def for_source(self, watch: Watch) -> Iterator[StatementTrigger]:
        needs = self._columns(Change, "index", "source") | {(self.table, self.key)}
        key = _quoted(self.key)
        for event, rows in (("INSERT", "new_rows"), ("DELETE", "old_rows")):
            note = self._note(f"SELECT {self.label}, CAST({key} AS text) FROM {rows}")
            yield self._trigger(watch, event, self._guarded(note, needs), needs)
        updated = (
            f"SELECT {self.label}, CAST(coalesce(o.{key}, n.{key}) AS text) "
            f"FROM {self._changed_rows(watch)}"
        )
        needs = needs | self._compared(watch)
        guarded = self._guarded(self._note(updated), needs)
        yield self._trigger(watch, "UPDATE", guarded, needs)
        yield self._emptied(watch)

    def _emptied(self, watch: Watch) -> StatementTrigger:
        """Note what is stored of a table's rows when they are gone all at once."""
        chunk, failure = self.index.chunk_model, Failure
        needs = self._columns(Change, "index", "source") | {(self.table, self.key)}
        needs |= self._columns(chunk, "source") | self._columns(failure, "index", "source")
        stored = (
            f"SELECT {self.label}, CAST({self._name(chunk, 'source')} AS text) "
            f"FROM {self._name(chunk)} "
            f"UNION SELECT {self.label}, {self._name(failure, 'source')} "
            f"FROM {self._name(failure)} WHERE {self._name(failure, 'index')} = {self.label}"
        )
        return self._trigger(watch, "TRUNCATE", self._tolerant(self._note(stored)), needs)

    def _guarded(self, note: str, needs: Iterable[Column]) -> str:
        """Return a body that does nothing where our table or a column is gone.

        The statement holds its own table, whose columns cannot go in between.
        """
        names = sorted(name for table, name in needs if table == self.table)
        ours = _literal(self.catalogue.table(Change._meta.db_table))
        return (
            f"BEGIN\n    IF to_regclass({ours}) IS NOT NULL AND (\n"
            "        SELECT count(*) FROM pg_attribute WHERE attrelid = TG_RELID "
            f"AND attname = ANY (ARRAY[{', '.join(map(_literal, names))}]::name[])\n"
            f"    ) = {len(names)} THEN\n    {note};\n{_NOTIFY}    END IF;\n    RETURN NULL;\nEND"
        )

    # -- tables that lookups pass ----------------------------------------

    def for_related(self, watch: Watch) -> Iterator[StatementTrigger]:
        needs = self._columns(Change, "index", "source") | {(self.table, self.key)}
        table = self.table
        for join in watch.joins:
            needs |= {(table, _plain(name)) for name in join.near}
            needs |= {(join.table, _plain(name)) for name in join.far}
            table = join.table
        for event in ("INSERT", "DELETE"):
            note = self._note(self._sources(watch, event))
            yield self._trigger(watch, event, self._tolerant(note), needs)
        note = self._note(self._sources(watch, "UPDATE"))
        yield self._trigger(watch, "UPDATE", self._tolerant(note), needs | self._compared(watch))
        source = self.catalogue.table(self.table)
        every = f"SELECT {self.label}, CAST({_quoted(self.key)} AS text) FROM {source}"
        yield self._trigger(watch, "TRUNCATE", self._tolerant(self._note(every)), needs)

    def _sources(self, watch: Watch, event: str) -> str:
        """Select every source that the rows led to before, or lead to now."""
        last = len(watch.joins) - 1
        tables = [f"{self.catalogue.table(self.table)} AS t0"]
        for position, join in enumerate(watch.joins[:-1]):
            equal = " AND ".join(
                f"t{position}.{near} = t{position + 1}.{far}"
                for near, far in self._pairs(watch.joins, position)
            )
            table = self.catalogue.table(join.table)
            tables.append(f"JOIN {table} AS t{position + 1} ON {equal}")
        pairs = list(self._pairs(watch.joins, last))
        near = ", ".join(f"t{last}.{near}" for near, _ in pairs)
        # As arrays the planner takes the rows for few, however many the first call had: it
        # keeps a session's plan, and one large statement must not decide for all after it.
        far = ", ".join(f"ARRAY({self._ends(watch, event, far)})" for _, far in pairs)
        return (
            # Only a table in between can lead to one source twice.
            f"SELECT {'DISTINCT ' if last else ''}{self.label}, "
            f"CAST(t0.{_quoted(self.key)} AS text) FROM {' '.join(tables)} "
            f"WHERE ({near}) IN (SELECT * FROM unnest({far}))"
        )

    def _ends(self, watch: Watch, event: str, far: str) -> str:
        """Select what a column of the last join holds in the rows of an event."""
        if event == "UPDATE":
            return f"SELECT unnest(ARRAY[o.{far}, n.{far}]) FROM {self._changed_rows(watch)}"
        return f"SELECT {far} FROM {'new_rows' if event == 'INSERT' else 'old_rows'}"

    def _pairs(self, joins: Sequence[Join], position: int) -> Iterator[tuple[str, str]]:
        """Yield the columns that a join compares: as they are, or else as text."""
        join = joins[position]
        table = joins[position - 1].table if position else self.table
        for near, far in zip(map(_plain, join.near), map(_plain, join.far), strict=True):
            alike = self.catalogue.are_alike((table, near), (join.table, far))
            cast = "" if alike else "::text"
            yield _quoted(near) + cast, _quoted(far) + cast

    @staticmethod
    def _tolerant(note: str) -> str:
        """Return a body that does nothing where something is gone."""
        return (
            f"BEGIN\n    {note};\n{_NOTIFY}    RETURN NULL;\n"
            f"EXCEPTION WHEN {_GONE} THEN\n    RETURN NULL;\nEND"
        )

    # -- parts -----------------------------------------------------------

    def _changed_rows(self, watch: Watch) -> str:
        """Join the rows before and after an update, and leave those that are the same.

        A full join cannot be a nested loop, which a plan made for one row would be
        for ten thousand too. Compared are the bytes, since a type may have no
        equality, and a collation may call texts equal that are not.
        """
        key = [_quoted(_plain(name)) for name in watch.key]
        parts = ((watch.table, _plain(name)) for name in watch.key)
        casts = ["" if self.catalogue.are_alike(part, part) else "::text" for part in parts]
        same = " AND ".join(
            f"o.{name}{cast} = n.{name}{cast}" for name, cast in zip(key, casts, strict=True)
        )
        differs = f"o.{key[0]} IS NULL OR n.{key[0]} IS NULL"
        columns = [(watch.table, _plain(name)) for name in watch.columns]
        if not self.catalogue.virtual.isdisjoint(columns):
            # Of a transition table it cannot be read: all other columns tell.
            differs += " OR o::record *<> n::record"
        elif columns:
            # Cast, since two rows as such are compared column by column.
            old, new = (
                ", ".join(f"{rows}.{_quoted(name)}" for _, name in columns) for rows in ("o", "n")
            )
            differs += f" OR ROW({old})::record *<> ROW({new})::record"
        return f"old_rows AS o FULL JOIN new_rows AS n ON {same} WHERE {differs}"

    def _trigger(
        self, watch: Watch, event: str, body: str, needs: Iterable[Column]
    ) -> StatementTrigger:
        table = self.catalogue.table(watch.table)
        # A column that was dropped and made anew, or has another type, has other values.
        known = sorted((need, self.catalogue.columns.get(need)) for need in self._theirs(needs))
        body = f"-- columns {hashlib.sha256(repr(known).encode()).hexdigest()[:16]}\n{body}"
        notifies = conf.embeddings().notify
        return StatementTrigger(
            label=self.index.label,
            # A table may be shared by the sources of several schemas.
            name=unique_name(
                event, self.catalogue.schema, self.index.label, watch.table, watch.joins
            ),
            sql=_shown(table, event, body),
            requires=frozenset(needs),
            table=table,
            event=event,
            body=body if notifies else body.replace(_NOTIFY, ""),
            notifies=notifies,
        )

    def _theirs(self, needs: Iterable[Column]) -> list[Column]:
        """Return the columns that are not of our own tables."""
        ours = {model._meta.db_table for model in (Change, Failure, self.index.chunk_model)}
        return [need for need in needs if need[0] not in ours]

    def _note(self, select: str) -> str:
        columns = f"{self._name(Change, 'index')}, {self._name(Change, 'source')}"
        return f"INSERT INTO {self._name(Change)} ({columns}) {select}"

    def _name(self, model: type[models.Model], field: str | None = None) -> str:
        if field is None:
            return self.catalogue.table(model._meta.db_table)
        return _quoted(_plain(column(model, field)))

    def _columns(self, model: type[models.Model], *fields: str) -> set[Column]:
        return {(model._meta.db_table, _plain(column(model, field))) for field in fields}

    def _compared(self, watch: Watch) -> set[Column]:
        return {(watch.table, _plain(name)) for name in (*watch.key, *watch.columns)}


def _shown(table: str | None, event: str, body: str) -> str:
    """Return what is compared of a trigger; whether it wakes the watcher is not."""
    return f"{event} ON {table}\n{body.replace(_NOTIFY, '')}"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _plain(name: str) -> str:
    """Return a name as the catalogue has it: Django lets one come quoted, or too long."""
    if name[:1] == name[-1:] == '"':
        name = name[1:-1].replace('""', '"')
    return name.encode()[:63].decode(errors="ignore")
