"""A project whose tables a test migrates."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from tests import databases
from tests.processes import Project
from tests.testapp.models import Article, Author, Book, Publisher, Review, Tag


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


MODELS = """
class Author(models.Model):
    name = models.CharField(max_length=50)
    age = models.IntegerField(default=0)

class Article(models.Model):
    title = models.CharField(max_length=50)
    views = models.IntegerField(default=0)
    author = models.ForeignKey(Author, models.SET_NULL, null=True)
    embeddings = Embeddings("title", "author__name")

class Other(models.Model):
    name = models.CharField(max_length=50)
"""


class Shop(Project):
    """A migrated project with articles 1 (of author 1) and 2, whose notes are worked off."""

    SETTINGS = Project.SETTINGS.replace(
        "DJANGO_SERVICES = {", 'DJANGO_SERVICES = {"EMBEDDINGS": {"ON_COMMIT": "off"}, '
    )

    def migration(self, number: int, *operations: str) -> None:
        """Write a migration of the shop; migration 1 is there."""
        before = "0001_initial" if number == 2 else f"000{number - 1}"
        listed = "".join(f"        {operation},\n" for operation in operations)
        self.write(
            f"shop/migrations/000{number}.py",
            "from django.db import migrations, models\n\n"
            "def fail(apps, editor):\n    raise RuntimeError('midway')\n\n"
            "class Migration(migrations.Migration):\n"
            f'    dependencies = [("shop", "{before}")]\n'
            f"    operations = [\n{listed}    ]\n",
        )

    def change_models(self, *changes: tuple[str, str]) -> None:
        code = MODELS
        for old, new in changes:
            assert old in code
            code = code.replace(old, new)
        self.models(code)

    def noted(self, label: str = "shop.Article.embeddings") -> list[object]:
        rows = self.query(
            "SELECT DISTINCT source FROM django_services_change "
            f"WHERE \"index\" = '{label}' ORDER BY source"
        )
        return [source for (source,) in rows]

    def noted_by(self, sql: str) -> list[object]:
        """Return the sources that a statement notes."""
        self.query("DELETE FROM django_services_change")
        self.query(sql)
        return self.noted()

    def triggers(self, table: str = "") -> list[object]:
        """Return the package's triggers on tables whose name begins so, and functions of none."""
        is_sqlite = "URL" not in self.database
        rows = self.query(
            "SELECT name, tbl_name FROM sqlite_master WHERE type = 'trigger' ORDER BY name"
            if is_sqlite
            else "SELECT proname, coalesce(relname, '') FROM pg_proc "
            "LEFT JOIN pg_trigger ON tgfoid = pg_proc.oid "
            "LEFT JOIN pg_class ON tgrelid = pg_class.oid "
            "WHERE starts_with(proname, 'django_services_') ORDER BY proname"
        )
        return [name for name, on in rows if str(on).startswith(table)]

    def apply(self, *arguments: str) -> list[str]:
        """Run migrate; return the labels of indexes that are not wholly captured then."""
        code = f"""
            import json
            from django.core.management import call_command
            from django_services.embeddings import capture
            try:
                call_command("migrate", *{arguments!r}, verbosity=0)
            except RuntimeError as error:
                assert str(error) == "midway"
            print(json.dumps(capture.missing("default")))
        """
        return list(json.loads(self.python(code).stdout))


def _migrate(shop: Shop) -> None:
    shop.models(MODELS)
    shop.migrate()
    shop.query("INSERT INTO shop_author VALUES (1, 'author', 0)")
    shop.query("INSERT INTO shop_article (id, title, views, author_id) VALUES (1, 'one', 0, 1)")
    shop.query("INSERT INTO shop_article (id, title, views) VALUES (2, 'two', 0)")
    shop.query("DELETE FROM django_services_change")


@pytest.fixture(scope="session")
def _sqlite_shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("shop")
    _migrate(Shop(directory))
    return directory


@pytest.fixture(scope="session")
def _postgresql_shop(
    _postgres: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, str]]:
    directory = tmp_path_factory.mktemp("shop")
    with databases.new_database(_postgres) as url:
        _migrate(Shop(directory, databases.entry(url)))
        yield directory, url


@pytest.fixture(params=["sqlite", "postgresql"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    """A shop on each vendor's database."""
    copy = tmp_path / "project"
    ignore = shutil.ignore_patterns("__pycache__")
    if request.param == "sqlite":
        shutil.copytree(request.getfixturevalue("_sqlite_shop"), copy, ignore=ignore)
        with contextlib.closing(Shop(copy)) as shop:
            yield shop
        return
    directory, template = request.getfixturevalue("_postgresql_shop")
    shutil.copytree(directory, copy, ignore=ignore)
    with (
        _copied(template, request.getfixturevalue("_postgres")) as url,
        contextlib.closing(Shop(copy, databases.entry(url))) as shop,
    ):
        yield shop


@contextlib.contextmanager
def _copied(template: str, server: str) -> Iterator[str]:
    """Have a copy of a database for a while; gives its URL."""
    with databases.new_database(server) as url:
        name, original = (urlsplit(one).path[1:] for one in (url, template))
        with psycopg.connect(server, autocommit=True) as admin:
            admin.execute(f'DROP DATABASE "{name}"')
            admin.execute(f'CREATE DATABASE "{name}" TEMPLATE "{original}"')
        yield url
