from itertools import pairwise

import pytest
from django.db import IntegrityError, connection, transaction
from django.db.models import F
from django.utils.functional import lazystr
from django.utils.safestring import mark_safe

from django_services.embeddings import claims, sync
from django_services.embeddings.declaration import Embeddings, get_index
from django_services.embeddings.models import Change, Failure, Lease
from django_services.embeddings.status import status
from django_services.exceptions import (
    InvalidRequest,
    InvalidResponse,
    QuotaExhausted,
    RateLimited,
    ServiceUnavailable,
)
from django_services.openai_transport import context
from django_services.signals import embeddings_synced
from django_services.testing import embed_pending
from tests.testapp.models import Article, Author, Book, Note, Page, Product, Restaurant, Tag

from .conftest import assert_invariants, current_contents, stored_contents

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("database")]


@pytest.fixture
def index():
    return get_index("testapp.Article.embeddings")


@pytest.fixture
def article():
    return Article.objects.create(title="Gzip", body="Compresses files.")


def status_of(index):
    (found,) = status("default", [index])
    return found


def test_a_saved_row_is_pending_and_a_sync_makes_it_fresh(index, article):
    before = status_of(index)

    embed_pending()

    after = status_of(index)
    assert (before.pending, before.fresh) == (1, 0)
    assert (after.pending, after.fresh, after.chunks) == (0, 1, 1)
    assert stored_contents(index) == {article.pk: ["Gzip\n\nCompresses files."]}


def test_a_second_sync_sends_nothing(index, article, far_end):
    embed_pending()
    article.save()

    report = embed_pending()

    assert len(far_end.texts) == 1
    assert report.embedded == 0


def test_only_the_chunk_whose_text_changed_is_sent_again(far_end):
    paragraphs = [f"Paragraph {number} " + "says this. " * 15 for number in range(4)]
    page = Page.objects.create(slug="a", heading="A", content="\n\n".join(paragraphs))
    embed_pending()
    sent = len(far_end.texts)
    paragraphs[3] = "Paragraph 3 " + "says that. " * 15

    page.content = "\n\n".join(paragraphs)
    page.save()
    embed_pending()

    assert sent >= 5
    assert len(far_end.texts) - sent == 1
    assert_invariants(get_index("testapp.Page.contents"))


def test_equal_texts_share_one_call(far_end):
    Product.objects.create(description="The same words", sku="1")
    Product.objects.create(description="The same words", sku="2")
    embed_pending()

    Product.objects.create(description="The same words", sku="3")
    embed_pending()

    assert far_end.texts == ["The same words"]
    assert_invariants(get_index("testapp.Product"))


def test_a_row_that_stops_matching_the_condition_loses_its_chunks(index, article):
    embed_pending()

    Article.objects.update(published=False)
    embed_pending()

    assert stored_contents(index) == {}
    assert_invariants(index)


def test_a_row_that_does_not_match_never_leaves_the_building(far_end):
    Article.objects.create(title="Secret", published=False)

    embed_pending()

    assert far_end.texts == []


def test_a_text_that_became_blank_has_no_chunks(index, article):
    embed_pending()

    Article.objects.update(title="", body=" ")
    embed_pending()

    assert index.chunk_model.objects.count() == 0
    assert status_of(index).fresh == 1


def test_a_longer_and_then_shorter_text_leaves_no_chunk_behind(index, article):
    for length in (400, 2, 150):
        article.body = "Word after word. " * length
        article.save()
        embed_pending()

        assert stored_contents(index) == current_contents(index)


def test_related_values_stand_in_the_text_in_an_order_of_their_own(far_end):
    book = Book.objects.create(title="Art", author=Author.objects.create(name="Ada"))
    book.tags.add(Tag.objects.create(name="zoo"), Tag.objects.create(name="ant"))
    book.reviews.create(text="Good.")

    embed_pending()

    assert far_end.texts == ["Art\n\nAda\n\nant, zoo\n\nGood."]


@pytest.mark.parametrize("label", ["testapp.Note", "testapp.Page.headings", "testapp.Restaurant"])
def test_keys_of_every_kind_are_served(label):
    Note.objects.create(subject="A note", author=Author.objects.create(name="Ada"))
    Page.objects.create(slug="odd slug'%s", heading="A heading", content="Content")
    Restaurant.objects.create(name="Chez Ada", menu="Soup")

    embed_pending()

    index = get_index(label)
    assert len(stored_contents(index)) == 1
    assert_invariants(index)


def test_every_declaration_of_a_model_is_embedded(far_end):
    Page.objects.create(slug="a", heading="The heading", content="The content")

    embed_pending()

    assert sorted(far_end.texts) == ["The content", "The heading"]


# -- what happens during the call ---------------------------------------------


def test_an_edit_during_the_call_is_not_lost(index, article, far_end):
    far_end.during_call = lambda: Article.objects.filter(body__startswith="C").update(body="newer")

    sync.sync_pending("default", limit=10)
    between = status_of(index)
    embed_pending()

    assert between.pending == 1
    assert stored_contents(index) == {article.pk: ["Gzip\n\nnewer"]}
    assert_invariants(index)


