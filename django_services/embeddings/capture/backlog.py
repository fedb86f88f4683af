"""What capture cannot have seen: noted afterwards, for whole indexes."""

from __future__ import annotations

from django.db import transaction

from ..declaration import Embeddings
from ..statements import Statements


def enqueue_all(index: Embeddings, alias: str) -> int:
    """Note every source of an index as changed, and forget those that are gone.

    The notes are cheap to work off: a source whose text is the same is not
    embedded again.

    Returns:
        The number of sources noted.
    """
    with transaction.atomic(alias):
        forget_gone(index, alias)
        return Statements(alias, index).count(
            'INSERT INTO {change} ("index", source) SELECT %s, {key} FROM {source}', [index.label]
        )


def enqueue_unnoted(index: Embeddings, alias: str) -> int:
    """Do as `enqueue_all`, but leave out the sources that have a note already."""
    with transaction.atomic(alias):
        forget_gone(index, alias)
        return Statements(alias, index).count(
            'INSERT INTO {change} ("index", source) SELECT %s, {key} FROM {source} '
            'EXCEPT SELECT "index", source FROM {change} WHERE "index" = %s',
            [index.label, index.label],
        )


def forget_gone(index: Embeddings, alias: str) -> None:
    """Remove the chunks, notes and failures of sources that are no longer there."""
    statements = Statements(alias, index)
    with transaction.atomic(alias):
        # PostgreSQL would look through the whole table for each row of a NOT IN that its
        # memory does not hold; SQLite for each key as text, of which it has no index.
        statements.run(
            "DELETE FROM {chunk} WHERE NOT EXISTS "
            "(SELECT 1 FROM {source} WHERE {pk} = {chunk}.source_id)"
        )
        for table in ("change", "failure"):
            statements.run(
                f'DELETE FROM {{{table}}} WHERE "index" = %s AND source IN (SELECT source '
                f'FROM {{{table}}} WHERE "index" = %s EXCEPT SELECT {{key}} FROM {{source}})',
                [index.label, index.label],
            )
