"""``manage.py services``: the state of the services behind the project, and their cost."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import datetime
import json
import sys
import time
from argparse import ArgumentTypeError
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any, TextIO

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import OperationalError, ProgrammingError

from django_services.exceptions import ServiceError
from django_services.health import ServiceStatus, check_services
from django_services.ledger.report import KEYS, Line, Report, Totals, usage

_PAUSE = 1.0  # seconds between two rounds of --wait
_DAYS = 30  # that `usage` looks back
_BAR = 20  # characters of the longest bar


class Command(BaseCommand):
    help = (
        "Show the state of the databases, Redis, OpenAI and the embeddings; or what was used "
        "at OpenAI, and what it cost."
    )
    # It must tell what is wrong, also where the checks would not let it start.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="{check,usage}")
        self._add_check(verbs)
        self._add_usage(verbs)

    def _add_check(self, verbs: Any) -> None:
        check = verbs.add_parser(
            "check", help="Ask every service; exit code 1 if one has an error."
        )
        check.add_argument(
            "--wait",
            type=_seconds,
            default=0.0,
            metavar="SECONDS",
            help="Ask again until all are up, for as long as this.",
        )
        check.add_argument("--json", action="store_true", help="Print a JSON list.")

    def _add_usage(self, verbs: Any) -> None:
        text = "Add up what was used at OpenAI, and what it cost in US dollars."
        parser = verbs.add_parser("usage", help=text, description=f"{text} Days are UTC's.")
        parser.add_argument(
            "--by",
            type=_keys,
            default=("day",),
            metavar="KEY[,KEY…]",
            help=f"A line for each: {', '.join(KEYS)}. Default: day.",
        )
        parser.add_argument(
            "--since",
            type=_day,
            metavar="DAY",
            help=f"The first day: 2026-11-01, or 7d for a week ago. Default: {_DAYS}d.",
        )
        parser.add_argument(
            "--until", type=_day, metavar="DAY", help="The last day, itself included."
        )
        shape = parser.add_mutually_exclusive_group()
        shape.add_argument("--json", action="store_true", help="Print one JSON object.")
        shape.add_argument("--csv", action="store_true", help="Print comma-separated values.")
        shape.add_argument(
            "--prune",
            type=_days,
            metavar="DAYS",
            help="Show nothing; remove the rows that are older than this.",
        )

    def handle(self, *_: Any, verb: str, **options: Any) -> None:
        from django_services.management.console import ending_quietly

        with ending_quietly(self.stdout, lambda: None):
            getattr(self, f"_{verb}")(**options)

    def _check(self, wait: float, json: bool, **_: Any) -> None:
        from django_services.management.console import plain

        statuses = _checked(wait)
        if json:
            self.stdout.write(_json([dataclasses.asdict(status) for status in statuses]))
        else:
            _print(plain(self.stdout), statuses)
        if not all(status.is_up for status in statuses):
            self.stdout.flush()
            sys.exit(1)

    def _usage(self, by: Sequence[str], prune: int | None, **options: Any) -> None:
        from django_services.management.console import plain

        if prune is not None:
            self._prune(prune)
            return
        since, until = options["since"], options["until"]
        with _sentences():
            report = usage(by, since=since or _days_ago(_DAYS, until), until=until)
        if options["json"]:
            self.stdout.write(_json(report.as_dict()))
        elif options["csv"]:
            _print_csv(plain(self.stdout), report)
        else:
            _print_usage(plain(self.stdout), report)

    def _prune(self, days: int) -> None:
        from django_services import ledger

        with _sentences():
            removed = ledger.prune(datetime.datetime.now(datetime.UTC) - _period(days))
        self.stdout.write(f"{removed:,} row{'s' * (removed != 1)} removed from the ledger.")


@contextlib.contextmanager
def _sentences() -> Iterator[None]:
    """Turn what a person can mend into one sentence."""
    try:
        yield
    except ServiceError as error:
        raise CommandError(str(error)) from None
    except (OperationalError, ProgrammingError) as error:
        raise CommandError(
            f"The ledger cannot be read ({type(error).__name__}): run manage.py migrate, "
            "or see manage.py services check."
        ) from None


def _checked(wait: float) -> list[ServiceStatus]:
    """Return the states as soon as none is an error, or the last after `wait` seconds."""
    deadline = time.monotonic() + wait
    while True:
        statuses = check_services()
        if all(status.is_up for status in statuses) or time.monotonic() + _PAUSE > deadline:
            return statuses
        time.sleep(_PAUSE)


def _json(value: object) -> str:
    return json.dumps(value, indent=2)


def _print(stream: TextIO, statuses: list[ServiceStatus]) -> None:
    """Print one line for each service, and below what is wrong and what to do."""
    from django_services.management.console import indented, print_table, width

    columns = dict.fromkeys(("service", "alias", "state"), "left") | {"ms": "right"}
    print_table(
        stream,
        columns | {"version": "left"},
        [
            (each.service, each.alias, each.state, _shown(each.latency_ms), each.version)
            for each in statuses
        ],
    )
    for each in statuses:
        text = " ".join(filter(None, [each.detail, each.fix]))
        if text:
            stream.write(f"\n{each.service} {each.alias}:\n")
            stream.write(indented(text, 2, width=width(stream), lines=10) + "\n")


def _shown(latency: float | None) -> str:
    return "" if latency is None else f"{latency:.1f}"


# Usage -------------------------------------------------------------------------------


def _print_usage(stream: TextIO, report: Report) -> None:
    from django_services.management.console import is_terminal, print_table

    if not report.lines:
        stream.write(f"No operations {_time_of(report)}.\n")
        return
    with_bars = report.by == ("day",) and is_terminal(stream)
    columns = dict.fromkeys(report.by, "left") | dict.fromkeys(
        ("operations", "failed", "input", "cached", "output", "cost"), "right"
    )
    rows = [[*map(_named, line.keys.values()), *_cells(line.totals)] for line in report.lines]
    total = ["total", *[""] * (len(report.by) - 1), *_cells(report.total)]
    if with_bars:
        columns[" "] = "left"
        rows = [[*row, bar] for row, bar in zip(rows, _bars(report.lines), strict=True)]
    print_table(stream, columns, [*rows, total])
    stream.write(f"\n{_sentence(report)}\n")


def _cells(totals: Totals) -> list[object]:
    return [
        totals.operations,
        totals.failed,
        totals.input_tokens,
        totals.cached_tokens,
        totals.output_tokens,
        _dollars(totals),
    ]


def _named(key: str) -> str:
    return key or "(none)"


def _dollars(totals: Totals) -> str:
    if totals.cost is None:
        return "unknown"
    # Four places, or a small cost would be none; the ledger itself has twelve.
    shown = "<$0.0001" if Decimal() < totals.cost < Decimal("0.0001") else f"${totals.cost:,.4f}"
    return f"{shown} + {totals.unknown_cost:,} unknown" if totals.unknown_cost else shown


def _bars(lines: Sequence[Line]) -> list[str]:
    """Return a bar for each line, by its cost; by its tokens where no cost is known."""
    sizes = [float(line.totals.cost or 0) for line in lines]
    if not any(sizes):
        sizes = [float(line.totals.input_tokens + line.totals.output_tokens) for line in lines]
    longest = max(sizes) or 1.0
    return ["▇" * round(_BAR * size / longest) or ("▏" if size else "") for size in sizes]


def _sentence(report: Report) -> str:
    text = f"{report.total.operations:,} operations {_time_of(report)}, days by UTC."
    if report.total.unknown_cost:
        text += (
            f" Of {report.total.unknown_cost:,} the cost is unknown: give prices in "
            'DJANGO_SERVICES["OPENAI"][alias]["PRICES"].'
        )
    return text


def _time_of(report: Report) -> str:
    return f"from {report.since} to {report.until or 'now'}"


def _print_csv(stream: TextIO, report: Report) -> None:
    rows = [line.keys | dataclasses.asdict(line.totals) for line in report.lines]
    names = [*report.by, *(each.name for each in dataclasses.fields(Totals))]
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    # A small number in full, where Python would write an exponent.
    writer.writerows(row | {"cost": _plain(row["cost"])} for row in rows)


def _plain(cost: Decimal | None) -> str:
    return "" if cost is None else f"{cost.normalize():f}"


# Arguments ---------------------------------------------------------------------------


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a number of seconds, 0 or more.")
    return value


def _keys(text: str) -> tuple[str, ...]:
    keys = tuple(key.strip() for key in text.split(","))
    for key in keys:
        if key not in KEYS:
            raise ArgumentTypeError(f"{key!r} is none of {', '.join(KEYS)}.")
    return tuple(dict.fromkeys(keys))


def _day(text: str) -> datetime.date:
    number = text.removesuffix("d")
    try:
        if number != text and number.isdecimal():
            return _days_ago(int(number))
        return datetime.date.fromisoformat(text)
    except (ValueError, OverflowError):
        raise ArgumentTypeError(
            f"{text!r} is no day: write 2026-11-01, or 7d for a week ago."
        ) from None


def _days_ago(days: int, until: datetime.date | None = None) -> datetime.date:
    return (until or datetime.datetime.now(datetime.UTC).date()) - _period(days)


def _days(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 36_500:
        raise ArgumentTypeError(f"{text!r} is not a number of days, 1 or more.")
    return int(text)


def _period(days: int) -> datetime.timedelta:
    return datetime.timedelta(days=days)
