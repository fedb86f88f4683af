"""How the transport waits: between attempts, and for its turn under a limit.

One place, so that `testing` can let hours pass in no time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

#: Set by `testing`: is told the seconds that pass without being waited for.
instead: Callable[[float], object] | None = None

_skipped = 0.0  # seconds


def sleep(seconds: float) -> None:
    """Wait in this thread."""
    if instead is None:
        time.sleep(seconds)
    else:
        _skip(seconds, instead)


async def asleep(seconds: float) -> None:
    """Wait in this task."""
    if instead is None:
        await asyncio.sleep(seconds)
    else:
        _skip(seconds, instead)


def now() -> float:
    """Return the seconds of this process's clock, by which waits end."""
    return time.monotonic() + _skipped


def _skip(seconds: float, tell: Callable[[float], object]) -> None:
    global _skipped  # noqa: PLW0603
    _skipped += seconds
    tell(seconds)
