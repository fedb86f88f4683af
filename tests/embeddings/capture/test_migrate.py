import sqlite3
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, migrations
from django.db.migrations import Migration

from django_services.embeddings import capture
from django_services.embeddings.capture import backlog, migrate, sqlite
from django_services.embeddings.declaration import indexes_on
from django_services.embeddings.models import Change
from tests.testapp.models import Article, Author, Book, Review, Tag

from .changes import ARTICLE, BOOK, add_chunk, changed, changed_by, chunks_of, execute
from .conftest import Shop

TITLE = "title = models.CharField(max_length=50)"
AUTHOR = "author = models.ForeignKey(Author, models.SET_NULL, null=True)"


pytestmark = pytest.mark.slow  # each migrates a project of its own

ON_SQLITE = pytest.mark.parametrize("shop", ["sqlite"], indirect=True)
ON_POSTGRESQL = pytest.mark.parametrize("shop", ["postgresql"], indirect=True)


# -- a project that migrates --------------------------------------------------------


def test_rename_of_a_watched_column(shop: Shop):
    shop.change_models((TITLE, TITLE.replace("title", "headline")), ('"title"', '"headline"'))
    shop.migration(2, "migrations.RenameField('article', 'title', 'headline')")

    assert shop.apply() == []

    assert shop.noted() == ["1", "2"]
    assert shop.noted_by("UPDATE shop_article SET headline = 'new' WHERE id = 1") == ["1"]


def test_change_of_a_watched_column(shop: Shop):
    shop.change_models((TITLE, "title = models.TextField(null=True)"))
    shop.migration(2, "migrations.AlterField('article', 'title', models.TextField(null=True))")

    assert shop.apply() == []

    assert shop.noted() == ["1", "2"]
    assert shop.noted_by("UPDATE shop_article SET title = NULL WHERE id = 1") == ["1"]


def test_drop_of_a_watched_column(shop: Shop):
    shop.change_models((TITLE, ""), ('"title", ', ""))
    shop.migration(2, "migrations.RemoveField('article', 'title')")

    assert shop.apply() == []

    assert shop.noted() == ["1", "2"]
    assert shop.noted_by("UPDATE shop_author SET name = 'new'") == ["1"]


def test_column_dropped_and_added_anew_under_the_same_name(shop: Shop):
    shop.migration(
        2,
        "migrations.RemoveField('article', 'title')",
        "migrations.AddField('article', 'title', models.CharField(max_length=9, default='x'))",
    )

    assert shop.apply() == []

    assert shop.noted() == ["1", "2"]


def test_drop_of_a_related_table(shop: Shop):
    shop.change_models((AUTHOR, ""), (', "author__name"', ""))
    shop.migration(
        2, "migrations.RemoveField('article', 'author')", "migrations.DeleteModel('Author')"
    )

    assert shop.apply() == []

    assert shop.noted() == ["1", "2"]
    assert shop.noted_by("UPDATE shop_article SET title = 'new' WHERE id = 2") == ["2"]


def test_rename_of_a_related_table(shop: Shop):
    shop.change_models(
        ("class Author(", "class Writer("), ("ForeignKey(Author", "ForeignKey(Writer")
    )
    shop.migration(2, "migrations.RenameModel('Author', 'Writer')")

    shop.apply()

    assert shop.noted() == ["1", "2"]
    assert shop.noted_by("UPDATE shop_writer SET name = 'new'") == ["1"]


def test_rename_of_the_source(shop: Shop):
    shop.change_models(("class Article(", "class Post("))
    shop.migration(
        2,
        "migrations.RenameModel('Article', 'Post')",
        "migrations.RenameModel('ArticleEmbeddingsChunk', 'PostEmbeddingsChunk')",
    )

    assert shop.apply() == []

    assert shop.noted("shop.Post.embeddings") == ["1", "2"]
    assert shop.noted_by("UPDATE shop_post SET title = 'new' WHERE id = 1") == []
    assert shop.noted("shop.Post.embeddings") == ["1"]


