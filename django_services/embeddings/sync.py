"""Bringing the stored embeddings in step: claim, read, chunk, embed, store.

One function does it, `sync_batch`; the command, the end of a request, a task and
a test all call it.
"""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from django.db import connections, router, transaction

from .. import conf, openai_service
from ..exceptions import ServiceError
from ..privacy import Texts
from ..signals import embeddings_synced
from . import capture, claims, spaces
from .capture.backlog import enqueue_all
from .chunking import Piece, SourceText, chunk
from .claims import Claim
from .declaration import Embeddings, get_index, indexes_on
from .models import Change, Space
from .sources import Keys, existing_keys, read_texts
from .statements import Statements

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Report:
    """What a sync did, in numbers; ``sources`` counts each time one was worked on."""

    sources: int = 0
    embedded: int = 0  # texts sent to the model; equal texts are sent once
    stored: int = 0  # chunks
    removed: int = 0  # chunks
    failed: int = 0  # sources
    activated: list[str] = field(default_factory=list)  # labels that switched their space

    def add(self, other: Report) -> None:
        self.sources += other.sources
        self.embedded += other.embedded
        self.stored += other.stored
        self.removed += other.removed
        self.failed += other.failed
        self.activated += other.activated


@dataclass(slots=True)
class Diff:
    """How the chunks of some sources in one space differ from what they should be."""

    space: Space
    stale: list[tuple[str, int]] = field(default_factory=list)  # key, id of the chunk
    missing: list[tuple[str, Piece]] = field(default_factory=list)  # key, piece
    vectors: dict[bytes, Any] = field(default_factory=dict)  # by content hash, as stored
    embedded: int = 0  # texts whose vector is new


@dataclass(frozen=True, slots=True)
class Work:
    """What a claim came to: the vectors found, and what failed, by key."""

    claim: Claim
    diffs: list[Diff]
    errors: dict[str, ServiceError]


def sync(
    indexes: Sequence[Embeddings] | None = None,
    *,
    alias: str,
    batch_size: int | None = None,
    progress: Callable[[Embeddings, Report], object] | None = None,
) -> Report:
    """Bring every pending source of a database in step.

    Also mends what a failed migration left: triggers that are missing, and the
    space of a declaration that changed.

    Args:
        indexes: The declarations; all of the database if None.
        alias: The database.
        batch_size: Sources claimed at once; else ``EMBEDDINGS["BATCH_SIZE"]``.
        progress: Called after each batch with the declaration and its batch.

    Raises:
        ServiceError: The OpenAI service as a whole cannot be used; the sources
            stay pending.
    """
    total = Report()
    _mend_capture(alias)
    for index in indexes_on(alias) if indexes is None else indexes:
        spaces.ensure(index, alias)
        for batch in _batches(index, alias, batch_size or conf.embeddings().batch_size):
            total.add(batch)
            if progress is not None:
                progress(index, batch)
        if spaces.activate_if_built(index, alias):
            total.activated.append(index.label)
    spaces.trim_log(alias)
    return total


def sync_pending(alias: str, *, limit: int) -> Report:
    """Bring up to ``limit`` pending sources in step: for the end of a request."""
    total = Report()
    noted = set(Change.objects.using(alias).values_list("index", flat=True).distinct())
    for index in indexes_on(alias):
        if index.label not in noted or total.sources >= limit:
            continue
        spaces.ensure(index, alias)
        total.add(sync_batch(index, alias, limit=limit - total.sources) or Report())
    return total


def sync_batch(index: Embeddings, alias: str, *, limit: int) -> Report | None:
    """Claim some pending sources and bring them in step; None if there are none."""
    claim = claims.claim(index, alias, limit=limit)
    if claim is None:
        return None
    with _given_back_on_error(claim):
        report = store(work_out(claim))
    embeddings_synced.send(
        sender=Embeddings,
        index=index.label,
        embedded=report.embedded,
        stored=report.stored,
        removed=report.removed,
        failed=report.failed,
    )
    return report


