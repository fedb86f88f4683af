"""Search by the HNSW index of a space: which plan, how many statements, what is left behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from django.db import DatabaseError, connection, transaction
from django.db.models import Exists, OuterRef
from django.test.utils import CaptureQueriesContext

from django_services.embeddings import search_compiler, search_plan
from django_services.embeddings.models import Space
from tests.testapp.models import Article, Product

from .stored import brute_force, new_space, random_vectors, store

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.parametrize("database", ["postgresql"], indirect=True, scope="class"),
]

QUERY = random_vectors(1, seed=99)[0]
ROWS = 400


@pytest.fixture(scope="class", autouse=True)
def vendor(database: str) -> str:
    return database


class Shop:
    """Products with one chunk each, or with four, and the space's index."""

    def __init__(self, chunks: int = 1) -> None:
        self.index = Product.embeddings.index
        self.products = Product.objects.bulk_create(
            Product(description=str(n), sku=f"{n % 20:02}") for n in range(ROWS)
        )
        self.space = new_space(self.index)
        self.fill(self.space, chunks)

    def fill(self, space: Space, chunks: int = 1, seed: int = 1) -> None:
        vectors = random_vectors(ROWS * chunks, seed=seed).reshape(ROWS, chunks, -1)
        store(self.index, space, dict(zip(self.products, vectors, strict=True)))
        build_index(space)

    def expected(self, **filters: Any) -> list[Any]:
        rows = Product.objects.filter(**filters).values_list("pk", flat=True)
        return brute_force(self.index, self.space, QUERY, rows)


