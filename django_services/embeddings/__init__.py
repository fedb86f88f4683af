"""The life of a text: declared, captured, chunked, embedded, stored, found.

``Embeddings`` and ``register`` declare, ``SearchManager`` and ``SearchQuerySet``
search. They load on first use, since models cannot be imported before Django's
apps are ready.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .declaration import Embeddings, register
    from .search import SearchManager, SearchQuerySet

_EXPORTS = {
    "Embeddings": "declaration",
    "register": "declaration",
    "SearchManager": "search",
    "SearchQuerySet": "search",
}

__all__ = ["Embeddings", "SearchManager", "SearchQuerySet", "register"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
