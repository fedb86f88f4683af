from django.contrib import admin

from django_services.admin import SearchAdmin

from .models import Entry


@admin.register(Entry)
class EntryAdmin(SearchAdmin):
    """The library, searched by meaning."""

    list_display = ("name", "kind", "summary")
    list_filter = ("kind",)
