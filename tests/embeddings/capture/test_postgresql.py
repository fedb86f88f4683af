import contextlib
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from django.db import OperationalError, connection, models, transaction
from django.db.models.functions import Lower
from django.test.utils import isolate_apps

from django_services.embeddings import capture
from django_services.embeddings.capture import postgresql
from django_services.embeddings.declaration import get_index, indexes_on
from django_services.embeddings.models import CHANNEL, Change, Failure, Lease
from tests.testapp.models import Article, Author, Book, Place, Restaurant, Tag

from .changes import (
    ARTICLE,
    BOOK,
    DELETES,
    add_chunk,
    changed,
    changed_by,
    chunks_of,
    execute,
    held,
)

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("database"),
    pytest.mark.parametrize("database", ["postgresql"], indirect=True),
]


@pytest.fixture(autouse=True)
def _nobody_works_on_changes(settings: Any) -> None:
    settings.DJANGO_SERVICES = {**settings.DJANGO_SERVICES, "EMBEDDINGS": {"ON_COMMIT": "off"}}


def fetch(sql: str, *parameters: object) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters or None)
        return list(cursor.fetchall())


def another_session() -> psycopg.Connection[Any]:
    return psycopg.connect(connection.settings_dict["URL"])


# -- what only PostgreSQL does ------------------------------------------------------


def _copy() -> None:
    with (
        connection.cursor() as cursor,
        cursor.copy("COPY testapp_article (id, title, body, published, views) FROM STDIN") as copy,
    ):
        copy.write_row((7, "copied", "", True, 0))


def test_copy_is_captured():
    assert changed_by(ARTICLE, _copy) == ["7"]


def test_merge_is_captured(article):
    merge = (
        "MERGE INTO testapp_article USING (VALUES (%s), (7)) AS given (key) "
        "ON testapp_article.id = given.key "
        "WHEN MATCHED THEN UPDATE SET title = 'two' "
        "WHEN NOT MATCHED THEN INSERT (id, title, body, published, views) "
        "VALUES (7, 'new', '', TRUE, 0)"
    )

    noted = changed_by(ARTICLE, lambda: execute(merge, article.id))

    assert noted == sorted(["7", str(article.id)])


@pytest.mark.parametrize("way", DELETES)
def test_delete_is_noted_and_touches_no_row_that_a_worker_may_hold(way, article):
    chunk = add_chunk(get_index(ARTICLE), article.id)
    Failure.objects.create(index=ARTICLE, source=str(article.id), retry_at=0)
    key = str(article.id)

    assert changed_by(ARTICLE, lambda: DELETES[way](article)) == [key]

    assert chunks_of(get_index(ARTICLE)) == [chunk]
    assert Failure.objects.filter(source=key).exists()


def test_changed_key_is_one_source_less_and_one_more(article):
    old = article.pk

    noted = changed_by(ARTICLE, lambda: Article.objects.filter(pk=old).update(id=99))

    assert noted == sorted(["99", str(old)])


def test_child_taken_from_its_parent_is_captured():
    restaurant = Restaurant.objects.create(name="one", menu="one")
    key = str(restaurant.pk)

    noted = changed_by(
        "testapp.Restaurant.embeddings", lambda: restaurant.delete(keep_parents=True)
    )

    assert noted == [key]
    assert Place.objects.exists()


def test_truncate_notes_every_source_of_which_something_is_stored(article):
    other = Article.objects.create(title="other")
    add_chunk(get_index(ARTICLE), article.id)
    Failure.objects.create(index=ARTICLE, source=str(other.id), retry_at=0)
    Failure.objects.create(index=BOOK, source="999", retry_at=0)
    execute("SET CONSTRAINTS ALL IMMEDIATE")

    noted = changed_by(ARTICLE, lambda: execute("TRUNCATE testapp_article CASCADE"))

    assert noted == sorted([str(article.id), str(other.id)])


