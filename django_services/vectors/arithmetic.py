"""Distances between vectors, exact to the bit wherever they are computed.

Imported with the first distance, since it needs numpy. SQLite's functions take
one row at a time, the cached matrix takes many: were they to differ in the last
digit, a page of hits could miss a row that the page before it did not have. So
sums are added up in one way, and the rest is IEEE arithmetic.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..exceptions import DimensionMismatch

Vectors = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.float64]

# Of many rows with one query


def cosine_distances(rows: Numbers, query: Numbers) -> Numbers:
    """Return 1 - cosine of each row with the query, 0 to 2.

    A zero vector has no direction and is infinitely far from everything.
    """
    lengths = np.sqrt(_sums(rows * rows) * _sums(query * query))
    nowhere = lengths == 0
    lengths[nowhere] = 1.0
    distances: Numbers = 1.0 - _sums(rows * query) / lengths
    distances[nowhere] = np.inf
    return distances


def widened(vectors: Vectors) -> Numbers:
    """Return vectors as float64, in rows of their own."""
    return np.ascontiguousarray(vectors, dtype=np.float64)


# Of one row with one query, both encoded


def cosine_distance(left: bytes, right: bytes) -> float:
    """Return the distance that `cosine_distances` returns."""
    row, query = _row(left, right), _query(right)
    length = math.sqrt(float(_sums(row * row)) * query.squares)
    return 1.0 - float(_sums(row * query.numbers)) / length if length else math.inf


def l2_distance(left: bytes, right: bytes) -> float:
    difference = _row(left, right) - _query(right).numbers
    return math.sqrt(float(_sums(difference * difference)))


def negative_inner_product(left: bytes, right: bytes) -> float:
    return -float(_sums(_row(left, right) * _query(right).numbers))


class _Query(NamedTuple):
    numbers: Numbers
    squares: float  # their sum


# The right side of a statement's distance is the same for every row.
@lru_cache(maxsize=64)
def _query(value: bytes) -> _Query:
    numbers = widened(np.frombuffer(value, dtype="<f4"))
    return _Query(numbers, float(_sums(numbers * numbers)))


def _row(left: bytes, right: bytes) -> Numbers:
    if len(left) != len(right):
        raise DimensionMismatch(
            f"Vectors of {len(left) // 4} and of {len(right) // 4} dimensions have no distance."
        )
    return np.frombuffer(left, dtype="<f4").astype(np.float64)


def _sums(rows: Numbers) -> Any:
    # Unlike a BLAS product it adds up a row in the same order alone and among others.
    return rows.sum(axis=-1)
