"""Bringing the stored embeddings in step: claim, plan, call, store.

`sync` does it for a whole database, with several batches under way and several
calls to the model in flight; the command, a task and a test call it. At the end of
a request `sync_pending` does a few sources, one batch after the other.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

from django.db import connections, router

from .. import conf, openai_service
from ..exceptions import ServiceError
from ..signals import embeddings_synced
from . import capture, claims, spaces, storage
from .capture.backlog import enqueue_all
from .claims import Claim
from .declaration import Embeddings, get_index, indexes_on
from .models import Change, Space
from .statements import own_transaction
from .threads import Stop, Threads, running, wait_for
from .work import TEXTS_IN_CALL, Brought, Call, Work, calls_for, plan

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Report:
    """What a sync did, in numbers; ``sources`` counts each time one was worked on."""

    sources: int = 0
    embedded: int = 0  # texts sent to the model; equal texts are sent once
    stored: int = 0  # chunks
    removed: int = 0  # chunks
    failed: int = 0  # sources
    activated: list[str] = field(default_factory=list)  # labels that switched their space

    def add(self, other: Report) -> None:
        self.sources += other.sources
        self.embedded += other.embedded
        self.stored += other.stored
        self.removed += other.removed
        self.failed += other.failed
        self.activated += other.activated


def sync(
    indexes: Sequence[Embeddings] | None = None,
    *,
    alias: str,
    batch_size: int | None = None,
    progress: Callable[[Embeddings, Report], object] | None = None,
    building: Callable[[Embeddings, float, str], object] | None = None,
    stop: Stop | None = None,
    mend: bool = True,
) -> Report:
    """Bring every pending source of a database in step.

    It begins the space of a declaration that changed, and on PostgreSQL builds the
    index that searches need.

    Args:
        indexes: The declarations; all of the database if None.
        alias: The database.
        batch_size: Sources claimed at once; else ``EMBEDDINGS["BATCH_SIZE"]``.
        progress: Called after each batch with the declaration and its batch.
        building: Called while an index is built with the declaration and the
            share that is done, 0 to 1, and what is being done.
        stop: Once set, nothing new is begun; what is in flight has `threads.GRACE`
            seconds to be stored, and is given back after that.
        mend: Whether to install what triggers a failed migration left missing. Who
            syncs again and again does it once: while a new version is rolled out,
            processes of both would undo each other's.

    Raises:
        ServiceError: The OpenAI service as a whole cannot be used for one of the
            declarations; its sources stay pending, those of the others are done.
    """
    total = Report()
    stop = stop or Stop()
    size = batch_size or conf.embeddings().batch_size
    error: ServiceError | None = None
    if mend:
        mend_capture(alias)
    for index in indexes_on(alias) if indexes is None else indexes:
        spaces.ensure(index, alias)
        try:
            with openai_service.profile("task"), openai_service.attributed(feature=index.label):
                for batch in _Batches(index, alias, size, stop):
                    total.add(batch)
                    if progress is not None:
                        progress(index, batch)
        except ServiceError as found:
            # Another declaration may have another model, or another service.
            error = error or found
            continue
        if stop.is_set:
            break
        if _complete(index, alias, building, stop):
            total.activated.append(index.label)
    spaces.trim_log(alias)
    if error is not None:
        raise error
    return total


def sync_pending(alias: str, *, limit: int) -> Report:
    """Bring up to ``limit`` pending sources in step: for the end of a request."""
    total = Report()
    noted = set(Change.objects.using(alias).values_list("index", flat=True).distinct())
    for index in indexes_on(alias):
        if index.label not in noted or total.sources >= limit:
            continue
        spaces.ensure(index, alias)
        total.add(sync_batch(index, alias, limit=limit - total.sources) or Report())
    return total


def sync_batch(index: Embeddings, alias: str, *, limit: int) -> Report | None:
    """Claim some pending sources and bring them in step; None if there are none."""
    claim = claims.claim(index, alias, limit=limit)
    if claim is None:
        return None
    with _given_back_on_error(claim):
        report = store(work_out(claim))
    return _tell(claim, report)


def work_out(claim: Claim) -> Work:
    """Read, cut and embed what was claimed; holds no transaction during the call."""
    work = plan(claim)
    for call in calls_for(work):
        call.diff.take(call())
    return work


def store(work: Work) -> Report:
    """Write what was worked out, for the sources that are still the claim's own."""
    claim = work.claim
    report = Report(sources=len(claim.changes))
    errors = work.errors
    with own_transaction(claim.alias):
        mine = claims.hold(claim)
        failed = {key: error for key, error in errors.items() if key in mine}
        set_aside = set(claims.fail(claim, failed))
        done = mine - failed.keys() - work.withheld
        # A text that is set aside must not be found by what it said before.
        left = done | set_aside
        stale = [id_ for diff in work.diffs for key, id_ in diff.stale if key in left]
        report.removed = storage.remove(claim.index, claim.alias, stale)
        storage.remove_all(
            claim.index, claim.alias, [key for key in work.without_text if key in mine]
        )
        report.stored = storage.insert(claim.index, claim.alias, _new_chunks(work, done))
        report.embedded = sum(diff.embedded for diff in work.diffs)
        report.failed = len(failed)
        claims.finish(claim, done)
        claims.release(claim)
    return report


def databases() -> list[str]:
    """Return the databases that hold stored embeddings."""
    return [
        alias
        for alias in connections
        if router.allow_migrate_model(alias, Space) and indexes_on(alias)
    ]


def mend_capture(alias: str) -> None:
    """Install missing triggers, and note what may have changed without them."""
    with own_transaction(alias):
        for label in capture.install(alias):
            enqueue_all(get_index(label), alias)


class _Stopped(Exception):
    """The building of an index was broken off by a stop."""


