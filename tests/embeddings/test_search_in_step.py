"""The cached matrix is in step with the database, whoever writes and whatever rolls back."""

from __future__ import annotations

import logging
import threading
from typing import Any

import numpy as np
import pytest
from django.db import connection, connections, transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from django_services.embeddings.models import ChunkChange
from django_services.exceptions import DimensionMismatch
from django_services.vectors import encoding, matrices
from tests.testapp.models import Product

from .stored import brute_force, new_space, random_vectors, store

pytestmark = pytest.mark.django_db(transaction=True)

QUERY = random_vectors(1, seed=99)[0]
ROWS = 300
LITTLE_MEMORY = {"ON_COMMIT": "off", "MATRIX_MEMORY": 1}


class Shop:
    """Products with one chunk each. Log rows come from the triggers."""

    def __init__(self, count: int = ROWS) -> None:
        self.index = Product.embeddings.index
        self.chunks = self.index.chunk_model.objects
        self.space = new_space(self.index)
        self.products = Product.objects.bulk_create(
            Product(description=str(n), sku=str(n)) for n in range(count)
        )
        vectors = random_vectors(count, seed=1)
        store(self.index, self.space, {p: [v] for p, v in zip(self.products, vectors, strict=True)})

    def expected(self) -> list[Any]:
        return brute_force(
            self.index, self.space, QUERY, Product.objects.values_list("pk", flat=True)
        )

    def found(self) -> list[Any]:
        return [product.pk for product in Product.embeddings.nearest(QUERY)[:8]]

    def move(self, product: Product, vector: Any) -> None:
        self.chunks.filter(source=product.pk).update(vector=vector)


@pytest.fixture(autouse=True)
def nobody_embeds(settings: Any) -> None:
    """The vectors are made by hand."""
    settings.DJANGO_SERVICES = {**settings.DJANGO_SERVICES, "EMBEDDINGS": {"ON_COMMIT": "off"}}


