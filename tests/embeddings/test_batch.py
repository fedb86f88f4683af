"""A backlog through the Batch API: sent once, stored by an ordinary sync, whatever happens."""

import threading

import numpy as np
import pytest
from django.db import connections

from django_services.batches import jobs, leases, remote, results
from django_services.batches.lines import Limits
from django_services.batches.models import BatchJob, BatchLine
from django_services.embeddings import batch, claims
from django_services.embeddings.declaration import get_index
from django_services.embeddings.models import Change, Space
from django_services.embeddings.sync import sync
from django_services.embeddings.threads import Stop
from django_services.exceptions import InvalidRequest, QuotaExhausted, ServiceUnavailable
from tests.batches.fake_batches import MODEL
from tests.testapp.models import Product

from .conftest import assert_invariants, stored_contents

pytestmark = pytest.mark.django_db
on_both = pytest.mark.usefixtures("database")

NAME = "testapp.Product.embeddings"


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Nothing waits: not for OpenAI, not until a batch is surely listed."""
    monkeypatch.setattr(batch, "POLL", 0.0)
    monkeypatch.setattr(jobs, "SETTLED", 0.0)


@pytest.fixture
def index():
    return get_index("testapp.Product")


@pytest.fixture
def products(fake_batches):
    return [make(number) for number in range(4)]


def make(number, text=None):
    return Product.objects.create(description=text or f"text {number}", sku=str(number))


def backfill(index, fake_batches, **options):
    """Run to the end, as OpenAI ends a batch whenever it is asked how far it is; then sync."""
    backfills = batch.backfills([index], "default")
    options.setdefault("progress", lambda _: fake_batches.work())
    if batch.run(backfills, **options):
        sync([index], alias="default")
        batch.clean(backfills)
    return backfills


def begun(index):
    """Send what is missing and return; OpenAI works on it."""
    backfills = batch.backfills([index], "default")
    batch.run(backfills, waits=False)
    return backfills


@on_both
def test_a_backlog_is_embedded_by_batch_and_nothing_else(index, products, fake_batches):
    backfill(index, fake_batches)

    assert sorted(fake_batches.sent) == [f"text {number}" for number in range(4)]
    assert fake_batches.embedded == []
    assert len(stored_contents(index)) == 4
    assert_invariants(index)


@on_both
def test_nothing_remains_of_a_batch_that_is_stored(index, products, fake_batches):
    backfill(index, fake_batches)

    assert not BatchJob.objects.exists()
    assert not BatchLine.objects.exists()
    assert not fake_batches.files


def test_the_request_is_that_of_an_ordinary_call(index, products, fake_batches):
    begun(index)

    (sent,) = fake_batches.batches.values()
    body = fake_batches.lines_of(sent)[0]["body"]
    assert body == {
        "model": MODEL,
        "encoding_format": "base64",
        "dimensions": 8,
        "input": "text 0",
    }


def test_no_text_stands_in_our_tables(index, products, fake_batches):
    begun(index)

    rows = [*BatchLine.objects.values_list(), *BatchJob.objects.values_list()]
    assert not any("text" in str(row).replace(MODEL, "") for row in rows)


def test_equal_texts_are_sent_once(index, products, fake_batches):
    make(9, "text 0")

    backfill(index, fake_batches)

    assert fake_batches.sent.count("text 0") == 1
    assert_invariants(index)


def test_equal_texts_of_other_pages_are_sent_once(index, products, fake_batches, monkeypatch):
    monkeypatch.setattr(batch, "SOURCES_AT_ONCE", 1)
    make(9, "text 0")

    backfill(index, fake_batches)

    assert fake_batches.sent.count("text 0") == 1


def test_a_text_that_is_stored_already_is_not_sent(index, products, fake_batches):
    backfill(index, fake_batches)
    make(9, "text 0")
    make(10, "new")

    backfill(index, fake_batches)

    assert len(fake_batches.sent) == 5


def test_a_backlog_in_step_sends_nothing(index, products, fake_batches):
    backfill(index, fake_batches)
    sent = len(fake_batches.arrived)

    backfill(index, fake_batches)

    assert len(fake_batches.arrived) == sent


def test_several_batches_where_one_cannot_hold_all(index, products, fake_batches):
    backfills = batch.backfills([index], "default")
    backfills[0].limits = Limits(lines=3)

    batch.run(backfills, waits=False)

    assert [len(fake_batches.texts_of(each)) for each in fake_batches.batches.values()] == [3, 1]
    assert BatchJob.objects.filter(state="submitted").count() == 2


def test_the_embedded_model_has_no_batches(index, settings):
    settings.DJANGO_SERVICES = {"OPENAI": {"default": {"BASE_URL": "embedded://"}}}
    make(0)

    assert batch.backfills([index], "default") == []


# Meanwhile ---------------------------------------------------------------------------


@on_both
def test_no_source_is_held_while_openai_works(index, products):
    begun(index)

    claim = claims.claim(index, "default", limit=10)

    assert len(claim.keys) == 4
    claims.release(claim)


@on_both
def test_an_edit_meanwhile_is_what_is_stored(index, products, fake_batches):
    begun(index)
    Product.objects.filter(pk=products[0].pk).update(description="newer")

    backfill(index, fake_batches)

    assert fake_batches.embedded == ["newer"]
    assert stored_contents(index)[products[0].pk] == ["newer"]
    assert_invariants(index)


@on_both
def test_a_source_that_was_deleted_meanwhile_does_not_come_back(index, products, fake_batches):
    begun(index)
    Product.objects.filter(pk=products[0].pk).delete()

    backfill(index, fake_batches)

    assert len(stored_contents(index)) == 3
    assert_invariants(index)


def test_an_ordinary_sync_takes_what_a_batch_brought(index, products, fake_batches):
    begun(index)
    fake_batches.work()
    jobs.resume()

    sync([index], alias="default")

    assert fake_batches.embedded == []
    assert_invariants(index)


def test_results_stay_while_a_worker_holds_a_source(index, products, fake_batches):
    backfills = begun(index)
    fake_batches.work()
    jobs.resume()
    claims.claim(index, "default", limit=1)

    batch.clean(backfills)

    assert BatchJob.objects.count() == 1


def test_a_vector_of_another_length_is_not_taken(index, products, fake_batches):
    begun(index)
    fake_batches.work()
    jobs.resume()
    BatchLine.objects.update(result=np.ones(4, "<f4").tobytes())

    sync([index], alias="default")

    assert len(fake_batches.embedded) == 4
    assert_invariants(index)


# What fails --------------------------------------------------------------------------


@on_both
def test_a_few_that_failed_are_embedded_directly(index, products, fake_batches):
    fake_batches.answers["text 3"] = None

    backfill(index, fake_batches)

    assert fake_batches.embedded == ["text 3"]
    assert len(fake_batches.batches) == 1
    assert_invariants(index)


def test_many_that_expired_go_into_another_batch(index, products, fake_batches, monkeypatch):
    monkeypatch.setattr(batch, "FEW", 0)
    fake_batches.answers |= {"text 2": None, "text 3": None}

    def work(_):
        fake_batches.work()
        fake_batches.answers.clear()

    backfill(index, fake_batches, progress=work)

    assert sorted(fake_batches.sent) == ["text 0", "text 1", "text 2", "text 2", "text 3", "text 3"]
    assert fake_batches.embedded == []


def test_a_text_that_is_refused_is_not_sent_in_a_batch_again(
    index, products, fake_batches, monkeypatch
):
    monkeypatch.setattr(batch, "FEW", 0)
    fake_batches.answers["text 3"] = 400, {"error": {"code": "invalid_value"}}

    backfill(index, fake_batches)

    assert fake_batches.sent.count("text 3") == 1
    assert fake_batches.embedded == ["text 3"]


def test_a_batch_that_brings_nothing_is_not_repeated(index, products, fake_batches):
    fake_batches.refuse_batch("invalid_model", times=9)

    with pytest.raises(InvalidRequest, match="invalid_model"):
        backfill(index, fake_batches)

    assert len(fake_batches.batches) == 1
    assert Change.objects.count() == 4


def test_batches_that_are_too_large_for_the_account_shrink(index, fake_batches, monkeypatch):
    monkeypatch.setattr(batch, "_SMALLEST", 1)
    monkeypatch.setattr(batch, "FEW", 0)
    for number in range(6):
        make(number)
    fake_batches.refuse_batch("token_limit_exceeded")
    backfills = batch.backfills([index], "default")
    backfills[0].limits = Limits(lines=6)

    assert batch.run(backfills, progress=lambda _: fake_batches.work())

    sizes = [len(fake_batches.texts_of(each)) for each in fake_batches.batches.values()]
    assert sizes == [6, 3, 3]


def test_no_more_batches_are_sent_at_once_than_the_account_took(index, fake_batches, monkeypatch):
    monkeypatch.setattr(batch, "FEW", 0)
    for number in range(6):
        make(number)
    fake_batches.take_batch()
    fake_batches.refuse_batch("token_limit_exceeded", times=2)
    backfills = batch.backfills([index], "default")
    backfills[0].limits = Limits(lines=2)
    under_way = []

    def work(far):
        under_way.append(far.batches)
        fake_batches.work()

    assert batch.run(backfills, progress=work)

    assert under_way == [1, 1, 1, 0]


def test_an_outage_ends_no_wait(index, products, fake_batches):
    troubles = []

    def work(_):
        fake_batches.work()
        fake_batches.fail("GET /v1/batches/*", 503, times=40)

    def end_outage(error):
        troubles.append(error)
        fake_batches._faults.clear()

    backfill(index, fake_batches, progress=work, trouble=end_outage)

    assert [type(error) for error in troubles] == [ServiceUnavailable]
    assert_invariants(index)


def test_no_credit_ends_the_wait_and_loses_nothing(index, products, fake_batches):
    fake_batches.fail("POST /v1/batches", 429, "insufficient_quota")

    with pytest.raises(QuotaExhausted):
        backfill(index, fake_batches)
    backfill(index, fake_batches)

    assert len(fake_batches.sent) == 4
    assert_invariants(index)


# What crashes ------------------------------------------------------------------------


class Crash(BaseException):
    """Stands for a process that is gone."""


SHORT = {("write", True), ("create", True), ("store", False), ("clean", False)}
STEPS = [
    pytest.param(
        (module, name, after),
        id=f"{name}-{after}",
        # The jobs' own tests crash at every step; here those where a sync depends on it.
        marks=[] if (name, after) in SHORT else [pytest.mark.fault],
    )
    for module, name in [
        (leases, "write"),
        (remote, "upload"),
        (remote, "create"),
        (remote, "retrieve"),
        (results, "store"),
        (batch, "clean"),
    ]
    for after in (False, True)
]


@pytest.mark.parametrize("step", STEPS)
def test_after_a_crash_anywhere_all_is_paid_once(index, products, fake_batches, monkeypatch, step):
    module, name, after = step
    whole = getattr(module, name)

    def crashing(*args, **options):
        monkeypatch.setattr(module, name, whole)
        if after:
            whole(*args, **options)
        raise Crash

    monkeypatch.setattr(module, name, crashing)

    with pytest.raises(Crash):
        backfill(index, fake_batches)
    backfill(index, fake_batches)

    assert len(fake_batches.sent) == 4
    assert fake_batches.embedded == []
    assert_invariants(index)


@on_both
@pytest.mark.django_db(transaction=True)
def test_two_at_once_send_everything_once(index, products, fake_batches, monkeypatch):
    monkeypatch.setattr(batch, "POLL", 0.01)
    errors = []

    def work():
        try:
            backfill(index, fake_batches)
        except BaseException as error:  # noqa: BLE001  # it is told, whatever it is
            errors.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert errors == []
    assert sorted(fake_batches.sent) == [f"text {number}" for number in range(4)]
    assert fake_batches.embedded == []
    assert_invariants(index)


def test_a_batch_that_another_process_was_done_with_is_not_missed(index, products, fake_batches):
    (first,) = begun(index)
    backfill(index, fake_batches)

    assert first.step(Stop())


# A new space -------------------------------------------------------------------------


def test_a_new_model_is_built_by_batch_and_takes_over(index, products, fake_batches, settings):
    backfill(index, fake_batches)
    settings.DJANGO_SERVICES = fake_batches.settings(DIMENSIONS=4)

    backfill(index, fake_batches)

    active = Space.objects.get(index=index.label, state="active")
    assert active.dimensions == 4
    assert fake_batches.embedded == []
    assert_invariants(index)


# Stopping ----------------------------------------------------------------------------


def test_a_stop_leaves_the_batch_to_openai(index, products, fake_batches):
    stop = Stop()

    is_complete = batch.run(
        batch.backfills([index], "default"), stop=stop, progress=lambda _: stop.set()
    )

    assert not is_complete
    assert BatchJob.objects.get().state == "submitted"


def test_a_stop_while_texts_are_read_sends_none(index, products, fake_batches):
    stop = Stop()
    backfills = batch.backfills([index], "default")
    stop.set()

    backfills[0].step(stop)

    assert not fake_batches.arrived
