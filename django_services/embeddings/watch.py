"""Keeping the stored embeddings in step for as long as the process runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from django.db import DatabaseError, close_old_connections

from ..exceptions import ServiceError
from .sync import Report

POLL_INTERVAL = 1.0  # seconds between two looks for changes
ERROR_INTERVAL = 30.0  # seconds to wait for a service that cannot be used


def watch(
    sync: Callable[[], Report], *, sleep: Callable[[float], object] = time.sleep
) -> Iterator[Report | ServiceError | DatabaseError]:
    """Sync for ever; yields what each sync did, or the error that makes it wait.

    A service that cannot be used ends nothing: the sources stay pending, and it
    is asked again after the time that it named, or half a minute.

    Args:
        sync: Brings the pending sources in step.
        sleep: Waits for some seconds.
    """
    while True:
        close_old_connections()
        try:
            report = sync()
        except (ServiceError, DatabaseError) as error:
            yield error
            sleep(getattr(error, "retry_after", None) or ERROR_INTERVAL)
        else:
            yield report
            sleep(POLL_INTERVAL)
