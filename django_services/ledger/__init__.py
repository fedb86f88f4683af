"""What was used at OpenAI, and what it cost: one row for each operation.

`recording` hears of the operations, `writer` takes their rows off the caller's path,
`storing` writes them and removes old ones, `report` adds them up.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable, Mapping
from typing import Any

from ..signals import openai_call_finished


def connect() -> None:
    """Record every operation from now on; called once, when the apps are ready."""
    openai_call_finished.connect(_record, dispatch_uid=__name__)


def _record(**payload: Any) -> None:
    _recorder()(payload)


# Not loaded by every process that has the app; and an import statement takes its time
# with every call.
@functools.cache
def _recorder() -> Callable[[Mapping[str, Any]], None]:
    from .recording import record

    return record


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
