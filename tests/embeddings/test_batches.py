"""Several batches under way: what is paid for is stored, what is not begun stays pending."""

from __future__ import annotations

import threading

import pytest

from django_services.embeddings import ann_index, threads, work
from django_services.embeddings.declaration import get_index
from django_services.embeddings.models import Change, Lease, Space
from django_services.embeddings.status import status
from django_services.embeddings.sync import sync
from django_services.embeddings.threads import Stop
from django_services.exceptions import RateLimited
from django_services.openai_transport import shared
from tests.testapp.models import Product

from .conftest import assert_invariants
from .stored import create_products as create

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("database")]

BATCH = 10
TEXTS = 5  # of one call


@pytest.fixture
def index(fake_openai, settings, monkeypatch):
    monkeypatch.setattr(work, "TEXTS_IN_CALL", TEXTS)
    monkeypatch.setattr("django_services.embeddings.sync.TEXTS_IN_CALL", TEXTS)
    settings.DJANGO_SERVICES = fake_openai.settings() | {
        "EMBEDDINGS": {"ON_COMMIT": "off", "BATCH_SIZE": BATCH, "CONCURRENCY": 3}
    }
    return get_index("testapp.Product")


def found(index):
    (state,) = status("default", [index])
    return state


def test_all_are_brought_in_step_and_each_text_is_paid_for_once(index, fake_openai):
    create(57)

    report = sync([index], alias="default")

    assert (report.sources, report.stored) == (57, 57)
    assert sorted(fake_openai.texts) == sorted(f"text {number}" for number in range(57))
    assert_invariants(index)


def test_calls_hold_so_many_texts_and_no_more(index, fake_openai):
    create(2 * BATCH)

    sync([index], alias="default")

    assert {len(call.texts) for call in fake_openai.calls} == {TEXTS}


def test_a_call_that_is_refused_keeps_the_others_from_nothing(index, fake_openai):
    create(BATCH)
    fake_openai.fail(429, "rate_limit_exceeded", headers={"retry-after": "1000"})
    fake_openai.latency = 0.1  # both are in flight when the first is refused

    with pytest.raises(RateLimited):
        sync([index], alias="default")

    assert (found(index).fresh, found(index).pending) == (TEXTS, TEXTS)
    assert not Lease.objects.exists()
    shared.forget()  # the time that the server asked for has passed
    assert_invariants(index)


def test_after_a_refusal_nothing_new_is_begun(index, fake_openai):
    create(20 * BATCH)
    fake_openai.fail(429, "rate_limit_exceeded", headers={"retry-after": "1000"}, times=1_000)

    with pytest.raises(RateLimited):
        sync([index], alias="default")

    # Those that were in flight or waited when the first was refused.
    assert len(fake_openai.calls) <= 2 * 3 + BATCH / TEXTS
    assert found(index).pending == 20 * BATCH


def test_after_a_stop_what_is_in_flight_is_stored_and_no_more_begun(index, fake_openai):
    create(20 * BATCH)
    stop = Stop()
    fake_openai.on_request(stop.set)

    report = sync([index], alias="default", stop=stop)

    assert 0 < report.stored < 20 * BATCH
    assert found(index).fresh == report.stored
    assert not Lease.objects.exists()
    assert_invariants(index)


def test_what_takes_longer_than_the_grace_is_given_back(index, fake_openai, monkeypatch):
    monkeypatch.setattr(threads, "GRACE", 0.0)
    create(BATCH)
    stop, ended = Stop(), threading.Event()
    fake_openai.on_request(lambda: (stop.set(), ended.wait(10)))

    report = sync([index], alias="default", stop=stop)
    ended.set()

    assert report.stored == 0
    assert found(index).pending == BATCH
    assert not Lease.objects.exists()


def test_an_error_of_the_caller_gives_everything_back(index):
    create(5 * BATCH)

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sync([index], alias="default", progress=fail)

    assert not Lease.objects.exists()
    assert_invariants(index)


def test_what_is_noted_behind_the_position_is_found_before_the_end(index, fake_openai):
    create(3 * BATCH)
    first = Product.objects.order_by("pk").first()
    Change.objects.filter(source=str(first.pk)).update(id=10**9)

    sync([index], alias="default", batch_size=BATCH)

    assert found(index).pending == 0


def test_nothing_is_left_of_a_row_that_is_gone_in_retired_spaces_either(index):
    create(2)
    sync([index], alias="default")
    Space.objects.update(state="retired", recipe="former")
    sync([index], alias="default")
    gone = Product.objects.first()

    gone_key = gone.pk
    gone.delete()
    sync([index], alias="default")

    left = index.chunk_model.objects.values_list("source_id", "space__state")
    assert gone_key not in {key for key, _ in left}
    assert {state for _, state in left} == {"active", "retired"}


def test_a_stop_breaks_the_building_of_an_index_off(index, monkeypatch):
    shares = [0.1, 0.2, 0.3]
    monkeypatch.setattr(
        ann_index, "ensure", lambda *_, progress: [progress(share, "loading") for share in shares]
    )
    stop, seen = Stop(), []

    def building(_index: object, share: float, _phase: str) -> None:
        seen.append(share)
        stop.set()

    sync([index], alias="default", building=building, stop=stop)

    assert seen == [0.1]
