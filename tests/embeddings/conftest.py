"""What the tests of stored embeddings share: the far end's failures, and the invariants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from django.db import DEFAULT_DB_ALIAS, connections

from django_services import conf, openai_service
from django_services.embeddings.chunking import chunk
from django_services.embeddings.declaration import Embeddings
from django_services.embeddings.models import Change, Failure
from django_services.embeddings.sources import Keys, read_texts, rows
from django_services.embeddings.spaces import active
from django_services.embeddings.statements import Statements
from django_services.embeddings.status import status

from .stored import TOLERANCE


class FarEnd:
    """Stands in front of the model: counts its texts, fails and interferes on request."""

    def __init__(self, embed: Callable[..., Any]) -> None:
        self._embed = embed
        self.calls: list[list[str]] = []
        self.failures: dict[str, Exception] = {}  # by a word of the text
        self.outage: Exception | None = None
        self.during_call: Callable[[], object] = lambda: None

    def __call__(self, texts: Sequence[str], **options: Any) -> list[Any]:
        self.calls.append(list(texts))
        self.during_call()
        if self.outage is not None:
            raise self.outage
        return [
            next((error for word, error in self.failures.items() if word in text), vector)
            for text, vector in zip(texts, self._embed(texts, **options), strict=True)
        ]

    @property
    def texts(self) -> list[str]:
        return [text for call in self.calls for text in call]


@pytest.fixture
def far_end(monkeypatch: pytest.MonkeyPatch) -> FarEnd:
    far_end = FarEnd(openai_service.embed_outcomes)
    monkeypatch.setattr(openai_service, "embed_outcomes", far_end)
    return far_end


def assert_invariants(
    index: Embeddings, alias: str = DEFAULT_DB_ALIAS, *, has_leases: bool = False
) -> None:
    """Assert what holds after every fault, for one declaration.

    Args:
        index: The declaration.
        alias: The database.
        has_leases: Whether workers may hold sources, if none for longer than a lease.
    """
    (found,) = status(alias, [index])
    assert found.fresh + found.pending + found.failed == found.sources
    assert min(found.fresh, found.pending, found.failed) >= 0
    assert_leases_end(index, alias, most=conf.embeddings().lease if has_leases else None)
    assert_fresh_is_in_step(index, alias)
    assert_no_chunk_twice(index, alias)


def assert_leases_end(index: Embeddings, alias: str, *, most: float | None) -> None:
    """Assert that no lease goes on for more seconds from now, or that there is none."""
    left = Statements(alias).run(
        'SELECT expires_at - {clock} FROM {lease} WHERE "index" = %s', [index.label]
    )
    if most is None:
        assert not left
    else:
        assert all(term <= most for (term,) in left)


def assert_fresh_is_in_step(index: Embeddings, alias: str) -> None:
    """Assert that what is neither pending nor failed has its text's chunks and vectors.

    A row that is gone has none.
    """
    translate = Keys(index, alias)
    unfinished = {
        key
        for model in (Change, Failure)
        for key in model.objects.using(alias)
        .filter(index=index.label)
        .values_list("source", flat=True)
    }
    stored, current = stored_contents(index, alias), current_contents(index, alias)
    for key in stored.keys() | current.keys():
        if translate.to_text(key) not in unfinished:
            assert stored.get(key) == current.get(key)


def assert_no_chunk_twice(index: Embeddings, alias: str) -> None:
    chunks = index.chunk_model._default_manager.using(alias)
    places = list(chunks.values_list("source_id", "space_id", "number"))
    assert len(places) == len(set(places))


def stored_contents(index: Embeddings, alias: str = DEFAULT_DB_ALIAS) -> dict[Any, list[str]]:
    """Return the texts of the active space's chunks, by key; asserts their vectors."""
    space = active(index, alias)
    chunks = index.chunk_model._default_manager.using(alias).filter(space=space)
    contents: dict[Any, list[str]] = {}
    texts, vectors = [], []
    for row in chunks.order_by("source_id", "number"):
        contents.setdefault(row.source_id, []).append(row.text)
        texts.append(f"{row.context}\n\n{row.text}" if row.context else row.text)
        vectors.append(row.vector)
    if texts:
        wanted = openai_service.embed(texts, model=space.model, dimensions=space.dimensions)
        tolerance = TOLERANCE[connections[alias].vendor]
        for vector, text_vector in zip(vectors, wanted, strict=True):
            assert abs(vector - text_vector).max() < tolerance
    return contents


def current_contents(index: Embeddings, alias: str = DEFAULT_DB_ALIAS) -> dict[Any, list[str]]:
    """Return what the chunks of every source should hold now, by key."""
    translate = Keys(index, alias)
    keys = [translate.to_text(pk) for pk in rows(index, alias).values_list("pk", flat=True)]
    contents = {}
    for key, text in read_texts(index, alias, keys).items():
        pieces = chunk(text, size=index.chunk_size, overlap=index.chunk_overlap)
        if pieces:
            contents[translate.to_value(key)] = [piece.text for piece in pieces]
    return contents
