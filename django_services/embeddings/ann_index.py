"""The HNSW index of a space: built beside everything else, found broken, built again.

Each space of more than a few thousand chunks needs one on PostgreSQL, else a search
measures every chunk. It is a partial expression index on the chunk table, which
Django does not know of: `ensure` makes it after a backfill.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Literal, NamedTuple

from django.db import ProgrammingError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from ..exceptions import ConfigurationError, InvalidInput
from ..vectors.field import MAX_DIMENSIONS
from . import spaces
from .declaration import Embeddings, indexes_on
from .models import Space
from .statements import beside

logger = logging.getLogger(__name__)

State = Literal["unsupported", "missing", "building", "invalid", "ready"]

#: Called with the share that is done, 0 to 1, and what is being done. What it
#: raises stops the build.
Progress = Callable[[float, str], object]

POLL = 0.2  # seconds between two looks at a build
#: pgvector's own ``m``, and twice its ``ef_construction``: among a million vectors in
#: a thousand clusters, 64 left one query in sixteen without a way to its cluster.
PARAMETERS = {"m": 16, "ef_construction": 128}
OPCLASS = "halfvec_cosine_ops"

#: Vendors whose databases have approximate indexes.
VENDORS = frozenset({"postgresql"})

#: The high half of the advisory locks' keys; the low half is the table's oid.
LOCK = 0x64_6A_73_61 << 32  # "djsa"

#: What pgvector's notice says of a build that memory no longer holds.
_OUTGROWN = "no longer fits into maintenance_work_mem"

#: Limits that a web request may need, and a build must not have.
_LIMITS = [
    "idle_in_transaction_session_timeout",
    "lock_timeout",
    "statement_timeout",
    "transaction_timeout",  # from PostgreSQL 17 on
]


def ensure(
    index: Embeddings, space: Space, alias: str, *, progress: Progress | None = None
) -> bool:
    """Build the index of a space if it is missing, broken or of another definition.

    Writers and searches go on meanwhile. Any number of processes may ask at once:
    one builds. It works on connections of its own, with the database's own
    ``maintenance_work_mem`` and parallel workers.

    Args:
        index: The declaration.
        space: One of its spaces.
        alias: The database.
        progress: Called a few times a second. An exception that it raises cancels
            the build and comes out of here; the next call begins anew.

    Returns:
        Whether it was built now. False also inside a transaction, where it cannot
        be, and where another session is building it.

    Raises:
        ConfigurationError: pgvector is missing or too old, or the role does not own
            the table; says what to ask for.
    """
    connection = connections[alias]
    target = _Target.of(index, space.pk, space.dimensions)
    if not _is_supported(connection, space) or not connection.get_autocommit():
        return False
    if _state(connection, target) in {"ready", "building"}:
        return False
    _check_extension(connection)
    with beside(connection) as watcher, beside(connection) as builder:
        is_ours = _take_turn(watcher, target, progress)
        return is_ours and _build(watcher, builder, target, progress)


def state(index: Embeddings, space: Space, alias: str) -> State:
    """Return how the index of a space stands; a query, or three if it is not ready.

    ``unsupported``: the database has none, or not for so many dimensions.
    ``invalid``: a build was cancelled, or the definition is another one.
    """
    connection = connections[alias]
    if not _is_supported(connection, space):
        return "unsupported"
    return _state(connection, _Target.of(index, space.pk, space.dimensions))


def unready(alias: str) -> list[str]:
    """Return the labels of declarations whose active space should have its index and has none.

    One that is being built is on its way.

    Raises:
        ConfigurationError: pgvector is missing or too old; says what to ask for.
    """
    connection = connections[alias]
    if connection.vendor not in VENDORS:
        return []
    _check_extension(connection)
    found = []
    for index in indexes_on(alias):
        space = spaces.active(index, alias)
        if space is not None and state(index, space, alias) in {"missing", "invalid"}:
            found.append(index.label)
    return found


def drop(index: Embeddings, space_id: int, alias: str) -> None:
    """Drop the index of a space if there is one; inside a transaction too."""
    connection = connections[alias]
    if connection.vendor not in VENDORS:
        return
    target = _Target.of(index, space_id)
    if not connection.get_autocommit():
        _execute(connection, f"DROP INDEX IF EXISTS {target.quoted(connection)}")
        return
    if _found(connection, target) is None:
        return
    with beside(connection) as watcher, beside(connection) as builder:
        while not _is_alone(watcher, target):
            time.sleep(POLL)
        with _unlimited(builder):
            _execute(builder, _drop_sql(builder, target))


def build_index(index: Embeddings, alias: str, *, concurrently: bool = True) -> None:
    """Build the index of a declaration's active space, unless it is there.

    Args:
        index: The declaration.
        alias: The database.
        concurrently: False builds inside a transaction too, as in a test; writers
            of embeddings wait meanwhile.

    Raises:
        InvalidInput: Nothing is embedded yet, or a transaction is open.
        ConfigurationError: As of `ensure`.
    """
    connection = connections[alias]
    if connection.vendor not in VENDORS:
        return
    space = spaces.active(index, alias)
    if space is None:
        raise InvalidInput(
            f"{index.label} has no embeddings on {alias!r} yet. Run: manage.py embeddings sync"
        )
    if not concurrently:
        _build_at_once(connection, index, space)
    elif connection.get_autocommit():
        ensure(index, space, alias)
    else:
        raise InvalidInput(
            "An index cannot be built concurrently inside a transaction: "
            "build_index(…, concurrently=False)."
        )


# What is wanted ----------------------------------------------------------------------


class _Target(NamedTuple):
    """An index, and where it belongs."""

    label: str
    table: str
    name: str
    vector: str  # a column
    space: str  # a column
    space_id: int
    dimensions: int

    @classmethod
    def of(cls, index: Embeddings, space_id: int, dimensions: int = 0) -> _Target:
        options = index.chunk_model._meta
        vector, space = (options.get_field(name).column for name in ("vector", "space"))
        name = f"django_services_ann_{int(space_id)}"
        return cls(index.label, options.db_table, name, vector, space, int(space_id), dimensions)

    def quoted(self, connection: BaseDatabaseWrapper) -> str:
        return connection.ops.quote_name(self.name)


def _create_sql(connection: BaseDatabaseWrapper, target: _Target, *, how: str) -> str:
    quote = connection.ops.quote_name
    options = ", ".join(f"{name} = {value}" for name, value in PARAMETERS.items())
    return (
        f"CREATE INDEX {how} {target.quoted(connection)} ON {quote(target.table)} "
        f"USING hnsw (({quote(target.vector)}::halfvec({target.dimensions})) {OPCLASS}) "
        f"WITH ({options}) WHERE {quote(target.space)} = {target.space_id}"
    )


def _drop_sql(connection: BaseDatabaseWrapper, target: _Target) -> str:
    return f"DROP INDEX CONCURRENTLY IF EXISTS {target.quoted(connection)}"


def _check_extension(connection: BaseDatabaseWrapper) -> None:
    from ..vectors import extension  # psycopg comes with it, which SQLite does without

    extension.check(connection)


def _is_supported(connection: BaseDatabaseWrapper, space: Space) -> bool:
    return connection.vendor in VENDORS and space.dimensions <= MAX_DIMENSIONS


# What is there -----------------------------------------------------------------------

# The type of an index's column says how many dimensions its expression has. The
# names are of the catalogs' own schema; the options are sorted to be compared.
_DEFINITION = """
SELECT i.indisvalid,
       am.amname = 'hnsw'
       AND o.opcname = %(opclass)s
       AND a.atttypmod = %(dimensions)s
       AND ARRAY(SELECT unnest(c.reloptions) ORDER BY 1) = %(options)s
       AND pg_get_expr(i.indpred, i.indrelid) = format('(%%I = %%s)', %(space)s, %(id)s)
  FROM pg_index i
  JOIN pg_class c ON c.oid = i.indexrelid
  JOIN pg_am am ON am.oid = c.relam
  JOIN pg_opclass o ON o.oid = i.indclass[0]
  JOIN pg_attribute a ON a.attrelid = i.indexrelid AND a.attnum = 1
 WHERE i.indrelid = to_regclass(%(table)s) AND c.relname = %(name)s
