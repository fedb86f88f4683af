import pytest

from django_services.embeddings import capture
from django_services.embeddings.declaration import get_index
from django_services.embeddings.models import Change
from django_services.embeddings.reconcile import Reconciled, reconcile
from django_services.testing import embed_pending
from tests.testapp.models import Article, Note

from .conftest import assert_invariants

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("database")]


@pytest.fixture
def index():
    return get_index("testapp.Article")


@pytest.fixture
def articles():
    Article.objects.bulk_create([Article(title=f"Title {number}") for number in range(6)])
    embed_pending()
    return list(Article.objects.order_by("pk"))


def unseen(write):
    """Write as a restore would: with the triggers off."""
    capture.uninstall("default")
    write()
    capture.install("default")
    Change.objects.all().delete()


def test_nothing_is_found_where_all_is_in_step(index, articles):
    assert reconcile(index, "default") == Reconciled(checked=6)
    assert not Change.objects.exists()


def test_every_difference_is_found_and_noted(index, articles):
    def write():
        Article.objects.filter(pk=articles[0].pk).update(title="changed unseen")
        Article.objects.filter(pk=articles[1].pk).update(published=False)
        Article.objects.filter(pk=articles[2].pk)._raw_delete("default")
        Article.objects.create(title="added unseen")

    unseen(write)

    found = reconcile(index, "default")

    assert found == Reconciled(checked=6, stale=3, orphaned=1)
    embed_pending()
    assert_invariants(index)
    assert reconcile(index, "default") == Reconciled(checked=6)


def test_what_is_noted_already_is_not_noted_again(index, articles):
    Article.objects.update(title="changed and seen")
    noted = Change.objects.count()

    found = reconcile(index, "default")

    assert found.stale == 0
    assert Change.objects.count() == noted


def test_before_the_first_sync_every_text_is_out_of_step(index):
    unseen(lambda: Article.objects.create(title="Title"))

    assert reconcile(index, "default").stale == 1


def test_keys_of_other_kinds_are_paged(monkeypatch):
    monkeypatch.setattr("django_services.embeddings.reconcile.PAGE", 2)
    Note.objects.bulk_create([Note(subject=f"Note {number}") for number in range(5)])
    told = []

    reconcile(get_index("testapp.Note"), "default", progress=told.append)

    assert told == [2, 4, 5]
