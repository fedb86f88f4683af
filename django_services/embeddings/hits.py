"""One search over several declarations: the hits of all, the best first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from django.db import models

from ..exceptions import InvalidInput
from ..privacy import Private
from . import spaces
from .declaration import Embeddings, indexes_on


@dataclass(frozen=True, slots=True)
class Hit:
    """A source that a search found."""

    label: str  # of the declaration
    source: models.Model
    score: float  # cosine similarity to the query: at most 1
    passage: str = field(repr=False)  # the chunk that is nearest


def search(
    query: str, *, alias: str, indexes: Sequence[Embeddings] | None = None, limit: int = 10
) -> list[Hit]:
    """Return the sources nearest in meaning to a query, of whatever model.

    Args:
        query: What is looked for.
        alias: The database.
        indexes: Where to look; in every declaration of the database if None.
        limit: The most hits to return.

    Raises:
        InvalidInput: Nothing is embedded yet, or not all by the same model: their
            scores cannot be compared.
    """
    query = Private(query)  # type: ignore[assignment]  # it must not show on a debug page
    chosen = _comparable(indexes_on(alias) if indexes is None else indexes, alias)
    found = [hit for index in chosen for hit in _search(index, alias, query, limit)]  # type: ignore[arg-type]
    return sorted(found, key=lambda hit: -hit.score)[:limit]


def _comparable(indexes: Sequence[Embeddings], alias: str) -> list[Embeddings]:
    """Return the declarations that have been embedded, if all are by the same model."""
    active = {index: space for index in indexes if (space := spaces.active(index, alias))}
    if not active:
        raise InvalidInput(
            f"Nothing is embedded in database {alias!r} yet: run manage.py embeddings sync"
        )
    if len({(space.model, space.dimensions) for space in active.values()}) > 1:
        listed = ", ".join(f"{index.label} ({space.model})" for index, space in active.items())
        raise InvalidInput(
            "Scores of different models cannot be compared: search one at a time, "
            f"--index LABEL. Embedded are {listed}."
        )
    return list(active)


def _search(index: Embeddings, alias: str, query: Private[str], limit: int) -> list[Hit]:
    accessor: Any = getattr(index.model, index.name)
    return [
        Hit(index.label, source, source.search_score, source.search_passage)
        for source in accessor.search(query.reveal()).using(alias)[:limit]
    ]
