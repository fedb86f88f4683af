"""The pages: a search over the library, and the admin."""

from django.contrib import admin
from django.urls import path

from .library.views import search

urlpatterns = [
    path("", search, name="search"),
    path("admin/", admin.site.urls),
]
