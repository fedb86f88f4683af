"""Vectors in SQL: the field, the distances, and the nearest rows of a queryset.

It knows no text and no OpenAI. numpy is imported with the first vector.
"""

from __future__ import annotations

from . import sqlite as _sqlite  # connects the receiver that registers the SQL functions
from .distances import CosineDistance, Distance, L2Distance, NegativeInnerProduct, nearest
from .field import VectorField

_sqlite.connect()

__all__ = [
    "CosineDistance",
    "Distance",
    "L2Distance",
    "NegativeInnerProduct",
    "VectorField",
    "nearest",
]