def build_index(space: Space) -> None:
    table = Product.embeddings.index.chunk_model._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(
            f"CREATE INDEX django_services_ann_{space.pk} ON {table} USING hnsw "
            f"((vector::halfvec({space.dimensions})) halfvec_cosine_ops) "
            f"WHERE space_id = {space.pk}"
        )
        # At this size the planner would compare all chunks.
        cursor.execute("SET LOCAL enable_sort = off")
        cursor.execute("SET LOCAL enable_seqscan = off")


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def many_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than ten sources are many: their filters are met while walking the index."""
    monkeypatch.setattr(search_plan, "FEW_SOURCES", 10)


@pytest.fixture(autouse=True)
def nothing_learned() -> Iterator[None]:
    yield
    search_compiler._rows_per_hit.clear()
    search_compiler._statements.clear()


def search(**options: Any) -> Any:
    return Product.embeddings.nearest(QUERY, **options)


def keys(rows: Any) -> list[Any]:
    return [row.pk for row in rows]


def statements(rows: Any) -> list[str]:
    with CaptureQueriesContext(connection) as captured:
        list(rows)
    return [query["sql"] for query in captured]


def setting(name: str) -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting(%s, true)", [name])
        return cursor.fetchone()[0]


# Which plan


def test_the_space_index_serves_a_search(shop):
    list(search()[:1])

    assert f"Index Scan using django_services_ann_{shop.space.pk}" in search()[:10].explain()


def test_the_space_index_serves_a_filtered_search(shop):
    list(search()[:1])

    plan = search().filter(sku__gte="02")[:10].explain()

    assert f"Index Scan using django_services_ann_{shop.space.pk}" in plan


def test_a_warm_search_is_one_statement(shop):
    list(search()[:10])

    assert len(statements(search()[:10])) == 1
    assert len(statements(search().filter(sku__gte="02")[:10])) == 1


def test_the_vector_is_bound_once_and_in_binary(shop):
    list(search()[:10])

    (sql,) = statements(search()[:10])

    assert "[" not in sql
    assert {part.split("::")[0] for part in sql.split("<=> ")[1:]} == {"$1"}


def test_a_walk_goes_on_until_enough_rows_meet_the_filter(shop, many_are_few):
    list(search()[:1])

    *_others, walk, _restored, final = statements(search().filter(sku="07")[:10])

    assert "hnsw.iterative_scan" in walk
    assert "search_walk" not in final
    assert keys(search().filter(sku="07")[:10]) == shop.expected(sku="07")[:10]


def test_few_sources_are_all_compared(shop):
    found = statements(search().filter(sku="07")[:10])

    assert not any("hnsw" in sql for sql in found)
    assert keys(search().filter(sku="07")[:10]) == shop.expected(sku="07")[:10]


def test_a_filter_that_nothing_meets_walks_nowhere(shop):
    found = statements(search().filter(sku="none")[:10])

    assert not any("hnsw" in sql for sql in found)
    assert len(found) <= 5


def test_what_a_walk_did_not_reach_is_compared(shop, many_are_few, monkeypatch):
    monkeypatch.setattr(search_plan, "WALK", {"hnsw.iterative_scan": "off"})
    monkeypatch.setattr(search_plan, "CANDIDATES", 1)
    monkeypatch.setattr(search_plan, "CANDIDATES_PER_WALKED_HIT", 0)

    assert keys(search().filter(sku="07")[:10]) == shop.expected(sku="07")[:10]


@pytest.mark.parametrize("chosen", [slice(5, 15), slice(0, 200), slice(380, 500), slice(0, 40)])
def test_a_slice_is_as_long_as_there_are_hits(shop, many_are_few, chosen):
    assert len(search()[chosen]) == len(shop.expected()[chosen])


def test_beyond_the_reach_of_an_index_everything_is_compared(shop, many_are_few, monkeypatch):
    monkeypatch.setattr(search_plan, "MOST_BY_INDEX", 50)

    found = statements(search()[100:110])

    assert not any("hnsw" in sql for sql in found)
    assert keys(search()[100:110]) == shop.expected()[100:110]


def test_each_source_is_one_hit_and_the_next_search_reads_enough_at_once():
    shop = Shop(chunks=4)
    near = np.tile(QUERY, (4, 1)) + random_vectors(4, seed=5) * 0.01
    shop.index.chunk_model.objects.filter(source=shop.products[0].pk).delete()
    store(shop.index, shop.space, {shop.products[0]: near})

    first = keys(search()[:10])

    assert first == shop.expected()[:10]
    assert keys(search()[:10]) == first
    assert len(statements(search()[:10])) == 1


def test_without_an_index_a_search_is_exact(shop):
    with connection.cursor() as cursor:
        cursor.execute(f"DROP INDEX django_services_ann_{shop.space.pk}")

    assert keys(search()[:10]) == shop.expected()[:10]
    assert keys(search().filter(sku="07")[3:9]) == shop.expected(sku="07")[3:9]


def test_a_condition_on_the_hit_looks_at_the_nearest_chunk_only():
    shop = Shop(chunks=4)
    nearest = {hit.pk: hit.search_distance for hit in search(max_hits=ROWS)}
    limit = sorted(nearest.values())[3]

    found = keys(search().filter(search_distance__gt=limit)[:5])

    assert found == [pk for pk in shop.expected() if nearest[pk] > limit][:5]


# The active space


def test_a_switch_of_space_is_seen_by_the_next_search(shop):
    list(search()[:10])

    shop.space = new_space(shop.index)
    shop.fill(shop.space, seed=7)

    assert keys(search()[:10]) == shop.expected()[:10]


def test_a_switch_to_an_empty_space_finds_nothing(shop):
    list(search()[:10])

    new_space(shop.index)

    assert keys(search()[:10]) == []


def test_a_vector_for_the_space_before_is_not_met_with_the_next(shop):
    list(search()[:10])

    shop.space = new_space(shop.index, dimensions=8)
    vectors = random_vectors(ROWS, seed=3, dimensions=8)
    store(shop.index, shop.space, {p: [v] for p, v in zip(shop.products, vectors, strict=True)})
    query = random_vectors(1, seed=4, dimensions=8)[0]

    rows = Product.objects.values_list("pk", flat=True)
    expected = brute_force(shop.index, shop.space, query, rows)
    assert keys(Product.embeddings.nearest(query)[:10]) == expected[:10]


# What is left behind


def test_a_walk_leaves_the_transactions_settings_as_they_were(shop, many_are_few):
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL hnsw.ef_search = 123")

    list(search().filter(sku="07")[:10])

    assert setting("hnsw.ef_search") == "123"
    assert setting("hnsw.iterative_scan") == "off"


@pytest.mark.django_db(transaction=True)
def test_a_walk_leaves_no_setting_on_a_connection(many_are_few):
    with transaction.atomic():
        Shop()

    list(search().filter(sku="07")[:10])

    assert setting("hnsw.ef_search") == "40"
    assert setting("hnsw.iterative_scan") == "off"


def test_a_search_in_a_read_only_transaction(shop, many_are_few):
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL transaction_read_only = on")

    assert keys(search()[:10]) == shop.expected()[:10]
    assert keys(search().filter(sku="07")[:10]) == shop.expected(sku="07")[:10]


def test_locking_reads_and_writes_of_hits(shop):
    expected = shop.expected()

    locked = keys(search().select_for_update(of=("self",))[:3])
    updated = search(max_hits=4).update(description="new")

    assert locked == expected[:3]
    assert updated == 4
    assert set(keys(Product.objects.filter(description="new"))) == set(expected[:4])


def test_rows_come_through_a_cursor_of_the_server(shop):
    assert keys(search()[:30].iterator(chunk_size=7)) == shop.expected()[:30]
    assert keys(search().filter(sku="07")[:9].iterator()) == shop.expected(sku="07")[:9]


def test_execute_wrappers_see_the_search(shop):
    list(search()[:10])
    seen = []

    def wrapper(execute, sql, params, many, context):
        seen.append(sql)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(wrapper):
        list(search()[:10])

    assert len(seen) == 1


def test_as_a_subquery_the_hits_are_the_same(shop):
    inside = search(max_hits=15).values("pk")

    assert set(keys(Product.objects.filter(pk__in=inside))) == set(shop.expected()[:15])
    near = search(max_hits=3).filter(pk=OuterRef("pk"))
    assert Product.objects.filter(Exists(near)).count() == ROWS


# Prepared statements


@pytest.fixture
def committed() -> Shop:
    with transaction.atomic():
        shop = Shop()
    list(search()[:10])
    return shop


def prepared() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_prepared_statements")
        return cursor.fetchone()[0]


def search_often() -> list[Any]:
    return [keys(search()[:10]) for _ in range(search_compiler.PREPARE_AFTER + 2)][-1]


@pytest.mark.django_db(transaction=True)
def test_a_search_made_often_on_a_connection_is_prepared(committed):
    before = prepared()

    assert search_often() == committed.expected()[:10]

    assert prepared() == before + 1
    assert connection.connection.prepare_threshold is None


@pytest.mark.django_db(transaction=True)
def test_nothing_is_prepared_behind_a_pooler(committed, monkeypatch):
    class Pooled:
        backend_pid = -1

    monkeypatch.setattr(type(connection.connection), "info", Pooled)
    before = prepared()

    assert search_often() == committed.expected()[:10]

    assert prepared() == before


@pytest.mark.django_db(transaction=True)
def test_an_outdated_statement_is_replaced(committed):
    search_often()
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE testapp_product ALTER sku TYPE varchar(21)")

    try:
        assert keys(search()[:10]) == committed.expected()[:10]
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE testapp_product ALTER sku TYPE varchar(20)")


@pytest.mark.django_db(transaction=True)
def test_an_error_of_the_statement_reaches_the_caller(committed, monkeypatch):
    search_often()
    statement = next(iter(search_compiler._statements.values()))
    monkeypatch.setattr(
        search_compiler,
        "_remembered",
        lambda *_: search_compiler._Statement(
            "SELECT 1 / 0 + %(vector)s::int", None, statement.columns, 0
        ),
    )

    with pytest.raises(DatabaseError):
        keys(search()[:10])


def test_a_declared_condition_with_a_percent_sign_stays_itself(monkeypatch):
    from django.db.models import Q

    index = Article.embeddings.index
    monkeypatch.setattr(index, "condition", Q(title__contains="50%'s"))
    articles = Article.objects.bulk_create(Article(title=f"{n}50%'s") for n in range(12))
    Article.objects.bulk_create([Article(title="500's")])
    vectors = random_vectors(13, seed=1)
    space = new_space(index)
    store(index, space, {a: [v] for a, v in zip(Article.objects.all(), vectors, strict=True)})
    list(Article.embeddings.nearest(QUERY)[:10])

    found = keys(Article.embeddings.nearest(QUERY)[:10])

    assert found == brute_force(index, space, QUERY, keys(articles))[:10]
