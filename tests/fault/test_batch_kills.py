"""A process that waits for a batch is killed at a step; the next one pays nothing twice."""

from __future__ import annotations

import io

import pytest
from django.core.management import call_command

from django_services.batches import jobs, leases
from django_services.batches.models import BatchJob
from django_services.embeddings.declaration import get_index
from django_services.embeddings.status import status
from tests.testapp.models import Product

from .conftest import INDEX, Workers, kill, wait_until

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("database"),
    pytest.mark.fault,
]

ROWS = 5

CALLS = [
    "POST /v1/files",
    "POST /v1/batches",
    "GET /v1/batches/*",
    "GET /v1/files/*/content",
    "DELETE /v1/files/*",
]


@pytest.fixture
def waiting(run_python, fake_batches, settings):
    """Starts the process of ``embeddings sync --batch``."""
    workers = Workers(run_python, settings.DJANGO_SERVICES)
    return lambda: workers.command("embeddings", "sync", INDEX, "--batch")


@pytest.mark.parametrize("call", CALLS)
def test_a_batch_is_paid_once_whenever_its_process_is_killed(
    waiting,
    fake_batches,
    monkeypatch,
    call,
):
    Product.objects.bulk_create(
        Product(description=f"text {number}", sku=str(number)) for number in range(ROWS)
    )
    if call != "GET /v1/batches/*":
        fake_batches.during("GET /v1/batches/*", fake_batches.work)
    processes = []
    fake_batches.during(call, lambda: kill(processes[0].pid))
    processes.append(waiting())
    wait_until(lambda: processes[0].poll() is not None)
    fake_batches.work()
    # The time passes after which others may go on.
    BatchJob.objects.update(leased_until=leases.later(-1))
    monkeypatch.setattr(jobs, "SETTLED", 0.0)

    call_command("embeddings", "sync", INDEX, "--batch", "--no-wait", stdout=io.StringIO())
    fake_batches.work()
    call_command("embeddings", "sync", INDEX, "--batch", "--no-wait", stdout=io.StringIO())

    (found,) = status("default", [get_index(INDEX)])
    assert processes[0].returncode < 0
    assert (found.fresh, found.sources) == (ROWS, ROWS)
    assert sorted(fake_batches.sent) == [f"text {number}" for number in range(ROWS)]
    assert fake_batches.embedded == []
