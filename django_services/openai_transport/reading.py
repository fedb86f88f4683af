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

    #: Each row's numbers as little-endian float32, empty where they could not be read;
    #: None where all rows have the same length.
    rows: Sequence[bytes] | None
    #: ``float32``, shape ``(texts, dimensions)``, rows of L2 norm 1; faulty rows are zeros.
    vectors: np.ndarray
    #: What is wrong with a row, by its position.
    faults: dict[int, str]

    @property
    def dimensions(self) -> int:
        return int(self.vectors.shape[1])

    def at(self, dimensions: int) -> Reading:
        """Return the reading in which vectors of this length are right and others faulty."""
        if dimensions == self.dimensions:
            return self
        if self.rows is not None:
            return assemble(self.rows, dimensions)
        count = len(self.vectors)
        fault = f"it has {self.dimensions} dimensions, not {dimensions}"
        vectors = np.zeros((count, dimensions), np.float32)
        return Reading(None, vectors, dict.fromkeys(range(count), fault))

    def row(self, position: int) -> bytes:
        """Return a row's numbers as little-endian float32, as they are kept."""
        if self.rows is not None:
            return self.rows[position]
        row: np.ndarray = self.vectors[position].astype(FLOAT, copy=False)
        return bytes(row.data)


def read_embeddings(body: Any, count: int) -> Reading:
    """Return the vectors of a decoded response to `count` texts; takes them out of it.

    The right length is the one that most rows have.

    Raises:
        Unusable: The rows cannot be assigned to the texts.
    """
    items = _by_index(body, count)
    dimensions = _common_length(items)
    if dimensions:
        return _decode_alike(items, dimensions)
    rows = [_floats(item.get("embedding")) for item in items]
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
    return _normalised(rows, vectors, faults)


def _normalised(
    rows: Sequence[bytes] | None, vectors: np.ndarray, faults: dict[int, str]
) -> Reading:
    """Return the vectors at length 1; those that have no direction are faults."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", vectors, vectors)
    # NaN is in no interval. Most answers are sound, and then need no closer look.
    if not (squares.min() > 0 and squares.max() < np.inf):
        _find_faults(squares, vectors, faults)
    vectors /= np.sqrt(squares)[:, None]
    return Reading(rows, vectors, faults)


def _find_faults(squares: np.ndarray, vectors: np.ndarray, faults: dict[int, str]) -> None:
    """Note the rows without direction, and make them zeros of length 1."""
    bad = ~np.isfinite(squares) | (squares <= 0)
    for position in np.flatnonzero(bad).tolist():
        is_zero = squares[position] == 0
        faults.setdefault(position, f"it is {'all zeros' if is_zero else 'not finite'}")
    vectors[bad] = 0
    squares[bad] = 1


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


def _common_length(items: list[dict[str, Any]]) -> int:
    """Return the dimensions of rows that are all base64 of one length; 0 if they are not."""
    first = items[0].get("embedding") if items else None
    if not isinstance(first, str):
        return 0
    given = [item.get("embedding") for item in items]
    if not all(isinstance(text, str) and len(text) == len(first) for text in given):
        return 0
    return (len(first) * 3 // 4 - first[-2:].count("=")) // FLOAT.itemsize


def _decode_alike(items: list[dict[str, Any]], dimensions: int) -> Reading:
    """Decode rows of one length where they are to stand: no row is held twice."""
    vectors = np.empty((len(items), dimensions), np.float32)
    faults = {}
    for position, item in enumerate(items):
        numbers = _floats_of_base64(item.pop("embedding"))
        if len(numbers) == vectors.itemsize * dimensions:
            vectors[position] = np.frombuffer(numbers, FLOAT)
        else:
            faults[position] = "it holds no numbers"
            vectors[position] = 0
    if len(faults) == len(items):
        raise Unusable("no row holds numbers")
    return _normalised(None, vectors, faults)


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
