"""Which plan is taken, and that no caller's filter is ever left out (FE10)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.db.models import F, Q
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from django_services.embeddings import search_plan
from django_services.vectors import matrices
from tests.testapp.models import Article, BlogPost, Category, Product, Tag

from .stored import brute_force, new_space, random_vectors, store

pytestmark = pytest.mark.django_db

QUERY = random_vectors(1, seed=99)[0]


def statements(rows: Any) -> list[str]:
    """Return the SQL of an evaluation, but the one that reads the version."""
    with CaptureQueriesContext(connection) as captured:
        list(rows)
    found = [query["sql"] for query in captured]
    return [sql for sql in found if "django_services_chunkchange" not in sql]


@pytest.fixture
def products() -> list[Product]:
    made = Product.objects.bulk_create(
        Product(description=str(n), sku=str(n % 100)) for n in range(2_000)
    )
    index = Product.embeddings.index
    vectors = random_vectors(2_000, seed=1)
    space = new_space(index)
    store(index, space, {p: [v] for p, v in zip(made, vectors, strict=True)})
    list(Product.embeddings.nearest(QUERY)[:1])  # the matrix is there
    return made


def test_without_filters_the_matrix_answers_alone(products):
    (final,) = statements(Product.embeddings.nearest(QUERY)[:10])

    assert "NOT EXISTS" not in final
    assert "json_each" in final


def test_a_filter_that_many_meet_is_tried_on_the_nearest(products):
    tried, _final = statements(
        Product.embeddings.nearest(QUERY).filter(description__contains="1")[:10]
    )

    assert "json_each" in tried


def test_a_filter_that_few_meet_is_asked_first(products):
    *_tried, keys, _final = statements(Product.embeddings.nearest(QUERY).filter(sku="7")[:10])

    assert "json_each" not in keys
    assert "search_chunk" not in keys


def test_a_filter_that_nothing_meets_costs_four_statements_at_most(products):
    assert len(statements(Product.embeddings.nearest(QUERY).filter(sku="none")[:10])) <= 4


def test_conditions_on_the_passage_that_few_meet_are_left_to_the_database(products):
    *_tried, final = statements(
        Product.embeddings.nearest(QUERY).filter(search_passage__startswith="no such")[:10]
    )

    assert "NOT EXISTS" in final


@pytest.mark.parametrize(
    ("condition", "is_planned"),
    [
        (Q(search_distance__lt=0.2), True),
        (Q(search_score__gte=0.8), True),
        (Q(search_distance__gt=1.9), False),
        (Q(search_distance__lt=F("pk") * 0.0), False),
        (Q(search_distance__lt=0.2) | Q(sku="1"), False),
    ],
    ids=str,
)
def test_only_what_keeps_a_beginning_of_the_order_is_planned(products, condition, is_planned):
    final = statements(Product.embeddings.nearest(QUERY).filter(condition)[:10])[-1]

    assert ("NOT EXISTS" not in final) is is_planned


def test_the_statement_goes_from_chunks_to_sources_by_key(products):
    plan = Product.embeddings.nearest(QUERY)[:10].explain()

    assert "SEARCH search_chunk USING INTEGER PRIMARY KEY" in plan
    assert "SEARCH testapp_product USING INTEGER PRIMARY KEY" in plan


def test_sources_deleted_meanwhile_do_not_shorten_a_slice(products, monkeypatch):
    get = matrices.get

    def get_and_delete(*args: Any) -> Any:
        matrix = get(*args)
        first = matrix.nearest(QUERY.tobytes(), 1).ids
        Product.embeddings.index.chunk_model.objects.filter(pk__in=first).delete()
        return matrix

    monkeypatch.setattr(matrices, "get", get_and_delete)

    assert len(Product.embeddings.nearest(QUERY)[:10]) == 10


# FE10: two tenants, random filters

LEAVES = [
    Q(category__name="north"),
    Q(category__isnull=True),
    Q(views__lt=3),
    Q(views__gte=8),
    Q(title__startswith="a1"),
    Q(tags__name="red"),
    Q(tags__name__in=["red", "blue"]),
    Q(tags__isnull=True),
    Q(blogpost__slug="s"),
    Q(pk__in=[]),
    Q(search_distance__lt=0.6),
    Q(search_score__gt=0.5),
    Q(search_distance__gt=0.45),
    Q(search_passage__contains="passage 1"),
    ~Q(tags__name="blue"),
    ~Q(category__name="north"),
]
CONDITIONS = st.recursive(
    st.sampled_from(LEAVES),
    lambda parts: st.one_of(
        st.tuples(parts, parts).map(lambda pair: pair[0] & pair[1]),
        st.tuples(parts, parts).map(lambda pair: pair[0] | pair[1]),
        parts.map(lambda part: ~part),
    ),
    max_leaves=4,
)


class Tenants:
    def __init__(self) -> None:
        north, south = (Category.objects.create(name=name) for name in ("north", "south"))
        red, blue = (Tag.objects.create(name=name) for name in ("red", "blue"))
        self.articles = []
        for number in range(60):
            owner = (north, south, None)[number % 3]
            model = BlogPost if number % 5 == 0 else Article
            extra = {"slug": "s"} if model is BlogPost else {}
            article = model.objects.create(
                title=f"a{number}", category=owner, views=number % 10, **extra
            )
            article.tags.add(*(tag for bit, tag in ((1, red), (2, blue)) if number & bit))
            self.articles.append(article)
        self.index = Article.embeddings.index
        self.space = new_space(self.index)
        vectors = random_vectors(120, seed=6)
        store(
            self.index,
            self.space,
            {a: vectors[2 * n : 2 * n + 2] for n, a in enumerate(self.articles)},
        )


@pytest.fixture
def tenants() -> Tenants:
    return Tenants()


def drawn(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Draw so many filters, each in front of the search or behind it, and slices."""
    options = settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    draw = given(condition=CONDITIONS, is_first=st.booleans(), size=st.integers(1, 30))
    return lambda test: options(draw(test))


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("tenant", ["north", "south"])
@drawn(30)
def test_hits_are_a_subset_of_the_callers_rows_and_all_the_nearest(
    tenants, tenant, condition, is_first, size
):
    assert_hits_are_the_nearest_of_the_tenant(tenants, tenant, condition, is_first, size)


