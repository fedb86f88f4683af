from __future__ import annotations

import asyncio
import io
import json
import logging
from wsgiref.handlers import SimpleHandler

import pytest
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.test import AsyncRequestFactory, RequestFactory
from django.urls import path

from django_services.exceptions import InvalidInput
from django_services.openai_service import streaming_response
from django_services.openai_transport import browser

from ..fake_openai import SAID, chunk

PROMPT = "prompt-canary-4711"


def view(request):
    return streaming_response(request, PROMPT, instructions="Be kind.")


async def async_view(request):
    return streaming_response(request, [{"role": "user", "content": PROMPT}])


urlpatterns = [path("sync", view), path("async", async_view)]


@pytest.fixture(autouse=True)
def _urls(settings):
    settings.ROOT_URLCONF = __name__
    settings.MIDDLEWARE = []


class Page:
    """What a browser got."""

    def __init__(self, headers, content):
        self.headers = {name.lower(): value for name, value in headers}
        self.content = content.decode()

    @property
    def events(self):
        """Each event's name and data."""
        found = []
        for block in self.content.split("\n\n"):
            lines = dict(line.split(": ", 1) for line in block.splitlines() if line[0] != ":")
            if lines:
                found.append((lines.get("event", "message"), json.loads(lines["data"])))
        return found

    @property
    def text(self):
        return "".join(data["text"] for name, data in self.events if name == "message")


def by_wsgi(where):
    """Ask as a WSGI server does; sends its whole answer."""
    started = []
    environ = RequestFactory().get(where).environ
    body = WSGIHandler()(environ, lambda status, headers: started.append(headers))
    content = b"".join(body)
    body.close()
    return Page(started[0], content)


async def ask_by_asgi(where, *, leave_after=None, leave_in=None):
    """Ask as an ASGI server does; the browser may leave after so many parts, or seconds."""
    scope = AsyncRequestFactory().get(where).scope
    left, sent = asyncio.Event(), []
    if leave_in is not None:
        asyncio.get_running_loop().call_later(leave_in, left.set)
    asked = [{"type": "http.request", "body": b""}]

    async def receive():
        if asked:
            return asked.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)
        if leave_after and len(sent) > leave_after:
            left.set()

    await asyncio.wait_for(ASGIHandler()(scope, receive, send), 10)
    headers = [(name.decode(), value.decode()) for name, value in sent[0]["headers"]]
    return Page(headers, b"".join(message.get("body", b"") for message in sent[1:]))


def by_asgi(where, **options):
    return asyncio.run(ask_by_asgi(where, **options))


@pytest.fixture(params=[by_wsgi, by_asgi], ids=["wsgi", "asgi"])
def ask(request, fake_openai):
    return request.param


@pytest.mark.parametrize("where", ["/sync", "/async"])
def test_a_completion_comes_as_events(ask, where):
    page = ask(where)

    assert page.events == [
        ("message", {"text": "Hello "}),
        ("message", {"text": "to "}),
        ("message", {"text": "you, "}),
        ("message", {"text": "world."}),
        (
            "done",
            {
                "finish_reason": "stop",
                "model": "gpt-6-luna",
                "usage": {"input_tokens": 11, "cached_tokens": 0, "output_tokens": 5},
            },
        ),
    ]


def test_nobody_on_the_way_holds_the_events_back(ask):
    page = ask("/sync")

    assert page.headers["content-type"] == "text/event-stream"
    assert "no-cache" in page.headers["cache-control"]
    assert page.headers["x-accel-buffering"] == "no"


def test_line_breaks_and_separators_break_no_event(ask, fake_openai):
    text = "a\n\nb\r\nc\u2028d 😀"
    fake_openai.stream(chunk(content=text), chunk(finish_reason="stop"))

    assert ask("/sync").text == text


