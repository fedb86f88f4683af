"""FE1: workers are killed at random points, and nothing is lost or paid for twice."""

import os
import random
import signal
import time
from collections import Counter

import numpy as np
import pytest

from tests.fake_openai import FakeOpenAI

ROWS = 5_000
BATCH = 100  # sources of one call
LEASE = 2.0  # seconds
KILLS = 10

# Forks a worker for every line that it reads: a new Python each would take seconds.
FORKING = """
    import os, signal, sys
    from django_services.embeddings.sync import sync
    from django_services.openai_service import get_openai_client
    get_openai_client()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in sys.stdin:
        worker = os.fork()
        if worker:
            print(worker, flush=True)
        else:
            sync(alias="default")
            os._exit(0)
"""


@pytest.fixture
def far_end():
    far_end = FakeOpenAI()
    far_end.start()
    yield far_end
    far_end.stop()


@pytest.fixture
def shop(project, far_end):
    project.models("""
        class Item(models.Model):
            name = models.CharField(max_length=100)
            embeddings = Embeddings("name")
    """)
    services = far_end.settings() | {
        "EMBEDDINGS": {
            "BATCH_SIZE": BATCH,
            "CONCURRENCY": 1,
            "LEASE": LEASE,
            "ON_COMMIT": "off",
        }
    }
    project.configure(f"DJANGO_SERVICES = {services!r}")
    project.migrate()
    project.python(f"""
        from shop.models import Item
        Item.objects.bulk_create([Item(name=f"item {{n}}") for n in range({ROWS})])
    """)
    return project


@pytest.mark.fault
def test_killed_workers_lose_nothing_and_pay_for_no_more_than_their_call(shop, far_end):
    random.seed(1)
    forking = shop.python.start(FORKING)
    working = [start(forking), start(forking)]

    for _ in range(KILLS):
        arrived = len(far_end.calls)
        wait_for(lambda arrived=arrived: len(far_end.calls) > arrived)
        time.sleep(random.uniform(0, 0.05))
        os.kill(working.pop(random.randrange(2)), signal.SIGKILL)
        working.append(start(forking))
    wait_for(lambda: not any(map(is_alive, working)))
    time.sleep(LEASE)  # what the killed held is free again
    shop.python('from django_services.embeddings.sync import sync; sync(alias="default")')

    sent = Counter(far_end.texts)
    assert len(sent) == ROWS
    assert sum(sent.values()) - ROWS <= KILLS * BATCH
    table = "shop_itemembeddingschunk"
    stored = shop.query(f"SELECT text, vector, count(*) FROM {table} GROUP BY source_id")
    assert len(stored) == ROWS
    for text, vector, chunks in stored:
        assert chunks == 1
        assert np.allclose(np.frombuffer(vector, "<f4"), far_end.vector(text), atol=1e-6)
    left = "SELECT (SELECT count(*) FROM django_services_change), count(*) "
    assert shop.query(left + "FROM django_services_lease") == [(0, 0)]


def start(forking):
    forking.stdin.write("\n")
    forking.stdin.flush()
    return int(forking.stdout.readline())


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition, timeout=60):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
