"""A backfill on PostgreSQL against a pipeline written by hand, and what it costs the client.

Run: python -m pytest -m benchmark -s tests/benchmarks/test_backfill_postgresql.py

20,000 rows of 400 characters; a far end on loopback that answers after 100 ms. The
pipeline has the plain SDK, 16 threads with 100 texts a call, the raw response, ``np.frombuffer``
and a binary COPY of halfvec. It claims nothing, compares nothing and may lose
everything: it is the raw limit. Both leave out the building of the index.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .. import databases
from ..processes import Project

pytestmark = pytest.mark.benchmark

ROWS = 20_000
LATENCY = 0.1  # seconds
ROUNDS = 3
#: dimensions -> the least share of the pipeline's speed.
FIGURES = {512: 0.85, 1536: 0.8}
MOST_CPU = 0.05  # seconds of the client for 1,000 rows
MOST_MEMORY = 40  # MB above idle

FILL = """
    import random
    from shop.models import Item
    words = [f"word{n}" for n in range(2000)]
    random.seed(0)
    rows = []
    for number in range(%d):
        text = f"{number} "
        while len(text) < 400:
            text += random.choice(words) + " "
        rows.append(Item(text=text[:400]))
    Item.objects.bulk_create(rows, batch_size=5000)
"""

MEASURE = """
    import json, resource, sys, time, threading
    import numpy, psycopg
    from shop.models import Item
    from django.db import connection
    from django_services.openai_service import get_openai_client

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize() / 1e6

    def measured(work):
        peak, ending = [resident()], threading.Event()
        idle = peak[0]
        def look():
            while not ending.wait(0.02):
                peak[0] = max(peak[0], resident())
        threading.Thread(target=look, daemon=True).start()
        cpu, start = time.process_time(), time.perf_counter()
        seconds = work() or time.perf_counter() - start
        cpu = time.process_time() - cpu
        ending.set()
        print(json.dumps({"seconds": seconds, "cpu": cpu, "memory": peak[0] - idle}))
"""

OURS = """
    from django_services.embeddings import ann_index
    from django_services.embeddings.sync import sync
    ann_index.ensure = lambda *_, **__: False
    get_openai_client().embeddings.create(model="text-embedding-3-small", input=["warm"])
    connection.ensure_connection()
    measured(lambda: sync(alias="default") and None)
"""

PIPELINE = """
    import base64, concurrent.futures, numpy as np
    import openai
    ours = get_openai_client()
    client = openai.OpenAI(api_key="sk-benchmark", base_url=ours.base_url, max_retries=0)
    client.embeddings.create(model="text-embedding-3-small", input=["warm"])
    names = ("dbname", "user", "password", "host", "port")
    given = connection.get_connection_params()
    url = {name: given[name] for name in names if given.get(name)}
    local = threading.local()
    def store(rows):
        if not hasattr(local, "connection"):
            local.connection = psycopg.connect(**url)
        response = client.embeddings.with_raw_response.create(
            model="text-embedding-3-small", input=[text for _, text in rows],
            dimensions=%(dimensions)d, encoding_format="base64",
        )
        found = json.loads(response.content)["data"]
        with local.connection.cursor() as cursor:
            statement = "COPY raw_chunk (source_id, text, vector) FROM STDIN (FORMAT BINARY)"
            with cursor.copy(statement) as copy:
                copy.set_types(["int8", "text", "bytea"])
                for (pk, text), row in zip(rows, found):
                    vector = np.frombuffer(base64.b64decode(row["embedding"]), "<f4")
                    head = len(vector).to_bytes(2, "big") + bytes(2)
                    copy.write_row((pk, text, head + vector.astype(">f2").tobytes()))
        local.connection.commit()
    def work():
        with psycopg.connect(**url) as reading:
            rows = reading.execute("SELECT id, text FROM shop_item ORDER BY id").fetchall()
        parts = [rows[at : at + 100] for at in range(0, len(rows), 100)]
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            list(pool.map(store, parts))
    measured(work)
