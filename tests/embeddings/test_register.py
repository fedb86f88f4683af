"""Embeddings on somebody else's models, from `register` to the last deletion."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.usefixtures("database")

#: What happens to a project and to the rows of its models, in one process: what does
#: not hold is printed.
LIVES = """
import importlib, json
from django.apps import apps
from django.core.management import call_command
from django_services.testing import embed_pending

call_command("makemigrations", "vendor", "shop", verbosity=0)
importlib.invalidate_caches()  # the files are newer than what Python knows of the folders
call_command("makemigrations", check_changes=True, dry_run=True, verbosity=0)
call_command("migrate", verbosity=0)


def live(model, keys):
    objects, chunks = model._default_manager, model.embeddings.index.chunk_model._default_manager

    def stored():
        return {{str(chunk.source_id): chunk.text for chunk in chunks.all()}}

    def found(query, **filters):
        return [str(row.pk) for row in model.embeddings.search(query).filter(**filters)[:1]]

    yield "migrates with the registering app", chunks.model._meta.app_label == "shop"
    for key in keys:
        objects.create(**key, title="Compression", content="how to compress a file with zip")
    embed_pending()
    first, second = (str(row.pk) for row in objects.order_by("pk"))
    yield "embedded", set(stored()) == {{first, second}}
    objects.filter(pk=second).update(title="Baking", content="bread with flour and yeast")
    embed_pending()
    yield "edited", stored()[second].startswith("Baking")
    yield "found", found("bread and flour") == [second] and found("compress a file") == [first]
    yield "found by filter", found("bread and flour", pk=first) == [first]
    row = objects.get(pk=first)
    yield "its chunks", [chunk.text for chunk in row.embeddings.all()] == [stored()[first]]
    yield "similar", [str(other.pk) for other in model.embeddings.similar_to(row)] == [second]
    objects.get(pk=second).delete()
    yield "deleted", set(stored()) == {{first}}
    objects.filter(pk=first).update(title="", content="")
    embed_pending()
    yield "emptied", stored() == {{}}


print(json.dumps({{
    label: [step for step, holds in live(apps.get_model(label), keys) if not holds]
    for label, keys in {models!r}.items()
}}))
"""

#: Third parties' models: label -> what makes two rows of them.
MODELS = {
    "flatpages.FlatPage": [{"url": "/one/"}, {"url": "/two/"}],
    "vendor.Term": [{"slug": "it's one"}, {"slug": 'tw"o, %s'}],
    "vendor.Entry": [{}, {}],
}


@pytest.fixture
def library(project):
    """A project that embeds Django's flat pages, and models with a text and a UUID key."""
    project.configure("""
        INSTALLED_APPS += ["django.contrib.sites", "django.contrib.flatpages", "vendor"]
        SITE_ID = 1
    """)
    project.write("vendor/__init__.py", "")
    project.write("vendor/migrations/__init__.py", "")
    project.write(
        "vendor/models.py",
        """
        import uuid
        from django.db import models

        class Text(models.Model):
            title = models.CharField(max_length=50)
            content = models.TextField()

            class Meta:
                abstract = True

        class Term(Text):
            slug = models.CharField(max_length=20, primary_key=True)

        class Entry(Text):
            id = models.UUIDField(primary_key=True, default=uuid.uuid4)
        """,
    )
    project.models("""
        from django.contrib.flatpages.models import FlatPage
        from django_services import register
        from vendor.models import Entry, Term

        for model in (FlatPage, Term, Entry):
            register(model, Embeddings("title", "content"), app="shop")
    """)
    return project


@pytest.mark.slow
def test_rows_of_registered_models_are_embedded_edited_found_and_deleted(library):
    broken = json.loads(library.python(LIVES.format(models=MODELS)).stdout)

    assert broken == {label: [] for label in MODELS}