def test_a_row_deleted_during_the_call_does_not_come_back(index, article, far_end):
    far_end.during_call = lambda: Article.objects.all().delete()

    embed_pending()

    assert index.chunk_model.objects.count() == 0
    assert_invariants(index)


def test_a_worker_whose_lease_passed_on_writes_nothing(index, article, far_end, monkeypatch):
    def lose_the_lease():
        Lease.objects.update(expires_at=0)
        far_end.during_call = lambda: None
        Article.objects.update(body="newer")
        sync.sync_pending("default", limit=10)

    far_end.during_call = lose_the_lease

    sync.sync_pending("default", limit=10)

    assert stored_contents(index) == {article.pk: ["Gzip\n\nnewer"]}
    assert_invariants(index)


def test_a_worker_whose_lease_ran_out_writes_nothing(index, article, far_end):
    far_end.during_call = lambda: Lease.objects.update(expires_at=0)

    sync.sync_pending("default", limit=10)

    assert index.chunk_model.objects.count() == 0
    assert status_of(index).pending == 1


def test_two_workers_do_not_work_on_the_same_source(index, article, far_end):
    second = []
    far_end.during_call = lambda: second.append(claims.claim(index, "default", limit=10))

    embed_pending()

    assert second == [None]
    assert len(far_end.texts) == 1


def test_a_rolled_back_write_leaves_no_note(index):
    with pytest.raises(IntegrityError), transaction.atomic():
        Article.objects.create(title="never")
        raise IntegrityError

    assert not Change.objects.exists()


# -- failures -------------------------------------------------------------------


def test_a_source_that_fails_waits_and_is_tried_again(index, article, far_end, settings):
    far_end.failures["Gzip"] = InvalidResponse("NaN")
    other = Article.objects.create(title="Zlib")
    embed_pending()
    calls = len(far_end.calls)

    embed_pending()
    waited = len(far_end.calls)
    far_end.failures.clear()
    Failure.objects.update(retry_at=0)
    embed_pending()

    assert calls == waited
    assert stored_contents(index).keys() == {article.pk, other.pk}
    assert not Failure.objects.exists()
    assert_invariants(index)


def test_each_attempt_waits_twice_as_long_and_the_last_sets_aside(index, article, far_end):
    far_end.failures["Gzip"] = InvalidResponse("NaN")
    waits = []

    for _ in range(5):
        embed_pending()
        failure = Failure.objects.get()
        waits.append(failure.retry_at)
        Failure.objects.update(retry_at=0)

    found = status_of(index)
    assert [round(after - before, -1) for before, after in pairwise(waits)] == [
        30,
        60,
        120,
        240,
    ]
    assert (failure.set_aside, failure.attempts) == (True, 5)
    assert (found.failed, found.pending) == (1, 0)
    assert_invariants(index)


def test_what_the_service_refuses_for_good_is_set_aside_at_once(index, article, far_end):
    far_end.failures["Gzip"] = InvalidRequest("too long")

    embed_pending()

    failure = Failure.objects.get()
    assert (failure.set_aside, failure.error) == (True, "InvalidRequest")
    assert_invariants(index)


def test_a_text_that_was_set_aside_is_not_found_by_what_it_said_before(index, article, far_end):
    embed_pending()
    far_end.failures["secret"] = InvalidRequest("refused")

    Article.objects.update(body="secret")
    embed_pending()

    assert stored_contents(index) == {}


def test_a_new_text_after_a_failure_starts_anew(index, article, far_end):
    far_end.failures["Gzip"] = InvalidRequest("refused")
    embed_pending()

    Article.objects.update(title="Zlib")
    embed_pending()

    assert not Failure.objects.exists()
    assert status_of(index).fresh == 1


def test_attempts_are_counted_anew_after_a_source_was_set_aside(index, article, far_end):
    far_end.failures["Gzip"] = InvalidRequest("refused")
    embed_pending()
    far_end.failures["Gzip"] = InvalidResponse("NaN")

    Article.objects.update(body="more")
    embed_pending()

    failure = Failure.objects.get()
    assert (failure.attempts, failure.set_aside) == (1, False)


def test_failed_sources_are_replayed(index, article, far_end):
    far_end.failures["Gzip"] = InvalidRequest("refused")
    embed_pending()
    far_end.failures.clear()

    replayed = claims.retry_failed(index, "default")
    embed_pending()

    assert replayed == 1
    assert status_of(index).fresh == 1


@pytest.mark.parametrize(
    "outage",
    [RateLimited("wait", retry_after=3), QuotaExhausted("pay"), ServiceUnavailable("down")],
    ids=lambda error: type(error).__name__,
)
def test_an_outage_is_no_attempt_and_leaves_the_sources_pending(index, article, far_end, outage):
    far_end.outage = outage

    with pytest.raises(type(outage)):
        embed_pending()

    assert status_of(index).pending == 1
    assert not Failure.objects.exists()
    assert_invariants(index)


