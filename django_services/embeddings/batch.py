"""Embedding a backlog through OpenAI's Batch API: half the price, within a day.

What the pending sources lack is sent as batch jobs. No source is held while OpenAI
works: when the vectors are there an ordinary sync finds them by their texts' hashes,
with all that it guarantees for edits and deletes meanwhile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from django.db import DatabaseError, connections
from django.db.models import QuerySet, Sum

from .. import openai_service
from ..batches import drafts, jobs
from ..batches.drafts import BeingFilled, Draft, Kind
from ..batches.leases import LeaseLost
from ..batches.lines import Limits, Request
from ..batches.models import EMBEDDINGS, BatchJob
from ..exceptions import InvalidRequest, ServiceError
from ..openai_transport import catalogue
from . import spaces
from .batch_results import jobs_of, not_to_send, purpose
from .claims import Claim
from .declaration import Embeddings
from .models import Change, Lease, Space
from .sync import mend_capture
from .threads import Stop
from .work import Work, calls_for, plan

#: Seconds between two looks at batches that OpenAI works on.
POLL = 30.0

#: Texts that are still missing after a batch, up to which no other is worth waiting for.
FEW = 1_000

#: Sources that are read at once.
SOURCES_AT_ONCE = 1_000

#: Fewest lines of a batch: where so few are too many at once, it is not their number.
_SMALLEST = 100

_TOO_MANY_TOKENS = "token_limit_exceeded"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the batches are, in numbers."""

    batches: int  # that OpenAI works on, or that are to be fetched
    texts: int  # of all batches whose results are kept
    completed: int  # texts


