"""Takes rows off the caller's path, and writes them in a thread of its own.

Its connection is its own too: rows outlive the caller's rollback. What the database
does not take stays in memory, up to a bound, and is written when it is back. Rows
are written at exit and at SIGTERM; SIGKILL loses those of the last FLUSH_SECONDS.

A signal handler may interrupt any of this anywhere, so what it calls takes no lock
that Python code can be interrupted in: `SimpleQueue.put` may be entered again.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any

from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from .. import conf
from ..exceptions import ServiceError
from ..resilience import Backoff
from .models import database
from .storing import Row, store

logger = logging.getLogger(__name__)

#: Rows in memory; a process that loses its database for long keeps the first ones.
MOST_ROWS = 10_000
#: Seconds that the end of a process waits for its last rows.
EXIT_SECONDS = 5.0
#: The same at SIGTERM, after which a container is killed within ten.
TERM_SECONDS = 3.0
#: Seconds without rows after which the connection is closed.
IDLE_SECONDS = 30.0
#: Between two tries at a database that takes nothing.
BACKOFF = Backoff(attempts=sys.maxsize, first=1.0, longest=30.0)

_LOOK = 0.02  # seconds between two looks at a transaction that must end first

_Reply = SimpleQueue[bool]


class Writer:
    """Rows on their way to the database, of one process.

    Args:
        write: Writes rows; runs in the writer's thread. What it raises, it is given
            again later.
    """

    def __init__(self, write: Callable[[Sequence[Row]], object]) -> None:
        self._write = write
        self._handles_term = False
        self._inherited: list[object] = []
        self._reset()

    def _reset(self) -> None:
        self._rows: deque[Row] = deque()
        self._lost = 0
        self._failures = 0
        self._busy: list[BaseDatabaseWrapper] = []
        self._bell: SimpleQueue[_Reply | None] = SimpleQueue()
        self._is_asleep = False
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def put(self, row: Row, after: BaseDatabaseWrapper | None = None) -> None:
        """Leave a row to be written.

        Args:
            after: Whose open transaction is waited for.
        """
        if len(self._rows) >= MOST_ROWS:
            self._lost += 1
            return
        self._rows.append(row)
        if after is not None:
            self._busy.append(after)
        if self._thread is None:
            self._start()
        elif self._is_asleep:
            self._is_asleep = False
            self._bell.put(None)
        if not self._handles_term:
            self._handle_term()

    def flush(self, timeout: float = EXIT_SECONDS) -> bool:
        """Write all rows now; return whether all are stored.

        Args:
            timeout: Seconds to wait for it.
        """
        if not self._rows:
            return True
        if self._thread is None:
            self._start()
        if self._thread is None:
            return self._write_all()
        reply: _Reply = SimpleQueue()
        self._bell.put(reply)
        try:
            return reply.get(timeout=timeout)
        except Empty:
            return False

    def forget(self) -> None:
        """Leave rows and thread to the parent: for a forked child."""
        # Not deleted: to close what is shared with the parent would disturb it.
        self._inherited.append((self._rows, self._bell, self._thread))
        self._reset()

    # -- the thread -------------------------------------------------------------------

    def _start(self) -> None:
        # Who finds it taken leaves the row to who has it: a signal handler cannot wait.
        if not self._starting.acquire(blocking=False):
            return
        try:
            if self._thread is None:
                thread = threading.Thread(target=self._work, name=__name__, daemon=True)
                thread.start()
                self._thread = thread
                _flush_at_exit_of_child()
        except RuntimeError:
            # The interpreter is ending and gives no more threads: `flush` writes.
            logger.debug("The ledger's thread did not start")
        finally:
            self._starting.release()

    def _work(self) -> None:
        while True:
            asked = self._wait()
            is_written = self._write_all()
            for reply in asked:
                reply.put(is_written)

    def _wait(self) -> list[_Reply]:
        """Return when rows are due, with who asked for them to be written at once."""
        asked: list[_Reply] = []
        # In this order: whoever adds a row looks at the flag after that.
        self._is_asleep = True
        while not self._rows and not asked:
            asked += self._listen(IDLE_SECONDS, if_silent=connections.close_all)
        self._is_asleep = False
        until = time.monotonic() + self._pause()
        while not asked and (left := self._left(until)) > 0:
            asked += self._listen(left)
        return asked

    def _listen(
        self, seconds: float, *, if_silent: Callable[[], object] | None = None
    ) -> list[_Reply]:
        try:
            reply = self._bell.get(timeout=seconds)
        except Empty:
            if if_silent is not None:
                if_silent()
            return []
        return [] if reply is None else [reply]

    def _pause(self) -> float:
        """Return the seconds in which rows come together."""
        if self._failures:
            return BACKOFF.delay(self._failures) or 0.0
        # The other half of the time is for the writing.
        return _flush_seconds() / 2

    def _left(self, until: float) -> float:
        self._busy = [each for each in self._busy if each.in_atomic_block]
        return max(until - time.monotonic(), _LOOK if self._busy else 0.0)

    def _write_all(self) -> bool:
        """Write what is there now; keep it where that fails."""
        rows = [self._rows[at] for at in range(len(self._rows))]
        try:
            if rows:
                self._write(rows)
        except Exception as error:  # noqa: BLE001 - whatever it is, the rows are worth another try
            self._note_failure(error)
            return False
        for _row in rows:
            self._rows.popleft()
        self._note_success()
        return True

    def _note_failure(self, error: Exception) -> None:
        self._failures += 1
        if self._failures == 1:
            # No message of a driver's: it may hold a password.
            reason = str(error) if isinstance(error, ServiceError) else type(error).__name__
            logger.warning(
                "The ledger cannot be written to (%s); up to %s rows are kept and tried again. "
                "See: manage.py services check; manage.py migrate",
                reason,
                f"{MOST_ROWS:,}",
            )

    def _note_success(self) -> None:
        if self._failures:
            logger.info("The ledger can be written to again")
        if self._lost:
            logger.warning("The ledger lost %s rows of the time that it could not be written to",
                           f"{self._lost:,}")  # fmt: skip
        self._failures = self._lost = 0

    # -- the end of the process -------------------------------------------------------

    def _handle_term(self) -> None:
        """See to it that rows are written at SIGTERM, where it would end the process at once."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._handles_term = True
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._end)

    def _end(self, number: int, _frame: Any) -> None:
        try:
            self.flush(TERM_SECONDS)
        finally:
            # What would have happened without us, the exit status included.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


