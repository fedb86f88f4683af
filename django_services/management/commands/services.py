"""``manage.py services``: the state of the services behind the project."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from argparse import ArgumentTypeError
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from django_services.health import ServiceStatus, check_services

_PAUSE = 1.0  # seconds between two rounds of --wait


class Command(BaseCommand):
    help = "Show the state of the databases, Redis, OpenAI and the embeddings."
    # It must tell what is wrong, also where the checks would not let it start.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="check")
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

    def handle(self, *_: Any, **options: Any) -> None:
        statuses = _checked(options["wait"])
        lines = _json(statuses) if options["json"] else _table(statuses)
        self.stdout.write(lines)
        if not all(status.is_up for status in statuses):
            sys.exit(1)


def _checked(wait: float) -> list[ServiceStatus]:
    """Return the states as soon as none is an error, or the last after `wait` seconds."""
    deadline = time.monotonic() + wait
    while True:
        statuses = check_services()
        if all(status.is_up for status in statuses) or time.monotonic() + _PAUSE > deadline:
            return statuses
        time.sleep(_PAUSE)


def _json(statuses: list[ServiceStatus]) -> str:
    return json.dumps([dataclasses.asdict(status) for status in statuses], indent=2)


def _table(statuses: list[ServiceStatus]) -> str:
    rows = [
        (
            status.service,
            status.alias,
            status.state,
            "" if status.latency_ms is None else f"{status.latency_ms:.1f} ms",
            status.version,
        )
        for status in statuses
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row, status in zip(rows, statuses, strict=True):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([*cells, status.detail]).rstrip())
        if status.fix:
            lines.append(f"  -> {status.fix}")
    return "\n".join(lines)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a number of seconds, 0 or more.")
    return value
