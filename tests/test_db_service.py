"""django_services.db_service against real databases."""

from __future__ import annotations

import gc
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import psycopg
import pytest
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.views.debug import ExceptionReporter

from django_services import db_service
from django_services.db_service import init_db
from django_services.env import Env
from django_services.exceptions import (
    AuthenticationFailed,
    ConfigurationError,
    InvalidInput,
    ServiceNotConfigured,
    ServiceUnavailable,
)

CANARY = "canary-7f3a"
SETTINGS = """
    from django_services.env import Env
    DATABASES = {"default": Env().database()}
"""


@pytest.fixture
def add_database(
    django_db_blocker, monkeypatch, tmp_path
) -> Iterator[Callable[[str], BaseDatabaseWrapper]]:
    """Add an alias, "extra", to Django's connections by a URL, as a project does."""

    def add(url: str) -> BaseDatabaseWrapper:
        monkeypatch.setenv("EXTRA_URL", url)
        setting = Env(tmp_path).database("EXTRA_URL")
        connections.settings["extra"] = connections.configure_settings(
            {"default": {}, "extra": setting}
        )["extra"]
        return connections["extra"]

    with django_db_blocker.unblock():
        yield add
        if "extra" in connections.settings:
            db_service.close("extra")
            del connections["extra"]
            del connections.settings["extra"]


@pytest.fixture
def postgres(add_database, postgres_url) -> BaseDatabaseWrapper:
    return add_database(postgres_url)


@pytest.fixture
def own_database(postgres_server) -> Iterator[str]:
    """The URL of a database on a server that the test may stop and configure."""
    with psycopg.connect(postgres_server.url, autocommit=True) as admin:
        admin.execute("DROP DATABASE IF EXISTS doors WITH (FORCE)")
        admin.execute("CREATE DATABASE doors")
    return urlsplit(postgres_server.url)._replace(path="/doors").geturl()


def of_role(url: str, role: str, password: str = "") -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{role}:{password}@").geturl()


