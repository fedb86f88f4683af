"""Cutting a text into pieces that an embedding model can take; pure.

A piece ends where the text itself pauses: at a paragraph, else a line, else a
sentence, else a word, and only else in the middle of one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import NamedTuple

#: Longest context that is put in front of a piece, characters.
CONTEXT_LIMIT = 200

#: Where a text pauses, the strongest pause first; a piece ends behind the match.
_PAUSES = (
    re.compile(r"\n\s*\n"),
    re.compile(r"\n"),
    re.compile(r"[.!?…]['\")\]]*\s|[。！？]"),
    re.compile(r"\s"),
)
_WORD_START = re.compile(r"(?<=\s)\S")


class SourceText(NamedTuple):
    """A source's text, and the context that its later pieces are read in."""

    text: str
    context: str = ""


class Piece(NamedTuple):
    """A piece of a source's text, before it has a vector.

    ``start`` and ``end`` are character offsets in the source's text.
    """

    number: int
    start: int
    end: int
    text: str
    context: str
    content_hash: bytes

    @property
    def content(self) -> str:
        """The text that is embedded."""
        return f"{self.context}\n\n{self.text}" if self.context else self.text


def chunk(source: SourceText, *, size: int, overlap: int) -> list[Piece]:
    """Cut a text into pieces of at most ``size`` characters.

    The first piece opens the text itself; the later ones get the source's
    context, since a passage from the middle seldom says what it is about.

    Args:
        source: The text. Blank text has no pieces.
        size: Longest piece, characters, without its context.
        overlap: Characters that a piece may share with the one before it, so
            that a sentence on the border is whole in one of them.
    """
    pieces = []
    for number, (start, end) in enumerate(_spans(source.text, size, overlap)):
        text = source.text[start:end]
        context = source.context if number else ""
        content = f"{context}\n\n{text}" if context else text
        content_hash = hashlib.sha256(content.encode()).digest()
        pieces.append(Piece(number, start, end, text, context, content_hash))
    return pieces


def _spans(text: str, size: int, overlap: int) -> Iterator[tuple[int, int]]:
    start, limit = _without_blanks(text, 0, len(text))
    while start < limit:
        end = limit if limit - start <= size else _pause_before(text, start, start + size)
        yield _without_blanks(text, start, end)
        if end == limit:
            return
        start, _ = _without_blanks(text, _next_start(text, start, end, overlap), limit)


def _pause_before(text: str, start: int, end: int) -> int:
    """Return where to end a piece that may reach up to ``end``.

    A pause in the first half is not taken: many short pieces would say less.
    """
    for pause in _PAUSES:
        ends = [match.end() for match in pause.finditer(text, start + (end - start) // 2, end)]
        if ends:
            return ends[-1]
    return end


def _next_start(text: str, start: int, end: int, overlap: int) -> int:
    if overlap <= 0:
        return end
    word = _WORD_START.search(text, max(start + 1, end - overlap), end)
    return word.start() if word else end


def _without_blanks(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end
