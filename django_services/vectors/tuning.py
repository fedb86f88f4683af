"""How hard pgvector's indexes look, for the statements of one block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from ..exceptions import InvalidInput

SCANS = ("off", "relaxed_order", "strict_order")


@contextlib.contextmanager
def tuned(
    using: str = DEFAULT_DB_ALIAS,
    *,
    ef_search: int | None = None,
    iterative_scan: str | None = "relaxed_order",
    max_scan_tuples: int | None = None,
) -> Iterator[None]:
    """Tune the HNSW searches that are evaluated inside; nothing on SQLite.

    A queryset is evaluated where its rows are read, not where it is made::

        with tuned(ef_search=100):
            hits = list(nearest(Photo.objects.filter(album=album), "vector", vector)[:10])

    Opens a transaction, in which the settings hold, and takes them back at its end.
    For all searches of a database, set them in DATABASES instead:
    ``"OPTIONS": {"options": "-c hnsw.iterative_scan=relaxed_order"}``.

    Args:
        using: The database.
        ef_search: Candidates looked at, 1 to 1,000; pgvector's default is 40. More
            find more, and take longer.
        iterative_scan: ``relaxed_order`` or ``strict_order`` look on until enough rows
            pass the filters; ``off`` returns fewer.
        max_scan_tuples: Rows after which to give up looking on; default 20,000.

    Raises:
        InvalidInput: A value that pgvector does not take.
    """
    settings = _settings(ef_search, iterative_scan, max_scan_tuples)
    connection = connections[using]
    if connection.vendor != "postgresql":
        yield
        return
    with transaction.atomic(using=using):
        before = _set(connection, settings)
        yield
        # An error rolls back, and the settings with it; else they would last until
        # the end of a transaction around this one.
        _set(connection, before)


def _settings(
    ef_search: int | None, iterative_scan: str | None, max_scan_tuples: int | None
) -> dict[str, str]:
    for name, value, most in (
        ("ef_search", ef_search, 1_000),
        ("max_scan_tuples", max_scan_tuples, 2**31 - 1),
    ):
        if value is not None and (type(value) is not int or not 1 <= value <= most):
            raise InvalidInput(f"{name}={value!r}: give a number from 1 to {most:,}.")
    if iterative_scan is not None and iterative_scan not in SCANS:
        raise InvalidInput(f"iterative_scan={iterative_scan!r}: give one of {', '.join(SCANS)}.")
    given = {
        "hnsw.ef_search": ef_search,
        "hnsw.iterative_scan": iterative_scan,
        "hnsw.max_scan_tuples": max_scan_tuples,
    }
    return {name: str(value) for name, value in given.items() if value is not None}


def _set(connection: BaseDatabaseWrapper, settings: dict[str, str]) -> dict[str, str]:
    """Set for the transaction; returns what was set before."""
    before = {}
    with connection.cursor() as cursor:
        # The settings are known once pgvector's library is loaded.
        cursor.execute("SELECT NULL::vector <-> NULL::vector")
        for name, value in settings.items():
            cursor.execute(
                "WITH before AS MATERIALIZED (SELECT current_setting(%s) AS value)"
                " SELECT value, set_config(%s, %s, true) FROM before",
                [name, name, value],
            )
            before[name] = cursor.fetchone()[0]
    return before
