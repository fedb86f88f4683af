"""Writing chunks: the way of each database that loses the least time.

On PostgreSQL a binary COPY into a table of the session and one upsert; on SQLite
an INSERT that the driver repeats. Both are many times faster than bulk_create,
which makes an instance of each row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from django.db import connections

from ..vectors import encoding
from .chunking import Piece
from .declaration import Embeddings
from .sources import Keys, existing_keys
from .statements import Statements


class NewChunk(NamedTuple):
    """A chunk to be written."""

    key: str  # of its source
    space: int
    piece: Piece
    vector: bytes  # as `Form.encode` returns it


def remove(index: Embeddings, alias: str, ids: Sequence[int]) -> int:
    """Delete chunks; return how many."""
    Statements(alias, index).run_in("DELETE FROM {chunk} WHERE id {among}", ids)
    return len(ids)


def remove_all(index: Embeddings, alias: str, keys: Sequence[str]) -> None:
    """Delete all that is stored of these sources, in retired spaces too."""
    Statements(alias, index).run_in(
        "DELETE FROM {chunk} WHERE source_id {among}", Keys(index, alias).to_stored(keys)
    )


def insert(index: Embeddings, alias: str, chunks: Sequence[NewChunk]) -> int:
    """Write the chunks whose source is still there; return how many.

    A source that was deleted while its text was embedded must not come back.
    """
    return FORMS[connections[alias].vendor].insert(index, alias, chunks) if chunks else 0


def _insert_each(index: Embeddings, alias: str, chunks: Sequence[NewChunk]) -> int:
    keys = list(existing_keys(index, alias, list({chunk.key for chunk in chunks})))
    sources = dict(zip(keys, Keys(index, alias).to_stored(keys), strict=True))
    rows = [
        (sources[key], space, *_columns(piece), vector)
        for key, space, piece, vector in chunks
        if key in sources
    ]
    Statements(alias, index).run_each(
        'INSERT INTO {chunk} (source_id, space_id, number, start, "end", text, context, '
        "content_hash, vector) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
        rows,
    )
    return len(rows)


#: A table of the session, with PostgreSQL's types of a binary COPY. The server reads
#: the last as what it is, a halfvec in its binary form.
_INCOMING = "pg_temp.django_services_incoming"
_INCOMING_TYPES = ("text", "int8", "int4", "int4", "int4", "text", "text", "bytea", "bytea")
_MAKE_INCOMING = """
CREATE TEMPORARY TABLE django_services_incoming (
    source text, space_id int8, number int4, start int4, "end" int4,
    text text, context text, content_hash bytea, vector halfvec
) ON COMMIT DELETE ROWS
"""
_UPSERT = """
INSERT INTO {chunk}
    (source_id, space_id, number, start, "end", text, context, content_hash, vector)
SELECT {source}.{pk}, i.space_id, i.number, i.start, i."end", i.text, i.context, i.content_hash,
    i.vector
FROM pg_temp.django_services_incoming i
JOIN {source} ON {source}.{pk} = CAST(i.source AS {pk_type})
ON CONFLICT (source_id, space_id, number) DO UPDATE SET
    start = excluded.start, "end" = excluded."end", text = excluded.text,
    context = excluded.context, content_hash = excluded.content_hash, vector = excluded.vector
"""


def _copy(index: Embeddings, alias: str, chunks: Sequence[NewChunk]) -> int:
    statements = Statements(alias, index)
    _empty_incoming(statements)
    with (
        statements.connection.cursor() as cursor,
        cursor.copy(f"COPY {_INCOMING} FROM STDIN (FORMAT BINARY)") as copy,
    ):
        copy.set_types(_INCOMING_TYPES)
        for key, space, piece, vector in chunks:
            copy.write_row((key, space, *_columns(piece), vector))
    return statements.count(_UPSERT)


def _empty_incoming(statements: Statements) -> None:
    """Make the table where this session, one of a pool perhaps, has none yet."""
    ((is_there,),) = statements.run(f"SELECT to_regclass('{_INCOMING}') IS NOT NULL")
    # A commit empties it too, but a test's transaction has none.
    statements.run(f"DELETE FROM {_INCOMING}" if is_there else _MAKE_INCOMING)


def _columns(piece: Piece) -> tuple[Any, ...]:
    return (
        piece.number,
        piece.start,
        piece.end,
        piece.text,
        piece.context,
        piece.content_hash,
    )


@dataclass(frozen=True, slots=True)
class Form:
    """How a vendor's vectors are written and read back as they are written."""

    encode: Callable[[Sequence[Any]], list[bytes]]
    read: str  # SQL
    insert: Callable[[Embeddings, str, Sequence[NewChunk]], int]


FORMS = {
    "sqlite": Form(encoding.encode_rows, "vector", _insert_each),
    "postgresql": Form(encoding.to_halfvec_rows, "halfvec_send(vector)", _copy),
}