@pytest.fixture
def shop() -> Any:
    matrices.clear()
    yield Shop()
    matrices.clear()


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The parts of which every vector was read anew."""
    made: list[int] = []
    build = matrices._build

    def counted(collection: matrices.Collection) -> Any:
        made.append(collection.part)
        return build(collection)

    monkeypatch.setattr(matrices, "_build", counted)
    return made


def test_a_write_is_found_at_once_and_only_it_is_read(shop, builds):
    shop.found()

    shop.move(shop.products[17], QUERY)

    assert shop.found()[0] == shop.products[17].pk
    assert len(builds) == 1


def test_a_rolled_back_write_is_seen_inside_and_never_afterwards(shop, builds):
    before = shop.found()

    with pytest.raises(RuntimeError), transaction.atomic():
        shop.move(shop.products[17], QUERY)
        assert shop.found()[0] == shop.products[17].pk
        raise RuntimeError

    assert shop.found() == before
    assert len(builds) == 1


def test_a_log_number_that_came_again_after_a_rollback_is_not_mistaken(shop):
    shop.found()
    numbers = []
    for product in shop.products[17:19]:
        with transaction.atomic():
            shop.move(product, QUERY)
            assert shop.found()[0] == product.pk
            numbers.append(ChunkChange.objects.order_by("-id").first().pk)
            transaction.set_rollback(True)

    shop.move(shop.products[30], QUERY)

    assert numbers[0] == numbers[1] == ChunkChange.objects.order_by("-id").first().pk
    assert shop.found()[0] == shop.products[30].pk


def test_a_savepoint_takes_back_what_was_written_in_it(shop):
    with transaction.atomic():
        shop.move(shop.products[1], QUERY)
        inside = shop.found()
        with transaction.atomic():
            shop.move(shop.products[2], QUERY * 1.0)
            assert set(shop.found()[:2]) == {shop.products[1].pk, shop.products[2].pk}
            transaction.set_rollback(True)

        assert shop.found() == inside
    assert shop.found() == inside == shop.expected()[:8]


def test_another_thread_does_not_see_what_is_not_committed(shop):
    seen: dict[str, list[Any]] = {}
    before = shop.found()

    def look(name: str) -> None:
        seen[name] = shop.found()
        connections.close_all()

    def look_elsewhere(name: str) -> None:
        thread = threading.Thread(target=look, args=(name,))
        thread.start()
        thread.join()

    with transaction.atomic():
        shop.move(shop.products[17], QUERY)
        inside = shop.found()
        look_elsewhere("during")
    look_elsewhere("after")

    assert seen["during"] == before
    assert seen["after"] == inside != before


def test_a_write_by_another_process_is_found_at_once(shop, run_python):
    shop.found()

    run_python(
        f"""
        import numpy as np
        from tests.testapp.models import Product
        chunks = Product.embeddings.index.chunk_model.objects
        vector = np.array({QUERY.tolist()!r})
        chunks.filter(source={shop.products[23].pk}).update(vector=vector)
        chunks.filter(source={shop.products[24].pk}).delete()
        """
    )

    assert shop.found()[0] == shop.products[23].pk
    assert shop.found() == shop.expected()[:8]


def test_a_deleted_source_is_gone_at_once(shop):
    first = shop.found()[0]

    Product.objects.filter(pk=first).delete()

    assert shop.found() == shop.expected()[:8]
    assert first not in shop.found()


def test_many_changes_are_read_anew(shop, builds):
    shop.found()

    for chunk in shop.chunks.all()[:200]:
        shop.chunks.filter(pk=chunk.pk).update(vector=-chunk.vector)

    assert shop.found() == shop.expected()[:8]
    assert len(builds) == 2


def test_a_trimmed_log_is_no_way_back(shop, builds):
    shop.found()
    shop.move(shop.products[3], QUERY)
    newest = ChunkChange.objects.order_by("-id").first()

    ChunkChange.objects.exclude(pk=newest.pk).delete()

    assert shop.found() == shop.expected()[:8]
    assert len(builds) == 2


def test_without_a_log_nothing_is_kept(shop, builds):
    ChunkChange.objects.all().delete()

    assert shop.found() == shop.found() == shop.expected()[:8]
    assert len(builds) == 2
    assert matrices.held() == 0


def test_threads_share_one_build(shop, builds):
    barrier = threading.Barrier(5)
    results: list[list[Any]] = []

    def look() -> None:
        barrier.wait()
        results.append(shop.found())
        connections.close_all()

    threads = [threading.Thread(target=look) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert results == [shop.expected()[:8]] * 5
    assert len(builds) == 1


def test_views_in_transactions_share_what_they_read(shop, builds):
    with transaction.atomic():
        shop.found()
    shop.move(shop.products[5], QUERY)
    for _ in range(3):
        with transaction.atomic():
            assert shop.found()[0] == shop.products[5].pk

    assert len(builds) == 1


def test_what_rolled_back_takes_no_committed_place(shop, builds):
    with transaction.atomic():
        shop.found()
    shop.found()  # outside: what it reads is committed
    for product in shop.products[:4]:
        with transaction.atomic():
            shop.move(product, QUERY)
            shop.found()
            transaction.set_rollback(True)

    assert shop.found() == shop.expected()[:8]
    assert len(builds) == 1


def test_memory_is_bounded_by_the_setting(settings):
    settings.DJANGO_SERVICES = {**settings.DJANGO_SERVICES, "EMBEDDINGS": LITTLE_MEMORY}
    matrices.clear()
    shop = Shop()
    for dimensions in (512, 600, 700):
        shop.space = new_space(shop.index, dimensions=dimensions)
        vectors = random_vectors(ROWS, seed=3, dimensions=dimensions)
        store(shop.index, shop.space, {p: [v] for p, v in zip(shop.products, vectors, strict=True)})
        query = random_vectors(1, seed=5, dimensions=dimensions)[0]
        assert Product.embeddings.nearest(query).first()

        assert 0 < matrices.held() <= 1 << 20


def test_what_is_too_large_is_searched_in_sql_and_says_so(shop, settings, caplog):
    settings.DJANGO_SERVICES = {**settings.DJANGO_SERVICES, "EMBEDDINGS": LITTLE_MEMORY}
    space = new_space(shop.index, dimensions=4_000)
    vectors = random_vectors(ROWS, seed=3, dimensions=4_000)
    store(shop.index, space, {p: [v] for p, v in zip(shop.products, vectors, strict=True)})
    expected = brute_force(shop.index, space, vectors[0], [p.pk for p in shop.products])

    with caplog.at_level(logging.WARNING, "django_services"):
        found = [hit.pk for hit in Product.embeddings.nearest(vectors[0])[:5]]

    assert found == expected[:5]
    assert "MATRIX_MEMORY" in caplog.text
    assert matrices.held() == 0


def test_a_vector_of_another_length_names_row_and_command(shop):
    chunk = shop.chunks.first()
    with connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE {chunk._meta.db_table} SET vector = %s WHERE id = %s",
            [encoding.encode([1.0, 2.0]), chunk.pk],
        )

    with pytest.raises(DimensionMismatch, match=rf"Row {chunk.pk} .* 2 dimensions .* reconcile"):
        shop.found()


def test_one_statement_reads_the_version(shop, django_assert_num_queries):
    shop.found()

    with django_assert_num_queries(2) as captured:
        shop.found()

    assert "chunkchange" in captured[0]["sql"]


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["move", "delete", "add"]), st.integers(0, 29), st.booleans()),
        min_size=1,
        max_size=10,
    )
)
def test_any_sequence_of_writes_and_rollbacks_is_followed(shop, steps):
    shop.chunks.all().delete()
    products = shop.products[:30]
    vectors = random_vectors(30, seed=11)
    store(shop.index, shop.space, {p: [v] for p, v in zip(products, vectors, strict=True)})
    for number, (verb, place, is_rolled_back) in enumerate(steps):
        with transaction.atomic():
            if verb == "move":
                shop.move(products[place], np.roll(QUERY, number % 3))
            elif verb == "delete":
                shop.chunks.filter(source=products[place].pk).delete()
            else:
                shop.chunks.filter(source=products[place].pk).delete()
                store(shop.index, shop.space, {products[place]: [QUERY, -QUERY]})
            assert shop.found() == shop.expected()[:8]
            transaction.set_rollback(is_rolled_back)
        assert shop.found() == shop.expected()[:8]
