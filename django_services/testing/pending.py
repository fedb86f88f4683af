"""Embeddings of a test's rows: brought in step when the test says so."""

from __future__ import annotations

from ..embeddings.sync import Report, databases, sync


def embed_pending(using: str | None = None) -> Report:
    """Bring every pending source in step, now and in this thread.

    Works inside a TestCase's transaction, where nothing is embedded after commit.

    Args:
        using: The database; every one that holds embeddings if None.
    """
    total = Report()
    for alias in databases() if using is None else [using]:
        total.add(sync(alias=alias))
    return total
