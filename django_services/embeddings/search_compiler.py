"""How the rows of a search are read: the short way where that is enough.

A search whose rows are read goes the short way first: one statement for a few of
the nearest chunks, from which the caller's filters take their part. If enough rows
are left they are the hits; else `search_plan` finds the hits beforehand. Of a
search to which nothing but a slice was added, the statement is compiled once.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias, cast

from django.core.exceptions import EmptyResultSet
from django.db import DatabaseError, connections
from django.db.models.sql.compiler import SQLCompiler
from django.db.models.sql.constants import GET_ITERATOR_CHUNK_SIZE, MULTI
from django.db.models.sql.where import AND

from . import search_plan
from .search_query import IsActive, SearchQuery, beginning
from .search_target import NOWHERE, Target

Rows: TypeAlias = list[Any]

#: Rows that an index of vectors reads at once: pgvector's ``hnsw.ef_search``.
MOST_ROWS = 40
#: How many more rows to read than were too few for the hits, as a share.
MARGIN = 1.2
#: Statements that a process remembers.
MOST_STATEMENTS = 256


def compiler_of(query: SearchQuery, using: str, elide_empty: bool) -> SQLCompiler:
    """Return the compiler of a search that stands for itself."""
    connection = connections[using]
    kind = _compiler_class(cast("Any", connection.ops.compiler(query.compiler)))
    return kind(query, connection, using, elide_empty)


@cache
def _compiler_class(base: type[SQLCompiler]) -> type[SQLCompiler]:
    return type(f"Search{base.__name__}", (_SearchCompiler, base), {"__module__": __name__})


class _SearchCompiler(SQLCompiler):
    """Reads the rows of a search the short way; resolves it where its SQL is asked for."""

    query: SearchQuery

    def as_sql(self, *args: Any, **options: Any) -> Any:
        self._resolve()
        return super().as_sql(*args, **options)

    def pre_sql_setup(self, *args: Any, **options: Any) -> Any:
        self._resolve()
        return super().pre_sql_setup(*args, **options)

    def execute_sql(
        self,
        result_type: Any = MULTI,
        chunked_fetch: bool = False,
        chunk_size: int = GET_ITERATOR_CHUNK_SIZE,
    ) -> Any:
        if result_type == MULTI and not self.query.is_resolved:
            rows = _read_the_short_way(self)
            if rows is not None:
                return [rows]
        return super().execute_sql(result_type, chunked_fetch, chunk_size)

    def _resolve(self) -> None:
        if not self.query.is_resolved:
            self.query = self.query.resolved(self.connection)


def _read_the_short_way(compiler: _SearchCompiler) -> Rows | None:
    """Return a search's rows if one statement finds them all; None if it may not."""
    query = compiler.query
    is_as_begun = query.is_as_begun
    if query.high_mark is None or not (is_as_begun or _is_of_sources(query)):
        return None
    if compiler.connection.vendor in search_plan.INDEXED:
        return _read_by_index(compiler, is_as_begun)
    if compiler.connection.vendor in search_plan.IN_MEMORY and is_as_begun:
        return _read_named(compiler)
    return None


def _is_of_sources(query: SearchQuery) -> bool:
    """Tell whether each row is a source with its key, in the order of distance."""
    is_plain = query.default_cols and not query.distinct and not query.select_for_update
    if not is_plain or query.group_by is not None or not query.is_cut_by_slice:
        return False
    about_chunk = filter(query.mentions_chunk, query.conditions())
    # Any other would let a farther chunk stand for a source whose nearest one it excludes.
    return all(map(search_plan.is_nearer_than, about_chunk))


# By an index of vectors

#: (alias, label) -> rows read for each hit: above 1 where sources have several near chunks.
_rows_per_hit: dict[tuple[str, str], float] = {}


def _read_by_index(compiler: _SearchCompiler, is_as_begun: bool) -> Rows | None:
    """Read chunks in the index's order, the first of each source; None if too few."""
    query = compiler.query
    assert query.search is not None
    wanted = cast("int", query.high_mark)
    target = query.search.presumed(compiler.connection)
    if wanted > MOST_ROWS or target is None:
        return None
    name = cast("str", compiler.using), query.search.label
    count = min(MOST_ROWS, round(wanted * _rows_per_hit.get(name, 1.0)))
    if is_as_begun:
        statement = _remembered(compiler, target, (0, count))
    else:
        statement = _by_index(query, compiler, target, (0, count))
    if statement is None:
        return None
    rows = statement.read(compiler, target)
    if query.explain_info:
        return rows
    hits = statement.first_of_each_source(rows)
    if len(hits) >= wanted:
        return hits[query.low_mark : wanted]
    if len(rows) == count:
        _rows_per_hit[name] = MARGIN * count / len(hits)
    return None


