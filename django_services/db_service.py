"""The databases of Django: wait until they answer, verify and prepare them.

Importing this module also makes PostgreSQL's connections safe across a fork.
"""

from __future__ import annotations

import contextlib
import math
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.core.management import call_command
from django.db import Error, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import NotSupportedError
from django.utils.connection import ConnectionDoesNotExist

from .exceptions import (
    AuthenticationFailed,
    ConfigurationError,
    InvalidInput,
    ServiceError,
    ServiceNotConfigured,
    ServiceUnavailable,
)

MINIMUM_POSTGRESQL = 15  # what Django 6.1 needs
MINIMUM_EXTENSIONS = {"vector": (0, 8)}  # 0.8: iterative scans, for filtered search

#: Key of the advisory locks that let one process at a time prepare a database.
LOCK = 0x64_6A_73_76  # "djsv"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseReport:
    """What `init_db` found and did."""

    alias: str
    vendor: str  # "postgresql" or "sqlite"
    version: str  # of the server, or of the SQLite library
    extensions: dict[str, str] = field(default_factory=dict)  # their versions, by name
    migrated: bool = False
    waited: float = 0.0  # seconds until the database answered


def init_db(
    alias: str = "default",
    *,
    timeout: float = 30.0,
    extensions: Sequence[str] = ("vector",),
    migrate: bool = False,
) -> DatabaseReport:
    """Wait until the database answers, verify it and prepare it.

    Any number of processes may call it at once.

    Args:
        alias: The database, as in DATABASES.
        timeout: Seconds to wait for the server, and for another process that
            prepares it. A refused password is not waited for.
        extensions: PostgreSQL's, created where they are not and the role may.
        migrate: Whether to run the migrations too.

    Raises:
        AuthenticationFailed: The server refused the user or the password.
        ConfigurationError: What is there cannot be used: no such database, a
            server or pgvector too old, a SQLite file that cannot be written.
        ServiceUnavailable: No answer within `timeout`.
    """
    connection = _connection(alias)
    names = _extension_names(extensions)
    started = time.monotonic()
    deadline = started + _duration(timeout)
    _wait(connection, deadline)
    waited = time.monotonic() - started
    with _translating(connection):
        version = _verify(connection)
        created = _create_extensions(connection, names, deadline)
    if migrate:
        _migrate(connection, deadline)
    return DatabaseReport(
        alias=alias,
        vendor=connection.vendor,
        version=version,
        extensions=created,
        migrated=migrate,
        waited=waited,
    )


def ping(alias: str = "default") -> None:
    """Return if the database answers and takes the password.

    Raises:
        AuthenticationFailed: The server refused the user or the password.
        ConfigurationError: There is no such alias, database or file.
        ServiceUnavailable: No connection, or no answer.
    """
    connection = _connection(alias)
    if not _answers(connection):
        # The connection may have died while it was idle, and a pool does not say
        # why it has none: a new connection tells.
        _PROBES[connection.vendor](connection, math.inf)
        with _translating(connection):
            _answer(connection)


def close(alias: str | None = None) -> None:
    """Close this thread's connection to one database, or to all, and their pools."""
    opened = connections.all(initialized_only=True)
    for connection in opened if alias is None else [_connection(alias)]:
        connection.close()
        if connection.alias in getattr(connection, "_connection_pools", {}):
            connection.close_pool()  # type: ignore[attr-defined]  # PostgreSQL's has it


# Waiting -----------------------------------------------------------------------------


def _wait(connection: BaseDatabaseWrapper, deadline: float) -> None:
    pause = 0.1  # seconds
    while True:
        try:
            return _PROBES[connection.vendor](connection, deadline - time.monotonic())
        except ServiceUnavailable as error:
            if time.monotonic() + pause >= deadline:
                raise error.with_traceback(None) from None
        # Processes that started together should not come back together.
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, 2.0)


def _probe_postgresql(connection: BaseDatabaseWrapper, remaining: float) -> None:
    """Open and close a connection of its own: a pool would hide why it cannot."""
    with _translating(connection):
        _connect(connection, remaining).close()


def _probe_sqlite(connection: BaseDatabaseWrapper, _remaining: float) -> None:
    """Take and give back the right to write."""
    with _translating(connection):
        connection.ensure_connection()
        if not connection.in_atomic_block:
            with connection.cursor() as cursor:
                cursor.execute("BEGIN IMMEDIATE")
                cursor.execute("ROLLBACK")


_PROBES: dict[str, Callable[[BaseDatabaseWrapper, float], None]] = {
    "postgresql": _probe_postgresql,
    "sqlite": _probe_sqlite,
}


