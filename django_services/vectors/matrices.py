"""The matrices that this process holds, each in step with its database.

Imported with the first search, since it needs numpy. Every write to a collection
appends a row to its log, in the writer's own transaction, with a random token.
So the newest row of the log, id and token, identifies the content: two readers
that see the same one see the same vectors, and a rollback takes it back with
what it stood for. A matrix is kept under the position that it was read at.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from django.db import connections

from .. import conf
from ..exceptions import DimensionMismatch
from .encoding import ITEM_SIZE
from .matrix import Matrix, Rows, room_for

logger = logging.getLogger(__name__)

READ_SIZE = 2_000  # rows fetched at once
PARAMETERS = 500  # of one statement; SQLite takes 999 at least
#: Share of changed rows from which reading everything anew is quicker.
MANY_CHANGES = 0.15
#: Matrices of one collection that were read in transactions that may yet roll back.
PROVISIONAL = 2


class Position(NamedTuple):
    """The newest row of a collection's log; `EMPTY` where there is none."""

    id: int
    token: bytes


EMPTY = Position(0, b"")


@dataclass(frozen=True, slots=True)
class Tables:
    """Where vectors and the log of their changes stand: names of tables and columns."""

    vectors: str
    log: str
    id: str = "id"
    key: str = "source_id"
    vector: str = "vector"
    part: str = "space_id"
    log_part: str = "space"
    log_row: str = "chunk"


@dataclass(frozen=True, slots=True)
class Collection:
    """Vectors of one length that are searched together: one part of a table."""

    alias: str
    tables: Tables
    part: int
    dimensions: int


Name: TypeAlias = tuple[str, str, str, int]


@dataclass(slots=True)
class _Shelf:
    """The matrices of one collection, by position."""

    settled: tuple[Position, Matrix] | None = None
    provisional: OrderedDict[Position, Matrix] = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self, position: Position) -> Matrix | None:
        if self.settled is not None and self.settled[0] == position:
            return self.settled[1]
        return self.provisional.get(position)

    def newest_first(self) -> list[tuple[Position, Matrix]]:
        held = list(self.provisional.items())
        if self.settled is not None:
            held.append(self.settled)
        return sorted(held, key=lambda entry: entry[0].id, reverse=True)

    def keep(self, position: Position, matrix: Matrix, *, is_provisional: bool) -> None:
        if is_provisional:
            self.provisional[position] = matrix
            self.provisional.move_to_end(position)
            while len(self.provisional) > PROVISIONAL:
                self.provisional.popitem(last=False)
        else:
            self.settled = position, matrix
            self.provisional.pop(position, None)

    def settle(self, position: Position) -> None:
        """Note that a position was seen outside of a transaction: it is committed."""
        matrix = self.provisional.pop(position, None)
        if matrix is not None:
            self.settled = position, matrix

    @property
    def size(self) -> int:
        storages = {id(m.storage): m.storage for _, m in self.newest_first()}
        return sum(storage.size for storage in storages.values())


_shelves: OrderedDict[Name, _Shelf] = OrderedDict()
_lock = threading.Lock()


def position(collection: Collection) -> Position:
    """Return the newest row of the collection's log: one look-up in an index."""
    tables, quote = collection.tables, connections[collection.alias].ops.quote_name
    found = _read(
        collection,
        f"SELECT id, token FROM {quote(tables.log)} WHERE {quote(tables.log_part)} = %s "
        "ORDER BY id DESC LIMIT 1",
        [collection.part],
    )
    return Position(found[0][0], bytes(found[0][1])) if found else EMPTY


def get(collection: Collection, at: Position) -> Matrix | None:
    """Return the matrix of a position that this connection has just read.

    One thread makes it while the others wait. What a transaction wrote and may
    roll back never takes the place of what is committed.

    Returns:
        None if the vectors take more memory than ``MATRIX_MEMORY`` allows.

    Raises:
        DimensionMismatch: A stored vector has not the collection's length.
    """
    name = _name(collection)
    with _lock:
        shelf = _shelves.setdefault(name, _Shelf())
        _shelves.move_to_end(name)
    matrix = shelf.find(at)
    is_provisional = _may_roll_back(collection)
    if matrix is None:
        with shelf.lock:
            matrix = shelf.find(at) or _make(collection, shelf, at)
            # Without a log row nothing tells one content from another.
            if matrix is not None and at != EMPTY:
                shelf.keep(at, matrix, is_provisional=is_provisional)
        _evict(name)
    elif not is_provisional and at in shelf.provisional:
        with shelf.lock:
            shelf.settle(at)
    return matrix


def clear() -> None:
    """Drop every matrix of this process."""
    with _lock:
        _shelves.clear()


def held() -> int:
    """Return the bytes that all matrices of this process take."""
    with _lock:
        return sum(shelf.size for shelf in _shelves.values())


def _name(collection: Collection) -> Name:
    database = str(connections[collection.alias].settings_dict["NAME"])
    return collection.alias, database, collection.tables.vectors, collection.part


def _may_roll_back(collection: Collection) -> bool:
    connection = connections[collection.alias]
    return connection.in_atomic_block or not connection.get_autocommit()


