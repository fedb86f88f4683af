import logging
import uuid

import pytest
from django.core.cache import cache
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from django_services.embeddings import after_commit
from django_services.embeddings.declaration import get_index
from django_services.embeddings.models import Change
from django_services.embeddings.status import status
from django_services.exceptions import ServiceUnavailable
from tests.testapp.models import Article, Author, Category, Note

from .conftest import assert_invariants

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("database")]


@pytest.fixture
def index():
    return get_index("testapp.Article")


@pytest.fixture(autouse=True)
def empty_cache():
    cache.clear()


def fresh(index):
    (found,) = status("default", [index])
    return found.fresh


def set_mode(settings, mode, **others):
    embeddings = {"ON_COMMIT": mode} | others
    settings.DJANGO_SERVICES = settings.DJANGO_SERVICES | {"EMBEDDINGS": embeddings}


WRITES = {
    "save": lambda: Article(title="Gzip").save(),
    "save with a key of its own": lambda: Article(pk=7, title="Gzip").save(),
    "bulk_create": lambda: Article.objects.bulk_create([Article(title="Gzip")]),
    "get_or_create": lambda: Article.objects.get_or_create(title="Gzip"),
    "raw SQL": lambda: connection.cursor().execute(
        "INSERT INTO testapp_article (title, body, published, views) VALUES ('Gzip', '', true, 0)"
    ),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_is_embedded_when_it_is_committed(index, write):
    write()

    assert fresh(index) == 1
    assert_invariants(index)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_in_a_transaction_is_embedded_after_it(index, write):
    with transaction.atomic():
        write()
        during = fresh(index)

    assert (during, fresh(index)) == (0, 1)


def test_an_update_and_a_saved_change_are_embedded(index):
    article = Article.objects.create(title="Gzip")

    Article.objects.update(body="one")
    article.body = "two"
    article.save(update_fields=["body"])

    assert index.chunk_model.objects.get().text == "Gzip\n\ntwo"


def test_a_change_of_a_related_row_is_embedded():
    author = Author.objects.create(name="Ada")
    Note.objects.create(id=uuid.uuid4(), subject="A note", author=author)

    author.name = "Grace"
    author.save()

    assert get_index("testapp.Note").chunk_model.objects.get().text == "A note by Grace"


def test_a_rolled_back_write_embeds_nothing_and_the_next_write_is_embedded(index):
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        Article.objects.create(title="never")
        raise ZeroDivisionError

    Article.objects.create(title="Gzip")

    assert [chunk.text for chunk in index.chunk_model.objects.all()] == ["Gzip"]


def test_a_rolled_back_savepoint_does_not_hide_the_outer_write(index):
    with transaction.atomic():
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            Article.objects.create(title="never")
            raise ZeroDivisionError
        Article.objects.create(title="Gzip")

    assert fresh(index) == 1


def test_a_transaction_is_worked_on_once(index, far_end):
    with transaction.atomic():
        for number in range(5):
            Article.objects.create(title=f"Title {number}")
        waiting = len(connection.run_on_commit)

    assert waiting == 1
    assert len(far_end.calls) == 1


def test_writes_elsewhere_do_no_work(django_assert_num_queries):
    Category.objects.create(name="warm")

    with django_assert_num_queries(1):
        Category.objects.create(name="Tools")


def test_a_commit_looks_only_into_what_it_changed(index):
    Article.objects.create(title="warm")

    with CaptureQueriesContext(connection) as queries:
        Article.objects.create(title="Gzip")

    assert [query for query in queries if "testapp.Book" in query["sql"]] == []


def test_up_to_a_limit_is_embedded_and_the_rest_is_told(index, settings, caplog):
    set_mode(settings, "inline", INLINE_LIMIT=3)

    with caplog.at_level(logging.INFO, "django_services"):
        Article.objects.bulk_create([Article(title=f"Title {number}") for number in range(5)])
        embedded = fresh(index)

    assert embedded == 3
    assert "embeddings sync" in caplog.text


def test_a_service_that_is_down_does_not_fail_the_write(index, far_end, caplog):
    far_end.outage = ServiceUnavailable("down")

    article = Article.objects.create(title="Gzip")

    assert Article.objects.filter(pk=article.pk).exists()
    assert "embeddings are pending (ServiceUnavailable)" in caplog.text
    assert Change.objects.count() == 1


def test_off_leaves_the_changes_to_sync(index, settings):
    set_mode(settings, "off")

    Article.objects.create(title="Gzip")

    assert fresh(index) == 0
    assert Change.objects.count() == 1


def test_task_runs_one_task_for_many_commits(index, settings):
    set_mode(settings, "task")
    embed_changes = pytest.importorskip("django_services.embeddings.tasks").embed_changes
    enqueued = []

    class Recorder:
        enqueue = staticmethod(enqueued.append)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("django_services.embeddings.tasks.embed_changes", Recorder)
        for number in range(3):
            Article.objects.create(title=f"Title {number}")
    result = embed_changes.call("default")

    assert enqueued == ["default"]
    assert result == {"sources": 3, "embedded": 3, "failed": 0}
    assert cache.get(after_commit.debounce_key("default")) is None


def test_the_embedded_model_is_inline_by_default():
    assert after_commit.mode("default") == "inline"


def test_a_remote_model_is_never_called_in_a_request_by_default(settings):
    settings.DJANGO_SERVICES = {"OPENAI": {"default": {"API_KEY": "sk-test"}}}

    assert after_commit.mode("default") == "off"


def test_a_missing_key_leaves_the_changes_to_sync(settings):
    settings.DJANGO_SERVICES = {}

    assert after_commit.mode("default") == "off"