def _connect(connection: BaseDatabaseWrapper, remaining: float = math.inf) -> Any:
    """Open a psycopg connection beside Django's, in autocommit."""
    configured = connection.settings_dict["OPTIONS"].get("connect_timeout", 5)
    bounds = {
        "connect_timeout": max(2, math.ceil(min(float(configured), remaining))),  # libpq's least
        "autocommit": True,
    }
    # No variable holds the parameters: a traceback page would show the password.
    return _driver(connection).connect(**{**connection.get_connection_params(), **bounds})


def _driver(connection: BaseDatabaseWrapper) -> Any:
    """Return the DB-API module that a backend stands on."""
    return connection.Database  # type: ignore[attr-defined]  # the stubs leave it out


def _answer(connection: BaseDatabaseWrapper) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        cursor.fetchone()


def _answers(connection: BaseDatabaseWrapper) -> bool:
    """Tell whether the database answers; leave no broken connection behind."""
    try:
        _answer(connection)
    except Error:
        if not connection.in_atomic_block:
            connection.close()
        return False
    return True


# Verifying and preparing -------------------------------------------------------------


def _verify(connection: BaseDatabaseWrapper) -> str:
    """Return the version, or raise if it is too old."""
    connection.ensure_connection()
    version = connection.get_database_version()
    text = ".".join(str(part) for part in version)
    if connection.vendor == "postgresql" and version[0] < MINIMUM_POSTGRESQL:
        raise ConfigurationError(
            f"{_described(connection)} is PostgreSQL {text}; "
            f"needed is {MINIMUM_POSTGRESQL} or newer."
        )
    return text


def _create_extensions(
    connection: BaseDatabaseWrapper, names: Sequence[str], deadline: float
) -> dict[str, str]:
    """Return the versions of extensions, creating and updating what is missing or too old."""
    if connection.vendor != "postgresql":
        return {}
    versions = {}
    for name in names:
        version = _extension_version(connection, name)
        if version is None or _is_too_old(name, version):
            _create_extension(connection, name, deadline)
            version = _extension_version(connection, name) or ""
        if _is_too_old(name, version):
            raise ConfigurationError(
                f"{_described(connection)} has the extension {name} {version}; needed is "
                f"{_version(MINIMUM_EXTENSIONS[name])} or newer. Install it on the server, then "
                f"run: ALTER EXTENSION {name} UPDATE;"
            )
        versions[name] = version
    return versions


def _extension_version(connection: BaseDatabaseWrapper, name: str) -> str | None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT extversion FROM pg_extension WHERE extname = %s", [name])
        row = cursor.fetchone()
    return str(row[0]) if row else None


def _create_extension(connection: BaseDatabaseWrapper, name: str, deadline: float) -> None:
    quoted = connection.ops.quote_name(name)
    try:
        with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
            patience = max(1, round((deadline - time.monotonic()) * 1_000))  # ms
            cursor.execute(f"SET LOCAL lock_timeout = {patience}")
            # CREATE EXTENSION IF NOT EXISTS fails in two sessions at once.
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
            cursor.execute(f"CREATE EXTENSION IF NOT EXISTS {quoted}")
            cursor.execute(f"ALTER EXTENSION {quoted} UPDATE")
    except Error as error:
        if _sqlstate(error) == "42501":
            raise ConfigurationError(
                f"{_described(connection)}: the role may not create or update the extension "
                f"{name}. Ask the database's owner to run: CREATE EXTENSION IF NOT EXISTS "
                f"{quoted}; ALTER EXTENSION {quoted} UPDATE;"
            ) from None
        # 58P01 and 0A000: before and from PostgreSQL 15 on.
        if _sqlstate(error) in {"0A000", "58P01", "22023"}:
            least = MINIMUM_EXTENSIONS.get(name)
            raise ConfigurationError(
                f"{_described(connection)}: the server does not have the extension {name}. "
                f"Install {'pgvector ' + _version(least) + ' or newer' if least else name} on it."
            ) from None
        raise


def _is_too_old(name: str, version: str) -> bool:
    return tuple(map(int, re.findall(r"\d+", version))) < MINIMUM_EXTENSIONS.get(name, ())


def _version(parts: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in parts)


def _migrate(connection: BaseDatabaseWrapper, deadline: float) -> None:
    with contextlib.ExitStack() as stack:
        if connection.vendor == "postgresql":
            stack.enter_context(_lock(connection, deadline))
        call_command("migrate", database=connection.alias, interactive=False, verbosity=0)


@contextlib.contextmanager
def _lock(connection: BaseDatabaseWrapper, deadline: float) -> Iterator[None]:
    """Hold an advisory lock on a connection of its own, so that none is left in a pool."""
    with contextlib.ExitStack() as stack:
        with _translating(connection):
            holder = stack.enter_context(contextlib.closing(_connect(connection)))
            # Asked again and again: a session that waits in the lock itself would
            # keep CREATE INDEX CONCURRENTLY of the one that migrates waiting for it.
            while not holder.execute("SELECT pg_try_advisory_lock(%s)", [LOCK]).fetchone()[0]:
                if time.monotonic() >= deadline:
                    raise ServiceUnavailable(
                        f"{_described(connection)}: another process is still migrating. "
                        "Give init_db() a longer timeout."
                    )
                time.sleep(0.2)
        yield


