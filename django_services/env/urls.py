"""URLs with typed options: split strictly, so that no password becomes a host."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from .values import Refused, Secret, nearest

_UNESCAPED = (
    "cannot be read without doubt: in a user name, password, path or option, "
    "percent-encode '@' as %40, '/' as %2F, '?' as %3F, '#' as %23, '%' as %25 "
    "and spaces as %20."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class URL:
    """The parts of a URL, decoded, but for `authority`: hosts and ports as written."""

    scheme: str
    user: str
    password: Secret = field(repr=False)
    authority: str
    path: str
    options: Mapping[str, str] = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> URL:
        """Split a URL.

        Whatever character of a password is not encoded, the '@' that ends it
        stays behind in the path, so another host is never read out of it.
        """
        scheme, separator, rest = text.partition("://")
        if not separator or not re.fullmatch(r"[A-Za-z_][\w.+-]*", scheme):
            raise Refused("is not a URL: it must start with scheme://.")
        end = re.search(r"[/?]|$", rest).start()  # type: ignore[union-attr]  # "$" always matches
        user, _, hosts = rest[:end].rpartition("@")
        path, _, query = rest[end:].partition("?")
        if "@" in rest[end:] or re.search(r"[\s#\\]|%(?![0-9A-Fa-f]{2})", text):
            raise Refused(_UNESCAPED)
        user, _, password = user.partition(":")
        return cls(
            scheme=scheme if "." in scheme else scheme.lower(),
            user=_decoded(user),
            password=Secret(_decoded(password)),
            authority=hosts,
            path=_decoded(path),
            options=_options(query),
        )

    def hosts(self) -> list[tuple[str, int | None]]:
        """Return the hosts with their ports; IPv6 addresses without brackets."""
        return [_host_and_port(part) for part in self.authority.split(",")]


def _options(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        name, _, value = part.partition("=")
        name = _decoded(name)
        if not value:
            raise Refused(f"gives option {name!r} no value: write {name}=value.")
        if name in options:
            raise Refused(f"gives option {name!r} twice.")
        options[name] = _decoded(value)
    return options


def _decoded(text: str) -> str:
    try:
        decoded = unquote(text, errors="strict")
    except UnicodeDecodeError:
        decoded = "\0"
    if any(ord(character) < 32 for character in decoded):
        raise Refused("holds percent-encoded bytes that are no text.")
    return decoded


def _host_and_port(text: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]*))(?::([0-9]{1,5}))?", text)
    if not match or int(match[3] or 1) not in range(1, 65_536):
        raise Refused("has a port that is no number from 1 to 65535. " + "It " + _UNESCAPED)
    return match[1] or _decoded(match[2]), int(match[3]) if match[3] else None


def base_url(text: str) -> str:
    """Return an API's base URL without a slash at the end; ``embedded://`` stays as it is."""
    text = text.strip()
    if text == "embedded://":
        return text
    url = URL.parse(text)
    if url.scheme not in {"http", "https"}:
        raise Refused("must start with https://, http:// or be embedded://.")
    if url.user or url.password:
        raise Refused("must not hold credentials: give the key in OPENAI_API_KEY.")
    if url.options:
        raise Refused("must not have a query (the part after '?').")
    if len(url.hosts()) != 1 or not url.hosts()[0][0]:
        raise Refused("names no host: write https://host/v1.")
    return text.rstrip("/")


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a URL: how it is read and where it goes in the setting."""

    convert: Callable[[str], object]
    place: tuple[str, ...]


def place_options(options: Mapping[str, str], table: Mapping[str, Option]) -> dict[str, Any]:
    """Return the typed options, each at its place in nested dicts."""
    found: dict[str, Any] = {}
    for name, text in options.items():
        if name not in table:
            raise Refused(f"has no option {name!r}; the nearest is {nearest(name, table)!r}.")
        try:
            value = table[name].convert(text)
        except Refused as error:
            raise Refused(f"has an option {name!r} that {error}") from None
        put(found, table[name].place, value)
    return found


def put(target: dict[str, Any], place: tuple[str, ...], value: object) -> None:
    for part in place[:-1]:
        target = target.setdefault(part, {})
    target[place[-1]] = value


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `over` on top, dict by dict."""
    result = dict(base)
    for key, value in over.items():
        inner = result.get(key)
        both = isinstance(inner, dict) and isinstance(value, dict)
        result[key] = merged(inner, value) if both else value  # type: ignore[arg-type]
    return result
