"""Claiming sources: who works on which, for how long, and what is done.

All by the database's clock and in short transactions; no lock is held while a
claim is worked on. What a worker took is exactly a list of change ids: a change
that comes meanwhile stays, so an edit during a call is never lost.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from django.db import connections, transaction

from .. import conf
from ..exceptions import ServiceError
from .declaration import Embeddings
from .models import Failure
from .statements import SKIP_LOCKED, Statements, own_transaction


@dataclass(frozen=True, slots=True)
class Claim:
    """Sources of one declaration that a worker holds, with the changes it took."""

    index: Embeddings
    alias: str
    owner: str
    changes: dict[str, list[int]]  # by key
    attempts: dict[str, int]  # by key, of sources that failed before
    last: int  # the newest change that was looked at

    @property
    def keys(self) -> list[str]:
        return list(self.changes)


def claim(index: Embeddings, alias: str, *, limit: int, after: int = 0) -> Claim | None:
    """Take up to ``limit`` changes whose sources nobody holds; None if there are none.

    Args:
        index: The declaration.
        alias: The database.
        limit: The most changes to take.
        after: Look at newer changes than this one only. Who goes on from the last
            claim need not pass what is taken already, nor what was just deleted.
    """
    owner = uuid.uuid4().hex
    with own_transaction(alias):
        # A write comes first: on SQLite a transaction that begins by reading cannot
        # always become a writer.
        _drop_expired(index, alias)
        taken = _free_changes(index, alias, limit, after)
        if not taken:
            return None
        _lease(alias, owner, [ids[0] for ids in taken.values()])
        mine = _held(alias, owner)
        changes = {key: ids for key, ids in taken.items() if key in mine}
        attempts = _attempts(index, alias, list(changes))
    if not changes:
        return None
    last = max(ids[-1] for ids in taken.values())
    return Claim(index, alias, owner, changes, attempts, last)


def hold(claim: Claim) -> set[str]:
    """Return the keys that are still the claim's own.

    A key that is missing has passed to another worker: nothing may be written
    for it. Called first in the transaction that writes, which nobody can take the
    keys from until it ends; `release` ends their leases in it.
    """
    return _HOLD[connections[claim.alias].vendor](claim)


def finish(claim: Claim, keys: Iterable[str]) -> None:
    """Delete the changes taken for these keys, and their failures."""
    keys = list(keys)
    _delete_changes(claim, keys)
    Statements(claim.alias).run_in(
        'DELETE FROM {failure} WHERE "index" = %s AND source {among}',
        [key for key in keys if key in claim.attempts],
        [claim.index.label],
    )


def fail(claim: Claim, errors: dict[str, ServiceError]) -> list[str]:
    """Note what failed for which key; returns the keys that are set aside.

    A source whose error may pass waits, twice as long each time, and is set aside
    after the last attempt; one whose error will not pass is set aside at once.
    Its changes go with it: a new one makes it pending again.
    """
    settings = conf.embeddings()
    set_aside = []
    rows = []
    for key, error in errors.items():
        attempts = claim.attempts.get(key, 0) + 1
        is_last = attempts >= settings.max_attempts or not error.retryable
        delay = settings.retry_delay * 2 ** (attempts - 1)
        if is_last:
            set_aside.append(key)
        rows.append(
            [claim.index.label, key, attempts, delay, is_last, type(error).__name__, str(error)]
        )
    Statements(claim.alias).run_each(
        'INSERT INTO {failure} ("index", source, attempts, retry_at, set_aside, error, message) '
        "VALUES (%s, %s, %s, {clock} + %s, %s, %s, %s) "
        'ON CONFLICT ("index", source) DO UPDATE SET attempts = excluded.attempts, '
        "retry_at = excluded.retry_at, set_aside = excluded.set_aside, "
        "error = excluded.error, message = excluded.message",
        rows,
    )
    _delete_changes(claim, set_aside)
    return set_aside


def release(claim: Claim) -> None:
    """Give the claim back: its changes stay, and nothing counts as an attempt."""
    Statements(claim.alias).run("DELETE FROM {lease} WHERE owner = %s", [claim.owner])


def retry_failed(index: Embeddings, alias: str) -> int:
    """Make every failed source of a declaration pending again; returns their number."""
    with transaction.atomic(using=alias):
        failures = Failure.objects.using(alias).filter(index=index.label)
        keys = list(failures.values_list("source", flat=True))
        failures.delete()
        append(index, alias, keys)
    return len(keys)


def append(index: Embeddings, alias: str, keys: Iterable[str]) -> None:
    """Note that these sources may be out of step, as a trigger would."""
    Statements(alias).run_each(
        'INSERT INTO {change} ("index", source) VALUES (%s, %s)',
        [[index.label, key] for key in keys],
    )


def _drop_expired(index: Embeddings, alias: str) -> None:
    Statements(alias).run(
        'DELETE FROM {lease} WHERE "index" = %s AND expires_at <= {clock}', [index.label]
    )


def _free_changes(index: Embeddings, alias: str, limit: int, after: int) -> dict[str, list[int]]:
    statements = Statements(alias)
    # OFFSET has PostgreSQL ask for each lease: it takes the table, of which it knows
    # nothing, for a small one, and would compare all of it with every change.
    found = statements.run(
        'SELECT c.id, c.source FROM {change} c WHERE c."index" = %s AND c.id > %s '
        'AND NOT EXISTS (SELECT 1 FROM {lease} l WHERE l."index" = c."index" '
        "AND l.source = c.source LIMIT 1 OFFSET 0) "
        'AND NOT EXISTS (SELECT 1 FROM {failure} f WHERE f."index" = c."index" '
        "AND f.source = c.source AND NOT f.set_aside AND f.retry_at > {clock}) "
        f"ORDER BY c.id LIMIT %s {SKIP_LOCKED[statements.connection.vendor].format('c')}",
        [index.label, after, limit],
    )
    changes: dict[str, list[int]] = defaultdict(list)
    for change, key in found:
        changes[key].append(change)
    return dict(changes)


def _lease(alias: str, owner: str, changes: list[int]) -> None:
    """Lease the sources of these changes, one for each, where nobody was faster."""
    Statements(alias).run_in(
        'INSERT INTO {lease} ("index", source, owner, expires_at) '
        'SELECT "index", source, %s, {clock} + %s FROM {change} WHERE id {among} '
        "ON CONFLICT DO NOTHING",
        changes,
        [owner, conf.embeddings().lease],
    )


def _held(alias: str, owner: str) -> set[str]:
    found = Statements(alias).run(
        "SELECT source FROM {lease} WHERE owner = %s AND expires_at > {clock}", [owner]
    )
    return {key for (key,) in found}


def _keep_writing(claim: Claim) -> set[str]:
    """Hold the keys as SQLite's only writer, which a first write makes of this connection.

    It is one of few rows: what SQLite keeps to undo a larger one is a file, which slows
    all that the transaction writes.
    """
    Statements(claim.alias).run(
        "DELETE FROM {lease} WHERE owner = %s AND expires_at <= {clock}", [claim.owner]
    )
    return _held(claim.alias, claim.owner)


def _delete_leases(claim: Claim) -> set[str]:
    """Hold the keys by their leases' row locks: who looks sees them until the commit."""
    found = Statements(claim.alias).run(
        "DELETE FROM {lease} WHERE owner = %s RETURNING source, expires_at > {clock}",
        [claim.owner],
    )
    return {key for key, is_own in found if is_own}


#: vendor -> what lets nobody take a claim's keys until the transaction ends.
_HOLD: dict[str, Callable[[Claim], set[str]]] = {
    "sqlite": _keep_writing,
    "postgresql": _delete_leases,
}


def _attempts(index: Embeddings, alias: str, keys: Sequence[str]) -> dict[str, int]:
    failures = Statements(alias).run_in(
        'SELECT source, attempts, set_aside FROM {failure} WHERE "index" = %s AND source {among}',
        keys,
        [index.label],
    )
    # A change after it was set aside is a new text: it starts anew.
    return {key: 0 if set_aside else attempts for key, attempts, set_aside in failures}


def _delete_changes(claim: Claim, keys: Iterable[str]) -> None:
    Statements(claim.alias).run_in(
        "DELETE FROM {change} WHERE id {among}",
        [change for key in keys for change in claim.changes[key]],
    )