def test_a_view_may_stand_in_a_server_of_wsgiref(fake_openai):
    written = io.BytesIO()
    environ = RequestFactory().get("/sync").environ

    SimpleHandler(io.BytesIO(), written, io.StringIO(), environ).run(WSGIHandler())

    assert b'data: {"text": "Hello "}' in written.getvalue()


FAULTS = {
    "AuthenticationFailed": lambda fake: fake.fail(401, message=PROMPT),
    "RateLimited": lambda fake: fake.fail(429, message=PROMPT, headers={"retry-after": "3600"}),
    "refusal": lambda fake: fake.say("", refusal=PROMPT),
    "cut_off": lambda fake: fake.stream(chunk(content="Hel"), is_cut=True),
    "server_error": lambda fake: fake.stream(
        {"error": {"message": PROMPT, "code": "server_error"}}
    ),
}


@pytest.mark.parametrize("code", FAULTS)
def test_a_fault_is_the_last_event(ask, fake_openai, code):
    FAULTS[code](fake_openai)

    name, data = ask("/sync").events[-1]

    assert (name, data["code"]) == ("error", code)
    assert set(data) == {"code", "message", "retryable", "retry_after"}
    assert data["retryable"] is (code in {"RateLimited", "cut_off", "server_error"})
    assert data["retry_after"] == (3_600 if code == "RateLimited" else None)


@pytest.mark.parametrize("code", FAULTS)
def test_a_fault_shows_a_visitor_nothing_and_is_logged(ask, fake_openai, caplog, settings, code):
    settings.DEBUG = True
    caplog.set_level(logging.INFO)
    FAULTS[code](fake_openai)

    shown = ask("/sync").content

    logged = [record.getMessage() for record in caplog.records if record.name == browser.__name__]
    assert len(logged) == 1
    hidden = (PROMPT, "OPENAI_", "Traceback", "default")
    assert [word for word in hidden if word in shown] == []
    assert PROMPT not in logged[0]


def test_a_bad_prompt_is_told_to_the_view(fake_openai):
    with pytest.raises(InvalidInput, match="prompt is blank"):
        streaming_response(RequestFactory().get("/"), " ")


# The browser leaves


def test_leaving_closes_the_call_under_wsgi(fake_openai):
    fake_openai.stream(chunk(content="more "), pause=0.005, is_endless=True)
    body = WSGIHandler()(RequestFactory().get("/sync").environ, lambda status, headers: None)
    next(iter(body))

    body.close()

    assert fake_openai.left.wait(3)


@pytest.mark.parametrize("where", ["/sync", "/async"])
def test_leaving_closes_the_call_under_asgi(fake_openai, where):
    fake_openai.stream(chunk(content="more "), pause=0.005, is_endless=True)

    async def leave():
        page = await ask_by_asgi(where, leave_after=2)
        return page, await asyncio.to_thread(fake_openai.left.wait, 3)

    page, is_closed = asyncio.run(leave())

    assert is_closed
    assert "event:" not in page.content


def test_leaving_before_the_first_piece_closes_the_call_under_asgi(fake_openai):
    fake_openai.stream(b": wait\n\n", pause=0.005, is_endless=True)

    async def leave():
        await ask_by_asgi("/async", leave_in=0.1)
        return await asyncio.to_thread(fake_openai.left.wait, 3)

    assert asyncio.run(leave())


def test_the_connection_is_kept_while_nothing_comes(fake_openai, monkeypatch):
    monkeypatch.setattr(browser, "KEEP_ALIVE", 0.03)
    fake_openai.stream(chunk(content="Hello"), chunk(finish_reason="stop"), pause=0.1)

    page = by_asgi("/async")

    assert page.content.startswith(": keep-alive\n\n")
    assert page.text == "Hello"


def test_a_slow_browser_gets_everything(fake_openai):
    response = streaming_response(AsyncRequestFactory().get("/"), PROMPT)

    async def read_slowly():
        parts = []
        async for part in response:
            await asyncio.sleep(0.01)
            parts.append(part)
        return b"".join(parts)

    assert Page([], asyncio.run(read_slowly())).text == SAID
