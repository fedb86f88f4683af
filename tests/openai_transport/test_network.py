from __future__ import annotations

import time

import httpx2
import pytest

from django_services.openai_transport.network import open_transport, proxy_for, until
from django_services.resilience import Deadline

LIMITS = httpx2.Limits()
URL = "https://api.openai.com/v1"


@pytest.fixture
def transport():
    with open_transport("http://127.0.0.1/v1", LIMITS) as transport:
        yield transport


def get(transport: httpx2.HTTPTransport, url: str, timeout: float) -> httpx2.Response:
    # A timeout for each operation, as the SDK sets it: a drip never meets it.
    timeouts = dict.fromkeys(("connect", "read", "write", "pool"), timeout)
    request = httpx2.Request("GET", url, extensions={"timeout": timeouts})
    response = transport.handle_request(request)
    response.read()
    return response


def test_a_drip_ends_at_the_deadline_and_not_at_the_timeout_of_a_read(transport, fake_openai):
    fake_openai.drip(pause=0.02)
    deadline = Deadline.after(0.3)

    with until(deadline), pytest.raises(httpx2.ReadTimeout):
        get(transport, f"{fake_openai.url}/models", timeout=5)

    assert time.monotonic() - deadline.at < 1


def test_a_passed_deadline_sends_nothing(transport, fake_openai):
    with until(Deadline.after(-1)), pytest.raises(httpx2.TimeoutException):
        get(transport, f"{fake_openai.url}/models", timeout=5)

    assert not fake_openai.calls


def test_the_deadline_holds_in_its_block_only(transport, fake_openai):
    with until(Deadline.after(-1)):
        pass

    assert get(transport, f"{fake_openai.url}/models", timeout=5).status_code == 200


def test_without_a_proxy_in_the_environment_there_is_none(monkeypatch):
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)

    assert proxy_for(URL) is None


@pytest.mark.parametrize("variable", ["https_proxy", "all_proxy"])
def test_the_environments_proxy_is_kept(monkeypatch, variable):
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "http://proxy:3128")

    assert proxy_for(URL) == "http://proxy:3128"


def test_no_proxy_where_the_environment_says_so(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "openai.com")

    assert proxy_for(URL) is None
