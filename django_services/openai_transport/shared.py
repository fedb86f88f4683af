"""State that limits and budgets share with other processes: in Redis, else in this one.

A `Step` reads and changes it at once. It is written twice: as a Lua script, which
Redis runs alone and by its own clock, and as a function that does the same with
this process's memory. That serves where no Redis is configured, and while it is
down, unless the project would rather have calls refused.

A Redis that does not answer costs one timeout, not one for each call: after that
it is left alone for `PAUSE` seconds, then asked by one call.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import Any, NamedTuple

from .. import conf
from ..exceptions import ServiceNotConfigured
from ..lifecycle import Managed
from ..redis_service import get_async_redis_client, get_redis_client
from ..resilience import Breaker
from . import waiting

logger = logging.getLogger(__name__)

#: Seconds for which a Redis that failed is not asked.
PAUSE = 10.0

#: What every script begins with: microseconds by the clock that all processes share.
CLOCK = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
"""

Keys = Sequence[str]
Arguments = Sequence[Any]  # whole numbers and texts; in Lua all are texts


class Memory:
    """What Redis would hold, in this process: dicts by key, each forgotten at its time."""

    #: Keys held before those are looked for whose time has come.
    _MANY = 1_000

    def __init__(self) -> None:
        self.now = 0  # microseconds of this process's clock, as the step that runs began
        self._entries: dict[str, dict[Any, int]] = {}
        self._ends: dict[str, int] = {}
        self._many = self._MANY

    def __len__(self) -> int:
        return len(self._entries)

    def holds(self, key: str) -> bool:
        """Tell whether anything is held under a key, its time come or not."""
        return key in self._entries

    def entry(self, key: str) -> dict[Any, int]:
        """Return what is held under a key; empty, and not held, where its time has come."""
        return self._entries[key] if self._ends.get(key, 0) > self.now else {}

    def keep(self, key: str, entry: dict[Any, int], until: int) -> None:
        """Hold an entry until a time in microseconds; one that was held longer still is."""
        if key not in self._entries and len(self._entries) >= self._many:
            self._forget_ended()
        self._ends[key] = max(until, self._ends.get(key, 0))
        self._entries[key] = entry

    def _forget_ended(self) -> None:
        for key in [key for key, end in self._ends.items() if end <= self.now]:
            del self._ends[key], self._entries[key]
        # Looking through all is worth it once in as many new keys as are held.
        self._many = max(self._MANY, 2 * len(self._entries))


@dataclass(frozen=True, slots=True)
class Step:
    """A change of the state at once, for both places where that may be.

    Attributes:
        lua: The script; it finds `now` besides KEYS and ARGV, and returns a list
            of whole numbers and texts, which come as bytes. The keys are in one slot
            of a cluster, by their hash tag.
        twin: Does the same with a `Memory`; takes that, the keys and the arguments.
    """

    lua: str
    twin: Callable[[Memory, Keys, Arguments], list[Any]]


class Answer(NamedTuple):
    """What a step returned, and where it ran."""

    values: list[Any]
    is_shared: bool  # in Redis


