"""``embeddings sync --batch`` and ``--dry-run``: arguments, output, exit codes, signals."""

import io
import json
import os
import signal

import pytest
from django.core.management import CommandError, call_command

from django_services.batches import jobs
from django_services.embeddings import batch
from django_services.embeddings.status import status
from tests.testapp.models import Product

pytestmark = pytest.mark.django_db

NAME = "testapp.Product"


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(batch, "POLL", 0.0)
    monkeypatch.setattr(jobs, "SETTLED", 0.0)


@pytest.fixture
def products(fake_batches):
    return Product.objects.bulk_create(
        Product(description=f"text {number}", sku=str(number)) for number in range(3)
    )


def run(*arguments):
    output = io.StringIO()
    call_command("embeddings", "sync", NAME, *arguments, stdout=output, stderr=io.StringIO())
    return output.getvalue()


def pending():
    return sum(each.pending for each in status("default") if each.label.startswith(NAME))


def test_batch_waits_and_stores(products, fake_batches):
    fake_batches.during("GET /v1/batches/*", fake_batches.work)

    output = run("--batch")

    assert "Batches: 3 of 3 texts embedded, 0 batches under way." in output
    assert "3 rows brought in step" in output
    assert pending() == 0


def test_batch_without_waiting_says_how_to_go_on(products, fake_batches):
    output = run("--batch", "--no-wait")

    assert "Batches: 0 of 3 texts embedded, 1 batches under way." in output
    assert "Go on: manage.py embeddings sync --batch" in output
    assert pending() == 3


def test_batch_without_waiting_goes_on_when_run_again(products, fake_batches):
    run("--batch", "--no-wait")
    fake_batches.work()

    run("--batch", "--no-wait")

    assert pending() == 0
    assert len(fake_batches.batches) == 1


def test_batch_prints_numbers_for_a_script(products, fake_batches):
    fake_batches.during("GET /v1/batches/*", fake_batches.work)

    report = json.loads(run("--batch", "--json"))

    assert report["batch"] == {"batches": 0, "texts": 3, "completed": 3, "is_complete": True}
    assert report["stored"] == 3


def test_batch_with_nothing_to_do_says_so(fake_batches):
    assert run("--batch") == "Nothing to embed: everything is in step.\n"


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_the_batch_to_be_resumed(products, fake_batches, name):
    # In the server's thread; Python runs the handler in the main one.
    fake_batches.during("GET /v1/batches/*", lambda: os.kill(os.getpid(), name))
    output, errors = io.StringIO(), io.StringIO()

    with pytest.raises(SystemExit) as ended:
        call_command("embeddings", "sync", NAME, "--batch", stdout=output, stderr=errors)
    fake_batches.work()
    run("--batch", "--no-wait")

    assert ended.value.code == 130
    assert "OpenAI goes on by itself. Go on: manage.py embeddings sync --batch" in output.getvalue()
    assert pending() == 0
    assert len(fake_batches.batches) == 1


@pytest.mark.parametrize(
    "arguments",
    [("--batch", "--watch"), ("--dry-run", "--watch"), ("--batch", "--dry-run"), ("--no-wait",)],
)
def test_options_that_contradict_each_other_are_refused(arguments):
    with pytest.raises(CommandError, match=r"exclude each other|goes with"):
        run(*arguments)


def test_dry_run_shows_what_it_would_cost(products):
    output = run("--dry-run")

    assert "text-embedding-3-small, 8" in output
    assert "$0.00000018" in output  # 9 tokens
    assert "Nothing was changed." in output
    assert pending() == 3


def test_dry_run_prints_numbers_for_a_script(products):
    (found,) = json.loads(run("--dry-run", "--json"))

    assert (found["sources"], found["texts"], found["tokens"]) == (3, 3, 9)
    assert float(found["batch_cost"]) * 2 == pytest.approx(float(found["cost"]))


def test_dry_run_says_that_there_is_nothing_to_do(fake_batches):
    assert run("--dry-run") == "Nothing to embed: everything is in step.\n"
