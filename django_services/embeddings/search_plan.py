"""Which chunks are the hits, found before the statement runs.

On SQLite the process holds a matrix of each space. The plan depends on what the
caller's filters leave: without filters the matrix answers alone; if many sources
meet them, the nearest are tried against them; if few do, the matrix is searched
among these. Where no plan is exact, the statement finds the hits itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.exceptions import EmptyResultSet
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.lookups import (
    GreaterThan,
    GreaterThanOrEqual,
    LessThan,
    LessThanOrEqual,
)

from .models import ChunkChange
from .search_query import SearchDistance, SearchQuery, SearchScore

if TYPE_CHECKING:
    from ..vectors.matrix import Matrix  # numpy loads with the first search

#: Vendors whose vectors this process keeps in memory.
IN_MEMORY = frozenset({"sqlite"})
#: Sources that may be deleted between plan and statement, without a slice missing any.
SPARE = 2
#: The first try takes so many candidates for each hit wanted, and so many at least.
CANDIDATES_PER_HIT = 4
FEWEST_CANDIDATES = 50
#: A second try takes at most so many, and this share of all: beyond it, to ask which
#: sources meet the filters is quicker.
MOST_CANDIDATES = 5_000
MOST_OF_ALL = 0.1


def nearest_chunks(query: SearchQuery, connection: BaseDatabaseWrapper) -> list[int] | None:
    """Return the ids of the chunks that are a resolved query's hits.

    Where the slice makes the cut there may be more than wanted: all that share
    the last distance, and a few to spare.

    Returns:
        None where the statement has to find the hits itself.
    """
    if connection.vendor not in IN_MEMORY or query.looks_outside():
        return None
    matrix = _matrix(query, connection)
    if matrix is None:
        return None
    wanted = query.wanted + (SPARE if query.is_cut_by_slice else 0)
    conditions = query.conditions()
    found: list[int] | None
    assert query.target is not None
    if not conditions and not _is_restricted_by_joins(query):
        found = matrix.nearest(query.target.vector, wanted).ids
    else:
        found = _tried(query, connection, matrix, wanted)
        if found is None:
            found = _among_sources(query, connection, matrix, wanted, conditions)
    if found is None or query.is_cut_by_slice:
        return found
    return found[:wanted]


def _matrix(query: SearchQuery, connection: BaseDatabaseWrapper) -> Matrix | None:
    from ..vectors import matrices

    assert query.search is not None
    assert query.target is not None
    columns = {field.name: field.column for field in query.search.index.chunk_model._meta.fields}
    tables = matrices.Tables(
        vectors=query.search.index.chunk_model._meta.db_table,
        log=ChunkChange._meta.db_table,
        id=columns["id"],
        key=columns["source"],
        vector=columns["vector"],
        part=columns["space"],
    )
    collection = matrices.Collection(
        connection.alias, tables, query.target.space, query.target.dimensions
    )
    return matrices.get(collection, matrices.Position(*query.target.position))


def _is_restricted_by_joins(query: SearchQuery) -> bool:
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
    if query.extra_tables or not all(_is_nearer_than(node) for node in about_chunk):
        return None
    about_source = [node for node in conditions if not query.mentions_chunk(node)]
    keys = _first_column(query.without_chunks(about_source), connection)
    return matrix.nearest(query.target.vector, wanted, keys).ids


def _is_nearer_than(node: Any) -> bool:
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
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return [row[0] for row in cursor.fetchall()]
