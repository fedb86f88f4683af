import json
import uuid
from types import SimpleNamespace
from typing import Any, Self

import pytest
from django.core.management import call_command
from django.db import connection, models, transaction
from django.db.models.functions import Lower
from django.test.utils import isolate_apps

from django_services.embeddings import capture
from django_services.embeddings.capture import sqlite
from django_services.embeddings.declaration import get_index, indexes_on
from django_services.embeddings.models import Change, ChunkChange, Failure
from tests.testapp.models import (
    Article,
    Author,
    BlogPost,
    Book,
    Category,
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

from .changes import add_chunk, changed, changed_by, chunks_of, execute, logged_chunks

pytestmark = pytest.mark.django_db

ARTICLE = "testapp.Article.embeddings"
BOOK = "testapp.Book.embeddings"
NOTE = "testapp.Note.embeddings"


@pytest.fixture
def article() -> Article:
    return Article.objects.create(title="one", body="first")


@pytest.fixture
def book() -> Book:
    publisher = Publisher.objects.create(name="publisher")
    author = Author.objects.create(name="author", publisher=publisher)
    book = Book.objects.create(title="book", author=author)
    book.tags.add(Tag.objects.create(name="tag"))
    Review.objects.create(book=book, text="review")
    return book


# -- every way to write a source's own table ------------------------------------


def _insert_raw() -> None:
    execute(
        "INSERT INTO testapp_article (id, title, body, published, views) "
        "VALUES (7, 'raw', '', 1, 0)"
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
            "VALUES (%s, 'raw', '', 1, 0)",
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
    "raw replace": lambda article: execute(
        "INSERT OR REPLACE INTO testapp_article (id, title, body, published, views) "
        "VALUES (%s, 'two', '', 1, 0)",
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


DELETES = {
    "delete()": lambda article: article.delete(),
    "a queryset's": lambda article: Article.objects.all().delete(),
    "raw": lambda article: execute("DELETE FROM testapp_article"),
    "raw by key": lambda article: execute("DELETE FROM testapp_article WHERE id = %s", article.id),
}


@pytest.mark.parametrize("way", DELETES)
def test_delete_takes_chunks_and_failure_along(way, article):
    index = get_index(ARTICLE)
    add_chunk(index, article.id)
    for label in (ARTICLE, BOOK):
        Failure.objects.create(index=label, source=str(article.id), retry_at=0)

    DELETES[way](article)

    assert chunks_of(index) == []
    assert list(Failure.objects.values_list("index", flat=True)) == [BOOK]


def test_delete_spares_the_chunks_of_others(article):
    index = get_index(ARTICLE)
    other = Article.objects.create(title="other")
    add_chunk(index, article.id)
    kept = add_chunk(index, other.id)

    article.delete()

    assert chunks_of(index) == [kept]


def test_delete_of_a_category_takes_the_chunks_of_its_articles(article):
    article.category = Category.objects.create(name="category")
    article.save()
    add_chunk(get_index(ARTICLE), article.id)

    article.category.delete()

    assert chunks_of(get_index(ARTICLE)) == []


def test_changed_key_is_one_source_less_and_one_more(article):
    index = get_index(ARTICLE)
    add_chunk(index, article.id)

    noted = changed_by(ARTICLE, lambda: Article.objects.filter(pk=article.pk).update(id=99))

    assert noted == ["99"]
    assert chunks_of(index) == []


def test_text_that_differs_in_case_only_is_captured_whatever_the_collation():
    with _table_of("name TEXT COLLATE NOCASE") as changes:
        execute("INSERT INTO odd (id, name) VALUES (1, 'polish')")
        changes.clear()

        execute("UPDATE odd SET name = 'Polish'")

        assert changes.noted() == ["1"]


# -- keys -----------------------------------------------------------------------


def test_uuid_is_noted_as_it_is_stored():
    key = uuid.uuid4()

    assert changed_by(NOTE, lambda: Note.objects.create(id=key, subject="new")) == [key.hex]


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


def test_child_added_to_a_parent_and_taken_from_it_is_captured():
    label = "testapp.Restaurant.embeddings"
    place = Place.objects.create(name="place")
    restaurant = Restaurant(place_ptr=place, menu="menu", name="place")

    assert changed_by(label, restaurant.save) == [str(place.pk)]
    add_chunk(get_index(label), place.pk)
    restaurant.delete(keep_parents=True)
    assert chunks_of(get_index(label)) == []


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


def test_related_row_that_replaces_another_is_captured(book):
    execute("PRAGMA defer_foreign_keys = ON")
    replace = "INSERT OR REPLACE INTO testapp_author (id, name) VALUES (%s, 'two')"

    assert changed_by(BOOK, lambda: execute(replace, book.author_id)) == [str(book.id)]


def test_related_row_deleted_past_its_constraint_is_captured(book):
    execute("PRAGMA defer_foreign_keys = ON")
    delete = "DELETE FROM testapp_author WHERE id = %s"

    noted = changed_by(BOOK, lambda: execute(delete, book.author_id))

    assert noted == [str(book.id)]
    Book.objects.update(author=None)


def test_related_row_that_nobody_names_notes_nothing(book):
    noted = changed_by(
        BOOK, lambda: (Author.objects.create(name="new"), Tag.objects.create(name="new"))
    )

    assert noted == []


def test_source_reached_twice_through_a_table_between_is_noted_once(book):
    second = Author.objects.create(name="second", publisher=book.author.publisher)
    index: Any = SimpleNamespace(
        model=Publisher,
        label="test.Publisher.embeddings",
        chunk_model=get_index(BOOK).chunk_model,
        paths=lambda: ["author__book__title"],
    )
    for trigger in sqlite.triggers(index, connection):
        execute(trigger.sql)

    Book.objects.update(author=second)

    notes = Change.objects.filter(index=index.label)
    assert [note.source for note in notes] == [str(second.publisher_id)]


# -- chunks -----------------------------------------------------------------------


def test_every_write_to_a_chunk_is_logged(article):
    index = get_index(ARTICLE)
    logged_chunks()

    chunk = add_chunk(index, article.id)
    assert logged_chunks() == [chunk]
    index.chunk_model.objects.update(text="two")
    assert set(logged_chunks()) == {chunk}
    article.delete()
    assert logged_chunks() == [chunk]


def test_log_with_a_gap_begins_anew_so_that_readers_do_too(article):
    chunk = add_chunk(get_index(ARTICLE), article.id)
    last_seen = ChunkChange.objects.get(chunk=chunk)
    capture.uninstall("default")

    capture.install("default")

    (first,) = ChunkChange.objects.all()
    assert first.chunk == sqlite.NO_CHUNK
    assert first.id > last_seen.id


# -- installing -------------------------------------------------------------------


def test_everything_is_installed_by_migrate_and_nothing_twice():
    assert capture.missing("default") == []
    assert capture.install("default") == []


def test_uninstall_leaves_no_trigger_and_install_brings_all_back():
    before = sqlite.existing(connection)

    assert capture.uninstall("default") == len(before) > 0
    assert sqlite.existing(connection) == {}
    labels = [index.label for index in indexes_on("default")]
    assert capture.missing("default") == labels
    assert capture.install("default") == labels
    assert sqlite.existing(connection) == before


def test_missing_trigger_is_told_and_mended():
    name = next(name for name, sql in sqlite.existing(connection).items() if ARTICLE in sql)
    execute(f'DROP TRIGGER "{name}"')

    assert capture.missing("default") == [ARTICLE]
    assert capture.install("default") == [ARTICLE]
    assert capture.missing("default") == []


def test_altered_trigger_is_told_and_mended():
    name = next(name for name, sql in sqlite.existing(connection).items() if ARTICLE in sql)
    execute(f'DROP TRIGGER "{name}"')
    execute(f'CREATE TRIGGER "{name}" AFTER INSERT ON testapp_article BEGIN SELECT 1; END')

    assert capture.missing("default") == [ARTICLE]
    assert capture.install("default") == [ARTICLE]
    assert capture.missing("default") == []


def test_trigger_without_a_declaration_is_dropped_and_others_triggers_are_left():
    body = "AFTER INSERT ON testapp_article BEGIN SELECT 1; END"
    execute(f"CREATE TRIGGER django_services_insert_gone {body}")
    execute(f"CREATE TRIGGER of_the_user {body}")

    assert capture.install("default") == []
    assert "django_services_insert_gone" not in sqlite.existing(connection)
    capture.uninstall("default")
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        assert cursor.fetchall() == [("of_the_user",)]


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


@pytest.mark.parametrize(
    "kind",
    [
        "VIEW testapp_review AS SELECT 1 AS id, 1 AS book_id, '' AS text",
        "VIRTUAL TABLE testapp_review USING fts5 (id, book_id, text)",
    ],
    ids=["view", "virtual"],
)
def test_what_cannot_have_triggers_stays_missing(kind):
    capture.uninstall("default")
    execute("DROP TABLE testapp_review")
    execute(f"CREATE {kind}")

    capture.install("default")

    assert capture.missing("default") == [BOOK]


# -- columns that no model of the test app has --------------------------------------


class _Table:
    """A table ``odd`` with the triggers of a made-up declaration."""

    def __init__(self, columns: str, watched: tuple[Any, ...]) -> None:
        self.columns = columns
        self.index = SimpleNamespace(
            label="test.Odd.embeddings",
            chunk_model=get_index(ARTICLE).chunk_model,
            paths=lambda: [field.name for field in watched],
        )
        with isolate_apps("tests.testapp"):
            meta = type("Meta", (), {"app_label": "testapp", "db_table": "odd"})
            body = {field.name: field for field in watched}
            self.index.model = type(
                "Odd", (models.Model,), {**body, "Meta": meta, "__module__": ""}
            )

    def __enter__(self) -> Self:
        execute(f"CREATE TABLE odd (id INTEGER PRIMARY KEY, {self.columns})")
        for trigger in sqlite.triggers(self.index, connection):
            if not trigger.watches_chunks:
                execute(trigger.sql)
        return self

    def __exit__(self, *_: object) -> None:
        execute("DROP TABLE odd")

    def clear(self) -> None:
        Change.objects.all().delete()

    def noted(self) -> list[str]:
        return list(Change.objects.values_list("source", flat=True))


def _table_of(columns: str) -> _Table:
    return _Table(columns, (_named(models.CharField(max_length=20), "name"),))


def _named(field: Any, name: str) -> Any:
    field.name = name
    return field


def test_generated_column_is_captured_when_its_expression_changes():
    lowered = models.GeneratedField(
        expression=Lower("name"), output_field=models.CharField(max_length=20), db_persist=False
    )
    columns = "name TEXT, lowered TEXT GENERATED ALWAYS AS (lower(name)) VIRTUAL"
    with _Table(columns, (_named(lowered, "lowered"),)) as changes:
        execute("INSERT INTO odd (id, name) VALUES (1, 'One')")
        changes.clear()

        execute("UPDATE odd SET name = 'ONE'")
        assert changes.noted() == []
        execute("UPDATE odd SET name = 'two'")
        assert changes.noted() == ["1"]


def test_delete_by_the_databases_own_cascade_is_captured():
    execute("CREATE TABLE owner (id INTEGER PRIMARY KEY)")
    reference = "owner_id INTEGER REFERENCES owner (id) ON DELETE CASCADE"
    with _table_of(f"name TEXT, {reference}"):
        execute("INSERT INTO owner VALUES (1)")
        execute("INSERT INTO odd (id, name, owner_id) VALUES (1, 'one', 1)")
        chunk = add_chunk(get_index(ARTICLE), 1)

        execute("DELETE FROM owner")

        assert chunk not in chunks_of(get_index(ARTICLE))
    execute("DROP TABLE owner")
