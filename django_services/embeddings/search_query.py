"""`SearchQuery`: the SQL of a search, of one shape wherever it stands.

The source table is joined to the chunks of the active space; of each source only
the chunk nearest to the query vector counts. Nothing is resolved before the query
is compiled: then the active space and the query vector are fixed for the
statement, and `search_plan` may name the chunks beforehand, which changes the
time that the statement takes and never its rows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import BigIntegerField, F, FloatField, Func, Model, Q
from django.db.models.expressions import Col, Expression, OrderBy, RawSQL
from django.db.models.lookups import In
from django.db.models.query_utils import FilteredRelation
from django.db.models.sql import Query
from django.db.models.sql.compiler import SQLCompiler
from django.db.models.sql.where import AND, ExtraWhere, WhereNode

from ..vectors.distances import distance_sql
from .declaration import Embeddings
from .models import Space
from .query_vectors import WantedNothing
from .search_target import Search, Target
from .statements import AMONG

Compiled: TypeAlias = tuple[str, tuple[Any, ...]]

CHUNK = "search_chunk"  # the joined chunk: ``values("search_chunk__start")``
DISTANCE = "search_distance"
SCORE = "search_score"
PASSAGE = "search_passage"

#: vendor -> a distance by which no index puts rows in order: the index's is approximate.
EXACT = {"postgresql": "({} + 0)"}
#: vendor -> what makes a parameter of a list of values as the database returned them.
_LIST: dict[str, Callable[[list[Any]], Any]] = {"sqlite": str, "postgresql": list}

# Expressions


def _target(
    search: Search, compiler: SQLCompiler, connection: BaseDatabaseWrapper
) -> Target | None:
    query = compiler.query
    if isinstance(query, SearchQuery) and query.is_resolved and query.search is search:
        return query.target
    # In a subquery of the caller's that looks out to the search.
    return search.latest(connection)


class SearchDistance(Func):
    """Cosine distance of a chunk's vector to what the search looks for."""

    arity = 1
    output_field = FloatField()
    template = "{}"

    def __init__(self, vector: Any, search: Search) -> None:
        super().__init__(vector)
        self.search = search

    @property
    def identity(self) -> tuple[Any, ...]:
        # Django's own looks at every argument's signature, for each comparison.
        (vector,) = self.get_source_expressions()
        place = (vector.alias, vector.target) if isinstance(vector, Col) else vector
        return type(self), self.search, place

    def as_sql(  # type: ignore[override]
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **_: Any
    ) -> Compiled:
        target = _target(self.search, compiler, connection)
        if target is None:
            return "NULL", ()
        column, _none = compiler.compile(self.get_source_expressions()[0])
        query = compiler.query
        operand = getattr(query, "operand", None)
        sql = distance_sql("cosine", connection.vendor, column, operand or "%s", target.dimensions)
        if not getattr(query, "is_by_index", False):
            sql = EXACT.get(connection.vendor, "{}").format(sql)
        return self.template.format(sql), () if operand else (target.parameter(connection),)

    def of(self, search: Search) -> SearchDistance:
        """Return the same of another search."""
        made = copy.copy(self)
        made.search = search
        return made


class SearchScore(SearchDistance):
    """Cosine of the angle: 1 same direction, 0 unrelated."""

    template = "(1 - {})"


class SearchedSpace(Expression):
    """The id of the space that is searched by the query in which it stands."""

    output_field = BigIntegerField()

    def as_sql(self, compiler: SQLCompiler, _connection: BaseDatabaseWrapper) -> Compiled:
        target = cast("SearchQuery", compiler.query).target
        return ("NULL", ()) if target is None else ("%s", (target.space,))


class _Condition(Expression):
    """Base of the conditions on a chunk that the query adds to itself."""

    conditional = True

    def __init__(self, chunk_id: Col) -> None:
        super().__init__()
        self.chunk_id = chunk_id

    def get_source_expressions(self) -> list[Any]:
        return [self.chunk_id]

    def set_source_expressions(self, exprs: Any) -> None:
        (self.chunk_id,) = exprs


class IsAmong(_Condition):
    """A column of the chunk, its id or its source, has one of the values named."""

    def __init__(self, column: Col, values: list[Any]) -> None:
        super().__init__(column)
        self.values = values

    def as_sql(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper) -> Compiled:
        column, _none = compiler.compile(self.chunk_id)
        write = _LIST[connection.vendor]
        return f"{column} {AMONG[connection.vendor]}", (write(self.values),)


