"""The Django task that embeds changes; imported only where tasks are used."""

from __future__ import annotations

from importlib import import_module

from django import VERSION
from django.core.cache import caches

from .. import conf
from . import after_commit
from .sync import sync

# Django 5.2 has the backport, whose classes are others.
_tasks = import_module("django.tasks" if VERSION >= (6, 0) else "django_tasks")


def run_elsewhere() -> bool:
    """Tell whether the default backend runs tasks outside the request."""
    backend = _tasks.task_backends[_tasks.DEFAULT_TASK_BACKEND_ALIAS]
    return type(backend).__name__ not in {"ImmediateBackend", "DummyBackend"}


@_tasks.task()  # type: ignore[untyped-decorator]
def embed_changes(alias: str) -> dict[str, int]:
    """Bring a database's pending sources in step; returns what was done, in numbers."""
    # First, so that a commit during the work adds a task for what this one may miss.
    caches[conf.embeddings().query_cache].delete(after_commit.debounce_key(alias))
    report = sync(alias=alias, mend=False)
    return {"sources": report.sources, "embedded": report.embedded, "failed": report.failed}