@ON_SQLITE
def test_declaration_taken_away_leaves_no_trigger(shop: Shop):
    shop.change_models(('embeddings = Embeddings("title", "author__name")', ""))
    shop.migration(2, "migrations.DeleteModel('ArticleEmbeddingsChunk')")

    shop.apply()

    assert shop.triggers("shop") == []
    assert shop.noted_by("UPDATE shop_article SET title = 'new'") == []


@ON_SQLITE
def test_declaration_that_watches_more_is_noted_without_a_migration(shop: Shop):
    shop.change_models(('"author__name")', '"author__name", "views")'))

    assert shop.apply() == []

    assert shop.noted() == ["1", "2"]
    assert shop.noted_by("UPDATE shop_article SET views = 5 WHERE id = 2") == ["2"]


def test_migration_that_touches_nothing_watched_notes_nothing(shop: Shop):
    before = shop.triggers()
    shop.migration(
        2,
        "migrations.AddField('other', 'size', models.IntegerField(default=1))",
        "migrations.AddField('other', 'article', models.ForeignKey('shop.Article', "
        "models.CASCADE, null=True))",
        "migrations.AlterField('article', 'title', "
        "models.CharField(max_length=50, help_text='What it says'))",
        "migrations.CreateModel('Remark', [('id', models.BigAutoField(primary_key=True)), "
        "('article', models.ForeignKey('shop.Article', models.CASCADE))])",
    )

    assert shop.apply() == []

    assert shop.noted() == []
    assert shop.triggers() == before


@ON_SQLITE
def test_rows_that_a_migration_deletes_take_their_chunks_along(shop: Shop):
    shop.query(
        'INSERT INTO shop_articleembeddingschunk (source_id, space_id, number, start, "end", '
        "text, context, content_hash, vector) VALUES (1, 1, 0, 0, 1, '', '', x'00', x'00')"
    )
    shop.migration(2, "migrations.RunSQL('DELETE FROM shop_article WHERE id = 1')")

    shop.apply()

    assert shop.query("SELECT * FROM shop_articleembeddingschunk") == []
    assert shop.noted() == ["2"]


@ON_SQLITE
def test_migration_that_fails_midway_leaves_nothing_out(shop: Shop):
    shop.migration(2, "migrations.RunSQL(\"UPDATE shop_article SET title = 'seen by nobody'\")")
    shop.migration(3, "migrations.RunPython(fail)")

    assert shop.apply() == ["django_services.Document.embeddings", "shop.Article.embeddings"]
    assert shop.noted_by("UPDATE shop_article SET title = 'between'") == []
    shop.migration(3, "migrations.AlterModelOptions('other', {})")
    assert shop.apply() == []

    assert shop.noted() == ["1", "2"]


@ON_POSTGRESQL
def test_triggers_outlive_a_migration_that_fails_midway(shop: Shop):
    shop.migration(2, "migrations.RunSQL(\"UPDATE shop_article SET title = 'seen' WHERE id = 1\")")
    shop.migration(3, "migrations.RunPython(fail)")

    assert shop.apply() == []

    assert shop.noted() == ["1"]
    assert shop.noted_by("UPDATE shop_article SET title = 'after' WHERE id = 2") == ["2"]


@ON_POSTGRESQL
def test_writes_between_a_failed_migration_and_the_next_are_made_good(shop: Shop):
    shop.change_models((TITLE, TITLE.replace("title", "headline")), ('"title"', '"headline"'))
    shop.migration(2, "migrations.RenameField('article', 'title', 'headline')")
    shop.migration(3, "migrations.RunPython(fail)")

    assert shop.apply() == ["shop.Article.embeddings"]
    # The column that the trigger knows is gone: the write must go on.
    assert shop.noted_by("UPDATE shop_article SET headline = 'between'") == []
    shop.migration(3, "migrations.AlterModelOptions('other', {})")
    assert shop.apply() == []

    assert shop.noted() == ["1", "2"]


