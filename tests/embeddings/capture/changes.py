"""What the tests of capture ask of the tables that triggers write."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from django.db import connection
from django.utils import timezone

from django_services.embeddings import capture
from django_services.embeddings.declaration import Embeddings, get_index
from django_services.embeddings.models import Change, ChunkChange, Space
from tests.testapp.models import Article

ARTICLE = "testapp.Article.embeddings"
BOOK = "testapp.Book.embeddings"
NOTE = "testapp.Note.embeddings"

#: Ways to delete an article.
DELETES = {
    "delete()": lambda article: article.delete(),
    "a queryset's": lambda article: Article.objects.all().delete(),
    "raw": lambda article: execute("DELETE FROM testapp_article"),
    "raw by key": lambda article: execute("DELETE FROM testapp_article WHERE id = %s", article.id),
}


def held() -> dict[str, object]:
    """Return every trigger of the package that the default database holds, by name."""
    vendor = import_module(f"{capture.__name__}.{capture.CAPTURE[connection.vendor]}")
    return vendor.existing(connection)


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
        cursor.execute(sql, parameters or None)


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
    """Store a chunk; return its id."""
    chunk = index.chunk_model(
        source_id=source,
        space=space_of(index),
        number=number,
        start=0,
        end=1,
        text="t",
        content_hash=b"\x00",
        vector=[0.0, 1.0],
    )
    chunk.save()
    return int(chunk.pk)


def chunks_of(index: Embeddings) -> list[int]:
    return list(index.chunk_model._default_manager.order_by("id").values_list("id", flat=True))


def logged_chunks() -> list[int]:
    """Return the chunks in the log, in its order, and empty it."""
    chunks = list(ChunkChange.objects.order_by("id").values_list("chunk", flat=True))
    ChunkChange.objects.all().delete()
    return chunks
