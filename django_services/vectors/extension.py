"""pgvector in a PostgreSQL database: whether it is there, and the migration that brings it."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from django.contrib.postgres.operations import CreateExtension
from django.db import DatabaseError, router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

from ..db_service import MINIMUM_EXTENSIONS
from ..exceptions import ConfigurationError

NAME = "vector"
MINIMUM = MINIMUM_EXTENSIONS[NAME]

#: SQLSTATE of what a database's owner or the server's administrator must do.
_DENIED = {
    "42501",  # the role may not
    "0A000",  # the server has no such extension
    "58P01",  # as above, before PostgreSQL 15
    "22023",  # no way to update to the version
}


def check(connection: BaseDatabaseWrapper) -> None:
    """Return if the database can store and search vectors: one query, none on SQLite.

    Raises:
        ConfigurationError: pgvector is missing or older than 0.8; says what to
            ask the database's administrator for.
    """
    if connection.vendor == "postgresql" and (problem := _problem(connection)):
        raise ConfigurationError(problem)


class CreateVectorExtension(CreateExtension):
    """Create or update pgvector on PostgreSQL, nothing elsewhere; never taken back.

    Other tables of the database may hold vectors too.

    Raises:
        ConfigurationError: The role may not, or the server does not have it; says
            what to ask the database's administrator for.
    """

    def __init__(self) -> None:
        super().__init__(NAME)

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: Any,
        to_state: Any,
    ) -> None:
        """Create the extension, or update one that is too old."""
        connection = schema_editor.connection
        is_sql_only = getattr(schema_editor, "collect_sql", False)
        is_wanted = router.allow_migrate(connection.alias, app_label)
        if connection.vendor != "postgresql" or is_sql_only or not is_wanted:
            super().database_forwards(app_label, schema_editor, from_state, to_state)
            return
        problem = _problem(connection)
        try:
            super().database_forwards(app_label, schema_editor, from_state, to_state)
            if problem and _found(connection).installed:
                schema_editor.execute(f"ALTER EXTENSION {NAME} UPDATE")
        except DatabaseError as error:
            if problem and getattr(error.__cause__, "sqlstate", None) in _DENIED:
                raise ConfigurationError(problem) from None
            raise
        check(connection)

    def database_backwards(self, *_: Any) -> None:
        """Leave the extension to those who may still use it."""


class _Found(NamedTuple):
    installed: str | None  # in this database
    available: str | None  # on the server


def _problem(connection: BaseDatabaseWrapper) -> str:
    """Return in one sentence what is missing and what to ask for; empty if nothing is."""
    found = _found(connection)
    where = f"Database {connection.alias!r} ({connection.settings_dict['NAME']})"
    needed = ".".join(map(str, MINIMUM))
    if found.installed is not None and _parsed(found.installed) >= MINIMUM:
        return ""
    has = f"has the extension {NAME} {found.installed}" if found.installed else "lacks pgvector"
    sql = f"ALTER EXTENSION {NAME} UPDATE;" if found.installed else f"CREATE EXTENSION {NAME};"
    install = f"install pgvector {needed} or newer on the server, then to run"
    is_old_server = found.available is None or _parsed(found.available) < MINIMUM
    return (
        f"{where} {has}; needed is {NAME} {needed} or newer: ask the database's administrator "
        f"to {install if is_old_server else 'run'} in it: {sql}"
    )


def _found(connection: BaseDatabaseWrapper) -> _Found:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT (SELECT extversion FROM pg_extension WHERE extname = %s),"
            " (SELECT default_version FROM pg_available_extensions WHERE name = %s)",
            [NAME, NAME],
        )
        return _Found(*cursor.fetchone())


def _parsed(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))
