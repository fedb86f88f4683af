"""What a claim's sources need: which chunks to remove, which to make, and their vectors.

`plan` reads and compares. What is to be embedded `calls_for` cuts into calls, which
any thread may make: they touch no database.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from django.db import connections

from .. import openai_service
from ..exceptions import ServiceError
from ..privacy import Texts
from . import batch_results, spaces
from .chunking import Piece, SourceText, chunk
from .claims import Claim
from .declaration import Embeddings
from .models import Space
from .sources import Keys, read_texts
from .statements import Statements, own_transaction
from .storage import FORMS

#: Texts of one call where several are in flight: the SDK's own cost of a call is a
#: few percent of theirs, and a batch keeps several threads busy.
TEXTS_IN_CALL = 128

StoredChunk = tuple[int, int, int, bytes]  # id, start, end, content hash


@dataclass(slots=True)
class Diff:
    """How the chunks of some sources in one space differ from what they should be."""

    space: Space
    stale: list[tuple[str, int]] = field(default_factory=list)  # key, id of the chunk
    missing: list[tuple[str, Piece]] = field(default_factory=list)  # key, piece
    vectors: dict[bytes, Any] = field(default_factory=dict)  # by content hash, as written
    failures: dict[bytes, ServiceError] = field(default_factory=dict)  # by content hash
    embedded: int = 0  # texts whose vector is new

    def take(self, brought: Brought) -> None:
        """Take what one of its calls brought."""
        self.vectors |= brought.vectors
        self.failures |= brought.failures
        self.embedded += len(brought.vectors)


@dataclass(slots=True)
class Call:
    """Texts of which one space lacks the vectors, in one call to its model."""

    index: Embeddings
    diff: Diff
    hashes: list[bytes]
    texts: Texts
    encode: Callable[[Sequence[Any]], list[bytes]]

    def __call__(self) -> Brought:
        """Ask the model; raises what concerns every text."""
        outcomes = openai_service.embed_outcomes(
            self.texts,
            alias=self.index.alias,
            model=self.diff.space.model,
            dimensions=self.diff.space.dimensions,
        )
        failures = {
            content_hash: outcome
            for content_hash, outcome in zip(self.hashes, outcomes, strict=True)
            if isinstance(outcome, ServiceError)
        }
        # Encoded in the call's own thread, and half as large where it waits to be stored.
        vectors = self.encode([each for each in outcomes if not isinstance(each, ServiceError)])
        hashes = (content_hash for content_hash in self.hashes if content_hash not in failures)
        return Brought(dict(zip(hashes, vectors, strict=True)), failures)


class Brought(NamedTuple):
    """What a call brought, by content hash."""

    vectors: dict[bytes, bytes]  # as they are written
    failures: dict[bytes, ServiceError]


@dataclass(frozen=True, slots=True)
class Work:
    """What a claim comes to: the differences found, and what failed, by key."""

    claim: Claim
    diffs: list[Diff]
    unusable: dict[str, ServiceError]  # texts that cannot be made
    without_text: list[str]  # keys of rows that are gone, or that the condition keeps back
    #: Keys of sources of which a call failed for no fault of theirs: they stay pending.
    withheld: set[str] = field(default_factory=set)

    def withhold(self, call: Call) -> None:
        """Leave out the sources of a call that brought nothing."""
        hashes = set(call.hashes)
        self.withheld.update(
            key for key, piece in call.diff.missing if piece.content_hash in hashes
        )

    @property
    def errors(self) -> dict[str, ServiceError]:
        """What failed, by key."""
        errors = dict(self.unusable)
        for diff in self.diffs:
            if diff.failures:
                errors |= {
                    key: diff.failures[piece.content_hash]
                    for key, piece in diff.missing
                    if piece.content_hash in diff.failures
                }
        return errors


def plan(claim: Claim, among: Sequence[Space] | None = None) -> Work:
    """Read and cut what was claimed, and compare it with what is stored.

    Args:
        claim: The sources.
        among: The spaces to compare with; those that are kept in step if None.
    """
    # In no transaction, which a user's callable that fails in the database would break.
    texts = read_texts(claim.index, claim.alias, claim.keys)
    wanted, unusable = _cut(claim.index, claim.keys, texts)
    without_text = [key for key in claim.keys if key not in texts]
    with own_transaction(claim.alias):
        if among is None:
            among = _embeddable_spaces(claim.index, claim.alias)
        diffs = [_difference(claim.index, claim.alias, space, wanted) for space in among]
    return Work(claim, diffs, unusable, without_text)


def calls_for(work: Work, *, texts: int | None = None) -> Iterator[Call]:
    """Yield the calls that bring the vectors which are stored nowhere yet.

    Args:
        work: What was planned.
        texts: The most of one call; all in one if None.
    """
    claim = work.claim
    encode = FORMS[connections[claim.alias].vendor].encode
    for diff in work.diffs:
        contents = {piece.content_hash: piece.content for _, piece in diff.missing}
        with own_transaction(claim.alias):
            diff.vectors = _stored_vectors(claim.index, claim.alias, diff.space, list(contents))
        new = [content_hash for content_hash in contents if content_hash not in diff.vectors]
        size = texts or len(new)
        for at in range(0, len(new), size or 1):
            hashes = new[at : at + size]
            part = Texts([contents[content_hash] for content_hash in hashes])
            yield Call(claim.index, diff, hashes, part, encode)


def stored_chunks(
    index: Embeddings, alias: str, space: Space, keys: Sequence[str]
) -> dict[str, dict[int, StoredChunk]]:
    """Return the chunks that a space holds of these sources: by key and number."""
    found: dict[str, dict[int, StoredChunk]] = defaultdict(dict)
    rows = Statements(alias, index).run_in(
        'SELECT source_id, number, id, start, "end", content_hash FROM {chunk} '
        "WHERE space_id = %s AND source_id {among}",
        Keys(index, alias).to_stored(keys),
        [space.pk],
    )
    for source, number, chunk_id, start, end, content_hash in rows:
        found[str(source)][number] = (chunk_id, start, end, bytes(content_hash))
    return found


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


def _embeddable_spaces(index: Embeddings, alias: str) -> list[Space]:
    return [space for space in spaces.live(index, alias) if spaces.can_be_embedded(space, index)]


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


def _stored_vectors(
    index: Embeddings, alias: str, space: Space, hashes: Sequence[bytes]
) -> dict[bytes, Any]:
    """Return the vectors that equal texts already have, whatever their source."""
    found = _chunks_vectors(index, alias, space, hashes)
    wanted = [content_hash for content_hash in hashes if content_hash not in found]
    return found | batch_results.fetched(index, alias, space, wanted)


def _chunks_vectors(
    index: Embeddings, alias: str, space: Space, hashes: Sequence[bytes]
) -> dict[bytes, Any]:
    alike = spaces.alike(space)
    if not alike:
        return {}
    statements = Statements(alias, index)
    vector = FORMS[statements.connection.vendor].read
    found = statements.run_in(
        f"SELECT content_hash, {vector} FROM {{chunk}} "
        f"WHERE space_id IN ({', '.join(['%s'] * len(alike))}) AND content_hash {{among}}",
        hashes,
        alike,
    )
    return {bytes(content_hash): vector for content_hash, vector in found}
