"""What a sync would cost: counted before, and nothing written."""

from decimal import Decimal

import pytest

from django_services.embeddings import batch, batch_estimate
from django_services.embeddings.batch_estimate import estimate
from django_services.embeddings.declaration import get_index
from django_services.embeddings.models import Change, Space
from django_services.embeddings.sync import sync
from django_services.openai_transport import tokens
from tests.testapp.models import Page, Product

pytestmark = pytest.mark.django_db
on_both = pytest.mark.usefixtures("database")

TEXTS = ["The quick brown fox", "jumps over", "the lazy dog"]


@pytest.fixture
def index(fake_batches):
    return get_index("testapp.Product")


@pytest.fixture
def products(fake_batches):
    texts = [*TEXTS, TEXTS[0]]
    return Product.objects.bulk_create(
        Product(description=text, sku=str(number)) for number, text in enumerate(texts)
    )


def the_only(index):
    (found,) = estimate(index, "default")
    return found


@on_both
def test_a_first_sync_is_counted_whole(index, products):
    found = the_only(index)

    expected = sum(tokens.count(text, "text-embedding-3-small") for text in TEXTS)
    assert (found.sources, found.chunks, found.texts) == (4, 4, 3)
    assert (found.tokens, found.is_exact) == (expected, True)


def test_the_price_is_the_catalogues_and_half_of_it_by_batch(index, products):
    found = the_only(index)

    assert found.cost == found.tokens * Decimal("0.02") / 1_000_000
    assert found.batch_cost == found.cost / 2


@on_both
def test_nothing_is_changed(index, products, fake_batches):
    noted = list(Change.objects.values_list())

    estimate(index, "default")

    assert not Space.objects.exists()
    assert list(Change.objects.values_list()) == noted
    assert not fake_batches.arrived


def test_it_is_what_a_sync_then_does(index, products):
    found = the_only(index)

    report = sync([index], alias="default")

    assert (report.sources, report.stored, report.embedded) == (
        found.sources,
        found.chunks,
        found.texts,
    )


@on_both
def test_what_is_stored_costs_nothing_again(index, products):
    sync([index], alias="default")
    Product.objects.create(description=TEXTS[1], sku="again")
    Product.objects.create(description="new", sku="new")

    found = the_only(index)

    assert (found.sources, found.chunks, found.texts) == (2, 2, 1)


def test_what_a_batch_is_working_on_is_not_counted(index, products):
    batch.run(batch.backfills([index], "default"), waits=False)

    assert the_only(index).texts == 0


def test_a_source_with_several_changes_counts_once(index, products, monkeypatch):
    monkeypatch.setattr(batch, "SOURCES_AT_ONCE", 1)
    sync([index], alias="default")
    for text in ("once", "twice"):
        Product.objects.filter(pk=products[0].pk).update(description=text)

    found = the_only(index)

    assert (found.sources, found.texts) == (1, 1)


def test_a_source_that_has_gone_is_not_counted(index, products):
    sync([index], alias="default")
    products[0].delete()

    found = the_only(index)

    assert (found.sources, found.chunks, found.texts) == (0, 0, 0)


def test_equal_texts_of_other_pages_count_once(index, products, monkeypatch):
    monkeypatch.setattr(batch, "SOURCES_AT_ONCE", 1)
    monkeypatch.setattr(batch_estimate, "SOURCES_AT_ONCE", 1)

    assert the_only(index).texts == 3


@on_both
def test_a_new_model_has_every_row_before_it(index, products, fake_batches, settings):
    sync([index], alias="default")
    settings.DJANGO_SERVICES = fake_batches.settings(DIMENSIONS=4)

    new, active = estimate(index, "default")

    assert (new.dimensions, new.sources, new.texts) == (4, 4, 3)
    assert (active.dimensions, active.sources, active.texts) == (8, 0, 0)


def test_a_new_recipe_pays_only_for_texts_that_change(fake_batches, monkeypatch):
    pages = get_index("testapp.Page.contents")
    Page.objects.create(slug="a", heading="A", content="Few words.")
    sync([pages], alias="default")
    monkeypatch.setattr(pages, "version", "2")

    new, _active = estimate(pages, "default")

    assert (new.chunks, new.texts) == (1, 0)


def test_many_texts_are_counted_in_part(index, products, monkeypatch):
    exact = the_only(index).tokens
    monkeypatch.setattr(batch_estimate, "COUNTED", 2)

    found = the_only(index)

    assert not found.is_exact
    assert found.tokens == pytest.approx(exact, rel=0.3)


def test_a_model_without_a_price_has_no_cost(index, products, fake_batches, settings):
    settings.DJANGO_SERVICES = fake_batches.settings(EMBEDDING_MODEL="my-own-model")

    found = the_only(index)

    assert found.tokens > 0
    assert (found.cost, found.batch_cost) == (None, None)


def test_the_embedded_model_is_free(index, products, settings):
    settings.DJANGO_SERVICES = {"OPENAI": {"default": {"BASE_URL": "embedded://"}}}

    found = the_only(index)

    assert found.texts == 3
    assert (found.tokens, found.cost, found.batch_cost) == (None, Decimal(0), None)