@ON_POSTGRESQL
def test_data_migration_is_noted_row_by_row(shop: Shop):
    shop.migration(2, "migrations.RunSQL('DELETE FROM shop_article WHERE id = 1')")

    assert shop.apply() == []

    assert shop.noted() == ["1"]


def test_migrating_back_captures_what_the_tables_allow(shop: Shop):
    shop.change_models(
        (TITLE, TITLE + "\n    subtitle = models.CharField(max_length=9, default='')"),
        ('"title"', '"title", "subtitle"'),
    )
    shop.migration(
        2, "migrations.AddField('article', 'subtitle', models.CharField(max_length=9, default=''))"
    )

    assert shop.apply("shop", "0001") == ["shop.Article.embeddings"]

    assert shop.noted_by("INSERT INTO shop_article (id, title, views) VALUES (3, '', 0)") == ["3"]
    assert shop.apply() == []
    assert shop.noted() == ["1", "2", "3"]


def test_migrate_zero_leaves_no_trigger_and_no_error(shop: Shop):
    shop.apply("django_services", "zero")

    assert shop.triggers() == []
    with pytest.raises(Exception, match="shop_article"):
        shop.query("SELECT * FROM shop_article")


# -- the time without triggers ------------------------------------------------------


@pytest.fixture
def article(transactional_db: Any, settings: Any) -> Article:
    settings.DJANGO_SERVICES = {**settings.DJANGO_SERVICES, "EMBEDDINGS": {"ON_COMMIT": "off"}}
    return Article.objects.create(title="one")


