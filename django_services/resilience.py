"""Deadlines, backoff and breakers: pure decisions about time, without I/O or sleep.

Whoever calls a service asks here whether to try, how long to wait and whether
there is time left, and does the calling and the waiting itself.
"""

from __future__ import annotations

import os
import random
import threading
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment by which a call must have ended, over all its attempts."""

    at: float  # seconds, on the monotonic clock

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(time.monotonic() + seconds)

    @property
    def remaining(self) -> float:
        """Seconds left; 0.0 when it has passed."""
        return max(0.0, self.at - time.monotonic())

    @property
    def has_passed(self) -> bool:
        return time.monotonic() >= self.at

    def limit(self, timeout: float | None) -> float:
        """Return the timeout (None: no timeout), cut to what is left."""
        remaining = self.remaining
        return remaining if timeout is None else min(timeout, remaining)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff with full jitter.

    Each delay is drawn from zero to the exponential bound, so that clients that
    failed together do not come back together.
    """

    attempts: int = 4  # in all, the first included
    first: float = 0.5  # seconds, bound of the first delay; doubles
    longest: float = 8.0  # seconds, bound of any delay
    spread: float = 0.1  # added at random to a delay that the server named, as a part of it

    def delay(self, failures: int, retry_after: float | None = None) -> float | None:
        """Return the seconds to wait after so many failures.

        Args:
            failures: Attempts that failed so far, 1 or more.
            retry_after: Seconds that the server asked for; obeyed, never shortened.

        Returns:
            None when no attempt is left.
        """
        if failures >= self.attempts:
            return None
        if retry_after is not None:
            return retry_after * (1 + random.uniform(0, self.spread))
        # The exponent is bounded: 2.0**1024 would overflow.
        return random.uniform(0, min(self.longest, self.first * 2.0 ** min(failures - 1, 64)))


class Breaker:
    """Stops calls to what keeps failing: they would cost a timeout each, in vain.

    Closed until so many calls in a row have failed; then open: calls are refused.
    After the pause one call is let through as a probe: if it succeeds the breaker
    closes, else the pause begins anew. Who is let through reports how it ended, by
    `succeeded`, `failed` or `released`. A probe that reports nothing, since its
    thread is gone, is given up after another pause.

    Threads share it. A forked child goes on from its parent's state, alone.

    Args:
        failures: In a row, after which it opens; 1 or more.
        pause: Seconds for which it then refuses.
    """

    __slots__ = ("_failures", "_opened", "_probe", "failures", "pause")

    def __init__(self, failures: int, pause: float) -> None:
        self.failures = failures
        self.pause = pause
        self._failures = 0  # in a row
        self._opened: float | None = None  # when, on the monotonic clock; None: closed
        self._probe: float | None = None  # when it was let through; None: none is under way

    @property
    def is_closed(self) -> bool:
        return self._opened is None

    def refused_for(self) -> float | None:
        """Return None if the caller may go, who then reports; else the seconds to stay away."""
        if self.is_closed:
            return None
        with _breakers_lock:
            if self._opened is None:  # closed while this thread waited for the lock
                return None
            now = time.monotonic()
            waits_from = self._opened if self._probe is None else self._probe
            left = waits_from + self.pause - now
            if left > 0:
                return left
            self._probe = now
            return None

    def succeeded(self) -> None:
        """Close: the call went well. A call from before it opened changes nothing."""
        if self._opened is None and not self._failures:
            return
        with _breakers_lock:
            if self._opened is None or self._probe is not None:
                self._close()

    def failed(self) -> None:
        """Count a failure; open if it was the last allowed one, or the probe's."""
        with _breakers_lock:
            if self._probe is not None:
                self._open()
            elif self._opened is None:
                self._failures += 1
                if self._failures >= self.failures:
                    self._open()

    def trip(self) -> None:
        """Open at once, for a pause from now: no number of attempts would help."""
        with _breakers_lock:
            self._open()

    def released(self) -> None:
        """Note that the call ended without a verdict; if it was the probe, another may go."""
        if self._probe is not None:
            with _breakers_lock:
                self._probe = None

    def _open(self) -> None:
        self._opened, self._probe = time.monotonic(), None

    def _close(self) -> None:
        self._opened, self._probe, self._failures = None, None, 0


# One for all: it is held for a microsecond, and a forked child needs to replace only one.
_breakers_lock = threading.Lock()


def _replace_lock() -> None:
    # Another thread of the parent may have held it at the moment of the fork.
    global _breakers_lock  # noqa: PLW0603  # that is what a fork asks for
    _breakers_lock = threading.Lock()


os.register_at_fork(after_in_child=_replace_lock)
