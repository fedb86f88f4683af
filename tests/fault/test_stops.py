"""FE7: a worker that is told to stop ends in time and gives back what it held."""

from __future__ import annotations

import signal
import threading
from collections import Counter

import pytest

from django_services.embeddings.models import Lease
from django_services.embeddings.status import status
from django_services.embeddings.threads import GRACE
from tests.embeddings.conftest import assert_invariants

from .conftest import BATCH, create

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("database"),
    pytest.mark.slow,
]

ROWS = 10 * BATCH


class Hanging:
    """A request that waits for its answer until it is let go."""

    def __init__(self) -> None:
        self.has_arrived = threading.Event()
        self.may_end = threading.Event()

    def __call__(self) -> None:
        self.has_arrived.set()
        self.may_end.wait(60)


@pytest.fixture
def hanging(fake_openai):
    hanging = Hanging()
    fake_openai.on_request(hanging)
    yield hanging
    hanging.may_end.set()


@pytest.fixture(params=["sync", pytest.param("watch", marks=pytest.mark.fault)])
def worker(request, index, workers, hanging):
    """The process of ``embeddings sync``, with a call in flight."""
    create(ROWS)
    watch = ["--watch"] if request.param == "watch" else []
    process = workers.command("embeddings", "sync", "--batch-size", str(BATCH), *watch)
    assert hanging.has_arrived.wait(30)
    return process


def ask_to_stop(process) -> None:
    """Send SIGTERM, and return when the process says that it heard."""
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline()


def ended_itself(process, *, within: float) -> bool:
    return process.wait(timeout=within) >= 0  # else it was ended by a signal


def test_a_stopped_worker_stores_what_is_in_flight_and_gives_back_the_rest(
    index, worker, workers, hanging, fake_openai
):
    ask_to_stop(worker)
    hanging.may_end.set()
    assert ended_itself(worker, within=30)

    (found,) = status("default", [index])
    assert found.fresh >= BATCH
    assert found.pending > 0
    assert not Lease.objects.exists()
    assert_invariants(index)
    workers.run()
    assert set(Counter(fake_openai.texts).values()) == {1}


def test_a_second_signal_ends_a_worker_at_once(index, worker):
    ask_to_stop(worker)
    worker.send_signal(signal.SIGTERM)

    assert ended_itself(worker, within=GRACE - 2)
    assert not Lease.objects.exists()
    assert_invariants(index)


@pytest.mark.fault
def test_a_call_that_hangs_holds_a_stopped_worker_no_longer_than_the_grace(index, worker):
    ask_to_stop(worker)

    assert ended_itself(worker, within=GRACE + 2)
    assert not Lease.objects.exists()
    assert_invariants(index)
