import pytest

from django_services import embedded
from django_services.embeddings import spaces, sync
from django_services.embeddings.declaration import get_index
from django_services.embeddings.models import Change, ChunkChange, Space
from django_services.embeddings.status import status
from django_services.testing import embed_pending
from tests.testapp.models import Article, Product

from .conftest import assert_invariants, stored_contents

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("database")]


@pytest.fixture
def index():
    return get_index("testapp.Article")


@pytest.fixture
def articles():
    Article.objects.bulk_create([Article(title=f"Title {number}") for number in range(4)])
    embed_pending()
    return list(Article.objects.all())


def states(index):
    return dict(Space.objects.filter(index=index.label).values_list("dimensions", "state"))


def declare(monkeypatch, index, **options):
    for name, value in options.items():
        monkeypatch.setattr(index, name, value)


def test_the_first_space_is_active_from_its_beginning(index):
    Article.objects.create(title="Title")

    space = spaces.ensure(index, "default")

    assert space.state == Space.State.ACTIVE
    assert (space.model, space.dimensions) == (embedded.MODEL, embedded.DIMENSIONS)


def test_the_first_space_takes_in_rows_that_were_never_noted(index):
    Article.objects.bulk_create([Article(title="before the app was installed")])
    Change.objects.all().delete()

    embed_pending()

    assert_invariants(index)
    assert len(stored_contents(index)) == 1


def test_a_changed_declaration_is_built_beside_and_takes_over(index, articles, monkeypatch):
    declare(monkeypatch, index, dimensions=64)
    spaces.ensure(index, "default")
    beside = states(index)

    report = embed_pending()

    assert beside == {256: "active", 64: "building"}
    assert states(index) == {256: "retired", 64: "active"}
    assert report.activated == [index.label]
    assert_invariants(index)


def test_the_active_space_is_kept_in_step_while_another_is_built(index, articles, monkeypatch):
    declare(monkeypatch, index, dimensions=64)
    spaces.ensure(index, "default")
    Article.objects.filter(pk=articles[0].pk).update(title="changed meanwhile")

    sync.sync_pending("default", limit=1_000)

    assert stored_contents(index)[articles[0].pk] == ["changed meanwhile"]
    assert states(index)[256] == "active"


def test_the_way_back_sends_nothing_again(index, articles, monkeypatch, far_end):
    with monkeypatch.context() as patch:
        declare(patch, index, dimensions=64)
        embed_pending()
    sent = len(far_end.texts)

    embed_pending()

    assert len(far_end.texts) == sent
    assert states(index) == {256: "active", 64: "retired"}
    assert_invariants(index)


def test_another_recipe_of_the_same_model_sends_only_new_texts(
    index, articles, monkeypatch, far_end
):
    declare(monkeypatch, index, version=2)

    report = embed_pending()

    assert far_end.texts == []
    assert report.activated == [index.label]
    assert_invariants(index)


def test_only_the_space_retired_last_is_kept(index, articles, monkeypatch):
    for dimensions in (64, 32):
        declare(monkeypatch, index, dimensions=dimensions)
        embed_pending()

    held = index.chunk_model.objects.values_list("space__dimensions", flat=True)

    assert set(held) == {64, 32}


def test_what_is_no_longer_declared_is_not_built_on(index, articles, monkeypatch):
    for dimensions in (64, 32):
        declare(monkeypatch, index, dimensions=dimensions)
        spaces.ensure(index, "default")

    assert states(index) == {256: "active", 64: "retired", 32: "building"}


def test_a_declaration_that_came_back_stops_the_building(index, articles, monkeypatch):
    with monkeypatch.context() as patch:
        declare(patch, index, dimensions=64)
        spaces.ensure(index, "default")

    embed_pending()

    assert states(index) == {256: "active", 64: "retired"}


def test_a_space_in_step_is_read_once_and_nothing_is_written(
    index, articles, django_assert_num_queries
):
    with django_assert_num_queries(1):
        spaces.ensure(index, "default")


def test_a_process_that_was_slower_takes_the_others_space(index, articles, monkeypatch):
    monkeypatch.setattr(spaces, "live", lambda index, alias: [])

    spaces.ensure(index, "default")

    assert states(index) == {256: "active"}


def test_a_space_is_not_active_before_its_backfill_is_done(index, articles, monkeypatch):
    declare(monkeypatch, index, dimensions=64)
    spaces.ensure(index, "default")

    sync.sync_batch(index, "default", limit=2)
    early = spaces.activate_if_built(index, "default")

    (found,) = status("default", [index])
    assert early is None
    assert found.building == embedded.MODEL
    assert not found.is_in_step


def test_an_embedded_space_stays_searchable_after_a_key_is_set(index, articles, settings):
    settings.DJANGO_SERVICES = {"OPENAI": {"default": {"API_KEY": "sk-test"}}}

    space = spaces.active(index, "default")

    assert spaces.can_be_embedded(space, index)
    assert spaces.declared(index).model == "text-embedding-3-small"


def test_a_space_of_a_remote_model_cannot_be_embedded_without_its_key(index):
    space = Space(index=index.label, model="text-embedding-3-small", dimensions=1536)

    assert not spaces.can_be_embedded(space, index)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)  # PostgreSQL keeps no log
def test_the_log_of_chunks_keeps_its_end_and_each_spaces_newest(index, articles, monkeypatch):
    monkeypatch.setattr(spaces, "LOG_LENGTH", 3)
    ChunkChange.objects.all().delete()  # what the flush after another test noted
    Product.objects.create(description="of another space", sku="1")
    embed_pending()
    Article.objects.update(body="more")

    embed_pending()

    last = ChunkChange.objects.latest("id").id
    kept = list(ChunkChange.objects.order_by("id").values_list("id", flat=True))
    assert kept[-3:] == [last - 2, last - 1, last]
    assert len(kept) == 4
    assert ChunkChange.objects.values("space").distinct().count() == 2
