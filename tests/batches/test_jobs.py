"""Batch jobs against files and batches on loopback: what is sent, kept, and paid once."""

from decimal import Decimal

import numpy as np
import pytest
from django.db import connections

from django_services.batches import drafts, jobs, leases, remote, results
from django_services.batches.lines import Limits, Request
from django_services.batches.models import BatchJob, BatchLine
from django_services.exceptions import (
    AuthenticationFailed,
    InvalidInput,
    ServiceError,
    ServiceUnavailable,
)
from django_services.openai_transport.context import attributed
from django_services.signals import openai_call_finished

from .fake_batches import MODEL

pytestmark = pytest.mark.django_db
on_both = pytest.mark.usefixtures("database")

RESPONSES = "/v1/responses"
EMBEDDINGS = "/v1/embeddings"
State = BatchJob.State


def asking(*texts, model="gpt-6-luna"):
    return [Request(f"id-{_name(text)}", {"model": model, "input": text}) for text in texts]


def _name(text):
    return text if text.isprintable() else "odd"


def embedding(*texts):
    options = {"model": MODEL, "encoding_format": "base64"}
    return [Request(f"id-{text}", {"input": text, **options}) for text in texts]


def submitted(*texts, **options):
    (job,) = jobs.submit(asking(*texts), endpoint=RESPONSES, **options)
    return job


def lines_of(job):
    return {line.custom_id: line for line in job.lines.all()}


@pytest.fixture
def finished_calls():
    """The payloads of what was told of a batch."""
    told = []

    def receive(**payload):
        if payload["endpoint"] == "/batches" and payload["sender"] is BatchJob:
            told.append(payload)

    openai_call_finished.connect(receive)
    yield told
    openai_call_finished.disconnect(receive)


@pytest.fixture
def settled_at_once(monkeypatch):
    monkeypatch.setattr(jobs, "SETTLED", 0.0)


# The way of a job --------------------------------------------------------------------


@on_both
def test_what_comes_back_stands_with_its_request(fake_batches):
    job = submitted("alpha", "beta")
    fake_batches.work()

    jobs.resume()

    job.refresh_from_db()
    answers = {name: line.answer["output"] for name, line in lines_of(job).items()}
    assert answers == {"id-alpha": "ALPHA", "id-beta": "BETA"}
    assert (job.state, job.completed, job.failed) == (State.DONE, 2, 0)


def test_the_batch_carries_the_uuid_of_its_job(fake_batches):
    job = submitted("alpha")

    (batch,) = fake_batches.batches.values()

    assert batch["metadata"] == {remote.METADATA_KEY: str(job.uuid)}
    assert (batch["endpoint"], batch["completion_window"]) == (RESPONSES, "24h")


def test_a_batch_that_works_is_polled_and_tells_how_far_it_is(fake_batches):
    job = submitted("alpha", "beta")
    (batch,) = fake_batches.batches.values()
    batch["request_counts"]["completed"] = 1

    jobs.poll(job)

    assert (job.state, job.status, job.completed) == (State.SUBMITTED, "in_progress", 1)


def test_poll_ends_before_the_results_and_fetch_brings_them(fake_batches):
    job = submitted("alpha")
    fake_batches.work()

    polled = jobs.poll(job).state
    fetched = jobs.fetch(job).state

    assert (polled, fetched) == (State.FETCHING, State.DONE)


@on_both
def test_vectors_are_validated_and_kept_as_float32(fake_batches):
    (job,) = jobs.submit(embedding("alpha"), endpoint=EMBEDDINGS)
    fake_batches.work()

    jobs.resume()

    (line,) = job.lines.all()
    assert np.allclose(line.vectors, [fake_batches.vector("alpha")], atol=1e-6)


def test_a_vector_that_is_none_fails_its_line_alone(fake_batches):
    broken = {"data": [{"index": 0, "embedding": [float("nan")] * 8}]}
    fake_batches.answers["beta"] = 200, broken
    (job,) = jobs.submit(embedding("alpha", "beta"), endpoint=EMBEDDINGS)
    fake_batches.work()

    jobs.resume()

    states = {name: (line.state, line.error) for name, line in lines_of(job).items()}
    assert states == {"id-alpha": ("succeeded", ""), "id-beta": ("failed", "invalid_response")}


