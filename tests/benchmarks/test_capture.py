"""What capture costs a writer: bulk_create of 10,000 rows, update() of one row, committed.

Run: python -m pytest -m benchmark -s tests/benchmarks/test_capture.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection

from django_services.embeddings import capture
from django_services.embeddings.models import Change

from ..testapp.models import Article

pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("database", "captured"),
]

ROWS = 10_000
UPDATES = 300
PAIRS = 15

BODY = "The quick brown fox jumps over the lazy dog. " * 8


@pytest.fixture
def captured(database: str, transactional_db: None, settings: Any) -> Iterator[None]:
    settings.DJANGO_SERVICES = {**settings.DJANGO_SERVICES, "EMBEDDINGS": {"ON_COMMIT": "off"}}
    yield
    capture.install("default")


def create_many() -> None:
    Article.objects.bulk_create(
        [Article(title=f"Article {number}", body=BODY) for number in range(ROWS)]
    )


def update_one_by_one() -> None:
    (key,) = Article.objects.values_list("pk", flat=True)
    for number in range(UPDATES):
        Article.objects.filter(pk=key).update(title=f"Article {number}")


def seconds(write: Callable[[], None], *, rows: int, is_captured: bool) -> float:
    """Time a write to a table that holds a number of rows before."""
    if is_captured:
        capture.install("default")
    else:
        capture.uninstall("default")
    Article.objects.all().delete()
    Change.objects.all().delete()
    Article.objects.bulk_create([Article(title="old", body=BODY) for _ in range(rows)])
    if connection.vendor == "postgresql":
        # What the deletes leave is not taken up by the server in the midst of a write.
        with connection.cursor() as cursor:
            cursor.execute("VACUUM testapp_article, django_services_change")
    start = time.perf_counter()
    write()
    return time.perf_counter() - start


def paired_ratio(pair: int, write: Callable[[], None], rows: int) -> float:
    """Time both side by side, in turns first, so that both meet the same machine."""
    order = (True, False) if pair % 2 else (False, True)
    timed = {captured: seconds(write, rows=rows, is_captured=captured) for captured in order}
    return timed[True] / timed[False]


@pytest.mark.parametrize(
    ("write", "rows", "limit"),
    [(create_many, 0, 1.25), (update_one_by_one, 1, 1.5)],
    ids=["bulk_create", "update"],
)
def test_capture_costs_a_writer_little(write, rows, limit, database):
    seconds(write, rows=rows, is_captured=True)  # grows the file, compiles the statements

    ratios = sorted(paired_ratio(pair, write, rows) for pair in range(PAIRS))

    ratio = statistics.median(ratios)
    print(
        f"\n{database}, {write.__name__}: {ratio:.2f} of the time without triggers "
        f"(median of {PAIRS} pairs, {ratios[0]:.2f} to {ratios[-1]:.2f})"
    )
    assert ratio <= limit
