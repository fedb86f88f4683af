"""The settings of django_services, typed; the only reader of django.conf.settings.

Every section is one frozen dataclass, its fields the lower-case names of the
setting's keys. They are read live, so that ``override_settings`` takes effect,
and parsed once for each value. A key that is not known, or a value of another
type, is a `ConfigurationError` that names it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache, wraps
from types import NoneType
from typing import Any, ParamSpec, TypeVar, get_args, get_type_hints

from django.conf import settings
from django.core.signals import setting_changed

from .env.values import Refused, Secret, api_key, naming, nearest
from .exceptions import ConfigurationError, ServiceNotConfigured

P = ParamSpec("P")
S = TypeVar("S")

EMBEDDED_URL = "embedded://"
OPENAI_URL = "https://api.openai.com/v1"
MAX_DIMENSIONS = 4_000  # of a halfvec that pgvector can index

ON_COMMIT = ("inline", "task", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAISettings:
    """``DJANGO_SERVICES["OPENAI"][alias]``."""

    api_key: str = field(default="", repr=False)
    base_url: str = OPENAI_URL
    organization: str = ""
    project: str = ""
    deadline: float = 60.0  # seconds, over all attempts of one call
    timeout: float = 30.0  # seconds, of one attempt
    connect_timeout: float = 5.0  # seconds
    embedding_model: str = "text-embedding-3-small"
    dimensions: int | None = None  # of stored vectors; None: the model's own

    @property
    def is_embedded(self) -> bool:
        """Whether the offline model answers, in this process."""
        return self.base_url == EMBEDDED_URL

    @property
    def is_configured(self) -> bool:
        """Whether there is something to call: a key, or a server that may need none."""
        return bool(self.api_key) or self.base_url != OPENAI_URL


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisSettings:
    """``DJANGO_SERVICES["REDIS"][alias]``; `url` never holds the password."""

    url: str
    username: str = ""
    password: str = field(default="", repr=False)
    timeout: float = 2.0  # seconds, of one command
    connect_timeout: float = 1.0  # seconds; also the wait for a free connection
    max_connections: int = 50
    client_name: str = ""
    ssl_cert_reqs: str = "required"
    ssl_check_hostname: bool = True
    ssl_ca_certs: str = ""
    ssl_certfile: str = ""
    ssl_keyfile: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingsSettings:
    """``DJANGO_SERVICES["EMBEDDINGS"]``."""

    on_commit: str | None = None  # one of ON_COMMIT; None: by the model and TASKS
    inline_limit: int = 100  # sources embedded after one commit
    chunk_size: int = 1_000  # characters
    chunk_overlap: int = 100  # characters
    batch_size: int = 1_000  # sources claimed at once
    concurrency: int = 16  # calls to a remote model in flight, of one process
    notify: bool = True  # writers wake `embeddings sync --watch` (PostgreSQL)
    lease: float = 300.0  # seconds, that a worker may hold a source
    max_attempts: int = 5  # before a source is set aside
    retry_delay: float = 30.0  # seconds before the second attempt; doubles
    max_hits: int = 1_000  # of a search that is not sliced
    query_cache: str = "default"  # alias in CACHES for query vectors
    query_cache_timeout: int = 24 * 60 * 60  # seconds
    matrix_memory: int = 1_024  # MiB of vectors that a process may hold (SQLite)


#: Numbers are above 0, but for these, which may be 0 too.
_MAY_BE_ZERO = frozenset({"chunk_overlap", "retry_delay", "query_cache_timeout"})


def _without_frames(read: Callable[P, S]) -> Callable[P, S]:
    """Let errors leave `read` without its frames, whose variables hold keys."""

    @wraps(read)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> S:
        try:
            return read(*args, **kwargs)
        except ConfigurationError as error:
            raise error.with_traceback(None) from None

    return guarded


# Sections ----------------------------------------------------------------------------


@_without_frames
def openai(alias: str = "default") -> OpenAISettings:
    """Return what calls to OpenAI use, effectively.

    Without a key, and with the base URL left at OpenAI's, that is the embedded
    model where DEBUG is on.

    Raises:
        ServiceNotConfigured: No such alias, or no key and no DEBUG.
        ConfigurationError: The setting is wrong.
    """
    found = openai_section(alias)
    if found.is_configured:
        return found
    if settings.DEBUG:
        return replace(found, base_url=EMBEDDED_URL)
    raise ServiceNotConfigured(
        f"OpenAI {alias!r} has no key. Set OPENAI_API_KEY, or OPENAI_BASE_URL to a compatible "
        f"server or to {EMBEDDED_URL} for the offline model."
    )


@_without_frames
def openai_section(alias: str = "default") -> OpenAISettings:
    """Return an OpenAI alias as it stands in the setting, usable or not.

    Raises:
        ServiceNotConfigured: No such alias.
        ConfigurationError: The setting is wrong.
    """
    aliases = _aliases("OPENAI")
    if alias != "default":
        _require_alias("OPENAI", alias, list(aliases), "OPENAI_API_KEY")
    return _parsed(OpenAISettings, ("OPENAI", alias), aliases.get(alias, {}))


@_without_frames
def openai_aliases() -> list[str]:
    """Return the aliases of OpenAI; "default" is always one."""
    return list(dict.fromkeys(["default", *_aliases("OPENAI")]))


@_without_frames
def redis(alias: str = "default") -> RedisSettings:
    """Return how to reach a Redis: ``DJANGO_SERVICES["REDIS"]``, else a Redis of CACHES.

    Raises:
        ServiceNotConfigured: Neither describes the alias.
        ConfigurationError: The setting is wrong.
    """
    aliases = _aliases("REDIS")
    if alias not in aliases:
        aliases = _redis_caches()
        if alias == "default":
            # Any cache in Redis tells where the project's Redis is.
            alias = next(iter(aliases), alias) if alias not in aliases else alias
        if alias not in aliases:
            _require_alias("REDIS", alias, redis_aliases(), "REDIS_URL")
        return _parsed(RedisSettings, ("CACHES", alias), aliases[alias])
    return _parsed(RedisSettings, ("REDIS", alias), aliases[alias])


@_without_frames
def redis_aliases() -> list[str]:
    """Return the aliases that `redis` knows; [] where no Redis is configured."""
    return list(_aliases("REDIS") or _redis_caches())


@_without_frames
def embeddings() -> EmbeddingsSettings:
    """Return how embeddings are kept in step.

    Raises:
        ConfigurationError: The setting is wrong.
    """
    return _parsed(EmbeddingsSettings, ("EMBEDDINGS",), _section("EMBEDDINGS"))


@_without_frames
def sections() -> list[str]:
    """Return the known sections of DJANGO_SERVICES.

    Raises:
        ConfigurationError: DJANGO_SERVICES is no dict, or has an unknown section.
    """
    _services()
    return list(_SECTIONS)


# Django's own settings ---------------------------------------------------------------


def debug() -> bool:
    return bool(settings.DEBUG)


def databases() -> dict[str, dict[str, Any]]:
    return dict(settings.DATABASES)


def cache_backend(alias: str = "default") -> str:
    """Return the dotted path of a cache's backend, "" if the alias is not in CACHES."""
    return str(settings.CACHES.get(alias, {}).get("BACKEND", ""))


