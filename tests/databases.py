"""Databases on a PostgreSQL server, and which database Django has as its default."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

import psycopg
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import load_backend
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

SCHEMES = frozenset({"postgres", "postgresql"})


def is_postgresql(url: str) -> bool:
    return urlsplit(url).scheme in SCHEMES


def entry(url: str) -> dict[str, Any]:
    """Return the entry of DATABASES for a PostgreSQL database."""
    options = conninfo_to_dict(url)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": options["dbname"],
        "USER": options.get("user", ""),
        "PASSWORD": options.get("password", ""),
        "HOST": options.get("host", ""),
        "PORT": options.get("port", ""),
        "URL": url,  # for `address`; Django leaves it alone
    }


def address(connection: BaseDatabaseWrapper) -> str:
    """Return how another process reaches the database: a URL, or a SQLite file's path."""
    return str(connection.settings_dict.get("URL") or connection.settings_dict["NAME"])


@contextlib.contextmanager
def new_database(server: str) -> Iterator[str]:
    """Have an empty database on a server for a while; gives its URL."""
    name = f"test_django_services_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    try:
        yield urlsplit(server)._replace(path=f"/{name}").geturl()
    finally:
        with psycopg.connect(server, autocommit=True) as admin:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def connection_to(url: str, alias: str = DEFAULT_DB_ALIAS) -> BaseDatabaseWrapper:
    """Return a connection of Django's to a PostgreSQL database; opens nothing."""
    databases = connections.configure_settings({DEFAULT_DB_ALIAS: {}, alias: entry(url)})
    backend = load_backend(databases[alias]["ENGINE"])
    connection: BaseDatabaseWrapper = backend.DatabaseWrapper(databases[alias], alias)
    return connection


def empty_by_delete(connection: BaseDatabaseWrapper) -> None:
    """Let the flush after a test delete rows: TRUNCATE takes 5 ms a table, empty or not."""

    def sql_flush(style: Any, tables: Iterable[str], **options: Any) -> list[str]:
        # Triggers write into the package's tables: they come last.
        last = sorted(tables, key=lambda table: table.startswith("django_services_"))
        return [f"DELETE FROM {connection.ops.quote_name(table)}" for table in last]

    connection.ops.sql_flush = sql_flush  # type: ignore[method-assign]


@contextlib.contextmanager
def standing_for(connection: BaseDatabaseWrapper) -> Iterator[BaseDatabaseWrapper]:
    """Give the connection's alias to its database for a while, in new threads too."""
    alias = connection.alias
    usual = connections[alias] if alias in connections.settings else None
    _give(alias, connection)
    try:
        yield connection
    finally:
        _give(alias, usual)


def _give(alias: str, connection: BaseDatabaseWrapper | None) -> None:
    if connection is None:
        del connections[alias]
        del connections.settings[alias]
    else:
        connections.settings[alias] = connection.settings_dict
        connections[alias] = connection
