"""The Django app: connects what listens, opens nothing and imports no SDK."""

from __future__ import annotations

import os
import sys
from typing import Any

from django.apps import AppConfig
from django.core import checks


class DjangoServicesConfig(AppConfig):
    name = "django_services"
    verbose_name = "Services"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        # Not at the top: they need the models, which are loaded by now.
        from . import ledger
        from .embeddings import capture, on_commit

        checks.register(_check)
        checks.register(_check_production, deploy=True)
        capture.connect()
        on_commit.connect()
        ledger.connect()
        os.register_at_fork(after_in_child=_forget_inherited_connections)


# The modules below load when they are needed: a process starts with little.


def _check(**_: Any) -> list[checks.CheckMessage]:
    from .checks import check

    return check()


def _check_production(**_: Any) -> list[checks.CheckMessage]:
    from .checks import check_production

    return check_production()


def _forget_inherited_connections() -> None:
    # Where PostgreSQL was not used before the fork, nothing is inherited.
    if "django.db.backends.postgresql.base" in sys.modules:
        from .db_service import forget_inherited

        forget_inherited()
