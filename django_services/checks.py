"""System checks; none does any I/O, so they run wherever ``manage.py check`` does.

| id | what is wrong |
|---|---|
| django_services.E001 | DJANGO_SERVICES is no dict, or has an unknown section |
| django_services.E002 | a value of DJANGO_SERVICES["OPENAI"] cannot be used |
| django_services.E003 | a value of DJANGO_SERVICES["REDIS"] cannot be used |
| django_services.E004 | a value of DJANGO_SERVICES["EMBEDDINGS"] cannot be used |
| django_services.E005 | a database has a pool and CONN_MAX_AGE |
| django_services.E006 | the embedded model would answer in production (``--deploy``) |
| django_services.E007 | a value of DJANGO_SERVICES["LEDGER"] cannot be used |
| django_services.W001 | a database has a pool that does not check its connections |
| django_services.W002 | a cache is in the process's own memory (``--deploy``) |

The ids from 101 on are those of declarations, in ``embeddings.checks``; those from 201
on of what an alias of OpenAI is set to, in ``openai_transport.checks``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from django.core import checks
from django.core.checks import CheckMessage

from . import conf
from .embeddings.checks import check_declarations
from .exceptions import ConfigurationError
from .openai_transport.checks import check_openai, check_sharing

_IN_PROCESS = (
    "django.core.cache.backends.locmem.LocMemCache",
    "django.core.cache.backends.dummy.DummyCache",
)


def check(**_: Any) -> list[CheckMessage]:
    """Run every check but those of a deployment; `apps` registers it."""
    return [*check_settings(), *check_openai(), *check_pools(), *check_declarations()]


def check_settings(**_: Any) -> list[CheckMessage]:
    """Check every section of DJANGO_SERVICES, one message for each alias or section."""
    structure = list(_error("E001", conf.sections))
    if structure:
        return structure
    return [
        *_of_aliases("E002", conf.openai_aliases, conf.openai_section),
        *_of_aliases("E003", conf.redis_aliases, conf.redis),
        *_error("E004", conf.embeddings),
        *_error("E007", conf.ledger),
    ]


def check_pools(**_: Any) -> list[CheckMessage]:
    """Check what Django itself says of a pool only once a connection is asked for."""
    return [
        message
        for alias, database in conf.databases().items()
        if database.get("OPTIONS", {}).get("pool")
        for message in _of_pool(alias, database)
    ]


def check_production(**_: Any) -> list[CheckMessage]:
    """Check what is meant for a developer's machine only."""
    return [*_embedded_models(), *_caches_in_process(), *check_sharing()]


def _error(number: str, read: Callable[[], object]) -> Iterator[CheckMessage]:
    try:
        read()
    except ConfigurationError as error:
        yield checks.Error(
            str(error),
            hint="Correct DJANGO_SERVICES, or the variable that env.services() reads it from.",
            id=f"django_services.{number}",
        )


def _of_aliases(
    number: str, aliases: Callable[[], list[str]], read: Callable[[str], object]
) -> list[CheckMessage]:
    wrong = list(_error(number, aliases))
    return wrong or [
        message for alias in aliases() for message in _error(number, partial(read, alias))
    ]


def _of_pool(alias: str, database: dict[str, Any]) -> Iterator[CheckMessage]:
    if database.get("CONN_MAX_AGE") != 0:
        yield checks.Error(
            f"Database {alias!r} has a pool and CONN_MAX_AGE: every connection would fail.",
            hint="Set CONN_MAX_AGE to 0; the pool keeps connections itself.",
            id="django_services.E005",
        )
    if not database.get("CONN_HEALTH_CHECKS"):
        yield checks.Warning(
            f"Database {alias!r} has a pool that hands out connections unchecked: after a restart "
            "of the server, each fails one request.",
            hint="Set CONN_HEALTH_CHECKS to True.",
            id="django_services.W001",
        )


def _embedded_models() -> Iterator[CheckMessage]:
    for alias in _usable_openai_aliases():
        if conf.openai(alias).is_embedded:
            yield checks.Error(
                f"OpenAI {alias!r} is answered by the embedded model, which is meant for "
                "development and tests.",
                hint="Set OPENAI_API_KEY, or OPENAI_BASE_URL to a compatible server.",
                id="django_services.E006",
            )


def _usable_openai_aliases() -> Iterator[str]:
    try:
        aliases = conf.openai_aliases()
    except ConfigurationError:
        return  # E001 and E002 say so
    for alias in aliases:
        try:
            conf.openai(alias)
        except ConfigurationError:
            continue
        yield alias


def _caches_in_process() -> Iterator[CheckMessage]:
    try:
        alias = conf.embeddings().query_cache
    except ConfigurationError:
        return  # E004 says so
    if conf.cache_backend(alias) in _IN_PROCESS:
        yield checks.Warning(
            f"The cache {alias!r} is not shared by processes: each pays again for the vectors of "
            "queries, and tasks are not held back together.",
            hint="Set REDIS_URL and use env.cache(), or name another cache in EMBED_QUERY_CACHE.",
            id="django_services.W002",
        )
