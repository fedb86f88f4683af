"""Keeping the stored embeddings in step for as long as the process runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from django.db import DatabaseError, close_old_connections

from ..exceptions import ServiceError
from .sync import Report
from .threads import Stop

POLL_INTERVAL = 1.0  # seconds between two looks for changes
ERROR_INTERVAL = 30.0  # seconds; the longest wait for a service that cannot be used


def watch(
    sync: Callable[[], Report],
    *,
    wait: Callable[[float], object] | None = None,
    sleep: Callable[[float], object] = time.sleep,
    stop: Stop | None = None,
) -> Iterator[Report | ServiceError | DatabaseError]:
    """Sync until told to stop; yields what each sync did, or the error that makes it wait.

    A service that cannot be used ends nothing: the sources stay pending, and they
    are looked at again after the time that it named, half a minute at most. What it
    asked for beyond that the transport knows, and sends nothing before.

    Args:
        sync: Brings the pending sources in step.
        wait: Waits for changes, so many seconds at most; ``sleep`` if None.
        sleep: Waits for some seconds.
        stop: Once set, the watch ends.
    """
    wait = wait or sleep
    stop = stop or Stop()
    while not stop.is_set:
        close_old_connections()
        try:
            report = sync()
        except (ServiceError, DatabaseError) as error:
            yield error
            asked = getattr(error, "retry_after", None) or ERROR_INTERVAL
            sleep(min(asked, ERROR_INTERVAL))
        else:
            yield report
            wait(POLL_INTERVAL)
