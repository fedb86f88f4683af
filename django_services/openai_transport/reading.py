"""From an embeddings response to vectors: read once, mapped by index, validated.

Two kinds of fault are told apart. Where the rows cannot be assigned to the texts
(too few, doubled indexes, no JSON) the whole response is unusable. Where one row
is no vector (NaN, zeros, another length) only that row is.

Imported with the transport, since it loads numpy.
"""

from __future__ import annotations

import binascii
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FLOAT = np.dtype("<f4")


class Unusable(ValueError):
    """The response's rows cannot be assigned to the texts that were sent."""


@dataclass(frozen=True, slots=True, repr=False)
class Reading:
    """The rows of a response, in the order of the texts that were sent."""

    #: Each row's numbers as little-endian float32; empty where they could not be read.
    rows: Sequence[bytes]
    #: ``float32``, shape ``(texts, dimensions)``, rows of L2 norm 1; faulty rows are zeros.
    vectors: np.ndarray
    #: What is wrong with a row, by its position.
    faults: dict[int, str]

    @property
    def dimensions(self) -> int:
        return int(self.vectors.shape[1])

    def at(self, dimensions: int) -> Reading:
        """Return the reading in which vectors of this length are right and others faulty."""
        return self if dimensions == self.dimensions else assemble(self.rows, dimensions)


def read_embeddings(body: Any, count: int) -> Reading:
    """Return the vectors of a decoded response to `count` texts.

    The right length is the one that most rows have.

    Raises:
        Unusable: The rows cannot be assigned to the texts.
    """
    rows = [_floats(item.get("embedding")) for item in _by_index(body, count)]
    lengths = Counter(map(len, filter(None, rows)))
    if not lengths:
        raise Unusable("no row holds numbers")
    return assemble(rows, lengths.most_common(1)[0][0] // FLOAT.itemsize)


def assemble(rows: Sequence[bytes], dimensions: int) -> Reading:
    """Return the reading of rows, in which vectors of this length are right.

    Args:
        rows: Each row's numbers as little-endian float32; empty where there are none.
        dimensions: Length of a right vector.
    """
    size = dimensions * FLOAT.itemsize
    faults = {
        position: f"it has {len(row) // FLOAT.itemsize} dimensions, not {dimensions}"
        if row
        else "it holds no numbers"
        for position, row in enumerate(rows)
        if len(row) != size
    }
    blank = bytes(size)
    joined = b"".join(blank if position in faults else row for position, row in enumerate(rows))
    # A copy in the machine's own byte order, which may be written to.
    vectors = np.frombuffer(joined, FLOAT).reshape(len(rows), dimensions).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", vectors, vectors)
    bad = ~np.isfinite(squares) | (squares <= 0)
    for position in np.flatnonzero(bad).tolist():
        is_zero = squares[position] == 0
        faults.setdefault(position, f"it is {'all zeros' if is_zero else 'not finite'}")
    vectors[bad] = 0
    squares[bad] = 1
    vectors /= np.sqrt(squares)[:, None]
    return Reading(rows, vectors, faults)


def decode_json(content: bytes) -> Any:
    """Return the decoded body, or None where it is not JSON."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def count_inputs(given: Any) -> int:
    """Return how many vectors the request's ``input`` asks for."""
    is_one_token_array = isinstance(given, list) and bool(given) and isinstance(given[0], int)
    return len(given) if isinstance(given, list) and not is_one_token_array else 1


def _by_index(body: Any, count: int) -> list[dict[str, Any]]:
    data = body.get("data") if isinstance(body, dict) else None
    if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
        raise Unusable("no list of embeddings")
    if len(data) != count:
        raise Unusable(f"{len(data)} embeddings for {count} texts")
    ordered: list[Any] = [None] * count
    for item in data:
        index = item.get("index")
        if type(index) is not int or not 0 <= index < count or ordered[index] is not None:
            raise Unusable("the indexes of the embeddings do not match the texts")
        ordered[index] = item
    return ordered


def _floats(given: object) -> bytes:
    if isinstance(given, str):
        return _floats_of_base64(given)
    if isinstance(given, list) and all(type(number) in (float, int) for number in given):
        return _floats_of_list(given)
    return b""


def _floats_of_base64(given: str) -> bytes:
    try:
        numbers = binascii.a2b_base64(given, strict_mode=True)
    except ValueError:
        return b""
    return numbers if len(numbers) % FLOAT.itemsize == 0 else b""


def _floats_of_list(given: list[float]) -> bytes:
    try:
        with np.errstate(over="ignore"):  # becomes infinite, which is then found
            return np.asarray(given, FLOAT).tobytes()
    except OverflowError:
        return b""