# Errors ------------------------------------------------------------------------------

#: What a server says at the door, where psycopg passes no SQLSTATE on.
_REFUSALS = {
    r"password authentication failed|no password supplied|SASL authentication failed": "28P01",
    r'role ".*" does not exist|no pg_hba.conf entry|not permitted to log in': "28000",
    r'database ".*" does not exist': "3D000",
}


@contextlib.contextmanager
def _translating(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Raise the driver's errors as ours, without its frames, which hold the password."""
    try:
        yield
    except (Error, _driver(connection).Error) as error:
        raise _translated(connection, error) from None


def _translated(connection: BaseDatabaseWrapper, error: Exception) -> ServiceError:
    where, text = _described(connection), _safe_text(connection, error)
    if isinstance(error, NotSupportedError):
        return ConfigurationError(f"{where}: {text}.")
    if connection.vendor == "sqlite":
        return _translated_sqlite(where, text)
    state = _sqlstate(error)
    if state in {"28P01", "28000"}:
        return AuthenticationFailed(
            f"{where} refused the role or its password: {text}. Check DATABASE_URL.", code=state
        )
    if state == "3D000":
        return ConfigurationError(
            f"{where}: there is no such database. Create it (createdb "
            f"{connection.settings_dict['NAME']}) or correct DATABASE_URL.",
            code=state,
        )
    if isinstance(error, _driver(connection).ProgrammingError) and state is None:
        return ConfigurationError(f"{where} cannot be connected to: {text}. Check DATABASE_URL.")
    return ServiceUnavailable(
        f"{where} cannot be used now: {text}. Check DATABASE_URL.", code=state
    )


def _translated_sqlite(where: str, text: str) -> ServiceError:
    if "locked" in text or "busy" in text:
        return ServiceUnavailable(f"{where} is locked by another process: {text}.")
    return ConfigurationError(
        f"{where} cannot be written: {text}. Its directory must exist, and both must be writable; "
        "check DATABASE_URL."
    )


def _sqlstate(error: BaseException) -> str | None:
    cause = error.__cause__ or error
    state = getattr(cause, "sqlstate", None)
    found = (code for pattern, code in _REFUSALS.items() if re.search(pattern, str(cause)))
    return state or next(found, None)


def _safe_text(connection: BaseDatabaseWrapper, error: Exception) -> str:
    """Return an error's text on one line, without the password and the dot at the end."""
    text = " ".join(str(error).split()).rstrip(".")
    password = str(connection.settings_dict.get("PASSWORD") or "")
    return text.replace(password, "***") if password else text


def _described(connection: BaseDatabaseWrapper) -> str:
    settings = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"Database {connection.alias!r} ({Path(str(settings['NAME']))})"
    host = settings.get("HOST") or "local socket"
    return f"Database {connection.alias!r} ({settings['NAME']} at {host})"


# Arguments ---------------------------------------------------------------------------


def _connection(alias: str) -> BaseDatabaseWrapper:
    try:
        connection = connections[alias]
    except ConnectionDoesNotExist:
        raise ServiceNotConfigured(
            f"DATABASES has no alias {alias!r}. Known aliases: {', '.join(connections)}."
        ) from None
    if connection.vendor not in _PROBES:
        raise ConfigurationError(
            f"Database {alias!r} is {connection.display_name}; "
            "this package works with PostgreSQL and SQLite."
        )
    return connection


def _extension_names(extensions: Sequence[str]) -> Sequence[str]:
    if isinstance(extensions, str):
        raise InvalidInput(f"extensions must be a list of names, such as [{extensions!r}].")
    return extensions


def _duration(timeout: object) -> float:
    is_number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if not is_number or not 0 <= timeout < math.inf:  # type: ignore[operator]
        raise InvalidInput(f"timeout must be seconds, 0 or more, not {timeout!r}.")
    return timeout  # type: ignore[return-value]


# Forks -------------------------------------------------------------------------------

_inherited: list[object] = []


def forget_inherited() -> None:
    """Drop in a forked child the connections that its parent goes on using.

    Answers on a shared socket reach whichever process reads first. They are
    kept, unused: collected, they would be closed, for the parent too.
    """
    backend = sys.modules.get("django.db.backends.postgresql.base")
    if backend is None:
        return
    pools = backend.DatabaseWrapper._connection_pools
    _inherited.append(dict(pools))
    pools.clear()
    for connection in connections.all(initialized_only=True):
        if isinstance(connection, backend.DatabaseWrapper):
            _inherited.append(connection.connection)
            connection.connection = None
