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
            'WHERE {key} NOT IN (SELECT source FROM {change} WHERE "index" = %s)',
            [index.label, index.label],
        )


def forget_gone(index: Embeddings, alias: str) -> None:
    """Remove the chunks, notes and failures of sources that are no longer there."""
    statements = Statements(alias, index)
    with transaction.atomic(alias):
        statements.run("DELETE FROM {chunk} WHERE source_id NOT IN (SELECT {pk} FROM {source})")
        for table in ("change", "failure"):
            statements.run(
                f'DELETE FROM {{{table}}} WHERE "index" = %s '
                "AND source NOT IN (SELECT {key} FROM {source})",
                [index.label],
            )
