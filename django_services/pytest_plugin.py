"""The pytest plugin: the fixture ``fake_openai``, and a guard around the network.

Loaded by pytest in every project that has the package installed, so it loads neither
Django's settings nor an SDK. Under the guard, which is always on, the clients of
OpenAI reach this machine only, and the hosts that are named by the ini option
``django_services_allow_hosts`` or by ``@pytest.mark.openai_hosts("api.openai.com")``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .testing import FakeOpenAI

OPTION = "django_services_allow_hosts"
MARKER = "openai_hosts"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        OPTION,
        "hosts that the OpenAI clients may reach in tests; * stands for any text",
        type="args",
        default=[],
    )


def pytest_configure(config: pytest.Config) -> None:
    from .openai_transport.hosts import allow_hosts

    config.addinivalue_line(
        "markers", f"{MARKER}(*hosts): hosts that the OpenAI clients may reach in the test"
    )
    guard = contextlib.ExitStack()
    guard.enter_context(allow_hosts(*config.getini(OPTION)))
    config.add_cleanup(guard.close)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    from .openai_transport.hosts import allow_hosts

    hosts = [host for marker in item.iter_markers(MARKER) for host in marker.args]
    with allow_hosts(*hosts):
        return (yield)


@pytest.fixture
def fake_openai() -> Iterator[FakeOpenAI]:
    """A fake in the network's place: see `django_services.testing.fake_openai`."""
    from .testing import fake_openai

    with fake_openai() as fake:
        yield fake
