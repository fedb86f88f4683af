"""Threads for a sync: those that call the model, and the one that stores what came.

A call may hang: the process never waits for its thread. And when to stop: a sync
looks at its `Stop` wherever it waits.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ALL_COMPLETED, Future, wait
from contextvars import copy_context
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

R = TypeVar("R")

#: Seconds that calls in flight get to end in, after a stop was asked for. Below the
#: ten after which a container is killed.
GRACE = 8.0
_LOOK = 0.1  # seconds between two looks whether to stop


class Stop:
    """Whether to end soon. Set by a signal handler, which may take no lock."""

    def __init__(self) -> None:
        self._at: float | None = None

    def set(self) -> None:
        """Ask for an end: nothing new is begun."""
        self._at = self._at or time.monotonic()

    @property
    def is_set(self) -> bool:
        return self._at is not None

    @property
    def is_overdue(self) -> bool:
        """Whether the time is over that calls in flight had to end in."""
        return self._at is not None and time.monotonic() > self._at + GRACE

    def sleep(self, seconds: float) -> None:
        """Wait, but no longer than until the end is asked for."""
        until = time.monotonic() + seconds
        while not self.is_set and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _LOOK))


class Threads:
    """Runs functions in up to ``most`` threads; with none, in the caller's own.

    The threads are daemons: a call that hangs keeps no process from ending.

    Args:
        most: The most that run at once.
        allowed: How many of them may now; asked before each.
        ending: What each thread does at its end, which is then waited for.
    """

    def __init__(
        self,
        most: int,
        allowed: Callable[[], int] | None = None,
        *,
        ending: Callable[[], object] | None = None,
    ) -> None:
        self.most = most
        self._allowed = allowed or (lambda: most)
        self._ending = ending
        self._running = 0
        self._changed = threading.Condition()
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def submit(self, function: Callable[[], R]) -> Future[R]:
        """Run a function in the caller's context; its future gets the result or the error."""
        future: Future[R] = Future()
        if not self.most:
            _run(future, function)
            return future
        # For whom a call is made, and how patient it is, travel in context variables.
        function = partial(copy_context().run, function)
        if len(self._threads) < self.most:
            self._threads.append(threading.Thread(target=self._work, daemon=True))
            self._threads[-1].start()
        self._queue.put((future, function))
        return future

    def close(self) -> None:
        """Cancel what has not begun, and let each thread end after what it is in."""
        with contextlib.suppress(Empty):
            while entry := self._queue.get_nowait():
                entry[0].cancel()
        for _thread in self._threads:
            self._queue.put(None)
        if self._ending is not None:
            for thread in self._threads:
                thread.join(GRACE)

    def _work(self) -> None:
        try:
            while (entry := self._queue.get()) is not None:
                with self._turn():
                    _run(*entry)
                del entry  # texts and vectors are not kept until the next one comes
        finally:
            if self._ending is not None:
                self._ending()

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._running < max(1, self._allowed()))
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()


def _run(future: Future[R], function: Callable[[], R]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except BaseException as error:  # noqa: BLE001 - it belongs to whoever asks for the result
        future.set_exception(error)


def wait_for(futures: Collection[Future[Any]], stop: Stop) -> bool:
    """Wait until all are done; False if a stop leaves them no more time."""
    while not stop.is_overdue:
        if not wait(futures, _LOOK, ALL_COMPLETED).not_done:
            return True
    return False


@contextlib.contextmanager
def running(
    most: int,
    allowed: Callable[[], int] | None = None,
    *,
    ending: Callable[[], object] | None = None,
) -> Iterator[Threads]:
    """Give `Threads`, which end with the block."""
    threads = Threads(most, allowed, ending=ending)
    try:
        yield threads
    finally:
        threads.close()
