"""What a search costs on SQLite: through the ORM, 256 dimensions, exact.

Run: python -m pytest -m benchmark -s tests/benchmarks/test_search.py

The vectors are real ones, of the interpreter's own help texts, repeated with noise.
"""

from __future__ import annotations

import gc
import secrets
import statistics
import time
from collections.abc import Callable, Iterator
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
from django.db import connection
from django.utils import timezone

from django_services import embedded, openai_service
from django_services.embeddings.models import Space
from django_services.vectors import encoding, matrices

from ..testapp.models import Article, Category, Product

pytestmark = [pytest.mark.benchmark, pytest.mark.django_db(transaction=True)]

#: rows -> most milliseconds: warm, cold, filtered to a tenth.
FIGURES = {10_000: (2.0, 30.0, 20.0), 100_000: (10.0, None, 100.0)}
ROUNDS = 60
NOISE = 0.05
QUERIES = ("how do I compress a file", "loop over a list", "catch an error", "format a number")


def real_vectors(count: int) -> Any:
    texts = [part for text in topics.values() for part in text.split("\n\n") if len(part) > 80]
    vectors = openai_service.embed(texts)
    random = np.random.default_rng(0)
    picked = vectors[np.arange(count) % len(vectors)]
    noisy = picked + random.normal(0, NOISE, picked.shape) / np.sqrt(picked.shape[1])
    return (noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).astype("<f4")


def fill(model: Any, rows: list[Any], vectors: Any) -> None:
    index = model.embeddings.index
    space = Space.objects.create(
        index=index.label,
        model=embedded.MODEL,
        dimensions=embedded.DIMENSIONS,
        recipe=secrets.token_hex(8),
        state="active",
        activated_at=timezone.now(),
    )
    made = model.objects.bulk_create(rows)
    chunk = index.chunk_model
    for start in range(0, len(rows), 10_000):
        part = slice(start, start + 10_000)
        chunk.objects.bulk_create(
            chunk(
                source_id=row.pk,
                space=space,
                number=0,
                start=0,
                end=9,
                text="a passage",
                content_hash=bytes(32),
                vector=encoding.encode(vector),
            )
            for row, vector in zip(made[part], vectors[part], strict=True)
        )
    with connection.cursor() as cursor:
        # A file at rest: what was just written stands in the log no longer.
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    gc.collect()


@pytest.fixture(params=FIGURES, ids=lambda rows: f"{rows} rows")
def rows(request: pytest.FixtureRequest, settings: Any) -> Iterator[int]:
    settings.DJANGO_SERVICES = {**settings.DJANGO_SERVICES, "EMBEDDINGS": {"ON_COMMIT": "off"}}
    matrices.clear()
    yield request.param
    matrices.clear()


def p50(run: Callable[[int], object], rounds: int = ROUNDS) -> float:
    """Milliseconds, median."""
    elapsed = []
    for number in range(rounds):
        start = time.perf_counter()
        run(number)
        elapsed.append((time.perf_counter() - start) * 1000)
    return statistics.median(elapsed)


def test_search_is_quick(rows):
    warm_figure, cold_figure, _filtered = FIGURES[rows]
    fill(Product, [Product(description="d", sku=str(n)) for n in range(rows)], real_vectors(rows))

    def search(number: int) -> list[Any]:
        return list(Product.embeddings.search(QUERIES[number % len(QUERIES)])[:10])

    def search_cold(number: int) -> list[Any]:
        matrices.clear()
        return search(number)

    for number in range(2 * len(QUERIES)):
        search(number)
    plain = p50(lambda _number: list(Product.objects.all()[:10]))
    cold, warm = p50(search_cold, 7), p50(search)
    written = p50(lambda number: (write_one(number), search(number)), 20)
    print(
        f"\n{rows} rows: warm {warm:.2f} ms, cold {cold:.1f} ms, after a write {written:.1f} ms; "
        f"ten rows without a search: {plain:.2f} ms"
    )

    assert warm <= warm_figure
    assert cold_figure is None or cold <= cold_figure


def write_one(number: int) -> None:
    chunks = Product.embeddings.index.chunk_model.objects
    first = chunks.order_by("pk").values_list("pk", flat=True).first()
    vector = np.random.default_rng(number).normal(size=embedded.DIMENSIONS)
    chunks.filter(pk=first + number).update(vector=vector)


def test_filtered_search_is_quick(rows):
    filtered_figure = FIGURES[rows][2]
    categories = [Category.objects.create(name=str(n)) for n in range(10)]
    articles = [
        Article(title="t", category=categories[n % 10], views=n % 1000) for n in range(rows)
    ]
    fill(Article, articles, real_vectors(rows))
    searches = {
        "a tenth": lambda query: query.filter(category=categories[3])[:10],
        "a thousandth": lambda query: query.filter(views=7)[:10],
        "by passage": lambda query: query.filter(search_passage__contains="passage")[:10],
        "condition only": lambda query: query[:10],
        "a tenth, 100 hits": lambda query: query.filter(category=categories[3])[:100],
    }

    for name, narrow in searches.items():

        def search(number: int, narrow: Any = narrow) -> list[Any]:
            return list(narrow(Article.embeddings.search(QUERIES[number % len(QUERIES)])))

        search(0)
        took = p50(search, 20)
        print(f"\n{rows} rows, filtered: {name}: {took:.2f} ms", end="")
        assert len(search(0)) >= min(10, rows // 1000)
        assert took <= filtered_figure or name != "a tenth"


def test_plans_of_sqlite_use_the_keys(rows):
    """The statement goes from the chunks named to their sources, never over a table."""
    fill(Product, [Product(description="d", sku=str(n)) for n in range(rows)], real_vectors(rows))

    plan = Product.embeddings.search(QUERIES[0])[:10].explain()

    assert "SCAN testapp" not in plan
    assert connection.vendor == "sqlite"