def work_out(claim: Claim) -> Work:
    """Read, cut and embed what was claimed; holds no transaction during the call."""
    texts = read_texts(claim.index, claim.alias, claim.keys)
    wanted, errors = _cut(claim.index, claim.keys, texts)
    diffs = _differences(claim.index, claim.alias, wanted)
    for diff in diffs:
        errors |= _find_vectors(claim.index, claim.alias, diff)
    return Work(claim, diffs, errors)


def store(work: Work) -> Report:
    """Write what was worked out, for the sources that are still the claim's own."""
    claim = work.claim
    report = Report(sources=len(claim.changes))
    with transaction.atomic(using=claim.alias):
        mine = claims.hold(claim)
        failed = {key: error for key, error in work.errors.items() if key in mine}
        set_aside = set(claims.fail(claim, failed))
        done = mine - failed.keys()
        # A source that was deleted during the call must not come back.
        existing = existing_keys(claim.index, claim.alias, list(done))
        for diff in work.diffs:
            # A text that is set aside must not be found by what it said before.
            report.removed += _remove(claim, diff, done | set_aside)
            report.stored += _insert(claim, diff, existing)
            report.embedded += diff.embedded
        report.failed = len(failed)
        claims.finish(claim, done)
    return report


def _batches(index: Embeddings, alias: str, size: int) -> Iterator[Report]:
    while report := sync_batch(index, alias, limit=size):
        yield report


def _mend_capture(alias: str) -> None:
    """Install missing triggers, and note what may have changed without them."""
    with transaction.atomic(using=alias):
        for label in capture.install(alias):
            enqueue_all(get_index(label), alias)


@contextlib.contextmanager
def _given_back_on_error(claim: Claim) -> Iterator[None]:
    """Give the claim back where the work on it broke off: its sources stay pending."""
    try:
        yield
    except BaseException:
        claims.release(claim)
        raise


def _cut(
    index: Embeddings, keys: Sequence[str], texts: dict[str, SourceText | ServiceError]
) -> tuple[dict[str, list[Piece]], dict[str, ServiceError]]:
    """Return the pieces of each key, none where the row is gone; and what failed."""
    size, overlap = index.chunk_size, index.chunk_overlap
    pieces: dict[str, list[Piece]] = {}
    errors: dict[str, ServiceError] = {}
    for key in keys:
        text = texts.get(key)
        if isinstance(text, ServiceError):
            errors[key] = text
            text = None
        pieces[key] = chunk(text, size=size, overlap=overlap) if text else []
    return pieces, errors


def _differences(index: Embeddings, alias: str, wanted: dict[str, list[Piece]]) -> list[Diff]:
    return [
        _difference(index, alias, space, wanted)
        for space in spaces.live(index, alias)
        if spaces.can_be_embedded(space, index)
    ]


def _difference(
    index: Embeddings, alias: str, space: Space, wanted: dict[str, list[Piece]]
) -> Diff:
    """Compare the stored chunks with the wanted pieces, number by number."""
    diff = Diff(space)
    stored = stored_chunks(index, alias, space, list(wanted))
    for key, pieces in wanted.items():
        chunks = stored.get(key, {})
        in_step = {
            piece.number
            for piece in pieces
            if piece.number in chunks
            and chunks[piece.number][1:] == (piece.start, piece.end, piece.content_hash)
        }
        diff.stale += [(key, row[0]) for number, row in chunks.items() if number not in in_step]
        diff.missing += [(key, piece) for piece in pieces if piece.number not in in_step]
    return diff


StoredChunk = tuple[int, int, int, bytes]  # id, start, end, content hash