@pytest.fixture(autouse=True)
def _triggers_come_back(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for absence in list(migrate._absences.values()):
        absence.end()
    migrate._absences.clear()


def _plan(*operations: Any) -> list[tuple[Migration, bool]]:
    migration = Migration("0001_test", "testapp")
    migration.operations = list(operations) or [migrations.AlterModelOptions("article", {})]
    return [(migration, False)]


def _written_in_absence(write: Any, *operations: Any) -> list[str]:
    """Return the articles noted for a write between pre_migrate and post_migrate."""
    Change.objects.all().delete()
    plan = _plan(*operations)
    migrate.before(using="default", plan=plan)
    assert sqlite.existing(connection) == {}
    write()
    migrate.after(using="default", plan=plan)
    assert capture.missing("default") == []
    return changed(ARTICLE)


def _by_another_connection() -> None:
    other = sqlite3.connect(connection.settings_dict["NAME"], timeout=20)
    with other:
        other.execute("UPDATE testapp_article SET title = 'two'")
    other.close()


UNSEEN = {
    "another connection": _by_another_connection,
    "update": lambda: Article.objects.update(title="two"),
    "raw": lambda: execute("update testapp_article set title = 'two'"),
    "raw after a comment": lambda: execute("/* now */ UPDATE testapp_article SET title = 'two'"),
    "with": lambda: execute(
        "WITH new (title) AS (VALUES ('two')) "
        "UPDATE testapp_article SET title = (SELECT title FROM new)"
    ),
    "table rebuilt": lambda: (
        execute("ALTER TABLE testapp_article ADD COLUMN extra INTEGER")
        or execute("ALTER TABLE testapp_article DROP COLUMN extra")
    ),
    "new session": connection.close,
}


@pytest.mark.parametrize("way", UNSEEN)
def test_write_while_triggers_are_off_is_noted_afterwards(way, article):
    assert _written_in_absence(UNSEEN[way]) == [str(article.id)]


SEEN = {
    "nothing": lambda: None,
    "a read": lambda: list(Article.objects.all()),
    "another table": lambda: Tag.objects.create(name="tag"),
    "tables of longer names": lambda: [
        execute(statement)
        for name in ("testapp_article_old", "old_testapp_article")
        for statement in (f"CREATE TABLE {name} (id)", f"DROP TABLE {name}")
    ],
}


@pytest.mark.parametrize("way", SEEN)
def test_nothing_is_noted_where_nothing_was_written(way, article):
    assert _written_in_absence(SEEN[way]) == []


class CustomOperation(migrations.AlterModelOptions):
    """Of the user's own: what it does, nobody knows."""


@pytest.mark.parametrize(
    "operation",
    [
        migrations.RunPython(migrations.RunPython.noop),
        migrations.RunSQL("SELECT 1"),
        migrations.SeparateDatabaseAndState([migrations.RunSQL("SELECT 1")]),
        CustomOperation("article", {}),
    ],
    ids=["RunPython", "RunSQL", "nested", "custom"],
)
def test_operation_that_may_write_unseen_notes_all(operation, article):
    assert _written_in_absence(lambda: None, operation) == [str(article.id)]


def test_operation_on_the_state_alone_notes_nothing(article):
    only_state = migrations.SeparateDatabaseAndState([], [CustomOperation("article", {})])

    assert _written_in_absence(lambda: None, only_state) == []


def test_triggers_stay_where_nothing_is_to_migrate(article):
    migrate.before(using="default", plan=[])

    assert capture.missing("default") == []
    assert changed_by(ARTICLE, lambda: Article.objects.update(title="two")) == [str(article.id)]


def test_index_without_triggers_before_is_noted_afterwards(article):
    capture.uninstall("default")

    assert _written_in_absence(lambda: None) == [str(article.id)]


def test_failed_migration_of_this_process_is_made_good_by_the_next(article):
    migrate.before(using="default", plan=_plan())
    Article.objects.update(title="two")

    assert _written_in_absence(lambda: None) == [str(article.id)]


def test_statements_are_no_longer_looked_at_afterwards(article):
    _written_in_absence(lambda: None)

    assert not [wrapper for wrapper in connection.execute_wrappers if "Absence" in repr(wrapper)]


def test_flush_is_idempotent_and_leaves_no_note(article):
    book = Book.objects.create(title="book", author=Author.objects.create(name="author"))
    Review.objects.create(book=book, text="review")
    before = sqlite.existing(connection)

    call_command("flush", interactive=False, verbosity=0)
    call_command("flush", interactive=False, verbosity=0)

    assert sqlite.existing(connection) == before
    assert not Change.objects.exists()


def test_notes_of_sources_that_flush_emptied_are_taken_back(article):
    Change.objects.create(index=BOOK, source="999")

    migrate.after(using="default")

    assert not Change.objects.filter(source="999").exists()
    assert changed(ARTICLE) == [str(article.id)]


def test_other_databases_vendors_are_left_alone(monkeypatch):
    other = SimpleNamespace(vendor="mysql", alias="other")
    monkeypatch.setattr(capture, "connections", {"other": other})
    monkeypatch.setattr(migrate, "connections", {"other": other})

    migrate.before(using="other", plan=_plan())
    migrate.after(using="other", plan=_plan())

    assert capture.install("other") == []
    assert capture.uninstall("other") == 0
    assert capture.missing("other") == [index.label for index in indexes_on("other")]


@pytest.mark.django_db
def test_enqueue_all_notes_every_source_and_forgets_those_that_are_gone():
    (index,) = (index for index in indexes_on("default") if index.label == ARTICLE)
    articles = Article.objects.bulk_create([Article(title=str(n)) for n in range(3)])
    capture.uninstall("default")
    kept = add_chunk(index, articles[0].id)
    add_chunk(index, articles[1].id)
    Article.objects.filter(id=articles[1].id).delete()
    add_chunk(index, 999)
    Change.objects.all().delete()
    Change.objects.create(index=ARTICLE, source="999")

    assert backlog.enqueue_all(index, "default") == 2
    assert changed(ARTICLE) == sorted([str(articles[0].id), str(articles[2].id)])
    assert chunks_of(index) == [kept]


@pytest.mark.django_db
def test_a_source_whose_table_is_not_there_yet_does_not_stop_a_migration():
    capture.uninstall("default")
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE testapp_review")
        cursor.execute("DROP TABLE testapp_book_tags")
        cursor.execute("DROP TABLE testapp_book")

    migrate.after(using="default", plan=[])

    assert capture.missing("default") == ["testapp.Book.embeddings"]
