"""How the transport waits: between attempts, and for its turn under a limit.

One place, so that `testing` can let hours pass in no time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

#: Set by `testing`: takes the seconds that would have been waited.
instead: Callable[[float], object] | None = None


def sleep(seconds: float) -> None:
    """Wait in this thread."""
    if instead is None:
        time.sleep(seconds)
    else:
        instead(seconds)


async def asleep(seconds: float) -> None:
    """Wait in this task."""
    if instead is None:
        await asyncio.sleep(seconds)
    else:
        instead(seconds)
