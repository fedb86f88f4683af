"""What wakes a watcher: on PostgreSQL a writer's commit, and always the clock.

A commit that nobody hears of, as behind a pooler that hands sessions on, is found by
the next look.
"""

from __future__ import annotations

import contextlib
import logging
import select
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from django.db import DatabaseError, connections

from .. import conf
from .models import CHANNEL
from .statements import beside
from .threads import Stop

logger = logging.getLogger(__name__)

#: Seconds in which the commits of a burst come together before they are worked on.
DEBOUNCE = 0.05
_LOOK = 0.2  # seconds between two looks whether to stop


class _Listener(NamedTuple):
    session: Any  # psycopg.Connection, for which `select` waits as for its socket
    opened: contextlib.ExitStack  # closes it


class Notifications:
    """Listens to some databases; what cannot be listened to is left to the clock."""

    def __init__(self, aliases: Iterable[str]) -> None:
        self._aliases = [
            alias
            for alias in aliases
            if connections[alias].vendor == "postgresql" and conf.embeddings().notify
        ]
        self._listeners: dict[str, _Listener] = {}
        self._listen()

    def close(self) -> None:
        """Listen no longer."""
        for alias in list(self._listeners):
            self._forget(alias)

    def wait(self, seconds: float, stop: Stop) -> None:
        """Return when a change was committed, after so many seconds, or at a stop."""
        self._listen()
        until = time.monotonic() + seconds
        while not stop.is_set and (left := until - time.monotonic()) > 0:
            if self._heard(min(left, _LOOK)):
                stop.sleep(DEBOUNCE)
                self._heard(0)
                return

    def _listen(self) -> None:
        for alias in self._aliases:
            if alias in self._listeners:
                continue
            with contextlib.ExitStack() as opened:
                try:
                    connection = opened.enter_context(beside(connections[alias]))
                    with connection.cursor() as cursor:
                        cursor.execute(f"LISTEN {CHANNEL}")
                except DatabaseError as error:
                    logger.warning(
                        "Cannot listen to database %r (%s): its changes are looked for instead",
                        alias,
                        type(error).__name__,
                    )
                    continue
                self._listeners[alias] = _Listener(connection.connection, opened.pop_all())

    def _heard(self, seconds: float) -> bool:
        """Wait for a notification of any database, and take all that came."""
        import psycopg  # loaded by the connections already

        if not self._listeners:
            time.sleep(seconds)
            return False
        aliases = {listener.session: alias for alias, listener in self._listeners.items()}
        ready, _, _ = select.select(list(aliases), [], [], seconds)
        for session in ready:
            try:
                list(session.notifies(timeout=0))
            except psycopg.Error:
                # A lost session: whatever came meanwhile is looked for now.
                self._forget(aliases[session])
        return bool(ready)

    def _forget(self, alias: str) -> None:
        with contextlib.suppress(DatabaseError):
            self._listeners.pop(alias).opened.close()