@pytest.mark.parametrize("table", ["testapp_review", "testapp_book_tags"])
def test_truncate_of_a_related_table_notes_every_source(table, book):
    other = Book.objects.create(title="no review, no tag")
    execute("SET CONSTRAINTS ALL IMMEDIATE")

    noted = changed_by(BOOK, lambda: execute(f"TRUNCATE {table}"))

    assert noted == sorted([str(book.id), str(other.id)])


def test_truncate_of_everything_at_once_notes_nothing(article, book):
    names = ", ".join(
        connection.ops.quote_name(name) for name in connection.introspection.table_names()
    )
    execute("SET CONSTRAINTS ALL IMMEDIATE")

    execute(f"TRUNCATE {names}")

    assert not Change.objects.exists()


def test_many_rows_after_one_are_compared_as_fast(article):
    # A plan made for one row would compare each row with each other.
    Article.objects.update(title="one row")
    execute(
        "INSERT INTO testapp_article (title, body, published, views) "
        "SELECT 'many', '', TRUE, 0 FROM generate_series(1, 20000)"
    )

    execute("SET LOCAL statement_timeout = '10s'")
    Article.objects.update(title="all")

    assert len(changed(ARTICLE)) == 20_001


# -- columns and tables of other kinds ------------------------------------------------


