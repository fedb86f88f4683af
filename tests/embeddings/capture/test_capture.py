"""What is captured, whatever the database's vendor."""

import json
import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, router, transaction

from django_services.embeddings import capture
from django_services.embeddings.declaration import get_index, indexes_on
from django_services.embeddings.models import Change
from django_services.embeddings.sources import Keys
from tests.testapp.models import (
    Article,
    Author,
    BlogPost,
    Book,
    FeaturedArticle,
    Note,
    Page,
    Place,
    Product,
    Publisher,
    Restaurant,
    Review,
    Service,
    Tag,
)

from .changes import ARTICLE, BOOK, NOTE, changed, changed_by, execute, held

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("database")]


# -- every way to write a source's own table ------------------------------------


def _insert_raw() -> None:
    execute(
        "INSERT INTO testapp_article (id, title, body, published, views) "
        "VALUES (7, 'raw', '', TRUE, 0)"
    )


INSERTS = {
    "save": lambda: Article(id=7, title="new").save(),
    "create": lambda: Article.objects.create(id=7, title="new"),
    "get_or_create": lambda: Article.objects.get_or_create(id=7, defaults={"title": "new"}),
    "update_or_create": lambda: Article.objects.update_or_create(id=7, defaults={"title": "new"}),
    "bulk_create": lambda: Article.objects.bulk_create([Article(id=7, title="new")]),
    "bulk_create ignoring conflicts": lambda: Article.objects.bulk_create(
        [Article(id=7, title="new")], ignore_conflicts=True
    ),
    "raw": _insert_raw,
    "a proxy": lambda: FeaturedArticle.objects.create(id=7, title="new"),
    "a child": lambda: BlogPost.objects.create(id=7, title="new", slug="new"),
    "an unpublished row": lambda: Article.objects.create(id=7, title="new", published=False),
}


@pytest.mark.parametrize("way", INSERTS)
def test_insert_is_captured(way):
    assert changed_by(ARTICLE, INSERTS[way]) == ["7"]


def _executemany() -> None:
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO testapp_article (id, title, body, published, views) "
            "VALUES (%s, 'raw', '', TRUE, 0)",
            [(7,), (8,)],
        )


def test_executemany_is_captured():
    assert changed_by(ARTICLE, _executemany) == ["7", "8"]


def test_loaddata_is_captured(tmp_path):
    fixture = tmp_path / "articles.json"
    fields = {"title": "loaded", "body": "", "published": True}
    fixture.write_text(json.dumps([{"model": "testapp.article", "pk": 7, "fields": fields}]))

    assert changed_by(ARTICLE, lambda: call_command("loaddata", fixture, verbosity=0)) == ["7"]


def _save(article: Article, **values: Any) -> None:
    for name, value in values.items():
        setattr(article, name, value)
    article.save()


def _bulk_update(article: Article) -> None:
    article.title = "two"
    Article.objects.bulk_update([article], ["title"])


def _upsert(article: Article) -> None:
    Article.objects.bulk_create(
        [Article(id=article.id, title="two")],
        update_conflicts=True,
        unique_fields=["id"],
        update_fields=["title"],
    )


UPDATES = {
    "save": lambda article: _save(article, title="two"),
    "update()": lambda article: Article.objects.update(body="two"),
    "bulk_update": _bulk_update,
    "update_or_create": lambda article: Article.objects.update_or_create(
        id=article.id, defaults={"title": "two"}
    ),
    "bulk_create updating conflicts": _upsert,
    "raw": lambda article: execute("UPDATE testapp_article SET title = 'two'"),
    "raw upsert": lambda article: execute(
        "INSERT INTO testapp_article (id, title, body, published, views) "
        "VALUES (%s, 'two', '', TRUE, 0) ON CONFLICT (id) DO UPDATE SET title = excluded.title",
        article.id,
    ),
    "a column of the condition": lambda article: Article.objects.update(published=False),
}


@pytest.mark.parametrize("way", UPDATES)
def test_update_of_a_watched_column_is_captured(way, article):
    assert changed_by(ARTICLE, lambda: UPDATES[way](article)) == [str(article.id)]


@pytest.mark.parametrize(
    "write",
    [
        lambda article: article.save(),
        lambda article: Article.objects.update(title=article.title),
        lambda article: Article.objects.update(views=100),
        lambda article: _save(article, views=100),
    ],
    ids=["save unchanged", "update() unchanged", "another column", "save of another column"],
)
def test_update_that_changes_no_watched_column_notes_nothing(write, article):
    assert changed_by(ARTICLE, lambda: write(article)) == []


def test_notes_vanish_with_a_rollback(article):
    Change.objects.all().delete()

    with transaction.atomic():
        Article.objects.create(title="new")
        Article.objects.update(title="two")
        article.delete()
        transaction.set_rollback(True)

    assert not Change.objects.exists()


# -- keys -----------------------------------------------------------------------


def test_uuid_is_noted_as_the_worker_reads_it():
    key = uuid.uuid4()

    noted = changed_by(NOTE, lambda: Note.objects.create(id=key, subject="new"))

    assert noted == [Keys(get_index(NOTE), "default").to_text(key)]


def test_text_key_and_odd_names_are_captured():
    noted = changed_by(
        "testapp.Page.headings", lambda: Page.objects.create(slug="it's", heading="h")
    )

    assert noted == ["it's"]
    assert changed("testapp.Page.contents") == ["it's"]


def test_each_declaration_of_a_model_watches_its_own_columns():
    Page.objects.create(slug="page", heading="one", content="one")

    noted = changed_by("testapp.Page.headings", lambda: Page.objects.update(heading="two"))

    assert noted == ["page"]
    assert changed("testapp.Page.contents") == []