@pytest.fixture
def role(own_database, postgres_server) -> Iterator[str]:
    """A role without rights, asked for its password: "right"."""
    rules = postgres_server.directory / "data" / "pg_hba.conf"
    before = rules.read_text()
    with psycopg.connect(own_database, autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS visitor")
        admin.execute("CREATE ROLE visitor LOGIN PASSWORD 'right'")
        rules.write_text(f"local all visitor scram-sha-256\n{before}")
        admin.execute("SELECT pg_reload_conf()")
        yield "visitor"
        rules.write_text(before)
        admin.execute("SELECT pg_reload_conf()")


# init_db on PostgreSQL ---------------------------------------------------------------


def test_postgresql_is_verified_and_prepared(add_database, own_database):
    connection = add_database(own_database)

    report = init_db("extra")

    assert (report.alias, report.vendor, report.migrated) == ("extra", "postgresql", False)
    assert int(report.version.split(".")[0]) >= 15
    assert report.extensions["vector"] >= "0.8"
    with connection.cursor() as cursor:
        cursor.execute("SELECT '[1,2]'::halfvec <=> '[1,2]'::halfvec")
        assert cursor.fetchone() == (0.0,)


def test_a_second_time_changes_nothing(postgres):
    assert init_db("extra").extensions == init_db("extra").extensions


def test_processes_that_start_together_all_succeed(add_database, own_database):
    add_database(own_database)
    reports: list[object] = []

    def prepare() -> None:
        reports.append(init_db("extra"))
        connections["extra"].close()

    threads = [threading.Thread(target=prepare) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(reports) == 4


def test_an_extension_that_is_too_old_is_updated(add_database, own_database, monkeypatch):
    with psycopg.connect(own_database, autocommit=True) as admin:
        admin.execute("CREATE EXTENSION vector")
        # The server has the scripts of the newest version only; from the one before
        # it an update changes nothing.
        admin.execute("UPDATE pg_extension SET extversion = '0.8.5' WHERE extname = 'vector'")
    monkeypatch.setitem(db_service.MINIMUM_EXTENSIONS, "vector", (0, 8, 6))
    add_database(own_database)

    assert init_db("extra").extensions["vector"] >= "0.8.6"


def test_an_extension_too_old_for_good_is_an_error(postgres, monkeypatch):
    monkeypatch.setitem(db_service.MINIMUM_EXTENSIONS, "vector", (99, 0))

    with pytest.raises(ConfigurationError, match=r"needed is 99\.0.*ALTER EXTENSION vector UPDATE"):
        init_db("extra")


def test_an_extension_that_the_server_lacks_is_told(postgres):
    with pytest.raises(ConfigurationError, match="does not have the extension nonesuch"):
        init_db("extra", extensions=["nonesuch"])


def test_a_role_that_may_not_create_the_extension_is_told_what_to_ask(
    add_database, own_database, role, monkeypatch
):
    # vector is a trusted extension, which any role with CREATE may create.
    add_database(of_role(own_database, role, "right"))

    with pytest.raises(
        ConfigurationError, match="Ask the database's owner to run: CREATE EXTENSION"
    ):
        init_db("extra")


def test_no_extension_may_be_wanted(add_database, own_database):
    add_database(own_database)

    assert init_db("extra", extensions=[]).extensions == {}


def test_a_server_too_old_is_told(postgres, monkeypatch):
    monkeypatch.setattr(db_service, "MINIMUM_POSTGRESQL", 99)

    with pytest.raises(ConfigurationError, match="needed is 99 or newer"):
        init_db("extra")


def test_a_refused_password_is_not_waited_for(add_database, own_database, role, rf):
    add_database(of_role(own_database, role, CANARY))

    with pytest.raises(AuthenticationFailed, match="DATABASE_URL") as caught:
        init_db("extra", timeout=600)

    assert caught.value.code == "28P01"
    reporter = ExceptionReporter(rf.get("/"), caught.type, caught.value, caught.value.__traceback__)
    assert CANARY not in str(caught.value) + reporter.get_traceback_html()


def test_an_unknown_role_is_not_waited_for(add_database, own_database):
    add_database(of_role(own_database, "nobody_at_all"))

    with pytest.raises(AuthenticationFailed, match="nobody_at_all"):
        init_db("extra", timeout=600)


def test_a_missing_database_is_not_waited_for(add_database, postgres_url):
    add_database(urlsplit(postgres_url)._replace(path="/nonesuch").geturl())

    with pytest.raises(ConfigurationError, match=r"createdb nonesuch"):
        init_db("extra", timeout=600)


def test_a_server_that_comes_up_is_waited_for(add_database, own_database, postgres_server):
    add_database(own_database)
    postgres_server.stop()
    starter = threading.Timer(0.5, postgres_server.start)
    starter.start()

    report = init_db("extra", timeout=30)
    starter.join()

    assert report.waited > 0.3


@pytest.mark.parametrize("timeout", [0, 0.3])
def test_a_server_that_stays_away_is_unavailable(
    add_database, own_database, postgres_server, timeout
):
    add_database(own_database)
    postgres_server.stop()

    with pytest.raises(ServiceUnavailable, match="DATABASE_URL"):
        init_db("extra", timeout=timeout)


def test_a_wrong_option_is_not_waited_for(add_database, postgres_url):
    add_database(f"{postgres_url}&sslmode=verify-full&sslrootcert=/nonesuch&gssencmode=disable")
    connections["extra"].settings_dict["OPTIONS"]["sslmode"] = "sometimes"

    with pytest.raises((ConfigurationError, ServiceUnavailable), match="sslmode"):
        init_db("extra", timeout=0)


def test_migrations_run_under_a_lock_that_is_given_back(project, own_database):
    project.configure(SETTINGS)

    result = project.python(
        "from django_services import init_db; print(init_db(migrate=True).migrated)",
        env={"DATABASE_URL": own_database},
    )

    assert result.stdout.strip() == "True"
    with psycopg.connect(own_database) as other:
        assert other.execute("SELECT count(*) FROM django_migrations").fetchone()[0] > 0
        assert other.execute("SELECT pg_try_advisory_lock(%s)", [db_service.LOCK]).fetchone()[0]


def test_another_that_migrates_is_waited_for_until_the_timeout(add_database, own_database):
    add_database(own_database)
    init_db("extra")

    with psycopg.connect(own_database) as other:
        other.execute("SELECT pg_advisory_lock(%s)", [db_service.LOCK])
        with pytest.raises(ServiceUnavailable, match="still migrating"):
            init_db("extra", migrate=True, timeout=0.5)


# Django drops a connection on which init_command failed without closing it.
LEAKS = pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")

# init_db on SQLite -------------------------------------------------------------------


def test_sqlite_is_verified(add_database, tmp_path):
    add_database("sqlite:///fresh.db")

    report = init_db("extra")

    assert (report.vendor, report.extensions) == ("sqlite", {})
    assert report.version.startswith("3.")
    with sqlite3.connect(tmp_path / "fresh.db") as file:
        assert file.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    file.close()


def test_sqlite_is_migrated(project):
    project.python("from django_services import init_db; init_db(migrate=True)")

    assert project.query("SELECT count(*) FROM django_migrations") > [(0,)]


def test_a_missing_directory_is_told(add_database):
    add_database("sqlite:///nowhere/fresh.db")

    with pytest.raises(ConfigurationError, match=r"nowhere/fresh\.db.*directory must exist"):
        init_db("extra", timeout=600)


@LEAKS
def test_a_file_that_is_no_database_is_told(add_database, tmp_path):
    (tmp_path / "text.db").write_text("not a database, but long enough to look like one" * 30)
    add_database("sqlite:///text.db")

    with pytest.raises(ConfigurationError, match="not a database"):
        init_db("extra", timeout=600)
    gc.collect()


@LEAKS
def test_a_file_that_is_read_only_is_told(add_database, tmp_path):
    sqlite3.connect(tmp_path / "kept.db").close()
    connection = add_database("sqlite:///kept.db")
    connection.settings_dict["OPTIONS"]["init_command"] = "PRAGMA query_only=ON"

    # query_only stands in for the file's mode, which does not bind root.
    with pytest.raises(ConfigurationError, match="cannot be written"):
        init_db("extra", timeout=600)
    gc.collect()


def test_a_locked_file_is_waited_for(add_database, tmp_path):
    add_database("sqlite:///busy.db?timeout=0.05")
    init_db("extra")
    holder = sqlite3.connect(tmp_path / "busy.db", isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(ServiceUnavailable, match="locked"):
        init_db("extra", timeout=0.2)
    release = threading.Timer(0.3, lambda: holder.execute("ROLLBACK"))
    release.start()

    report = init_db("extra", timeout=30)
    release.join()
    holder.close()

    assert report.waited > 0.1


@pytest.mark.django_db
def test_inside_a_transaction_nothing_is_ended(django_db_blocker):
    init_db()

    assert transaction.get_connection().in_atomic_block


# Arguments ---------------------------------------------------------------------------


def test_an_unknown_alias_names_the_known():
    with pytest.raises(ServiceNotConfigured, match=r"no alias 'other'.*default"):
        init_db("other")


@pytest.mark.parametrize("timeout", [-1, "5", None, True, float("inf"), float("nan")])
def test_a_timeout_is_seconds(timeout):
    with pytest.raises(InvalidInput, match="timeout must be seconds"):
        init_db(timeout=timeout)


def test_one_extension_is_a_list_too():
    with pytest.raises(InvalidInput, match=r"\['vector'\]"):
        init_db(extensions="vector")


# ping and close ----------------------------------------------------------------------


@pytest.mark.parametrize("options", ["", "&pool=false"])
def test_ping_survives_a_restart(add_database, own_database, postgres_server, options):
    add_database(own_database + options)
    db_service.ping("extra")

    postgres_server.stop()
    with pytest.raises(ServiceUnavailable):
        db_service.ping("extra")
    postgres_server.start()

    db_service.ping("extra")


def test_ping_tells_why_a_pool_has_no_connection(add_database, own_database, role):
    add_database(f"{of_role(own_database, role, CANARY)}&pool_timeout=0.5")

    with pytest.raises(AuthenticationFailed) as caught:
        db_service.ping("extra")

    assert CANARY not in str(caught.value)


def test_ping_tells_of_an_exhausted_pool(add_database, postgres_url):
    add_database(f"{postgres_url}&pool_max_size=1&pool_timeout=0.2")
    db_service.ping("extra")
    errors = []

    def ask() -> None:
        try:
            db_service.ping("extra")
        except ServiceUnavailable as error:
            errors.append(str(error))
        finally:
            connections["extra"].close()

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()

    assert "couldn't get a connection" in errors[0]


def test_close_ends_connections_and_pool(add_database, postgres_url):
    connection = add_database(f"{postgres_url}&application_name=to_be_closed")
    db_service.ping("extra")

    db_service.close("extra")

    assert connection.connection is None
    assert "extra" not in connection._connection_pools
    held = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'to_be_closed'"
    with psycopg.connect(postgres_url, autocommit=True) as other:
        # The server ends a session a moment after its client has gone.
        assert eventually(lambda: other.execute(held).fetchone() == (0,))


def eventually(claim: Callable[[], bool], within: float = 5.0) -> bool:
    """Tell whether a claim comes true within some seconds."""
    deadline = time.monotonic() + within
    while not claim() and time.monotonic() < deadline:
        time.sleep(0.01)
    return claim()


# Forks -------------------------------------------------------------------------------

FORKED = """
    import os
    from django.db import connection

    def identity():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            return cursor.fetchone()[0]

    mine = identity()
    children = []
    for number in range(4):
        child = os.fork()
        if not child:
            wrong = identity() == mine
            for turn in range(1_000):
                with connection.cursor() as cursor:
                    cursor.execute("SELECT %s, %s", [number, turn])
                    wrong |= cursor.fetchone() != (number, turn)
            os._exit(wrong)
        children.append(child)
    wrong = 0
    for turn in range(1_000):
        with connection.cursor() as cursor:
            cursor.execute("SELECT %s", [turn])
            wrong |= cursor.fetchone() != (turn,)
    print([os.waitpid(child, 0)[1] for child in children], wrong, identity() == mine)
"""


@pytest.mark.parametrize("options", ["pool=true", "pool=false"])
def test_forked_children_use_connections_of_their_own(project, postgres_url, options):
    separator = "&" if "?" in postgres_url else "?"
    project.configure(SETTINGS)

    result = project.python(
        FORKED,
        env={
            "DATABASE_URL": f"{postgres_url}{separator}{options}",
            "PYTHONWARNINGS": "ignore",  # of forking beside the pool's threads, which is the test
        },
    )

    assert result.stdout.split("\n")[0] == "[0, 0, 0, 0] 0 True"
    assert result.stderr == ""


def test_a_process_with_a_pool_ends_quietly(project, postgres_url):
    project.configure(SETTINGS)

    result = project.python(
        "from django_services import db_service; db_service.ping()",
        env={"DATABASE_URL": postgres_url},
    )

    assert (result.stdout, result.stderr) == ("", "")


def test_the_private_names_that_a_fork_relies_on_are_there():
    from django.db.backends.postgresql.base import DatabaseWrapper

    assert isinstance(DatabaseWrapper._connection_pools, dict)


def test_importing_loads_no_driver(run_python):
    result = run_python("import sys, django_services.db_service; print('psycopg' in sys.modules)")

    assert result.stdout.strip() == "False"
