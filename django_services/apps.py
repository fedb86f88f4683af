"""The Django app: connects what listens, opens nothing and imports no SDK."""

from __future__ import annotations

from django.apps import AppConfig


class DjangoServicesConfig(AppConfig):
    name = "django_services"
    verbose_name = "Services"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from importlib import import_module
        from importlib.util import find_spec

        # Scaffold: until the modules are there.
        for name in ("checks", "embeddings.capture", "embeddings.on_commit"):
            if find_spec(f"{self.name}.{name}"):
                module = import_module(f"{self.name}.{name}")
                getattr(module, "connect", lambda: None)()
