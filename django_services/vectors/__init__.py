"""Vectors in SQL: the field, its indexes, the distances, and the nearest rows of a queryset.

It knows no text and no OpenAI. numpy is imported with the first vector, the
distances with the first search.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import sqlite as _sqlite  # connects the receiver that registers the SQL functions
from .field import VectorField

if TYPE_CHECKING:
    from .distances import CosineDistance, Distance, L2Distance, NegativeInnerProduct, nearest
    from .indexes import HnswIndex, IvfFlatIndex
    from .tuning import tuned

_sqlite.connect()

__all__ = [
    "CosineDistance",
    "Distance",
    "HnswIndex",
    "IvfFlatIndex",
    "L2Distance",
    "NegativeInnerProduct",
    "VectorField",
    "nearest",
    "tuned",
]

_MODULES = {"HnswIndex": "indexes", "IvfFlatIndex": "indexes", "tuned": "tuning"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_MODULES.get(name, 'distances')}", __name__)
    return getattr(module, name)