def _make(collection: Collection, shelf: _Shelf, at: Position) -> Matrix | None:
    for seen, matrix in shelf.newest_first():
        if seen.id <= at.id and _is_in_log(collection, seen):
            changed = _changed_since(collection, seen, limit=int(len(matrix) * MANY_CHANGES) + 64)
            if changed is None:
                break
            return matrix.changed(changed, _read_rows(collection, changed))
    return _build(collection)


def _is_in_log(collection: Collection, seen: Position) -> bool:
    """Tell whether the log, as this connection sees it, goes on from a position."""
    tables, quote = collection.tables, connections[collection.alias].ops.quote_name
    found = _read(
        collection,
        f"SELECT token FROM {quote(tables.log)} WHERE id = %s AND {quote(tables.log_part)} = %s",
        [seen.id, collection.part],
    )
    return bool(found) and bytes(found[0][0]) == seen.token


def _changed_since(collection: Collection, seen: Position, limit: int) -> list[int] | None:
    """Return the ids of the rows written after a position; None if above the limit."""
    tables, quote = collection.tables, connections[collection.alias].ops.quote_name
    found = _read(
        collection,
        f"SELECT {quote(tables.log_row)} FROM {quote(tables.log)} "
        f"WHERE {quote(tables.log_part)} = %s AND id > %s LIMIT %s",
        [collection.part, seen.id, limit + 1],
    )
    return list({row[0] for row in found}) if len(found) <= limit else None


def _read_rows(collection: Collection, ids: Sequence[int]) -> Rows:
    tables, quote = collection.tables, connections[collection.alias].ops.quote_name
    found: list[Any] = []
    for start in range(0, len(ids), PARAMETERS):
        some = ids[start : start + PARAMETERS]
        places = ", ".join(["%s"] * len(some))
        sql = (
            f"SELECT {_columns(collection)} FROM {quote(tables.vectors)} "
            f"WHERE {quote(tables.id)} IN ({places}) AND +{quote(tables.part)} = %s"
        )
        found += _read(collection, sql, [*some, collection.part])
    return _rows(collection, found)


def _build(collection: Collection) -> Matrix | None:
    tables, quote = collection.tables, connections[collection.alias].ops.quote_name
    counted = _read(
        collection,
        f"SELECT COUNT(*) FROM {quote(tables.vectors)} WHERE {quote(tables.part)} = %s",
        [collection.part],
    )
    capacity = room_for(counted[0][0])
    needed = capacity * collection.dimensions * ITEM_SIZE
    if needed > _allowed():
        logger.warning(
            "The %d vectors of %s take %d MiB of memory, more than EMBEDDINGS "
            '["MATRIX_MEMORY"] allows: searches of them are slow. Raise it, or use PostgreSQL.',
            counted[0][0],
            tables.vectors,
            needed >> 20,
        )
        return None
    return Matrix.build(collection.dimensions, capacity, _read_batches(collection))


def _read_batches(collection: Collection) -> Iterator[Rows]:
    tables, quote = collection.tables, connections[collection.alias].ops.quote_name
    with connections[collection.alias].cursor() as cursor:
        # The plus keeps SQLite from an index: by it every row is a look-up of its own.
        cursor.execute(
            f"SELECT {_columns(collection)} FROM {quote(tables.vectors)} "
            f"WHERE +{quote(tables.part)} = %s ORDER BY {quote(tables.id)}",
            [collection.part],
        )
        while batch := cursor.fetchmany(READ_SIZE):
            yield _rows(collection, batch)


def _columns(collection: Collection) -> str:
    tables, quote = collection.tables, connections[collection.alias].ops.quote_name
    return ", ".join(map(quote, (tables.id, tables.key, tables.vector)))


def _rows(collection: Collection, found: Sequence[Any]) -> Rows:
    ids, keys, vectors = ([row[column] for row in found] for column in range(3))
    length = collection.dimensions * ITEM_SIZE
    if set(map(len, vectors)) - {length}:
        id_, wrong = next((i, v) for i, v in zip(ids, vectors, strict=True) if len(v) != length)
        raise DimensionMismatch(
            f"Row {id_} of {collection.tables.vectors} holds a vector of "
            f"{len(wrong) // ITEM_SIZE} dimensions among those of {collection.dimensions}. "
            "Run: manage.py embeddings reconcile"
        )
    return Rows(ids, keys, vectors)


def _read(collection: Collection, sql: str, params: list[Any]) -> list[Any]:
    with connections[collection.alias].cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall())


def _allowed() -> int:
    return conf.embeddings().matrix_memory << 20


def _evict(keep: Name) -> None:
    """Drop the matrices used longest ago until the others fit."""
    with _lock:
        sizes = {name: shelf.size for name, shelf in _shelves.items()}
        for name in list(_shelves):
            if sum(sizes.values()) <= _allowed():
                return
            if name != keep:
                del _shelves[name], sizes[name]


def _forget() -> None:
    # Another thread of the parent may have held a lock at the moment of the fork.
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()
    _shelves.clear()


os.register_at_fork(after_in_child=_forget)