@pytest.mark.fault
@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("tenant", ["north", "south"])
@drawn(500)
def test_hits_are_a_subset_of_the_callers_rows_with_a_thousand_filters(
    tenants, tenant, condition, is_first, size
):
    assert_hits_are_the_nearest_of_the_tenant(tenants, tenant, condition, is_first, size)


def assert_hits_are_the_nearest_of_the_tenant(
    tenants: Tenants, tenant: str, condition: Q, is_first: bool, size: int
) -> None:
    own = Article.objects.filter(category__name=tenant)
    hits = own.nearest(QUERY) if is_first else Article.objects.nearest(QUERY)
    hits = hits.filter(condition) if is_first else hits.filter(condition, category__name=tenant)

    with pytest.MonkeyPatch.context() as patch:
        found = [hit.pk for hit in hits[:size]]
        counted = hits.count()
        patch.setattr(search_plan, "IN_MEMORY", frozenset())
        patch.setattr(search_plan, "INDEXED", frozenset())
        expected = [hit.pk for hit in hits]

    order = brute_force(tenants.index, tenants.space, QUERY, own.values_list("pk", flat=True))
    assert set(expected) <= set(order)
    assert expected == [pk for pk in order if pk in set(expected)]
    assert found == expected[:size]
    assert counted == len(expected)


@pytest.mark.usefixtures("database")
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    conditions=st.lists(
        st.sampled_from([leaf for leaf in LEAVES if "search" not in str(leaf)]), max_size=4
    ),
    size=st.integers(1, 40),
)
def test_hits_equal_brute_force_over_the_plain_filter(tenants, conditions, size):
    rows, hits = Article.objects.all(), Article.objects.nearest(QUERY)
    for condition in conditions:
        rows, hits = rows.filter(condition), hits.filter(condition)

    expected = brute_force(
        tenants.index, tenants.space, QUERY, rows.values_list("pk", flat=True).distinct()
    )

    assert [hit.pk for hit in hits[:size]] == expected[:size]
