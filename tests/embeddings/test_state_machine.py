"""FE12: whatever writers and workers do, in whatever order, the invariants hold."""

import pytest
from django.db import transaction
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from django_services.embeddings import claims, spaces, sync
from django_services.embeddings.declaration import get_index
from django_services.embeddings.models import Change, Failure, Lease, Space
from django_services.embeddings.sources import Keys
from django_services.embeddings.status import status
from django_services.testing import embed_pending
from tests.testapp.models import Article

from .conftest import current_contents, stored_contents

TEXTS = st.sampled_from(["", "alpha", "beta", "gamma delta", "Long. " * 60, "Longer still. " * 90])
TITLES = st.sampled_from(["One", "Two", "Three"])
PICKS = st.integers(0, 9)


class Rollback(Exception):
    pass


class StoredEmbeddings(RuleBasedStateMachine):
    """Writers write; three workers claim, call, store and crash."""

    def __init__(self):
        super().__init__()
        self.index = get_index("testapp.Article")
        self.dimensions = self.index.dimensions
        self.workers = {}
        self.empty()
        spaces.ensure(self.index, "default")

    def empty(self):
        Article.objects.all().delete()
        for table in (self.index.chunk_model, Change, Failure, Lease, Space):
            table.objects.all().delete()

    def teardown(self):
        self.index.dimensions = self.dimensions
        self.empty()

    def pick(self, number):
        articles = list(Article.objects.order_by("pk"))
        return articles[number % len(articles)] if articles else None

    # -- writers

    @rule(title=TITLES, body=TEXTS, published=st.booleans())
    def create(self, title, body, published):
        Article.objects.create(title=title, body=body, published=published)

    @rule(number=PICKS, body=TEXTS)
    def edit(self, number, body):
        if article := self.pick(number):
            article.body = body
            article.save()

    @rule(title=TITLES, body=TEXTS)
    def update(self, title, body):
        Article.objects.filter(title=title).update(body=body)

    @rule(title=TITLES, published=st.booleans())
    def publish(self, title, published):
        Article.objects.filter(title=title).update(published=published)

    @rule(number=PICKS)
    def delete(self, number):
        if article := self.pick(number):
            article.delete()

    @rule(number=PICKS, body=TEXTS)
    def roll_back(self, number, body):
        with pytest.raises(Rollback), transaction.atomic():
            Article.objects.create(title="Never", body=body)
            self.edit(number, body)
            self.delete(number + 1)
            raise Rollback

    # -- workers

    @rule(worker=st.integers(0, 2), limit=st.integers(1, 5))
    def claim(self, worker, limit):
        if worker not in self.workers:
            claim = claims.claim(self.index, "default", limit=limit)
            if claim is not None:
                self.workers[worker] = claim

    @rule(worker=st.integers(0, 2))
    def call(self, worker):
        if isinstance(self.workers.get(worker), claims.Claim):
            self.workers[worker] = sync.work_out(self.workers[worker])

    @rule(worker=st.integers(0, 2))
    def store(self, worker):
        if isinstance(self.workers.get(worker), sync.Work):
            sync.store(self.workers.pop(worker))
            spaces.activate_if_built(self.index, "default")

    @rule(worker=st.integers(0, 2))
    def crash(self, worker):
        self.workers.pop(worker, None)

    @rule()
    def expire(self):
        Lease.objects.update(expires_at=0)

    @rule(dimensions=st.sampled_from([256, 64]))
    def switch(self, dimensions):
        self.index.dimensions = dimensions
        spaces.ensure(self.index, "default")

    # -- what always holds

    @invariant()
    def every_source_is_fresh_pending_or_failed(self):
        (found,) = status("default", [self.index])
        assert found.fresh + found.pending + found.failed == found.sources
        assert found.failed == 0

    @invariant()
    def what_is_fresh_is_in_step(self):
        translate = Keys(self.index, "default")
        pending = set(Change.objects.values_list("source", flat=True))
        stored, current = stored_contents(self.index), current_contents(self.index)
        for key in Article.objects.values_list("pk", flat=True):
            if translate.to_text(key) not in pending:
                assert stored.get(key) == current.get(key)

    @invariant()
    def no_chunk_outlives_its_row(self):
        assert not self.index.chunk_model.objects.exclude(source__in=Article.objects.all()).exists()

    @rule()
    def catch_up(self):
        self.workers.clear()
        self.expire()
        embed_pending()
        (found,) = status("default", [self.index])
        assert found.is_in_step
        assert stored_contents(self.index) == current_contents(self.index)


# Outside a transaction, as workers and writers are.
@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("database")
def test_the_invariants_hold_whatever_happens(settings_without_inline):
    run_state_machine_as_test(
        StoredEmbeddings,
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture
def settings_without_inline(settings):
    settings.DJANGO_SERVICES = settings.DJANGO_SERVICES | {"EMBEDDINGS": {"ON_COMMIT": "off"}}