@dataclass(slots=True)
class Backfill:
    """The batches of one space: sends what its sources lack, and waits for it."""

    index: Embeddings
    alias: str
    space: Space
    limits: Limits = field(default_factory=Limits)
    _most: int | None = None  # batches that are sent at once
    _sent: list[BatchJob] = field(default_factory=list)  # in the last round
    _is_done: bool = False

    @property
    def jobs(self) -> QuerySet[BatchJob]:
        return jobs_of(self.index, self.alias, self.space)

    def step(self, stop: Stop) -> bool:
        """Do all that can be done now; tell whether nothing is left to wait for.

        Raises:
            ServiceError: OpenAI cannot be used now, or refuses the batches.
        """
        if self._is_done:
            return True
        jobs.resume(purpose(self.index, self.space), using=self.alias)
        if self._is_waiting():
            return False
        self._learn()
        try:
            self._sent = self._send_missing(stop)
        except (BeingFilled, LeaseLost):
            return False
        # Where nothing was missing, another process may have sent it a moment ago.
        self._is_done = not (self._sent or stop.is_set or self._is_waiting())
        return self._is_done

    def _is_waiting(self) -> bool:
        return any(jobs.unfinished(purpose(self.index, self.space), using=self.alias))

    def _send_missing(self, stop: Stop) -> list[BatchJob]:
        few = FEW if self.jobs.filter(completed__gt=0).exists() else 0
        kind = Kind(
            endpoint=EMBEDDINGS,
            alias=self.index.alias,
            model=self.space.model,
            purpose=purpose(self.index, self.space),
            keeps_bodies=False,
        )
        filled = drafts.fill(kind, self._requests(stop), using=self.alias, limits=self.limits)
        sent: list[BatchJob] = []
        with contextlib.closing(filled):
            for draft in islice(filled, self._most):
                if stop.is_set or (not sent and len(draft) <= min(few, self.limits.lines - 1)):
                    draft.discard()
                    break
                sent.append(self._send(draft))
        return sent

    def _send(self, draft: Draft) -> BatchJob:
        with openai_service.attributed(feature=self.index.label):
            return jobs.send(draft)

    def _requests(self, stop: Stop) -> Iterator[Request]:
        options = _options(self.space)
        for keys in pending(self.index, self.alias):
            if stop.is_set:
                return
            for call in calls_for(unclaimed(self.index, self.alias, self.space, keys)):
                names = [content_hash.hex() for content_hash in call.hashes]
                known = not_to_send(self.index, self.alias, self.space, names)
                for name, text in zip(names, call.texts, strict=True):
                    if name not in known:
                        yield Request(name, {**options, "input": text})

    def _learn(self) -> None:
        """Draw the lesson of the last round: whether to go on, and with how much at once.

        Raises:
            ServiceError: It brought nothing, and another one would not either.
        """
        # Those are gone that another process was done with.
        sent = list(self.jobs.filter(pk__in=[job.pk for job in self._sent]))
        good = [job for job in sent if job.completed]
        codes = {job.error for job in sent}
        if _TOO_MANY_TOKENS in codes:
            # An account may have only so many tokens waiting.
            self._most = max(1, len(good))
        if good or not sent:
            return
        if _TOO_MANY_TOKENS not in codes or self.limits.lines < 2 * _SMALLEST:
            code = next(filter(None, codes), "no line of it succeeded")
            raise InvalidRequest(
                f"{self.index.label}: the batch brought nothing ({code}). "
                "Embed without it: manage.py embeddings sync"
            )
        self.limits = replace(self.limits, lines=self.limits.lines // 2)


def backfills(indexes: Sequence[Embeddings], alias: str) -> list[Backfill]:
    """Return what is to be done for the declarations of a database.

    The embedded model has no batches, and needs none.
    """
    mend_capture(alias)
    found = []
    for index in indexes:
        spaces.ensure(index, alias)
        found += [
            Backfill(index, alias, space)
            for space in spaces.live(index, alias)
            if not openai_service.is_embedded(index.alias, space.model)
        ]
    return found


def run(
    backfills: Sequence[Backfill],
    *,
    waits: bool = True,
    stop: Stop | None = None,
    progress: Callable[[Progress], object] | None = None,
    trouble: Callable[[Exception], object] | None = None,
) -> bool:
    """Send what is missing, wait for it, fetch it; tell whether all of it is there.

    It may be stopped, and killed, at any time: the next run goes on from there.

    Args:
        backfills: What is to be done.
        waits: Whether to wait for OpenAI; else only what can be done now is.
        stop: Once set, nothing new is begun.
        progress: Called after each look at the batches.
        trouble: Called with an error that may pass, while it waits.

    Raises:
        ServiceError: OpenAI cannot be used, or refuses the batches.
    """
    stop = stop or Stop()
    has_begun = False
    while not stop.is_set:
        _close_old_connections()
        try:
            left = [each for each in backfills if not each.step(stop)]
            if progress is not None:
                progress(how_far(backfills))
            if not left:
                return True
        except (ServiceError, DatabaseError) as error:
            if not (waits and has_begun and _may_pass(error)):
                raise
            if trouble is not None:
                trouble(error)
        has_begun = True
        if not waits:
            return False
        stop.sleep(POLL)
    return False


def how_far(backfills: Sequence[Backfill]) -> Progress:
    """Return how far the batches are, those included whose results were fetched before."""
    batches = texts = completed = 0
    for each in backfills:
        sent = each.jobs.exclude(state=BatchJob.State.CANCELLED, completed=0)
        batches += sent.exclude(state__in=BatchJob.FINISHED).count()
        found = sent.aggregate(texts=Sum("total"), completed=Sum("completed"))
        texts += found["texts"] or 0
        completed += found["completed"] or 0
    return Progress(batches, texts, completed)


def clean(backfills: Sequence[Backfill]) -> None:
    """Remove the batches that a sync has stored the vectors of, at OpenAI too.

    Those of a declaration of which a worker holds sources stay: he may be about to
    look for them.
    """
    for each in backfills:
        if not Lease.objects.using(each.alias).filter(index=each.index.label).exists():
            for job in each.jobs.filter(state__in=BatchJob.FINISHED):
                jobs.remove(job)


def _close_old_connections() -> None:
    """Let no connection age while OpenAI works; but not one that a caller has work in."""
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()


def _may_pass(error: Exception) -> bool:
    return error.retryable if isinstance(error, ServiceError) else True


def _options(space: Space) -> dict[str, object]:
    """Return what the bodies of a space's requests have in common."""
    options: dict[str, object] = {"model": space.model, "encoding_format": "base64"}
    known = catalogue.find(space.model)
    # Other servers' models often refuse the parameter, and the model's own length needs none.
    if known is not None and known.dimensions not in {None, space.dimensions}:
        options["dimensions"] = space.dimensions
    return options


def pending(index: Embeddings, alias: str) -> Iterator[list[str]]:
    """Yield the keys of the pending sources; of one with several changes perhaps again."""
    changes = Change.objects.using(alias).filter(index=index.label).order_by("pk")
    last = 0
    while found := list(changes.filter(pk__gt=last).values_list("pk", "source")[:SOURCES_AT_ONCE]):
        last = found[-1][0]
        yield list(dict.fromkeys(source for _, source in found))


def unclaimed(index: Embeddings, alias: str, space: Space, keys: Sequence[str]) -> Work:
    """Return what sources need in a space, without holding them."""
    nobody = Claim(index, alias, owner="", changes={key: [] for key in keys}, attempts={}, last=0)
    return plan(nobody, [space])
