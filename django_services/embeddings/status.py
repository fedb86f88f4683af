"""How far the stored embeddings are in step: fresh, pending and failed sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import spaces
from .declaration import Embeddings, indexes_on
from .models import Change, Space
from .statements import Statements

# Notes of rows that are gone count for no source: the next sync takes them away.
_WAITING = (
    'SELECT COUNT(*) FROM {source} WHERE {key} IN (SELECT source FROM {change} WHERE "index" = %s)'
)
_FAILED = (
    "SELECT COUNT(*) FROM {source} WHERE {key} IN "
    '(SELECT source FROM {failure} WHERE "index" = %s AND set_aside) '
    'AND {key} NOT IN (SELECT source FROM {change} WHERE "index" = %s)'
)


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
    statements = Statements(alias, index)
    ((sources,),) = statements.run("SELECT COUNT(*) FROM {source}")
    ((waiting,),) = statements.run(_WAITING, [index.label])
    ((failed,),) = statements.run(_FAILED, [index.label, index.label])
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
