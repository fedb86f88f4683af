"""A project whose tables a test migrates."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

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
            'SELECT DISTINCT source FROM django_services_change WHERE "index" = ? ORDER BY source',
            label,
        )
        return [source for (source,) in rows]

    def noted_by(self, sql: str) -> list[object]:
        """Return the sources that a statement notes."""
        self.query("DELETE FROM django_services_change")
        self.query(sql)
        return self.noted()

    def triggers(self) -> list[object]:
        rows = self.query("SELECT name FROM sqlite_master WHERE type = 'trigger' ORDER BY name")
        return [name for (name,) in rows]

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


@pytest.fixture(scope="session")
def _migrated_shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("shop")
    shop = Shop(directory)
    shop.models(MODELS)
    shop.migrate()
    shop.query("INSERT INTO shop_author VALUES (1, 'author', 0)")
    shop.query("INSERT INTO shop_article (id, title, views, author_id) VALUES (1, 'one', 0, 1)")
    shop.query("INSERT INTO shop_article (id, title, views) VALUES (2, 'two', 0)")
    shop.query("DELETE FROM django_services_change")
    return directory


@pytest.fixture
def shop(_migrated_shop: Path, tmp_path: Path) -> Iterator[Shop]:
    directory = tmp_path / "project"
    shutil.copytree(_migrated_shop, directory, ignore=shutil.ignore_patterns("__pycache__"))
    shop = Shop(directory)
    yield shop
    shop.close()
