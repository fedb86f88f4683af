"""What is left of the embedded model's speed when its vectors are stored.

Run: python -m pytest -m benchmark -s tests/benchmarks/test_embed_and_store.py

The texts are the standard library's documentation, cut by the default chunk size.
The bare model is timed on the same chunks in the same run; the reference is the
speed that the table was published with.
"""

from __future__ import annotations

import statistics
import time

import pytest

from django_services.embedded import model
from django_services.embeddings.declaration import get_index
from django_services.embeddings.models import Change, ChunkChange, Space
from django_services.embeddings.sync import Report, sync
from example_project.library import stdlib
from tests.testapp.models import Product

pytestmark = [pytest.mark.benchmark, pytest.mark.django_db(transaction=True)]

RUNS = 5
REFERENCE = 19_000  # texts of 83 tokens a second, on one thread


def test_embedding_and_storing_keeps_up_with_the_model(settings):
    settings.DJANGO_SERVICES = settings.DJANGO_SERVICES | {"EMBEDDINGS": {"ON_COMMIT": "off"}}
    texts = [part.text for part in stdlib.read() if part.text.strip()]
    run_sync(texts[:100])  # loads the model, grows the file

    reports, stored_rates, bare_rates = [], [], []
    for _ in range(RUNS):
        report, seconds, chunks = run_sync(texts)
        reports.append(report)
        stored_rates.append(len(texts) / seconds)
        bare_rates.append(len(chunks) / bare_seconds(chunks))

    stored, bare = statistics.median(stored_rates), statistics.median(bare_rates)
    print(
        f"\n{len(texts):,} rows, {reports[0].stored:,} chunks: {stored:,.0f} rows/s embedded and "
        f"stored ({min(stored_rates):,.0f} to {max(stored_rates):,.0f}); bare model "
        f"{bare:,.0f} chunks/s, {stored * reports[0].stored / len(texts) / bare:.2f} of it; "
        f"{stored / REFERENCE:.2f} of the reference's {REFERENCE:,}"
    )


def run_sync(texts: list[str]) -> tuple[Report, float, list[str]]:
    """Embed and store texts in an empty index: what was done, seconds, the chunks."""
    index = get_index("testapp.Product")
    Product.objects.all().delete()
    for table in (index.chunk_model, Change, ChunkChange, Space):
        table.objects.all().delete()
    Product.objects.bulk_create([Product(description=text, sku="1") for text in texts])
    start = time.perf_counter()
    report = sync([index], alias="default")
    seconds = time.perf_counter() - start
    return report, seconds, list(index.chunk_model.objects.values_list("text", flat=True))


def bare_seconds(texts: list[str]) -> float:
    start = time.perf_counter()
    model.load().encode(texts)
    return time.perf_counter() - start
