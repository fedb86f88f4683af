"""Triggers as they are wanted and as a database holds them, whatever its vendor."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

logger = logging.getLogger(__name__)

#: Every trigger of this package is known by it, also when its declaration is gone.
PREFIX = "django_services_"

#: A table and one of its columns, as the database's catalogue names them.
Column = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Trigger:
    """A trigger as it should be."""

    label: str
    name: str
    #: As the database keeps it, so that an altered one is known.
    sql: str
    #: What must be there before it can be made.
    requires: frozenset[Column]


T = TypeVar("T", bound=Trigger)


@dataclass(frozen=True, slots=True)
class Difference(Generic[T]):
    """What parts the triggers of a database from those that are wanted."""

    dropped: tuple[str, ...]
    created: tuple[T, ...]
    #: Wanted, but a table or column that they name is not there.
    unfit: tuple[T, ...]

    @property
    def is_none(self) -> bool:
        """Whether nothing is to do."""
        return not self.dropped and not self.created

    def restored(self) -> list[str]:
        """Return the labels of which a trigger is made, and that have them all then."""
        unfit = labels(self.unfit)
        return [label for label in labels(self.created) if label not in unfit]


def compare(
    wanted: Iterable[T], held: Mapping[str, str], there: Container[Column]
) -> Difference[T]:
    """Decide which triggers to drop and which to make.

    Args:
        wanted: Those that there should be.
        held: The SQL of those that the database holds, by name.
        there: The columns of every table that can have triggers.
    """
    fit: dict[str, T] = {}
    unfit: list[T] = []
    for trigger in wanted:
        if all(column in there for column in trigger.requires):
            fit[trigger.name] = trigger
        else:
            unfit.append(trigger)
    kept = {name for name, sql in held.items() if name in fit and fit[name].sql == sql}
    return Difference(
        dropped=tuple(name for name in held if name not in kept),
        created=tuple(trigger for name, trigger in fit.items() if name not in kept),
        unfit=tuple(unfit),
    )


def absent(wanted: Iterable[Trigger], held: Mapping[str, str]) -> list[str]:
    """Return the labels of those that the database holds not, or not as they should be."""
    return labels(trigger for trigger in wanted if held.get(trigger.name) != trigger.sql)


def log_unfit(difference: Difference[Any], alias: str) -> None:
    """Tell for which indexes a trigger waits for a table or column."""
    for label in labels(difference.unfit):
        logger.info(
            "Changes of %s on %r are not all captured yet: a table or column that it watches "
            "is not there. Run: manage.py migrate",
            label,
            alias,
        )


def labels(of: Iterable[Trigger]) -> list[str]:
    """Return the labels of triggers, each once."""
    return list(dict.fromkeys(trigger.label for trigger in of))


def unique_name(event: str, *identity: object) -> str:
    """Return a name for the trigger of an event: the same everywhere, at most 63 bytes."""
    digest = hashlib.sha256(repr(identity).encode()).hexdigest()
    return f"{PREFIX}{event.lower()}_{digest[:16]}"