class _Table:
    """A table ``odd`` with the triggers of a made-up declaration that watches ``name``."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        sql: str,
        table: str = "odd",
        field: Any = None,
    ) -> None:
        with isolate_apps("tests.testapp"):
            meta = type("Meta", (), {"app_label": "testapp", "db_table": table})
            fields = {
                "name": field or models.CharField(max_length=20),
                "Meta": meta,
                "__module__": "",
            }
            model = type("Odd", (models.Model,), fields)
        index: Any = SimpleNamespace(
            label="test.Odd'.embeddings",
            model=model,
            chunk_model=get_index(ARTICLE).chunk_model,
            paths=lambda: ["name"],
        )
        self.index = index
        execute(sql)
        with_it = [*indexes_on("default"), index]
        monkeypatch.setattr(capture, "indexes_on", lambda alias: with_it)
        self.installed = capture.install("default")

    def noted_by(self, sql: str) -> list[str]:
        Change.objects.all().delete()
        execute(sql)
        notes = Change.objects.filter(index=self.index.label)
        return sorted(notes.values_list("source", flat=True))


TYPES = {
    "json": ("json", '{"a": 1}', '{"a": 2}'),
    "jsonb": ("jsonb", '{"a": 1}', '{"a": 2}'),
    "point": ("point", "(1,1)", "(1,2)"),
    "array": ("text[]", "{a}", "{b}"),
    "numeric": ("numeric", "1.0", "2.0"),
}


@pytest.mark.parametrize("kind", TYPES)
def test_columns_of_every_type_are_compared(kind, monkeypatch):
    sql_type, one, two = TYPES[kind]
    odd = _Table(monkeypatch, f"CREATE TABLE odd (id bigint PRIMARY KEY, name {sql_type})")
    execute("INSERT INTO odd VALUES (1, %s), (2, NULL)", one)

    assert odd.noted_by("UPDATE odd SET name = name") == []
    assert odd.noted_by(f"UPDATE odd SET name = '{two}'") == ["1", "2"]
    assert odd.noted_by("UPDATE odd SET name = NULL") == ["1", "2"]


@pytest.mark.parametrize(
    ("sql_type", "key"),
    [
        ("integer", "-7"),
        ("uuid", "6f0c2d2e-0000-4000-8000-000000000001"),
        ("varchar(20)", "it's"),
        # Of an extension, whose operators are not PostgreSQL's own.
        ("vector", "[1,2]"),
    ],
)
def test_keys_of_every_type_are_noted(sql_type, key, monkeypatch):
    odd = _Table(monkeypatch, f"CREATE TABLE odd (id {sql_type} PRIMARY KEY, name text)")
    quoted = key.replace("'", "''")

    assert odd.noted_by(f"INSERT INTO odd VALUES ('{quoted}', 'one')") == [key]
    assert odd.noted_by("UPDATE odd SET name = 'two'") == [key]
    assert odd.noted_by("DELETE FROM odd") == [key]


@pytest.mark.parametrize(
    "table",
    ['"od""d % \'table"', "odd" + "é" * 40, 'elsewhere"."odd'],
    ids=["quotes", "too long", "of another schema"],
)
def test_odd_names_of_tables(table, monkeypatch):
    execute("CREATE SCHEMA elsewhere")
    name = connection.ops.quote_name(table)
    odd = _Table(monkeypatch, f"CREATE TABLE {name} (id bigint PRIMARY KEY, name text)", table)

    assert odd.noted_by(f"INSERT INTO {name} VALUES (1, 'one')") == ["1"]
    assert odd.noted_by(f"UPDATE {name} SET name = 'two'") == ["1"]
    assert capture.missing("default") == []


def test_partitioned_table_is_captured_but_not_its_partitions(monkeypatch):
    odd = _Table(
        monkeypatch,
        "CREATE TABLE odd (id bigint, name text) PARTITION BY RANGE (id);"
        "CREATE TABLE low PARTITION OF odd FOR VALUES FROM (0) TO (10);"
        "CREATE TABLE high PARTITION OF odd FOR VALUES FROM (10) TO (20)",
    )

    assert odd.noted_by("INSERT INTO odd VALUES (1, 'one')") == ["1"]
    assert odd.noted_by("UPDATE odd SET name = 'two'") == ["1"]
    assert odd.noted_by("UPDATE odd SET id = 11") == ["1", "11"]
    # The guide says so, and `embeddings reconcile` finds it.
    assert odd.noted_by("UPDATE high SET name = 'three'") == []


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE VIEW odd AS SELECT 1 AS id, '' AS name",
        "CREATE MATERIALIZED VIEW odd AS SELECT 1 AS id, '' AS name",
        "CREATE TEMPORARY TABLE odd (id bigint, name text)",
        "SELECT 1",
    ],
    ids=["view", "materialized view", "temporary table", "no table"],
)
def test_what_cannot_be_captured_stays_missing(sql, monkeypatch):
    odd = _Table(monkeypatch, sql)

    assert odd.installed == []
    assert capture.missing("default") == [odd.index.label]


@pytest.mark.parametrize("kind", ["STORED", "VIRTUAL"])
def test_generated_column_is_captured(kind, monkeypatch):
    if kind == "VIRTUAL" and connection.pg_version < 180000:
        pytest.skip("PostgreSQL 18 brought virtual columns")
    field = models.GeneratedField(
        expression=Lower("title"), output_field=models.TextField(), db_persist=kind == "STORED"
    )
    sql = f"id bigint PRIMARY KEY, title text, name text GENERATED ALWAYS AS (lower(title)) {kind}"
    odd = _Table(monkeypatch, f"CREATE TABLE odd ({sql})", field=field)
    execute("INSERT INTO odd (id, title) VALUES (1, 'one')")

    assert odd.noted_by("UPDATE odd SET title = title") == []
    assert odd.noted_by("UPDATE odd SET title = 'two'") == ["1"]


def test_delete_by_the_databases_own_cascade_is_captured(monkeypatch):
    odd = _Table(
        monkeypatch,
        "CREATE TABLE owner (id bigint PRIMARY KEY);"
        "CREATE TABLE odd (id bigint PRIMARY KEY, name text, "
        "owner_id bigint REFERENCES owner ON DELETE CASCADE)",
    )
    execute("INSERT INTO owner VALUES (1); INSERT INTO odd VALUES (5, 'one', 1)")

    assert odd.noted_by("DELETE FROM owner") == ["5"]


# -- a fault of capture never fails a write -------------------------------------------

BROKEN = {
    "no note table": "DROP TABLE django_services_change",
    "no table of ours": "DROP TABLE django_services_change, django_services_failure, "
    "testapp_articleembeddingschunk, testapp_bookembeddingschunk",
    "no table in between": "DROP TABLE testapp_book_tags",
    "key in between renamed": "ALTER TABLE testapp_book_tags RENAME book_id TO gone",
    "foreign key renamed": "ALTER TABLE testapp_book RENAME author_id TO gone",
    "foreign key of another type": "ALTER TABLE testapp_book DROP author_id, ADD author_id json",
    "watched column renamed": "ALTER TABLE testapp_author RENAME name TO gone",
    "watched column dropped": "ALTER TABLE testapp_author DROP name",
    "key renamed": "ALTER TABLE testapp_author RENAME id TO gone",
    "source gone": "DROP TABLE testapp_book CASCADE",
    "tables renamed": "ALTER TABLE testapp_author RENAME TO gone; "
    "ALTER TABLE gone RENAME TO testapp_author",
}


@pytest.mark.parametrize("way", BROKEN)
def test_write_succeeds_whatever_is_gone(way, article, book):
    execute("SET CONSTRAINTS ALL IMMEDIATE")
    Author.objects.update(publisher=None)  # plans are made and kept
    execute(BROKEN[way])

    execute("UPDATE testapp_author SET publisher_id = publisher_id")
    execute("INSERT INTO testapp_author DEFAULT VALUES" if way == "watched column dropped" else "")
    Article.objects.update(title="two")
    Article.objects.create(title="three")
    Tag.objects.update(name="two")
    article.delete()

    assert list(Article.objects.values_list("title", flat=True)) == ["three"]


def test_watched_column_of_the_source_renamed_by_hand_breaks_no_write(article):
    execute("ALTER TABLE testapp_article RENAME title TO gone")

    execute("UPDATE testapp_article SET gone = 'two'")
    execute("DELETE FROM testapp_article")

    assert fetch("SELECT count(*) FROM testapp_article") == [(0,)]


@pytest.fixture
def _writer(article: Article, book: Book) -> Iterator[None]:
    """A role with rights on its own tables only."""
    execute(
        "CREATE ROLE django_services_writer; "
        "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON testapp_article, testapp_author "
        "TO django_services_writer; "
        "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO django_services_writer; "
        "REVOKE ALL ON SEQUENCE django_services_change_id_seq FROM django_services_writer; "
        "SET CONSTRAINTS ALL IMMEDIATE; "
        "SET LOCAL ROLE django_services_writer"
    )
    yield
    execute("RESET ROLE; DROP OWNED BY django_services_writer; DROP ROLE django_services_writer")


@pytest.mark.parametrize(
    ("label", "sql"),
    [
        (ARTICLE, "UPDATE testapp_article SET title = 'two'"),
        (BOOK, "UPDATE testapp_author SET name = 'two'"),
    ],
)
@pytest.mark.usefixtures("_writer")
def test_writer_needs_no_right_on_our_tables(label, sql):
    execute(sql)

    execute("RESET ROLE")
    assert changed(label) != []


def test_writers_search_path_does_not_lead_a_function_astray(article):
    Change.objects.all().delete()
    execute(
        "CREATE SCHEMA trap; CREATE TABLE trap.django_services_change (index text, source text)"
    )
    execute("CREATE FUNCTION trap.to_regclass(text) RETURNS regclass LANGUAGE sql AS 'SELECT NULL'")
    execute("SET LOCAL search_path = trap, public, pg_catalog")

    execute("UPDATE public.testapp_article SET title = 'two'")

    execute("SET LOCAL search_path = public")
    assert changed(ARTICLE) == [str(article.id)]


def test_nobody_else_may_use_the_functions():
    ((granted,),) = fetch(
        "SELECT count(*) FROM pg_proc WHERE starts_with(proname, 'django_services_') "
        "AND has_function_privilege('public', oid, 'EXECUTE')"
    )

    assert granted == 0


# -- installing ----------------------------------------------------------------------

TAMPERED = {
    "dropped": "DROP TRIGGER {name} ON {table}",
    "function dropped": "DROP FUNCTION {function} CASCADE",
    "disabled": "ALTER TABLE {table} DISABLE TRIGGER {name}",
    "all disabled": "ALTER TABLE {table} DISABLE TRIGGER USER",
    "for replicas only": "ALTER TABLE {table} ENABLE REPLICA TRIGGER {name}",
    "another body": "CREATE OR REPLACE FUNCTION {function} RETURNS trigger LANGUAGE plpgsql "
    "SECURITY DEFINER AS 'BEGIN RETURN NULL; END'",
    "the writer's rights": "ALTER FUNCTION {function} SECURITY INVOKER",
    "another event": "CREATE OR REPLACE TRIGGER {name} AFTER TRUNCATE ON {table} "
    "EXECUTE FUNCTION {function}",
}


def _of_article() -> postgresql.Held:
    found = postgresql.existing(connection)
    return next(
        one
        for one in found.values()
        if one.sql.startswith("INSERT") and one.table == "public.testapp_article"
    )


@pytest.mark.parametrize("way", TAMPERED)
def test_tampered_trigger_is_told_and_mended(way):
    trigger = _of_article()
    name = trigger.function.partition(".")[2].removesuffix("()")
    execute(TAMPERED[way].format(name=name, table=trigger.table, function=trigger.function))

    assert capture.missing("default") == [ARTICLE]
    assert capture.install("default") == [ARTICLE]
    assert capture.missing("default") == []
    assert changed_by(ARTICLE, lambda: Article.objects.create(id=7)) == ["7"]


def test_trigger_that_always_fires_is_left_alone():
    trigger = _of_article()
    name = trigger.function.partition(".")[2].removesuffix("()")
    execute(f"ALTER TABLE testapp_article ENABLE ALWAYS TRIGGER {name}")

    assert capture.missing("default") == []
    assert capture.install("default") == []


def test_trigger_without_a_declaration_is_dropped_and_others_triggers_are_left():
    body = "RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
    for name in ("django_services_insert_gone", "of_the_user"):
        execute(f"CREATE FUNCTION {name}() {body}")
        execute(f"CREATE TRIGGER {name} AFTER INSERT ON testapp_article EXECUTE FUNCTION {name}()")

    assert capture.install("default") == []
    assert "django_services_insert_gone" not in held()
    capture.uninstall("default")

    left = fetch("SELECT tgname FROM pg_trigger WHERE tgname !~ '^RI_ConstraintTrigger'")
    assert left == [("of_the_user",)]
    assert fetch("SELECT 1 FROM pg_proc WHERE starts_with(proname, 'django_services_')") == []


def test_functions_of_another_schema_are_another_installations(article):
    execute(
        "CREATE SCHEMA tenant; CREATE TABLE tenant.django_services_change AS TABLE "
        "django_services_change WITH NO DATA"
    )
    execute("SET LOCAL search_path = tenant, public")

    assert held() == {}
    capture.install("default")
    assert all(
        one.function.startswith("tenant.") for one in postgresql.existing(connection).values()
    )
    capture.uninstall("default")

    execute("SET LOCAL search_path = public")
    assert capture.missing("default") == []


def test_column_of_the_same_name_that_is_another_is_told():
    execute("ALTER TABLE testapp_article DROP body, ADD body text NOT NULL DEFAULT ''")

    assert capture.missing("default") == [ARTICLE]
    assert capture.install("default") == [ARTICLE]


def test_install_takes_no_lock_where_nothing_is_to_do():
    with transaction.atomic():
        capture.install("default")
        locks = fetch(
            "SELECT mode FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'relation' "
            "AND relation = 'testapp_article'::regclass AND mode <> 'AccessShareLock'"
        )

    assert locks == []


def test_uninstall_works_when_our_tables_are_gone():
    before = held()
    execute("DROP TABLE django_services_change CASCADE")

    assert capture.uninstall("default") == len(before)
    assert held() == {}


# -- waking the watcher ----------------------------------------------------------------


def _notified_by(write: Callable[[], Any]) -> int:
    with another_session() as listener:
        listener.autocommit = True
        listener.execute(f"LISTEN {CHANNEL}")
        write()
        return len(list(listener.notifies(timeout=0.2)))


@pytest.mark.django_db(transaction=True)
def test_statement_that_notes_something_notifies():
    assert _notified_by(lambda: Article.objects.create(title="one")) == 1
    assert _notified_by(lambda: Article.objects.update(views=5)) == 0


@pytest.mark.django_db(transaction=True)
def test_nobody_is_notified_where_the_project_says_so(settings):
    quiet = {"ON_COMMIT": "off", "NOTIFY": False}
    settings.DJANGO_SERVICES = {**settings.DJANGO_SERVICES, "EMBEDDINGS": quiet}

    # Nothing went by unseen: the sources need no note.
    assert capture.install("default") == []
    assert _notified_by(lambda: Article.objects.create(title="one")) == 0
    settings.DJANGO_SERVICES = {**settings.DJANGO_SERVICES, "EMBEDDINGS": {"ON_COMMIT": "off"}}
    assert capture.install("default") == []
    assert _notified_by(lambda: Article.objects.create(title="two")) == 1


# -- users at every isolation, while workers work (FE15) --------------------------------


@pytest.fixture
def _installed_afterwards() -> Iterator[None]:
    yield
    capture.install("default")


@pytest.fixture
def sessions(transactional_db: None, _installed_afterwards: None) -> Iterator[Callable[..., Any]]:
    """Sessions of other users, whose writes show what they would wait for."""
    with contextlib.ExitStack() as stack:

        def session(isolation: str = "read committed") -> psycopg.Connection[Any]:
            opened = stack.enter_context(contextlib.closing(another_session()))
            opened.execute("SET lock_timeout = '2s'")
            opened.execute(f"SET default_transaction_isolation = '{isolation}'")
            opened.commit()
            return opened

        yield session


ISOLATIONS = pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])


@ISOLATIONS
@pytest.mark.parametrize(
    "write",
    [
        "UPDATE testapp_article SET title = 'two'",
        "DELETE FROM testapp_article",
        "UPDATE testapp_article SET id = id + 1000",
        "TRUNCATE testapp_article CASCADE",
    ],
)
def test_write_neither_waits_for_a_worker_nor_fails_because_of_one(
    isolation, write, article, sessions
):
    key = str(article.id)
    Failure.objects.create(index=ARTICLE, source=key, retry_at=0)
    add_chunk(get_index(ARTICLE), article.id)
    user = sessions(isolation)
    user.execute("SELECT count(*) FROM testapp_article")  # the user's snapshot is of now

    # A worker stores, whose rows a writer may not meet: first unfinished, then finished.
    worker = sessions()
    worker.execute("DELETE FROM django_services_change")
    worker.execute("DELETE FROM django_services_failure")
    worker.execute("UPDATE testapp_articleembeddingschunk SET number = number + 1")
    worker.execute(
        "INSERT INTO django_services_lease (index, source, owner, expires_at) "
        "VALUES (%s, %s, 'worker', 0)",
        [ARTICLE, key],
    )
    user.execute(write)
    worker.commit()
    user.execute(
        "INSERT INTO testapp_article (title, body, published, views) VALUES ('more', '', TRUE, 0)"
    )
    user.commit()

    assert key in changed(ARTICLE) or int(key) + 1000 in map(int, changed(ARTICLE))
    assert Lease.objects.count() == 1


@ISOLATIONS
def test_rows_bumped_through_their_author_while_edited(isolation, sessions):
    author = Author.objects.create(name="one")
    books = [Book(title="book", author=author) for _ in range(10_000)]
    first, *_, last = Book.objects.bulk_create(books)
    Change.objects.all().delete()
    bumping, editing, other = sessions(isolation), sessions(isolation), sessions(isolation)
    for session in (bumping, editing, other):
        session.execute("SELECT count(*) FROM django_services_space")  # snapshots of now

    editing.execute("UPDATE testapp_book SET title = 'edited' WHERE id = %s", [first.id])
    bumping.execute("UPDATE testapp_author SET name = 'two'")
    other.execute("UPDATE testapp_book SET title = 'edited' WHERE id = %s", [last.id])
    for session in (other, bumping, editing):
        session.commit()

    assert len(changed(BOOK)) == 10_000
    assert Change.objects.filter(source=str(first.id)).count() == 2


@pytest.mark.fault
def test_writers_and_workers_at_once_meet_no_error(sessions):
    author = Author.objects.create(name="author")
    books = Book.objects.bulk_create([Book(title="book", author=author) for _ in range(50)])
    errors: list[Exception] = []

    def run(session: psycopg.Connection[Any], statements: list[str]) -> None:
        try:
            for _ in range(40):
                for statement in statements:
                    session.execute(statement)
                    session.commit()
        except psycopg.Error as error:
            errors.append(error)

    delete = (
        "DELETE FROM django_services_change WHERE id IN (SELECT id FROM django_services_change "
        "ORDER BY id LIMIT 20 FOR UPDATE SKIP LOCKED)"
    )
    work = [delete]
    threads = [
        threading.Thread(target=run, args=(sessions(isolation), statements))
        for isolation, statements in [
            ("read committed", work),
            ("read committed", work),
            ("repeatable read", ["UPDATE testapp_author SET name = name || 'x'"]),
            *(
                (isolation, [f"UPDATE testapp_book SET title = title || 'x' WHERE id = {book.id}"])
                for isolation, book in zip(
                    ["repeatable read", "serializable", "read committed"], books, strict=False
                )
            ),
        ]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []


# -- installing while others write or install --------------------------------------------


def test_install_lets_writers_go_ahead(sessions, article, monkeypatch):
    capture.uninstall("default")
    holding, writing = sessions(), sessions()
    holding.execute("UPDATE testapp_author SET name = 'held'")
    holding.execute("LOCK TABLE testapp_author IN ROW EXCLUSIVE MODE")

    def meanwhile(_: float) -> None:
        # Its lock on the articles is given back while it cannot have that on the authors.
        writing.execute("UPDATE testapp_article SET title = 'meanwhile'")
        writing.commit()
        holding.execute("UPDATE testapp_article SET title = 'by the holder'")
        holding.commit()

    monkeypatch.setattr(postgresql.time, "sleep", meanwhile)

    assert ARTICLE in capture.install("default")
    assert Article.objects.get().title == "by the holder"
    assert capture.missing("default") == []


def test_install_gives_up_where_a_writer_does_not_end(sessions, monkeypatch):
    capture.uninstall("default")
    sessions().execute("LOCK TABLE testapp_author IN ROW EXCLUSIVE MODE")
    monkeypatch.setattr(postgresql, "LOCK_ATTEMPTS", 2)
    monkeypatch.setattr(postgresql, "LOCK_TIMEOUT", "10ms")
    monkeypatch.setattr(postgresql, "LOCK_PAUSE", 0)

    with pytest.raises(OperationalError, match="lock timeout"):
        capture.install("default")

    assert held() == {}
    assert fetch("SHOW lock_timeout") == [("0",)]


def test_many_who_install_at_once_make_each_trigger_once(sessions, article):
    before = held()
    capture.uninstall("default")
    installed: list[list[str]] = []

    def install() -> None:
        installed.append(capture.install("default"))
        connection.close()

    threads = [threading.Thread(target=install) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(installed) == 10
    assert [labels for labels in installed if labels] == [
        [index.label for index in indexes_on("default")]
    ]
    assert held() == before
