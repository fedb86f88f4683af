"""How far the stored embeddings are in step: fresh, pending and failed sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from django.db import connections

from . import spaces
from .declaration import Embeddings, indexes_on
from .models import Change, Failure, Space
from .sources import rows


@dataclass(frozen=True, slots=True)
class IndexStatus:
    """The state of one declaration in one database.

    Every source is fresh, pending or failed: the three add up to ``sources``.
    """

    label: str
    database: str
    sources: int
    fresh: int
    pending: int
    failed: int
    chunks: int  # of the active space
    model: str | None  # of the active space; None before the first sync
    dimensions: int | None
    building: str | None  # model of the space being built beside it

    @property
    def is_in_step(self) -> bool:
        return self.fresh == self.sources and self.building is None


def status(alias: str, indexes: Sequence[Embeddings] | None = None) -> list[IndexStatus]:
    """Return the state of a database's declarations, of all if none are named."""
    return [_status(index, alias) for index in (indexes_on(alias) if indexes is None else indexes)]


def pending(index: Embeddings, alias: str) -> int:
    """Return how many sources have changes that nobody has worked on yet."""
    noted = Change.objects.using(alias).filter(index=index.label)
    return noted.values("source").distinct().count()


def _status(index: Embeddings, alias: str) -> IndexStatus:
    sources = rows(index, alias).count()
    waiting = _existing(Change, index, alias)
    failed = _existing(
        Failure,
        index,
        alias,
        "AND noted.set_aside AND NOT EXISTS (SELECT 1 FROM "
        '{change} c WHERE c."index" = noted."index" AND c.source = noted.source)',
    )
    space = spaces.active(index, alias)
    building = Space.objects.using(alias).filter(index=index.label, state=Space.State.BUILDING)
    chunks = index.chunk_model._default_manager.using(alias).filter(space=space)
    return IndexStatus(
        label=index.label,
        database=alias,
        sources=sources,
        fresh=sources - waiting - failed,
        pending=waiting,
        failed=failed,
        chunks=chunks.count() if space else 0,
        model=space.model if space else None,
        dimensions=space.dimensions if space else None,
        building=building.values_list("model", flat=True).first(),
    )


def _existing(
    noted: type[Change | Failure], index: Embeddings, alias: str, condition: str = ""
) -> int:
    """Count the existing sources that a table notes."""
    quote = connections[alias].ops.quote_name
    options = index.model._meta
    sql = (
        "SELECT COUNT(*) FROM {table} source WHERE CAST(source.{key} AS TEXT) IN "
        '(SELECT noted.source FROM {noted} noted WHERE noted."index" = %s ' + condition + ")"
    ).format(
        table=quote(options.db_table),
        key=quote(options.pk.column),
        noted=quote(noted._meta.db_table),
        change=quote(Change._meta.db_table),
    )
    with connections[alias].cursor() as cursor:
        cursor.execute(sql, [index.label])
        return int(cursor.fetchone()[0])
