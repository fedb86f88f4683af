from __future__ import annotations

import asyncio

import openai
import pytest

from django_services.exceptions import ConfigurationError
from django_services.openai_service import (
    aembed,
    embed,
    get_async_openai_client,
    get_openai_client,
)
from django_services.openai_transport.hosts import allow_hosts, is_allowed
from django_services.signals import openai_call_finished

#: Of a network that is kept for documentation (RFC 5737): nobody answers there.
ADDRESS = "192.0.2.1"


@pytest.fixture
def elsewhere(settings):
    """Clients whose server is another machine; one that were reached would not be waited for."""
    options = {"API_KEY": "sk-test", "BASE_URL": f"http://{ADDRESS}/v1", "CONNECT_TIMEOUT": 0.01}
    settings.DJANGO_SERVICES = {"OPENAI": {"default": {**options, "DEADLINE": 0.05}}}


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "::1", "api.localhost"])
def test_this_machine_is_always_allowed(host):
    with allow_hosts():
        assert is_allowed(host)


@pytest.mark.parametrize("host", ["api.openai.com", ADDRESS, "0.0.0.0", "localhost.example.com"])
def test_other_hosts_are_not_allowed_in_a_block(host):
    with allow_hosts():
        assert not is_allowed(host)


@pytest.mark.parametrize("host", ["api.openai.com", "API.openai.com", "mine.openai.azure.com"])
def test_hosts_that_are_named_are_allowed(host):
    with allow_hosts("api.OpenAI.com", "*.openai.azure.com"):
        assert is_allowed(host)
        assert not is_allowed("api.openai.com.example.com")


def test_an_inner_block_allows_more_and_not_less():
    with allow_hosts("a.example"):
        with allow_hosts("b.example"):
            assert is_allowed("a.example")
            assert is_allowed("b.example")

        assert not is_allowed("b.example")


def test_the_raw_client_is_refused_with_the_remedies(elsewhere):
    with allow_hosts(), pytest.raises(openai.APIStatusError) as caught:
        get_openai_client().models.list()

    told = str(caught.value)
    assert f"Tests may not reach {ADDRESS}" in told
    for remedy in ("fake_openai", "embedded://", f'openai_hosts("{ADDRESS}")'):
        assert remedy in told


def test_the_async_client_is_refused_too(elsewhere):
    async def call():
        await get_async_openai_client().models.list()

    with allow_hosts(), pytest.raises(openai.APIStatusError, match="may not reach"):
        asyncio.run(call())


@pytest.mark.parametrize("call", [embed, lambda texts: asyncio.run(aembed(texts))])
def test_verbs_raise_an_error_of_ours_that_names_the_host(elsewhere, call):
    with allow_hosts(), pytest.raises(ConfigurationError, match=f"may not reach {ADDRESS}"):
        call(["text"])


def test_a_refusal_is_not_tried_again(elsewhere, caplog):
    payloads = []

    def receive(sender, signal, **payload):
        payloads.append(payload)

    openai_call_finished.connect(receive)

    with allow_hosts(), caplog.at_level("INFO"), pytest.raises(ConfigurationError):
        embed(["text"])

    openai_call_finished.disconnect(receive)
    assert [payload["outcome"] for payload in payloads] == ["ConfigurationError"]
    assert "attempt" not in caplog.text


def test_a_host_that_is_allowed_is_called(fake_openai):
    with allow_hosts():
        embed(["text"])

    assert len(fake_openai.calls) == 1
