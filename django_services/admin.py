"""What the admin shows: documents, what failed, and the spaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from django.contrib import admin, messages
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.text import Truncator
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from .embeddings import claims
from .embeddings.declaration import indexes
from .embeddings.search import SearchQuerySet
from .exceptions import ServiceError
from .models import Document, Failure, Space

if TYPE_CHECKING:
    AnyModelAdmin = admin.ModelAdmin[Any]
    FailureModelAdmin = admin.ModelAdmin[Failure]
    SpaceModelAdmin = admin.ModelAdmin[Space]
else:
    AnyModelAdmin = FailureModelAdmin = SpaceModelAdmin = admin.ModelAdmin


class SearchAdmin(AnyModelAdmin):
    """An admin whose search box searches by meaning, for a model with embeddings.

    ``search_index`` names the declaration, where the model has several.
    """

    #: Not empty, so that there is a search box.
    search_fields = ("pk",)
    search_help_text = _("Searches by meaning: ask in your own words.")
    search_index: str | None = None

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        if not search_term.strip():
            return queryset, False
        try:
            # On any queryset, also of a manager that knows no search.
            rows = cast("SearchQuerySet[Any]", queryset)
            found = SearchQuerySet.search(rows, search_term, index=self.search_index)
            found.exists()  # what the service refuses, it refuses here
        except ServiceError as error:
            self.message_user(request, str(error), messages.ERROR)
            return queryset.none(), False
        return found, False


@admin.register(Document)
class DocumentAdmin(SearchAdmin):
    """Documents, searched by meaning."""

    list_display = ("name", "title", "excerpt", "changed_at")
    readonly_fields = ("added_at", "changed_at")

    @admin.display(description=_("text"))
    def excerpt(self, document: Document) -> str:
        """The passage that was found, else the text's beginning."""
        passage = getattr(document, "search_passage", None)
        return Truncator(passage or document.text).chars(200)


@admin.register(Failure)
class FailureAdmin(FailureModelAdmin):
    """Rows that could not be embedded, and a way to try them again."""

    list_display = ("index", "source", "error", "message", "attempts", "set_aside")
    list_filter = ("index", "error", "set_aside")
    actions = ("retry",)

    @admin.action(description=_("Try the selected rows again"), permissions=["delete"])
    def retry(self, request: HttpRequest, queryset: QuerySet[Failure]) -> None:
        failures = list(queryset)
        with transaction.atomic(using=queryset.db):
            for index in indexes():
                keys = [each.source for each in failures if each.index == index.label]
                claims.append(index, queryset.db, keys)
            queryset.delete()
        message = ngettext("%d row is pending again.", "%d rows are pending again.", len(failures))
        self.message_user(request, message % len(failures), messages.SUCCESS)

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False


@admin.register(Space)
class SpaceAdmin(SpaceModelAdmin):
    """The spaces, to look at: `manage.py embeddings` changes them."""

    list_display = ("index", "model", "dimensions", "state", "created_at", "activated_at")
    list_filter = ("index", "state")

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False