def secrets() -> list[str]:
    """Return every key and password that is configured, for redaction."""
    found = [str(entry.get("PASSWORD") or "") for entry in databases().values()]
    for aliases, read in ((openai_aliases, openai_section), (redis_aliases, redis)):
        try:
            sections = [asdict(read(alias)) for alias in aliases()]
        except ConfigurationError:
            continue
        found += [section.get("api_key") or section.get("password", "") for section in sections]
    return [secret for secret in found if secret]


# Reading -----------------------------------------------------------------------------

_SECTIONS = {
    "OPENAI": OpenAISettings,
    "REDIS": RedisSettings,
    "EMBEDDINGS": EmbeddingsSettings,
}
#: A parsed section beside the value it was parsed from, by its place.
_cache: dict[tuple[str, ...], tuple[dict[str, Any], Any]] = {}


def _services() -> Mapping[str, Any]:
    services = getattr(settings, "DJANGO_SERVICES", {})
    _require_dict("DJANGO_SERVICES", services)
    _require_known("DJANGO_SERVICES", services, _SECTIONS)
    return services


def _section(name: str) -> Mapping[str, Any]:
    section = _services().get(name) or {}
    _require_dict(f'DJANGO_SERVICES["{name}"]', section)
    return section


def _aliases(name: str) -> Mapping[str, Mapping[str, Any]]:
    """Return a section that holds one dict for each alias."""
    section = _section(name)
    keys = {field.name.upper() for field in fields(_SECTIONS[name])}
    if misplaced := sorted(str(key).upper() for key in section if str(key).upper() in keys):
        raise ConfigurationError(
            f'DJANGO_SERVICES["{name}"] holds {misplaced[0]} where it should hold aliases: '
            f'write {{"{name}": {{"default": {{"{misplaced[0]}": …}}}}}}.'
        )
    for alias, value in section.items():
        _require_dict(f'DJANGO_SERVICES["{name}"]["{alias}"]', value)
    return section


