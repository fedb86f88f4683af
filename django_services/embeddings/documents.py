"""Texts that are not in the ORM, as rows: pages, files, notes."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

from .declaration import Embeddings
from .search import SearchManager

NAME_LENGTH = 500


class Document(models.Model):
    """A text with a name: its path, its URL, whatever identifies it."""

    name = models.CharField(_("name"), max_length=NAME_LENGTH, unique=True)
    title = models.CharField(_("title"), max_length=500, blank=True)
    text = models.TextField(_("text"))
    metadata = models.JSONField(_("metadata"), default=dict, blank=True)
    added_at = models.DateTimeField(_("added at"), auto_now_add=True)
    changed_at = models.DateTimeField(_("changed at"), auto_now=True)

    embeddings = Embeddings("title", "text")

    objects = SearchManager()

    class Meta:
        app_label = "django_services"
        verbose_name = _("document")
        verbose_name_plural = _("documents")
        ordering = ("name",)

    def __str__(self) -> str:
        return self.title or self.name