def stored_chunks(
    index: Embeddings, alias: str, space: Space, keys: Sequence[str]
) -> dict[str, dict[int, StoredChunk]]:
    """Return the chunks that a space holds of these sources: by key and number."""
    found: dict[str, dict[int, StoredChunk]] = defaultdict(dict)
    rows = Statements(alias, index).run_in(
        'SELECT source_id, number, id, start, "end", content_hash FROM {chunk} '
        "WHERE space_id = %s AND source_id IN {values}",
        Keys(index, alias).to_stored(keys),
        [space.pk],
    )
    for source, number, chunk_id, start, end, content_hash in rows:
        found[str(source)][number] = (chunk_id, start, end, bytes(content_hash))
    return found


def _find_vectors(index: Embeddings, alias: str, diff: Diff) -> dict[str, ServiceError]:
    """Give every missing piece its vector: a stored one, else a new one.

    Returns what failed, by key.
    """
    contents = {piece.content_hash: piece.content for _, piece in diff.missing}
    diff.vectors = _stored_vectors(index, alias, diff.space, list(contents))
    new = [content_hash for content_hash in contents if content_hash not in diff.vectors]
    outcomes = _embed(index, diff.space, Texts([contents[content_hash] for content_hash in new]))
    failures = {
        content_hash: outcome
        for content_hash, outcome in zip(new, outcomes, strict=True)
        if isinstance(outcome, ServiceError)
    }
    embedded = [content_hash for content_hash in new if content_hash not in failures]
    vectors = [outcome for outcome in outcomes if not isinstance(outcome, ServiceError)]
    field = index.chunk_model._meta.get_field("vector")
    diff.vectors |= zip(
        embedded, field.get_db_prep_values(vectors, connections[alias]), strict=True
    )
    diff.embedded = len(embedded)
    return {
        key: failures[piece.content_hash]
        for key, piece in diff.missing
        if piece.content_hash in failures
    }


def _embed(
    index: Embeddings, space: Space, texts: Texts
) -> Sequence[np.ndarray[Any, Any] | ServiceError]:
    if not texts:
        return []
    return openai_service.embed_outcomes(
        texts, alias=index.alias, model=space.model, dimensions=space.dimensions
    )


def _stored_vectors(
    index: Embeddings, alias: str, space: Space, hashes: Sequence[bytes]
) -> dict[bytes, Any]:
    """Return the vectors that equal texts already have, whatever their source."""
    alike = spaces.alike(space)
    found = Statements(alias, index).run_in(
        "SELECT content_hash, vector FROM {chunk} "
        f"WHERE space_id IN ({', '.join(['%s'] * len(alike))}) AND content_hash IN {{values}}",
        hashes,
        alike,
    )
    return {bytes(content_hash): vector for content_hash, vector in found}


def _remove(claim: Claim, diff: Diff, keys: Iterable[str]) -> int:
    keys = set(keys)
    ids = [chunk_id for key, chunk_id in diff.stale if key in keys]
    statements = Statements(claim.alias, claim.index)
    statements.run_in("DELETE FROM {chunk} WHERE id IN {values}", ids)
    return len(ids)


def _insert(claim: Claim, diff: Diff, keys: set[str]) -> int:
    existing = list(keys)
    sources = dict(zip(existing, Keys(claim.index, claim.alias).to_stored(existing), strict=True))
    rows = [
        (
            sources[key],
            diff.space.pk,
            piece.number,
            piece.start,
            piece.end,
            piece.text,
            piece.context,
            piece.content_hash,
            diff.vectors[piece.content_hash],
        )
        for key, piece in diff.missing
        if key in sources
    ]
    # Many times faster than bulk_create, which makes an instance of each row.
    Statements(claim.alias, claim.index).run_each(
        'INSERT INTO {chunk} (source_id, space_id, number, start, "end", text, context, '
        "content_hash, vector) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
        rows,
    )
    return len(rows)


def databases() -> list[str]:
    """Return the databases that hold stored embeddings."""
    return [
        alias
        for alias in connections
        if router.allow_migrate_model(alias, Space) and indexes_on(alias)
    ]
