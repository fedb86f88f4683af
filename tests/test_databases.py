"""The tests' own databases: a test that asks for `database` runs on each."""

from __future__ import annotations

import threading

import pytest
from django.db import connection, connections

from tests.testapp.models import Plain

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("database"),
    pytest.mark.slow,
]


def test_the_default_database_is_the_one_asked_for(database):
    assert connection.vendor == database
    assert connections.settings["default"] is connection.settings_dict


def test_a_new_thread_meets_the_same_rows():
    Plain.objects.create(name="lamp")
    found: list[str] = []

    def read() -> None:
        found.extend(Plain.objects.values_list("name", flat=True))
        connection.close()

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()

    assert found == ["lamp"]


def test_another_process_meets_the_same_rows(run_python):
    Plain.objects.create(name="lamp")

    result = run_python("""
        from django.db import connection
        from tests.testapp.models import Plain
        print(connection.vendor, *Plain.objects.values_list("name", flat=True))
    """)

    assert result.stdout.split() == [connection.vendor, "lamp"]


@pytest.mark.parametrize("number", [1, 2])
def test_a_test_finds_none_of_anothers_rows(number):
    assert not Plain.objects.exists()

    Plain.objects.create(name=f"of test {number}")


def test_a_project_has_a_database_of_its_own_of_the_same_vendor(project, database):
    result = project.python("from django.db import connection; print(connection.vendor)")

    assert result.stdout.strip() == database
    with pytest.raises(Exception, match="testapp_plain"):
        project.query("SELECT * FROM testapp_plain")
