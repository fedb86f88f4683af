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
from django_services.embeddings.status import status
from tests.testapp.models import Article

from .conftest import assert_invariants, current_contents, stored_contents

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
    def the_invariants_hold(self):
        assert_invariants(self.index, has_leases=True)

    @invariant()
    def nothing_has_failed(self):
        assert not Failure.objects.exists()

    @rule()
    def catch_up(self):
        self.workers.clear()
        self.expire()
        sync.sync([self.index], alias="default")
        (found,) = status("default", [self.index])
        assert found.is_in_step
        assert stored_contents(self.index) == current_contents(self.index)


# Outside a transaction, as workers and writers are.
@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("database")
@pytest.mark.parametrize(
    "examples",
    [5, pytest.param(30, marks=pytest.mark.slow), pytest.param(100, marks=pytest.mark.fault)],
)
def test_the_invariants_hold_whatever_happens(settings_without_inline, examples):
    run_state_machine_as_test(
        StoredEmbeddings,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture
def settings_without_inline(settings):
    settings.DJANGO_SERVICES = settings.DJANGO_SERVICES | {"EMBEDDINGS": {"ON_COMMIT": "off"}}
