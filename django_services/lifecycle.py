"""Managed clients: one object for each process and alias, made on first use.

What makes a client safe to share is decided here once, for all services: the
lock, the fork, the event loop, the change of a setting and the end of the
process.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable
from typing import Any, Generic, TypeVar

from django.core.signals import setting_changed

logger = logging.getLogger(__name__)

C = TypeVar("C")

_all_managed: weakref.WeakSet[Managed[Any]] = weakref.WeakSet()


class Managed(Generic[C]):
    """The clients of one service, by alias.

    A forked child forgets the clients and does not close them: their sockets
    belong to the parent. A changed setting drops and closes them, so the next
    use follows the new setting.

    Args:
        service: The service's name, for logs.
        build: Makes the client of an alias; runs under the lock, at most once.
        close: Closes a client; called on `close`, on a changed setting and at exit.
        settings: Names of Django settings whose change drops the clients.
    """

    def __init__(
        self,
        service: str,
        build: Callable[[str], C],
        close: Callable[[C], object],
        *,
        settings: frozenset[str] = frozenset({"DJANGO_SERVICES"}),
    ) -> None:
        self.service = service
        self.settings = settings
        self._build = build
        self._close = close
        self._lock = threading.Lock()
        self._clients: dict[Hashable, C] = {}
        _all_managed.add(self)

    def get(self, alias: str) -> C:
        """Return the alias's client, made now if this is its first use."""
        key = self._key(alias)
        client = self._clients.get(key)
        if client is None:
            with self._lock:
                # Another thread may have made it while this one waited.
                client = self._clients.get(key)
                if client is None:
                    client = self._clients[key] = self._build(alias)
                    logger.debug("%s client %r opened", self.service, alias)
        return client

    def is_open(self, alias: str) -> bool:
        """Tell whether the alias's client was made; opens nothing."""
        return self._key(alias) in self._clients

    def close(self, alias: str | None = None) -> None:
        """Close and drop the client of one alias, or of all."""
        with self._lock:
            keys = [key for key in self._clients if alias is None or self._alias(key) == alias]
            closing = [self._clients.pop(key) for key in keys]
        for client in closing:
            self._close_quietly(client)

    def forget(self) -> None:
        """Drop every client without closing it: for a forked child."""
        # The parent may have held the lock at the moment of the fork.
        self._lock = threading.Lock()
        self._clients = {}

    def _close_quietly(self, client: C) -> None:
        try:
            self._close(client)
        except (OSError, RuntimeError) as error:
            logger.warning("%s client did not close cleanly: %s", self.service, error)

    def _key(self, alias: str) -> Hashable:
        return alias

    def _alias(self, key: Any) -> str:
        return str(key)


class ManagedPerLoop(Generic[C]):
    """The async clients of one service, by alias and running event loop.

    An async client is bound to the loop of its first call, and closed in it: when
    the loop ends, or before on `close` and where `Managed` closes.

    Args:
        service: The service's name, for logs.
        build: Makes the client of an alias; runs in the loop, at most once.
        close: Closes a client; runs in its loop.
        settings: Names of Django settings whose change drops the clients.
    """

    def __init__(
        self,
        service: str,
        build: Callable[[str], C],
        close: Callable[[C], Awaitable[object]],
        *,
        settings: frozenset[str] = frozenset({"DJANGO_SERVICES"}),
    ) -> None:
        self._held: _HeldPerLoop[_InLoop[C]] = _HeldPerLoop(
            service, lambda alias: _InLoop(build(alias), close), _InLoop.end, settings=settings
        )

    def get(self, alias: str) -> C:
        """Return the alias's client of the running loop, made now if this is its first use.

        Raises:
            RuntimeError: No event loop runs in this thread.
        """
        return self._held.get(alias).client

    def close(self, alias: str | None = None) -> None:
        """Drop the clients of one alias, or of all; each is closed in its loop."""
        self._held.close(alias)


class _HeldPerLoop(Managed[C]):
    def get(self, alias: str) -> C:
        self._drop_ended_loops()
        return super().get(alias)

    def _key(self, alias: str) -> Hashable:
        return alias, _LoopKey(asyncio.get_running_loop())

    def _alias(self, key: Any) -> str:
        return str(key[0])

    def _drop_ended_loops(self) -> None:
        # A copy: another thread's loop may get its first client meanwhile.
        if all(key[1].is_running_or_open for key in list(self._clients)):  # type: ignore[index]
            return
        with self._lock:
            for key in [key for key in self._clients if not key[1].is_running_or_open]:  # type: ignore[index]
                del self._clients[key]


class _InLoop(Generic[C]):
    """An async client with the loop it belongs to, and what closes it there."""

    def __init__(self, client: C, close: Callable[[C], Awaitable[object]]) -> None:
        self.client = client
        self._loop = asyncio.get_running_loop()
        # A loop that ends finishes the asynchronous generators that were begun in it.
        self._closing = _closing(client, close)
        with contextlib.suppress(StopIteration):
            self._closing.__anext__().send(None)  # begins it, without a task

    def end(self) -> None:
        """Close the client in its loop, as soon as that runs."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._end_here)

    def _end_here(self) -> None:
        # The loop holds tasks weakly.
        self._task = self._loop.create_task(self._closing.aclose())


async def _closing(
    client: C, close: Callable[[C], Awaitable[object]]
) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        await close(client)


class _LoopKey:
    """An event loop as a key that neither keeps it alive nor outlives its id."""

    __slots__ = ("_hash", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._hash = id(loop)

    @property
    def is_running_or_open(self) -> bool:
        loop = self._loop()
        return loop is not None and not loop.is_closed()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _LoopKey) and self._loop() is other._loop() is not None

    def __hash__(self) -> int:
        return self._hash


def close_all() -> None:
    """Close every managed client of this process."""
    for managed in list(_all_managed):
        managed.close()


def _forget_all() -> None:
    for managed in list(_all_managed):
        managed.forget()


def _drop_changed(*, setting: str, **_: Any) -> None:
    for managed in list(_all_managed):
        if setting in managed.settings:
            managed.close()


setting_changed.connect(_drop_changed, dispatch_uid="django_services.lifecycle")
os.register_at_fork(after_in_child=_forget_all)
atexit.register(close_all)
