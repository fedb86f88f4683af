"""Whether the services work, as data: for the command, probes and dashboards.

This module does I/O: it asks every service. No text of it holds a password or
a key.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from django.db import DatabaseError, connections

from . import conf, db_service, redis_service
from .exceptions import ServiceError, ServiceNotConfigured

State = Literal["ok", "warning", "error", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """What was found of one service, under one alias."""

    service: str  # "database", "redis", "openai" or "embeddings"
    alias: str
    state: State  # "off": not configured, so not asked
    latency_ms: float | None = None
    version: str = ""  # of the server; of OpenAI, the embedding model
    detail: str = ""
    fix: str = ""  # what to do, where there is something to do

    @property
    def is_up(self) -> bool:
        return self.state != "error"


@dataclass(frozen=True, slots=True)
class _Finding:
    """What a probe found of a service that answered."""

    version: str = ""
    detail: str = ""
    state: State = "ok"
    fix: str = ""


def check_services() -> list[ServiceStatus]:
    """Ask every configured service and return what was found, one for each alias.

    Each answer takes no longer than the service's own timeout or deadline; one
    service's fault does not keep the others from being asked.
    """
    return [_status(service, alias, probe) for service, alias, probe in _probes()]


def _probes() -> Iterator[tuple[str, str, Callable[[str], _Finding]]]:
    for alias in connections:
        yield "database", alias, _database
    for alias in _aliases(conf.redis_aliases):
        yield "redis", alias, _redis
    for alias in _aliases(conf.openai_aliases):
        yield "openai", alias, _openai
    for alias in connections:
        yield "embeddings", alias, _embeddings


def _aliases(read: Callable[[], list[str]]) -> list[str]:
    """Return a service's aliases; "default" where there are none or the setting is wrong."""
    try:
        return read() or ["default"]
    except ServiceError:
        return ["default"]


def _status(service: str, alias: str, probe: Callable[[str], _Finding]) -> ServiceStatus:
    started = time.perf_counter()
    try:
        found = probe(alias)
    except ServiceNotConfigured as error:
        return ServiceStatus(service=service, alias=alias, state="off", detail=str(error))
    except ServiceError as error:
        detail = _without_secrets(str(error))
        return ServiceStatus(service=service, alias=alias, state="error", detail=detail)
    return ServiceStatus(
        service=service,
        alias=alias,
        state=found.state,
        latency_ms=round((time.perf_counter() - started) * 1_000, 1),
        version=found.version,
        detail=found.detail,
        fix=found.fix,
    )


def _database(alias: str) -> _Finding:
    db_service.ping(alias)
    connection = connections[alias]
    version = ".".join(str(part) for part in connection.get_database_version())
    return _Finding(version=f"{connection.display_name} {version}")


def _redis(alias: str) -> _Finding:
    redis_service.ping(alias)
    return _Finding(version=redis_service.version(alias), detail=conf.redis(alias).url)


def _openai(alias: str) -> _Finding:
    from . import openai_service

    settings = conf.openai(alias)
    openai_service.ping(alias)
    model, dimensions = openai_service.embedding_space(alias)
    answered = "embedded: the offline model answers" if settings.is_embedded else settings.base_url
    return _Finding(version=model, detail=f"{answered}, {dimensions} dimensions")


def _embeddings(alias: str) -> _Finding:
    """Report whether changes are captured, and how many sources wait."""
    from .embeddings import ann_index, capture
    from .embeddings.declaration import indexes_on
    from .embeddings.status import status

    if not indexes_on(alias):
        raise ServiceNotConfigured("No model declares embeddings here.")
    db_service.ping(alias)
    try:
        unindexed = ann_index.unready(alias)
        missing = capture.missing(alias)
        found = status(alias)
    except DatabaseError as error:
        return _Finding(
            state="error",
            detail=f"The tables cannot be read: {type(error).__name__}.",
            fix=f"Run: manage.py migrate --database {alias}",
        )
    failed = sum(index.failed for index in found)
    detail = (
        f"{sum(index.fresh for index in found)} fresh, "
        f"{sum(index.pending for index in found)} pending, {failed} failed"
    )
    if missing:
        return _Finding(
            state="error",
            detail=f"Changes are not captured for {', '.join(missing)}; {detail}.",
            fix="Run: manage.py migrate, then manage.py embeddings reconcile",
        )
    if failed:
        return _Finding(
            state="warning", detail=f"{detail}.", fix="Run: manage.py embeddings status"
        )
    if unindexed:
        return _Finding(
            state="warning",
            detail=f"Searches in {', '.join(unindexed)} have no index; {detail}.",
            fix="Run: manage.py embeddings sync",
        )
    return _Finding(detail=f"{detail}.")


def _without_secrets(text: str) -> str:
    """Return a text in which no configured key or password stands.

    Servers and SDKs word their errors as they like; some repeat what they got.
    """
    for secret in conf.secrets():
        text = text.replace(secret, "***")
    return text
