"""Vectors in SQL: the field, the distances, and the nearest rows of a queryset.

It knows no text and no OpenAI. numpy is imported with the first vector, the
distances with the first search.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import sqlite as _sqlite  # connects the receiver that registers the SQL functions
from .field import VectorField

if TYPE_CHECKING:
    from .distances import CosineDistance, Distance, L2Distance, NegativeInnerProduct, nearest

_sqlite.connect()

__all__ = [
    "CosineDistance",
    "Distance",
    "L2Distance",
    "NegativeInnerProduct",
    "VectorField",
    "nearest",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import distances

    return getattr(distances, name)
