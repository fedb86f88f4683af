from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import zlib

import httpx2
import pytest

from django_services.openai_transport.streams import AsyncWatchedStream, Events, WatchedStream
from django_services.openai_transport.usage import Usage


def data(event):
    return f"data: {json.dumps(event)}\n\n".encode()


CHUNK = data({"choices": [{"delta": {"content": "word"}}], "usage": None})
USAGE = data({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}})
DONE = b"data: [DONE]\n\n"


def passed(*pieces, encoding=""):
    events = Events(encoding)
    for piece in pieces:
        events.pass_by(piece)
    return events


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_usage_and_end_are_found_however_the_bytes_are_cut(size):
    whole = CHUNK + USAGE + DONE

    events = passed(*(whole[at : at + size] for at in range(0, len(whole), size)))

    assert events.usage == Usage(input_tokens=7, output_tokens=2)
    assert events.is_complete
    assert events.pieces == 1


@pytest.mark.parametrize(
    ("encoding", "encode"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_a_compressed_stream_is_read_too(encoding, encode):
    events = passed(encode(CHUNK + USAGE + DONE), encoding=encoding)

    assert events.is_complete
    assert events.usage is not None


def test_a_response_ends_with_its_own_event():
    done = {"type": "response.completed", "response": {"usage": {"input_tokens": 3}}}

    events = passed(data(done))

    assert events.is_complete
    assert events.usage == Usage(input_tokens=3)


@pytest.mark.parametrize(
    "words", ["[DONE]", '"response.completed"', 'data: {"error": {"message": "x"}}', '"error"']
)
def test_words_of_the_model_are_no_end_and_no_failure(words):
    chunk = data({"type": "response.output_text.delta", "delta": words})

    events = passed(chunk)

    assert not events.is_complete
    assert not events.has_failed


@pytest.mark.parametrize(
    "event",
    [
        {"error": {"message": "overloaded"}},
        {"type": "error", "message": "overloaded"},
        {"type": "response.failed", "response": {}},
    ],
)
def test_a_failure_that_the_service_tells_is_seen(event):
    assert passed(data(event)).has_failed


class Source(httpx2.SyncByteStream):
    def __init__(self, pieces, error=None):
        self.pieces, self.error, self.is_closed = pieces, error, False

    def __iter__(self):
        yield from self.pieces
        if self.error:
            raise self.error

    def close(self):
        self.is_closed = True


@pytest.fixture
def ended():
    return []


def watched(source, ended):
    return WatchedStream(source, Events(), lambda error, whole: ended.append((error, whole)))


def test_the_end_is_told_once_when_all_is_read(ended):
    stream = watched(Source([CHUNK, DONE]), ended)

    assert list(stream) == [CHUNK, DONE]
    stream.close()

    assert ended == [(None, True)]


def test_a_reader_who_leaves_ends_it_too(ended):
    source = Source([CHUNK, DONE])
    stream = watched(source, ended)

    next(iter(stream))
    stream.close()

    assert ended == [(None, False)]
    assert source.is_closed


def test_a_stream_that_is_dropped_without_a_word_ends(ended):
    stream = watched(Source([CHUNK]), ended)
    next(iter(stream))

    del stream

    assert ended == [(None, False)]


def test_the_error_that_breaks_it_is_told_and_passed_on(ended):
    error = httpx2.ReadError("gone")
    stream = watched(Source([CHUNK], error), ended)

    with pytest.raises(httpx2.ReadError):
        list(stream)

    assert ended == [(error, False)]


class AsyncSource(httpx2.AsyncByteStream):
    def __init__(self, pieces):
        self.pieces = pieces

    async def __aiter__(self):
        for piece in self.pieces:
            yield piece


def test_the_end_is_told_though_its_reader_is_cancelled_meanwhile():
    told = []

    async def ended(error, whole):
        await asyncio.sleep(0.05)
        told.append((error, whole))

    async def read():
        stream = AsyncWatchedStream(AsyncSource([CHUNK]), Events(), ended)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                async for _ in stream:
                    pass
        await stream.aclose()

    asyncio.run(read())

    assert told == [(None, True)]
