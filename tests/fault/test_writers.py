"""FE2 and FE3: users write, delete and roll back while a call is in flight."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import pytest
from django.db import connection, transaction

from django_services.embeddings import sync
from django_services.embeddings.models import Change
from django_services.embeddings.status import status
from django_services.testing import embed_pending
from tests.embeddings.conftest import assert_invariants, stored_contents
from tests.testapp.models import Product

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("database"),
    pytest.mark.slow,
]

ON_POSTGRESQL = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


class Rollback(Exception):
    pass


@pytest.fixture
def product(index) -> Product:
    return Product.objects.create(description="older", sku="1")


@contextlib.contextmanager
def open_transaction(write: Callable[[], object]) -> Iterator[Callable[[], None]]:
    """Have a write of another session uncommitted; gives what commits it, as the end does."""
    written, may_end, errors = threading.Event(), threading.Event(), []

    def run() -> None:
        try:
            with transaction.atomic():
                write()
                written.set()
                may_end.wait(30)
        except Exception as error:  # noqa: BLE001 - the test's thread raises it
            errors.append(error)
        finally:
            written.set()
            connection.close()

    def commit() -> None:
        may_end.set()
        thread.join()
        assert errors == []

    thread = threading.Thread(target=run)
    thread.start()
    written.wait(30)
    try:
        yield commit
    finally:
        commit()


def status_of(index):
    (found,) = status("default", [index])
    return found


# What the fake's `on_request` does, it does in a thread and on a connection of its own.


def test_an_edit_while_the_call_is_in_flight_is_never_marked_fresh(index, product, fake_openai):
    fake_openai.on_request(lambda: Product.objects.update(description="newer"))

    embed_pending()

    assert fake_openai.texts == ["older", "newer"]
    assert stored_contents(index) == {product.pk: ["newer"]}
    assert_invariants(index)


def test_an_edit_and_the_way_back_while_the_call_is_in_flight_are_no_loss(
    index, product, fake_openai
):
    def edit_twice() -> None:
        Product.objects.update(description="newer")
        Product.objects.update(description="older")

    fake_openai.on_request(edit_twice)

    embed_pending()

    assert fake_openai.texts == ["older"]
    assert_invariants(index)


def test_a_row_deleted_while_the_call_is_in_flight_leaves_and_gets_no_chunk(
    index, product, fake_openai
):
    fake_openai.on_request(lambda: Product.objects.all().delete())

    embed_pending()

    assert not index.chunk_model.objects.exists()
    assert_invariants(index)


def test_a_row_deleted_and_made_anew_while_the_call_is_in_flight_has_the_new_text(
    index, product, fake_openai
):
    def replace() -> None:
        Product.objects.all().delete()
        Product.objects.create(pk=product.pk, description="newer", sku="1")

    fake_openai.on_request(replace)

    embed_pending()

    assert stored_contents(index) == {product.pk: ["newer"]}
    assert_invariants(index)


def test_a_save_rolled_back_while_the_call_is_in_flight_leaves_no_note(index, product, fake_openai):
    def roll_back() -> None:
        with contextlib.suppress(Rollback), transaction.atomic():
            Product.objects.create(description="never", sku="2")
            Product.objects.update(description="never")
            raise Rollback

    fake_openai.on_request(roll_back)

    embed_pending()

    assert fake_openai.texts == ["older"]
    assert not Change.objects.exists()
    assert_invariants(index)


# SQLite lets one session write at a time.


@ON_POSTGRESQL
def test_a_note_that_is_committed_after_a_later_one_was_taken_is_not_lost(
    index, product, fake_openai
):
    other = Product.objects.create(description="other", sku="2")
    embed_pending()

    mine = Product.objects.filter(pk=product.pk)
    with open_transaction(lambda: mine.update(description="a")) as commit:
        Product.objects.filter(pk=other.pk).update(description="b")
        fake_openai.on_request(commit)
        sync.sync_pending("default", limit=10)
    between = status_of(index).pending
    embed_pending()

    assert between == 1
    assert stored_contents(index) == {product.pk: ["a"], other.pk: ["b"]}
    assert_invariants(index)


@ON_POSTGRESQL
def test_an_edit_that_is_open_while_its_row_is_stored_is_not_lost(index, product):
    with open_transaction(lambda: Product.objects.update(description="newer")):
        embed_pending()
        meanwhile = stored_contents(index)
    embed_pending()

    assert meanwhile == {product.pk: ["older"]}
    assert stored_contents(index) == {product.pk: ["newer"]}
    assert_invariants(index)


@ON_POSTGRESQL
def test_a_delete_that_is_open_while_its_row_is_stored_leaves_no_chunk(index, product):
    with open_transaction(lambda: Product.objects.all().delete()):
        embed_pending()
    embed_pending()

    assert not index.chunk_model.objects.exists()
    assert_invariants(index)


@ON_POSTGRESQL
def test_a_writer_never_waits_for_a_call(index, product, fake_openai):
    def write() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = 1")  # ms: a lock that is held is an error
        Product.objects.update(description="newer")
        Product.objects.all().delete()
        wrote.append(True)

    wrote: list[bool] = []
    fake_openai.on_request(write)

    embed_pending()

    assert wrote
    assert_invariants(index)


@ON_POSTGRESQL
def test_many_workers_and_writers_at_once_leave_all_in_step(index):
    Product.objects.bulk_create(Product(description=f"text {n}", sku=str(n)) for n in range(60))

    def write(first: int) -> None:
        for turn in range(20):
            sku = str((first + 7 * turn) % 60)
            Product.objects.filter(sku=sku).update(description=f"text {first} {turn}")
            if turn % 5 == 0:
                Product.objects.filter(sku=sku).delete()
                Product.objects.create(description=f"again {first} {turn}", sku=sku)

    def work() -> None:
        for _ in range(5):
            embed_pending()

    in_threads(*[lambda first=first: write(first) for first in range(3)], work, work)
    embed_pending()

    assert_invariants(index)
    assert status_of(index).is_in_step


def in_threads(*functions) -> None:
    errors: list[Exception] = []

    def run(function) -> None:
        try:
            function()
        except Exception as error:  # noqa: BLE001 - the test's thread raises it
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
