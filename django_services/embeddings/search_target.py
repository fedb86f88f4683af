"""One search, and what it comes down to in a statement: a space and a vector."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any, cast

from django.db import DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper

from .. import conf
from ..exceptions import InvalidInput, ServiceError
from ..vectors import VectorField, encoding
from .declaration import Embeddings, get_index
from .models import ChunkChange, Space
from .query_vectors import Wanted

logger = logging.getLogger(__name__)


#: Vendors whose changes of chunks are logged, for the matrices in memory.
LOGGED = frozenset({"sqlite"})
NOWHERE = (0, b"")
UNDEFINED_TABLE = "42P01"


@dataclass(frozen=True, slots=True)
class Target:
    """What one statement searches: fixed when it is compiled."""

    space: int
    dimensions: int
    vector: bytes
    #: Newest row of the space's chunk log, (id, token); `NOWHERE` where there is none.
    position: tuple[int, bytes]
    _parameters: dict[str, Any] = field(default_factory=dict, compare=False)

    def __repr__(self) -> str:
        return f"<space {self.space}>"

    @property
    def halfvec(self) -> bytes:
        """The vector in pgvector's binary form."""
        made = self._parameters.get("halfvec")
        if made is None:
            (made,) = encoding.to_halfvec_rows([self.vector])
            self._parameters["halfvec"] = made
        return cast("bytes", made)

    def parameter(self, connection: BaseDatabaseWrapper) -> Any:
        """Return the vector as a parameter of the ORM's statements, made once."""
        made = self._parameters.get(connection.vendor)
        if made is None:
            made = VectorField().get_db_prep_value(self.vector, connection, prepared=True)
            self._parameters[connection.vendor] = made
        return made


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

    def presumed(self, connection: BaseDatabaseWrapper) -> Target | None:
        """Return what to search if the space is active that was so last.

        The statement has to make sure of it. None where that is not known.

        Raises:
            ServiceError: As `resolve`.
        """
        name = connection.alias, self.label
        space = _last_active.get(name)
        if space is None:
            return None
        try:
            target = self._target(space, NOWHERE, connection)
        except ServiceError as error:
            found = _active_space(self.index, connection)
            if found is None or found[0] != space:
                del _last_active[name]
                return None
            self.error = error.with_traceback(None)
            raise
        self.error = None
        return target

    def _resolve(self, connection: BaseDatabaseWrapper) -> Target | None:
        found = _active_space(self.index, connection)
        if found is None:
            _last_active.pop((connection.alias, self.label), None)
            self._warn(connection.alias)
            return None
        _last_active[connection.alias, self.label] = found[0]
        return self._target(*found, connection)

    def _target(
        self, space: Space, position: tuple[int, bytes], connection: BaseDatabaseWrapper
    ) -> Target:
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


#: (alias, label) -> the space that answered the last search of this process.
_last_active: dict[tuple[str, str], Space] = {}


def _active_space(
    index: Embeddings, connection: BaseDatabaseWrapper
) -> tuple[Space, tuple[int, bytes]] | None:
    """Return the space that answers and the newest row of its log, in one statement."""
    sql = _ACTIVE_SPACE.format(
        space=Space._meta.db_table,
        active=Space.State.ACTIVE.value,
        **(_POSITION if connection.vendor in LOGGED else _NO_POSITION),
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
    return space, (last, bytes(token)) if last is not None else NOWHERE


_ACTIVE_SPACE = """
SELECT space.id, space.model, space.dimensions, {position}
FROM {space} space {log}
WHERE space."index" = %s AND space.state = '{active}'
"""
_LOG = ChunkChange._meta.db_table
_POSITION = {
    "position": "log.id, log.token",
    "log": f"LEFT JOIN {_LOG} log ON log.id = (SELECT MAX(id) FROM {_LOG} WHERE space = space.id)",
}
_NO_POSITION = {"position": "NULL, NULL", "log": ""}


def _is_table_missing(connection: BaseDatabaseWrapper, error: DatabaseError) -> bool:
    state = getattr(error.__cause__, "sqlstate", None)
    # In PostgreSQL's transactions nothing can be asked after an error; it says what it is.
    if state is not None:
        return bool(state == UNDEFINED_TABLE)
    return Space._meta.db_table not in connection.introspection.table_names()


def _explained(
    index: Embeddings, connection: BaseDatabaseWrapper, error: DatabaseError
) -> Exception:
    if not _is_table_missing(connection, error):
        return error
    return InvalidInput(
        f"Database {connection.alias!r} has no tables for the embeddings of {index.label}: "
        "search in the database where they are kept, or run: "
        f"manage.py migrate --database {connection.alias}"
    )
