"""The tables of `models`, on a database of each vendor."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from django.db import connections, models
from django.db.backends.sqlite3.base import DatabaseWrapper as SQLiteWrapper

from tests import databases

from .models import Comment, Loose, Peer, Photo


@pytest.fixture(params=["sqlite", "postgres"])
def alias(request: pytest.FixtureRequest) -> str:
    """A database with the tables: the test runs once on each vendor."""
    return str(request.getfixturevalue(request.param))


@pytest.fixture
def sqlite(tmp_path, django_db_blocker) -> Iterator[str]:
    """The alias of a SQLite database with the tables that it can have."""
    entry = {"ENGINE": "django.db.backends.sqlite3", "NAME": tmp_path / "vectors.sqlite3"}
    configured = connections.configure_settings({"default": {}, "sqlite": entry})["sqlite"]
    with (
        django_db_blocker.unblock(),
        contextlib.closing(SQLiteWrapper(configured, "sqlite")) as connection,
        databases.standing_for(connection),
    ):
        _create("sqlite", Photo, Comment, Loose)
        yield "sqlite"


@pytest.fixture
def postgres(postgres_connection) -> Iterator[str]:
    """The alias of a PostgreSQL database with the tables."""
    tables = (Photo, Comment, Loose, Peer)
    with postgres_connection.cursor() as cursor:
        cursor.execute("CREATE EXTENSION IF NOT EXISTS vector")
    _create("postgres", *tables)
    yield "postgres"
    with postgres_connection.schema_editor() as editor:
        for model in reversed(tables):
            editor.delete_model(model)


def _create(alias: str, *tables: type[models.Model]) -> None:
    with connections[alias].schema_editor() as editor:
        for model in tables:
            editor.create_model(model)
