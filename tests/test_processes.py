"""Other processes see the tests' database; projects stand on their own."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from django.contrib.auth.models import Group
from django.db import connection

pytestmark = pytest.mark.slow


@pytest.mark.django_db(transaction=True)
def test_run_python_reads_and_writes_the_tests_database(run_python):
    Group.objects.create(name="from here")

    result = run_python("""
        from django.contrib.auth.models import Group
        print(Group.objects.get().name)
        Group.objects.create(name="from there")
    """)

    assert result.stdout.strip() == "from here"
    assert Group.objects.filter(name="from there").exists()


def test_run_python_shows_the_error_of_code_that_fails(run_python):
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run_python("1 / 0", setup=False)


def test_services_of_the_developer_do_not_reach_other_processes(run_python, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-developer")

    result = run_python("import os; print(os.environ.get('OPENAI_API_KEY'))", setup=False)

    assert result.stdout.strip() == "None"


def test_started_process_can_be_killed(run_python):
    process = run_python.start("import time; print('up', flush=True); time.sleep(60)", setup=False)
    line = process.stdout.readline()

    os.kill(process.pid, signal.SIGKILL)

    assert line == "up\n"
    assert process.wait(10) == -signal.SIGKILL


@pytest.mark.django_db
def test_database_of_the_tests_is_a_file_in_wal_mode():
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA journal_mode")
        (mode,) = cursor.fetchone()

    assert Path(connection.settings_dict["NAME"]).is_file()
    assert mode == "wal"


def test_project_migrates_its_models_and_keeps_rows(project):
    project.models("""
        class Item(models.Model):
            name = models.CharField(max_length=20)
    """)
    project.migrate()
    project.python("from shop.models import Item; Item.objects.create(name='lamp')")

    project.models("""
        class Item(models.Model):
            title = models.CharField(max_length=20, default="")
            name = models.CharField(max_length=20)
    """)
    project.migrate()

    assert project.query("SELECT name, title FROM shop_item") == [("lamp", "")]


def test_project_takes_settings_of_its_own(project):
    project.configure("LANGUAGE_CODE = 'de'")

    result = project.python("from django.conf import settings; print(settings.LANGUAGE_CODE)")

    assert result.stdout.strip() == "de"