def test_a_request_of_several_texts_has_a_vector_for_each(fake_batches):
    request = Request("both", {"model": MODEL, "input": ["alpha", "beta"]})
    (job,) = jobs.submit([request], endpoint=EMBEDDINGS)
    fake_batches.work()

    jobs.resume()

    expected = [fake_batches.vector("alpha"), fake_batches.vector("beta")]
    assert np.allclose(job.lines.get().vectors, expected, atol=1e-6)


def test_a_line_separator_in_a_text_parts_no_line(fake_batches):
    text = "before\u2028after\u0085end"
    job = submitted(text)
    fake_batches.work()

    jobs.resume()

    assert job.lines.get().answer["output"] == text.upper()


@on_both
def test_nul_survives_the_database(fake_batches):
    job = submitted("a\x00b")

    assert fake_batches.sent == ["a\x00b"]
    assert job.state == State.SUBMITTED


@on_both
def test_the_request_is_forgotten_once_it_has_succeeded(fake_batches):
    fake_batches.answers["beta"] = 500, {}
    job = submitted("alpha", "beta")
    fake_batches.work()

    jobs.resume()

    assert {name: bool(line.body) for name, line in lines_of(job).items()} == {
        "id-alpha": False,
        "id-beta": True,
    }


# Limits ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limits", [Limits(lines=2), Limits(inputs=2), Limits(file_bytes=230)], ids=repr
)
def test_what_one_batch_cannot_hold_becomes_several(fake_batches, limits):
    recorded = jobs.submit(embedding("one", "two", "six"), endpoint=EMBEDDINGS, limits=limits)

    assert [job.total for job in recorded] in ([2, 1], [1, 1, 1])
    assert sorted(fake_batches.sent) == ["one", "six", "two"]


@pytest.mark.parametrize(
    ("requests", "limits"),
    [
        ([Request("", {"model": "m"})], Limits()),
        ([Request("a" * 256, {"model": "m"})], Limits()),
        ([Request("a\x00", {"model": "m"})], Limits()),
        ([Request("a", {"model": "m"}), Request("a", {"model": "m"})], Limits()),
        ([Request("a", {"model": "m"}), Request("b", {"model": "n"})], Limits()),
        ([Request("a", {"input": "x"})], Limits()),
        ([Request("a", {"model": "m", "stream": True})], Limits()),
        ([Request("a", {"model": "m", "input": "x" * 300})], Limits(file_bytes=200)),
    ],
    ids=["blank", "long", "NUL", "twice", "two models", "no model", "stream", "too large"],
)
def test_what_no_batch_can_hold_is_refused_and_nothing_recorded(fake_batches, requests, limits):
    with pytest.raises(InvalidInput):
        jobs.submit(requests, endpoint=RESPONSES, limits=limits)

    assert not BatchJob.objects.exists()
    assert not fake_batches.arrived


def test_no_requests_make_no_job(fake_batches):
    assert jobs.submit([], endpoint=RESPONSES) == []


# What fails --------------------------------------------------------------------------


@on_both
def test_each_failed_line_says_why(fake_batches):
    refused = {"error": {"message": "secret words", "code": "invalid_value"}}
    fake_batches.answers |= {"bad": (400, refused), "busy": (503, {}), "late": None}
    job = submitted("good", "bad", "busy", "late")
    fake_batches.work("expired")

    jobs.resume()

    job.refresh_from_db()
    found = {name: (line.error, line.is_retryable) for name, line in lines_of(job).items()}
    assert found == {
        "id-good": ("", False),
        "id-bad": ("HTTP 400, invalid_value", False),
        "id-busy": ("HTTP 503", True),
        "id-late": ("batch_expired", True),
    }
    assert (job.state, job.completed, job.failed) == (State.DONE, 1, 3)