"""

# Who builds holds a lock on the table that all roles may see, of the progress they see
# at least the process. A build's advisory lock may be gone before it: a killed client's
# backend goes on. One whose index is not known yet may be at any.
_BUILDS = """
SELECT coalesce(p.index_relid, 0) IN (0, coalesce(to_regclass(%(index)s), 0)::oid)
  FROM pg_stat_progress_create_index p
  JOIN pg_locks l ON l.pid = p.pid AND l.granted AND l.locktype = 'relation'
 WHERE l.relation = to_regclass(%(table)s)
   AND l.mode IN ('ShareUpdateExclusiveLock', 'ShareLock')
"""


# A transaction sees the statistics that it saw first, unless it forgets them.
_FORGET_STATISTICS = "SELECT pg_stat_clear_snapshot()"


def _state(connection: BaseDatabaseWrapper, target: _Target) -> State:
    found = _found(connection, target)
    if found is None:
        return "missing"
    is_valid, is_wanted = found
    if is_valid and is_wanted:
        return "ready"
    return "building" if any(_builds(connection, target)) else "invalid"


def _found(connection: BaseDatabaseWrapper, target: _Target) -> tuple[bool, bool] | None:
    """Return whether the index is valid, and of the wanted definition; None without one."""
    parameters: dict[str, str | int | list[str]] = {
        "opclass": OPCLASS,
        "dimensions": target.dimensions,
        "options": sorted(f"{name}={value}" for name, value in PARAMETERS.items()),
        "space": target.space,
        "id": str(target.space_id),
        "table": connection.ops.quote_name(target.table),
        "name": target.name,
    }
    with connection.cursor() as cursor:
        cursor.execute(_DEFINITION, parameters)
        found: tuple[bool, bool] | None = cursor.fetchone()
    return found


def _builds(connection: BaseDatabaseWrapper, target: _Target) -> list[bool]:
    """Return of each build on the table whether it is, or may be, of this index."""
    parameters = {
        "index": target.quoted(connection),
        "table": connection.ops.quote_name(target.table),
    }
    with connection.cursor() as cursor:
        cursor.execute(_FORGET_STATISTICS)
        cursor.execute(_BUILDS, parameters)
        return [is_ours for (is_ours,) in cursor.fetchall()]


# One builder at a time ---------------------------------------------------------------


def _take_turn(watcher: BaseDatabaseWrapper, target: _Target, progress: Progress | None) -> bool:
    """Return whether it is ours to build; wait while others build on the same table."""
    while not _is_alone(watcher, target):
        if _state(watcher, target) in {"ready", "building"}:
            logger.info("%s: another session builds index %s", target.label, target.name)
            return False
        if progress is not None:
            progress(0.0, "waiting for another build")
        time.sleep(POLL)
    return _state(watcher, target) in {"missing", "invalid"}


def _is_alone(watcher: BaseDatabaseWrapper, target: _Target) -> bool:
    """Take the table's advisory lock, which `watcher` holds until it is closed.

    Not waited for in the server: a statement that waits has a snapshot, for whose
    end CREATE INDEX CONCURRENTLY waits in turn. And of a transaction, not of the
    session: a pooler may hand the session on, and the lock with it.
    """
    if not watcher.connection or watcher.get_autocommit():
        watcher.set_autocommit(False)
        # Any other level would keep a snapshot over the whole transaction.
        _execute(watcher, "SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        _lift_limits(watcher, is_local=True)
    with watcher.cursor() as cursor:
        cursor.execute(
            "SELECT pg_try_advisory_xact_lock(%s::bigint + to_regclass(%s)::oid::bigint)",
            [LOCK, watcher.ops.quote_name(target.table)],
        )
        (is_locked,) = cursor.fetchone()
    return bool(is_locked) and not _builds(watcher, target)


# Building ----------------------------------------------------------------------------


def _build(
    watcher: BaseDatabaseWrapper,
    builder: BaseDatabaseWrapper,
    target: _Target,
    progress: Progress | None,
) -> bool:
    started = time.monotonic()
    builder.ensure_connection()
    builder.connection.add_notice_handler(lambda notice: _warn(target, notice.message_primary))
    with ThreadPoolExecutor(1, thread_name_prefix="django_services.ann_index") as pool:
        done = pool.submit(_create, builder, target)
        try:
            _watch(watcher, builder, done, progress)
        except BaseException:
            _cancel(builder, done)
            raise
    try:
        done.result()
    except ProgrammingError as error:
        raise _translated(error, target) from error
    seconds = time.monotonic() - started
    logger.info("%s: built index %s in %.1f s", target.label, target.name, seconds)
    return True


def _create(builder: BaseDatabaseWrapper, target: _Target) -> None:
    with _unlimited(builder):
        # What a cancelled build left behind, or another definition.
        _execute(builder, _drop_sql(builder, target))
        _execute(builder, _create_sql(builder, target, how="CONCURRENTLY"))


def _warn(target: _Target, notice: str | None) -> None:
    """Tell of a build that goes on outside of memory, which nothing else shows."""
    if notice and _OUTGROWN in notice:
        logger.warning(
            "%s: index %s: %s; the rest is slower. Raise maintenance_work_mem for this database, "
            'in its OPTIONS["options"] or on the server.',
            *(target.label, target.name, notice),
        )


def _watch(
    watcher: BaseDatabaseWrapper,
    builder: BaseDatabaseWrapper,
    done: Future[None],
    progress: Progress | None,
) -> None:
    """Wait until the build is done, and tell of it meanwhile."""
    pid, share = builder.connection.info.backend_pid, 0.0
    while not wait([done], POLL).done:
        if progress is not None and (found := _progress_of(watcher, pid)):
            share = max(share, found[0])
            progress(share, found[1])
    if progress is not None and done.exception() is None:
        progress(1.0, "built")


def _progress_of(watcher: BaseDatabaseWrapper, pid: int) -> tuple[float, str] | None:
    """Return the share of the table that a process has brought in, and its phase."""
    _execute(watcher, _FORGET_STATISTICS)
    with watcher.cursor() as cursor:
        cursor.execute(
            "SELECT CASE WHEN blocks_total > 0 AND phase LIKE %s"
            " THEN blocks_done::float / blocks_total ELSE 0 END, phase"
            " FROM pg_stat_progress_create_index WHERE pid = %s",
            ["building index%", pid],
        )
        found: tuple[float, str] | None = cursor.fetchone()
    return found


def _cancel(builder: BaseDatabaseWrapper, done: Future[None]) -> None:
    """Cancel the build, whichever of its statements runs."""
    while not done.done():
        # Between two statements there is nothing to cancel.
        builder.connection.cancel_safe()
        wait([done], POLL)


def _translated(error: ProgrammingError, target: _Target) -> Exception:
    if getattr(error.__cause__, "sqlstate", None) != "42501":
        return error
    return ConfigurationError(
        f"{target.label}: the role may not build an index on {target.table}. "
        "Run manage.py embeddings sync as the role that ran the migrations, which owns the table."
    )


def _build_at_once(connection: BaseDatabaseWrapper, index: Embeddings, space: Space) -> None:
    target = _Target.of(index, space.pk, space.dimensions)
    if not _is_supported(connection, space) or _state(connection, target) == "ready":
        return
    _check_extension(connection)
    with transaction.atomic(using=connection.alias):
        _execute(connection, f"DROP INDEX IF EXISTS {target.quoted(connection)}")
        _execute(connection, _create_sql(connection, target, how=""))


@contextlib.contextmanager
def _unlimited(builder: BaseDatabaseWrapper) -> Iterator[None]:
    """Lift the limits of a session; outside a transaction there is no SET LOCAL."""
    _lift_limits(builder, is_local=False)
    try:
        yield
    finally:
        # A pooler between us and the server may hand the session on.
        if builder.is_usable():
            _set(builder, "reset_val", is_local=False)


def _lift_limits(connection: BaseDatabaseWrapper, *, is_local: bool) -> None:
    _set(connection, "'0'", is_local=is_local)


def _set(connection: BaseDatabaseWrapper, value: str, *, is_local: bool) -> None:
    # Through the catalog, since a server may not know all of them.
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT set_config(name, {value}, %s) FROM pg_settings WHERE name = ANY(%s)",
            [is_local, _LIMITS],
        )


def _execute(connection: BaseDatabaseWrapper, sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)
