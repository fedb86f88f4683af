"""Crashes at the named points of a worker's way: the process is gone at once."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from django_services import openai_service
from django_services.embeddings import claims, storage
from django_services.signals import embeddings_synced

EXIT_CODE = 9


def crash(*_arguments: Any, **_options: Any) -> None:
    """End the process as a kill does: nothing is flushed, closed or given back."""
    os._exit(EXIT_CODE)


def crash_at(point: str) -> None:
    """Let this process crash when it first comes to one of `POINTS`, or after "17" statements."""
    if point.isdigit():
        _after_statements(int(point))
    else:
        POINTS[point]()


def _after_statements(most: int) -> None:
    executed = itertools.count(1)

    def count(execute: Callable[..., Any], *arguments: Any) -> Any:
        result = execute(*arguments)
        if next(executed) >= most:
            crash()
        return result

    def connect(connection: BaseDatabaseWrapper, **_: Any) -> None:
        connection.execute_wrappers.append(count)

    connection_created.connect(connect, weak=False)


def _after_claim() -> None:
    claim = claims.claim

    def crashing(*arguments: Any, **options: Any) -> None:
        if claim(*arguments, **options) is not None:
            crash()

    claims.claim = crashing


def _before_call() -> None:
    openai_service.embed_outcomes = crash


def _after_call() -> None:
    embed = openai_service.embed_outcomes

    def crashing(*arguments: Any, **options: Any) -> None:
        embed(*arguments, **options)
        crash()

    openai_service.embed_outcomes = crashing


def _before_commit() -> None:
    insert = storage.insert

    def inserting(*arguments: Any) -> int:
        BaseDatabaseWrapper.commit = crash
        return insert(*arguments)

    storage.insert = inserting


def _after_commit() -> None:
    embeddings_synced.connect(crash, weak=False)


POINTS: dict[str, Callable[[], None]] = {
    "after claim": _after_claim,
    "before call": _before_call,
    "after call": _after_call,
    "before commit": _before_commit,
    "after commit": _after_commit,
}