@on_both
def test_failed_lines_are_sent_again_once(fake_batches):
    fake_batches.answers["busy"] = 503, {}
    fake_batches.answers["bad"] = 400, {}
    job = submitted("good", "busy", "bad")
    fake_batches.work()
    jobs.resume()
    job.refresh_from_db()
    fake_batches.answers.clear()

    again = jobs.retry_failed(job)
    same = jobs.retry_failed(job)

    assert fake_batches.sent[3:] == ["busy"]
    assert (again.parent, same) == (job, again)


def test_nothing_is_sent_again_where_nothing_failed(fake_batches):
    job = submitted("good")
    fake_batches.work()
    jobs.resume()
    job.refresh_from_db()

    assert jobs.retry_failed(job) is None


def test_a_line_that_nobody_answered_may_be_retried(fake_batches):
    job = submitted("alpha", "beta")
    fake_batches.work()
    (batch,) = fake_batches.batches.values()
    output = fake_batches.files[batch["output_file_id"]]
    output["content"] = output["content"].splitlines()[0]
    batch["request_counts"]["completed"] = 1

    jobs.resume()

    (line,) = job.lines.filter(state="failed")
    assert (line.error, line.is_retryable) == ("no_answer", True)


def test_a_batch_that_is_refused_fails_its_job_with_the_code(fake_batches):
    fake_batches.refuse_batch("token_limit_exceeded")
    job = submitted("alpha")

    assert (job.state, job.error) == (State.FAILED, "token_limit_exceeded")
    assert job.lines.get().is_retryable


def test_a_request_that_is_refused_fails_the_job(fake_batches):
    fake_batches.fail("POST /v1/batches", 400, "invalid_endpoint")

    job = submitted("alpha")

    assert (job.state, job.error) == (State.FAILED, "invalid_endpoint")


def test_a_key_that_is_refused_leaves_the_job_to_go_on(fake_batches):
    fake_batches.fail("POST /v1/files", 401)

    with pytest.raises(AuthenticationFailed):
        submitted("alpha")
    jobs.resume()

    assert BatchJob.objects.get().state == State.SUBMITTED
    assert len(fake_batches.batches) == 1


def test_one_job_that_cannot_go_on_holds_no_other_up(fake_batches):
    first, second = submitted("alpha"), submitted("beta")
    fake_batches.fail("GET /v1/batches/*", 401)
    fake_batches.work()

    with pytest.raises(AuthenticationFailed):
        jobs.resume()

    assert [BatchJob.objects.get(pk=job.pk).state for job in (first, second)] == [
        State.SUBMITTED,
        State.DONE,
    ]


def test_a_cancelled_batch_keeps_what_came(fake_batches):
    fake_batches.answers["beta"] = None
    job = submitted("alpha", "beta")

    jobs.cancel(job)
    jobs.resume()

    job.refresh_from_db()
    assert (job.state, job.completed, job.failed) == (State.CANCELLED, 1, 1)


def test_a_download_that_breaks_off_goes_on_where_it_was(fake_batches, monkeypatch):
    monkeypatch.setattr(results, "LINES_AT_ONCE", 1)
    job = submitted(*(f"text {number}" for number in range(8)))
    fake_batches.work()
    jobs.poll(job)
    fake_batches.cut_short("GET /v1/files/*/content")

    with pytest.raises(ServiceUnavailable):
        jobs.fetch(job)
    stored = job.lines.filter(state="succeeded").count()
    jobs.fetch(job)

    assert 0 < stored < 8
    assert (job.state, job.completed) == (State.DONE, 8)


def test_fewer_results_than_told_are_fetched_again(fake_batches):
    job = submitted("alpha", "beta")
    fake_batches.work()
    (batch,) = fake_batches.batches.values()
    output = fake_batches.files[batch["output_file_id"]]
    whole, output["content"] = output["content"], output["content"].splitlines()[0]

    with pytest.raises(ServiceUnavailable):
        jobs.advance(job)
    output["content"] = whole
    jobs.advance(job)

    assert (job.state, job.completed) == (State.DONE, 2)


