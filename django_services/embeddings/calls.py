"""Calls to the model, several in flight: threads that the process never waits for.

They only call. All reading and writing of the database stays with the thread
that began the work, on the one connection that it has.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ALL_COMPLETED, Future, wait
from queue import SimpleQueue
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


class Calls:
    """Runs calls in up to ``most`` threads; with one, in the caller's own.

    The threads are daemons: a call that hangs keeps no process from ending.

    Args:
        most: The most that are in flight at once.
        allowed: How many of them may be now; asked before each call.
    """

    def __init__(self, most: int, allowed: Callable[[], int] | None = None) -> None:
        self.most = most
        self._allowed = allowed or (lambda: most)
        self._running = 0
        self._changed = threading.Condition()
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def submit(self, call: Callable[[], R]) -> Future[R]:
        """Run a call; its future gets the result or the error."""
        future: Future[R] = Future()
        if self.most == 1:
            _run(future, call)
            return future
        if len(self._threads) < self.most:
            self._threads.append(threading.Thread(target=self._work, daemon=True))
            self._threads[-1].start()
        self._queue.put((future, call))
        return future

    def close(self) -> None:
        """Let the threads end, each after the call that it is in."""
        with contextlib.suppress(Exception):
            while not self._queue.empty():
                entry = self._queue.get_nowait()
                if entry is not None:
                    entry[0].cancel()
        for _thread in self._threads:
            self._queue.put(None)

    def _work(self) -> None:
        while (entry := self._queue.get()) is not None:
            with self._turn():
                _run(*entry)
            del entry  # texts and vectors are not kept until the next call comes

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._running < self._allowed())
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()


def _run(future: Future[R], call: Callable[[], R]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(call())
    except BaseException as error:  # noqa: BLE001 - it belongs to whoever asks for the result
        future.set_exception(error)


def wait_for(futures: Collection[Future[Any]], stop: Stop) -> bool:
    """Wait until all are done; False if a stop leaves them no more time."""
    while not stop.is_overdue:
        if not wait(futures, _LOOK, ALL_COMPLETED).not_done:
            return True
    return False


@contextlib.contextmanager
def calling(most: int, allowed: Callable[[], int] | None = None) -> Iterator[Calls]:
    """Give threads for calls, as of `Calls`; they end with the block."""
    calls = Calls(most, allowed)
    try:
        yield calls
    finally:
        calls.close()
