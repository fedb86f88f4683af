"""FE1 and FE11: workers are killed or crash, and nothing is lost or paid for twice."""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter

import pytest

from django_services.embeddings.models import Change
from django_services.embeddings.status import status
from tests.embeddings.conftest import assert_invariants
from tests.testapp.models import Product

from .conftest import BATCH, CALLS, create, expire_leases, frozen, is_alive, kill, wait_until
from .crashing import POINTS

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("database"),
    pytest.mark.slow,
]

LATENCY = 0.05  # seconds, in which a kill finds a call in flight
STATEMENTS = 80  # more than a worker runs for one source
PAIRS = list(itertools.product(POINTS, repeat=2))


@pytest.mark.parametrize(
    ("rows", "kills"), [(600, 5), pytest.param(5_000, 50, marks=pytest.mark.fault)]
)
def test_killed_workers_lose_nothing_and_pay_for_no_more_than_their_calls(
    index, workers, fake_openai, rows, kills
):
    random.seed(1)
    fake_openai.latency = LATENCY
    create(rows)
    working = [workers.start(), workers.start()]

    for _ in range(kills):
        arrived = len(fake_openai.calls)
        wait_until(lambda arrived=arrived: len(fake_openai.calls) > arrived)
        time.sleep(random.uniform(0, LATENCY))
        kill(working.pop(random.randrange(2)))
        with frozen(working):
            assert_invariants(index, has_leases=True)
        working.append(workers.start())
    wait_until(lambda: not any(map(is_alive, working)))
    expire_leases()
    workers.run()

    sent = Counter(fake_openai.texts)
    assert len(sent) == rows
    assert sum(sent.values()) - rows <= kills * CALLS * BATCH
    assert_invariants(index)
    assert status_of(index).is_in_step


@pytest.mark.parametrize(
    "crashes",
    [
        pytest.param([(point,) for point in POINTS], id="single"),
        pytest.param(PAIRS, id="pairs", marks=pytest.mark.fault),
    ],
)
def test_a_crash_at_any_point_is_made_good(index, workers, crashes):
    create(5)
    workers.run()

    for points in crashes:
        write_again()
        for point in points:
            workers.run(crash_at=point)
            assert_invariants(index, has_leases=True)
            expire_leases()
        left = status_of(index).pending
        workers.run()

        assert (left == 0) == ("after commit" in points), points
        assert_invariants(index)
        assert status_of(index).is_in_step, points


@pytest.mark.fault
def test_a_crash_after_any_statement_is_made_good(index, workers):
    create(5)

    for statements in range(1, STATEMENTS):
        write_again()
        workers.run(crash_at=str(statements))
        assert_invariants(index, has_leases=True)
        expire_leases()

    assert not Change.objects.exists()  # the last worker came to its end
    assert status_of(index).is_in_step


def write_again():
    """Change a row, delete one and make one."""
    first, *_, last = Product.objects.order_by("pk")
    Product.objects.filter(pk=last.pk).update(description=f"changed {last.pk}")
    first.delete()
    Product.objects.create(description="new", sku="new")


def status_of(index):
    (found,) = status("default", [index])
    return found
