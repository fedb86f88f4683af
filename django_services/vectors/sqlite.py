"""The SQL functions of vectors on SQLite, registered with every new connection.

``vector_cosine_distance(a, b)``, ``vector_l2_distance(a, b)`` and
``vector_negative_inner_product(a, b)`` take encoded vectors; NULL gives NULL.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

#: SQL function -> the function of `arithmetic` behind it.
FUNCTIONS = {
    "vector_cosine_distance": "cosine_distance",
    "vector_l2_distance": "l2_distance",
    "vector_negative_inner_product": "negative_inner_product",
}


def connect() -> None:
    """Register the functions with every SQLite connection that opens from now on."""
    connection_created.connect(_register, dispatch_uid="django_services.vectors")


def _register(connection: BaseDatabaseWrapper, **_: Any) -> None:
    if connection.vendor != "sqlite":
        return
    for name, metric in FUNCTIONS.items():
        connection.connection.create_function(name, 2, _function(metric), deterministic=True)


def _function(metric: str) -> Callable[[bytes | None, bytes | None], float | None]:
    """Return the function of one connection, which one thread uses at a time."""
    last: tuple[bytes | None, bytes | None, float | None] = (None, None, None)

    def call(left: bytes | None, right: bytes | None) -> float | None:
        nonlocal last
        # A statement that selects the distance and the score asks twice for each row.
        if left != last[0] or right != last[1]:
            last = left, right, _measured(metric, left, right)
        return last[2]

    return call


def _measured(metric: str, left: bytes | None, right: bytes | None) -> float | None:
    from . import arithmetic  # numpy loads with the first distance

    if left is None or right is None:
        return None
    distance: float = getattr(arithmetic, metric)(left, right)
    return distance
