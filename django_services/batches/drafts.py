"""Filling jobs with requests: as many to a job as one batch may hold."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import IO, Self

from django.db import DatabaseError, IntegrityError, transaction

from ..openai_transport.context import attribution
from . import leases
from .lines import Limits, Request, check, encoded, inputs_of
from .models import BatchJob, BatchLine

#: Lines that are written to the database at once.
LINES_AT_ONCE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What the jobs of one submission have in common."""

    endpoint: str
    alias: str
    model: str
    purpose: str = ""
    #: Whether the requests are stored until they have succeeded, so that any process
    #: can send them. Else a job that was not sent is dropped, and made anew by its maker.
    keeps_bodies: bool = True


class BeingFilled(Exception):
    """Another process fills a job of the same purpose: whatever it adds need not be sent."""


class Draft:
    """A job that is being filled: its lines in the database, and in a file beside.

    The file has no name that another program could open.
    """

    def __init__(self, job: BatchJob, limits: Limits) -> None:
        self.job = job
        self.file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `close`
        self._limits = limits
        self._ids: set[str] = set()
        self._inputs = 0
        self._unwritten: list[BatchLine] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.file.close()
        if kind is not None and not self.job.keeps_bodies:
            # It will not be filled any more: whoever comes next need not wait to drop it.
            with contextlib.suppress(DatabaseError):
                leases.release(self.job)

    def __len__(self) -> int:
        return len(self._ids)

    def discard(self) -> None:
        """Delete the job, of which nothing was sent."""
        self.job.delete()

    def add(self, request: Request) -> bool:
        """Add a request; False, and nothing done, where the job is full.

        One whose id it has already is left out.

        Raises:
            InvalidInput: It can stand in no batch.
        """
        if request.custom_id in self._ids:
            return True
        line, inputs = encoded(request, self.job.endpoint), inputs_of(request, self.job.endpoint)
        check(request, self.job.model, len(line), inputs, self._limits)
        if not self._has_room(len(line), inputs):
            return False
        self._ids.add(request.custom_id)
        self._inputs += inputs
        self.file.write(line)
        body = json.dumps(request.body) if self.job.keeps_bodies else ""
        self._unwritten.append(
            BatchLine(job=self.job, custom_id=request.custom_id, body=body, inputs=inputs)
        )
        if len(self._unwritten) >= LINES_AT_ONCE:
            self.write()
        return True

    def write(self) -> None:
        """Write to the database what was added."""
        lines, self._unwritten = self._unwritten, []
        with transaction.atomic(using=self.job.database):
            BatchLine.objects.using(self.job.database).bulk_create(lines)
            leases.write(self.job, total=len(self._ids))

    def _has_room(self, size: int, inputs: int) -> bool:
        limits = self._limits
        return (
            len(self._ids) < limits.lines
            and self._inputs + inputs <= limits.inputs
            and self.file.tell() + size <= limits.file_bytes
        )


def begin(kind: Kind, *, using: str, limits: Limits, parent: BatchJob | None = None) -> Draft:
    """Return a new job to be filled, which is held.

    Raises:
        BeingFilled: It keeps no bodies, and another one of its purpose is not sent yet.
    """
    job = BatchJob(
        purpose=kind.purpose,
        alias=kind.alias,
        endpoint=kind.endpoint,
        model=kind.model,
        keeps_bodies=kind.keeps_bodies,
        parent=parent,
        **attribution()._asdict(),
        owner=leases.new_owner(),
        leased_until=leases.later(leases.LEASE),
    )
    try:
        with transaction.atomic(using=using):
            job.save(using=using)
    except IntegrityError:
        raise BeingFilled from None
    return Draft(job, limits)


def fill(
    kind: Kind,
    requests: Iterable[Request],
    *,
    using: str,
    limits: Limits,
    parent: BatchJob | None = None,
) -> Generator[Draft, None, None]:
    """Yield one full draft after the other; each is done with before the next is begun.

    Who does not take all of them closes the iterator: what is left then is given up.

    Raises:
        InvalidInput: A request cannot stand in a batch.
        BeingFilled: As `begin` raises it.
        LeaseLost: Another process took the job, since nothing was added for so long.
    """
    waiting: Request | None = None
    requests = iter(requests)
    while (waiting := waiting or next(requests, None)) is not None:
        with begin(kind, using=using, limits=limits, parent=parent) as draft:
            while waiting is not None and draft.add(waiting):
                waiting = next(requests, None)
            draft.write()
            yield draft