class IsActive(Expression):
    """The space that is searched is still the one that answers."""

    conditional = True

    def __init__(self, search: Search) -> None:
        super().__init__()
        self.search = search

    def as_sql(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper) -> Compiled:
        quote = connection.ops.quote_name
        space, params = compiler.compile(SearchedSpace())
        sql = (
            f"EXISTS (SELECT 1 FROM {quote(Space._meta.db_table)} active WHERE active.id = {space}"
            f' AND active."index" = %s AND active.state = %s)'
        )
        return sql, (*params, self.search.label, Space.State.ACTIVE.value)


class IsNearestOfSource(_Condition):
    """No chunk of the same source and space is nearer; of equals the first counts."""

    def __init__(self, chunk_id: Col, search: Search) -> None:
        super().__init__(chunk_id)
        self.search = search

    def as_sql(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper) -> Compiled:
        quote = connection.ops.quote_name

        def name(alias: str, field: str) -> str:
            return compiler.compile(_column(self.search, alias, field))[0]

        own, closer = self.chunk_id.alias, "closer"
        space, space_params = compiler.compile(SearchedSpace())
        distances = [
            compiler.compile(SearchDistance(_column(self.search, alias, "vector"), self.search))
            for alias in (closer, own)
        ]
        (near, near_params), (far, far_params) = distances
        sql = (
            f"NOT EXISTS (SELECT 1 FROM {quote(self.chunk_id.target.model._meta.db_table)} {closer}"
            f" WHERE {name(closer, 'source')} = {name(own, 'source')}"
            f" AND {name(closer, 'space')} = {space}"
            f" AND ({near}, {name(closer, 'id')}) < ({far}, {name(own, 'id')}))"
        )
        return sql, (*space_params, *near_params, *far_params)


def _column(search: Search, alias: str, name: str) -> Col:
    return Col(alias, search.index.chunk_model._meta.get_field(name))


# The query


