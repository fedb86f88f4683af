"""Whole processes: what became of their rows when they ended, and who wrote them."""

from __future__ import annotations

import signal
from textwrap import dedent

import pytest

from django_services.models import Usage

pytestmark = pytest.mark.django_db(transaction=True)

both = pytest.mark.usefixtures("database")
SQLITE, POSTGRESQL = "sqlite", "postgresql"


def first(vendor: str, other: str) -> pytest.MarkDecorator:
    """Run the test on one database, and on the other in the long form of the suite."""
    vendors = [vendor, pytest.param(other, marks=pytest.mark.fault)]
    return pytest.mark.parametrize("database", vendors, indirect=True)


#: A minute between two writes: what is stored was written at the end.
RARELY = """
    import os, signal, sys, time
    from django.test.utils import override_settings
    from django_services import ledger
    from tests.ledger.calls import end_call
    override_settings(DJANGO_SERVICES={"LEDGER": {"FLUSH_SECONDS": 60}}).enable()
"""


def code(text: str) -> str:
    return dedent(RARELY) + dedent(text)


def models() -> list[str]:
    return sorted(Usage.objects.values_list("model", flat=True))


@both
def test_a_process_that_ends_writes_its_rows(run_python):
    result = run_python(
        code("""
        end_call(model="last")
    """)
    )

    assert models() == ["last"]
    assert result.stderr == ""


@first(SQLITE, POSTGRESQL)
def test_sigterm_loses_no_row_and_ends_the_process_as_ever(database, run_python):
    process = run_python.start(
        code("""
        end_call(model="last")
        print("recorded", flush=True)
        time.sleep(60)
    """)
    )
    process.stdout.readline()

    process.send_signal(signal.SIGTERM)

    assert process.wait(30) == -signal.SIGTERM
    assert models() == ["last"]


def test_sigterm_ends_a_process_whose_database_hangs(run_python):
    process = run_python.start(
        code("""
        from django.db import connection
        from django_services.ledger import writer
        writer.TERM_SECONDS = 0.1
        cursor = connection.cursor()
        cursor.execute("BEGIN IMMEDIATE")  # past Django: nobody knows of it
        end_call(model="last")
        print("recorded", flush=True)
        time.sleep(60)
    """)
    )
    process.stdout.readline()

    process.send_signal(signal.SIGTERM)

    assert process.wait(10) == -signal.SIGTERM


def test_sigkill_loses_what_was_not_due(run_python):
    process = run_python.start(
        code("""
        end_call(model="stored")
        ledger.flush()
        end_call(model="lost")
        print("recorded", flush=True)
        time.sleep(60)
    """)
    )
    process.stdout.readline()

    process.kill()
    process.wait(30)

    assert models() == ["stored"]


@first(POSTGRESQL, SQLITE)
def test_forked_children_write_their_own_rows_once(database, run_python):
    result = run_python(
        code("""
        end_call(model="first")
        ledger.flush()  # there is a thread and a connection now
        end_call(model="parent")
        children = []
        for number in range(3):
            child = os.fork()
            if not child:
                end_call(model=f"child {number}")
                sys.exit()
            children.append(child)
        print([os.waitpid(child, 0)[1] for child in children])
        end_call(model="parent again")
    """)
    )

    assert models() == ["child 0", "child 1", "child 2", "first", "parent", "parent again"]
    assert "[0, 0, 0]" in result.stdout
    # Python 3.12 says that a process with threads forks.
    assert not [line for line in result.stderr.splitlines() if "Deprecat" not in line
                and "os.fork()" not in line]  # fmt: skip


def test_a_process_of_multiprocessing_writes_its_rows(run_python):
    run_python(
        code("""
        import multiprocessing
        end_call(model="parent")
        process = multiprocessing.get_context("fork").Process(
            target=end_call, kwargs={"model": "child"}
        )
        process.start()
        process.join()
    """)
    )

    assert models() == ["child", "parent"]
