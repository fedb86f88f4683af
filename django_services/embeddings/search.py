"""Searching by meaning through the ORM.

``Article.embeddings.search("…")``, or ``Article.objects.search("…")`` where the
manager is a `SearchManager`, is a lazy queryset of the model's own class. Its
hits are the ``max_hits`` nearest of the rows that meet all filters, wherever
these stand; a slice in the order of distance reaches as deep as it says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from django.db import models, transaction
from django.db.models import Q
from django.db.models.query import EmptyQuerySet

from ..exceptions import InvalidInput
from ..privacy import private
from .declaration import Embeddings
from .models import Chunk, Space

if TYPE_CHECKING:
    from .query_vectors import Wanted

# What a search is made of loads with the first one: models import this module.

M = TypeVar("M", bound=models.Model)

MOST_HITS = 1_000_000
DEFAULT_INDEX = "embeddings"
ORDER_OF_CHUNKS = ("source", "number")
BATCH = 500  # keys in one statement; SQLite takes 999 parameters at least


class SearchQuerySet(models.QuerySet[M]):
    """A queryset that can search by meaning.

    Every hit carries ``search_distance`` (cosine distance, 0 to 2, the smaller
    the nearer), ``search_score`` (1 - distance) and ``search_passage`` (the
    chunk that is nearest).
    """

    def search(
        self, text: str, *, index: str | None = None, max_hits: int | None = None
    ) -> SearchQuerySet[M]:
        """Return the rows nearest in meaning to a text, nearest first.

        Nothing is sent or read before the queryset is evaluated. Filters before
        and after mean the same: which rows may be hits.

        Args:
            text: What to look for.
            index: Attribute of the declaration; needed where the model has several
                and none is named ``embeddings``.
            max_hits: How many hits a search has that is not sliced, 1 to
                1,000,000; else ``EMBEDDINGS["MAX_HITS"]``.

        Raises:
            InvalidInput: An argument cannot be used, or the queryset is sliced,
                combined or of values.
        """
        text = cast("str", private(text))
        from .query_vectors import WantedText

        return searched(self, index, WantedText(text), max_hits)

    def nearest(
        self, vector: Any, *, index: str | None = None, max_hits: int | None = None
    ) -> SearchQuerySet[M]:
        """Return the rows nearest to a vector of the index's model, nearest first.

        Raises:
            InvalidInput: As `search`; or no vector, or zero, NaN, infinity.
            DimensionMismatch: Another length than the index's; on evaluation.
        """
        vector = private(vector)
        from .query_vectors import WantedVector

        return searched(self, index, WantedVector(vector), max_hits)

    def similar_to(
        self, instance: models.Model, *, index: str | None = None, max_hits: int | None = None
    ) -> SearchQuerySet[M]:
        """Return the rows that resemble a row, which is not among them.

        They are nearest to the mean direction of the row's chunks, as stored.

        Raises:
            InvalidInput: As `search`; or the row is of another model or unsaved;
                or, on evaluation, it has no embeddings yet.
        """
        declared = declaration(self.model, index)
        if not isinstance(instance, declared.model):
            raise InvalidInput(
                f"similar_to() takes an instance of {declared.model._meta.label}, "
                f"not of {type(instance).__name__}."
            )
        from .query_vectors import WantedLike

        wanted = WantedLike(instance)
        return searched(self, index, wanted, max_hits).exclude(pk=wanted.key)

    @property
    def is_search(self) -> bool:
        """Whether the rows are hits."""
        return getattr(self.query, "search", None) is not None

    # What follows makes hits behave as the rows of any queryset.

    def contains(self, obj: models.Model) -> bool:
        if self.is_search:
            # A filter by key would choose the hits anew, among this one row.
            self._fetch_all()
        return super().contains(obj)

    def delete(self) -> tuple[int, dict[str, int]]:
        """Delete the hits, and nothing but them."""
        if not self.is_search:
            return super().delete()
        self._forbid_partial("delete")
        counts: Counter[str] = Counter()
        for rows in self._batches_of_hits():
            counts.update(_plain_call(rows, "delete")[1])
        return sum(counts.values()), dict(counts)

    delete.alters_data = True  # type: ignore[attr-defined]
    delete.queryset_only = True  # type: ignore[attr-defined]

    def update(self, **values: Any) -> int:
        """Update the hits, and nothing but them."""
        if not self.is_search:
            return super().update(**values)
        self._forbid_partial("update")
        return sum(_plain_call(rows, "update", **values) for rows in self._batches_of_hits())

    update.alters_data = True  # type: ignore[attr-defined]

    def __and__(self, other: Any) -> Any:
        if isinstance(other, EmptyQuerySet):
            return other
        if isinstance(self, EmptyQuerySet):
            return self
        if self.is_search:
            return self.filter(pk__in=other.values("pk"))
        if _is_search(other):
            return other.filter(pk__in=self.values("pk"))
        return super().__and__(other)

    __rand__ = __and__

    def __or__(self, other: Any) -> Any:
        self._forbid_either(other, "|")
        return super().__or__(other)

    def __xor__(self, other: Any) -> Any:
        self._forbid_either(other, "^")
        return super().__xor__(other)

    __ror__ = __or__
    __rxor__ = __xor__

    def __repr__(self) -> str:
        search = getattr(self.query, "search", None)
        if self._result_cache is None and search is not None and search.error is not None:
            # A page that shows an error shows this queryset again and again.
            return f"<{type(self).__name__} not evaluated: {type(search.error).__name__}>"
        return super().__repr__()

    def _forbid_partial(self, verb: str) -> None:
        self._not_support_combined_queries(verb)  # type: ignore[attr-defined]
        if self.query.is_sliced:
            raise TypeError(f"Cannot {verb} the hits of a slice. Give search(max_hits=…) instead.")
        if self._fields is not None:  # type: ignore[attr-defined]
            raise TypeError(f"Cannot call {verb}() after .values() or .values_list()")

    def _forbid_either(self, other: Any, operator: str) -> None:
        if self.is_search or _is_search(other):
            raise InvalidInput(
                f"A search cannot be combined by {operator!r}: its rows have distances, others "
                "have none. Use union(), or Q objects in filter()."
            )

    def _batches_of_hits(self) -> Iterator[models.QuerySet[M]]:
        """Yield querysets of the hits by key, all in one transaction."""
        self._for_write = True
        alias = self.db
        kind = getattr(type(self), "searched_class", type(self))
        with transaction.atomic(using=alias, savepoint=False):
            keys = list(self.using(alias).order_by().values_list("pk", flat=True).distinct())
            for start in range(0, len(keys), BATCH):
                rows = kind(model=self.model, using=alias, hints=self._hints)  # type: ignore[attr-defined]
                yield rows.filter(pk__in=keys[start : start + BATCH])
        self._result_cache = None


def _plain_call(rows: models.QuerySet[Any], method: str, **values: Any) -> Any:
    # A class of the user's own that overrides the method has been here already.
    bound = super(SearchQuerySet, rows) if isinstance(rows, SearchQuerySet) else rows
    return getattr(bound, method)(**values)


def _is_search(queryset: Any) -> bool:
    return getattr(getattr(queryset, "query", None), "search", None) is not None


class SearchManager(models.Manager.from_queryset(SearchQuerySet)):  # type: ignore[misc]
    """A manager whose querysets can search: ``objects = SearchManager()``."""


def searched(
    queryset: models.QuerySet[M], name: str | None, wanted: Wanted, max_hits: int | None
) -> SearchQuerySet[M]:
    """Return the queryset's rows as hits, of the queryset's own class."""
    from .search_query import begun
    from .search_target import Search

    index = declaration(queryset.model, name)
    _check_queryset(queryset)
    _check_max_hits(max_hits)
    hits = cast("SearchQuerySet[M]", queryset._chain())  # type: ignore[attr-defined]
    hits.__class__ = result_class(type(queryset))
    hits.query = begun(hits.query, Search(index, wanted, max_hits))
    return hits


def declaration(model: type[models.Model], name: str | None = None) -> Embeddings:
    """Return the model's declaration of a name, or the only or default one.

    Raises:
        InvalidInput: The model has none, or it is not clear which.
    """
    fields = model._meta.private_fields
    declared = {field.name: field.origin for field in fields if isinstance(field, Embeddings)}
    if not declared:
        raise InvalidInput(
            f"{model._meta.label} declares no embeddings. Add to it: "
            f'{DEFAULT_INDEX} = Embeddings("…").'
        )
    if name is None:
        name = DEFAULT_INDEX if len(declared) > 1 else next(iter(declared))
    if name not in declared:
        raise InvalidInput(
            f"{model._meta.label} declares the embeddings {', '.join(sorted(declared))}: "
            "say which, search(…, index=…)."
        )
    return declared[name]


@cache
def result_class(kind: type[models.QuerySet[Any]]) -> type[SearchQuerySet[Any]]:
    """Return the queryset class that has the methods of ``kind`` and can search."""
    if issubclass(kind, SearchQuerySet):
        return kind
    attributes = {"__module__": __name__, "searched_class": kind, "__reduce__": _reduce}
    return type(f"Searched{kind.__name__}", (SearchQuerySet, kind), attributes)


def _reduce(queryset: Any) -> tuple[Any, ...]:
    return _restore, (queryset.searched_class,), queryset.__getstate__()


def _restore(kind: type[models.QuerySet[Any]]) -> SearchQuerySet[Any]:
    """Return an empty shell of a pickled queryset whose class is made here."""
    made = result_class(kind)
    return made.__new__(made)


def _check_queryset(queryset: models.QuerySet[Any]) -> None:
    query = queryset.query
    if _is_search(queryset):
        raise InvalidInput("This queryset is a search already: filter it, or begin a new one.")
    if query.combinator:
        raise InvalidInput(f"A {query.combinator}() cannot be searched: search its parts.")
    if query.is_sliced:
        raise InvalidInput("A slice cannot be searched: search first, then slice.")
    if queryset._fields is not None:  # type: ignore[attr-defined]
        raise InvalidInput("values() cannot be searched: search first, then take values().")
    from .search_query import DISTANCE, PASSAGE, SCORE

    taken = {DISTANCE, SCORE, PASSAGE}
    taken &= {*query.annotations, *(field.name for field in queryset.model._meta.get_fields())}
    if taken:
        raise InvalidInput(
            f"A search annotates {', '.join(sorted(taken))}, and {queryset.model._meta.label} "
            "has that name already: rename it."
        )


def _check_max_hits(max_hits: Any) -> None:
    is_count = isinstance(max_hits, int) and not isinstance(max_hits, bool)
    if max_hits is not None and not (is_count and 1 <= max_hits <= MOST_HITS):
        raise InvalidInput(f"max_hits is a number from 1 to {MOST_HITS:,}, not {max_hits!r}.")


class ModelAccessor(Generic[M]):
    """``Article.embeddings``: searches in one declaration of a model.

    The methods are those of `SearchQuerySet`, of all that the model's default
    manager shows.
    """

    def __init__(self, model: type[M], index: Embeddings, using: str | None = None) -> None:
        self.model = model
        self.index = index
        self._using = using

    def __repr__(self) -> str:
        return f"<embeddings {self.index.name} of {self.model._meta.label}>"

    def using(self, alias: str) -> ModelAccessor[M]:
        """Return the same of another database."""
        return ModelAccessor(self.model, self.index, alias)

    def search(self, text: str, *, max_hits: int | None = None) -> SearchQuerySet[M]:
        """Return the rows nearest in meaning to a text; see `SearchQuerySet.search`."""
        text = cast("str", private(text))
        return self._rows().search(text, index=self.index.name, max_hits=max_hits)

    def nearest(self, vector: Any, *, max_hits: int | None = None) -> SearchQuerySet[M]:
        """Return the rows nearest to a vector; see `SearchQuerySet.nearest`."""
        vector = private(vector)
        return self._rows().nearest(vector, index=self.index.name, max_hits=max_hits)

    def similar_to(
        self, instance: models.Model, *, max_hits: int | None = None
    ) -> SearchQuerySet[M]:
        """Return the rows that resemble a row; see `SearchQuerySet.similar_to`."""
        return self._rows().similar_to(instance, index=self.index.name, max_hits=max_hits)

    def _rows(self) -> SearchQuerySet[M]:
        rows = self.model._default_manager.get_queryset()
        if self._using is not None:
            rows = rows.using(self._using)
        rows.__class__ = result_class(type(rows))
        return cast("SearchQuerySet[M]", rows)


class InstanceAccessor(models.Manager[Chunk]):
    """``article.embeddings``: the row's chunks in the active space, in their order.

    Raises:
        InvalidInput: The row is not saved.
    """

    def __init__(self, instance: models.Model, index: Embeddings) -> None:
        super().__init__()
        if instance.pk is None:
            raise InvalidInput(
                f"This {instance._meta.object_name} has no embeddings: save it first."
            )
        self.model = index.chunk_model
        self.name = index.name
        self.instance = instance
        self.index = index
        self._db = instance._state.db
        self._hints = {"instance": instance}

    def get_queryset(self) -> models.QuerySet[Chunk]:
        prefetched = getattr(self.instance, "_prefetched_objects_cache", {})
        if self.index.name in prefetched:
            found: models.QuerySet[Chunk] = prefetched[self.index.name]
            return found
        return self._apply_rel_filters(super().get_queryset())

    def _apply_rel_filters(self, chunks: models.QuerySet[Chunk]) -> models.QuerySet[Chunk]:
        return self._in_active_space(chunks).filter(Q(source=self.instance.pk))

    def _in_active_space(self, chunks: models.QuerySet[Chunk]) -> models.QuerySet[Chunk]:
        active = Space.objects.using(self._db).filter(
            index=self.index.label, state=Space.State.ACTIVE
        )
        return chunks.filter(space__in=active).order_by(*ORDER_OF_CHUNKS)

    def get_prefetch_querysets(
        self, instances: list[models.Model], querysets: list[models.QuerySet[Chunk]] | None = None
    ) -> tuple[Any, ...]:
        """Return the chunks of many rows, for ``prefetch_related``."""
        if querysets and len(querysets) != 1:
            raise ValueError("querysets argument should have a length of 1.")
        chunks = querysets[0] if querysets else super().get_queryset()
        chunks = self._in_active_space(chunks.using(chunks._db or self._db))  # type: ignore[attr-defined]
        found = chunks.filter(Q(source__in=[instance.pk for instance in instances]))
        return (
            found,
            attrgetter("source_id"),
            attrgetter("pk"),
            False,
            self.index.name,
            False,
        )
