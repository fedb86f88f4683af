"""``manage.py services``: the state of the services behind the project."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from argparse import ArgumentTypeError
from typing import Any, TextIO

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
        from django_services.management.console import ending_quietly, plain

        with ending_quietly(self.stdout, lambda: None):
            statuses = _checked(options["wait"])
            if options["json"]:
                self.stdout.write(_json(statuses))
            else:
                _print(plain(self.stdout), statuses)
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


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a number of seconds, 0 or more.")
    return value
