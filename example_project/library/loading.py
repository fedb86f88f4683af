"""Keeping the table in step with the running interpreter."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from django.db import transaction

from . import stdlib
from .models import Entry

COLUMNS = ("kind", "module", "signature", "summary", "text")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What loading did, in entries."""

    total: int
    created: int
    changed: int  # another Python may document the same name otherwise
    removed: int


@transaction.atomic
def load() -> Loaded:
    """Write the entries that are new or other than stored; remove those that are gone."""
    stored = {entry.name: entry for entry in Entry.objects.all()}
    wanted = {part.name: _entry(part) for part in stdlib.read()}
    created = [entry for name, entry in wanted.items() if name not in stored]
    changed = [entry for name, entry in wanted.items() if _differs(entry, stored.get(name))]
    for entry in changed:
        entry.pk = stored[entry.name].pk
    Entry.objects.bulk_create(created, batch_size=500)
    Entry.objects.bulk_update(changed, COLUMNS, batch_size=100)
    gone = [entry.pk for name, entry in stored.items() if name not in wanted]
    Entry.objects.filter(pk__in=gone).delete()
    return Loaded(len(wanted), len(created), len(changed), len(gone))


def _entry(part: stdlib.Documentation) -> Entry:
    return Entry(summary=part.text.partition("\n")[0], **asdict(part))


def _differs(entry: Entry, stored: Entry | None) -> bool:
    return stored is not None and any(
        getattr(entry, column) != getattr(stored, column) for column in COLUMNS
    )
