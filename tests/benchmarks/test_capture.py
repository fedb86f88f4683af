"""What capture costs a writer: bulk_create of 10,000 rows, committed.

Run: python -m pytest -m benchmark -s tests/benchmarks/test_capture.py
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import pytest

from django_services.embeddings import capture

from ..testapp.models import Article

pytestmark = [pytest.mark.benchmark, pytest.mark.django_db(transaction=True)]

ROWS = 10_000
PAIRS = 11
MAX_RATIO = 1.25

BODY = "The quick brown fox jumps over the lazy dog. " * 8


def bulk_create_seconds(*, is_captured: bool) -> float:
    if is_captured:
        capture.install("default")
    else:
        capture.uninstall("default")
    rows = [Article(title=f"Article {number}", body=BODY) for number in range(ROWS)]
    start = time.perf_counter()
    Article.objects.bulk_create(rows)
    elapsed = time.perf_counter() - start
    Article.objects.all().delete()
    return elapsed


def paired_ratio(pair: int) -> float:
    """Time both side by side, in turns first, so that both meet the same machine."""
    order = (True, False) if pair % 2 else (False, True)
    seconds = {is_captured: bulk_create_seconds(is_captured=is_captured) for is_captured in order}
    return seconds[True] / seconds[False]


def test_capture_costs_a_writer_little(settings: Any):
    settings.DJANGO_SERVICES = {
        **settings.DJANGO_SERVICES,
        "EMBEDDINGS": {"ON_COMMIT": "off"},
    }
    bulk_create_seconds(is_captured=True)  # grows the file, compiles the statements

    ratios = sorted(paired_ratio(pair) for pair in range(PAIRS))

    ratio = statistics.median(ratios)
    print(
        f"\nbulk_create of {ROWS} rows: {ratio:.2f} of the time without triggers "
        f"(median of {PAIRS} pairs, {ratios[0]:.2f} to {ratios[-1]:.2f})"
    )
    assert ratio <= MAX_RATIO
