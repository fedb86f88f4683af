"""Who calls: the sync and the async client, so that a test holds for both."""

from __future__ import annotations

import asyncio

import pytest

from django_services.openai_service import get_async_openai_client, get_openai_client
from django_services.signals import openai_call_finished

from .shared_state import alias, clock, configure, place  # noqa: F401  # fixtures

MODEL = "text-embedding-3-small"


class SyncCaller:
    """Calls with the sync client."""

    def embed(self, given="a text", **options):
        return get_openai_client().embeddings.create(input=given, model=MODEL, **options)

    def models(self):
        return get_openai_client().models.list().data

    def retrying(self, times):
        client = get_openai_client().with_options(max_retries=times)
        return client.embeddings.create(input="a text", model=MODEL)


class AsyncCaller:
    """Calls with the async client, each in a loop of its own."""

    def embed(self, given="a text", **options):
        async def call():
            client = get_async_openai_client()
            return await client.embeddings.create(input=given, model=MODEL, **options)

        return asyncio.run(call())

    def models(self):
        async def call():
            return (await get_async_openai_client().models.list()).data

        return asyncio.run(call())

    def retrying(self, times):
        async def call():
            client = get_async_openai_client().with_options(max_retries=times)
            return await client.embeddings.create(input="a text", model=MODEL)

        return asyncio.run(call())


@pytest.fixture(params=[SyncCaller, AsyncCaller], ids=["sync", "async"])
def caller(request):
    return request.param()


@pytest.fixture
def finished():
    """What the signal told."""
    payloads = []

    def receive(sender, signal, **payload):
        payloads.append(payload)

    openai_call_finished.connect(receive)
    yield payloads
    openai_call_finished.disconnect(receive)