def test_an_outage_of_one_model_holds_up_no_other_declaration(article, far_end):
    Note.objects.create(subject="fine")

    def refuse_articles():
        if context.attribution().feature == "testapp.Article.embeddings":
            raise RateLimited("wait", retry_after=3_600)

    far_end.during_call = refuse_articles

    with pytest.raises(RateLimited):
        embed_pending()

    assert status_of(get_index("testapp.Article.embeddings")).pending == 1
    assert status_of(get_index("testapp.Note.embeddings")).fresh == 1


def test_calls_of_a_sync_are_patient_and_say_what_they_are_for(article, far_end):
    seen = []
    far_end.during_call = lambda: seen.append((context.current_profile(), context.attribution()))

    embed_pending()

    assert seen == [("task", context.Attribution(feature="testapp.Article.embeddings"))]


@pytest.mark.parametrize(
    "text", [None, 7, b"bytes", ["a"]], ids=["None", "number", "bytes", "list"]
)
def test_a_callable_that_returns_no_text_fails_its_row_alone(monkeypatch, text):
    index = get_index("testapp.Note")
    monkeypatch.setattr(index, "text", lambda note: text if note.subject == "bad" else "good")
    Note.objects.create(subject="bad")
    Note.objects.create(subject="fine")

    embed_pending()

    found = status_of(index)
    assert (found.fresh, found.failed) == (1, 1)
    assert type(text).__name__ in Failure.objects.get().message
    assert_invariants_of_failures(index)


def assert_invariants_of_failures(index):
    (found,) = status("default", [index])
    assert found.fresh + found.pending + found.failed == found.sources
    assert not Lease.objects.exists()


def test_a_callable_that_raises_tells_neither_text_nor_row(monkeypatch):
    index = get_index("testapp.Note")

    def as_text(note):
        raise ValueError(f"cannot use {note.subject}")

    monkeypatch.setattr(index, "text", as_text)
    Note.objects.create(subject="CANARY")

    embed_pending()

    failure = Failure.objects.get()
    assert "raised ValueError" in failure.message
    assert "CANARY" not in failure.message


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        (lazystr("lazy words"), "lazy words"),
        (mark_safe("<b>safe</b>"), "<b>safe</b>"),
        ("a\x00b", "a b"),
        ("lone \ud800 surrogate", "lone ? surrogate"),
        ("مرحبا 🎉👩‍👩‍👧", "مرحبا 🎉👩‍👩‍👧"),
    ],
    ids=["lazy", "safe", "NUL", "surrogate", "right-to-left and emoji"],
)
def test_odd_texts_are_stored_as_what_can_be_stored(monkeypatch, text, stored):
    index = get_index("testapp.Note")
    monkeypatch.setattr(index, "text", lambda note: text)
    Note.objects.create(subject="odd")

    embed_pending()

    assert [chunk.text for chunk in index.chunk_model.objects.all()] == [stored]


def test_a_text_of_a_megabyte_is_cut_and_stored():
    Product.objects.create(description="The quick brown fox jumps. " * 40_000, sku="1")

    embed_pending()

    assert_invariants(get_index("testapp.Product"))


# -- reports ---------------------------------------------------------------------


def test_a_batch_is_told_by_a_signal(article):
    received = []

    def receive(**payload):
        received.append(payload)

    embeddings_synced.connect(receive)
    try:
        embed_pending()
    finally:
        embeddings_synced.disconnect(receive)

    (payload,) = received
    assert payload["sender"] is Embeddings
    assert payload["index"] == "testapp.Article.embeddings"
    assert (payload["embedded"], payload["stored"], payload["failed"]) == (1, 1, 0)


def test_progress_is_told_batch_by_batch(index, settings):
    settings.DJANGO_SERVICES = settings.DJANGO_SERVICES | {"EMBEDDINGS": {"BATCH_SIZE": 2}}
    Article.objects.bulk_create([Article(title=f"Title {number}") for number in range(5)])
    told = []

    sync.sync([index], alias="default", progress=lambda _, batch: told.append(batch.sources))

    assert told == [2, 2, 1]


def test_a_limit_bounds_the_sources_of_one_request(index):
    Article.objects.bulk_create([Article(title=f"Title {number}") for number in range(5)])

    report = sync.sync_pending("default", limit=3)

    assert report.sources == 3
    assert status_of(index).pending == 2


@pytest.mark.parametrize(("age", "is_free"), [(299, False), (301, True)])
def test_a_lease_ends_after_its_term(index, article, age, is_free):
    claims.claim(index, "default", limit=1)

    Lease.objects.update(expires_at=F("expires_at") - age)

    assert (claims.claim(index, "default", limit=1) is not None) == is_free


CLOCK = {
    "sqlite": "strftime('%s', 'now')",
    "postgresql": "extract(epoch from clock_timestamp())",
}


def test_leases_end_by_the_databases_clock_and_not_the_workers(
    index, article, database, monkeypatch
):
    monkeypatch.setattr("time.time", lambda: 0.0)
    claims.claim(index, "default", limit=1)

    with connection.cursor() as cursor:
        cursor.execute(f"SELECT expires_at - {CLOCK[database]} FROM django_services_lease")
        (term,) = cursor.fetchone()

    assert 298 < term < 302