class SearchQuery(Query):
    """The query of a search; without `search` an ordinary one."""

    search: Search | None = None
    target: Target | None = None
    #: Set on the copy that is compiled: space and vector are fixed.
    is_resolved = False
    #: How many hits an existence test looks at; None: by slice and `max_hits`.
    depth: int | None = None
    #: Whether any hit will do: then it does not matter which the nearest are.
    is_any = False
    #: Whether the part of a compound statement may be ordered and sliced.
    may_be_ordered_part = True
    #: Whether an index may put the rows in order, near enough.
    is_by_index = False
    #: SQL of the query vector, where the statement names it; None: a parameter.
    operand: str | None = None
    #: What a search of all rows of the model was at its beginning, by attribute.
    beginning: dict[str, Any] | None = None

    if TYPE_CHECKING:

        def clone(self) -> SearchQuery: ...

    def begin(self, search: Search) -> None:
        """Make this the query of a search: join the chunks, annotate, order."""
        self.search = search
        self.standard_ordering = True
        is_joined = len(self.alias_map) > 1 or self.annotations or self._filtered_relations
        if is_joined:
            self._join_chunks(search)
        else:
            self._join_chunks_like(_joined_to_chunks(self.model, search.index))
        vector = _column(search, CHUNK, "vector")
        self.add_annotation(SearchDistance(vector, search), DISTANCE)
        self.add_annotation(SearchScore(vector, search), SCORE)
        self.add_annotation(_column(search, CHUNK, "text"), PASSAGE)
        self.clear_ordering(force=True)
        self.add_ordering(DISTANCE, "pk")
        # A row that left the condition is no hit, even while its change is pending.
        if search.index.condition is not None:
            self.add_q(search.index.condition)

    def of(self, search: Search) -> SearchQuery:
        """Return the query of another search that has the same shape."""
        query = self.clone()
        query.search = search
        for name in (DISTANCE, SCORE):
            query.annotations[name] = cast("SearchDistance", self.annotations[name]).of(search)
        # What stands in this one never changes.
        own = {"search": search, "annotations": query.annotations.copy()}
        query.beginning = {**self.__dict__, **own}
        return query

    @property
    def is_as_begun(self) -> bool:
        """Whether nothing but a slice was added to a search of all rows of the model."""
        begun = self.beginning
        return begun is not None and all(
            name in _FREE or (name in begun and begun[name] == value)
            for name, value in self.__dict__.items()
        )

    def _join_chunks(self, search: Search) -> None:
        condition = Q(**{f"{search.index.query_name}__space": SearchedSpace()})
        relation = FilteredRelation(search.index.query_name, condition=condition)
        self.add_filtered_relation(relation, CHUNK)
        self.setup_joins([CHUNK], self.get_meta(), self.get_initial_alias())
        join: Any = self.alias_map[CHUNK]
        # A source without a chunk is no hit.
        self.alias_map[CHUNK] = join.demote()

    def _join_chunks_like(self, other: SearchQuery) -> None:
        """Join as another search of the model does, without finding the way again."""
        self._filtered_relations: dict[str, Any] = dict(other._filtered_relations)
        self.alias_map = dict(other.alias_map)
        self.alias_refcount = dict(other.alias_refcount)
        self.table_map = {table: list(aliases) for table, aliases in other.table_map.items()}

    # -- what the hits are ----------------------------------------------------

    @property
    def chunk_alias(self) -> str:
        """The alias of the joined chunks, which Django renames in subqueries."""
        for alias, join in self.alias_map.items():
            relation = getattr(join, "filtered_relation", None)
            if relation is not None and relation.alias == CHUNK:
                return alias
        raise AssertionError("A search joins its chunks from the beginning.")

    @property
    def is_cut_by_slice(self) -> bool:
        """Whether the hits are the nearest up to the slice's end, at any depth."""
        return (
            self.high_mark is not None
            and self.depth is None
            and self._is_nearest_first()
            and not isinstance(self.group_by, tuple)
            and (self.default_cols or not self.distinct)
            and self._parts_of_where()[1] is None
        )

    @property
    def wanted(self) -> int:
        """How many of the nearest sources are the hits."""
        assert self.search is not None
        if self.depth is not None:
            return self.depth
        if self.is_cut_by_slice and self.high_mark is not None:
            return self.high_mark
        return self.search.max_hits

    def _is_nearest_first(self) -> bool:
        if not self.order_by or self.extra_order_by or not self.standard_ordering:
            return False
        if not isinstance(self.annotations.get(DISTANCE), SearchDistance):
            return False
        first: Any = self.order_by[0]
        is_descending = False
        if isinstance(first, OrderBy):
            first, is_descending = first.expression, first.descending
        name = str(cast("Any", first).name if isinstance(first, F) else first)
        if is_descending:
            name = f"-{name}"
        return name in {DISTANCE, f"-{SCORE}"}

    def conditions(self) -> list[Any]:
        """Return the conditions that a source must meet to be a hit, joined by AND."""
        return list(_flattened(self._parts_of_where()[0]))

    def _parts_of_where(self) -> tuple[WhereNode | None, WhereNode | None]:
        """Return what decides which sources are hits, and what applies to the hits.

        Of the latter kind are conditions on groups (``values(…).annotate(…)``)
        and on window functions: they look at the hits, all together.
        """
        where, having, qualify = self.where.split_having_qualify(
            must_group_by=self.group_by is not None
        )
        after = [qualify]
        if self.group_by is True:
            where = _joined([where, having])
        else:
            after.append(having)
        return where, _joined(after)

    # -- Django's hooks -------------------------------------------------------

    def exists(self, limit: bool = True) -> Query:
        found = cast("SearchQuery", super().exists(limit=limit))
        if self.search is not None and not self.combinator:
            # The ordering is gone from it, and with it what the slice meant.
            found.depth = self.wanted
            found.is_any = not self.is_sliced and self._parts_of_where()[1] is None
        return found

    def get_compiler(
        self,
        using: str | None = None,
        connection: BaseDatabaseWrapper | None = None,
        elide_empty: bool = True,
    ) -> SQLCompiler:
        is_ordinary = self.search is None or self.is_resolved or self.combinator
        if is_ordinary or (using is None and connection is None):
            compiler: SQLCompiler = super().get_compiler(using, connection, elide_empty)
            return compiler
        if self.is_empty():
            query = self.clone()
            query.is_resolved = True
            return query.get_compiler(using, connection, elide_empty)
        if connection is None:
            from .search_compiler import compiler_of

            return compiler_of(self, cast("str", using), elide_empty)
        # Only the parts of a compound statement are given both.
        is_part = using is not None
        ready = self.resolved(connection)
        if is_part and not ready.may_be_ordered_part:
            ready = ready.without_order()
        return ready.get_compiler(using, connection, elide_empty)

    # -- the copy that is compiled ----------------------------------------------

    def resolved(self, connection: BaseDatabaseWrapper) -> SearchQuery:
        """Return the query of one statement: of one space, one vector, its hits."""
        from . import search_plan

        assert self.search is not None
        query = self.for_target(self.search.resolve(connection))
        query.may_be_ordered_part = connection.features.supports_slicing_ordering_in_compound
        if query.target is None:
            return query
        if query.is_any and not any(map(query.mentions_chunk, query.conditions())):
            return query
        ids = search_plan.nearest_chunks(query, connection)
        if ids is None:
            query._restrict_to_nearest()
        elif not ids:
            query.set_empty()
        else:
            query.name_chunks(ids)
        return query

    def for_target(self, target: Target | None) -> SearchQuery:
        """Return the query of a space and a vector, in which each source is one row.

        It may have as many rows as the source has chunks; None is no row.
        """
        query = self.clone()
        query.target, query.is_resolved = target, True
        if target is None:
            query.set_empty()
            return query
        # Counting drops the annotations that the join was made for.
        query.alias_refcount[query.chunk_alias] = 1
        query._count_sources_once()
        return query

    def without_order(self) -> SearchQuery:
        """Return the same rows in no order, for SQLite's compound statements."""
        query = self.clone()
        if self.is_sliced:
            query.where = _where([In(self.chunk_id(), self.keys_only(self.chunk_id(), keep=True))])
            query._drop_joins(query._aliases_of_many())
        query.clear_ordering(force=True)
        query.clear_limits()
        return query

    def chunk_id(self) -> Col:
        assert self.search is not None
        return _column(self.search, self.chunk_alias, "id")

    def source_key(self) -> Col:
        """The column of the source that its chunks point to."""
        join: Any = self.alias_map[self.chunk_alias]
        return Col(join.parent_alias, join.join_fields[0][0])

    def keys_only(self, column: Col, *, keep: bool = False) -> SearchQuery:
        """Return this query with one column and nothing that is only shown.

        Args:
            column: The column.
            keep: Keep slice, order, grouping and all conditions.
        """
        query = self.clone()
        query.clear_select_clause()
        query.select, query.selected = (column,), {"key": 0}
        query.select_for_update = False
        query.subquery = keep
        if keep:
            return query
        query.where = _where(self.conditions())
        query.clear_ordering(force=True)
        query.clear_limits()
        query.distinct, query.distinct_fields = False, ()
        if isinstance(query.group_by, tuple):
            query.group_by = None
        return query

    def mentions_chunk(self, node: Any) -> bool:
        """Tell whether a condition looks at the chunk, or may."""
        return any(alias in {self.chunk_alias, None} for alias in _aliases([node]))

    def looks_outside(self) -> bool:
        """Tell whether a condition refers to a query around this one."""
        return any(
            alias is not None and alias not in self.alias_map for alias in _aliases([self.where])
        )

    def without_chunks(self, conditions: list[Any]) -> SearchQuery:
        """Return the keys of the sources that meet conditions on them alone."""
        query = self.keys_only(self.source_key())
        query.where = _where(conditions)
        query.alias_refcount[query.chunk_alias] = 0
        return query

    def nearest_hits_among(self, keys: list[Any], wanted: int) -> SearchQuery:
        """Return `nearest_hits` of sources that are known to meet all conditions on them."""
        assert self.search is not None
        hits = self.nearest_hits(wanted)
        about_chunk = [node for node in self.conditions() if self.mentions_chunk(node)]
        source = _column(self.search, self.chunk_alias, "source")
        nearest = IsNearestOfSource(self.chunk_id(), self.search)
        hits.where = _where([*about_chunk, IsAmong(source, keys), nearest])
        needed = hits._with_parents({self.chunk_alias, *_aliases(about_chunk)})
        hits._drop_joins(set(hits.alias_map) - needed)
        return hits

    def _with_parents(self, aliases: Iterable[str | None]) -> set[str]:
        """Return aliases and those that their joins lead through."""
        found: set[str] = set()
        for alias in aliases:
            above = alias
            while above in self.alias_map and above not in found:
                found.add(above)
                above = getattr(self.alias_map[above], "parent_alias", None)
        return found

    def name_chunks(self, ids: list[int]) -> None:
        """Leave only chunks of these ids, which are of the space that is searched."""
        self.where.add(IsAmong(self.chunk_id(), ids), AND)
        # With a condition on the space, SQLite would go through all of its chunks.
        alias = self.chunk_alias
        join: Any = copy.copy(self.alias_map[alias])
        join.filtered_relation = join.filtered_relation.clone()
        join.filtered_relation.resolved_condition = WhereNode()
        self.alias_map[alias] = join

    def _restrict_to_nearest(self) -> None:
        """Choose the hits in SQL alone."""
        assert self.search is not None
        if self.is_cut_by_slice or self.is_any:
            self.where.add(IsNearestOfSource(self.chunk_id(), self.search), AND)
            return
        hits = self.nearest_hits(self.wanted)
        hits.subquery = True
        self.where.add(In(self.chunk_id(), hits), AND)

    def nearest_hits(self, wanted: int) -> SearchQuery:
        """Return the ids of the chunks that are the hits, nearest first."""
        assert self.search is not None
        hits = self.keys_only(self.chunk_id())
        hits.where.add(IsNearestOfSource(self.chunk_id(), self.search), AND)
        if self.is_cut_by_slice:
            hits.order_by = self.order_by
        else:
            distance = SearchDistance(_column(self.search, self.chunk_alias, "vector"), self.search)
            hits.standard_ordering = True
            hits.order_by = (distance.asc(), self.source_key().asc())
        hits.set_limits(high=wanted)
        return hits

    def _count_sources_once(self) -> None:
        """Put conditions on many related rows where they cannot multiply the hits.

        ``filter(tags__name__in=[…])`` joins a source once for each tag that
        matches. Unless such a join is also shown, it moves into a subquery.
        """
        many = self._aliases_of_many()
        conditions = self.conditions()
        shown = set(_aliases([*self.annotation_select.values(), *self.select, *self.order_by]))
        is_multiplied = many & set(_aliases(conditions)) and not many & shown
        if not is_multiplied or self.group_by is not None:
            return
        about_chunk = [node for node in conditions if self.mentions_chunk(node)]
        kept = about_chunk
        if not many & set(_aliases(about_chunk)):
            about_source = [node for node in conditions if not self.mentions_chunk(node)]
            column, inner = self.source_key(), self.without_chunks(about_source)
        else:
            column, inner, kept = self.chunk_id(), self.keys_only(self.chunk_id()), []
        inner.subquery = True
        after = self._parts_of_where()[1]
        self.where = _where([In(column, inner), *kept, *_flattened(after)])
        self._drop_joins(many)

    def _aliases_of_many(self) -> set[str]:
        """Return the aliases of joins, but the chunks', that may multiply the rows."""
        many: set[str] = set()
        for alias, join in self.alias_map.items():
            field = getattr(join, "join_field", None)
            is_many = field is not None and (field.one_to_many or field.many_to_many)
            if alias != self.chunk_alias and (is_many or join.parent_alias in many):
                many.add(alias)
        return {alias for alias in many if self.alias_refcount[alias]}

    def _drop_joins(self, aliases: Iterable[str]) -> None:
        for alias in aliases:
            self.alias_refcount[alias] = 0


