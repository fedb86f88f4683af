"""Which texts can be embedded, and in which requests they go; decides, does no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from django.utils.functional import Promise

from ..exceptions import InvalidInput
from ..privacy import Private


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may hold; by default, one to the embeddings endpoint.

    Tokens are bounded by UTF-8 bytes, of which a text has at least as many: no
    tokenizer is needed, and a request is never refused for its size in all.
    """

    texts: int = 2_048
    request_bytes: int = 300_000  # the API: 300,000 tokens
    text_tokens: int = 8_192
    text_bytes: int = 8_192 * 128  # of which no token has more than 128
    verb: str = "embed"  # what is done with a text


LIMITS = Limits()


def plan_requests(texts: Sequence[str], limits: Limits = LIMITS) -> list[range]:
    """Return the positions of the texts of each request, in order; none is too big.

    A text longer than a whole request stands alone: it is the API that knows its tokens.
    """
    requests: list[range] = []
    start, size = 0, 0
    for position, text in enumerate(texts):
        length = _utf8_length(text)
        is_full = position - start == limits.texts or size + length > limits.request_bytes
        if is_full and position > start:
            requests.append(range(start, position))
            start, size = position, 0
        size += length
    if start < len(texts):
        requests.append(range(start, len(texts)))
    return requests


def _utf8_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def collection_fault(texts: object) -> str | None:
    """Return what is wrong with the argument as a whole."""
    if isinstance(texts, Sequence) and not isinstance(texts, (str, bytes, bytearray)):
        return None
    return f"texts must be a list or tuple of strings; this is {_kind(texts)}. {_remedy(texts)}"


def _remedy(texts: object) -> str:
    if isinstance(texts, (str, Promise)):
        return "For one text pass [text]."
    if isinstance(texts, (bytes, bytearray)):
        return "Decode it and pass [text]."
    return "Pass list(texts)."


def _kind(value: object) -> str:
    return f"of type {type(value).__name__}"


def plain_text(given: object) -> str | None:
    """Return the text as an exact ``str``; None if it is none."""
    if isinstance(given, Promise):
        given = str(given)
    # SafeString's own __str__ would return a SafeString.
    return str.__str__(given) if isinstance(given, str) else None


def text_fault(text: str | None, given: object, limits: Limits = LIMITS) -> str | None:
    """Return what is wrong with one text.

    Args:
        text: What `plain_text` made of it.
        given: What the caller passed.
        limits: What its endpoint takes.
    """
    if text is None:
        return f"is {'None' if given is None else _kind(given)}, not a string"
    if not text or text.isspace():
        return f"is blank: there is nothing to {limits.verb}"
    try:
        length = _utf8_length(text)
    except UnicodeEncodeError:
        return "holds a lone surrogate, which no text can carry; clean it where it was decoded"
    if length > limits.text_bytes:
        return (
            f"has {length:,} bytes, surely more than {limits.text_tokens:,} tokens; "
            f"{limits.verb} it in chunks"
        )
    return None


class SortedTexts(NamedTuple):
    """The texts of one call, sorted out."""

    #: Sound texts, each once.
    unique: list[str]
    #: For each text given, its position in `unique`; None for an unsound one.
    positions: list[int | None]
    #: What is wrong with the unsound ones, by the position given.
    faults: dict[int, InvalidInput]

    def __repr__(self) -> str:
        return f"<{len(self.positions)} private texts>"


def sort_out(texts: Private[Sequence[str]], limits: Limits = LIMITS) -> SortedTexts:
    """Sort the texts; raises nothing, so that no traceback shows one."""
    seen: dict[str, int] = {}
    positions: list[int | None] = []
    faults: dict[int, InvalidInput] = {}
    for position, given in enumerate(texts.reveal()):
        text = given if type(given) is str else plain_text(given)
        fault = text_fault(text, given, limits)
        if fault is not None or text is None:
            faults[position] = InvalidInput(f"texts[{position}] {fault}.")
            positions.append(None)
        else:
            positions.append(seen.setdefault(text, len(seen)))
    return SortedTexts(list(seen), positions, faults)