def _parsed(kind: type[S], place: tuple[str, ...], value: Mapping[str, Any]) -> S:
    known = _cache.get(place)
    if known is None or known[0] != value:
        # A copy: the project may change its dict in place.
        known = _cache[place] = dict(value), _parse(kind, place, value)
    return known[1]


def _parse(kind: type[S], place: tuple[str, ...], value: Mapping[str, Any]) -> S:
    name = _described(place)
    _require_known(name, value, [known.name.upper() for known in fields(kind)])  # type: ignore[arg-type]
    with naming(name):
        prepared = _PREPARE.get(kind, dict)(value)
    given: dict[str, Any] = {}
    for key, entry in prepared.items():
        # None says "not set", as os.environ.get() does.
        if entry is not None:
            with naming(f'{name}["{key}"]'):
                given[key.lower()] = _typed(kind, key.lower(), entry)
    with naming(name):
        return _verified(kind, given)


def _described(place: tuple[str, ...]) -> str:
    if place[0] == "CACHES":
        return f'CACHES["{place[1]}"]'
    return "DJANGO_SERVICES" + "".join(f'["{part}"]' for part in place)


def _typed(kind: type, name: str, value: object) -> object:
    """Return a value that has the type of the field; numbers in their range."""
    if name in _CONVERT:
        return _CONVERT[name](_require_type(value, str))
    expected = _types(kind)[name]
    value = _require_type(value, expected)
    if expected in {int, float}:
        minimum = 0 if name in _MAY_BE_ZERO else math.ulp(0.0)
        if not minimum <= value < math.inf:  # type: ignore[operator]
            raise Refused(f"must be {'0 or' if not minimum else 'a number'} above 0, not {value}.")
    return value


@cache
def _types(kind: type) -> dict[str, type]:
    """Return the fields' types; ``int | None`` counts as ``int``."""
    hints = get_type_hints(kind)
    return {
        name: next((part for part in get_args(hint) if part is not NoneType), hint)
        for name, hint in hints.items()
    }


_NAMES = {str: "a string", int: "a whole number", float: "a number", bool: "True or False"}


def _require_type(value: Any, expected: type) -> Any:
    # bool is an int, and True seconds are a slip.
    if isinstance(value, bool) and expected is not bool:
        raise Refused(f"must be {_NAMES[expected]}, not a bool.")
    if expected is float and isinstance(value, int):
        return float(value)
    if not isinstance(value, expected):
        raise Refused(f"must be {_NAMES[expected]}, not a value of type {type(value).__name__}.")
    return value


