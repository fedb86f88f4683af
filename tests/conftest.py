"""Fixtures for all tests: real servers, other processes, whole projects.

Servers start when a test first asks for one, once for a run.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import psycopg
import pytest
from django.db import connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import sql

from .fake_openai import fake_openai  # noqa: F401  # a fixture
from .processes import ROOT, Project, PythonRunner
from .servers import PostgresServer, RedisServer, Server

S = TypeVar("S", bound=Server)


@pytest.fixture(scope="session")
def _own_postgres() -> Iterator[PostgresServer]:
    yield from _serving(PostgresServer())


@pytest.fixture(scope="session")
def _own_redis() -> Iterator[RedisServer]:
    yield from _serving(RedisServer())


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
def postgres_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty database, pgvector available: on DATABASE_URL's server or our own."""
    given = os.environ.get("DATABASE_URL", "")
    is_postgres = urlsplit(given).scheme in {"postgres", "postgresql"}
    server = given if is_postgres else request.getfixturevalue("_own_postgres").url
    name = f"test_django_services_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    yield urlsplit(server)._replace(path=f"/{name}").geturl()
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def redis_url(request: pytest.FixtureRequest) -> str:
    """The URL of a Redis that is not to be stopped nor flushed: REDIS_URL, or our own."""
    return os.environ.get("REDIS_URL") or request.getfixturevalue("_own_redis").url


@pytest.fixture
def postgres_connection(postgres_url: str, django_db_blocker) -> Iterator[BaseDatabaseWrapper]:
    """Django's connection ``"postgres"`` to `postgres_url`, outside of any transaction."""
    options = psycopg.conninfo.conninfo_to_dict(postgres_url)
    connections.settings["postgres"] = connections.configure_settings(
        {
            "default": {},
            "postgres": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": options["dbname"],
                "USER": options.get("user", ""),
                "PASSWORD": options.get("password", ""),
                "HOST": options.get("host", ""),
                "PORT": options.get("port", ""),
            },
        }
    )["postgres"]
    with django_db_blocker.unblock():
        yield connections["postgres"]
        connections["postgres"].close()
    del connections["postgres"]
    del connections.settings["postgres"]


@pytest.fixture
def run_python() -> Iterator[PythonRunner]:
    """Run code in another process with the tests' settings and database file.

    Rows reach it when they are committed: ask for ``transactional_db`` too.
    """
    runner = PythonRunner(
        ROOT,
        {
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "DJANGO_SERVICES_TEST_DATABASE": str(connection.settings_dict["NAME"]),
        },
    )
    yield runner
    runner.close()


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A fresh Django project, for what a migration or a whole process does."""
    project = Project(tmp_path)
    yield project
    project.close()


def _serving(server: S) -> Iterator[S]:
    yield server
    server.close()
