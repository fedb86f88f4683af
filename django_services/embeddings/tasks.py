"""The Django task that embeds changes; imported only where tasks are used."""

from __future__ import annotations

from django.core.cache import caches

from .. import conf
from . import on_commit
from .sync import sync

try:
    from django.tasks import DEFAULT_TASK_BACKEND_ALIAS, task, task_backends
    from django.tasks.backends.dummy import DummyBackend
    from django.tasks.backends.immediate import ImmediateBackend
except ImportError:  # Django 5.2: the backport, whose classes are others
    from django_tasks import DEFAULT_TASK_BACKEND_ALIAS, task, task_backends
    from django_tasks.backends.dummy import DummyBackend
    from django_tasks.backends.immediate import ImmediateBackend


def run_elsewhere() -> bool:
    """Tell whether the default backend runs tasks outside the request."""
    backend = task_backends[DEFAULT_TASK_BACKEND_ALIAS]
    return not isinstance(backend, (DummyBackend, ImmediateBackend))


@task()
def embed_changes(alias: str) -> dict[str, int]:
    """Bring a database's pending sources in step; returns what was done, in numbers."""
    # First, so that a commit during the work adds a task for what this one may miss.
    caches[conf.embeddings().query_cache].delete(on_commit.debounce_key(alias))
    report = sync(alias=alias)
    return {"sources": report.sources, "embedded": report.embedded, "failed": report.failed}
