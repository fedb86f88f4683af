"""What arrived at a fake, and what a test may assert of it."""

from __future__ import annotations

import difflib
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

_SECRET_HEADERS = frozenset({"authorization", "api-key", "cookie"})

#: What stands before an endpoint: Azure's deployments, and the API's version.
_PREFIX = re.compile(r"^(?:/openai(?:/deployments/[^/]+)?)?(?:/v1)?(?=/)")

_SHOWN_CALLS = 20
_SHOWN_TEXTS = 10
_SHOWN_CHARACTERS = 100  # of a text


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Call:
    """One HTTP request that arrived: each attempt is one.

    Its ``repr`` shows no text, so that a failing test's log does not either.
    """

    method: str
    endpoint: str  # the path below the base URL, such as "/chat/completions"
    alias: str = "default"
    headers: Mapping[str, str] = field(default_factory=dict)  # without the key
    #: Decoded JSON, or the fields of a form: files as bytes; {} where nothing was sent.
    body: Mapping[str, Any] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)

    @property
    def model(self) -> str | None:
        return self.body.get("model")

    @property
    def is_stream(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def texts(self) -> list[str]:
        """Every text of the request: what is embedded, moderated, or said to the model."""
        return [
            text
            for part in ("instructions", "messages", "input", "prompt")
            for text in _texts_in(self.body.get(part))
        ]

    def __repr__(self) -> str:
        model = f" {self.model}" if self.model else ""
        return f"<Call {self.method} {self.endpoint}{model}, {len(self.texts)} texts>"


def endpoint_of(path: str, base_url: str) -> str:
    """Return a request's path below the base URL."""
    return _PREFIX.sub("", path.removeprefix(urlsplit(base_url).path.rstrip("/")), count=1)


def without_secrets(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name not in _SECRET_HEADERS}


class Arrivals:
    """The calls that arrived, and assertions about them."""

    def __init__(self) -> None:
        #: Every request that arrived, in order; a retry is one more.
        self.calls: list[Call] = []

    @property
    def embedded(self) -> list[str]:
        """Every text that was sent to be embedded, in order."""
        return [text for call in self._matching("/embeddings", None) for text in call.texts]

    def assert_called(
        self, endpoint: str | None = None, *, model: str | None = None, times: int | None = None
    ) -> None:
        """Assert that requests arrived.

        Args:
            endpoint: Path below the base URL, such as ``"/chat/completions"``.
            model: The model that was asked.
            times: How many, retries included; at least one if None.
        """
        __tracebackhide__ = True
        count = len(self._matching(endpoint, model))
        if count == 0 if times is None else count != times:
            wanted = "a call" if times is None else f"{times} calls"
            self._fail(f"Expected {wanted}{_described(endpoint, model)}, found {count or 'none'}.")

    def assert_not_called(self, endpoint: str | None = None, *, model: str | None = None) -> None:
        """Assert that no request arrived; see `assert_called`."""
        __tracebackhide__ = True
        if count := len(self._matching(endpoint, model)):
            self._fail(f"Expected no call{_described(endpoint, model)}, found {count}.")

    def assert_embedded(
        self,
        text: str | Callable[[str], bool],
        *,
        model: str | None = None,
        times: int | None = None,
    ) -> None:
        """Assert that a text was sent to be embedded.

        Args:
            text: The whole text; or a function that tells whether it is one meant.
            model: The model that was asked.
            times: How many such texts, retries included; at least one if None.
        """
        __tracebackhide__ = True
        count = self._count_embedded(text, model)
        if count == 0 if times is None else count != times:
            wanted = "" if times is None else f" {times} times"
            self._fail_embedded(f"Expected {_named(text)} to be embedded{wanted}", count, text)

    def assert_not_embedded(
        self, text: str | Callable[[str], bool], *, model: str | None = None
    ) -> None:
        """Assert that a text was not sent to be embedded; see `assert_embedded`."""
        __tracebackhide__ = True
        if count := self._count_embedded(text, model):
            self._fail_embedded(f"Expected {_named(text)} not to be embedded", count, None)

    def _matching(self, endpoint: str | None, model: str | None) -> list[Call]:
        wanted = None if endpoint is None else "/" + endpoint.strip("/")
        return [
            call
            for call in list(self.calls)
            if wanted in (None, call.endpoint) and model in (None, call.model)
        ]

    def _count_embedded(self, text: str | Callable[[str], bool], model: str | None) -> int:
        is_meant = text if callable(text) else text.__eq__
        calls = self._matching("/embeddings", model)
        return sum(bool(is_meant(each)) for call in calls for each in call.texts)

    def _fail(self, message: str) -> None:
        __tracebackhide__ = True
        lines = [_line_of(call) for call in self.calls]
        raise AssertionError(_listed(message, "What was called:", lines, _SHOWN_CALLS))

    def _fail_embedded(self, message: str, count: int, text: object) -> None:
        __tracebackhide__ = True
        sent = self.embedded
        message = f"{message}, found {count or 'none'}."
        if isinstance(text, str) and not count:
            near = difflib.get_close_matches(text, sent, n=1)
            message += f" The nearest is {_shortened(near[0])}." if near else ""
        lines = [_shortened(each) for each in sent]
        raise AssertionError(_listed(message, "What was embedded:", lines, _SHOWN_TEXTS))


def _texts_in(given: Any) -> Iterator[str]:
    if isinstance(given, str):
        yield given
    elif isinstance(given, list):
        for part in given:
            yield from _texts_in(part)
    elif isinstance(given, dict):
        for name in ("content", "text", "output"):
            yield from _texts_in(given.get(name))


def _line_of(call: Call) -> str:
    model = f" ({call.model})" if call.model else ""
    texts = ", ".join(_shortened(text) for text in call.texts[:3])
    more = f" and {len(call.texts) - 3} more" if len(call.texts) > 3 else ""
    return f"{call.method} {call.endpoint}{model}{': ' if texts else ''}{texts}{more}"


def _described(endpoint: str | None, model: str | None) -> str:
    return (f" of {endpoint}" if endpoint else "") + (f" with model {model!r}" if model else "")


def _named(text: str | Callable[[str], bool]) -> str:
    return "a text that matches" if callable(text) else _shortened(text)


def _shortened(text: str) -> str:
    return json.dumps(
        textwrap.shorten(text, _SHOWN_CHARACTERS, placeholder=" …"), ensure_ascii=False
    )


def _listed(message: str, title: str, lines: Iterable[str], most: int) -> str:
    found = list(lines)
    if not found:
        return f"{message} {title} nothing."
    more = [f"  … and {len(found) - most} more"] if len(found) > most else []
    return "\n".join([message, title, *(f"  {line}" for line in found[:most]), *more])
