"""`VectorField`: a column of vectors, in PostgreSQL by pgvector, in SQLite as bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper

from ..exceptions import ConfigurationError
from . import encoding

if TYPE_CHECKING:
    Field = models.Field[Any, Any]
else:
    Field = models.Field

MAX_DIMENSIONS = 4_000  # the most that pgvector can index, as halfvec


class VectorField(Field):
    """A vector: in Python a read-only ``float32`` array of one dimension.

    Args:
        dimensions: Length of every vector of the column, up to 4,000; None lets
            the rows differ, as the spaces of one chunk table do.
    """

    description = "A vector of float32 numbers"
    empty_values = (None,)

    def __init__(self, *args: Any, dimensions: int | None = None, **options: Any) -> None:
        is_count = isinstance(dimensions, int) and not isinstance(dimensions, bool)
        if dimensions is not None and not (is_count and 1 <= dimensions <= MAX_DIMENSIONS):
            raise ConfigurationError(
                f"VectorField(dimensions={dimensions!r}): give a number from 1 to "
                f"{MAX_DIMENSIONS:,}, or none."
            )
        self.dimensions = dimensions
        options.setdefault("editable", False)
        super().__init__(*args, **options)

    def deconstruct(self) -> tuple[str, str, list[Any], dict[str, Any]]:
        name, _, args, options = super().deconstruct()
        if self.editable:
            options["editable"] = True
        else:
            options.pop("editable", None)
        if self.dimensions is not None:
            options["dimensions"] = self.dimensions
        return name, "django_services.vectors.VectorField", list(args), options

    def get_internal_type(self) -> str:
        return "VectorField"

    def db_type(self, connection: BaseDatabaseWrapper) -> str:
        if connection.vendor == "postgresql":
            return "halfvec" if self.dimensions is None else f"halfvec({self.dimensions})"
        return "BLOB"

    def from_db_value(self, value: Any, *_: Any) -> Any:
        return None if value is None else encoding.decode(_encoded(value))

    def to_python(self, value: Any) -> Any:
        return None if value is None else encoding.decode(self._encode(value))

    def get_prep_value(self, value: Any) -> Any:
        value = super().get_prep_value(value)
        # Bytes can be hashed and compared, which expressions ask of their values.
        is_ready = value is None or hasattr(value, "resolve_expression")
        return value if is_ready else self._encode(value)

    def get_db_prep_value(
        self, value: Any, connection: BaseDatabaseWrapper, prepared: bool = False
    ) -> Any:
        value = value if prepared else self.get_prep_value(value)
        if isinstance(value, bytes) and connection.vendor == "postgresql":
            return encoding.to_halfvec_text(value)
        return value

    def get_db_prep_values(
        self, values: Sequence[Any], connection: BaseDatabaseWrapper
    ) -> list[Any]:
        """Return vectors of one length as parameters of plain SQL, checked together."""
        encoded = encoding.encode_rows(values, dimensions=self.dimensions)
        is_text = connection.vendor == "postgresql"
        return list(map(encoding.to_halfvec_text, encoded)) if is_text else encoded

    def value_to_string(self, obj: models.Model) -> str:
        value = self.value_from_object(obj)
        return "" if value is None else encoding.to_text(self._encode(value))

    def _encode(self, value: Any) -> bytes:
        if isinstance(value, str):
            value = encoding.from_text(value)
        return encoding.encode(value, dimensions=self.dimensions)


def _encoded(value: Any) -> bytes:
    """Return the bytes of what a database returned."""
    return encoding.from_text(value) if isinstance(value, str) else bytes(value)


def column_type(field: Field, connection: BaseDatabaseWrapper) -> tuple[str, int | None]:
    """Return the name of a column's type, and its number of dimensions if it says one.

    By its type and not its class: pgvector-python's fields need not be imported.
    """
    declared = field.db_type(connection) or "no column"
    found = re.fullmatch(r"(\w+)\((\d+)\)", declared)
    return (found[1], int(found[2])) if found else (declared, None)
