from types import SimpleNamespace
from typing import Any, Self

import pytest
from django.db import connection, models
from django.db.models.functions import Lower
from django.test.utils import isolate_apps

from django_services.embeddings import capture
from django_services.embeddings.capture import sqlite
from django_services.embeddings.declaration import get_index
from django_services.embeddings.models import Change, ChunkChange, Failure
from tests.testapp.models import (
    Article,
    Book,
    Category,
    Place,
    Restaurant,
)

from .changes import (
    ARTICLE,
    BOOK,
    DELETES,
    add_chunk,
    changed_by,
    chunks_of,
    execute,
    logged_chunks,
)

pytestmark = pytest.mark.django_db


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


def test_child_added_to_a_parent_and_taken_from_it_is_captured():
    label = "testapp.Restaurant.embeddings"
    place = Place.objects.create(name="place")
    restaurant = Restaurant(place_ptr=place, menu="menu", name="place")

    assert changed_by(label, restaurant.save) == [str(place.pk)]
    add_chunk(get_index(label), place.pk)
    restaurant.delete(keep_parents=True)
    assert chunks_of(get_index(label)) == []


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
