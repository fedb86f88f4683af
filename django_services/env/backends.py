"""URLs of backends as entries of DATABASES, CACHES, TASKS and DJANGO_SERVICES."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import django

from .urls import URL, Option, merged, place_options
from .values import (
    Refused,
    boolean,
    count,
    count_or_zero,
    milliseconds,
    one_of,
    seconds,
    text_value,
)

# DATABASES ---------------------------------------------------------------------------

_ENGINES = {
    "postgres": "django.db.backends.postgresql",
    "postgresql": "django.db.backends.postgresql",
    "postgis": "django.contrib.gis.db.backends.postgis",
    "sqlite": "django.db.backends.sqlite3",
}


def _to(convert: Callable[[str], object], *place: str) -> Option:
    return Option(convert, place)


def _isolation_level(text: str) -> int:
    # The values of psycopg.IsolationLevel, which must not be imported by settings.
    levels = {"read-committed": 2, "repeatable-read": 3, "serializable": 4}
    return levels[one_of(*levels)(text)]


_ANY_DATABASE = {
    "atomic_requests": _to(boolean, "ATOMIC_REQUESTS"),
    "conn_health_checks": _to(boolean, "CONN_HEALTH_CHECKS"),
    "conn_max_age": _to(count_or_zero, "CONN_MAX_AGE"),
}
_SQLITE_OPTIONS = _ANY_DATABASE | {
    "timeout": _to(seconds, "OPTIONS", "timeout"),
    "transaction_mode": _to(
        one_of("DEFERRED", "IMMEDIATE", "EXCLUSIVE"), "OPTIONS", "transaction_mode"
    ),
    "journal_mode": _to(one_of("WAL", "DELETE", "TRUNCATE", "MEMORY"), "PRAGMA", "journal_mode"),
    "synchronous": _to(one_of("OFF", "NORMAL", "FULL", "EXTRA"), "PRAGMA", "synchronous"),
}
_POSTGRESQL_OPTIONS = _ANY_DATABASE | {
    "disable_server_side_cursors": _to(boolean, "DISABLE_SERVER_SIDE_CURSORS"),
    # The pool's.
    "pool": _to(boolean, "POOL"),
    "pool_min_size": _to(count_or_zero, "OPTIONS", "pool", "min_size"),
    "pool_max_size": _to(count, "OPTIONS", "pool", "max_size"),
    "pool_timeout": _to(seconds, "OPTIONS", "pool", "timeout"),
    "pool_max_lifetime": _to(seconds, "OPTIONS", "pool", "max_lifetime"),
    "pool_max_idle": _to(seconds, "OPTIONS", "pool", "max_idle"),
    "pool_max_waiting": _to(count_or_zero, "OPTIONS", "pool", "max_waiting"),
    # The session's.
    "statement_timeout": _to(milliseconds, "SESSION", "statement_timeout"),
    "lock_timeout": _to(milliseconds, "SESSION", "lock_timeout"),
    "idle_in_transaction_session_timeout": _to(
        milliseconds, "SESSION", "idle_in_transaction_session_timeout"
    ),
    "search_path": _to(text_value, "SESSION", "search_path"),
    # Django's.
    "assume_role": _to(text_value, "OPTIONS", "assume_role"),
    "isolation_level": _to(_isolation_level, "OPTIONS", "isolation_level"),
    "server_side_binding": _to(boolean, "OPTIONS", "server_side_binding"),
    # libpq's.
    "host": _to(text_value, "HOST"),
    "port": _to(count, "PORT"),
    "application_name": _to(text_value, "OPTIONS", "application_name"),
    "channel_binding": _to(one_of("disable", "prefer", "require"), "OPTIONS", "channel_binding"),
    # libpq counts whole seconds, and takes 1 for 2.
    "connect_timeout": _to(count, "OPTIONS", "connect_timeout"),
    "gssencmode": _to(one_of("disable", "prefer", "require"), "OPTIONS", "gssencmode"),
    "keepalives": _to(lambda text: int(boolean(text)), "OPTIONS", "keepalives"),
    "keepalives_count": _to(count, "OPTIONS", "keepalives_count"),
    "keepalives_idle": _to(count, "OPTIONS", "keepalives_idle"),
    "keepalives_interval": _to(count, "OPTIONS", "keepalives_interval"),
    "options": _to(text_value, "OPTIONS", "options"),
    "sslcert": _to(text_value, "OPTIONS", "sslcert"),
    "sslkey": _to(text_value, "OPTIONS", "sslkey"),
    "sslmode": _to(
        one_of("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
        "OPTIONS",
        "sslmode",
    ),
    "sslnegotiation": _to(one_of("postgres", "direct"), "OPTIONS", "sslnegotiation"),
    "sslrootcert": _to(text_value, "OPTIONS", "sslrootcert"),
    "target_session_attrs": _to(
        one_of("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
        "OPTIONS",
        "target_session_attrs",
    ),
    "tcp_user_timeout": _to(milliseconds, "OPTIONS", "tcp_user_timeout"),
}
#: The options of a database URL, by the engine's name in it.
DATABASE_OPTIONS: dict[str, dict[str, Option]] = {
    "postgresql": _POSTGRESQL_OPTIONS,
    "sqlite": _SQLITE_OPTIONS,
}

_SQLITE_DEFAULTS: dict[str, Any] = {
    "OPTIONS": {
        # A transaction that first reads and then writes would fail at once, not
        # wait, where another one wrote in between.
        "transaction_mode": "IMMEDIATE",
        "timeout": 20.0,  # seconds
    },
    # Readers do not wait for the writer; NORMAL loses no consistency under WAL.
    "PRAGMA": {"journal_mode": "WAL", "synchronous": "NORMAL"},
}
_POOL_DEFAULTS: dict[str, Any] = {
    "min_size": 1,
    "max_size": 10,  # connections of a process
    "timeout": 5.0,  # seconds
    "max_lifetime": 60 * 60.0,  # seconds
    "max_idle": 10 * 60.0,  # seconds
}


def database(url: URL, base_dir: Path) -> dict[str, Any]:
    if url.scheme not in _ENGINES:
        raise Refused(
            "must start with postgresql://, postgis:// or sqlite://; "
            "for another database use env.db_url() of django-environ."
        )
    build = _sqlite if url.scheme == "sqlite" else _postgresql
    return {"ENGINE": _ENGINES[url.scheme], **build(url, base_dir)}


def _sqlite(url: URL, base_dir: Path) -> dict[str, Any]:
    path = url.path.removeprefix("/")
    memory = ":memory:" in {url.authority, path}
    if not memory and (url.authority or url.user or not path):
        raise Refused(
            "must be sqlite:///file (in the project's directory), sqlite:////path/to/file "
            "or sqlite://:memory:."
        )
    setting = merged(_SQLITE_DEFAULTS, place_options(url.options, _SQLITE_OPTIONS))
    pragmas = setting.pop("PRAGMA")
    setting["OPTIONS"]["init_command"] = "; ".join(f"PRAGMA {k}={v}" for k, v in pragmas.items())
    return {"NAME": ":memory:" if memory else str(base_dir / path), **setting}


def _postgresql(url: URL, _base_dir: Path) -> dict[str, Any]:
    given = place_options(url.options, _POSTGRESQL_OPTIONS)
    pool = given.pop("POOL", True)
    _refuse_pool_conflicts(pool, given)
    session = given.pop("SESSION", {})
    setting = merged(
        {
            "NAME": _database_name(url),
            "USER": url.user,
            "PASSWORD": url.password,
            **_postgresql_address(url),
            "CONN_MAX_AGE": 0,
            "CONN_HEALTH_CHECKS": True,
            "OPTIONS": {"connect_timeout": 5} | ({"pool": _POOL_DEFAULTS} if pool else {}),
        },
        given,
    )
    options = setting["OPTIONS"]
    if pool and options["pool"]["min_size"] > options["pool"]["max_size"]:
        raise Refused("has a pool_min_size above pool_max_size.")
    if session:
        options["options"] = " ".join([*filter(None, [options.get("options")]), *_session(session)])
    return setting


def _database_name(url: URL) -> str:
    name = url.path.removeprefix("/")
    if not name or "/" in name:
        raise Refused(
            "must name the database after the host: postgresql://user:password@host/name."
        )
    return name


def _session(parameters: Mapping[str, object]) -> list[str]:
    """Return parameters of a session as libpq's ``options`` take them."""
    return [f"-c {name}={_escaped(str(value))}" for name, value in parameters.items()]


