"""A remembered statement is that of the search at hand, whatever was done to a queryset."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.exceptions import FieldError
from django.db import connection
from django.db.models import Count, F, FilteredRelation, Q, Value
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from django_services.embeddings import search_compiler, search_plan
from django_services.embeddings.search_target import NOWHERE, Target
from tests.testapp.models import Article, BlogPost, Category, FeaturedArticle, Note, Page, Product

from .stored import new_space, random_vectors, store

QUERY = random_vectors(1, seed=99)[0]
TARGET = Target(3, 16, QUERY.tobytes(), NOWHERE)

STEPS = {
    "filter": lambda rows: rows.filter(views=1),
    "exclude": lambda rows: rows.exclude(pk=5),
    "filter again": lambda rows: rows.filter(published=True),
    "filter by tag": lambda rows: rows.filter(tags__name="red"),
    "filter by distance": lambda rows: rows.filter(search_distance__lt=0.5),
    "empty filter": lambda rows: rows.filter(),
    "empty Q": lambda rows: rows.filter(Q()),
    "order": lambda rows: rows.order_by("search_distance"),
    "order as begun": lambda rows: rows.order_by("search_distance", "pk"),
    "reverse": lambda rows: rows.reverse(),
    "only": lambda rows: rows.only("title"),
    "defer": lambda rows: rows.defer("body"),
    "defer nothing": lambda rows: rows.defer("body").defer(None),
    "related": lambda rows: rows.select_related("category"),
    "no longer related": lambda rows: rows.select_related("category").select_related(None),
    "annotate": lambda rows: rows.annotate(twice=F("views") * 2),
    "alias": lambda rows: rows.alias(one=Value(1)),
    "group": lambda rows: rows.annotate(tag_count=Count("tags")),
    "relation": lambda rows: rows.annotate(
        red=FilteredRelation("tags", condition=Q(tags__name="red"))
    ),
    "distinct": lambda rows: rows.distinct(),
    "values": lambda rows: rows.values("pk"),
    "list": lambda rows: rows.values_list("title", flat=True),
    "extra": lambda rows: rows.extra(select={"one": "1"}),
    "lock": lambda rows: rows.select_for_update(),
    "all": lambda rows: rows.all(),
    "other database": lambda rows: rows.using("default"),
    "none": lambda rows: rows.none(),
    "prefetch": lambda rows: rows.prefetch_related("tags"),
}


def compiled(query: Any) -> tuple[str, tuple[Any, ...], list[Any]]:
    """Compile a search as it stands, without its slice."""
    ready = query.for_target(TARGET)
    ready.clear_limits()
    compiler = ready.get_compiler("default")
    sql, params = compiler.as_sql()
    return sql, params, [column[0].target for column in compiler.select[:3]]


@given(
    steps=st.lists(st.sampled_from(sorted(STEPS)), max_size=4),
    bounds=st.tuples(st.integers(0, 5), st.integers(6, 40)),
)
@settings(max_examples=150, deadline=None)
def test_what_is_taken_for_a_search_as_begun_compiles_to_the_same_sql(steps, bounds):
    begun = Article.embeddings.nearest(QUERY)
    rows = begun
    try:
        for step in steps:
            rows = STEPS[step](rows)
    except (TypeError, FieldError):  # Django does not allow the one after the other
        reject()
    rows = rows[slice(*bounds)]

    if rows.query.is_as_begun:
        assert compiled(rows.query) == compiled(begun.query)


@pytest.mark.parametrize("step", sorted(STEPS))
def test_each_change_of_the_sql_is_noticed(step):
    begun = Article.embeddings.nearest(QUERY)

    changed = STEPS[step](begun)

    harmless = {"all", "other database", "empty filter", "empty Q", "prefetch"}
    neutral = {"defer nothing", "no longer related", "order as begun"}
    assert begun.query.is_as_begun
    assert not changed.query.is_as_begun or step in harmless | neutral
    assert changed.query.is_as_begun or step not in harmless


@pytest.mark.parametrize("model", [Article, BlogPost, FeaturedArticle, Note, Page, Product])
def test_searches_of_all_rows_are_alike(model):
    accessor = model.contents if model is Page else model.embeddings

    first, second = accessor.nearest(QUERY), accessor.nearest(-QUERY)

    assert first.query.is_as_begun
    assert compiled(first[:9].query) == compiled(second[3:].query)


def test_rows_that_a_manager_or_relation_chose_are_another_search():
    rows = Category(pk=4).article_set.nearest(QUERY)

    assert not rows.query.is_as_begun
    assert Article.objects.nearest(QUERY).query.is_as_begun
    assert not Article.objects.filter(views=1).nearest(QUERY).query.is_as_begun


def test_a_query_changed_in_place_is_noticed():
    rows = Article.embeddings.nearest(QUERY)

    rows.query.add_q(Q(views=3))

    assert not rows.query.is_as_begun
    assert Article.embeddings.nearest(QUERY).query.is_as_begun


@pytest.mark.django_db
def test_no_search_is_remembered_with_its_statement():
    index = Product.embeddings.index
    rows = Product.objects.bulk_create(Product(description=str(n), sku="1") for n in range(20))
    vectors = random_vectors(20, seed=1)
    store(index, new_space(index), {p: [v] for p, v in zip(rows, vectors, strict=True)})
    search_compiler._statements.clear()

    mine, others = (list(Product.embeddings.nearest(sign * QUERY)[:5]) for sign in (1, -1))

    ((key, statement),) = search_compiler._statements.items()
    assert key[0] is Product
    assert QUERY.tobytes() not in statement.params
    assert not {hit.pk for hit in mine} & {hit.pk for hit in others}
    searches = {column[0].search for column in statement.columns["select"][3:5]}
    assert all(search.wanted is not None for search in searches)
    assert not any(hasattr(search.wanted, "_vector") for search in searches)


@pytest.mark.django_db
def test_statements_are_forgotten_beyond_a_number(monkeypatch):
    monkeypatch.setattr(search_compiler, "MOST_STATEMENTS", 3)
    index = Product.embeddings.index
    product = Product.objects.create(description="d", sku="1")
    store(index, new_space(index), {product: [QUERY]})

    for stop in range(1, 9):
        list(Product.embeddings.nearest(QUERY)[:stop])

    assert len(search_compiler._statements) == 3


def test_the_way_is_known_for_each_vendor():
    assert set(search_compiler._WAYS) == search_plan.INDEXED | search_plan.IN_MEMORY
    assert connection.vendor in search_compiler._WAYS
