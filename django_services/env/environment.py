"""``Env``: the environment and a ``.env`` file as Django's settings.

The only reader of ``os.environ``, on django-environ. URLs are parsed here and
not there: an option has a type, an unknown one is an error that names the
nearest known one, and a password that was not percent-encoded is refused
instead of naming another host. No message holds a value that may be secret.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections import ChainMap
from pathlib import Path
from typing import Any

import environ

from django_services.exceptions import ConfigurationError

from . import backends
from .urls import URL, put
from .values import boolean, naming, number, whole_number
from .variables import VARIABLES, refuse_misspelt

SQLITE_FILE = "db.sqlite3"

#: Files that mark a project's directory, where ``.env`` and the SQLite file are.
_MARKERS = (".env", "manage.py", "pyproject.toml", ".git")


class Env(environ.Env):  # type: ignore[misc]  # django-environ ships no types
    """The environment and one ``.env`` file, which never overrides it.

    Nothing is written to ``os.environ``. The typed reads of django-environ
    (``env.bool("DEBUG", default=False)``, ``int``, ``float``, ``str``,
    ``list``…) work too, but refuse what they cannot read: ``"flase"`` is not
    False.

    Args:
        path: The ``.env`` file, or the directory that holds it. By default the
            nearest directory with a ``.env``, ``manage.py``, ``pyproject.toml``
            or ``.git``, from the file that calls ``Env()`` upward.
        scheme: Types and defaults of variables, as django-environ takes them.

    Raises:
        ConfigurationError: ``path`` does not exist, or a line of the file is
            no assignment.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, **scheme: Any) -> None:
        super().__init__(**scheme)
        file = (
            _dotenv_file(Path(path)) if path is not None else _nearest_dotenv(_caller_directory())
        )
        self.base_dir = file.parent
        self.ENVIRON = ChainMap(os.environ, _read_dotenv(file))

    def database(self, var: str = "DATABASE_URL", default: str | None = None) -> dict[str, Any]:
        """Return an entry of DATABASES; without the variable, a SQLite file in `base_dir`.

        Args:
            var: The variable that holds a ``postgresql://``, ``postgis://`` or
                ``sqlite://`` URL; `DATABASE_OPTIONS` lists the options.
            default: The URL to use where the variable is not set.

        Raises:
            ConfigurationError: The URL cannot be used; names the variable.
        """
        text = self._text(var) or default or f"sqlite:///{SQLITE_FILE}"
        with naming(var):
            return backends.database(URL.parse(text), self.base_dir)

    def cache(self, var: str = "REDIS_URL") -> dict[str, Any]:
        """Return an entry of CACHES: Redis where the variable is set, else local memory.

        Extend it as a dict: ``env.cache() | {"KEY_PREFIX": "shop"}``.

        Raises:
            ConfigurationError: The URL cannot be used; names the variable.
        """
        text = self._text(var)
        if not text:
            return {
                "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
                "LOCATION": "django-services",
            }
        with naming(var):
            return backends.cache(backends.redis_section(text))

    def tasks(self, var: str = "TASKS_URL") -> dict[str, Any]:
        """Return an entry of TASKS; without the variable, the immediate backend.

        The URL is ``immediate://``, ``dummy://`` or a backend's dotted path,
        ``path.to.Backend://``, each with ``?queues=one,two`` if tasks name
        queues. REDIS_URL never implies a backend.

        Raises:
            ConfigurationError: The URL cannot be used; names the variable.
        """
        with naming(var):
            return backends.tasks(URL.parse(self._text(var) or "immediate://"))

    def services(self) -> dict[str, Any]:
        """Return DJANGO_SERVICES from the variables that are set.

        Raises:
            ConfigurationError: A variable cannot be used, or one is set whose
                name is almost that of a known one.
        """
        refuse_misspelt(self.ENVIRON)
        found: dict[str, Any] = {"OPENAI": {"default": {}}, "EMBEDDINGS": {}}
        for variable in VARIABLES:
            text = self._text(variable.name) if variable.place else ""
            if text:
                with naming(variable.name):
                    put(found, variable.place, variable.convert(text))
        if redis := self._text("REDIS_URL"):
            with naming("REDIS_URL"):
                found["REDIS"] = {"default": backends.redis_section(redis)}
        return found

    def get_value(
        self, var: str, cast: Any = None, default: Any = environ.Env.NOTSET, **options: Any
    ) -> Any:
        """Return a variable as `cast` reads it, as django-environ's method does.

        Raises:
            ConfigurationError: The value is not what `cast` reads.
        """
        try:
            with naming(var):
                return super().get_value(var, cast=cast, default=default, **options)
        except ValueError:
            raise ConfigurationError(
                f"{var} cannot be read as {getattr(cast, '__name__', cast)}."
            ) from None

    @classmethod
    def parse_value(cls, value: Any, cast: Any) -> Any:
        """Cast a value; the numbers and booleans strictly, the rest as django-environ does."""
        strict = {bool: boolean, int: whole_number, float: number}.get(cast)
        return (
            strict(value) if strict and isinstance(value, str) else super().parse_value(value, cast)
        )

    def _text(self, name: str) -> str:
        """Return a variable stripped, "" if unset; ``$OTHER`` stands for the value of OTHER."""
        text = str(self.ENVIRON.get(name, "")).strip()
        if not text.startswith("$"):
            return text
        if text[1:] not in self.ENVIRON:
            raise ConfigurationError(f"{name} points to a variable that is not set.")
        return str(self.ENVIRON[text[1:]]).strip()


def _caller_directory() -> Path:
    """Return the directory of the file that called ``Env()``; the current one at a prompt."""
    frame = sys._getframe(2)  # as warnings' stacklevel: whose call is it?
    file = Path(frame.f_code.co_filename)
    return file.resolve().parent if file.is_file() else Path.cwd()


def _nearest_dotenv(start: Path) -> Path:
    for directory in (start, *start.parents):
        if any((directory / marker).exists() for marker in _MARKERS):
            return directory / ".env"
    return start / ".env"


def _dotenv_file(path: Path) -> Path:
    if not path.exists():
        raise ConfigurationError(f"Env({str(path)!r}): there is no such file or directory.")
    path = path.resolve()
    return path / ".env" if path.is_dir() else path


def _read_dotenv(file: Path) -> dict[str, str]:
    """Return the assignments of a ``.env`` file; {} if there is none."""
    try:
        text = file.read_text("utf-8-sig")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} cannot be read: {type(error).__name__}.") from None
    for position, line in enumerate(text.splitlines(), start=1):
        # django-environ skips such a line, and logs it with the key that is in it.
        if line.strip() and not re.match(r"#|(export )?\w+=", line, re.ASCII):
            raise ConfigurationError(
                f"{file}, line {position}: write NAME=value, without spaces before NAME "
                "and around the sign, or start a comment with '#'."
            )

    class Reader(environ.Env):  # type: ignore[misc]  # django-environ ships no types
        ENVIRON: dict[str, str] = {}  # what read_env() fills, instead of os.environ

    Reader.read_env(io.StringIO("\n".join(filter(str.strip, text.splitlines()))))
    return Reader.ENVIRON