def _escaped(value: str) -> str:
    return re.sub(r"([\\ ])", r"\\\1", value)


def _postgresql_address(url: URL) -> dict[str, Any]:
    hosts = url.hosts()
    ports = {port for _, port in hosts}
    return {
        # libpq tries several hosts in turn.
        "HOST": ",".join(host for host, _ in hosts),
        "PORT": "" if ports == {None} else ",".join(str(port or 5432) for _, port in hosts),
    }


def _refuse_pool_conflicts(pool: object, given: Mapping[str, Any]) -> None:
    if pool and given.get("CONN_MAX_AGE"):
        raise Refused(
            "has conn_max_age with a pool, which keeps connections itself: "
            "remove conn_max_age or add pool=false."
        )
    if not pool and "pool" in given.get("OPTIONS", {}):
        raise Refused("has pool=false and options of the pool: remove one or the other.")


# CACHES and DJANGO_SERVICES["REDIS"] --------------------------------------------------

_REDIS_SCHEMES = {
    "redis": "redis",
    "rediss": "rediss",
    "unix": "unix",
    "valkey": "redis",
    "valkeys": "rediss",
}
REDIS_OPTIONS: dict[str, Option] = {
    "db": _to(count_or_zero, "DB"),
    "timeout": _to(seconds, "TIMEOUT"),
    "connect_timeout": _to(seconds, "CONNECT_TIMEOUT"),
    "max_connections": _to(count, "MAX_CONNECTIONS"),
    "client_name": _to(text_value, "CLIENT_NAME"),
    "ssl_cert_reqs": _to(one_of("required", "optional", "none"), "SSL_CERT_REQS"),
    "ssl_check_hostname": _to(boolean, "SSL_CHECK_HOSTNAME"),
    "ssl_ca_certs": _to(text_value, "SSL_CA_CERTS"),
    "ssl_certfile": _to(text_value, "SSL_CERTFILE"),
    "ssl_keyfile": _to(text_value, "SSL_KEYFILE"),
}


