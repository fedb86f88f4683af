"""What the admin shows: documents, what failed, the spaces, and what was used at OpenAI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from django.contrib import admin, messages
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.text import Truncator
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from .embeddings import claims
from .embeddings.declaration import indexes
from .embeddings.search import SearchQuerySet
from .exceptions import ServiceError
from .ledger.report import totals
from .models import Document, Failure, Space, Usage

if TYPE_CHECKING:
    AnyModelAdmin = admin.ModelAdmin[Any]
    FailureModelAdmin = admin.ModelAdmin[Failure]
    SpaceModelAdmin = admin.ModelAdmin[Space]
    UsageModelAdmin = admin.ModelAdmin[Usage]
else:
    AnyModelAdmin = FailureModelAdmin = SpaceModelAdmin = UsageModelAdmin = admin.ModelAdmin


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


class LookOnly:
    """An admin of rows that nobody adds, changes or deletes by hand."""

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False


@admin.register(Space)
class SpaceAdmin(LookOnly, SpaceModelAdmin):
    """The spaces, to look at: `manage.py embeddings` changes them."""

    list_display = ("index", "model", "dimensions", "state", "created_at", "activated_at")
    list_filter = ("index", "state")


@admin.register(Usage)
class UsageAdmin(LookOnly, UsageModelAdmin):
    """What was used at OpenAI, to look at; `manage.py services usage` adds it up."""

    list_display = (
        *("at", "model", "endpoint", "tenant", "user", "feature"),
        *("input_tokens", "cached_tokens", "output_tokens", "shown_cost"),
        *("attempts", "outcome", "shown_ms"),
    )
    list_filter = ("at", "alias", "model", "endpoint", "outcome", "is_estimated", "feature")
    search_fields = ("=request_id", "=tenant", "=user", "=feature")
    search_help_text = _("A request id, a tenant, a user or a feature.")
    date_hierarchy = "at"
    ordering = ("-at",)
    list_per_page = 50
    show_full_result_count = False

    @admin.display(description=_("cost"), ordering="cost")
    def shown_cost(self, usage: Usage) -> str:
        return "?" if usage.cost is None else f"${usage.cost.normalize():f}"

    @admin.display(description=_("ms"), ordering="ms")
    def shown_ms(self, usage: Usage) -> str:
        return f"{usage.ms:,.0f}"

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        response = super().changelist_view(request, extra_context)
        # Another answer is a redirect: a filter that is none.
        if isinstance(response, TemplateResponse) and response.context_data is not None:
            response.context_data["subtitle"] = _summary(response.context_data["cl"].queryset)
        return response


def _summary(rows: QuerySet[Usage]) -> str:
    """Return what the rows under the filters come to."""
    found = totals(rows)
    parts = [
        ngettext("%d operation", "%d operations", found.operations) % found.operations,
        _("%d tokens in, %d out") % (found.input_tokens, found.output_tokens),
        _("$%s") % f"{found.cost or 0:,.4f}",
    ]
    if found.unknown_cost:
        parts.append(_("%d of unknown cost") % found.unknown_cost)
    return ", ".join(map(str, parts))
