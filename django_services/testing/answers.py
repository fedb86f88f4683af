"""What a fake sends back, before it is HTTP: pure data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

JSON = {"content-type": "application/json"}
EVENTS = {"content-type": "text/event-stream; charset=utf-8"}

#: When everything that a fake makes was made: 2026-01-01, in Unix seconds.
CREATED = 1_767_225_600


class Broken(Enum):
    """A request that is not answered."""

    TIMEOUT = "timeout"
    DISCONNECT = "disconnect"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Answer:
    """An answer: whole, or in the pieces of a stream."""

    content: bytes | tuple[bytes, ...]
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: JSON)
    is_disconnected: bool = False  # the connection breaks after the last piece
    words: str = ""  # of an error, if they are the fake's own


def json_answer(body: Any, *, status: int = 200) -> Answer:
    return Answer(content=json.dumps(body).encode(), status=status)


def error_answer(
    status: int,
    message: str,
    *,
    code: str | None = None,
    param: str | None = None,
    kind: str = "",
    headers: Mapping[str, str] | None = None,
    is_own: bool = False,
) -> Answer:
    """Return an error in the API's shape.

    Args:
        status: HTTP status.
        message: What the error says.
        code: The API's short word for it.
        param: The parameter of the request that it is about.
        kind: The error's type; by the code or status if "".
        headers: More headers of the answer.
        is_own: Whether the message is the fake's own advice, to be shown by our errors too.
    """
    kind = kind or code or ("server_error" if status >= 500 else "invalid_request_error")
    error = {"message": message, "type": kind, "param": param, "code": code}
    return Answer(
        content=json.dumps({"error": error}).encode(),
        status=status,
        headers={**JSON, **(headers or {})},
        words=message if is_own else "",
    )


def event_stream(events: Iterable[str], *, is_disconnected: bool) -> Answer:
    """Return a stream of server-sent events."""
    pieces = tuple(event.encode() for event in events)
    return Answer(content=pieces, headers=EVENTS, is_disconnected=is_disconnected)
