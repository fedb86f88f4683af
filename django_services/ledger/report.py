"""Adding the ledger up: by day, model, tenant and what else its rows tell."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import Any

from django.db.models import Count, Q, QuerySet, Sum
from django.db.models.functions import TruncDate
from django.utils import timezone

from ..exceptions import InvalidInput
from .models import Usage

#: What rows can be added up by.
KEYS = ("day", "model", "tenant", "feature", "user", "endpoint", "alias")

_SUMS: dict[str, Any] = {
    "operations": Count("pk"),
    "failed": Count("pk", filter=~Q(outcome="ok")),
    "attempts": Sum("attempts"),
    "input_tokens": Sum("input_tokens"),
    "cached_tokens": Sum("cached_tokens"),
    "output_tokens": Sum("output_tokens"),
    "known_cost": Sum("cost"),
    "unknown_cost": Count("pk", filter=Q(cost=None)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What some operations used; tokens that nobody knows are left out."""

    operations: int = 0
    failed: int = 0
    attempts: int = 0  # HTTP requests
    input_tokens: int = 0
    cached_tokens: int = 0  # of the input
    output_tokens: int = 0
    cost: Decimal | None = Decimal()  # US dollars, of those that are known; None if none is
    unknown_cost: int = 0  # operations


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The operations of one day, model or whatever they are added up by."""

    keys: dict[str, str]
    totals: Totals


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The usage of a time, added up; days are those of UTC, as of budgets and bills."""

    since: datetime.date | None
    until: datetime.date | None  # the last day, itself included
    by: tuple[str, ...]
    lines: list[Line] = field(default_factory=list)
    total: Totals = field(default_factory=Totals)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON has it: costs are numbers of US dollars."""
        return {
            "since": self.since and self.since.isoformat(),
            "until": self.until and self.until.isoformat(),
            "by": list(self.by),
            "rows": [line.keys | _as_numbers(line.totals) for line in self.lines],
            "total": _as_numbers(self.total),
        }


def _as_numbers(totals: Totals) -> dict[str, float | None]:
    """Return totals as plain numbers; a cost that is not known is None."""
    cost = None if totals.cost is None else float(totals.cost)
    return asdict(totals) | {"cost": cost}


def usage(
    by: Sequence[str] = ("day",),
    *,
    since: datetime.date | None = None,
    until: datetime.date | None = None,
    rows: QuerySet[Usage] | None = None,
) -> Report:
    """Add the ledger up.

    Args:
        by: Some of `KEYS`; a line for each combination that occurs.
        since: The first day.
        until: The last day, itself included.
        rows: Only these; the whole ledger if left.

    Returns:
        Lines by day in order of time; else those that cost most first.

    Raises:
        InvalidInput: A key is not known, or stands there twice.
    """
    keys = _checked(by)
    found = _between(Usage.objects.all() if rows is None else rows, since, until)
    grouped = found.annotate(day=TruncDate("at", tzinfo=_utc())) if "day" in keys else found
    # Not `values(by)` alone: an ordering of the rows would part the groups.
    sums = grouped.order_by().values(*keys).annotate(**_SUMS) if keys else []
    lines = [_line(keys, each) for each in sums]
    lines.sort(key=lambda line: _order(keys, line))
    return Report(since=since, until=until, by=keys, lines=lines, total=totals(found))


def totals(rows: QuerySet[Usage]) -> Totals:
    """Return the sums of some rows."""
    return _totals(rows.order_by().aggregate(**_SUMS))


def _checked(by: Sequence[str]) -> tuple[str, ...]:
    for key in by:
        if key not in KEYS:
            raise InvalidInput(f"Usage has no {key!r} to be added up by: one of {', '.join(KEYS)}.")
    if len(set(by)) < len(by):
        raise InvalidInput("Usage is to be added up twice by the same: name each once.")
    return tuple(by)


def _utc() -> datetime.tzinfo | None:
    # Without USE_TZ the times have no zone to convert from.
    return datetime.UTC if timezone.is_aware(timezone.now()) else None


def _between(
    rows: QuerySet[Usage], since: datetime.date | None, until: datetime.date | None
) -> QuerySet[Usage]:
    if since is not None:
        rows = rows.filter(at__gte=_midnight(since))
    if until is not None:
        rows = rows.filter(at__lt=_midnight(until + datetime.timedelta(days=1)))
    return rows


def _midnight(day: datetime.date) -> datetime.datetime:
    return datetime.datetime.combine(day, datetime.time(), tzinfo=_utc())


def _line(keys: Sequence[str], sums: dict[str, Any]) -> Line:
    return Line(keys={key: str(sums.pop(key)) for key in keys}, totals=_totals(sums))


def _totals(sums: dict[str, Any]) -> Totals:
    cost, operations = sums.pop("known_cost"), sums["operations"]
    return Totals(
        cost=Decimal() if cost is None and not operations else cost,
        **{name: sums[name] or 0 for name in _SUMS if name != "known_cost"},
    )


def _order(keys: Sequence[str], line: Line) -> tuple[Any, ...]:
    day = line.keys.get("day", "")
    cost = -(line.totals.cost or Decimal())
    tokens = -(line.totals.input_tokens + line.totals.output_tokens)
    return day, cost, tokens, *(line.keys[key] for key in keys)