def _require_dict(place: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{place} must be a dict, not of type {type(value).__name__}.")


def _require_known(place: str, keys: Mapping[str, Any], known: Any) -> None:
    for key in keys:
        if key not in known:
            raise ConfigurationError(
                f"{place} has no key {key!r}; the nearest is {nearest(str(key), known)!r}."
            )


def _require_alias(section: str, alias: str, aliases: list[str], variable: str) -> None:
    if alias not in aliases:
        known = f" Known aliases: {', '.join(sorted(aliases))}." if aliases else ""
        raise ServiceNotConfigured(
            f"{section} {alias!r} is not configured. Set {variable}, or describe it in "
            f'DJANGO_SERVICES["{section}"]["{alias}"].{known}'
        )


# What a section needs beyond types ---------------------------------------------------


def _base_url(text: str) -> str:
    from .env.urls import base_url

    return base_url(text) if text.strip() else OPENAI_URL


def _password(text: str) -> str:
    return Secret(text) if text else ""


def _one_of(*choices: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text not in choices:
            raise Refused(f"must be one of {', '.join(choices)}, not {text!r}.")
        return text

    return convert


#: Fields whose strings are more than any string.
_CONVERT: dict[str, Callable[[str], object]] = {
    "api_key": api_key,
    "base_url": _base_url,
    "password": _password,
    "on_commit": _one_of(*ON_COMMIT),
    "ssl_cert_reqs": _one_of("required", "optional", "none"),
}


def _redis_options(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a Redis section with what its URL says beside the URL; own keys win."""
    from .env.backends import redis_section

    url = value.get("URL")
    if not isinstance(url, str) or not url.strip():
        raise Refused('needs a "URL", such as redis://host:6379/0.')
    return {**redis_section(url.strip()), **{k: v for k, v in value.items() if k != "URL"}}


_PREPARE: dict[type, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    RedisSettings: _redis_options,
}


def _verified(kind: type[S], given: dict[str, Any]) -> S:
    found = kind(**given)
    if isinstance(found, OpenAISettings) and (found.dimensions or 0) > MAX_DIMENSIONS:
        raise Refused(
            f"has DIMENSIONS {found.dimensions}: pgvector indexes at most {MAX_DIMENSIONS}."
        )
    if isinstance(found, EmbeddingsSettings):
        if found.chunk_overlap >= found.chunk_size:
            raise Refused("has a CHUNK_OVERLAP that is not below CHUNK_SIZE.")
        if found.query_cache not in settings.CACHES:
            raise Refused(
                f"has QUERY_CACHE {found.query_cache!r}, which is not an alias in CACHES "
                f"({', '.join(settings.CACHES)})."
            )
    return found


def _redis_caches() -> dict[str, dict[str, Any]]:
    """Return the caches that live in Redis as entries of ``DJANGO_SERVICES["REDIS"]``."""
    return {
        alias: _redis_of_cache(entry)
        for alias, entry in settings.CACHES.items()
        if entry.get("BACKEND", "").endswith(".RedisCache") and entry.get("LOCATION")
    }


def _redis_of_cache(entry: Mapping[str, Any]) -> dict[str, Any]:
    location, options = entry["LOCATION"], entry.get("OPTIONS", {})
    # Django's own backend takes a list or a text with separators: the first writes.
    url = location if isinstance(location, str) else location[0]
    # Django's own backend spells its options in lower case.
    credentials = {
        key: options.get(key) or options.get(key.lower()) for key in ("USERNAME", "PASSWORD")
    }
    return {"URL": url.replace(";", ",").split(",")[0], **credentials}


def _forget_parsed(*, setting: str, **_: Any) -> None:
    if setting in {"DJANGO_SERVICES", "CACHES"}:
        _cache.clear()


setting_changed.connect(_forget_parsed, dispatch_uid="django_services.conf")
