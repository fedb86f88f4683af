"""What capture cannot have seen: noted afterwards, for whole indexes."""

from __future__ import annotations

from django.db import connections, models, transaction

from ..declaration import Embeddings
from ..models import Change, Failure
from .watch import column


def enqueue_all(index: Embeddings, alias: str) -> int:
    """Note every source of an index as changed, and forget those that are gone.

    The notes are cheap to work off: a source whose text is the same is not
    embedded again.

    Returns:
        The number of sources noted.
    """
    with transaction.atomic(alias):
        forget_gone(index, alias)
        table, key = _names(index.model, alias, None)
        change, label, source = _names(Change, alias, "index", "source")
        return _execute(
            alias,
            f"INSERT INTO {change} ({label}, {source}) SELECT %s, CAST({key} AS TEXT) FROM {table}",
            index,
        )


def forget_gone(index: Embeddings, alias: str) -> None:
    """Remove the chunks, notes and failures of sources that are no longer there."""
    table, key = _names(index.model, alias, None)
    chunk, chunk_source = _names(index.chunk_model, alias, "source")
    with transaction.atomic(alias):
        _execute(
            alias,
            f"DELETE FROM {chunk} WHERE {chunk_source} NOT IN (SELECT {key} FROM {table})",
        )
        for model in (Change, Failure):
            name, label, source = _names(model, alias, "index", "source")
            _execute(
                alias,
                f"DELETE FROM {name} WHERE {label} = %s "
                f"AND {source} NOT IN (SELECT CAST({key} AS TEXT) FROM {table})",
                index,
            )


def _names(model: type[models.Model], alias: str, *fields: str | None) -> list[str]:
    """Return the quoted names of a model's table and of columns; None is its key."""
    quote = connections[alias].ops.quote_name
    return [quote(model._meta.db_table), *(quote(column(model, field)) for field in fields)]


def _execute(alias: str, sql: str, index: Embeddings | None = None) -> int:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql, [index.label] if index else [])
        return int(cursor.rowcount)