def _by_index(
    query: SearchQuery, compiler: _SearchCompiler, target: Target, limits: tuple[int, int]
) -> _Statement | None:
    assert query.search is not None
    nearest = query.for_target(target)
    # Which space is active was read before, and by another transaction.
    nearest.where.add(IsActive(query.search), AND)
    nearest.low_mark, nearest.high_mark = limits
    nearest.is_by_index = True
    return _Statement.of(nearest, compiler)


# From memory


def _read_named(compiler: _SearchCompiler) -> Rows | None:
    """Read the sources that the matrix has nearest; None if not all meet the condition."""
    query, connection = compiler.query, compiler.connection
    assert query.search is not None
    target = query.search.resolve(connection)
    if target is None:
        return None
    matrix = search_plan.matrix_of(query.search.index, target, connection)
    if matrix is None:
        return None
    wanted = cast("int", query.high_mark)
    ids = matrix.nearest(target.vector, wanted + search_plan.SPARE).ids
    statement = _remembered(compiler, target, (query.low_mark, wanted))
    if statement is None:
        return None
    rows = statement.read(compiler, target, ids)
    is_thinned = bool(query.conditions()) or search_plan.is_restricted_by_joins(query)
    return None if is_thinned and len(rows) < wanted - query.low_mark else rows


def _named(
    query: SearchQuery, compiler: _SearchCompiler, target: Target, limits: tuple[int, int]
) -> _Statement | None:
    named = query.for_target(target)
    named.low_mark, named.high_mark = limits
    named.name_chunks(_NAMES)
    return _Statement.of(named, compiler)


# Statements

#: What stands in a remembered statement's parameters for the vector and for the ids.
_VECTOR = "the vector of django_services"
_NAMES = [-(2**62)]


@dataclass(frozen=True, slots=True)
class _Statement:
    """A compiled statement, and what its compiler knew of the columns.

    Attributes:
        sql: The statement.
        params: Its parameters; None where the vector is the only one, bound by name.
        columns: The compiler's attributes that describe the rows.
        key_column: Where the source's key stands in a row.
    """

    sql: str
    params: tuple[Any, ...] | None
    columns: dict[str, Any]
    key_column: int

    @classmethod
    def of(cls, query: SearchQuery, compiler: _SearchCompiler) -> _Statement | None:
        """Compile a resolved query; None if it can have no rows."""
        made: Any = query.get_compiler(compiler.using)
        try:
            sql, params = made.as_sql()
        except EmptyResultSet:
            return None
        key = compiler.query.get_meta().pk
        key_column = next(
            place for place, column in enumerate(made.select) if column[0].target is key
        )
        columns = {name: getattr(made, name) for name in _DESCRIBING}
        return cls(sql, tuple(params), columns, key_column)

    def read(self, compiler: _SearchCompiler, target: Target, ids: list[int] | None = None) -> Rows:
        """Execute it for a vector and ids; returns the rows."""
        compiler.__dict__.update(self.columns)
        connection = compiler.connection
        if self.params is None:
            return _fetch_bound(connection, self.sql, target)
        given = {_VECTOR: target.parameter(connection), str(_NAMES): str(ids)}
        params = [
            given.get(param, param) if isinstance(param, str) else param for param in self.params
        ]
        with connection.cursor() as cursor:
            cursor.execute(self.sql, params)
            return cast("Rows", cursor.fetchall())

    def first_of_each_source(self, rows: Rows) -> Rows:
        first: dict[Any, Any] = {}
        for row in rows:
            first.setdefault(row[self.key_column], row)
        return list(first.values())


_DESCRIBING = ("select", "klass_info", "annotation_col_map", "col_count", "has_extra_select")

_statements: OrderedDict[tuple[Any, ...], _Statement | None] = OrderedDict()


def _remembered(
    compiler: _SearchCompiler, target: Target, limits: tuple[int, int]
) -> _Statement | None:
    """Return the statement of a search to which nothing but a slice was added."""
    connection, query = compiler.connection, compiler.query
    assert query.search is not None
    model, index = cast("Any", query.model), query.search.index
    key = (
        *(model, index, id(index.condition), compiler.using, type(connection)),
        *(target.space, target.dimensions, limits),
    )
    if key in _statements:
        _statements.move_to_end(key)
        return _statements[key]
    compiled = _WAYS[connection.vendor]
    # Another search than this one, whose text and vector are nobody else's to keep.
    for_any = Target(target.space, target.dimensions, b"", NOWHERE, {connection.vendor: _VECTOR})
    statement = compiled(beginning(model, index), compiler, for_any, limits)
    if statement is not None and connection.vendor in search_plan.INDEXED:
        statement = _bound(statement, connection)
    _statements[key] = statement
    while len(_statements) > MOST_STATEMENTS:
        _statements.popitem(last=False)
    return statement