def _complete(
    index: Embeddings,
    alias: str,
    building: Callable[[Embeddings, float, str], object] | None,
    stop: Stop,
) -> bool:
    """Build the search index of each space that is complete; tell whether one took over."""
    from . import ann_index  # not loaded where nothing is completed

    def report(share: float, phase: str) -> None:
        if stop.is_set:
            raise _Stopped
        if building is not None:
            building(index, share, phase)

    try:
        for space in spaces.built(index, alias):
            ann_index.ensure(index, space, alias, progress=report)
    except _Stopped:
        return False  # the next sync begins it anew
    return spaces.activate_if_built(index, alias) is not None


def _new_chunks(work: Work, keys: Collection[str]) -> list[storage.NewChunk]:
    return [
        storage.NewChunk(key, diff.space.pk, piece, diff.vectors[piece.content_hash])
        for diff in work.diffs
        for key, piece in diff.missing
        if key in keys
    ]


def _tell(claim: Claim, report: Report) -> Report:
    embeddings_synced.send(
        sender=Embeddings,
        index=claim.index.label,
        embedded=report.embedded,
        stored=report.stored,
        removed=report.removed,
        failed=report.failed,
    )
    return report


@contextlib.contextmanager
def _given_back_on_error(claim: Claim) -> Iterator[None]:
    """Give the claim back where the work on it broke off: its sources stay pending."""
    try:
        yield
    except BaseException:
        claims.release(claim)
        raise


# Several batches under way -----------------------------------------------------------

#: Batches that may wait to be stored, the one that is being stored included.
STORES = 2


@dataclass(slots=True)
class _Batch:
    """A claim whose calls are in flight, or that is being stored."""

    work: Work
    calls: list[tuple[Call, Future[Brought]]]
    stored: Future[Report] | None = None

    @property
    def size(self) -> int:
        """Its calls; what needs none takes memory all the same."""
        return max(1, len(self.calls))

    @property
    def futures(self) -> list[Future[Brought]]:
        return [future for _, future in self.calls]

    def collect(self) -> ServiceError | None:
        """Take what the calls brought; return an error that concerns every text."""
        found = None
        for call, future in self.calls:
            try:
                call.diff.take(future.result())
            except ServiceError as error:
                found = error
                self.work.withhold(call)
        return found


class _Batches:
    """The batches of one declaration, in the order in which they are claimed.

    While calls are in flight the next batches are claimed and read, and on
    PostgreSQL, on a connection of its own, the last ones are stored. After an error
    that concerns every text nothing is begun, and what other calls brought is stored
    before the error is raised: it is paid for.
    """

    def __init__(self, index: Embeddings, alias: str, size: int, stop: Stop) -> None:
        self._index = index
        self._alias = alias
        self._size = size
        self._stop = stop
        self._calling: deque[_Batch] = deque()
        self._storing: deque[_Batch] = deque()
        self._position = 0

    def __iter__(self) -> Iterator[Report]:
        """Yield what each batch came to."""
        error: ServiceError | None = None
        with (
            running(self._allowed(), self._allowed) as calls,
            running(self._stores(), ending=connections.close_all) as stores,
            self._given_back(),
        ):
            while True:
                if error is None:
                    self._fill(calls)
                if self._calling:
                    batch = self._calling[0]
                    if not wait_for(batch.futures, self._stop):
                        break
                    error = batch.collect() or error
                    batch.stored = stores.submit(partial(store, batch.work))
                    self._storing.append(self._calling.popleft())
                if not self._storing:
                    break
                yield from self._told()
        if error is not None:
            raise error

    def _allowed(self) -> int:
        """Return how many calls may be in flight; none is, of a model in this process."""
        index, most = self._index, conf.embeddings().concurrency
        # A test's rows are in its own transaction, where another thread does not see them.
        if conf.fake_network or openai_service.is_embedded(index.alias, index.embedding_model):
            return 0
        return openai_service.calls_in_flight(index.alias, index.embedding_model, most=most)

    def _stores(self) -> int:
        """Return how many threads store: a transaction that is open, or SQLite, has no other."""
        connection = connections[self._alias]
        return int(connection.vendor == "postgresql" and not connection.in_atomic_block)

    @contextlib.contextmanager
    def _given_back(self) -> Iterator[None]:
        try:
            yield
        finally:
            # A store that goes on keeps its leases' locks until it is done.
            for batch in (*self._storing, *self._calling):
                claims.release(batch.work.claim)

    def _fill(self, calls: Threads) -> None:
        """Begin batches until every thread has a call.

        What a killed process has paid for in vain is bounded so, and its memory too.
        """
        most = max(1, calls.most)
        while not self._stop.is_set and sum(batch.size for batch in self._calling) < most:
            claim = self._claim()
            if claim is None:
                break
            self._calling.append(_begun(claim, calls))

    def _claim(self) -> Claim | None:
        """Go on from the last claim; at the end look once more from the beginning."""
        found = claims.claim(self._index, self._alias, limit=self._size, after=self._position)
        if found is None and self._position:
            self._position = 0
            return self._claim()
        if found is not None:
            self._position = found.last
        return found

    def _told(self) -> Iterator[Report]:
        """Yield what was stored; wait for it where there is nothing else to do meanwhile."""
        while self._storing:
            stored = self._storing[0].stored
            assert stored is not None
            if not (stored.done() or len(self._storing) >= STORES or not self._calling):
                return
            report = stored.result()
            yield _tell(self._storing.popleft().work.claim, report)


def _begun(claim: Claim, calls: Threads) -> _Batch:
    texts = TEXTS_IN_CALL if calls.most else None
    with _given_back_on_error(claim):
        work = plan(claim)
        return _Batch(work, [(call, calls.submit(call)) for call in calls_for(work, texts=texts)])
