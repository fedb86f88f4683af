from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from .models import Entry


@admin.register(Entry)
class EntryAdmin(admin.ModelAdmin):
    """The library, searched by meaning."""

    list_display = ("name", "kind", "summary")
    list_filter = ("kind",)
    search_fields = ("name",)  # shows the search box; the search itself is by meaning
    search_help_text = "What are you looking for? For example: how do I compress a file?"

    def get_search_results(
        self,
        request: HttpRequest,
        queryset: QuerySet[Entry],
        search_term: str,  # noqa: ARG002
    ) -> tuple[QuerySet[Entry], bool]:
        return (queryset.search(search_term) if search_term.strip() else queryset), False
