"""Workers in processes of their own, on the test's database, and a fake OpenAI that they ask."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from django_services import openai_service
from django_services.embeddings.declaration import Embeddings, get_index
from django_services.embeddings.models import Lease
from tests.fake_openai import FakeOpenAI
from tests.processes import PythonRunner
from tests.testapp.models import Product

INDEX = "testapp.Product"
BATCH = 10  # sources of one call
CALLS = 2  # in flight, of one worker

# Forks a worker for every line that it reads: a new Python each would take seconds.
FORKING = f"""
    import os, signal, sys
    from django_services.embeddings.declaration import get_index
    from django_services.embeddings.sync import sync
    from django_services.openai_service import get_openai_client
    from tests.fault.crashing import crash_at
    get_openai_client()  # loads the SDK once, for all
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for point in map(str.strip, sys.stdin):
        worker = os.fork()
        if worker:
            print(worker, flush=True)
            continue
        if point:
            crash_at(point)
        sync([get_index("{INDEX}")], alias="default", batch_size={BATCH})
        os._exit(0)
"""


class Workers:
    """Processes that bring the test's database in step.

    Args:
        python: Starts processes on the test's database.
        services: ``DJANGO_SERVICES`` of theirs.
    """

    def __init__(self, python: PythonRunner, services: dict[str, Any]) -> None:
        self._python = python
        self._env = {"DJANGO_SERVICES_TEST_SERVICES": json.dumps(services)}

    @functools.cached_property
    def _forking(self) -> subprocess.Popen[str]:
        return self._python.start(FORKING, env=self._env)

    def start(self, *, crash_at: str = "") -> int:
        """Start a worker and return its process id; it ends when nothing is pending."""
        self._forking.stdin.write(f"{crash_at}\n")
        self._forking.stdin.flush()
        return int(self._forking.stdout.readline())

    def run(self, *, crash_at: str = "") -> None:
        """Let a worker work until its end."""
        worker = self.start(crash_at=crash_at)
        wait_until(lambda: not is_alive(worker))

    def command(self, *arguments: str) -> subprocess.Popen[str]:
        """Start ``manage.py embeddings`` and return its process."""
        code = f"from django.core.management import call_command; call_command(*{arguments!r})"
        return self._python.start(code, env=self._env)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def frozen(pids: Sequence[int]) -> Iterator[None]:
    """Stop processes in their tracks for a while."""
    with contextlib.suppress(ProcessLookupError):
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
    yield
    with contextlib.suppress(ProcessLookupError):
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def wait_until(condition: Callable[[], object], timeout: float = 60.0) -> None:
    """Wait until a condition holds; fail after so many seconds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def expire_leases() -> None:
    """Let the time pass after which others may take what a worker held."""
    Lease.objects.update(expires_at=0)


@pytest.fixture
def index(fake_openai: FakeOpenAI, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Embeddings:
    """A declaration whose embeddings the fake OpenAI makes, and nobody but a worker asks for."""

    def embed(texts: Sequence[str], **_: Any) -> list[Any]:
        return [fake_openai.vector(text) for text in texts]

    # What checks the stored vectors is not to be counted among the calls.
    monkeypatch.setattr(openai_service, "embed", embed)
    embeddings = {"ON_COMMIT": "off", "CONCURRENCY": CALLS}
    settings.DJANGO_SERVICES = fake_openai.settings() | {"EMBEDDINGS": embeddings}
    return get_index(INDEX)


@pytest.fixture
def workers(run_python: PythonRunner, index: Embeddings, settings: Any) -> Workers:
    return Workers(run_python, settings.DJANGO_SERVICES)


def create(count: int) -> None:
    Product.objects.bulk_create(
        [Product(description=f"text {number}", sku=str(number)) for number in range(count)]
    )
