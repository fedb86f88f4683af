"""The servers that the tests start are real, and can be stopped, killed and frozen."""

from __future__ import annotations

import select

import psutil
import psycopg
import pytest
import redis

from .servers import PostgresServer, RedisServer

pytestmark = pytest.mark.slow


def ping(url: str) -> bool:
    with redis.Redis.from_url(url, socket_timeout=0.5) as client:
        return client.ping()


def ask(url: str, statement: str) -> object:
    with psycopg.connect(url, connect_timeout=2) as connection:
        return connection.execute(statement).fetchone()[0]


def test_postgres_url_is_a_database_with_pgvector_at_hand(postgres_url):
    name = ask(postgres_url, "SELECT current_database()")
    pgvector = ask(
        postgres_url, "SELECT default_version FROM pg_available_extensions WHERE name = 'vector'"
    )

    assert name.startswith("test_django_services_")
    assert tuple(map(int, pgvector.split("."))) >= (0, 8, 0)


def test_postgres_connection_is_djangos(postgres_connection):
    with postgres_connection.cursor() as cursor:
        cursor.execute("SELECT %s + 1", [41])
        (answer,) = cursor.fetchone()

    assert postgres_connection.vendor == "postgresql"
    assert answer == 42


def test_redis_url_answers(redis_url):
    assert ping(redis_url)


def test_postgres_keeps_its_data_and_address_over_a_restart(postgres_server):
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS number")

    postgres_server.stop()
    with pytest.raises(psycopg.OperationalError):
        ask(postgres_server.url, "SELECT 1")
    postgres_server.start()

    assert ask(postgres_server.url, "SELECT number FROM kept") == 7


def test_frozen_postgres_answers_no_open_connection_until_thawed(postgres_server):
    with psycopg.connect(postgres_server.url) as connection:
        raw = connection.pgconn
        postgres_server.freeze()
        raw.send_query(b"SELECT 1")
        answered_frozen = bool(select.select([raw.socket], [], [], 0.3)[0])
        postgres_server.thaw()
        answer = raw.get_result().get_value(0, 0)
        raw.get_result()  # None: libpq's end of the answer

    assert not answered_frozen
    assert answer == b"1"


def test_redis_refuses_while_stopped_and_answers_after_start(redis_server):
    redis_server.stop()
    with pytest.raises(redis.ConnectionError):
        ping(redis_server.url)
    redis_server.start()

    assert ping(redis_server.url)


def test_frozen_redis_times_out_and_goes_on_when_thawed(redis_server):
    redis_server.freeze()
    with pytest.raises(redis.TimeoutError):
        ping(redis_server.url)
    redis_server.thaw()

    assert ping(redis_server.url)


@pytest.mark.parametrize("kind", [PostgresServer, RedisServer])
def test_closed_server_leaves_no_process_and_no_file(kind):
    server = kind()
    process = psutil.Process(server.pid)
    processes = [process, *process.children(recursive=True)]
    server.freeze()

    server.close()

    assert not [process for process in processes if process.is_running()]
    assert not server.directory.exists()
