import logging

import pytest
from django.db import OperationalError, connection, connections, transaction

from django_services.embeddings import capture
from django_services.embeddings.capture import mend, sqlite
from django_services.embeddings.models import Change
from tests.testapp.models import Article, Author, Book, Tag

from .changes import ARTICLE, BOOK, changed_by, execute

pytestmark = pytest.mark.django_db


@pytest.fixture
def article() -> Article:
    return Article.objects.create(title="one")


@pytest.fixture
def book() -> Book:
    author = Author.objects.create(name="author")
    book = Book.objects.create(title="book", author=author)
    book.tags.add(Tag.objects.create(name="tag"))
    return book


WRITES = {
    "insert": lambda article: Article.objects.create(title="two"),
    "update": lambda article: Article.objects.update(title="two"),
    "delete": lambda article: article.delete(),
    "bulk_create": lambda article: Article.objects.bulk_create([Article(title="two")]),
    "raw": lambda article: execute("UPDATE testapp_article SET title = 'two'"),
}

TABLES = [
    "django_services_change",
    "django_services_failure",
    "django_services_chunkchange",
    "testapp_articleembeddingschunk",
]


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_write_succeeds_when_all_our_tables_are_gone(write, article):
    for table in TABLES:
        execute(f"DROP TABLE {table}")
    before = list(Article.objects.values_list("title", flat=True))

    write(article)

    assert list(Article.objects.values_list("title", flat=True)) != before


@pytest.mark.parametrize("table", TABLES)
def test_write_succeeds_when_one_of_our_tables_is_gone(table, article):
    execute(f"DROP TABLE {table}")

    Article.objects.update(title="two")
    article.delete()

    assert not Article.objects.exists()


def test_error_is_logged_once_and_says_what_to_run(article, caplog):
    execute("DROP TABLE django_services_change")

    Article.objects.update(title="two")
    Article.objects.update(title="three")

    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "manage.py migrate" in record.message
    assert "django_services_change" in record.message


def test_only_broken_triggers_are_dropped(article, book):
    before = sqlite.existing(connection)
    execute("DROP TABLE testapp_articleembeddingschunk")

    article.delete()

    dropped = before.keys() - sqlite.existing(connection).keys()
    assert {sql for name, sql in before.items() if name in dropped} == {
        sql for sql in before.values() if '"testapp_articleembeddingschunk"' in sql
    }
    assert changed_by(BOOK, lambda: Book.objects.update(title="two")) == [str(book.id)]


def test_migrate_after_the_loss_is_asked_for(article):
    execute("DROP TABLE django_services_change")

    Article.objects.update(title="two")

    assert ARTICLE in capture.missing("default")


def test_executemany_of_an_iterator_loses_no_row():
    execute("DROP TABLE django_services_change")
    rows = ((number,) for number in range(1, 4))

    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO testapp_article (id, title, body, published, views) "
            "VALUES (%s, '', '', 1, 0)",
            rows,
        )

    assert Article.objects.count() == 3


def test_related_table_dropped_past_migrations_breaks_no_write(book):
    execute("DROP TABLE testapp_book_tags")

    Tag.objects.update(name="two")

    assert Tag.objects.get().name == "two"


def test_related_column_dropped_past_migrations_breaks_no_write(book):
    execute("PRAGMA legacy_alter_table = ON")
    execute("CREATE TABLE rebuilt (id INTEGER PRIMARY KEY, book_id INTEGER)")
    execute("DROP TABLE testapp_book_tags")
    execute("ALTER TABLE rebuilt RENAME TO testapp_book_tags")
    execute("PRAGMA legacy_alter_table = OFF")

    Tag.objects.update(name="two")

    assert Tag.objects.get().name == "two"


def test_watched_column_can_be_dropped_past_migrations(book):
    execute("ALTER TABLE testapp_book DROP COLUMN title")

    assert capture.missing("default") == [BOOK]
    assert changed_by(BOOK, lambda: Author.objects.update(name="two")) == [str(book.id)]


def test_related_table_can_be_rebuilt_past_migrations(book):
    execute("CREATE TABLE rebuilt AS SELECT * FROM testapp_book_tags")
    execute("DROP TABLE testapp_book_tags")
    execute("ALTER TABLE rebuilt RENAME TO testapp_book_tags")

    assert capture.missing("default") == [BOOK]
    assert list(book.tags.values_list("name", flat=True)) == ["tag"]


def test_rollback_brings_the_triggers_back(article):
    before = sqlite.existing(connection)

    with transaction.atomic():
        execute("DROP TABLE django_services_change")
        Article.objects.update(title="two")
        transaction.set_rollback(True)

    assert sqlite.existing(connection) == before
    assert changed_by(ARTICLE, lambda: Article.objects.update(title="two")) == [str(article.id)]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM nowhere",
        "SELECT * FROM main.nowhere",
        "SELECT nothing FROM testapp_article",
        "INSERT INTO django_services_gone VALUES (1)",
        "not SQL",
    ],
)
def test_errors_of_the_statement_itself_pass_and_drop_nothing(sql, article):
    before = sqlite.existing(connection)

    with pytest.raises(OperationalError), transaction.atomic():
        execute(sql)

    assert sqlite.existing(connection) == before


def test_statement_on_our_missing_table_itself_still_fails():
    execute("DROP TABLE django_services_change")

    with pytest.raises(OperationalError, match="django_services_change"):
        list(Change.objects.all())


def test_connections_are_wrapped_once_and_the_users_wrapper_stays_last():
    capture.connect()
    connection.ensure_connection()
    mend.wrap_connections(mend.repeat_without_broken_triggers, vendor="sqlite")

    with connection.execute_wrapper(lambda execute, *statement: execute(*statement)):
        connections["default"].ensure_connection()

    wrappers = connection.execute_wrappers
    assert wrappers.count(mend.repeat_without_broken_triggers) == 1


def test_connection_of_another_vendor_is_not_wrapped():
    class Other:
        vendor = "postgresql"
        execute_wrappers: list[object] = []

    from django.db.backends.signals import connection_created

    connection_created.send(sender=Other, connection=Other())

    assert mend.repeat_without_broken_triggers not in Other.execute_wrappers
