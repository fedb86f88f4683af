from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.core import mail
from django.db import connections

from django_services import ledger
from django_services.ledger import recording, writer
from django_services.ledger.writer import Writer


@pytest.fixture
def in_thread(monkeypatch) -> Iterator[Writer]:
    """Let rows be written as in production: by a thread, with its own connection."""

    def write(rows) -> None:
        try:
            writer._write(rows)
        finally:
            connections.close_all()  # of the thread: the next test may have another database

    own = Writer(write)
    own._handles_term = True  # the tests' process keeps its own way to end
    monkeypatch.setattr(recording, "writer", own)
    monkeypatch.setattr(writer, "writer", own)
    # What says that these are tests.
    monkeypatch.delattr(mail, "outbox")
    yield own
    assert ledger.flush(10)
