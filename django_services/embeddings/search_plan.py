"""Which chunks are the hits, found before the statement runs.

On SQLite the process holds a matrix of each space. The plan depends on what the
caller's filters leave: without filters the matrix answers alone; if many sources
meet them, the nearest are tried against them; if few do, the matrix is searched
among these. Where no plan is exact, the statement finds the hits itself.

On PostgreSQL the space has an index by which rows can be read nearest first, near
enough. If few sources meet the filters, all of them are compared; else the index
is walked until enough rows have met them. Where that finds too few, and where the
hits are many, every chunk is compared.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from django.core.exceptions import EmptyResultSet
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.lookups import (
    GreaterThan,
    GreaterThanOrEqual,
    LessThan,
    LessThanOrEqual,
)

from .declaration import Embeddings
from .models import ChunkChange
from .search_query import SearchDistance, SearchQuery, SearchScore
from .search_target import LOGGED, Target

if TYPE_CHECKING:
    # numpy loads with the first search
    from ..vectors.matrices import Tables
    from ..vectors.matrix import Matrix

#: Sources that may be deleted between plan and statement, without a slice missing any.
SPARE = 2
#: The first try takes so many candidates for each hit wanted, and so many at least.
CANDIDATES_PER_HIT = 4
FEWEST_CANDIDATES = 50
#: A second try takes at most so many, and this share of all: beyond it, to ask which
#: sources meet the filters is quicker.
MOST_CANDIDATES = 5_000
MOST_OF_ALL = 0.1

#: Vendors whose vectors this process keeps in memory.
IN_MEMORY = LOGGED
#: Vendors with an index of vectors.
INDEXED = frozenset({"postgresql"})
#: Sources of which all are compared, where no more meet the filters. At 100,000 chunks
#: that took about as long as to walk the index past those that do not.
FEW_SOURCES = 1_000
#: Hits that the index is asked for; pgvector holds as many candidates at most.
MOST_BY_INDEX = 1_000
#: Hits that are named; the statement finds more of them itself.
MOST_NAMED = 10_000
#: A walk looks at so many candidates first (pgvector's default), or so many for each hit.
CANDIDATES = 40
CANDIDATES_PER_WALKED_HIT = 2
#: How a walk goes: in the order of distance, on past the first candidates.
WALK = {"hnsw.iterative_scan": "strict_order", "hnsw.max_scan_tuples": "20000"}
#: Prefix of the names under which a transaction's own settings wait.
KEPT = "django_services_kept"


def nearest_chunks(query: SearchQuery, connection: BaseDatabaseWrapper) -> list[int] | None:
    """Return the ids of the chunks that are a resolved query's hits.

    Where the slice makes the cut there may be more than wanted: all that share
    the last distance, and a few to spare.

    Returns:
        None where the statement has to find the hits itself.
    """
    if query.looks_outside():
        return None
    if connection.vendor in INDEXED:
        return _nearest_by_index(query, connection)
    if connection.vendor not in IN_MEMORY:
        return None
    return _nearest_in_memory(query, connection)


# In memory


def _nearest_in_memory(query: SearchQuery, connection: BaseDatabaseWrapper) -> list[int] | None:
    assert query.search is not None
    assert query.target is not None
    matrix = matrix_of(query.search.index, query.target, connection)
    if matrix is None:
        return None
    wanted = query.wanted + (SPARE if query.is_cut_by_slice else 0)
    conditions = query.conditions()
    found: list[int] | None
    if not conditions and not is_restricted_by_joins(query):
        found = matrix.nearest(query.target.vector, wanted).ids
    else:
        found = _tried(query, connection, matrix, wanted)
        if found is None:
            found = _among_sources(query, connection, matrix, wanted, conditions)
    if found is None or query.is_cut_by_slice:
        return found
    return found[:wanted]


def matrix_of(index: Embeddings, target: Target, connection: BaseDatabaseWrapper) -> Matrix | None:
    """Return the matrix of a space; None if it takes more memory than is allowed."""
    from ..vectors import matrices

    collection = matrices.Collection(
        connection.alias, _tables(index), target.space, target.dimensions
    )
    return matrices.get(collection, matrices.Position(*target.position))


@cache
def _tables(index: Embeddings) -> Tables:
    from ..vectors import matrices

    columns = {field.name: field.column for field in index.chunk_model._meta.fields}
    return matrices.Tables(
        vectors=index.chunk_model._meta.db_table,
        log=ChunkChange._meta.db_table,
        id=columns["id"],
        key=columns["source"],
        vector=columns["vector"],
        part=columns["space"],
    )


def is_restricted_by_joins(query: SearchQuery) -> bool:
    """Tell whether joins alone may leave sources out, as those to a child's table do."""
    assert query.search is not None
    assert query.model is not None
    is_child = query.model._meta.concrete_model is not query.search.index.model
    return is_child or bool(query.extra_tables)


