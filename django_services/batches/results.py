"""Storing what came back: line by line as it comes, the same however often it is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from django.db import connections, transaction

from .. import conf
from ..openai_transport.usage import UNKNOWN, Usage
from ..signals import openai_call_finished
from . import leases, remote
from .drafts import LINES_AT_ONCE
from .lines import Outcome, read, results_of
from .models import BatchJob, BatchLine

State = BatchLine.State

_UPDATE = (
    "UPDATE {table} SET state = %s, result = %s, error = %s, is_retryable = %s, "
    "body = CASE WHEN %s THEN '' ELSE body END "
    "WHERE job_id = %s AND custom_id = %s"
)


@dataclass(slots=True)
class Tally:
    """What the files of a job held."""

    answers: int = 0  # lines of the output file
    usage: Usage = UNKNOWN
    cost: Decimal | None = Decimal(0)  # US dollars; None if one line's is not known


def store(job: BatchJob) -> Tally:
    """Read the job's files at OpenAI and store what they say of each line.

    A line that has its answer keeps it. What was read before an error is stored.

    Raises:
        ServiceError: A file cannot be read now.
    """
    tally = Tally()
    if job.output_file:
        for part in _parts(job, job.output_file):
            _count(tally, part, job)
            _store(job, part)
    if job.error_file:
        for part in _parts(job, job.error_file):
            _store(job, part)
    return tally


def tell(job: BatchJob, tally: Tally) -> None:
    """Send the signal of a job's end, with what it cost; once, by who finished it."""
    usage = tally.usage
    openai_call_finished.send_robust(
        sender=BatchJob,
        alias=job.alias,
        endpoint="/batches",
        model=job.model,
        outcome="ok",
        status=200,
        request_id=job.batch,
        attempts=1,
        elapsed_ms=_elapsed_ms(job),
        input_tokens=usage.input_tokens,
        cached_tokens=usage.cached_tokens,
        output_tokens=usage.output_tokens,
        is_estimated=False,
        cost=tally.cost,
        is_embedded=False,
        tenant=job.tenant,
        user=job.user,
        feature=job.feature,
    )


def _parts(job: BatchJob, file_id: str) -> Iterator[list[Outcome]]:
    part: list[Outcome] = []
    for outcome in filter(None, map(read, remote.lines(job, file_id))):
        part.append(outcome)
        if len(part) == LINES_AT_ONCE:
            yield part
            part = []
    if part:
        yield part


def _store(job: BatchJob, part: Sequence[Outcome]) -> None:
    """Write what came for those lines of a part that wait for it."""
    waiting = dict(
        job.lines.filter(
            state=State.WAITING, custom_id__in=[outcome.custom_id for outcome in part]
        ).values_list("custom_id", "inputs")
    )
    outcomes = [outcome for outcome in part if outcome.custom_id in waiting]
    good = [outcome for outcome in outcomes if not outcome.error]
    answers = [(outcome.body, waiting[outcome.custom_id]) for outcome in good]
    kept = zip(good, results_of(answers, job.endpoint), strict=True)
    results = {outcome.custom_id: result for outcome, result in kept}
    rows = [
        (*_columns(outcome, results.get(outcome.custom_id)), job.pk, outcome.custom_id)
        for outcome in outcomes
    ]
    connection = connections[job.database]
    table = connection.ops.quote_name(BatchLine._meta.db_table)
    with transaction.atomic(using=job.database):
        leases.write(job)
        with connection.cursor() as cursor:
            cursor.executemany(_UPDATE.format(table=table), rows)


def _columns(outcome: Outcome, result: bytes | None) -> tuple[Any, ...]:
    """Return the line's state, result, error, whether it may be retried, and is done with."""
    if outcome.error:
        return State.FAILED.value, None, outcome.error, outcome.is_retryable, False
    if result is None:
        return State.FAILED.value, None, "invalid_response", True, False
    return State.SUCCEEDED.value, result, "", False, True


def _count(tally: Tally, part: Sequence[Outcome], job: BatchJob) -> None:
    from ..openai_transport import catalogue

    prices = conf.openai(job.alias).prices
    told = [outcome.usage for outcome in part if not outcome.error]
    # Each line by itself: a long one costs more for each token.
    costs = [catalogue.cost(job.model, usage, prices=prices, is_batch=True) for usage in told]
    known = [cost for cost in (tally.cost, *costs) if cost is not None]
    tally.cost = sum(known, Decimal(0)) if len(known) > len(costs) else None
    tally.answers += len(part)
    told.append(tally.usage)
    tally.usage = Usage(
        input_tokens=_total(usage.input_tokens for usage in told),
        cached_tokens=sum(usage.cached_tokens for usage in told),
        output_tokens=_total(usage.output_tokens for usage in told),
    )


def _total(counts: Iterable[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _elapsed_ms(job: BatchJob) -> float:
    if job.submitted_at is None or job.finished_at is None:
        return 0.0
    return (job.finished_at - job.submitted_at).total_seconds() * 1000
