"""Other Python processes: with the tests' own settings, or with a project's."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

import psycopg

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 60.0  # seconds

# What the package reads: a developer's own services must not reach into a test.
SERVICE_VARIABLES = ("DATABASE_", "REDIS_", "TASKS_", "OPENAI_", "DJANGO_", "EMBED")
# Without bytecode every process would compile the package anew.
NOT_INHERITED = (*SERVICE_VARIABLES, "PYTHONDONTWRITEBYTECODE")


class PythonRunner:
    """Runs Python code in processes that share a folder and an environment.

    Args:
        directory: Where the processes run; importable by them.
        env: Variables of theirs, besides those that this process has.
    """

    def __init__(self, directory: Path, env: Mapping[str, str]) -> None:
        self.directory = directory
        self.env = dict(env)
        self._started: list[subprocess.Popen[str]] = []

    def __call__(
        self,
        code: str,
        *,
        env: Mapping[str, str] | None = None,
        setup: bool = True,
        check: bool = True,
        timeout: float = TIMEOUT,
    ) -> subprocess.CompletedProcess[str]:
        """Run code to its end and return its output, exit code included.

        Args:
            code: Python, dedented before it runs.
            env: More variables.
            setup: Whether ``django.setup()`` runs first.
            check: Whether an exit code other than 0 fails the test.
            timeout: Seconds.
        """
        return self.run(_source(code, setup=setup), env=env, check=check, timeout=timeout)

    def run(
        self,
        arguments: list[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
        check: bool = True,
        timeout: float = TIMEOUT,
    ) -> subprocess.CompletedProcess[str]:
        """Run the interpreter with arguments, as `__call__` does with code."""
        result = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.directory,
            env=self._environment(env),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and result.returncode != 0:
            raise AssertionError(
                f"exit code {result.returncode} of python {' '.join(arguments)}\n"
                f"{result.stdout}\n{result.stderr}"
            )
        return result

    def start(
        self, code: str, *, env: Mapping[str, str] | None = None, setup: bool = True
    ) -> subprocess.Popen[str]:
        """Start code and return its process, with pipes; `close` kills it at the latest."""
        process = subprocess.Popen(
            [sys.executable, *_source(code, setup=setup)],
            cwd=self.directory,
            env=self._environment(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def close(self) -> None:
        """Kill what still runs of what `start` started."""
        for process in self._started:
            process.kill()
            process.communicate()
        self._started.clear()

    def _environment(self, env: Mapping[str, str] | None) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(NOT_INHERITED) or name == "DJANGO_SERVICES_TEST_SCRATCH"
        }
        path = os.pathsep.join([str(self.directory), str(ROOT)])
        return {**inherited, "PYTHONPATH": path, **self.env, **(env or {})}


class Project:
    """A Django project in a folder of its own, with one app, ``shop``.

    Its settings are those of `SETTINGS`; `configure` appends to them. Commands
    run in processes of their own, so a model may change between them.

    Args:
        directory: Where its files are written.
        database: An entry of DATABASES; else a SQLite file in the directory.
    """

    SETTINGS = """
        SECRET_KEY = "tests only"
        USE_TZ = True
        DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
        INSTALLED_APPS = [
            "django.contrib.contenttypes",
            "django.contrib.auth",
            "django_services",
            "shop",
        ]
        DJANGO_SERVICES = {"OPENAI": {"default": {"BASE_URL": "embedded://"}}}
    """

    def __init__(self, directory: Path, database: dict[str, Any] | None = None) -> None:
        self.directory = directory
        self.database = database or {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(directory / "db.sqlite3"),
            "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE"},
        }
        self.python = PythonRunner(directory, {"DJANGO_SETTINGS_MODULE": "settings"})
        self.write("settings.py", self.SETTINGS)
        self.configure(f'DATABASES = {{"default": {self.database!r}}}\n')
        self.write("shop/__init__.py", "")
        self.write("shop/migrations/__init__.py", "")

    def write(self, path: str, text: str) -> Path:
        """Write a file of the project, its text dedented."""
        target = self.directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(dedent(text).strip("\n") + "\n")
        return target

    def configure(self, settings: str) -> None:
        """Append to the project's settings."""
        with (self.directory / "settings.py").open("a") as file:
            file.write(dedent(settings))

    def models(self, code: str) -> None:
        """Replace the app's models; `models` and `Embeddings` are imported already."""
        imports = "from django.db import models\nfrom django_services import Embeddings\n\n"
        self.write("shop/models.py", imports + dedent(code))

    def manage(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
        check: bool = True,
        timeout: float = TIMEOUT,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of Django's, as ``manage.py`` does."""
        return self.python.run(
            ["-m", "django", *arguments], env=env, stdin=stdin, check=check, timeout=timeout
        )

    def migrate(self) -> None:
        """Make the app's migrations and run all."""
        self.manage("makemigrations", "shop")
        self.manage("migrate")

    def query(self, sql: str, *parameters: object) -> list[tuple[object, ...]]:
        """Run a statement on the project's database, past Django; return its rows.

        Its placeholders are those of the database's driver: ``?`` or ``%s``.
        """
        with contextlib.closing(self._connect()) as connection, connection:
            cursor = connection.execute(sql, parameters)
            return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        """Kill what the project still runs."""
        self.python.close()

    def _connect(self) -> Any:
        if "URL" in self.database:
            return psycopg.connect(self.database["URL"])
        return sqlite3.connect(self.database["NAME"])


def _source(code: str, *, setup: bool) -> list[str]:
    start = "import django; django.setup()\n" if setup else ""
    return ["-c", start + dedent(code)]
