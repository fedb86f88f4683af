from __future__ import annotations

import json

import openai
import pytest

from django_services.batches import jobs
from django_services.batches.lines import Request
from django_services.batches.models import BatchJob
from django_services.openai_service import get_openai_client

EMBEDDINGS = "/v1/embeddings"


def line(custom_id, text):
    body = {"model": "text-embedding-3-small", "input": text}
    return {"custom_id": custom_id, "method": "POST", "url": EMBEDDINGS, "body": body}


def uploaded(lines):
    content = "".join(json.dumps(each) + "\n" for each in lines).encode()
    return get_openai_client().files.create(file=("in.jsonl", content), purpose="batch")


def submitted(lines):
    return get_openai_client().batches.create(
        input_file_id=uploaded(lines).id, endpoint=EMBEDDINGS, completion_window="24h"
    )


def results(file_id):
    return [json.loads(each) for each in get_openai_client().files.content(file_id).iter_lines()]


def test_a_file_is_kept_until_it_is_deleted(fake):
    files = get_openai_client().files
    created = files.create(file=("a.txt", b"some\r\nbytes\x00"), purpose="user_data")

    found = files.retrieve(created.id)
    content = files.content(created.id).content
    files.delete(created.id)

    assert (found.filename, found.bytes, found.purpose) == ("a.txt", 12, "user_data")
    assert content == b"some\r\nbytes\x00"
    assert list(files.list()) == []
    with pytest.raises(openai.NotFoundError):
        files.retrieve(created.id)


def test_a_batch_is_done_when_it_is_next_asked_for(fake):
    batch = submitted([line("a", "one"), line("b", "two")])

    done = get_openai_client().batches.retrieve(batch.id)

    assert (batch.status, done.status) == ("in_progress", "completed")
    assert [each["custom_id"] for each in results(done.output_file_id)] == ["a", "b"]
    fake.assert_embedded("two")


def test_a_line_that_fails_is_in_the_file_of_errors(fake):
    batch = submitted([line("a", "one"), line("b", "two"), line("c", "three")])
    fake.fail(400, "too_long", endpoint="/embeddings")
    fake.timeout(endpoint="/embeddings")

    done = get_openai_client().batches.retrieve(batch.id)

    refused, expired = results(done.error_file_id)
    assert refused["response"]["body"]["error"]["code"] == "too_long"
    assert expired["error"]["code"] == "batch_expired"
    assert (done.request_counts.completed, done.request_counts.failed) == (1, 2)


def test_a_cancelled_batch_is_not_run(fake):
    batch = submitted([line("a", "one")])

    get_openai_client().batches.cancel(batch.id)

    (listed,) = get_openai_client().batches.list()
    assert get_openai_client().batches.retrieve(batch.id) == listed
    assert listed.status == "cancelled"
    fake.assert_not_embedded("one")


def test_a_batch_needs_its_file(fake):
    with pytest.raises(openai.BadRequestError, match="No such file"):
        get_openai_client().batches.create(
            input_file_id="file-none", endpoint=EMBEDDINGS, completion_window="24h"
        )


@pytest.mark.django_db
def test_jobs_of_batches_are_done(fake):
    fake.replies("an answer", "another")
    requests = [
        Request(name, {"model": "gpt-6-luna", "input": name}) for name in ("first", "second")
    ]
    (job,) = jobs.submit(requests, endpoint="/v1/responses")

    done = jobs.advance(job)

    assert done.state == BatchJob.State.DONE
    fake.assert_called("/responses", times=2)
