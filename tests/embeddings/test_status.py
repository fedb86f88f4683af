import pytest

from django_services.embeddings.declaration import get_index, indexes
from django_services.embeddings.models import Change
from django_services.embeddings.status import pending, status
from django_services.exceptions import InvalidRequest
from django_services.testing import embed_pending
from tests.testapp.models import Article

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("database")]


@pytest.fixture
def index():
    return get_index("testapp.Article")


def test_every_declaration_has_a_status_before_the_first_sync():
    found = status("default")

    assert [one.label for one in found] == [index.label for index in indexes()]
    assert {(one.sources, one.model, one.chunks) for one in found} == {(0, None, 0)}


def test_fresh_pending_and_failed_add_up_to_the_sources(index, far_end):
    Article.objects.bulk_create([Article(title=f"Title {number}") for number in range(5)])
    far_end.failures["Title 4"] = InvalidRequest("refused")
    embed_pending()
    Article.objects.filter(title__in=["Title 0", "Title 1"]).update(body="more")

    (found,) = status("default", [index])

    assert (found.sources, found.fresh, found.pending, found.failed) == (5, 2, 2, 1)


def test_a_failed_source_that_changed_is_pending_and_not_failed(index, far_end):
    Article.objects.create(title="Title")
    far_end.failures["Title"] = InvalidRequest("refused")
    embed_pending()

    Article.objects.update(body="more")

    (found,) = status("default", [index])
    assert (found.pending, found.failed) == (1, 0)


def test_a_note_of_a_deleted_row_counts_for_no_source(index):
    article = Article.objects.create(title="Title")
    embed_pending()
    article.delete()
    Change.objects.create(index=index.label, source="99999")

    (found,) = status("default", [index])

    assert (found.sources, found.fresh, found.pending, found.failed) == (0, 0, 0, 0)


def test_pending_counts_each_source_once(index):
    article = Article.objects.create(title="Title")
    article.title = "Another"
    article.save()

    assert pending(index, "default") == 1
