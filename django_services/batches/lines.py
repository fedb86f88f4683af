"""The lines of a batch: how requests are written, what may stand in one, what answers mean.

Decides and does no I/O.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..exceptions import InvalidInput
from ..openai_transport.faults import error_class, fault_in
from ..openai_transport.usage import UNKNOWN, Usage, usage_in
from .models import EMBEDDINGS

LONGEST_ID = 255  # characters of `BatchLine.custom_id`


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one batch may hold; the defaults are the API's."""

    lines: int = 50_000
    inputs: int = 50_000  # texts to embed
    file_bytes: int = 200_000_000


class Request(NamedTuple):
    """One request: an id of the caller's, by which the answer is found, and its JSON body."""

    custom_id: str
    body: Mapping[str, Any]

    def __repr__(self) -> str:
        return "<private request>"


class Outcome(NamedTuple):
    """What one line of an output or error file says."""

    custom_id: str
    body: Any = None  # the decoded answer, where it is a good one
    error: str = ""
    is_retryable: bool = False
    usage: Usage = UNKNOWN

    def __repr__(self) -> str:
        return f"<outcome {self.error or 'ok'}>"


def encoded(request: Request, endpoint: str) -> bytes:
    """Return the request's line of the input file.

    ASCII alone: what reads the file may take U+2028 for the end of a line.
    """
    line = {"custom_id": request.custom_id, "method": "POST", "url": endpoint, "body": request.body}
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def inputs_of(request: Request, endpoint: str) -> int:
    """Return how many texts the request embeds; 1 at any other endpoint."""
    from ..openai_transport.reading import count_inputs

    return count_inputs(request.body.get("input")) if endpoint == EMBEDDINGS else 1


def check(request: Request, model: str, size: int, inputs: int, limits: Limits) -> None:
    """Refuse a request that the API would refuse the whole batch for.

    Args:
        request: The request.
        model: The batch's.
        size: Bytes of its line.
        inputs: How many texts it embeds.
        limits: What the batch may hold.

    Raises:
        InvalidInput: Its id, its model or its size cannot be.
    """
    name: Any = request.custom_id
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_ID or not name.isprintable():
        raise InvalidInput(f"A custom_id is a string of 1 to {LONGEST_ID} printable characters.")
    if request.body.get("model") != model:
        raise InvalidInput(
            f"Request {name!r} is not for model {model!r}: a batch has one model. "
            "Submit the requests of each model by themselves."
        )
    if request.body.get("stream"):
        raise InvalidInput(f"Request {name!r} asks for a stream, which no batch has.")
    if inputs > limits.inputs:
        raise InvalidInput(f"Request {name!r} embeds more than {limits.inputs:,} texts.")
    if size > limits.file_bytes:
        raise InvalidInput(f"Request {name!r} is longer than {limits.file_bytes:,} bytes.")


def split(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of a file that comes in pieces, blank ones left out.

    At line feeds only: `str.splitlines` would part a text at U+2028.
    """
    rest: list[bytes] = []
    for chunk in chunks:
        *ended, last = chunk.split(b"\n")
        if ended:
            yield from filter(bytes.strip, (b"".join((*rest, ended[0])), *ended[1:]))
            rest = []
        rest.append(last)
    if (line := b"".join(rest)).strip():
        yield line


def read(line: bytes) -> Outcome | None:
    """Return what a line of an output or error file says; None where it is no such line."""
    try:
        decoded = json.loads(line)
    except (ValueError, RecursionError):
        return None
    custom_id = decoded.get("custom_id") if isinstance(decoded, dict) else None
    if not isinstance(custom_id, str):
        return None
    response = decoded.get("response")
    if not isinstance(response, dict):
        # It was never answered: the batch expired, or was cancelled.
        return Outcome(custom_id, None, fault_in(decoded).code or "no_answer", True)
    status, body = response.get("status_code"), response.get("body")
    if not isinstance(status, int):
        return Outcome(custom_id, None, "invalid_response", True)
    if 200 <= status < 300:
        return Outcome(custom_id, body, usage=usage_in(body) or UNKNOWN)
    code = fault_in(body).code
    error = ", ".join(filter(None, (f"HTTP {status}", code)))
    return Outcome(custom_id, None, error, error_class(status, code).retryable)


def results_of(answers: Sequence[tuple[Any, int]], endpoint: str) -> list[bytes | None]:
    """Return what is kept of good answers, each with the texts that it embeds; None if useless.

    Of embeddings that is their vectors, little-endian float32 of L2 norm 1, validated
    as the transport does; of anything else the body as JSON.
    """
    if endpoint != EMBEDDINGS:
        return [json.dumps(body, separators=(",", ":")).encode() for body, _ in answers]
    if all(inputs == 1 for _, inputs in answers):
        # Together, ten times as quick.
        rows = [{"index": n, "embedding": _row_of(body)} for n, (body, _) in enumerate(answers)]
        return _vectors_in({"data": rows}, len(rows))
    return [_joined(_vectors_in(body, inputs)) for body, inputs in answers]


def _row_of(body: Any) -> Any:
    """Return the vector, as it was sent, of an answer that holds one."""
    data = body.get("data") if isinstance(body, dict) else None
    item = data[0] if isinstance(data, list) and len(data) == 1 else None
    return item.get("embedding") if isinstance(item, dict) else None


def _vectors_in(body: Any, count: int) -> list[bytes | None]:
    from ..openai_transport.reading import FLOAT, Unusable, read_embeddings

    try:
        reading = read_embeddings(body, count)
    except Unusable:
        return [None] * count
    rows = reading.vectors.astype(FLOAT, copy=False)
    return [None if n in reading.faults else rows[n].tobytes() for n in range(count)]


def _joined(rows: Sequence[bytes | None]) -> bytes | None:
    sound = [row for row in rows if row is not None]
    return b"".join(sound) if len(sound) == len(rows) else None