def test_a_server_that_tells_too_many_results_is_not_believed_for_ever(fake_batches):
    job = submitted("alpha")
    fake_batches.work()
    (batch,) = fake_batches.batches.values()
    batch["request_counts"]["completed"] = 7

    for _ in range(jobs._FETCHES):
        with pytest.raises(ServiceUnavailable):
            jobs.advance(job)
    jobs.advance(job)

    assert job.state == State.DONE


# What crashes ------------------------------------------------------------------------


class Crash(Exception):
    """Stands for a process that is gone: nothing of it runs any more."""


def crash(monkeypatch, module, name, *, after):
    """Have a function raise once, before or after it did its work."""
    whole = getattr(module, name)

    def crashing(*args, **options):
        monkeypatch.setattr(module, name, whole)
        if after:
            whole(*args, **options)
        raise Crash

    monkeypatch.setattr(module, name, crashing)


STEPS = [
    (module, name, after)
    for module, name in [
        (remote, "upload"),
        (remote, "create"),
        (jobs, "_submitted"),
        (remote, "retrieve"),
        (jobs, "_note"),
        (results, "store"),
        (results, "_store"),
        (jobs, "_finish"),
    ]
    for after in (False, True)
]


@pytest.mark.usefixtures("settled_at_once")
@pytest.mark.parametrize("step", STEPS, ids=[f"{name}-{after}" for _, name, after in STEPS])
def test_after_a_crash_anywhere_it_goes_on_and_is_paid_once(fake_batches, monkeypatch, step):
    module, name, after = step
    crash(monkeypatch, module, name, after=after)

    crashes = 0
    for run in (lambda: submitted("alpha", "beta"), jobs.resume, jobs.resume, jobs.resume):
        try:
            run()
        except Crash:
            crashes += 1
        fake_batches.work()

    job = BatchJob.objects.get()
    assert crashes == 1
    assert fake_batches.count("POST", "/v1/batches") == 1
    assert (job.state, job.completed) == (State.DONE, 2)


@pytest.mark.parametrize("keeps_metadata", [True, False])
def test_a_batch_whose_answer_was_lost_is_found_again(
    fake_batches, settled_at_once, keeps_metadata
):
    fake_batches.keeps_metadata = keeps_metadata
    others = [submitted("other 1"), submitted("other 2")]
    fake_batches.lose_answer("POST /v1/batches")

    with pytest.raises(ServiceUnavailable):
        submitted("alpha")
    for other in ("other 3", "other 4", "other 5"):
        submitted(other)
    jobs.resume()

    assert fake_batches.sent.count("alpha") == 1
    assert BatchJob.objects.filter(state=State.SUBMITTED).count() == len(others) + 4


@on_both
def test_a_batch_that_is_not_listed_yet_is_not_created_again(fake_batches):
    fake_batches.fail("POST /v1/batches", 500)

    with pytest.raises(ServiceUnavailable):
        submitted("alpha")
    jobs.resume()

    assert fake_batches.count("POST", "/v1/batches") == 1
    assert BatchJob.objects.get().state == State.UPLOADED


def test_a_file_whose_answer_was_lost_is_found_again(fake_batches):
    fake_batches.lose_answer("POST /v1/files")

    with pytest.raises(ServiceUnavailable):
        submitted("alpha")
    jobs.resume()

    assert len(fake_batches.files) == 1
    assert fake_batches.sent == ["alpha"]


def test_what_is_told_of_a_batch_is_told_once(fake_batches, finished_calls, monkeypatch):
    job = submitted("alpha", "beta")
    fake_batches.work()
    crash(monkeypatch, jobs, "_finish", after=False)

    with pytest.raises(Crash):
        jobs.resume()
    jobs.resume()
    jobs.resume()

    (told,) = finished_calls
    assert (told["input_tokens"], told["output_tokens"]) == (20, 4)
    assert told["request_id"] == BatchJob.objects.get(pk=job.pk).batch


