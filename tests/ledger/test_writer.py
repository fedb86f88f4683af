"""Rows on their way: off the caller's path, kept through failures, written at the end."""

from __future__ import annotations

import logging
import signal
import threading
from itertools import chain
from types import SimpleNamespace

import pytest

from django_services.ledger import writer as module
from django_services.ledger.storing import row_of
from django_services.ledger.writer import Writer
from django_services.resilience import Backoff

from .calls import PAYLOAD

SOON = 10.0  # seconds, in which a test would rather fail than wait on


class Database:
    """Takes rows as the ledger's does: or not, or not yet."""

    def __init__(self) -> None:
        self.stored: list[str] = []
        self.batches: list[int] = []
        self.threads: set[str] = set()
        self.errors: list[Exception] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.has_stored = threading.Event()

    def __call__(self, rows) -> None:
        assert self.may_answer.wait(SOON)
        self.threads.add(threading.current_thread().name)
        self.batches.append(len(rows))
        if self.errors:
            raise self.errors.pop(0)
        self.stored += [row.payload["model"] for row in rows]
        self.has_stored.set()


@pytest.fixture
def database():
    database = Database()
    yield database
    database.may_answer.set()


@pytest.fixture
def writer(database):
    writer = Writer(database)
    writer._handles_term = True  # the tests' process keeps its own way to end
    return writer


@pytest.fixture
def quick(settings, monkeypatch):
    """Let the writer wait for next to nothing."""
    settings.DJANGO_SERVICES = {"LEDGER": {"FLUSH_SECONDS": 0.01}}
    monkeypatch.setattr(module, "BACKOFF", Backoff(attempts=100, first=0.01, longest=0.01))


def put(writer, *names, **options):
    for name in names:
        writer.put(row_of(PAYLOAD | {"model": name}), **options)


def test_rows_are_written_together_by_another_thread(writer, database):
    put(writer, *"abc")

    assert writer.flush()
    assert database.stored == ["a", "b", "c"]
    assert len(database.batches) == 1
    assert threading.current_thread().name not in database.threads


@pytest.mark.usefixtures("quick")
def test_rows_are_written_without_being_asked_for(writer, database):
    put(writer, "a")
    assert database.has_stored.wait(SOON)
    database.has_stored.clear()

    put(writer, "b")

    assert database.has_stored.wait(SOON)
    assert database.stored == ["a", "b"]


def test_flush_waits_no_longer_than_it_is_told(writer, database):
    database.may_answer.clear()
    put(writer, "a")

    assert not writer.flush(0.02)


def test_nothing_to_flush_starts_no_thread(writer):
    assert writer.flush(0)
    assert writer._thread is None


def test_rows_that_could_not_be_written_are_kept_in_their_order(writer, database):
    database.errors = [OSError(), OSError()]
    put(writer, "a")

    assert not writer.flush()
    put(writer, "b")
    assert not writer.flush()
    assert writer.flush()
    assert database.stored == ["a", "b"]


@pytest.mark.usefixtures("quick")
def test_rows_that_could_not_be_written_are_tried_again(writer, database):
    database.errors = [OSError() for _ in range(3)]

    put(writer, "a")

    assert database.has_stored.wait(SOON)
    assert database.batches == [1, 1, 1, 1]


def test_a_database_that_is_away_is_told_once_and_without_its_message(writer, database, caplog):
    database.errors = [OSError("password=swordfish") for _ in range(3)]
    put(writer, "a")
    for _ in range(3):
        writer.flush()

    (told,) = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert "OSError" in told.getMessage()
    assert "swordfish" not in told.getMessage()


def test_rows_beyond_the_bound_are_lost_and_counted(writer, database, monkeypatch, caplog):
    monkeypatch.setattr(module, "MOST_ROWS", 2)
    database.may_answer.clear()
    put(writer, *"abcd")
    database.may_answer.set()

    assert writer.flush()
    assert database.stored == ["a", "b"]
    assert "lost 2 rows" in caplog.text


def test_rows_of_many_threads_are_all_written(writer, database):
    names = [[f"{thread}-{number}" for number in range(100)] for thread in range(8)]
    threads = [threading.Thread(target=put, args=(writer, *each)) for each in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert writer.flush()
    assert sorted(database.stored) == sorted(chain(*names))


@pytest.mark.usefixtures("quick")
def test_who_asks_does_not_wait_for_an_open_transaction(writer, database):
    put(writer, "a", after=SimpleNamespace(in_atomic_block=True))

    assert writer.flush()
    assert database.stored == ["a"]


def test_a_process_that_ends_and_gives_no_thread_writes_itself(writer, database, monkeypatch):
    def refuse(self) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    put(writer, "a")

    assert writer.flush()
    assert database.stored == ["a"]


def test_a_fork_leaves_the_rows_to_the_parent(writer, database):
    put(writer, "a")

    writer.forget()  # as a forked child does

    assert writer.flush()
    assert database.stored == []


# SIGTERM


@pytest.fixture
def sigterm():
    """Set what SIGTERM does, for the test."""
    before = signal.getsignal(signal.SIGTERM)
    yield lambda handler: signal.signal(signal.SIGTERM, handler)
    signal.signal(signal.SIGTERM, before)


def test_a_projects_own_handler_of_sigterm_stays(database, sigterm):
    def own(*_: object) -> None:
        """Of the project."""

    sigterm(own)

    put(Writer(database), "a")

    assert signal.getsignal(signal.SIGTERM) is own


def test_the_main_thread_sees_to_sigterm_whoever_was_first(database, sigterm):
    sigterm(signal.SIG_DFL)
    writer = Writer(database)
    thread = threading.Thread(target=put, args=(writer, "a"))
    thread.start()
    thread.join()
    at_first = signal.getsignal(signal.SIGTERM)

    put(writer, "b")

    assert at_first is signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == writer._end