def _tried(
    query: SearchQuery, connection: BaseDatabaseWrapper, matrix: Matrix, wanted: int
) -> list[int] | None:
    """Try the nearest sources against the filters; None if too few meet them."""
    assert query.target is not None
    size = CANDIDATES_PER_HIT * wanted + FEWEST_CANDIDATES
    for _attempt in range(2):
        found = matrix.nearest(query.target.vector, size)
        passed = _passing(query, connection, found.ids)
        pairs = zip(found.ids, found.distances, strict=True)
        hits = [(id_, distance) for id_, distance in pairs if id_ in passed]
        if len(hits) >= wanted:
            last = hits[wanted - 1][1]
            return [id_ for id_, distance in hits if distance <= last]
        if len(found.ids) >= matrix.group_count:
            return [id_ for id_, _distance in hits]
        # As many as the first try's share of hits calls for, and half as many again.
        size = int(1.5 * wanted * len(found.ids) / max(0.1, len(hits))) + FEWEST_CANDIDATES
        if size > min(MOST_CANDIDATES, MOST_OF_ALL * matrix.group_count):
            return None
    return None


def _passing(query: SearchQuery, connection: BaseDatabaseWrapper, ids: list[int]) -> set[int]:
    probe = query.keys_only(query.chunk_id())
    probe.name_chunks(ids)
    return set(_first_column(probe, connection))


def _among_sources(
    query: SearchQuery,
    connection: BaseDatabaseWrapper,
    matrix: Matrix,
    wanted: int,
    conditions: list[Any],
) -> list[int] | None:
    """Search among the sources that meet the filters, all of them."""
    assert query.target is not None
    about_chunk = [node for node in conditions if query.mentions_chunk(node)]
    # "Nearer than" keeps a beginning of the order: the statement may check it afterwards.
    if query.extra_tables or not all(is_nearer_than(node) for node in about_chunk):
        return None
    about_source = [node for node in conditions if not query.mentions_chunk(node)]
    keys = _first_column(query.without_chunks(about_source), connection)
    return matrix.nearest(query.target.vector, wanted, keys).ids


def is_nearer_than(node: Any) -> bool:
    """Tell whether a condition is ``search_distance < constant`` or its like."""
    if isinstance(node, LessThan | LessThanOrEqual):
        is_nearer = type(node.lhs) is SearchDistance
    elif isinstance(node, GreaterThan | GreaterThanOrEqual):
        is_nearer = type(node.lhs) is SearchScore
    else:
        return False
    return is_nearer and not hasattr(node.rhs, "resolve_expression")


def _first_column(query: SearchQuery, connection: BaseDatabaseWrapper) -> list[Any]:
    """Return a column as the database stores it, as the matrix holds its keys."""
    try:
        sql, params = query.get_compiler(connection=connection).as_sql()
    except EmptyResultSet:
        return []
    return _read_column(connection, sql, params)


def _read_column(connection: BaseDatabaseWrapper, sql: str, params: Any) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return [row[0] for row in cursor.fetchall()]


# By index


def _nearest_by_index(query: SearchQuery, connection: BaseDatabaseWrapper) -> list[int] | None:
    wanted = query.wanted + (SPARE if query.is_cut_by_slice else 0)
    if wanted > MOST_NAMED:
        return None
    about_source = [node for node in query.conditions() if not query.mentions_chunk(node)]
    matching = query.without_chunks(about_source)
    matching.set_limits(high=FEW_SOURCES + 1)
    keys = _first_column(matching, connection)
    if not keys:
        return []
    if len(keys) <= FEW_SOURCES:
        return _first_column(query.nearest_hits_among(keys, wanted), connection)
    hits = query.nearest_hits(wanted)
    if wanted <= MOST_BY_INDEX:
        found = _walked(hits, connection, wanted)
        if len(found) == wanted:
            return found
    return _first_column(hits, connection)


def _walked(hits: SearchQuery, connection: BaseDatabaseWrapper, wanted: int) -> list[int]:
    """Return the first rows of a query that the space's index puts in order.

    The settings are made by the statement that needs them, which is a transaction
    of its own, whatever lies between here and the server. In a transaction of the
    caller's they are taken back.
    """
    assert hits.target is not None
    candidates = min(MOST_BY_INDEX, max(CANDIDATES, CANDIDATES_PER_WALKED_HIT * wanted))
    settings = {**WALK, "hnsw.ef_search": str(candidates)}
    walk = hits.clone()
    walk.is_by_index, walk.operand = True, "(SELECT vector FROM search_walk)"
    try:
        sql, params = walk.get_compiler(connection=connection).as_sql()
    except EmptyResultSet:
        return []
    is_kept = connection.in_atomic_block or not connection.get_autocommit()
    columns = [f"%s::halfvec({hits.target.dimensions}) AS vector"]
    columns += [_KEEP.format(name=name, kept=_kept(name)) for name in settings if is_kept]
    columns += [f"set_config('{name}', '{value}', true)" for name, value in settings.items()]
    sql = f"WITH search_walk AS MATERIALIZED (SELECT {', '.join(columns)}) {sql}"
    found = _read_column(connection, sql, (hits.target.parameter(connection), *params))
    if is_kept:
        restored = (_RESTORE.format(name=name, kept=_kept(name)) for name in settings)
        _read_column(connection, f"SELECT {', '.join(restored)}", None)
    return found


_KEEP = "set_config('{kept}', current_setting('{name}', true), true)"
_RESTORE = "set_config('{name}', nullif(current_setting('{kept}', true), ''), true)"


def _kept(name: str) -> str:
    return f"{KEPT}.{name.rpartition('.')[2]}"
