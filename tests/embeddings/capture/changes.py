"""What the tests of capture ask of the tables that triggers write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.db import connection
from django.utils import timezone

from django_services.embeddings.declaration import Embeddings, get_index
from django_services.embeddings.models import Change, ChunkChange, Space


def changed(label: str) -> list[str]:
    """Return the sources of an index that have notes, each once, in order."""
    notes = Change.objects.filter(index=get_index(label).label)
    return sorted(set(notes.values_list("source", flat=True)))


def changed_by(label: str, write: Callable[[], Any]) -> list[str]:
    """Return the sources that a write notes."""
    Change.objects.all().delete()
    write()
    return changed(label)


def execute(sql: str, *parameters: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)


def space_of(index: Embeddings) -> Space:
    return Space.objects.get_or_create(
        index=index.label,
        model="test",
        dimensions=2,
        recipe="test",
        state=Space.State.ACTIVE,
        defaults={"activated_at": timezone.now()},
    )[0]


def add_chunk(index: Embeddings, source: Any, number: int = 0) -> int:
    """Store a chunk past the ORM; return its id."""
    table = connection.ops.quote_name(index.chunk_model._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(
            f'INSERT INTO {table} (source_id, space_id, number, start, "end", text, context, '
            "content_hash, vector) VALUES (%s, %s, %s, 0, 1, 't', '', x'00', x'0000803f00000000')",
            [source, space_of(index).pk, number],
        )
        return int(cursor.lastrowid)


def chunks_of(index: Embeddings) -> list[int]:
    return list(index.chunk_model._default_manager.order_by("id").values_list("id", flat=True))


def logged_chunks() -> list[int]:
    """Return the chunks in the log, in its order, and empty it."""
    chunks = list(ChunkChange.objects.order_by("id").values_list("chunk", flat=True))
    ChunkChange.objects.all().delete()
    return chunks
