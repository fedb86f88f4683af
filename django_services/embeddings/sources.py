"""The sources: a declaration's rows, their keys and their texts.

A key is a row's primary key as text, as the triggers write it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from django.core.exceptions import ValidationError
from django.db import connections, models
from django.db.models import Q
from django.db.models.expressions import RawSQL
from django.utils.functional import Promise

from ..exceptions import InvalidInput, ServiceError
from .chunking import CONTEXT_LIMIT, SourceText
from .declaration import Embeddings
from .statements import LISTS, Statements, array

#: Joins the values of a multi-valued lookup, such as the names of an article's tags.
VALUES_SEPARATOR = ", "
FIELDS_SEPARATOR = "\n\n"


class Keys:
    """Translates a declaration's primary keys to the triggers' text, and back."""

    def __init__(self, index: Embeddings, alias: str) -> None:
        field = index.model._meta.pk
        while field.remote_field is not None:
            field = field.remote_field.model._meta.pk  # the key of an inherited table's parent
        self._field = field
        self._connection = connections[alias]
        self._is_number = isinstance(field, models.IntegerField)

    def to_text(self, value: Any) -> str:
        if self._is_number:
            return str(value)
        return str(self._field.get_db_prep_value(value, self._connection))

    def to_value(self, key: str) -> Any:
        """Return the key's value, or None if no row can have such a key."""
        try:
            return int(key) if self._is_number else self._field.to_python(key)
        except (ValueError, ValidationError):
            return None

    def to_values(self, keys: Iterable[str]) -> list[Any]:
        return [value for value in map(self.to_value, keys) if value is not None]

    def among(self, keys: Sequence[str]) -> Any:
        """Return the keys as what ``pk__in`` takes."""
        stored = self.to_stored(keys)
        if self._connection.vendor == "postgresql":
            rows = f"SELECT unnest(%s::{self._field.rel_db_type(self._connection)}[])"
            return RawSQL(rows, [array(stored)])  # noqa: S611 - a type's name
        return RawSQL(LISTS[self._connection.vendor][1:-1], [json.dumps(stored)])  # noqa: S611 - a constant

    def to_stored(self, keys: Iterable[str]) -> list[Any]:
        """Return the keys as parameters of plain SQL; ``str`` takes them back to keys."""
        return self.to_values(keys) if self._is_number else list(keys)


def rows(index: Embeddings, alias: str) -> models.QuerySet[Any]:
    """Return every row of the declaring model, whatever its managers hide."""
    return index.model._base_manager.using(alias).order_by()


def embedded_rows(index: Embeddings, alias: str) -> models.QuerySet[Any]:
    """Return the rows that the declaration's condition lets out of the building."""
    return rows(index, alias).filter(index.condition or Q())


def existing_keys(index: Embeddings, alias: str, keys: Sequence[str]) -> set[str]:
    """Return those of the keys whose row exists."""
    found = Statements(alias, index).run_in(
        "SELECT {key} FROM {source} WHERE {pk} {among}", Keys(index, alias).to_stored(keys)
    )
    return {key for (key,) in found}


def pages_of_keys(index: Embeddings, alias: str, size: int) -> Iterator[list[str]]:
    """Yield the keys of all rows, ``size`` at a time, in the key's order."""
    translate = Keys(index, alias)
    page = rows(index, alias).order_by("pk").values_list("pk", flat=True)
    keys = list(page[:size])
    while keys:
        yield [translate.to_text(key) for key in keys]
        keys = list(page.filter(pk__gt=keys[-1])[:size])


def read_texts(
    index: Embeddings, alias: str, keys: Sequence[str]
) -> dict[str, SourceText | ServiceError]:
    """Return the texts of the rows of these keys.

    A row that is gone or does not match the condition is left out; one whose
    text cannot be made stands with the error that says why.
    """
    translate = Keys(index, alias)
    chosen = embedded_rows(index, alias).filter(pk__in=translate.among(keys))
    if index.text is not None:
        return {translate.to_text(row.pk): _called(index, row) for row in chosen.distinct()}
    single = [path for path in index.fields if not is_multi_valued(index.model, path)]
    values: dict[Any, dict[str, str]] = {
        pk: dict(zip(single, map(_as_text, found), strict=True))
        for pk, *found in chosen.values_list("pk", *single)
    }
    for path in index.fields:
        if path not in single:
            _add_joined_values(rows(index, alias), path, values)
    return {
        translate.to_text(pk): _joined([found.get(path, "") for path in index.fields])
        for pk, found in values.items()
    }


def is_multi_valued(model: type[models.Model], path: str) -> bool:
    """Tell whether one row of the model may have several values of a lookup."""
    hops = model._meta
    for part in path.split("__"):
        field = hops.pk if part == "pk" else hops.get_field(part)
        if field.many_to_many or field.one_to_many:
            return True
        if not field.is_relation:
            return False
        hops = field.related_model._meta  # type: ignore[union-attr]
    return False


def _add_joined_values(
    rows: models.QuerySet[Any], path: str, values: dict[Any, dict[str, str]]
) -> None:
    found: dict[Any, list[str]] = defaultdict(list)
    pairs = rows.filter(pk__in=list(values)).values_list("pk", path)
    for pk, value in pairs:
        if value is not None:
            found[pk].append(_as_text(value))
    for pk, texts in found.items():
        # The database gives no order that an unrelated write could not change.
        values[pk][path] = VALUES_SEPARATOR.join(sorted(texts))


def _joined(values: list[str]) -> SourceText:
    text = FIELDS_SEPARATOR.join(value for value in values if value.strip())
    context = values[0].strip() if len(values) > 1 else ""
    return SourceText(text, context[:CONTEXT_LIMIT])


def _called(index: Embeddings, row: models.Model) -> SourceText | ServiceError:
    assert index.text is not None
    try:
        text: object = index.text(row)
    except Exception as error:  # noqa: BLE001 - the user's code: its error is this row's alone
        return _unusable(index, f"raised {type(error).__name__}")
    # A lazy translation is no str, and becomes one.
    if not isinstance(text, str | Promise):
        return _unusable(index, f"returned {type(text).__name__}")
    return SourceText(_as_text(text))


def _unusable(index: Embeddings, what: str) -> InvalidInput:
    name = getattr(index.text, "__qualname__", repr(index.text))
    return InvalidInput(
        f"{index.label}: {name} {what} for this row; it must return a str. "
        "Mend it, then run: manage.py embeddings sync --retry-failed"
    )


def _as_text(value: Any) -> str:
    # NUL cannot be stored by PostgreSQL, nor a lone surrogate by any database.
    text = "" if value is None else str(value)
    return text.replace("\x00", " ").encode(errors="replace").decode()
