"""Deadlines and backoff: pure decisions about time, without I/O or sleep.

Whoever retries asks here how long to wait and whether there is time left, and
does the waiting itself.
"""

from __future__ import annotations

import random
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
