"""What a job asks of OpenAI: its file, its batch, its answers. Errors are the package's own."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any, TypeVar

from ..exceptions import ServiceUnavailable
from ..openai_service import get_openai_client
from ..openai_transport.faults import error_of
from .lines import split
from .models import BatchJob

if TYPE_CHECKING:
    import openai
    from openai.types import Batch

R = TypeVar("R")

#: Key of the job's uuid in the batch's metadata.
METADATA_KEY = "django_services_job"

#: Seconds that an upload of 200 MB may take.
UPLOAD_TIMEOUT = 900.0

#: How far OpenAI's clock may be behind the database's.
CLOCK_SKEW = datetime.timedelta(hours=1)

#: The transport sends no request again that counts as one that was: a batch that was
#: created, of which the answer was lost, would be created twice.
_ONCE = {"x-stainless-retry-count": "1"}


def upload(job: BatchJob, file: IO[bytes]) -> str:
    """Upload the job's lines; returns the file's id."""
    given = (_file_name(job), file, "application/jsonl")
    found = _ask(
        job,
        lambda client: client.files.create(file=given, purpose="batch", timeout=UPLOAD_TIMEOUT),
    )
    return found.id


def find_file(job: BatchJob) -> str | None:
    """Return the id of the file that a process uploaded and did not live to note."""

    def look(client: openai.OpenAI) -> str | None:
        for file in client.files.list(purpose="batch", order="desc"):
            if file.filename == _file_name(job):
                return file.id
            if _is_older(file.created_at, job):
                break
        return None

    return _ask(job, look)


def create(job: BatchJob) -> Batch:
    """Create the job's batch; sent once, whatever becomes of the answer."""
    endpoint: Any = job.endpoint
    return _ask(
        job,
        lambda client: client.batches.create(
            completion_window="24h",
            endpoint=endpoint,
            input_file_id=job.input_file,
            metadata={METADATA_KEY: str(job.uuid)},
            extra_headers=_ONCE,
        ),
    )


def find_batch(job: BatchJob) -> Batch | None:
    """Return the batch that a process created and did not live to note."""

    def look(client: openai.OpenAI) -> Batch | None:
        for batch in client.batches.list(limit=100):
            noted = (batch.metadata or {}).get(METADATA_KEY)
            # Not every server keeps metadata; a job's file is its alone.
            if noted == str(job.uuid) or batch.input_file_id == job.input_file:
                return batch
            if _is_older(batch.created_at, job):
                break
        return None

    return _ask(job, look)


def retrieve(job: BatchJob) -> Batch:
    return _ask(job, lambda client: client.batches.retrieve(job.batch))


def cancel(job: BatchJob) -> Batch:
    return _ask(job, lambda client: client.batches.cancel(job.batch))


def delete_file(job: BatchJob, file_id: str) -> None:
    _ask(job, lambda client: client.files.delete(file_id))


def lines(job: BatchJob, file_id: str) -> Iterator[bytes]:
    """Yield the lines of a file at OpenAI as they come; it is never held as a whole."""
    import httpx2
    import openai

    try:
        client = get_openai_client(job.alias)
        with client.files.with_streaming_response.content(file_id) as response:
            yield from split(response.iter_bytes())
        return
    except openai.OpenAIError as error:
        fault = error_of(error, job.alias)
    except httpx2.HTTPError as error:
        fault = ServiceUnavailable(
            f"OpenAI ({job.alias}) broke the download of a batch's results off "
            f"({type(error).__name__}). Try again."
        )
    raise fault


def _ask(job: BatchJob, ask: Callable[[openai.OpenAI], R]) -> R:
    import openai

    try:
        return ask(get_openai_client(job.alias))
    except openai.OpenAIError as error:
        fault = error_of(error, job.alias)
    # Here, so that the SDK's error, which holds the key, is no context of it.
    raise fault


def _file_name(job: BatchJob) -> str:
    return f"{job.uuid}.jsonl"


def _is_older(created_at: int, job: BatchJob) -> bool:
    return created_at < (job.created_at - CLOCK_SKEW).timestamp()
