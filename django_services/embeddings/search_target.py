"""One search, and what it comes down to in a statement: a space and a vector."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from django.db import DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper

from .. import conf
from ..exceptions import InvalidInput, ServiceError
from .declaration import Embeddings, get_index
from .models import ChunkChange, Space
from .query_vectors import Wanted

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Target:
    """What one statement searches: fixed when it is compiled."""

    space: int
    dimensions: int
    vector: bytes
    #: Newest row of the space's chunk log, (id, token); (0, b"") where there is none.
    position: tuple[int, bytes]

    def __repr__(self) -> str:
        return f"<space {self.space}>"


class Search:
    """One search: what is looked for, in which index. Shared by all its querysets."""

    def __init__(self, index: Embeddings, wanted: Wanted, max_hits: int | None) -> None:
        self.index = index
        self.wanted = wanted
        self._max_hits = max_hits
        self._vectors: dict[tuple[str, int], bytes] = {}
        self._latest: dict[str, Target] = {}
        self._warned = False
        #: The last error, while no later evaluation succeeded.
        self.error: ServiceError | None = None

    def __repr__(self) -> str:
        return f"<search in {self.index.label}>"

    def __getstate__(self) -> dict[str, Any]:
        # Tells databases of this process apart, which another one may not have.
        return {**self.__dict__, "_latest": {}, "error": None, "index": None, "_label": self.label}

    def __setstate__(self, state: dict[str, Any]) -> None:
        label = state.pop("_label")
        self.__dict__.update(state)
        self.index = get_index(label)

    @property
    def label(self) -> str:
        return self.index.label

    @property
    def max_hits(self) -> int:
        return conf.embeddings().max_hits if self._max_hits is None else self._max_hits

    def resolve(self, connection: BaseDatabaseWrapper) -> Target | None:
        """Return what to search now, or None where nothing is embedded yet.

        Raises:
            ServiceError: The query has no vector; says why.
        """
        try:
            target = self._resolve(connection)
        except ServiceError as error:
            self.error = error.with_traceback(None)
            raise
        self.error = None
        return target

    def latest(self, connection: BaseDatabaseWrapper) -> Target | None:
        """Return what the last statement of this database searched."""
        return self._latest.get(connection.alias) or self.resolve(connection)

    def _resolve(self, connection: BaseDatabaseWrapper) -> Target | None:
        found = _active_space(self.index, connection)
        if found is None:
            self._warn(connection.alias)
            return None
        space, position = found
        key = (space.model, space.dimensions)
        vector = self._vectors.get(key)
        if vector is None:
            vector = self._vectors[key] = self.wanted.vector(self.index, space)
        target = Target(space.pk, space.dimensions, vector, position)
        self._latest[connection.alias] = target
        return target

    def _warn(self, alias: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "%s holds no embeddings in database %r: the search finds nothing. "
                "Run: manage.py embeddings sync %s",
                self.label,
                alias,
                self.label,
            )


def _active_space(
    index: Embeddings, connection: BaseDatabaseWrapper
) -> tuple[Space, tuple[int, bytes]] | None:
    """Return the space that answers and the newest row of its log, in one statement."""
    sql = _ACTIVE_SPACE.format(
        space=Space._meta.db_table, log=ChunkChange._meta.db_table, active=Space.State.ACTIVE.value
    )
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql, [index.label])
            row = cursor.fetchone()
    except DatabaseError as error:
        raise _explained(index, connection, error) from None
    if row is None:
        return None
    pk, model, dimensions, last, token = row
    space = Space(pk=pk, index=index.label, model=model, dimensions=dimensions)
    space._state.adding, space._state.db = False, connection.alias
    return space, (last, bytes(token)) if last is not None else (0, b"")


_ACTIVE_SPACE = """
SELECT space.id, space.model, space.dimensions, log.id, log.token
FROM {space} space
LEFT JOIN {log} log ON log.id = (SELECT MAX(id) FROM {log} WHERE space = space.id)
WHERE space."index" = %s AND space.state = '{active}'
"""


def _explained(
    index: Embeddings, connection: BaseDatabaseWrapper, error: DatabaseError
) -> Exception:
    if Space._meta.db_table in connection.introspection.table_names():
        return error
    return InvalidInput(
        f"Database {connection.alias!r} has no tables for the embeddings of {index.label}: "
        "search in the database where they are kept, or run: "
        f"manage.py migrate --database {connection.alias}"
    )
