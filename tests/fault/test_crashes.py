"""FE1 and FE11: workers are killed or crash, and nothing is lost or paid for twice."""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter

import pytest

from django_services.embeddings.status import status
from tests.embeddings.conftest import assert_invariants
from tests.testapp.models import Product

from .conftest import BATCH, CALLS, create, expire_leases, is_alive, kill, wait_until
from .crashing import POINTS

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("database")]

PAIRS = list(itertools.product(POINTS, repeat=2))


@pytest.mark.parametrize(
    ("rows", "kills"), [(600, 5), pytest.param(5_000, 50, marks=pytest.mark.fault)]
)
def test_killed_workers_lose_nothing_and_pay_for_no_more_than_their_calls(
    index, workers, fake_openai, rows, kills
):
    random.seed(1)
    create(rows)
    working = [workers.start(), workers.start()]

    for _ in range(kills):
        arrived = len(fake_openai.calls)
        wait_until(lambda arrived=arrived: len(fake_openai.calls) > arrived)
        time.sleep(random.uniform(0, 0.05))
        kill(working.pop(random.randrange(2)))
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
    for number, points in enumerate(crashes):
        create(3)
        Product.objects.filter(sku="0").update(description=f"changed before crash {number}")

        for point in points:
            workers.run(crash_at=point)
            assert_invariants(index, has_leases=True)
            expire_leases()
        left = status_of(index).pending
        workers.run()

        assert (left == 0) == (points[-1] == "after commit" or "after commit" in points), points
        assert_invariants(index)
        assert status_of(index).is_in_step, points


def status_of(index):
    (found,) = status("default", [index])
    return found
