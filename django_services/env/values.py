"""What a text of the environment is read as, and what is refused."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator

from django_services.exceptions import ConfigurationError


class Secret(str):
    """A key or password whose repr, and so Django's debug page, does not show it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'********'"


class Refused(ValueError):
    """A value that cannot be used; `naming` says where it stood. Holds no value."""


@contextlib.contextmanager
def naming(place: str) -> Iterator[None]:
    """Turn what is refused in the block into a ConfigurationError that names its place."""
    try:
        yield
    except Refused as error:
        raise ConfigurationError(f"{place} {error}") from None


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name that is most like `name`."""
    import difflib

    folded = {candidate.casefold(): candidate for candidate in known}
    return folded[difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.0)[0]]


def text_value(text: str) -> str:
    return text


def secret(text: str) -> Secret:
    return Secret(text)


def boolean(text: str) -> bool:
    folded = text.strip().casefold()
    if folded in {"true", "yes", "on", "1", "t", "y"}:
        return True
    if folded in {"false", "no", "off", "0", "f", "n"}:
        return False
    raise Refused("must be true or false.")


def number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise Refused("must be a number.")
    return value


def whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise Refused("must be a whole number.") from None


def seconds(text: str) -> float:
    value = number(text)
    if value <= 0:
        raise Refused("must be a number of seconds above 0.")
    return value


def count(text: str) -> int:
    value = whole_number(text)
    if value < 1:
        raise Refused("must be a whole number above 0.")
    return value


def count_or_zero(text: str) -> int:
    return 0 if text == "0" else count(text)


def seconds_or_zero(text: str) -> float:
    return 0.0 if text == "0" else seconds(text)


def dollars(text: str) -> float:
    value = number(text)
    if value < 0:
        raise Refused("must be a number of US dollars, 0 or more.")
    return value


def milliseconds(text: str) -> int:
    """Return seconds as the whole milliseconds that libpq and PostgreSQL take."""
    return round(seconds(text) * 1_000)


def api_key(text: str) -> Secret:
    """Return a key that can stand in a header, without the white space around it."""
    key = Secret(text.strip())
    if any(character.isspace() for character in key):
        raise Refused("holds white space: give the key alone, on one line.")
    if not key.isascii() or not key.isprintable():
        raise Refused("holds a character that no key has: only printable ASCII is allowed.")
    if key[:1] in {'"', "'"}:
        raise Refused("stands in quotes: give the key without them.")
    return key


def one_of(*choices: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text not in choices:
            raise Refused(f"must be one of {', '.join(choices)}.")
        return text

    return convert
