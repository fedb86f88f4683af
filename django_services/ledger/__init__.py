"""What was used at OpenAI, and what it cost: one row for each operation.

`recording` hears of the operations, `writer` takes their rows off the caller's path,
`storing` writes them and removes old ones, `report` adds them up.
"""

from __future__ import annotations

import datetime
import functools
from typing import Any

from ..signals import openai_call_finished


def connect() -> None:
    """Record every operation from now on; called once, when the apps are ready."""
    openai_call_finished.connect(_receiver, dispatch_uid=__name__)


class _Receiver:
    """Hears of the operations. What it needs is loaded with the first one."""

    def __call__(self, **payload: Any) -> None:
        _recording().record(payload)

    def is_quick(self) -> bool:
        """Tell whether a row is only put into a queue, which is no wait."""
        return not _recording().is_written_at_once()


_receiver = _Receiver()


# Not loaded by every process that has the app; and an import statement takes its time
# with every call.
@functools.cache
def _recording() -> Any:
    from . import recording

    return recording


def flush(timeout: float = 5.0) -> bool:
    """Write what this process has recorded; return whether all of it is stored.

    Args:
        timeout: Seconds to wait for the database.
    """
    from .writer import writer

    return writer.flush(timeout)


def prune(before: datetime.datetime) -> int:
    """Remove the rows of operations that ended before a moment; return how many."""
    from .storing import prune as remove

    return remove(before)
