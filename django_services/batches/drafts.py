"""Filling jobs with requests: as many to a job as one batch may hold."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Self

from django.db import IntegrityError, transaction

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

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, custom_id: str) -> bool:
        return custom_id in self._ids

    def add(self, request: Request) -> bool:
        """Add a request; False, and nothing done, where the job is full."""
        line, inputs = encoded(request, self.job.endpoint), inputs_of(request, self.job.endpoint)
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


def begin(
    kind: Kind, *, using: str, limits: Limits, parent: BatchJob | None = None
) -> Draft | None:
    """Return a new job to be filled, which is held.

    None while another process fills one of its purpose, if it keeps no bodies.
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
        return None
    return Draft(job, limits)


def fill(
    kind: Kind,
    requests: Iterable[Request],
    *,
    using: str,
    limits: Limits,
    parent: BatchJob | None = None,
) -> Iterator[Draft]:
    """Yield one full draft after the other; each is done with before the next is begun.

    It ends early where `begin` refuses.

    Raises:
        InvalidInput: A request cannot stand in a batch.
    """
    waiting: Request | None = None
    requests = iter(requests)
    while (waiting := waiting or next(requests, None)) is not None:
        draft = begin(kind, using=using, limits=limits, parent=parent)
        if draft is None:
            return
        with draft:
            while waiting is not None:
                check(waiting, kind.model, kind.endpoint, limits)
                if not draft.add(waiting):
                    break
                waiting = next(requests, None)
            draft.write()
            yield draft