"""

BARE = """
    import concurrent.futures
    client = get_openai_client()
    body = ["x" * 400] * 100
    def call(_):
        client.embeddings.with_raw_response.create(
            model="text-embedding-3-small", input=body, dimensions=%(dimensions)d,
            encoding_format="base64",
        )
    call(0)
    def work():
        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            list(pool.map(call, range(400)))
    measured(work)
"""


@pytest.fixture(params=FIGURES, ids=lambda dimensions: f"{dimensions} dimensions")
def dimensions(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def shop(tmp_path: Path, _own_postgres: Any, dimensions: int) -> Iterator[Project]:
    with (
        databases.new_database(_own_postgres.url) as url,
        subprocess.Popen(
            [
                sys.executable,
                str(Path(__file__).parent / "far_end.py"),
                str(dimensions),
                str(LATENCY),
            ],
            stdout=subprocess.PIPE,
            text=True,
        ) as far_end,
    ):
        assert far_end.stdout is not None
        port = int(far_end.stdout.readline())
        project = Project(tmp_path, databases.entry(url))
        project.models("""
            class Item(models.Model):
                text = models.TextField()
                embeddings = Embeddings("text")
        """)
        services = {
            "OPENAI": {
                "default": {
                    "API_KEY": "sk-benchmark",
                    "BASE_URL": f"http://127.0.0.1:{port}/v1",
                    "DIMENSIONS": dimensions,
                }
            },
            "EMBEDDINGS": {"ON_COMMIT": "off"},
        }
        project.configure(f"DJANGO_SERVICES = {services!r}")
        project.migrate()
        project.python(FILL % ROWS, timeout=300)
        project.query(
            "CREATE TABLE raw_chunk (id bigserial, source_id int8, text text, vector halfvec)"
        )
        yield project
        project.close()
        far_end.kill()


def test_a_backfill_is_near_the_raw_limit(shop: Project, dimensions: int):
    bare = run(shop, BARE, dimensions)
    rounds = [(ours(shop, dimensions), pipeline(shop, dimensions)) for _ in range(ROUNDS)]

    ratio = statistics.median(raw["seconds"] / own["seconds"] for own, raw in rounds)
    own = min((own for own, _ in rounds), key=lambda each: each["seconds"])
    raw = min((raw for _, raw in rounds), key=lambda each: each["seconds"])
    cpu = min(own["cpu"] for own, _ in rounds) / ROWS * 1000
    memory = statistics.median(own["memory"] for own, _ in rounds)
    print(
        f"\n{dimensions} dimensions: {ROWS / own['seconds']:,.0f} rows/s, the pipeline "
        f"{ROWS / raw['seconds']:,.0f}, ratio {ratio:.2f}; CPU for 1,000 rows "
        f"{cpu:.3f} s (pipeline {raw['cpu'] / ROWS * 1000:.3f}); {memory:.0f} MB above idle "
        f"(pipeline {raw['memory']:.0f}); far end alone, 64 threads: "
        f"{40_000 / bare['seconds']:,.0f} rows/s"
    )
    assert ratio >= FIGURES[dimensions]
    assert cpu <= MOST_CPU
    assert memory <= MOST_MEMORY


def ours(shop: Project, dimensions: int) -> dict[str, float]:
    shop.query("TRUNCATE shop_itemembeddingschunk, django_services_space")
    shop.query("DELETE FROM django_services_change")
    found = run(shop, OURS, dimensions)
    [(stored,)] = shop.query("SELECT count(*) FROM shop_itemembeddingschunk")
    assert stored == ROWS
    return found


def pipeline(shop: Project, dimensions: int) -> dict[str, float]:
    shop.query("TRUNCATE raw_chunk")
    return run(shop, PIPELINE, dimensions)


def run(shop: Project, code: str, dimensions: int) -> dict[str, float]:
    output = shop.python(
        MEASURE.rstrip() + "\n" + (code % {"dimensions": dimensions}), timeout=300
    ).stdout
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    return found
