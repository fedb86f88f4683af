"""Makes the official clients: the SDK's own classes on the governed transport.

Imported when a client is built, since it loads the SDK.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openai

from .. import conf
from .call import Policy
from .governor import AsyncGovernedTransport, GovernedTransport
from .keys import key_of
from .network import open_async_transport, open_transport

#: Nothing connects to this address: the in-process transport takes its place.
EMBEDDED_ADDRESS = "http://embedded/v1"

#: What answers in process; serves sync and async clients alike.
InProcess = Any  # httpx2.BaseTransport and httpx2.AsyncBaseTransport

#: Set by `testing`: makes what answers in the network's place, for an alias.
replacement: Callable[[str], InProcess] | None = None


def open_client(
    alias: str, settings: conf.OpenAISettings, in_process: InProcess | None
) -> openai.OpenAI:
    """Return a sync client of the alias; `in_process` answers in the network's place."""
    wire = _replaced(alias) or in_process
    if wire is None:
        wire = open_transport(settings.base_url, openai.DEFAULT_CONNECTION_LIMITS)
    transport = GovernedTransport(wire, _policy(alias, settings))
    http_client = openai.DefaultHttpx2Client(transport=transport, follow_redirects=False)
    key = key_of(alias, settings)
    if settings.api_version:
        return openai.AzureOpenAI(
            http_client=http_client,
            **_azure_options(settings),
            **({"azure_ad_token_provider": key} if callable(key) else {"api_key": key}),
        )
    client = openai.OpenAI(http_client=http_client, api_key=key, **_options(settings))
    _drop_ambient(client, settings)
    return client


def open_async_client(
    alias: str, settings: conf.OpenAISettings, in_process: InProcess | None
) -> openai.AsyncOpenAI:
    """Return an async client of the alias for the running event loop; see `open_client`."""
    wire = _replaced(alias) or in_process
    if wire is None:
        wire = open_async_transport(settings.base_url, openai.DEFAULT_CONNECTION_LIMITS)
    transport = AsyncGovernedTransport(wire, _policy(alias, settings))
    http_client = openai.DefaultAsyncHttpx2Client(transport=transport, follow_redirects=False)
    key = key_of(alias, settings)
    if settings.api_version:
        return openai.AsyncAzureOpenAI(
            http_client=http_client,
            **_azure_options(settings),
            **({"azure_ad_token_provider": key} if callable(key) else {"api_key": key}),
        )
    client = openai.AsyncOpenAI(
        http_client=http_client,
        api_key=_awaitable(key) if callable(key) else key,
        **_options(settings),
    )
    _drop_ambient(client, settings)
    return client


def _replaced(alias: str) -> InProcess | None:
    return replacement(alias) if replacement is not None else None


def _awaitable(ask: Callable[[], str]) -> Callable[[], Any]:
    async def asked() -> str:
        return ask()

    return asked


def _address(settings: conf.OpenAISettings) -> str:
    return EMBEDDED_ADDRESS if settings.is_embedded else settings.base_url


def _policy(alias: str, settings: conf.OpenAISettings) -> Policy:
    return Policy(alias=alias, base_url=_address(settings), settings=settings)


def _common_options(settings: conf.OpenAISettings) -> dict[str, Any]:
    return {
        "timeout": openai.Timeout(settings.timeout, connect=settings.connect_timeout),
        "max_retries": 0,  # the transport's task
    }


def _options(settings: conf.OpenAISettings) -> dict[str, Any]:
    return {
        "base_url": _address(settings),
        "organization": settings.organization,
        "project": settings.project,
        **_common_options(settings),
    }


def _azure_options(settings: conf.OpenAISettings) -> dict[str, Any]:
    return {
        "azure_endpoint": settings.base_url,
        "api_version": settings.api_version,
        **_common_options(settings),
    }


def _drop_ambient(
    client: openai.OpenAI | openai.AsyncOpenAI, settings: conf.OpenAISettings
) -> None:
    # None at construction would let the SDK read the environment, which only env.py does.
    client.organization = settings.organization or None
    client.project = settings.project or None
