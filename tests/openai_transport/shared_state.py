"""Where limits and budgets are kept in a test, and the clock that they go by."""

from __future__ import annotations

import datetime
import time
import uuid
from collections.abc import Callable

import pytest

from django_services import redis_service
from django_services.openai_transport import budgets, shared

PLACES = ("memory", "redis")

Configure = Callable[..., None]


class Clock:
    """The clock of Redis and of this process at once; it stands until a test moves it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(shared, "_now", lambda: self.now)
        monkeypatch.setattr(budgets, "_now", lambda: self.utc)
        self.set(time.time())

    def set(self, seconds: float) -> None:
        self.now = round(seconds * 1_000_000)  # microseconds
        self._monkeypatch.setattr(shared, "CLOCK", f"local now = {self.now}\n")

    def advance(self, seconds: float) -> None:
        self.set(self.seconds + seconds)

    @property
    def seconds(self) -> float:
        return self.now / 1_000_000

    @property
    def utc(self) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self.seconds, datetime.UTC)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def alias() -> str:
    """An OpenAI alias that no other test has, so that a shared Redis holds nothing of it."""
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture
def configure(alias: str, settings) -> Configure:
    """Set the settings of the alias, and where the shared state is: "" for this process."""

    def set_services(redis: str = "", **keys: object) -> None:
        found = {"URL": redis, "TIMEOUT": 0.5, "CONNECT_TIMEOUT": 0.5}
        settings.DJANGO_SERVICES = {
            "OPENAI": {alias: {"BASE_URL": "embedded://", **keys}},
            "REDIS": {"default": found} if redis else {},
        }
        shared.forget()

    yield set_services
    shared.forget()
    redis_service.close()


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> str:
    """The URL of the Redis that holds the shared state; "" for this process: once with each."""
    return "" if request.param == "memory" else request.getfixturevalue("redis_url")