def _flush_seconds() -> float:
    try:
        return conf.ledger().flush_seconds
    except ServiceError:
        return conf.LedgerSettings().flush_seconds


def _write(rows: Sequence[Row]) -> None:
    connection = _own_connection(database())
    # One that was left open may have died: that is found out by using it.
    for is_last in (False, True) if connection.connection is not None else (True,):
        try:
            store(rows, conf.ledger().batch_size)
        except Error:
            connection.close()
            if is_last:
                raise
        else:
            break


#: Options of a connection that the ledger goes without.
_NOT_OURS = frozenset({"pool", "isolation_level"})
#: The connections of this thread, by process: a forked child must not close its parent's.
_opened: dict[tuple[int, str], BaseDatabaseWrapper] = {}


def _own_connection(alias: str) -> BaseDatabaseWrapper:
    """Return this thread's connection, from no pool.

    A pool that the callers have emptied must not hold up the ledger, nor it them.
    """
    connection = connections[alias]
    if connection.settings_dict["OPTIONS"].keys() & _NOT_OURS:
        own = connection.copy()
        for option in _NOT_OURS:
            own.settings_dict["OPTIONS"].pop(option, None)
        connections[alias] = connection = own
    _opened[os.getpid(), alias] = connection
    return connection


#: The writer of this process.
writer = Writer(_write)


def _flush_at_exit_of_child() -> None:
    """Flush at the end of a process of multiprocessing's too, which runs no atexit."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.Finalize(None, writer.flush, exitpriority=0)


atexit.register(writer.flush)
os.register_at_fork(after_in_child=writer.forget)
