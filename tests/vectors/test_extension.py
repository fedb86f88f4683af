"""pgvector missing, too old or not permitted: one sentence that says what to ask for."""

from __future__ import annotations

import contextlib

import psycopg
import pytest
from django.db import connection, connections
from django.db.migrations.state import ProjectState
from psycopg import sql

from django_services.exceptions import ConfigurationError
from django_services.vectors.extension import CreateVectorExtension, check
from tests import databases

OLD = "UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'"


@pytest.fixture
def database(_postgres, django_db_blocker):
    """Django's connection ``"fresh"`` to a database of its own, without pgvector."""
    with (
        django_db_blocker.unblock(),
        databases.new_database(_postgres) as url,
        contextlib.closing(databases.connection_to(url, "fresh")) as fresh,
        databases.standing_for(fresh),
    ):
        yield fresh


@pytest.fixture
def plain_role(database):
    """Let the connection be of a role that may use the database and no more."""
    role = f"plain_{database.settings_dict['NAME'][-12:]}"
    name = sql.Identifier(role)
    with psycopg.connect(database.settings_dict["URL"], autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {}").format(name))
        database.settings_dict["OPTIONS"]["assume_role"] = role
        yield admin
        database.close()
        admin.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(name))


def migrate(connection):
    operation = CreateVectorExtension()
    state = ProjectState()
    with connection.schema_editor() as editor:
        operation.database_forwards("django_services", editor, state, state)


def execute(connection, statement):
    with connection.cursor() as cursor:
        cursor.execute(statement)


def version(connection):
    with connection.cursor() as cursor:
        cursor.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
        return cursor.fetchone()


def test_the_migration_brings_pgvector(database):
    migrate(database)
    migrate(database)

    check(database)


def test_a_missing_extension_is_asked_for(database):
    with pytest.raises(ConfigurationError) as caught:
        check(database)

    assert str(caught.value) == (
        f"Database 'fresh' ({database.settings_dict['NAME']}) lacks pgvector; needed is vector 0.8 "
        "or newer: ask the database's administrator to run in it: CREATE EXTENSION vector;"
    )


def test_an_old_extension_is_to_be_updated(database):
    migrate(database)
    execute(database, OLD)

    with pytest.raises(
        ConfigurationError, match=r"vector 0\.7\.4;.*ALTER EXTENSION vector UPDATE;"
    ):
        check(database)


def test_an_old_server_is_to_be_given_a_newer_pgvector(database, monkeypatch):
    monkeypatch.setattr("django_services.vectors.extension.MINIMUM", (99, 0))

    with pytest.raises(ConfigurationError, match=r"to install pgvector 99\.0 or newer on the serv"):
        migrate(database)


def test_a_role_that_may_not_create_it_is_told_what_to_ask_for(database, plain_role):
    with pytest.raises(ConfigurationError, match=r"run in it: CREATE EXTENSION vector;"):
        migrate(database)


def test_a_role_that_may_not_update_it_is_told_what_to_ask_for(database, plain_role):
    plain_role.execute(f"CREATE EXTENSION vector; {OLD}")

    with pytest.raises(ConfigurationError, match=r"run in it: ALTER EXTENSION vector UPDATE;"):
        migrate(database)


def test_a_role_that_finds_it_created_needs_no_rights(database, plain_role):
    plain_role.execute("CREATE EXTENSION vector")

    migrate(database)

    assert version(database)


def test_sqlite_needs_none(db):
    check(connection)
    CreateVectorExtension().database_forwards(
        "django_services", connection.schema_editor(), ProjectState(), ProjectState()
    )


def test_a_database_that_the_router_leaves_out_is_left(database, settings):
    settings.DATABASE_ROUTERS = [Nowhere()]

    migrate(database)

    assert version(database) is None


def test_sqlmigrate_shows_the_statement(database):
    with connections["fresh"].schema_editor(collect_sql=True) as editor:
        CreateVectorExtension().database_forwards("x", editor, ProjectState(), ProjectState())

    assert editor.collected_sql == ['CREATE EXTENSION IF NOT EXISTS "vector";']


def test_it_stays_when_the_migration_is_taken_back(database):
    migrate(database)
    with database.schema_editor() as editor:
        CreateVectorExtension().database_backwards("x", editor, ProjectState(), ProjectState())

    assert version(database)


class Nowhere:
    def allow_migrate(self, *_, **__):
        return False
