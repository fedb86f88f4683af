"""The Django app: connects what listens, opens nothing and imports no SDK."""

from __future__ import annotations

from django.apps import AppConfig


class DjangoServicesConfig(AppConfig):
    name = "django_services"
    verbose_name = "Services"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        # Not at the top: they need the models, which are loaded by now.
        from . import checks, db_service  # noqa: F401  # register checks and the fork's hook
        from .embeddings import capture, on_commit

        capture.connect()
        on_commit.connect()
