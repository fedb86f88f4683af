"""Which tables and columns a declaration depends on, and how they lead to its sources.

Pure: reads models, never a database. What it finds, a vendor's module turns
into triggers.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.core.exceptions import FieldError
from django.db.models import Model
from django.db.models.constants import LOOKUP_SEP
from django.db.models.sql.query import Query

from ...exceptions import ConfigurationError
from ..declaration import Embeddings


@dataclass(frozen=True, slots=True)
class Join:
    """One step from a table to the next, away from the source."""

    table: str
    #: Columns of the table that the step leaves.
    near: tuple[str, ...]
    #: Columns of `table` that equal them, in the same order.
    far: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Watch:
    """A table whose writes may change the text or the condition of sources.

    The source's own table has no joins. Of a table reached by joins, rows that
    come and go matter as much as rows that change: a restriction by a
    GenericRelation's content type is left out, since one note too many is
    harmless.
    """

    table: str
    columns: tuple[str, ...]
    joins: tuple[Join, ...] = ()
    #: Whether the database computes a column: no statement names it when it changes.
    is_computed: bool = False
    #: Columns by which a row is known before and after an update.
    key: tuple[str, ...] = ("id",)


@dataclass(frozen=True, slots=True)
class _Table:
    """A table that lookups reach: its model's options, and the fields to watch by column."""

    options: Any
    fields: dict[str, Any] = field(default_factory=dict)

    def note(self, fields: Iterable[Any]) -> None:
        for noted in fields:
            self.fields.update(dict.fromkeys(_columns(noted), noted))


#: By the joins that lead there.
_Tables = dict[tuple[Join, ...], _Table]


def watches(index: Embeddings) -> list[Watch]:
    """Return what to watch for an index; its source's own table comes first.

    Raises:
        ConfigurationError: A lookup leads nowhere; names the nearest field.
    """
    source = _Table(index.model._meta)
    found: _Tables = {(): source}
    for lookup in index.paths():
        _follow(index, lookup, found)
    # A source whose key changes is another source, which is not a matter of columns.
    source.fields.pop(column(index.model), None)
    return [_watch(joins, table) for joins, table in found.items()]


def tables(index: Embeddings) -> set[str]:
    """Return the names of the tables that an index watches, the source's own included."""
    return {watch.table for watch in watches(index)}


def column(model: type[Model], name: str | None = None) -> str:
    """Return the column of a model's field; of its primary key, if none is named."""
    field = model._meta.get_field(name) if name else model._meta.pk
    found = getattr(field, "column", None)
    assert isinstance(found, str), f"{model._meta.label} has no column for {name or 'its key'}"
    return found


def _watch(joins: tuple[Join, ...], table: _Table) -> Watch:
    return Watch(
        table=table.options.db_table,
        columns=tuple(table.fields),
        joins=joins,
        is_computed=any(getattr(field, "generated", False) for field in table.fields.values()),
        key=tuple(_columns(table.options.pk)),
    )


def _follow(index: Embeddings, lookup: str, found: _Tables) -> None:
    """Note the columns that a lookup passes, from the source to its last field."""
    path, targets = _trimmed(*_resolve(index, lookup))
    joins: tuple[Join, ...] = ()
    for step in path:
        pairs = step.join_field.get_joining_fields()
        join = Join(
            table=step.to_opts.db_table,
            near=tuple(near.column for near, _ in pairs),
            far=tuple(far.column for _, far in pairs),
        )
        found[joins].note(near for near, _ in pairs)
        joins = (*joins, join)
        found.setdefault(joins, _Table(step.to_opts)).note(far for _, far in pairs)
    found[joins].note(targets)


def _columns(field: Any) -> list[str]:
    """Return a field's columns: one, or those of a composite primary key."""
    if field.column is not None:
        return [field.column]
    return [part.column for part in getattr(field, "fields", ())]


def _trimmed(path: Sequence[Any], targets: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """Leave out last steps that only lead to a key which the table before holds too."""
    while path and path[-1].direct:
        near_by_far = {far: near for near, far in path[-1].join_field.get_joining_fields()}
        if not set(targets) <= set(near_by_far):
            break
        path, targets = path[:-1], [near_by_far[target] for target in targets]
    return path, targets


def _resolve(index: Embeddings, lookup: str) -> tuple[Sequence[Any], Sequence[Any]]:
    """Return the steps of a lookup and its last fields; transforms are left out."""
    names = lookup.split(LOOKUP_SEP)
    model = index.model
    try:
        path, last, targets, rest = Query(model).names_to_path(names, model._meta)
    except FieldError as error:
        raise _unknown(index, lookup, names[0], model, error) from None
    if rest and not any(_understands(field, rest[0]) for field in (last, *targets)):
        end = path[-1].to_opts.model if path else model
        raise _unknown(index, lookup, rest[0], end)
    return path, targets


def _understands(field: Any, name: str) -> bool:
    """Tell whether a field has a transform or a lookup of this name."""
    transform = getattr(field, "get_transform", lambda _: None)(name)
    return bool(transform or getattr(field, "get_lookup", lambda _: None)(name))


def _unknown(
    index: Embeddings,
    lookup: str,
    name: str,
    model: type[Model],
    reason: FieldError | None = None,
) -> ConfigurationError:
    fields = model._meta.get_fields()
    if any(field.name == name for field in fields):
        # It exists, and Django says why it cannot be followed: a GenericForeignKey.
        return ConfigurationError(f"{index.label} cannot watch {lookup!r}. {reason}")
    known = sorted({field.name for field in fields if field is not index})
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}."
    return ConfigurationError(
        f"{index.label} cannot watch {lookup!r}: {model._meta.label} has no field {name!r}; {hint}"
    )
