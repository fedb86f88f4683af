"""The Django app: connects what listens, opens nothing and imports no SDK."""

from __future__ import annotations

from importlib.util import find_spec

from django.apps import AppConfig


class DjangoServicesConfig(AppConfig):
    name = "django_services"
    verbose_name = "Services"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        # Models must be loaded before these are.
        from .embeddings import capture, on_commit

        if find_spec("django_services.checks"):  # until it is there
            from . import checks  # noqa: F401

        capture.connect()
        on_commit.connect()
