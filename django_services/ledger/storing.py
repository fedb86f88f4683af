"""Writing the ledger's rows to the database, and removing old ones."""

from __future__ import annotations

import datetime
import itertools
import logging
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from django.db import DataError, models, transaction
from django.utils import timezone

from .models import Usage, database

logger = logging.getLogger(__name__)

#: Rows removed by one statement: other writers of the table wait no longer than that.
PRUNED_AT_ONCE = 10_000


class Row(NamedTuple):
    """An operation as it was told, on its way to the database."""

    at: float  # its end, seconds since the epoch
    payload: Mapping[str, Any]
    noise: bytes  # ten random ones, that tell it from every other

    @property
    def id(self) -> uuid.UUID:
        """A UUID of version 7: in the order of time, which an index likes."""
        number = int(self.at * 1000) << 80 | int.from_bytes(self.noise, "big")
        number = number & ~(0xF << 76) | 0x7 << 76
        return uuid.UUID(int=number & ~(0b11 << 62) | 0b10 << 62)


def row_of(payload: Mapping[str, Any]) -> Row:
    """Return the row of an operation that ended now."""
    return Row(time.time(), payload, os.urandom(10))


def store(rows: Sequence[Row], batch_size: int) -> None:
    """Write rows; those that are there already stay as they are.

    A row that the database cannot hold is left out, with a warning.

    Args:
        rows: Any number.
        batch_size: Rows written by one statement.
    """
    alias = database()
    for batch in _batches([usage_of(row) for row in rows], batch_size):
        try:
            _insert(batch, alias)
        except (DataError, ValueError, OverflowError):
            _insert_each(batch, alias)


def _batches(usages: Sequence[Usage], size: int) -> Iterator[list[Usage]]:
    waiting = iter(usages)
    while batch := list(itertools.islice(waiting, size)):
        yield batch


def _insert(usages: Sequence[Usage], alias: str) -> None:
    # A savepoint where the caller has a transaction: what fails here must not break it.
    with transaction.atomic(using=alias):
        Usage.objects.using(alias).bulk_create(usages, ignore_conflicts=True)


def _insert_each(usages: Sequence[Usage], alias: str) -> None:
    for usage in usages:
        try:
            _insert([usage], alias)
        except (DataError, ValueError, OverflowError) as error:
            logger.warning(
                "The ledger's database does not take the row of a call to %s: %s",
                usage.endpoint,
                type(error).__name__,
            )


def usage_of(row: Row) -> Usage:
    """Return the row as the table has it."""
    told = row.payload
    return Usage(
        id=row.id,
        at=_moment(row.at),
        is_estimated=bool(told["is_estimated"]),
        cost=_cost(told),
        attempts=told["attempts"],
        status=told["status"],
        ms=told["elapsed_ms"],
        **{name: told[name] for name in ("input_tokens", "cached_tokens", "output_tokens")},
        **{name: _text(told[name], length) for name, length in _TEXTS.items()},
    )


def _texts() -> dict[str, int]:
    return {
        field.name: field.max_length or 0
        for field in Usage._meta.concrete_fields
        if isinstance(field, models.CharField)
    }


#: The fields that hold texts, and their lengths.
_TEXTS = _texts()


def _moment(at: float) -> datetime.datetime:
    moment = datetime.datetime.fromtimestamp(at, tz=datetime.UTC)
    # Without USE_TZ Django's times are naive.
    if timezone.is_aware(timezone.now()):
        return moment
    return timezone.make_naive(moment, timezone.get_default_timezone())


def _cost(told: Mapping[str, Any]) -> Decimal | None:
    # What was refused in this process, or found in the cache, cost nothing.
    return Decimal() if not told["attempts"] else told["cost"]


def _text(value: Any, length: int) -> str:
    """Return a text as every database takes it: PostgreSQL neither NUL nor half a character."""
    text = "" if value is None else str(value)
    return text.replace("\x00", "").encode(errors="replace").decode()[:length]


def prune(before: datetime.datetime) -> int:
    """Remove the rows of operations that ended before a moment; return how many."""
    alias, removed = database(), 0
    old = Usage.objects.using(alias).filter(at__lt=before)
    some = Usage.objects.using(alias).filter(pk__in=old.values("pk")[:PRUNED_AT_ONCE])
    while count := some.all().delete()[0]:
        removed += count
    return removed