class Store:
    """Where steps run.

    Args:
        redis: The alias of the Redis; None: this process only.
    """

    def __init__(self, redis: str | None) -> None:
        self._redis = redis
        self._breaker = Breaker(1, PAUSE)
        self._memory = Memory()
        self._lock = threading.Lock()
        #: What the next step for a key takes along to Redis, so that it costs no round
        #: trip. It may be lost. Here, since a forked child must not send it once more.
        self.owed: dict[str, list[int]] = {}

    def run(self, step: Step, keys: Keys, arguments: Arguments, *, refuses: bool) -> Answer | None:
        """Run a step in Redis, or here without one.

        Args:
            step: What to run.
            keys: Of the script.
            arguments: Of the script.
            refuses: Whether nothing is to happen here while Redis is down.

        Returns:
            None where that is so.
        """
        answer = self._ask(step, keys, arguments)
        return answer or self._without_redis(step, keys, arguments, refuses)

    async def arun(
        self, step: Step, keys: Keys, arguments: Arguments, *, refuses: bool
    ) -> Answer | None:
        """Do as `run`."""
        answer = await self._aask(step, keys, arguments)
        return answer or self._without_redis(step, keys, arguments, refuses)

    def follow(
        self, step: Step, keys: Keys, arguments: Arguments, *, is_shared: bool
    ) -> Answer | None:
        """Run a step where the one before it ran; None if that was Redis and it is down."""
        if is_shared:
            return self._ask(step, keys, arguments)
        return self.run_here(step, keys, arguments)

    async def afollow(
        self, step: Step, keys: Keys, arguments: Arguments, *, is_shared: bool
    ) -> Answer | None:
        """Do as `follow`."""
        if is_shared:
            return await self._aask(step, keys, arguments)
        return self.run_here(step, keys, arguments)

    def is_blank(self, key: str) -> bool:
        """Tell whether nothing is known of a key, without asking anybody: there is no Redis."""
        return self._redis is None and not self._memory.holds(key)

    def run_here(self, step: Step, keys: Keys, arguments: Arguments) -> Answer:
        """Run a step in this process's memory."""
        with self._lock:
            self._memory.now = _now()
            return Answer(step.twin(self._memory, keys, arguments), is_shared=False)

    def _ask(self, step: Step, keys: Keys, arguments: Arguments) -> Answer | None:
        """Run a step in Redis; None if there is none, or none that answers."""
        if self._redis is None or self._breaker.refused_for() is not None:
            return None
        with _Verdict(self._breaker, self._redis):
            return Answer(
                _evaluated(get_redis_client(self._redis), step, keys, arguments), is_shared=True
            )
        return None

    async def _aask(self, step: Step, keys: Keys, arguments: Arguments) -> Answer | None:
        if self._redis is None or self._breaker.refused_for() is not None:
            return None
        with _Verdict(self._breaker, self._redis):
            client = get_async_redis_client(self._redis)
            return Answer(await _aevaluated(client, step, keys, arguments), is_shared=True)
        return None

    def _without_redis(
        self, step: Step, keys: Keys, arguments: Arguments, refuses: bool
    ) -> Answer | None:
        if refuses and self._redis is not None:
            return None
        return self.run_here(step, keys, arguments)


# redis-py's own scripts make the digest anew for each client, which takes longer than they do.


def _evaluated(client: Any, step: Step, keys: Keys, arguments: Arguments) -> Any:
    from redis.exceptions import NoScriptError

    script = CLOCK + step.lua
    try:
        return client.evalsha(_digest(script), len(keys), *keys, *arguments)
    except NoScriptError:
        return client.eval(script, len(keys), *keys, *arguments)


async def _aevaluated(client: Any, step: Step, keys: Keys, arguments: Arguments) -> Any:
    from redis.exceptions import NoScriptError

    script = CLOCK + step.lua
    try:
        return await client.evalsha(_digest(script), len(keys), *keys, *arguments)
    except NoScriptError:
        return await client.eval(script, len(keys), *keys, *arguments)


@lru_cache(maxsize=32)
def _digest(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


class _Verdict:
    """Tells the breaker how a command in the block ended; an error of Redis ends here."""

    __slots__ = ("_alias", "_breaker")

    def __init__(self, breaker: Breaker, alias: str) -> None:
        self._breaker = breaker
        self._alias = alias

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if error is None:
            self._breaker.succeeded()
            return False
        from redis.exceptions import RedisError

        if not isinstance(error, RedisError):
            self._breaker.released()
            return False
        self._breaker.failed()
        logger.warning(
            "Redis %r, which shares limits and budgets, failed and is not asked for %.0f s: %s",
            self._alias,
            PAUSE,
            error,
        )
        return True


def store() -> Store:
    """Return the process's store; a forked child has one of its own.

    Raises:
        ConfigurationError: The setting of Redis is wrong.
    """
    return _stores.get("default")


def forget() -> None:
    """Forget this process's state and how Redis fared, as for a test; Redis keeps its own."""
    _stores.close()


def _build(alias: str) -> Store:
    if conf.fake_network:
        return Store(None)  # a test neither meets nor leaves anything in the project's Redis
    try:
        conf.redis(alias)
    except ServiceNotConfigured:
        return Store(None)
    return Store(alias)


def _now() -> int:
    """Return microseconds of this process's clock."""
    return int(waiting.now() * 1_000_000)


_stores: Managed[Store] = Managed(
    "limits and budgets",
    _build,
    lambda store: None,  # noqa: ARG005  # nothing of it is open
    settings=frozenset({"DJANGO_SERVICES", "CACHES"}),
)