#: What a slice changes, and what is derived.
_FREE = frozenset({"low_mark", "high_mark", "beginning", "base_table"})


def begun(query: Query, search: Search) -> SearchQuery:
    """Return the query of a search in a query's rows."""
    model = cast("type[Model]", query.model)
    if type(query) is Query and query.__dict__ == _untouched(model):
        return beginning(model, search.index).of(search)
    chained = cast("SearchQuery", query.chain(SearchQuery))
    chained.begin(search)
    return chained


@cache
def _untouched(model: type[Model]) -> dict[str, Any]:
    return Query(model).chain().__dict__


def beginning(model: type[Model], index: Embeddings) -> SearchQuery:
    """Return a search of all rows of the model, for nothing."""
    return _beginning(model, index, id(index.condition))


@cache
def _beginning(model: type[Model], index: Embeddings, _condition: int) -> SearchQuery:
    query = SearchQuery(model)
    query.begin(Search(index, WantedNothing(), None))
    return cast("SearchQuery", query.chain())


@cache
def _joined_to_chunks(model: type[Model], index: Embeddings) -> SearchQuery:
    query = SearchQuery(model)
    query._join_chunks(Search(index, WantedNothing(), None))
    return query


def _where(conditions: Iterable[Any]) -> WhereNode:
    return WhereNode(list(conditions), connector=AND)


def _joined(nodes: Iterable[WhereNode | None]) -> WhereNode | None:
    present = [node for node in nodes if node is not None]
    return _where(present) if present else None


def _flattened(node: Any) -> Iterator[Any]:
    if node is None:
        return
    if isinstance(node, WhereNode) and node.connector == AND and not node.negated:
        for child in node.children:
            yield from _flattened(child)
    else:
        yield node


def _aliases(nodes: Iterable[Any]) -> Iterator[str | None]:
    """Yield the aliases of the columns that nodes look at; None for what is opaque."""
    for node in nodes:
        if isinstance(node, Col):
            yield node.alias
        elif isinstance(node, RawSQL | ExtraWhere):
            yield None
        elif callable(getattr(node, "get_external_cols", None)):
            yield from (column.alias for column in node.get_external_cols())
        elif isinstance(node, WhereNode):
            yield from _aliases(node.children)
        elif hasattr(node, "get_source_expressions"):
            yield from _aliases(node.get_source_expressions())
