"""The key of an alias: given, read from a file, or asked of a function.

The SDK asks before each request, so that a key that is rotated is the next
request's key.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .. import conf
from ..env.values import Refused
from ..env.values import api_key as validated
from ..exceptions import ConfigurationError

#: The SDK insists on a key, where a compatible server needs none.
NO_KEY = "none"


def key_of(alias: str, settings: conf.OpenAISettings) -> str | Callable[[], str]:
    """Return the key as the SDK takes it: a string, or a function that gives the one of now."""
    if settings.api_key_file:
        return _KeyFile(alias, Path(settings.api_key_file))
    given = settings.api_key
    return _Asked(alias, given) if callable(given) else given or NO_KEY


class _Asked:
    """A key that the project's own function gives."""

    def __init__(self, alias: str, ask: Callable[[], str]) -> None:
        self._alias = alias
        self._ask = ask

    def __call__(self) -> str:
        return _checked(self._ask(), f'DJANGO_SERVICES["OPENAI"]["{self._alias}"]["API_KEY"]()')


class _KeyFile:
    """A key in a file, as secrets are mounted; read again when the file changes."""

    def __init__(self, alias: str, path: Path) -> None:
        self._name = f'DJANGO_SERVICES["OPENAI"]["{alias}"]["API_KEY_FILE"] ({path})'
        self._path = path
        self._read: tuple[tuple[int, int, int], str] | None = None

    def __call__(self) -> str:
        try:
            found = self._path.stat()
            # A mounted secret is replaced as a whole: another file, of the same name.
            version = (found.st_mtime_ns, found.st_size, found.st_ino)
            if self._read is None or self._read[0] != version:
                self._read = version, _checked(self._path.read_text("utf-8-sig"), self._name)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"{self._name} cannot be read: {type(error).__name__}. Check the path and rights."
            ) from None
        return self._read[1]


def _checked(given: object, name: str) -> str:
    try:
        key = validated(given) if isinstance(given, str) else None
    except Refused as refused:
        raise ConfigurationError(f"{name} {refused}") from None
    if not key:
        raise ConfigurationError(f"{name} gives no key.")
    return key
