"""The database notes every write that may put a source out of step.

Triggers append to `Change` in the writer's own transaction, so that save(),
bulk_create(), update(), raw SQL and loaddata count alike. `watch` finds what to
watch, a vendor's module writes the triggers, `triggers` compares them with those
that a database holds, `migrate` keeps them out of the way of migrations, `mend`
out of the way of users' writes, and `backlog` notes what they cannot have seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from django.apps import apps
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.signals import post_migrate, pre_migrate

from ..declaration import Embeddings, indexes_on
from .mend import repeat_without_broken_triggers, wrap_connections

if TYPE_CHECKING:

    class Vendor(Protocol):
        """What a vendor's module does; the functions below say it."""

        def install(
            self, connection: BaseDatabaseWrapper, indexes: Iterable[Embeddings]
        ) -> list[str]: ...
        def uninstall(self, connection: BaseDatabaseWrapper) -> int: ...
        def missing(
            self, connection: BaseDatabaseWrapper, indexes: Iterable[Embeddings]
        ) -> list[str]: ...


#: Vendors whose databases can capture changes, and the modules that know how.
CAPTURE = {"postgresql": "postgresql", "sqlite": "sqlite"}


def connect() -> None:
    """Follow migrations, and mend what broken triggers would break; opens nothing."""
    config = apps.get_app_config("django_services")
    pre_migrate.connect(_before_migrate, sender=config, dispatch_uid=__name__)
    post_migrate.connect(_after_migrate, sender=config, dispatch_uid=__name__)
    wrap_connections(repeat_without_broken_triggers, vendor="sqlite")


def _vendor(connection: BaseDatabaseWrapper) -> Vendor | None:
    name = CAPTURE.get(connection.vendor)
    return cast("Vendor", import_module(f".{name}", __name__)) if name else None


def _before_migrate(**signal: Any) -> None:
    from . import migrate  # not loaded by every process that has the app

    migrate.before(**signal)


def _after_migrate(**signal: Any) -> None:
    from . import migrate

    migrate.after(**signal)


def install(alias: str) -> list[str]:
    """Make the triggers of a database those of its declarations.

    Triggers without a declaration are dropped; where a table or column is not
    there yet, a trigger stays missing. Safe to call again.

    Returns:
        Labels of the indexes of which a trigger was missing or altered and all are
        installed now: their sources may have changed unseen (`backlog.enqueue_all`).
    """
    connection = connections[alias]
    vendor = _vendor(connection)
    return vendor.install(connection, indexes_on(alias)) if vendor else []


def uninstall(alias: str) -> int:
    """Drop every trigger of this package, declared or not; return how many."""
    connection = connections[alias]
    vendor = _vendor(connection)
    return vendor.uninstall(connection) if vendor else 0


def missing(alias: str) -> list[str]:
    """Return the labels of indexes whose changes are not all captured.

    All of them, where the database's vendor is none of `CAPTURE`.
    """
    connection = connections[alias]
    vendor = _vendor(connection)
    if vendor is None:
        return [index.label for index in indexes_on(alias)]
    return vendor.missing(connection, indexes_on(alias))


__all__ = [
    "CAPTURE",
    "connect",
    "install",
    "missing",
    "uninstall",
    "wrap_connections",
]
