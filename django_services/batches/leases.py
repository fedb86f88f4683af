"""Who works on a job: one process at a time, by the database's clock.

What a worker writes is fenced: it stands only if the job is still its own.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from django.db import models, transaction
from django.db.models import DateTimeField, ExpressionWrapper, Q
from django.db.models.functions import Now

from .models import BatchJob

#: Seconds that a worker may be silent before another takes its job. An upload that
#: takes longer may be made twice, which is harmless; a batch is not.
LEASE = 300.0


class LeaseLost(Exception):
    """Another process took the job: this one writes nothing more."""


def later(seconds: float) -> models.Expression:
    """Return the database's time in so many seconds; negative ones are in the past."""
    # Parenthesised by the wrapper: a bare sum has no type on SQLite.
    return ExpressionWrapper(Now() + timedelta(seconds=seconds), DateTimeField())


def new_owner() -> str:
    return uuid.uuid4().hex


@contextlib.contextmanager
def held(job: BatchJob, owner: str = "") -> Iterator[bool]:
    """Hold a job in the block; gives whether it could be taken. Its fields are fresh then.

    Args:
        job: The job.
        owner: Who holds it already, where that is the caller.
    """
    is_taken = _take(job, owner)
    mine = job.owner
    try:
        yield is_taken
    finally:
        if is_taken:
            release(job, mine)


def write(job: BatchJob, **values: Any) -> None:
    """Write fields of a job that is held, and hold it for another while.

    Raises:
        LeaseLost: It passed to another process.
    """
    mine = _rows(job).filter(owner=job.owner)
    if not mine.update(leased_until=later(LEASE), **values):
        raise LeaseLost
    plain = [name for name, value in values.items() if not hasattr(value, "resolve_expression")]
    for name in plain:
        setattr(job, name, values[name])
    if len(plain) < len(values):
        job.refresh_from_db(fields=[name for name in values if name not in plain])


def release(job: BatchJob, owner: str = "") -> None:
    """Let others take the job; nothing where it passed to another already."""
    _rows(job).filter(owner=owner or job.owner).update(owner="", leased_until=None)
    job.owner, job.leased_until = "", None


def _take(job: BatchJob, owner: str) -> bool:
    free = Q(owner=owner) | Q(owner="") | Q(leased_until__lte=Now())
    owner = owner or new_owner()
    with transaction.atomic(using=job.database):
        is_taken = bool(_rows(job).filter(free).update(owner=owner, leased_until=later(LEASE)))
        with contextlib.suppress(BatchJob.DoesNotExist):  # it was removed meanwhile
            job.refresh_from_db()
    return is_taken


def _rows(job: BatchJob) -> models.QuerySet[BatchJob]:
    return BatchJob.objects.using(job.database).filter(pk=job.pk)
