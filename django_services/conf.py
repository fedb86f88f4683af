"""The settings of django_services, typed; the only reader of django.conf.settings.

Every section is one frozen dataclass, its fields the lower-case names of the
setting's keys. They are read live, so that ``override_settings`` takes effect,
and parsed once for each value. A key that is not known, or a value of another
type, is a `ConfigurationError` that names it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
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

#: Set by `testing` while it answers in the network's place, for every alias and without
#: a key: the name of the run, under which nothing that was cached in another is found.
fake_network = ""

ON_COMMIT = ("inline", "task", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What may be sent to a model each minute; None: as much as the service lets through."""

    requests: int | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What may be spent: an entry of ``DJANGO_SERVICES["OPENAI"][alias]["BUDGETS"]``."""

    per: str  # "alias", "tenant" or "feature"
    period: str  # "day" or "month", UTC
    usd: float
    name: str = ""  # one tenant or feature; "": each of them, by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAISettings:
    """``DJANGO_SERVICES["OPENAI"][alias]``."""

    #: A string, or a function that returns one: asked before each request.
    api_key: str | Callable[[], str] = field(default="", repr=False)
    api_key_file: str = ""  # path; read again when the file changes
    base_url: str = OPENAI_URL
    api_version: str = ""  # of Azure, whose endpoint the base URL then is
    organization: str = ""
    project: str = ""
    deadline: float = 60.0  # seconds, over all attempts of one call
    task_deadline: float = 240.0  # seconds, the same in background work
    timeout: float = 30.0  # seconds, of one attempt
    connect_timeout: float = 5.0  # seconds
    model: str = "gpt-6-luna"  # of completions
    moderation_model: str = "omni-moderation-latest"
    embedding_model: str = "text-embedding-3-small"
    dimensions: int | None = None  # of stored vectors; None: the model's own
    requests_per_minute: int | None = None  # of each model, over all processes
    tokens_per_minute: int | None = None  # of each model, over all processes
    model_limits: Mapping[str, Limit] = field(default_factory=dict)  # where a model has its own
    refuse_without_redis: bool = False  # what limits and budgets do while Redis is down
    breaker_failures: int = 10  # in a row, before calls are refused at once
    breaker_pause: float = 30.0  # seconds, before one call tries again
    daily_budget: float | None = None  # US dollars of the alias, by UTC days
    monthly_budget: float | None = None  # US dollars of the alias, by UTC months
    budgets: tuple[Budget, ...] = ()  # of tenants and features
    prices: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # by model
    embedding_cache: str = ""  # alias in CACHES for embeddings of equal texts; "": none
    embedding_cache_timeout: int = 24 * 60 * 60  # seconds
    capture_content: bool = False  # prompts and answers in OpenTelemetry's spans

    @property
    def is_embedded(self) -> bool:
        """Whether the offline model answers, in this process."""
        return self.base_url == EMBEDDED_URL

    @property
    def has_key(self) -> bool:
        return bool(self.api_key or self.api_key_file)

    @property
    def is_configured(self) -> bool:
        """Whether there is something to call: a key, or a server that may need none."""
        return self.has_key or self.base_url != OPENAI_URL

    def limit_of(self, model: str | None) -> Limit:
        """Return what may be sent to a model each minute."""
        own = self.model_limits.get(model or "")
        return own or Limit(requests=self.requests_per_minute, tokens=self.tokens_per_minute)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerSettings:
    """``DJANGO_SERVICES["LEDGER"]``."""

    enabled: bool = True
    database: str = "default"  # alias in DATABASES
    flush_seconds: float = 1.0  # the longest that a row waits in memory
    batch_size: int = 500  # rows written at once


#: Numbers are above 0, but for these, which may be 0 too.
_MAY_BE_ZERO = frozenset(
    {"chunk_overlap", "retry_delay", "query_cache_timeout", "embedding_cache_timeout"}
    | {"daily_budget", "monthly_budget"}
)


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
    if fake_network:
        return _answered_by_fake(found)
    if found.is_configured:
        return found
    if settings.DEBUG:
        return replace(found, base_url=EMBEDDED_URL)
    raise ServiceNotConfigured(
        f"OpenAI {alias!r} has no key. Set OPENAI_API_KEY, or OPENAI_BASE_URL to a compatible "
        f"server or to {EMBEDDED_URL} for the offline model."
    )


def _answered_by_fake(found: OpenAISettings) -> OpenAISettings:
    base_url = OPENAI_URL if found.is_embedded else found.base_url
    # A key may be asked of a vault, which a test must not need.
    return replace(found, base_url=base_url, api_key="", api_key_file="")


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
def ledger() -> LedgerSettings:
    """Return how usage is recorded.

    Raises:
        ConfigurationError: The setting is wrong.
    """
    return _parsed(LedgerSettings, ("LEDGER",), _section("LEDGER"))


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
    found: list[object] = [str(entry.get("PASSWORD") or "") for entry in databases().values()]
    for aliases, read in ((openai_aliases, openai_section), (redis_aliases, redis)):
        try:
            sections = [read(alias) for alias in aliases()]
        except ConfigurationError:
            continue
        found += [getattr(each, name, "") for each in sections for name in ("api_key", "password")]
    return [secret for secret in found if secret and isinstance(secret, str)]


# Reading -----------------------------------------------------------------------------

_SECTIONS = {
    "OPENAI": OpenAISettings,
    "REDIS": RedisSettings,
    "EMBEDDINGS": EmbeddingsSettings,
    "LEDGER": LedgerSettings,
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
    if misplaced := sorted({str(key).upper() for key in section} & _keys(_SECTIONS[name])):
        raise ConfigurationError(
            f'DJANGO_SERVICES["{name}"] holds {misplaced[0]} where it should hold aliases: '
            f'write {{"{name}": {{"default": {{"{misplaced[0]}": …}}}}}}.'
        )
    for alias, value in section.items():
        _require_dict(f'DJANGO_SERVICES["{name}"]["{alias}"]', value)
    return section


@cache
def _keys(kind: type) -> frozenset[str]:
    return frozenset(field.name.upper() for field in fields(kind))


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
    if name in _STRUCTURED:
        return _STRUCTURED[name](value)
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


_TYPE_NAMES = {str: "a string", int: "a whole number", float: "a number", bool: "True or False"}


def _require_type(value: Any, expected: type) -> Any:
    # bool is an int, and True seconds are a slip.
    if isinstance(value, bool) and expected is not bool:
        raise Refused(f"must be {_TYPE_NAMES[expected]}, not a bool.")
    if expected is float and isinstance(value, int):
        return float(value)
    if not isinstance(value, expected):
        raise Refused(
            f"must be {_TYPE_NAMES[expected]}, not a value of type {type(value).__name__}."
        )
    return value


def _require_dict(place: str, value: object) -> None:
    if not isinstance(value, (dict, Mapping)):  # a dict is told sooner than any mapping
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


def _api_key(value: Any) -> object:
    return value if callable(value) else api_key(_require_type(value, str))


def _model_limits(value: Any) -> Mapping[str, Limit]:
    """Return {"model": {"REQUESTS_PER_MINUTE": 60, "TOKENS_PER_MINUTE": 90_000}} parsed."""
    known = {"REQUESTS_PER_MINUTE": "requests", "TOKENS_PER_MINUTE": "tokens"}
    found = {}
    for model, entry in _dict(value).items():
        _require_entry(entry, known)
        found[model] = Limit(**{known[key]: _above_zero(entry[key]) for key in entry})
    return found


def _budgets(value: Any) -> tuple[Budget, ...]:
    """Return [{"PER": "tenant", "PERIOD": "day", "USD": 5}] parsed."""
    if not isinstance(value, (list, tuple)):
        raise Refused("must be a list of dicts.")
    return tuple(_budget(entry) for entry in value)


def _budget(entry: Any) -> Budget:
    _require_entry(entry, ("PER", "PERIOD", "USD", "NAME"))
    if missing := {"PER", "PERIOD", "USD"} - set(entry):
        raise Refused(f"holds a budget without {', '.join(sorted(missing))}.")
    return Budget(
        per=_one_of("alias", "tenant", "feature")(_require_type(entry["PER"], str)),
        period=_one_of("day", "month")(_require_type(entry["PERIOD"], str)),
        usd=_zero_or_more(_require_type(entry["USD"], float)),
        name=_require_type(entry.get("NAME", ""), str),
    )


def _prices(value: Any) -> Mapping[str, Mapping[str, float]]:
    """Return {"model": {"INPUT": 1, "CACHED_INPUT": 0.1, "OUTPUT": 5}}, each a number."""
    known = ("INPUT", "CACHED_INPUT", "OUTPUT", "BATCH")
    found = {}
    for model, entry in _dict(value).items():
        _require_entry(entry, known)
        found[model] = {
            key: _zero_or_more(_require_type(number, float)) for key, number in entry.items()
        }
    return found


def _dict(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise Refused(f"must be a dict, not a value of type {type(value).__name__}.")
    return value


def _require_entry(entry: Any, known: Iterable[str]) -> None:
    for key in _dict(entry):
        if key not in known:
            raise Refused(f"has no key {key!r}; the nearest is {nearest(str(key), known)!r}.")


def _above_zero(value: Any) -> int | None:
    if value is None:
        return None
    if _require_type(value, int) < 1:
        raise Refused(f"must be a number above 0, not {value}.")
    return int(value)


def _zero_or_more(value: float) -> float:
    if not 0 <= value < math.inf:
        raise Refused(f"must be 0 or a number above 0, not {value}.")
    return value


#: Fields that are more than one number or string.
_STRUCTURED: dict[str, Callable[[Any], object]] = {
    "api_key": _api_key,
    "model_limits": _model_limits,
    "budgets": _budgets,
    "prices": _prices,
}

#: Fields whose strings are more than any string.
_CONVERT: dict[str, Callable[[str], object]] = {
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
    if isinstance(found, OpenAISettings):
        if (found.dimensions or 0) > MAX_DIMENSIONS:
            raise Refused(
                f"has DIMENSIONS {found.dimensions}: pgvector indexes at most {MAX_DIMENSIONS}."
            )
        if found.api_key and found.api_key_file:
            raise Refused("has API_KEY and API_KEY_FILE: give one of them.")
        if found.embedding_cache:
            _require_cache("EMBEDDING_CACHE", found.embedding_cache)
    if isinstance(found, LedgerSettings) and found.database not in settings.DATABASES:
        raise Refused(
            f"has DATABASE {found.database!r}, which is not an alias in DATABASES "
            f"({', '.join(settings.DATABASES)})."
        )
    if isinstance(found, EmbeddingsSettings):
        if found.chunk_overlap >= found.chunk_size:
            raise Refused("has a CHUNK_OVERLAP that is not below CHUNK_SIZE.")
        _require_cache("QUERY_CACHE", found.query_cache)
    return found


def _require_cache(key: str, alias: str) -> None:
    if alias not in settings.CACHES:
        raise Refused(
            f"has {key} {alias!r}, which is not an alias in CACHES ({', '.join(settings.CACHES)})."
        )


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