def test_a_batch_costs_half_and_those_it_was_made_for(fake_batches, finished_calls):
    with attributed(tenant="acme", feature="reports"):
        submitted("alpha")
    fake_batches.work()

    jobs.resume()

    (told,) = finished_calls
    # 10 tokens in at $0.10 a million, 2 out at $0.50, half of it.
    assert told["cost"] == Decimal("0.000001")
    assert (told["tenant"], told["feature"]) == ("acme", "reports")


# Two at once -------------------------------------------------------------------------


@on_both
def test_a_job_that_another_process_works_on_is_left_alone(fake_batches):
    job = submitted("alpha")
    fake_batches.work()
    other = BatchJob.objects.get()

    with leases.held(job) as is_taken:
        jobs.advance(other)

    assert is_taken
    assert other.state == State.SUBMITTED


@on_both
def test_a_job_of_a_dead_process_is_taken_over(fake_batches):
    job = submitted("alpha")
    fake_batches.work()
    BatchJob.objects.update(owner="dead", leased_until=leases.later(-1))

    jobs.advance(job)

    assert job.state == State.DONE


@on_both
def test_who_lost_the_job_writes_nothing_more(fake_batches):
    def take_over():
        BatchJob.objects.update(owner="another", leased_until=leases.later(100))

    def taking_over(*args, **options):
        take_over()
        return original(*args, **options)

    original = remote.upload
    remote.upload = taking_over
    try:
        job = submitted("alpha")
    finally:
        remote.upload = original

    assert (job.state, BatchJob.objects.get().owner) == (State.PREPARED, "another")
    assert not fake_batches.batches


@on_both
def test_of_a_purpose_without_texts_one_job_is_filled_at_a_time(fake_batches):
    kind = drafts.Kind(
        endpoint=EMBEDDINGS, alias="default", model=MODEL, purpose="x", keeps_bodies=False
    )

    with (
        drafts.begin(kind, using="default", limits=Limits()),
        pytest.raises(drafts.BeingFilled),
    ):
        drafts.begin(kind, using="default", limits=Limits())


def test_a_job_without_texts_that_was_not_sent_is_dropped(fake_batches):
    kind = drafts.Kind(
        endpoint=EMBEDDINGS, alias="default", model=MODEL, purpose="x", keeps_bodies=False
    )
    with drafts.begin(kind, using="default", limits=Limits()) as draft:
        draft.add(embedding("alpha")[0])
        draft.write()
    leases.release(draft.job)

    jobs.resume("x")

    job = BatchJob.objects.get()
    assert (job.state, job.error) == (State.CANCELLED, "not_sent")
    assert not fake_batches.arrived


@on_both
def test_a_job_without_texts_goes_on_from_its_file(fake_batches):
    kind = drafts.Kind(
        endpoint=EMBEDDINGS, alias="default", model=MODEL, purpose="x", keeps_bodies=False
    )
    fake_batches.lose_answer("POST /v1/files")
    with drafts.begin(kind, using="default", limits=Limits()) as draft:
        draft.add(embedding("alpha")[0])
        draft.write()
        with pytest.raises(ServiceUnavailable):
            jobs.send(draft)

    jobs.resume("x")

    assert fake_batches.sent == ["alpha"]
    assert BatchLine.objects.get().body == ""


# Removing and privacy ----------------------------------------------------------------


def test_removing_a_job_removes_its_files_at_openai(fake_batches):
    job = submitted("alpha")
    fake_batches.work()
    jobs.resume()
    job.refresh_from_db()

    jobs.remove(job)

    assert not fake_batches.files
    assert not BatchLine.objects.exists()


def test_a_file_that_cannot_be_removed_keeps_no_job(fake_batches):
    job = submitted("alpha")
    fake_batches.files.clear()

    jobs.remove(job)

    assert not BatchJob.objects.exists()


def test_no_text_is_in_the_log_or_in_an_error(fake_batches, caplog):
    caplog.set_level("DEBUG", "django_services")
    fake_batches.fail("POST /v1/files", 401)

    with pytest.raises(ServiceError) as raised:
        submitted("canary")
    jobs.resume()

    told = caplog.text + repr(raised.value) + repr(asking("canary")) + repr(connections)
    assert "canary" not in told
    assert raised.value.__context__ is None
