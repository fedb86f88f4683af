"""Batch jobs: submit, poll, fetch, retry what failed. A crash at any step pays nothing twice.

    jobs = submit(requests, endpoint="/v1/responses")
    resume()                         # now and then, in any process
    for line in jobs[0].lines.all():
        line.answer

A step is noted after it is done, and its beginning before: who goes on looks at
OpenAI for what was begun before doing it again. A batch is created once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any

from django.db import transaction
from django.db.models import Count, Q, QuerySet
from django.db.models.functions import Now

from ..exceptions import InvalidInput, InvalidRequest, ServiceError, ServiceUnavailable
from ..openai_transport.faults import fault_in
from . import drafts, leases, remote, results
from .drafts import Draft, Kind
from .leases import LeaseLost
from .lines import Limits, Request, encoded
from .models import BatchJob, BatchLine

if TYPE_CHECKING:
    from openai.types import Batch

logger = logging.getLogger(__name__)

State = BatchJob.State

#: Seconds after which a batch that was asked for, and is not listed, does not exist.
SETTLED = 60.0

#: OpenAI's statuses in which nothing more comes; what has come is kept.
_ENDED = frozenset({"completed", "expired", "cancelled"})

#: Downloads that may bring fewer lines than OpenAI tells, before it is not believed.
_FETCHES = 5

_BATCH_LIMITS = Limits()


def submit(
    requests: Iterable[Request],
    *,
    endpoint: str,
    alias: str = "default",
    purpose: str = "",
    using: str = "default",
    limits: Limits = _BATCH_LIMITS,
) -> list[BatchJob]:
    """Send requests as batches; returns their jobs, several where one cannot hold all.

    Either all of them are recorded or, after an error, none. The requests are stored
    in the database until they have succeeded.

    Args:
        requests: With ids of your own, each once; all for one model.
        endpoint: Such as ``"/v1/responses"`` or ``"/v1/embeddings"``.
        alias: The service's name in ``DJANGO_SERVICES["OPENAI"]``.
        purpose: What they are for, to find the jobs by.
        using: The database.
        limits: What one batch may hold.

    Raises:
        InvalidInput: A request cannot stand in a batch; nothing was recorded.
        ServiceError: OpenAI did not take them. They are recorded: call `resume`
            later, and not this again.
    """
    kind, requests = _kind_of(requests, endpoint, alias, purpose)
    if kind is None:
        return []
    recorded = _record(kind, requests, using=using, limits=limits)
    for job in recorded:
        advance(job)
    return recorded


def poll(job: BatchJob) -> BatchJob:
    """Ask OpenAI how far the job is; returns it.

    Raises:
        ServiceError: OpenAI cannot be asked now.
    """
    return _do(job, {State.SUBMITTED: _poll})


def fetch(job: BatchJob) -> BatchJob:
    """Store what came back for each line of a job that OpenAI has ended; returns it.

    Raises:
        ServiceError: The results cannot be read now. What was read is stored.
    """
    return _do(job, {State.FETCHING: _fetch})


def advance(job: BatchJob) -> BatchJob:
    """Do all that can be done for a job now; returns it. Nothing where another process does.

    Raises:
        ServiceError: OpenAI cannot be used now; the job goes on from there later.
    """
    return _do(job, _STEPS)


def send(draft: Draft) -> BatchJob:
    """Send a draft that its maker has filled and still holds; returns its job.

    Raises:
        ServiceError: OpenAI did not take it: `resume` tries again, from the file that
            was uploaded, or else drops the job.
    """
    steps = {**_STEPS, State.PREPARED: lambda job: _upload(job, draft.file)}
    return _do(draft.job, steps, owner=draft.job.owner)


def resume(purpose: str | None = None, *, using: str = "default") -> list[BatchJob]:
    """Do all that can be done now for every unfinished job; returns those, the oldest first.

    Args:
        purpose: Of jobs of this purpose only.
        using: The database.

    Raises:
        ServiceError: As `advance` raises it, once the other jobs have had their turn.
    """
    error: ServiceError | None = None
    found = list(unfinished(purpose, using=using))
    for job in found:
        try:
            advance(job)
        except ServiceError as failure:
            error = failure
    if error is not None:
        raise error
    return found


def retry_failed(job: BatchJob) -> BatchJob | None:
    """Send the lines again that failed for no fault of theirs, as a new job; once.

    Returns:
        The new job, whose ``parent`` is this one, or that of an earlier call; None if
        there is no such line.

    Raises:
        InvalidInput: The job is not finished, or its requests were not kept.
        ServiceError: OpenAI did not take the new job: call `resume` later.
    """
    if not job.is_finished:
        raise InvalidInput(f"Batch job {job.uuid} is not finished: resume() it first.")
    if not job.keeps_bodies:
        raise InvalidInput(f"Batch job {job.uuid} kept no requests: whoever made them sends them.")
    again = _retry_of(job)
    if again is not None:
        advance(again)
    return again


def cancel(job: BatchJob) -> BatchJob:
    """Ask OpenAI to end a job; what it has done by then is kept, and paid for.

    The job is finished once `resume` has fetched that.

    Raises:
        ServiceError: OpenAI cannot be asked now.
    """
    return _do(
        job,
        {State.PREPARED: _drop, State.UPLOADED: _withdraw, State.SUBMITTED: _cancel},
    )


def remove(job: BatchJob) -> None:
    """Delete a finished job, its results, and its files at OpenAI."""
    for file_id in filter(None, (job.input_file, job.output_file, job.error_file)):
        try:
            remote.delete_file(job, file_id)
        except ServiceError as error:
            # OpenAI deletes it by itself, after 30 days.
            logger.info("OpenAI %r kept file %s: %s", job.alias, file_id, type(error).__name__)
    job.delete()


def unfinished(purpose: str | None = None, *, using: str = "default") -> Iterator[BatchJob]:
    """Yield the jobs that have steps left, the oldest first."""
    found = BatchJob.objects.using(using).exclude(state__in=BatchJob.FINISHED)
    yield from (found if purpose is None else found.filter(purpose=purpose)).order_by("pk")


# Recording ---------------------------------------------------------------------------


def _kind_of(
    requests: Iterable[Request], endpoint: str, alias: str, purpose: str
) -> tuple[Kind | None, Iterator[Request]]:
    """Return what the first request tells of all, and all."""
    rest = iter(requests)
    first = next(rest, None)
    if first is None:
        return None, rest
    model = first.body.get("model")
    if not isinstance(model, str):
        raise InvalidInput(f"Request {first.custom_id!r} names no model.")

    def all_of_them() -> Iterator[Request]:
        yield first
        yield from rest

    kind = Kind(endpoint=endpoint, alias=alias, model=model, purpose=purpose)
    return kind, all_of_them()


def _record(
    kind: Kind,
    requests: Iterable[Request],
    *,
    using: str,
    limits: Limits,
    parent: BatchJob | None = None,
) -> list[BatchJob]:
    recorded: list[BatchJob] = []
    with transaction.atomic(using=using):
        once = _once(requests)
        for draft in drafts.fill(kind, once, using=using, limits=limits, parent=parent):
            recorded.append(draft.job)
            leases.release(draft.job)
    return recorded


def _once(requests: Iterable[Request]) -> Iterator[Request]:
    seen: set[str] = set()
    for request in requests:
        if request.custom_id in seen:
            raise InvalidInput(f"Two requests have the custom_id {request.custom_id!r}.")
        seen.add(request.custom_id)
        yield request


def _retry_of(job: BatchJob) -> BatchJob | None:
    with leases.held(job) as is_taken:
        earlier = job.retries.order_by("pk").first()
        failed = job.lines.filter(state=BatchLine.State.FAILED, is_retryable=True)
        if earlier is not None or not is_taken or not failed.exists():
            return earlier
        kind = Kind(endpoint=job.endpoint, alias=job.alias, model=job.model, purpose=job.purpose)
        # All in one: they stood in one batch before.
        (again,) = _record(
            kind, _requests_of(failed), using=job.database, limits=_BATCH_LIMITS, parent=job
        )
        return again


def _requests_of(lines: QuerySet[BatchLine]) -> Iterator[Request]:
    pairs = lines.order_by("pk").values_list("custom_id", "body")
    for custom_id, body in pairs.iterator(chunk_size=drafts.LINES_AT_ONCE):
        yield Request(custom_id, json.loads(body))


# Steps -------------------------------------------------------------------------------

#: Does the next thing for a job that is held; one that cannot yet leaves its state.
Step = Callable[[BatchJob], None]


def _do(job: BatchJob, steps: Mapping[str, Step], *, owner: str = "") -> BatchJob:
    with leases.held(job, owner) as is_taken:
        state = None
        while is_taken and state != job.state and job.state in steps:
            state = job.state
            try:
                steps[state](job)
            except LeaseLost:
                job.refresh_from_db()
                break
            except InvalidRequest as error:
                _fail(job, error.code or f"HTTP {error.status}")
    return job


def _upload(job: BatchJob, file: IO[bytes] | None = None) -> None:
    found = None if job.attempted_at is None else remote.find_file(job)
    if found is None and file is None and not job.keeps_bodies:
        _drop(job)
        return
    if found is None:
        leases.write(job, attempted_at=Now())
        with contextlib.nullcontext(file) if file else _file_of(job) as content:
            content.seek(0)
            found = remote.upload(job, content)
    leases.write(job, state=State.UPLOADED, input_file=found, attempted_at=None)


def _create(job: BatchJob) -> None:
    if _may_exist(job):
        return
    leases.write(job, attempted_at=Now())
    _submitted(job, remote.create(job))


def _may_exist(job: BatchJob) -> bool:
    """Tell whether the job has a batch that was found now, or that may yet be listed."""
    if job.attempted_at is None:
        return False
    batch = remote.find_batch(job)
    if batch is not None:
        _submitted(job, batch)
        return True
    settled = BatchJob.objects.using(job.database).filter(
        pk=job.pk, attempted_at__lte=leases.later(-SETTLED)
    )
    return not settled.exists()


def _submitted(job: BatchJob, batch: Batch) -> None:
    leases.write(job, state=State.SUBMITTED, batch=batch.id, submitted_at=Now(), attempted_at=None)
    logger.info("OpenAI %r: batch %s of %d lines", job.alias, batch.id, job.total)


def _poll(job: BatchJob) -> None:
    _note(job, remote.retrieve(job))


def _cancel(job: BatchJob) -> None:
    try:
        batch = remote.cancel(job)
    except InvalidRequest:  # it has ended already
        batch = remote.retrieve(job)
    _note(job, batch)


def _withdraw(job: BatchJob) -> None:
    if not _may_exist(job):
        _drop(job)


def _note(job: BatchJob, batch: Batch) -> None:
    """Note how far OpenAI is."""
    counts = batch.request_counts
    leases.write(
        job,
        status=batch.status[:32],
        checked_at=Now(),
        completed=counts.completed if counts else 0,
        failed=counts.failed if counts else 0,
    )
    if batch.status == "failed":
        faults = (batch.errors and batch.errors.data) or []
        # Of the service's words only a plain code: the others may quote a text.
        codes = (fault_in({"error": {"code": fault.code}}).code for fault in faults)
        _fail(job, next(filter(None, codes), "failed"))
    elif batch.status in _ENDED:
        leases.write(
            job,
            state=State.FETCHING,
            output_file=batch.output_file_id or "",
            error_file=batch.error_file_id or "",
        )


def _fetch(job: BatchJob) -> None:
    tally = results.store(job)
    if tally.answers < job.completed and job.fetches < _FETCHES:
        leases.write(job, fetches=job.fetches + 1)
        raise ServiceUnavailable(
            f"OpenAI ({job.alias}) sent {tally.answers:,} of the {job.completed:,} results of "
            f"batch {job.batch}. What came is stored; the rest is fetched at the next attempt."
        )
    is_cancelled = job.status == "cancelled"
    _finish(
        job,
        State.CANCELLED if is_cancelled else State.DONE,
        "cancelled" if is_cancelled else "no_answer",
        input_tokens=tally.usage.input_tokens,
        output_tokens=tally.usage.output_tokens,
    )
    results.tell(job, tally)


def _fail(job: BatchJob, code: str) -> None:
    _finish(job, State.FAILED, code, error=code)
    logger.warning("OpenAI %r: batch job %s failed: %s", job.alias, job.uuid, code)


def _drop(job: BatchJob) -> None:
    """End a job of which nothing was sent that costs."""
    _finish(job, State.CANCELLED, "not_sent", error="not_sent")


def _finish(job: BatchJob, state: str, reason: str, **values: Any) -> None:
    """End a job; lines that are still without an answer have failed for the reason."""
    line = BatchLine.State
    with transaction.atomic(using=job.database):
        job.lines.filter(state=line.WAITING).update(
            state=line.FAILED, error=reason, is_retryable=True
        )
        counts = job.lines.aggregate(
            completed=Count("pk", filter=Q(state=line.SUCCEEDED)),
            failed=Count("pk", filter=Q(state=line.FAILED)),
        )
        leases.write(job, state=state, finished_at=Now(), **counts, **values)


_STEPS: Mapping[str, Step] = {
    State.PREPARED: _upload,
    State.UPLOADED: _create,
    State.SUBMITTED: _poll,
    State.FETCHING: _fetch,
}


@contextlib.contextmanager
def _file_of(job: BatchJob) -> Iterator[IO[bytes]]:
    """Give the job's input file, made again from its lines."""
    with tempfile.TemporaryFile() as file:
        for request in _requests_of(job.lines.all()):
            file.write(encoded(request, job.endpoint))
        yield file
