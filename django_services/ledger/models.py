"""The table of usage."""

from __future__ import annotations

from typing import ClassVar

from django.db import models, router
from django.db.models import QuerySet
from django.utils.translation import gettext_lazy as _

from .. import conf


def database(settings: conf.LedgerSettings | None = None) -> str:
    """Return the database that holds the ledger: the setting's, else the routers'."""
    alias = (settings or conf.ledger()).database
    return alias if alias != "default" else router.db_for_write(Usage)


class UsageManager(models.Manager["Usage"]):
    """Reads and writes where the ledger is, unless told otherwise."""

    def get_queryset(self) -> QuerySet[Usage]:
        # Django's managers take the routers' word, who know nothing of our setting.
        return super().get_queryset().using(self._db or database())


class Usage(models.Model):
    """One operation at OpenAI, with all of its attempts.

    Tokens and cost are NULL where nobody knows them, never 0.
    """

    # Made by the process: a batch that is written twice is stored once.
    id = models.UUIDField(primary_key=True, editable=False)
    at = models.DateTimeField(_("at"))  # its end
    alias = models.CharField(_("alias"), max_length=100)
    model = models.CharField(_("model"), max_length=255, blank=True, default="")
    endpoint = models.CharField(_("endpoint"), max_length=255)
    tenant = models.CharField(_("tenant"), max_length=255, blank=True, default="")
    user = models.CharField(_("user"), max_length=255, blank=True, default="")
    feature = models.CharField(_("feature"), max_length=255, blank=True, default="")
    input_tokens = models.BigIntegerField(_("input tokens"), null=True, blank=True)
    cached_tokens = models.BigIntegerField(_("cached tokens"), null=True, blank=True)
    output_tokens = models.BigIntegerField(_("output tokens"), null=True, blank=True)
    is_estimated = models.BooleanField(_("estimated"), default=False)
    # US dollars. The cheapest token costs a few billionths.
    cost = models.DecimalField(_("cost"), max_digits=24, decimal_places=12, null=True, blank=True)
    attempts = models.PositiveIntegerField(_("attempts"), default=0)
    outcome = models.CharField(_("outcome"), max_length=100)  # "ok", or the error's class
    status = models.PositiveIntegerField(_("HTTP status"), null=True, blank=True)
    ms = models.FloatField(_("ms"))
    request_id = models.CharField(_("request id"), max_length=255, blank=True, default="")

    objects: ClassVar[UsageManager] = UsageManager()

    class Meta:
        app_label = "django_services"
        verbose_name = _("usage")
        verbose_name_plural = _("usage")
        default_permissions = ("view",)
        indexes = (models.Index(fields=["at"], name="django_services_usage_at"),)

    def __str__(self) -> str:
        return f"{self.endpoint} {self.model} at {self.at:%Y-%m-%d %H:%M:%S}: {self.outcome}"
