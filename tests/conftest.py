"""Fixtures for all tests: real servers, other processes, whole projects.

Servers start when a test first asks for one, once for a run.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from django.contrib.contenttypes.models import ContentType
from django.core.management import call_command
from django.db import connection
from django.db.backends.base.base import BaseDatabaseWrapper

from django_services.db_service import init_db
from django_services.ledger import recording
from django_services.openai_transport import embedding_cache

from . import databases
from .batches.fake_batches import fake_batches  # noqa: F401  # a fixture
from .fake_openai import fake_openai  # noqa: F401  # a fixture
from .processes import ROOT, Project, PythonRunner
from .servers import PostgresServer, RedisServer

C = TypeVar("C", Project, PythonRunner, PostgresServer, RedisServer)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return how many processes share the tests: all CPUs' for the whole suite, else 0.

    A part that is named starts sooner in this process and shows what it prints, and
    benchmarks need the machine for themselves.
    """
    is_whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    may_measure = "not benchmark" not in config.option.markexpr
    return (os.cpu_count() or 1) if is_whole and not may_measure else 0


@pytest.fixture(autouse=True)
def _unknown_embeddings() -> None:
    """Let no test be answered from what another one asked for."""
    embedding_cache.forget()


@pytest.fixture(autouse=True)
def _no_ledger_without_a_database(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let a test that asked for no database leave no row there for others to find."""
    has_database = request.node.get_closest_marker("django_db") is not None
    if not has_database and not {"db", "transactional_db"} & set(request.fixturenames):
        monkeypatch.setattr(recording, "store", lambda rows, attempts: None)


@pytest.fixture(scope="session")
def django_db_modify_db_settings_xdist_suffix() -> None:
    """Nothing: the settings name a file for each process, which its children find too."""


@pytest.fixture(scope="session")
def _own_postgres() -> Iterator[PostgresServer]:
    yield from _closing(PostgresServer())


@pytest.fixture(scope="session")
def _own_redis() -> Iterator[RedisServer]:
    yield from _closing(RedisServer())


@pytest.fixture
def postgres_server(_own_postgres: PostgresServer) -> Iterator[PostgresServer]:
    """A PostgreSQL server that the test may stop, kill and freeze."""
    yield _own_postgres
    _own_postgres.restore()


@pytest.fixture
def redis_server(_own_redis: RedisServer) -> Iterator[RedisServer]:
    """A Redis server that the test may stop, kill and freeze; data are the test's to remove."""
    yield _own_redis
    _own_redis.restore()


@pytest.fixture(scope="session")
def _postgres(request: pytest.FixtureRequest) -> str:
    """The URL of a server that is not to be stopped: DATABASE_URL's, or our own."""
    given = os.environ.get("DATABASE_URL", "")
    if databases.is_postgresql(given):
        return given
    return str(request.getfixturevalue("_own_postgres").url)


@pytest.fixture(scope="session")
def postgres_url(_postgres: str) -> Iterator[str]:
    """The URL of an empty database, pgvector available: on DATABASE_URL's server or our own."""
    with databases.new_database(_postgres) as url:
        yield url


@pytest.fixture(scope="session")
def redis_url(request: pytest.FixtureRequest) -> str:
    """The URL of a Redis that is not to be stopped nor flushed: REDIS_URL, or our own."""
    return os.environ.get("REDIS_URL") or request.getfixturevalue("_own_redis").url


@pytest.fixture
def postgres_connection(postgres_url: str, django_db_blocker) -> Iterator[BaseDatabaseWrapper]:
    """Django's connection ``"postgres"`` to `postgres_url`, outside of any transaction."""
    postgres = databases.connection_to(postgres_url, "postgres")
    with (
        django_db_blocker.unblock(),
        contextlib.closing(postgres),
        databases.standing_for(postgres),
    ):
        yield postgres


@pytest.fixture(scope="session")
def _postgres_default(
    _postgres: str, django_db_setup: None, django_db_blocker
) -> Iterator[BaseDatabaseWrapper]:
    """A connection that can stand for ``"default"``: a PostgreSQL database with all tables."""
    with (
        django_db_blocker.unblock(),
        databases.new_database(_postgres) as url,
        contextlib.closing(databases.connection_to(url)) as postgres,
    ):
        with databases.standing_for(postgres):
            init_db()  # the extension first: tables of apps without migrations come before ours
            call_command("migrate", run_syncdb=True, interactive=False, verbosity=0)
        databases.empty_by_delete(postgres)
        yield postgres


# Of a wider scope than pytest-django's own fixtures, so that those find the database.
@pytest.fixture(scope="class", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Iterator[str]:
    """The vendor of the default database: the test runs once on each.

    For what must be the same on both: ``pytest.mark.usefixtures("database")``.
    """
    if request.param == "sqlite":
        yield "sqlite"
        return
    postgres = request.getfixturevalue("_postgres_default")
    with databases.standing_for(postgres):
        ContentType.objects.clear_cache()
        yield request.param
    ContentType.objects.clear_cache()
    postgres.close()  # the next test may stop the server


@pytest.fixture
def run_python() -> Iterator[PythonRunner]:
    """Run code in another process with the tests' settings and database.

    Rows reach it when they are committed: ask for ``transactional_db`` too.
    """
    variables = {
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "DJANGO_SERVICES_TEST_DATABASE": databases.address(connection),
    }
    yield from _closing(PythonRunner(ROOT, variables))


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Project]:
    """A fresh Django project, for what a migration or a whole process does.

    It has a database of its own, of the vendor that `database` says.
    """
    if connection.vendor == "sqlite":
        yield from _closing(Project(tmp_path))
        return
    with databases.new_database(request.getfixturevalue("_postgres")) as url:
        yield from _closing(Project(tmp_path, databases.entry(url)))


def _closing(opened: C) -> Iterator[C]:
    yield opened
    opened.close()
