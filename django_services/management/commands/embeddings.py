"""``manage.py embeddings``: sync, add, search, status, reconcile and uninstall."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from decimal import Decimal
from functools import partial
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, connections

from ...exceptions import ServiceError

if TYPE_CHECKING:
    from ...embeddings.batch import Backfill, Progress
    from ...embeddings.batch_estimate import Estimate
    from ...embeddings.declaration import Embeddings
    from ...embeddings.files import Added
    from ...embeddings.hits import Hit
    from ...embeddings.status import IndexStatus
    from ...embeddings.sync import Report
    from ...embeddings.threads import Stop
    from ..console import Work

#: Options of every Django command, which may stand behind the verb too.
_BASE_OPTIONS = (
    ("-v", "--verbosity"),
    ("--settings",),
    ("--pythonpath",),
    ("--traceback",),
    ("--no-color",),
    ("--force-color",),
    ("--skip-checks",),
)
_STOPPING = "Stopping: what is in flight gets {:.0f} seconds. Again to stop at once.\n"
_FLAGS = {"--traceback", "--no-color", "--force-color", "--skip-checks"}


class Command(BaseCommand):
    """Stored embeddings: bring them in step, search them, see how they are."""

    help = "Brings stored embeddings in step with the data, searches and inspects them."

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
        self._add_sync(verbs)
        self._add_add(verbs)
        self._add_search(verbs)
        self._add_status(verbs)
        self._add_reconcile(verbs)
        self._add_uninstall(verbs)

    def _add_sync(self, verbs: Any) -> None:
        parser = _verb(verbs, "sync", "Embed what is new or changed, and what failed before.")
        _labels(parser)
        _database(parser)
        parser.add_argument(
            "--batch-size", type=_positive, metavar="N", help="Rows that are taken at once."
        )
        parser.add_argument(
            "--retry-failed", action="store_true", help="Try again what was set aside."
        )
        parser.add_argument("--watch", action="store_true", help="Keep going until Ctrl-C.")
        parser.add_argument(
            "--batch",
            action="store_true",
            help="Through OpenAI's Batch API: half the price, within a day.",
        )
        parser.add_argument(
            "--no-wait",
            action="store_true",
            help="With --batch: do what can be done now; run it again to go on.",
        )
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="Count what would be embedded, and what it costs; change nothing.",
        )
        _json(parser)

    def _add_add(self, verbs: Any) -> None:
        parser = _verb(verbs, "add", "Store files as documents and embed them.")
        parser.add_argument(
            "paths", nargs="+", metavar="PATH", help="Files and folders; - is standard input."
        )
        parser.add_argument(
            "--name", default="standard input", help="Name of what comes from standard input."
        )
        parser.add_argument(
            "--include", action="append", default=[], metavar="GLOB", help='Such as "*.md".'
        )
        parser.add_argument(
            "--exclude", action="append", default=[], metavar="GLOB", help='Such as "drafts".'
        )
        parser.add_argument("--no-sync", action="store_true", help="Store only; embed later.")
        _database(parser, default="default")
        _json(parser)

    def _add_search(self, verbs: Any) -> None:
        parser = _verb(verbs, "search", "Find rows by meaning.")
        parser.add_argument("query", help='In your own words: "how do I compress a file?"')
        parser.add_argument("--index", metavar="LABEL", help="Where to look; everywhere if left.")
        parser.add_argument("--limit", type=_positive, default=10, metavar="N", help="Hits.")
        _database(parser, default="default")
        _json(parser)

    def _add_status(self, verbs: Any) -> None:
        parser = _verb(verbs, "status", "Say how far the embeddings are in step.")
        _labels(parser)
        _database(parser)
        _json(parser)

    def _add_reconcile(self, verbs: Any) -> None:
        parser = _verb(verbs, "reconcile", "Compare every row with its stored embeddings.")
        _labels(parser)
        _database(parser)
        _json(parser)

    def _add_uninstall(self, verbs: Any) -> None:
        parser = _verb(verbs, "uninstall", "Remove the triggers; rows are no longer followed.")
        parser.add_argument(
            "--noinput", "--no-input", action="store_true", help="Ask for no confirmation."
        )
        _database(parser)
        _json(parser)

    def handle(self, *_args: Any, verb: str, **options: Any) -> None:
        from ..console import ending_quietly

        with ending_quietly(self.stdout, self._say_stopped), _sentences():
            getattr(self, f"_{verb}")(**options)

    def _say_stopped(self) -> None:
        self.stderr.write("Stopped. What is pending stays pending.")

    # -- sync --------------------------------------------------------------

    def _sync(self, labels: Sequence[str], watch: bool, json: bool, **options: Any) -> None:
        _refuse_together(watch=watch, **options)
        indexes = _indexes(labels)
        if options["dry_run"]:
            self._estimate(indexes, options["database"], json)
            return
        if options["retry_failed"]:
            _retry_failed(indexes, options["database"])
        with self._stopping() as stop:
            if options["batch"]:
                self._sync_by_batch(indexes, options, json, stop)
                return
            sync = partial(
                self._sync_databases,
                indexes,
                options["database"],
                batch_size=options["batch_size"],
                stop=stop,
            )
            if watch:
                self._watch(partial(sync, silent=True), options["database"], json, stop)
                return
            report = sync(silent=json)
        self._print_report(report, json)
        self._end_sync(report, stop)

    def _end_sync(self, report: Report, stop: Stop) -> None:
        if stop.is_set:
            raise KeyboardInterrupt
        if report.failed:
            raise CommandError(
                f"{report.failed:,} rows could not be embedded. See why: manage.py embeddings "
                "status; try again: manage.py embeddings sync --retry-failed"
            )

    def _sync_databases(
        self,
        indexes: Sequence[Embeddings] | None,
        database: str | None,
        *,
        batch_size: int | None = None,
        silent: bool,
        stop: Stop | None = None,
        mend: bool = True,
    ) -> Report:
        from ...embeddings.sync import Report, sync
        from ..console import plain

        total = Report()
        # With --json the output is the script's, and progress goes where a person looks.
        progress = _SyncProgress(plain(self.stderr if silent else self.stdout), silent=silent)
        options: dict[str, Any] = {"batch_size": batch_size, "stop": stop, "mend": mend}
        with contextlib.closing(progress):
            for alias, chosen in _by_database(indexes, database):
                progress.alias = alias
                total.add(
                    sync(
                        chosen,
                        alias=alias,
                        progress=progress,
                        building=progress.show_building,
                        **options,
                    )
                )
        return total

    def _sync_by_batch(
        self,
        indexes: Sequence[Embeddings] | None,
        options: dict[str, Any],
        as_json: bool,
        stop: Stop,
    ) -> None:
        from ...embeddings import batch
        from ...embeddings.sync import Report

        backfills = [
            backfill
            for alias, chosen in _by_database(indexes, options["database"])
            for backfill in batch.backfills(chosen, alias)
        ]
        is_complete = self._run_batches(backfills, not options["no_wait"], as_json, stop)
        how_far = batch.how_far(backfills)
        report = Report()
        if is_complete:
            report = self._sync_databases(
                indexes,
                options["database"],
                batch_size=options["batch_size"],
                silent=as_json,
                stop=stop,
                mend=False,
            )
            if not stop.is_set:
                batch.clean(backfills)
        self._print_batches(how_far, is_complete, report, as_json)
        self._end_sync(report, stop)

    def _run_batches(
        self, backfills: Sequence[Backfill], waits: bool, as_json: bool, stop: Stop
    ) -> bool:
        from ...embeddings import batch
        from ..console import Work, plain

        stream = plain(self.stderr if as_json else self.stdout)
        with Work(stream, "Batches at OpenAI", "texts", silent=as_json) as work:
            return batch.run(
                backfills,
                waits=waits,
                stop=stop,
                progress=lambda far: work.show(far.completed, far.texts),
                trouble=lambda error: self.stderr.write(
                    self.style.WARNING(f"{error} Trying again.")
                ),
            )

    def _print_batches(
        self, how_far: Progress, is_complete: bool, report: Report, as_json: bool
    ) -> None:
        if as_json:
            batches = asdict(how_far) | {"is_complete": is_complete}
            self._print_json(asdict(report) | {"batch": batches})
            return
        if how_far.texts:
            self.stdout.write(
                f"Batches: {how_far.completed:,} of {how_far.texts:,} texts embedded, "
                f"{how_far.batches:,} batches under way."
            )
        if is_complete:
            self._print_report(report, as_json)
        else:
            self.stdout.write("OpenAI goes on by itself. Go on: manage.py embeddings sync --batch")

    def _estimate(
        self, indexes: Sequence[Embeddings] | None, database: str | None, as_json: bool
    ) -> None:
        from ...embeddings.batch_estimate import estimate

        found = [
            each
            for alias, chosen in _by_database(indexes, database)
            for index in chosen
            for each in estimate(index, alias)
        ]
        if as_json:
            self._print_json([asdict(each) for each in found])
        elif any(each.texts or each.chunks for each in found):
            self._print_estimates(found)
        else:
            self.stdout.write(self.style.SUCCESS("Nothing to embed: everything is in step."))

    def _print_estimates(self, found: Sequence[Estimate]) -> None:
        from ..console import plain, print_table

        columns = {"embeddings": "left", "model": "left"} | dict.fromkeys(
            ("rows", "chunks", "texts", "tokens", "cost", "by batch"), "right"
        )
        several = len({each.database for each in found}) > 1
        print_table(
            plain(self.stdout),
            columns | ({"database": "left"} if several else {}),
            [
                [each.label, f"{each.model}, {each.dimensions}"]
                + [each.sources, each.chunks, each.texts, _tokens(each)]
                + [_dollars(each.cost), _dollars(each.batch_cost)]
                + ([each.database] if several else [])
                for each in found
            ],
        )
        self.stdout.write("\nNothing was changed. Embed them: manage.py embeddings sync [--batch]")

    def _watch(
        self, sync: Callable[..., Report], database: str | None, json: bool, stop: Stop
    ) -> None:
        from ...embeddings.notifications import Notifications
        from ...embeddings.sync import Report, databases
        from ...embeddings.watch import watch

        if not json:
            self.stdout.write("Watching for changes; Ctrl-C ends.")
            self.stdout.flush()
        notifications = Notifications([database] if database else databases())
        wait = partial(notifications.wait, stop=stop)
        mends = chain([True], repeat(False))
        with contextlib.closing(notifications):
            for done in watch(
                lambda: sync(mend=next(mends)), wait=wait, sleep=stop.sleep, stop=stop
            ):
                if not isinstance(done, Report):
                    self.stderr.write(self.style.WARNING(f"{done} Trying again."))
                elif done.sources:
                    self._print_report(done, json, one_line=True)
                self.stdout.flush()
        # For a watch to be stopped is to end well.
        self._say_stopped()

    @contextlib.contextmanager
    def _stopping(self) -> Iterator[Stop]:
        """Let the first Ctrl-C or SIGTERM finish what is in flight, and a second end it.

        What is claimed is stored or given back before the command ends.
        """
        from ...embeddings.threads import GRACE, Stop

        stop = Stop()

        def handle(*_: object) -> None:
            if stop.is_set:
                raise KeyboardInterrupt
            stop.set()
            # Past Python's streams, which the handler may have interrupted in a write.
            with contextlib.suppress(OSError):
                os.write(2, _STOPPING.format(GRACE).encode())

        if threading.current_thread() is not threading.main_thread():
            yield stop
            return
        before = {name: signal.signal(name, handle) for name in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield stop
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    def _print_report(self, report: Report, as_json: bool, *, one_line: bool = False) -> None:
        if as_json:
            self.stdout.write(json.dumps(asdict(report), indent=None if one_line else 2))
        elif not report.sources:
            self.stdout.write(self.style.SUCCESS("Nothing to embed: everything is in step."))
        else:
            self.stdout.write(
                f"{report.sources:,} rows brought in step: {report.embedded:,} texts embedded, "
                f"{report.stored:,} chunks stored, {report.removed:,} removed."
            )
        for label in [] if as_json else report.activated:
            self.stdout.write(f"{label}: the new space is complete and answers searches now.")

    # -- add ---------------------------------------------------------------

    def _add(self, paths: Sequence[str], json: bool, database: str, **options: Any) -> None:
        from ...embeddings.documents import Document
        from ...embeddings.files import add

        added = add(
            paths,
            alias=database,
            include=options["include"],
            exclude=options["exclude"],
            standard_input=getattr(sys.stdin, "buffer", None),
            name=options["name"],
            progress=None if json else self._print_added,
        )
        report = None
        if not options["no_sync"]:
            report = self._sync_databases(_indexes([Document._meta.label]), database, silent=json)
        self._print_additions(added, report, json)

    def _print_added(self, added: Added) -> None:
        reason = f" ({added.reason})" if added.reason else ""
        line = f"{added.outcome.value:>9}  {added.name}{reason}"
        self.stdout.write(self.style.WARNING(line) if added.reason else line)

    def _print_additions(
        self, added: Sequence[Added], report: Report | None, as_json: bool
    ) -> None:
        if as_json:
            files = [asdict(each) for each in added]
            result = {"files": files, "sync": report and asdict(report)}
            self.stdout.write(json.dumps(result, indent=2, ensure_ascii=False))
            return
        counts: dict[str, int] = {}
        for each in added:
            counts[each.outcome.value] = counts.get(each.outcome.value, 0) + 1
        listed = ", ".join(f"{count:,} {outcome}" for outcome, count in counts.items())
        self.stdout.write(f"{listed or 'No file was found'}.")
        if report is None:
            self.stdout.write("To embed them: manage.py embeddings sync")

    # -- search ------------------------------------------------------------

    def _search(
        self, query: str, index: str | None, limit: int, database: str, json: bool, **_: Any
    ) -> None:
        from ...embeddings.hits import search

        indexes = None if index is None else _indexes([index])
        hits = search(query, alias=database, indexes=indexes, limit=limit)
        if json:
            self._print_json([_as_json(hit) for hit in hits])
        elif hits:
            self._print_hits(hits)
        else:
            self.stdout.write("Nothing was found.")

    def _print_hits(self, hits: Sequence[Hit]) -> None:
        from ..console import indented, width

        several = len({hit.label for hit in hits}) > 1
        for hit in hits:
            name = str(hit.source)
            where = f"  {hit.label}" if several else ""
            score = self.style.SUCCESS(f"{hit.score:5.2f}")
            self.stdout.write(f"{score}  {self.style.MIGRATE_HEADING(name)}{where}")
            # The passage may open with the name, which stands above it.
            passage = hit.passage.removeprefix(name).strip()
            if passage:
                self.stdout.write(indented(passage, 7, width=width(self.stdout), lines=2))

    # -- status ------------------------------------------------------------

    def _status(self, labels: Sequence[str], database: str | None, json: bool, **_: Any) -> None:
        from ...embeddings.status import status

        found = [
            each
            for alias, indexes in _by_database(_indexes(labels), database)
            for each in status(alias, indexes)
        ]
        if json:
            self._print_json([asdict(each) for each in found])
        elif found:
            self._print_status(found)
        else:
            self.stdout.write("No model declares embeddings.")

    def _print_status(self, found: Sequence[IndexStatus]) -> None:
        from ..console import plain, print_table

        columns = {
            "embeddings": "left",
            "rows": "right",
            "fresh": "right",
            "pending": "right",
            "failed": "right",
            "chunks": "right",
            "model": "left",
        }
        several = len({each.database for each in found}) > 1
        print_table(
            plain(self.stdout),
            columns | ({"database": "left"} if several else {}),
            [
                [each.label, each.sources, each.fresh, each.pending, each.failed, each.chunks]
                + [_model(each)]
                + ([each.database] if several else [])
                for each in found
            ],
        )
        self._print_advice(found)

    def _print_advice(self, found: Sequence[IndexStatus]) -> None:
        if sum(each.failed for each in found):
            self.stdout.write("")
            for line in _reasons(found):
                self.stdout.write(self.style.WARNING(line))
            self.stdout.write("Try again what failed: manage.py embeddings sync --retry-failed")
        elif not all(each.is_in_step for each in found):
            self.stdout.write("\nEmbed what is pending: manage.py embeddings sync")
        else:
            self.stdout.write(self.style.SUCCESS("\nEverything is in step."))

    # -- reconcile ---------------------------------------------------------

    def _reconcile(self, labels: Sequence[str], database: str | None, json: bool, **_: Any) -> None:
        results = []
        for alias, indexes in _by_database(_indexes(labels), database):
            for index in indexes:
                found = self._reconcile_one(index, alias, silent=json)
                results.append({"label": index.label, "database": alias, **found})
        if json:
            self._print_json(results)
        elif sum(each["stale"] + each["orphaned"] for each in results):
            self.stdout.write("To mend it: manage.py embeddings sync")
        else:
            self.stdout.write(self.style.SUCCESS("Nothing is out of step unnoticed."))

    def _reconcile_one(self, index: Embeddings, alias: str, *, silent: bool) -> dict[str, Any]:
        from ...embeddings.reconcile import reconcile
        from ...embeddings.sources import rows
        from ..console import Work, plain

        stream = plain(self.stderr if silent else self.stdout)
        with Work(stream, index.label, "rows", silent=silent) as work:
            total = rows(index, alias).count()
            found = reconcile(index, alias, progress=lambda done: work.show(done, total))
        if not silent:
            self.stdout.write(
                f"{index.label}: {found.checked:,} rows checked, {found.stale:,} out of step, "
                f"{found.orphaned:,} with embeddings but gone."
            )
        return asdict(found)

    # -- uninstall ---------------------------------------------------------

    def _uninstall(self, database: str | None, noinput: bool, json: bool, **_: Any) -> None:
        from ...embeddings import capture

        aliases = [alias for alias, _indexes in _by_database(None, database)]
        if not noinput:
            self._confirm(aliases)
        removed = {alias: capture.uninstall(alias) for alias in aliases}
        if json:
            self._print_json(removed)
            return
        for alias, count in removed.items():
            self.stdout.write(f"{count:,} triggers removed from database {alias!r}.")
        self.stdout.write(
            "What remains: the tables with their chunks; search still finds them. Changes of "
            "rows are no longer noticed.\nThe next migrate or embeddings sync brings the triggers "
            "back: first remove the declarations,\nor django_services from INSTALLED_APPS. To "
            "remove the tables too: manage.py migrate django_services zero"
        )

    def _confirm(self, aliases: Sequence[str]) -> None:
        listed = ", ".join(map(repr, aliases))
        question = f"Remove the triggers that keep embeddings in step from database {listed}?"
        try:
            answer = input(f"{question} [y/N] ")
        except EOFError:
            raise CommandError("Nobody answered: add --noinput to remove them.") from None
        if answer.strip().lower() not in {"y", "yes"}:
            raise CommandError("Nothing was removed.")

    def _print_json(self, value: object) -> None:
        self.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str))


# Arguments ------------------------------------------------------------------------------


def _verb(verbs: Any, name: str, help_text: str) -> CommandParser:
    parser: CommandParser = verbs.add_parser(name, help=help_text, description=help_text)
    for names in _BASE_OPTIONS:
        action: dict[str, Any] = {"action": "store_true"} if names[-1] in _FLAGS else {}
        # Left out they must not undo what stands before the verb.
        parser.add_argument(*names, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **action)
    return parser


def _labels(parser: CommandParser) -> None:
    parser.add_argument(
        "labels", nargs="*", metavar="LABEL", help="Such as library.Entry; all if left out."
    )


def _database(parser: CommandParser, default: str | None = None) -> None:
    parser.add_argument(
        "--database",
        type=_alias,
        default=default,
        metavar="ALIAS",
        help="Alias in DATABASES; " + (f"{default} if left out." if default else "all if left."),
    )


def _json(parser: CommandParser) -> None:
    parser.add_argument("--json", action="store_true", help="Print JSON, for a script.")


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _alias(text: str) -> str:
    if text not in connections:
        known = ", ".join(connections)
        raise argparse.ArgumentTypeError(f"there is no database {text!r} in DATABASES: {known}")
    return text


def _indexes(labels: Sequence[str]) -> list[Embeddings] | None:
    from ...embeddings.declaration import get_index

    return [get_index(label) for label in dict.fromkeys(labels)] or None


def _by_database(
    indexes: Sequence[Embeddings] | None, database: str | None
) -> list[tuple[str, list[Embeddings]]]:
    """Return the databases to work on, each with those of the declarations that it has."""
    from ...embeddings.declaration import indexes_on
    from ...embeddings.sync import databases

    return [
        (alias, [index for index in indexes_on(alias) if indexes is None or index in indexes])
        for alias in ([database] if database else databases())
    ]


def _refuse_together(*, watch: bool, **options: Any) -> None:
    """Refuse options that contradict each other."""
    chosen = [name for name in ("batch", "dry_run") if options[name]] + ["watch"] * watch
    if len(chosen) > 1:
        first, second = (f"--{name.replace('_', '-')}" for name in chosen[:2])
        raise CommandError(f"{first} and {second} exclude each other.")
    if options["no_wait"] and not options["batch"]:
        raise CommandError("--no-wait goes with --batch only.")


def _retry_failed(indexes: Sequence[Embeddings] | None, database: str | None) -> None:
    from ...embeddings.claims import retry_failed

    for alias, chosen in _by_database(indexes, database):
        for index in chosen:
            retry_failed(index, alias)


# Output ---------------------------------------------------------------------------------


class _SyncProgress:
    """Shows a sync: one piece of work for each declaration that has something to do."""

    def __init__(self, stream: Any, *, silent: bool) -> None:
        self.alias = ""
        self._stream = stream
        self._silent = silent
        self._work: Work | None = None
        self._index: Embeddings | None = None
        self._total = 0
        self._ended = time.monotonic()  # of the batch before

    def __call__(self, index: Embeddings, batch: Report) -> None:
        work = self._work_on(index, batch)
        work.show(work.done + batch.sources, self._total)
        self._ended = time.monotonic()

    def show_building(self, index: Embeddings, share: float, phase: str) -> None:
        """Show how far the index is that searches need."""
        from ..console import Building

        if not isinstance(self._work, Building):
            self.close()
            title = f"{index.label}: index for searches"
            self._work = Building(self._stream, title, silent=self._silent)
            self._index = None
        self._work.show_phase(share, phase)

    def close(self) -> None:
        if self._work is not None:
            self._work.finish()

    def _work_on(self, index: Embeddings, batch: Report) -> Work:
        from ...embeddings.status import pending
        from ..console import Work

        if self._work is None or self._index is not index:
            self.close()
            self._index = index
            self._total = batch.sources + pending(index, self.alias)
            self._work = Work(
                self._stream, index.label, "rows", silent=self._silent, started=self._ended
            )
        return self._work


def _as_json(hit: Hit) -> dict[str, Any]:
    return {
        "label": hit.label,
        "pk": hit.source.pk,
        "name": str(hit.source),
        "score": round(hit.score, 4),
        "passage": hit.passage,
    }


def _model(status: IndexStatus) -> str:
    if status.model is None:
        return "none yet"
    building = f"; building {status.building}" if status.building else ""
    return f"{status.model}, {status.dimensions}{building}"


def _tokens(estimate: Estimate) -> str:
    if estimate.tokens is None:
        return "-"
    return f"{'' if estimate.is_exact else '~'}{estimate.tokens:,}"


def _dollars(cost: Decimal | None) -> str:
    """Return a price, small ones with two digits that say something."""
    if cost is None:
        return "-"
    if not cost or cost >= 1:
        return f"${cost:,.2f}"
    return f"${cost:.{1 - cost.adjusted()}f}"


def _reasons(found: Sequence[IndexStatus]) -> Iterator[str]:
    """Yield why rows failed, the most frequent reason of each declaration first."""
    from django.db.models import Count

    from ...embeddings.models import Failure

    for each in found:
        failures = Failure.objects.using(each.database).filter(index=each.label, set_aside=True)
        reasons = failures.values_list("message").annotate(count=Count("id")).order_by("-count")
        for message, count in reasons[:3]:
            yield f"{each.label}: {count:,} failed: {message}"


@contextlib.contextmanager
def _sentences() -> Iterator[None]:
    """Turn what a user can mend into one sentence without a traceback."""
    try:
        yield
    except ServiceError as error:
        raise CommandError(str(error)) from error
    except DatabaseError as error:
        raise CommandError(_explained(error)) from error


def _explained(error: DatabaseError) -> str:
    from ...embeddings.declaration import indexes_on
    from ...embeddings.models import Space
    from ...embeddings.sync import databases

    for alias in databases():
        with contextlib.suppress(DatabaseError):
            tables = set(connections[alias].introspection.table_names())
            models = [Space, *(index.chunk_model for index in indexes_on(alias))]
            if missing := [m for m in models if m._meta.db_table not in tables]:
                return (
                    f"Database {alias!r} has no table {missing[0]._meta.db_table}: "
                    "run manage.py migrate first (after makemigrations, if the declaration is new)."
                )
    return f"The database refused: {error}"