def redis_section(text: str) -> dict[str, Any]:
    """Return a Redis URL as an entry of ``DJANGO_SERVICES["REDIS"]``.

    The password stands apart from the URL, under a key that Django's debug
    page hides.
    """
    url = URL.parse(text)
    if re.search(r"sentinel|cluster", url.scheme):
        raise Refused("names a Sentinel or a Cluster, which this version cannot use yet.")
    if url.scheme not in _REDIS_SCHEMES:
        raise Refused("must start with redis://, rediss://, unix://, valkey:// or valkeys://.")
    scheme = _REDIS_SCHEMES[url.scheme]
    given = place_options(url.options, REDIS_OPTIONS)
    if scheme != "rediss" and any(key.startswith("SSL_") for key in given):
        raise Refused("has options for TLS without it: start it with rediss://.")
    if url.user and not url.password:
        raise Refused("has a user name and no password: write redis://:password@host.")
    address = _redis_socket if scheme == "unix" else _redis_address
    section: dict[str, Any] = {"URL": address(scheme, url, given.pop("DB", None))}
    if url.user:
        section["USERNAME"] = url.user
    if url.password:
        section["PASSWORD"] = url.password
    return section | given


def _redis_address(scheme: str, url: URL, db: int | None) -> str:
    hosts, path = url.hosts(), url.path.strip("/")
    if len(hosts) > 1 or not re.fullmatch(r"[0-9]*", path) or (path and db is not None):
        raise Refused("must name one host and one database by its number: redis://host:6379/0.")
    host, port = hosts[0]
    host = f"[{host}]" if ":" in host else quote(host or "localhost")
    return f"{scheme}://{host}:{port or 6379}/{int(path or db or 0)}"


def _redis_socket(scheme: str, url: URL, db: int | None) -> str:
    if url.authority or not url.path:
        raise Refused("must be unix:///path/to/redis.sock, or unix://:password@/path with one.")
    return f"{scheme}://{quote(url.path)}?db={db or 0}"


#: Keys of ``DJANGO_SERVICES["REDIS"]`` that django-redis takes under a name of its own.
_CACHE_OPTIONS = {
    "USERNAME": "USERNAME",
    "PASSWORD": "PASSWORD",
    "TIMEOUT": "SOCKET_TIMEOUT",
    "CONNECT_TIMEOUT": "SOCKET_CONNECT_TIMEOUT",
}


def cache(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry of ``DJANGO_SERVICES["REDIS"]`` as one of CACHES."""
    options = {_CACHE_OPTIONS[key]: section[key] for key in _CACHE_OPTIONS if key in section}
    others = section.keys() - _CACHE_OPTIONS.keys() - {"URL"}
    if others:
        options["CONNECTION_POOL_KWARGS"] = {key.lower(): section[key] for key in sorted(others)}
    return {
        "BACKEND": "django_services.cache.RedisCache",
        "LOCATION": section["URL"],
        "OPTIONS": options,
    }


# TASKS -------------------------------------------------------------------------------


def tasks(url: URL) -> dict[str, Any]:
    if url.scheme in _REDIS_SCHEMES:
        raise Refused("names Redis, which this version has no message queue for yet.")
    if url.user or url.authority or url.path:
        raise Refused("must be immediate://, dummy:// or path.to.Backend://, and end there.")
    queues = place_options(url.options, {"queues": _to(_names, "QUEUES")})
    return {"BACKEND": _tasks_backend(url.scheme), **queues}


def _tasks_backend(scheme: str) -> str:
    package = "django.tasks" if django.VERSION >= (6, 0) else "django_tasks"
    built_in = {
        "immediate": f"{package}.backends.immediate.ImmediateBackend",
        "dummy": f"{package}.backends.dummy.DummyBackend",
    }
    if scheme in built_in:
        return built_in[scheme]
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", scheme):
        raise Refused(
            "must start with immediate://, dummy:// or a backend's path, path.to.Backend://."
        )
    return scheme


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise Refused("must be names with commas between them.")
    return names
