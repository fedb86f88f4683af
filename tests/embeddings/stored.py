"""Stored embeddings made by hand, and what a search of them must find."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from django.db import models
from django.utils import timezone

from django_services import embedded
from django_services.embeddings.declaration import Embeddings
from django_services.embeddings.models import ChunkChange, Space
from tests.testapp.models import Product

DIMENSIONS = 16

#: How much of a number at most 1 may be lost when it is stored, by vendor.
TOLERANCE = {"sqlite": 1e-6, "postgresql": 2**-11}  # float32; float16 has 11 bits


def new_space(index: Embeddings, *, dimensions: int = DIMENSIONS, using: str = "default") -> Space:
    """Return a new active space; the one before retires."""
    spaces = Space.objects.using(using).filter(index=index.label)
    spaces.filter(state="active").update(state="retired")
    return Space.objects.using(using).create(
        index=index.label,
        model=embedded.MODEL,
        dimensions=dimensions,
        recipe=secrets.token_hex(8),
        state="active",
        activated_at=timezone.now(),
    )


def store(
    index: Embeddings, space: Space, vectors: Mapping[models.Model, Sequence[Any]]
) -> list[Any]:
    """Store vectors as the chunks of sources, and note it in the log."""
    chunks = [
        index.chunk_model(
            source_id=source.pk,
            space=space,
            number=number,
            start=number * 10,
            end=number * 10 + 9,
            text=f"{source.pk} passage {number}",
            content_hash=secrets.token_bytes(32),
            vector=vector,
        )
        for source, rows in vectors.items()
        for number, vector in enumerate(rows)
    ]
    made = index.chunk_model._default_manager.bulk_create(chunks)
    note(space, (chunk.pk for chunk in made))
    return made


def note(space: Space, chunks: Iterable[int]) -> None:
    """Note a change of chunks, as the triggers do."""
    ChunkChange.objects.bulk_create(
        ChunkChange(space=space.pk, chunk=chunk, token=secrets.token_bytes(8)) for chunk in chunks
    )


def random_vectors(count: int, *, seed: int, dimensions: int = DIMENSIONS) -> Any:
    rows = np.random.default_rng(seed).normal(size=(count, dimensions))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("<f4")


def brute_force(index: Embeddings, space: Space, query: Any, keys: Iterable[Any]) -> list[Any]:
    """Return the keys of the sources by the distance of their nearest chunk, then key."""
    allowed = set(keys)
    query = np.asarray(query, dtype=np.float64)
    best: dict[Any, float] = {}
    for chunk in index.chunk_model._default_manager.filter(space=space):
        vector = chunk.vector.astype(np.float64)
        lengths = np.sqrt((vector * vector).sum() * (query * query).sum())
        distance = float(1 - (vector * query).sum() / lengths)
        if chunk.source_id in allowed:
            best[chunk.source_id] = min(distance, best.get(chunk.source_id, 3.0))
    return sorted(best, key=lambda key: (best[key], key))


def create_products(count: int) -> None:
    """Make so many products, each with a text of its own."""
    Product.objects.bulk_create(
        [Product(description=f"text {number}", sku=str(number)) for number in range(count)]
    )
