"""Distances between vectors, exact to the bit wherever they are computed.

Imported with the first distance, since it needs numpy. SQLite's functions and
the cached matrix share it: were they to differ in the last digit, a page of
hits could miss a row that the page before it did not have.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np  # noqa: TID253
import numpy.typing as npt

from ..exceptions import DimensionMismatch

Vectors = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.float64]
Metric = Callable[[Numbers, Numbers], Numbers]


def cosine_distances(rows: Numbers, query: Numbers) -> Numbers:
    """Return 1 - cosine of each row with the query, 0 to 2.

    A zero vector has no direction and is infinitely far from everything.
    """
    lengths = np.sqrt(_sums(rows * rows) * _sums(query * query))
    products = _sums(rows * query)
    if not lengths.all():
        nowhere = lengths == 0
        return np.where(nowhere, np.inf, 1.0 - products / np.where(nowhere, 1.0, lengths))
    return np.asarray(1.0 - products / lengths)


def l2_distances(rows: Numbers, query: Numbers) -> Numbers:
    difference = rows - query
    return np.asarray(np.sqrt(_sums(difference * difference)))


def negative_inner_products(rows: Numbers, query: Numbers) -> Numbers:
    return np.asarray(-_sums(rows * query))


def _sums(rows: Numbers) -> Any:
    # Unlike a BLAS product it adds up a row in the same order alone and among others.
    return np.add.reduce(rows, axis=-1)


def widened(vectors: Vectors) -> Numbers:
    """Return vectors as float64, in rows of their own."""
    return np.ascontiguousarray(vectors, dtype=np.float64)


def distance(metric: Metric, left: bytes, right: bytes) -> float:
    """Return the distance of two encoded vectors."""
    if len(left) != len(right):
        raise DimensionMismatch(
            f"Vectors of {len(left) // 4} and of {len(right) // 4} dimensions have no distance."
        )
    return float(metric(widened(np.frombuffer(left, dtype="<f4")), _query(right)))


# The right side of a statement's distance is the same for every row.
@lru_cache(maxsize=64)
def _query(value: bytes) -> Numbers:
    return widened(np.frombuffer(value, dtype="<f4"))
