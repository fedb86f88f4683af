"""Plain SQL on the tables of stored embeddings.

For what the ORM cannot say, such as the database's clock, and for long lists of
keys, of which it would prepare every value.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from django.db import connections, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from .declaration import Embeddings
from .models import Change, Failure, Lease, Space

#: Seconds since the epoch by the server's clock, moving within a transaction.
CLOCK = {
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    "postgresql": "extract(epoch from clock_timestamp())",
}

#: vendor -> rows that are passed over while another transaction holds them.
SKIP_LOCKED = {"sqlite": "", "postgresql": "FOR UPDATE OF {} SKIP LOCKED"}

#: vendor -> a list of numbers or texts that is one parameter, as JSON: it has no
#: limit, and nothing is prepared value by value.
LISTS = {"sqlite": "(SELECT value FROM json_each(%s))"}

#: vendor -> what stands behind a value to tell whether it is one of such a list.
AMONG = {"sqlite": f"IN {LISTS['sqlite']}", "postgresql": "= ANY(%s)"}

#: Values in any other list; SQLite's oldest limit is 999 parameters.
IN_LIST = 900

#: vendor -> what begins a worker's own transaction. A project may have chosen another
#: isolation, in which it would fail for others' writes; and the planner, which knows
#: little of tables that grow so fast, would read the whole of one for each batch.
BEGIN = {
    "sqlite": "",
    "postgresql": "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; "
    "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; "
    "SET LOCAL enable_sort = off",
}


@contextlib.contextmanager
def own_transaction(alias: str) -> Iterator[None]:
    """Open a worker's own transaction; within another one, a savepoint of it."""
    connection = connections[alias]
    begin = "" if connection.in_atomic_block else BEGIN[connection.vendor]
    with transaction.atomic(using=alias):
        if begin:
            with connection.cursor() as cursor:
                cursor.execute(begin)
        yield


@contextlib.contextmanager
def beside(connection: BaseDatabaseWrapper) -> Iterator[BaseDatabaseWrapper]:
    """Give a connection to the same database, from no pool: nothing set in it stays."""
    own = connection.copy()
    for option in ("pool", "isolation_level"):
        own.settings_dict["OPTIONS"].pop(option, None)
    own.inc_thread_sharing()
    try:
        yield own
    finally:
        own.close()


def array(values: Sequence[Any]) -> str:
    """Return numbers, texts or bytes as the text of a PostgreSQL array.

    Its type is that of what it is compared with. The driver's own way asks for the
    type of every value, which costs more than the statement.
    """
    return f"{{{','.join(map(_item(values), values))}}}"


def _item(values: Sequence[Any]) -> Callable[[Any], str]:
    """Return what writes each of these values, which are of one type, into an array's text."""
    first = values[0] if values else 0
    if isinstance(first, int):
        return str
    if isinstance(first, bytes):
        return lambda value: f'"\\\\x{value.hex()}"'
    return lambda value: '"{}"'.format(value.replace("\\", r"\\").replace('"', r"\""))


class Statements:
    """Runs SQL on a database; names in braces stand for quoted names.

    ``{change}``, ``{lease}``, ``{failure}`` and ``{space}`` are tables, ``{clock}``
    is the time. Of a declaration, ``{source}`` is its model's table, ``{pk}`` that
    table's key, ``{pk_type}`` the type of references to it, ``{key}`` the key as
    text, and ``{chunk}`` the table of chunks.
    """

    def __init__(self, alias: str, index: Embeddings | None = None) -> None:
        self.connection = connections[alias]
        self._names = {
            "change": self._quoted(Change),
            "lease": self._quoted(Lease),
            "failure": self._quoted(Failure),
            "space": self._quoted(Space),
            "clock": CLOCK[self.connection.vendor],
        }
        if index is not None:
            key = index.model._meta.pk
            pk = self.connection.ops.quote_name(str(key.column))
            self._names |= {
                "source": self._quoted(index.model),
                "pk": pk,
                "pk_type": str(key.rel_db_type(self.connection)),
                "key": f"CAST({pk} AS TEXT)",
                "chunk": self._quoted(index.chunk_model),
            }

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows, none where it has none."""
        with self.connection.cursor() as cursor:
            cursor.execute(sql.format_map(self._names), parameters)
            return cursor.fetchall() if cursor.description else []

    def count(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Run a statement and return how many rows it wrote."""
        with self.connection.cursor() as cursor:
            cursor.execute(sql.format_map(self._names), parameters)
            return int(cursor.rowcount)

    def run_each(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a statement once for each row of parameters."""
        if rows:
            with self.connection.cursor() as cursor:
                cursor.executemany(sql.format_map(self._names), rows)

    def run_in(
        self, sql: str, values: Sequence[Any], parameters: Sequence[Any] = ()
    ) -> list[tuple[Any, ...]]:
        """Run a statement for many values and return its rows.

        Args:
            sql: Its last parameter is the list: ``… AND id {among}``.
            values: Numbers, texts or bytes, as the database takes them.
            parameters: Those before the list.
        """
        found = []
        for among, part in self._lists(values):
            found += self.run(sql.replace("{among}", among), [*parameters, *part])
        return found

    def _lists(self, values: Sequence[Any]) -> Iterator[tuple[str, Sequence[Any]]]:
        """Yield SQL that tells whether a value is among these, and its parameters."""
        if not values:
            return
        vendor = self.connection.vendor
        if vendor == "postgresql":
            yield AMONG[vendor], [array(values)]
        elif vendor in AMONG and not isinstance(values[0], bytes):
            yield AMONG[vendor], [json.dumps(values)]
        else:
            for at in range(0, len(values), IN_LIST):
                part = values[at : at + IN_LIST]
                yield f"IN ({', '.join(['%s'] * len(part))})", part

    def _quoted(self, model: type[models.Model]) -> str:
        return self.connection.ops.quote_name(model._meta.db_table)