_WAYS: dict[str, Callable[..., _Statement | None]] = {"postgresql": _by_index, "sqlite": _named}


# Binary parameters and prepared statements on PostgreSQL

#: What an old plan fails with: its columns changed, or the server has forgotten it.
OUTDATED = frozenset({"0A000", "26000"})
#: Uses of a connection after which its statements are prepared.
PREPARE_AFTER = 3


def _bound(statement: _Statement, connection: Any) -> _Statement:
    """Return a statement whose only parameter is the vector, bound by the server.

    All others become literals, so that the server reads what it would read anyway.
    """
    from django.db.backends.postgresql.psycopg_any import is_psycopg3

    if not is_psycopg3:
        return statement
    literal = connection.ops.compose_sql(statement.sql, statement.params)
    sql = literal.replace("%", "%%").replace(f"'{_VECTOR}'", "%(vector)s")
    return _Statement(sql, None, statement.columns, statement.key_column)


def _fetch_bound(connection: Any, sql: str, target: Target) -> Rows:
    connection.close_if_health_check_failed()
    connection.ensure_connection()
    connection.validate_thread_sharing()
    session = _session_of(connection.connection)
    is_prepared = session.may_prepare(connection)
    try:
        return session.fetch(connection, sql, target, is_prepared=is_prepared)
    except DatabaseError as error:
        if not is_prepared or getattr(error.__cause__, "sqlstate", None) not in OUTDATED:
            raise
    session.is_straight = False
    return session.fetch(connection, sql, target, is_prepared=False)


class _Session:
    """One session on a server, of psycopg: whether its statements may be prepared.

    Django prepares none, since a pooler between may hand each statement to another
    server process. Where none is between, the process that answers is the one that
    the connection was opened with, and a statement is prepared once for many uses.
    In a transaction none is: an outdated one would end it.
    """

    def __init__(self, raw: Any) -> None:
        self.uses = 0
        self.is_straight: bool | None = None
        self._cursors: list[Any] = []  # that nobody uses
        raw.adapters.register_dumper(_Halfvec, _binding()[1])

    def may_prepare(self, connection: Any) -> bool:
        if connection.in_atomic_block or not connection.get_autocommit():
            return False
        self.uses += 1
        if self.uses > PREPARE_AFTER and self.is_straight is None:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_backend_pid()")
                (pid,) = cursor.fetchone()
            self.is_straight = pid == connection.connection.info.backend_pid
        return bool(self.is_straight)

    def fetch(self, connection: Any, sql: str, target: Target, *, is_prepared: bool) -> Rows:
        raw = connection.connection
        cursor = self._cursors.pop() if self._cursors else _binding()[0](raw)
        make = connection.make_debug_cursor if connection.queries_logged else connection.make_cursor
        threshold = raw.prepare_threshold
        if is_prepared:
            raw.prepare_threshold = 0
        try:
            wrapped = make(cursor)
            wrapped.execute(sql, {"vector": _Halfvec(target.halfvec)})
            rows = cast("Rows", wrapped.fetchall())
        finally:
            raw.prepare_threshold = threshold
        self._cursors.append(cursor)
        return rows


_sessions: weakref.WeakKeyDictionary[Any, _Session] = weakref.WeakKeyDictionary()


def _session_of(raw: Any) -> _Session:
    session = _sessions.get(raw)
    if session is None:
        session = _sessions[raw] = _Session(raw)
    return session


class _Halfvec:
    """A vector in pgvector's binary form."""

    __slots__ = ("content",)

    def __init__(self, content: bytes) -> None:
        self.content = content


@cache
def _binding() -> tuple[Any, Any]:
    """Return Django's cursor whose parameters the server binds, and a dumper for it."""
    from django.db.backends.postgresql.base import ServerBindingCursor
    from psycopg.adapt import Dumper
    from psycopg.pq import Format

    class HalfvecDumper(Dumper):
        format = Format.BINARY
        # The type's number is each database's own; the statement's cast tells it.
        oid = 0

        def dump(self, obj: _Halfvec) -> bytes:
            return obj.content

    return ServerBindingCursor, HalfvecDumper