# -- inheritance ------------------------------------------------------------------


def test_abstract_base_captures_for_each_model_on_its_own():
    noted = changed_by(
        "testapp.Product.embeddings", lambda: Product.objects.create(description="p")
    )
    Service.objects.create(description="s", price=1)

    assert len(noted) == 1
    assert len(changed("testapp.Service.embeddings")) == 1


@pytest.mark.parametrize(
    "write",
    [
        lambda: Restaurant.objects.update(name="two"),
        lambda: Place.objects.update(name="two"),
        lambda: Restaurant.objects.update(menu="two"),
        lambda: execute("UPDATE testapp_place SET name = 'two'"),
    ],
    ids=["child", "parent", "own column", "raw"],
)
def test_inherited_and_own_columns_are_captured_for_the_child(write):
    restaurant = Restaurant.objects.create(name="one", menu="one")
    Place.objects.create(name="no restaurant")

    assert changed_by("testapp.Restaurant.embeddings", write) == [str(restaurant.pk)]


def test_edit_through_a_child_or_proxy_is_captured_for_the_declaring_model():
    post = BlogPost.objects.create(title="one", slug="one")

    assert changed_by(ARTICLE, lambda: BlogPost.objects.update(title="two")) == [str(post.pk)]
    assert changed_by(ARTICLE, lambda: BlogPost.objects.update(slug="two")) == []
    assert changed_by(ARTICLE, lambda: FeaturedArticle.objects.update(title="three")) == [
        str(post.pk)
    ]


# -- related rows -----------------------------------------------------------------

RELATED = {
    "author's name": lambda book: Author.objects.update(name="two"),
    "author's publisher": lambda book: Author.objects.update(publisher=None),
    "publisher's name": lambda book: Publisher.objects.update(name="two"),
    "publisher deleted": lambda book: Publisher.objects.all().delete(),
    "author deleted": lambda book: Author.objects.all().delete(),
    "another author": lambda book: _save(book, author=Author.objects.create(name="two")),
    "no author": lambda book: Book.objects.update(author=None),
    "tag's name": lambda book: Tag.objects.update(name="two"),
    "tag deleted": lambda book: Tag.objects.all().delete(),
    "tag added": lambda book: book.tags.add(Tag.objects.create(name="two")),
    "tag removed": lambda book: book.tags.remove(book.tags.get()),
    "tags set": lambda book: book.tags.set([Tag.objects.create(name="two")]),
    "tags cleared": lambda book: book.tags.clear(),
    "tag added from its side": lambda book: book.tags.model.objects.create().book_set.add(book),
    "tag's row in between, raw": lambda book: execute("DELETE FROM testapp_book_tags"),
    "review's text": lambda book: Review.objects.update(text="two"),
    "review added": lambda book: Review.objects.create(book=book, text="two"),
    "reviews in bulk": lambda book: Review.objects.bulk_create([Review(book=book, text="two")]),
    "review deleted": lambda book: Review.objects.all().delete(),
    "review deleted, raw": lambda book: execute("DELETE FROM testapp_review"),
}


@pytest.mark.parametrize("way", RELATED)
def test_write_to_a_related_row_is_captured(way, book):
    Book.objects.create(title="another")

    assert changed_by(BOOK, lambda: RELATED[way](book)) == [str(book.id)]


def test_related_row_that_moves_is_captured_where_it_was_and_where_it_is(book):
    other = Book.objects.create(title="other")

    noted = changed_by(BOOK, lambda: Review.objects.update(book=other))

    assert noted == sorted([str(book.id), str(other.id)])


def test_related_row_that_nobody_names_notes_nothing(book):
    noted = changed_by(
        BOOK, lambda: (Author.objects.create(name="new"), Tag.objects.create(name="new"))
    )

    assert noted == []


def test_source_reached_twice_through_a_table_between_is_noted_once(book, monkeypatch):
    second = Author.objects.create(name="second", publisher=book.author.publisher)
    index: Any = SimpleNamespace(
        model=Publisher,
        label="test.Publisher.embeddings",
        chunk_model=get_index(BOOK).chunk_model,
        paths=lambda: ["author__book__title"],
    )
    with_it = [*indexes_on("default"), index]
    monkeypatch.setattr(capture, "indexes_on", lambda alias: with_it)
    capture.install("default")
    Change.objects.all().delete()

    Book.objects.update(author=second)

    notes = Change.objects.filter(index=index.label)
    assert [note.source for note in notes] == [str(second.publisher_id)]


# -- installing -------------------------------------------------------------------


def test_everything_is_installed_by_migrate_and_nothing_twice():
    assert capture.missing("default") == []
    assert capture.install("default") == []


def test_uninstall_leaves_no_trigger_and_install_brings_all_back():
    before = held()

    assert capture.uninstall("default") == len(before) > 0
    assert held() == {}
    labels = [index.label for index in indexes_on("default")]
    assert capture.missing("default") == labels
    assert capture.install("default") == labels
    assert held() == before


def test_database_where_no_source_migrates_has_no_trigger(monkeypatch):
    monkeypatch.setattr(router, "allow_migrate_model", lambda alias, model: False)

    capture.install("default")

    assert held() == {}
    assert capture.missing("default") == []


def test_what_does_not_fit_the_tables_stays_missing(caplog):
    capture.uninstall("default")
    execute("DROP TABLE testapp_review")
    caplog.set_level("INFO", logger="django_services")

    installed = capture.install("default")

    # Its sources are noted once all is there: then nothing can be missed any more.
    assert BOOK not in installed
    assert capture.missing("default") == [BOOK]
    assert "manage.py migrate" in caplog.text
    assert changed_by(BOOK, lambda: Book.objects.create(id=7, title="new")) == ["7"]
