from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.contenttypes.fields import GenericForeignKey, GenericRelation
from django.contrib.contenttypes.models import ContentType
from django.db import models
from django.db.models.functions import Lower
from django.test.utils import isolate_apps

from django_services.embeddings.capture.watch import Join, Watch, tables, watches
from django_services.exceptions import ConfigurationError
from tests.testapp.models import Article, Author, BlogPost, Book, Restaurant

AUTHOR = Join("testapp_author", near=("author_id",), far=("id",))
PUBLISHER = Join("testapp_publisher", near=("publisher_id",), far=("id",))
BOOK_TAGS = Join("testapp_book_tags", near=("id",), far=("book_id",))
TAG = Join("testapp_tag", near=("tag_id",), far=("id",))
REVIEW = Join("testapp_review", near=("id",), far=("book_id",))


def declared(model: type[models.Model], *paths: str) -> Any:
    """Return what `watches` reads of a declaration, of paths that no model declares."""
    return SimpleNamespace(model=model, paths=lambda: list(paths), label="app.Model.embeddings")


def test_fields_of_the_source_are_watched_in_its_own_table():
    assert watches(declared(Article, "title", "published")) == [
        Watch("testapp_article", ("title", "published"))
    ]


def test_forward_relation_is_watched_with_the_key_that_leads_there():
    assert watches(declared(Book, "author__name")) == [
        Watch("testapp_book", ("author_id",)),
        Watch("testapp_author", ("id", "name"), (AUTHOR,)),
    ]


def test_every_table_on_the_way_is_watched():
    assert watches(declared(Book, "author__publisher__name")) == [
        Watch("testapp_book", ("author_id",)),
        Watch("testapp_author", ("id", "publisher_id"), (AUTHOR,)),
        Watch("testapp_publisher", ("id", "name"), (AUTHOR, PUBLISHER)),
    ]


def test_many_to_many_is_watched_with_its_table_in_between():
    assert watches(declared(Book, "tags__name")) == [
        Watch("testapp_book", ()),
        Watch("testapp_book_tags", ("book_id", "tag_id"), (BOOK_TAGS,)),
        Watch("testapp_tag", ("id", "name"), (BOOK_TAGS, TAG)),
    ]


def test_reverse_relation_is_watched_with_the_key_that_leads_back():
    assert watches(declared(Book, "reviews__text")) == [
        Watch("testapp_book", ()),
        Watch("testapp_review", ("book_id", "text"), (REVIEW,)),
    ]


def test_lookups_that_share_a_table_share_its_watch():
    found = watches(declared(Book, "author__name", "author__publisher"))

    assert found[1:] == [Watch("testapp_author", ("id", "name", "publisher_id"), (AUTHOR,))]


@pytest.mark.parametrize("lookup", ["author", "author_id", "author__pk", "author__isnull"])
def test_a_relation_itself_is_the_column_that_holds_it(lookup):
    assert watches(declared(Book, lookup)) == [Watch("testapp_book", ("author_id",))]


def test_a_many_to_many_itself_is_the_table_in_between():
    assert watches(declared(Book, "tags")) == [
        Watch("testapp_book", ()),
        Watch("testapp_book_tags", ("book_id", "tag_id"), (BOOK_TAGS,)),
    ]


def test_inherited_field_is_watched_in_the_parents_table():
    place = Join("testapp_place", near=("place_ptr_id",), far=("id",))

    assert watches(declared(Restaurant, "name", "menu")) == [
        Watch("testapp_restaurant", ("menu",), key=("place_ptr_id",)),
        Watch("testapp_place", ("id", "name"), (place,)),
    ]


def test_primary_key_is_no_column_to_compare():
    assert watches(declared(Book, "pk", "id", "title")) == [Watch("testapp_book", ("title",))]


@pytest.mark.parametrize(
    "lookup", ["created_on__year__gt", "title__startswith", "title__length", "created_on"]
)
def test_transforms_and_lookups_end_at_their_field(lookup):
    models.CharField.register_lookup(Lower, "length")
    try:
        (watch,) = watches(declared(Article, lookup))
    finally:
        models.CharField._unregister_lookup(Lower, "length")

    assert watch.columns == (lookup.partition("__")[0],)


def test_tables_names_all_that_are_watched():
    found = tables(declared(Book, "title", "tags__name"))

    assert found == {"testapp_book", "testapp_book_tags", "testapp_tag"}


@pytest.mark.parametrize(
    ("model", "lookup", "named"),
    [
        (Article, "titel", "testapp.Article has no field 'titel'; did you mean 'title'?"),
        (Book, "author__nme", "testapp.Author has no field 'nme'; did you mean 'name'?"),
        (Book, "title__lenth", "testapp.Book has no field 'lenth'; known: "),
        (Author, "xyzzy", "testapp.Author has no field 'xyzzy'; known: "),
        (BlogPost, "slog", "did you mean 'slug'?"),
    ],
)
def test_unknown_lookup_is_refused_with_the_nearest_field(model, lookup, named):
    with pytest.raises(ConfigurationError) as error:
        watches(declared(model, lookup))

    assert named in str(error.value)
    assert repr(lookup) in str(error.value)


@isolate_apps("tests.testapp")
def test_foreign_key_to_another_field_joins_by_it():
    class Country(models.Model):
        code = models.CharField(max_length=2, unique=True)
        name = models.CharField(max_length=20)

        class Meta:
            app_label = "testapp"

    class City(models.Model):
        country = models.ForeignKey(Country, models.CASCADE, to_field="code")

        class Meta:
            app_label = "testapp"

    city, country = watches(declared(City, "country__name"))

    assert city.columns == ("country_id",)
    assert country.columns == ("code", "name")
    assert country.joins == (Join("testapp_country", near=("country_id",), far=("code",)),)


@isolate_apps("tests.testapp", "django.contrib.contenttypes")
def test_generic_relation_is_followed_and_generic_foreign_key_refused():
    class Remark(models.Model):
        text = models.TextField()
        content_type = models.ForeignKey(ContentType, models.CASCADE)
        object_id = models.CharField(max_length=20)
        target = GenericForeignKey()

        class Meta:
            app_label = "testapp"

    class Photo(models.Model):
        remarks = GenericRelation(Remark)

        class Meta:
            app_label = "testapp"

    _, remark = watches(declared(Photo, "remarks__text"))

    assert remark.columns == ("object_id", "text")
    assert remark.joins == (Join("testapp_remark", near=("id",), far=("object_id",)),)
    with pytest.raises(ConfigurationError, match="GenericRelation"):
        watches(declared(Remark, "target__title"))


@isolate_apps("tests.testapp")
def test_generated_column_is_computed():
    class Person(models.Model):
        name = models.CharField(max_length=20)
        lowered = models.GeneratedField(
            expression=Lower("name"), output_field=models.CharField(max_length=20), db_persist=False
        )

        class Meta:
            app_label = "testapp"

    (watch,) = watches(declared(Person, "lowered"))

    assert watch.is_computed
