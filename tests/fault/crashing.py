"""Crashes at the named points of a worker's way: the process is gone at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from django_services import openai_service
from django_services.embeddings import claims
from django_services.signals import embeddings_synced

EXIT_CODE = 9


def crash(*_arguments: Any, **_options: Any) -> None:
    """End the process as a kill does: nothing is flushed, closed or given back."""
    os._exit(EXIT_CODE)


def crash_at(point: str) -> None:
    """Let this process crash when it first comes to one of `POINTS`."""
    POINTS[point]()


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
    finish = claims.finish

    def crashing(*arguments: Any) -> None:
        finish(*arguments)  # the last that is written
        crash()

    claims.finish = crashing


def _after_commit() -> None:
    embeddings_synced.connect(crash, weak=False)


POINTS: dict[str, Callable[[], None]] = {
    "after claim": _after_claim,
    "before call": _before_call,
    "after call": _after_call,
    "before commit": _before_commit,
    "after commit": _after_commit,
}
