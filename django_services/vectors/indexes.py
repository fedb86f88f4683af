"""Approximate indexes of vectors, for ``Meta.indexes``.

On PostgreSQL they are pgvector's. SQLite has none: there the index stands in the
schema, empty, so that the same migrations run; searches are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.models import Index, Model

from ..exceptions import ConfigurationError
from .field import column_type

#: distance -> the end of the operator class's name.
OPERATOR_CLASSES = {"cosine": "cosine_ops", "l2": "l2_ops", "inner product": "ip_ops"}

#: Type of a column -> the most dimensions that pgvector indexes.
MAX_DIMENSIONS = {"vector": 2_000, "halfvec": 4_000}


class VectorIndex(Index):
    """Base of the indexes; not used directly.

    Args:
        fields: One field of vectors with a number of dimensions: a `VectorField`,
            or one of pgvector-python's.
        name: As of any index.
        distance: Which distance it serves: ``cosine``, ``l2`` or ``inner product``.
        options: The method's own.

    Raises:
        ConfigurationError: No such distance, or an option that is no number.
    """

    method: ClassVar[str]
    defaults: ClassVar[dict[str, int]]

    def __init__(
        self,
        *,
        fields: Sequence[str],
        name: str | None = None,
        distance: str = "cosine",
        condition: Any = None,
        db_tablespace: str | None = None,
        **options: int,
    ) -> None:
        label = f"{type(self).__name__}(distance={distance!r}, fields={fields!r})"
        if distance not in OPERATOR_CLASSES:
            raise ConfigurationError(f"{label}: give one of {', '.join(OPERATOR_CLASSES)}.")
        if len(fields) != 1 or fields[0].startswith("-"):
            raise ConfigurationError(f"{label}: give the name of one field.")
        for option, value in options.items():
            if option not in self.defaults or type(value) is not int or value < 1:
                raise ConfigurationError(
                    f"{label}: {option}={value!r}; it takes numbers for {', '.join(self.defaults)}."
                )
        super().__init__(fields=fields, name=name, condition=condition, db_tablespace=db_tablespace)
        self.distance = distance
        self.options = self.defaults | options

    def deconstruct(self) -> Any:
        _, args, options = super().deconstruct()
        options.pop("opclasses", None)  # follow from the column, where the table is
        if self.distance != "cosine":
            options["distance"] = self.distance
        for option, value in self.options.items():
            if value != self.defaults[option]:
                options[option] = value
        return f"django_services.vectors.{type(self).__name__}", args, options

    def create_sql(
        self,
        model: type[Model],
        schema_editor: BaseDatabaseSchemaEditor,
        using: str = "",
        **options: Any,
    ) -> Any:
        if schema_editor.connection.vendor != "postgresql":
            return self._empty_sql(model, schema_editor)
        if not getattr(schema_editor, "collect_sql", False):
            from . import extension  # psycopg comes with it, and models come with indexes

            extension.check(schema_editor.connection)
        self.opclasses = (self._operator_class(model, schema_editor),)
        using = using or f" USING {self.method}"
        statement: Any = super().create_sql(model, schema_editor, using, **options)
        given = ", ".join(f"{option} = {value}" for option, value in self.options.items())
        statement.parts["extra"] = f" WITH ({given}){statement.parts['extra']}"
        return statement

    def _operator_class(self, model: type[Model], schema_editor: BaseDatabaseSchemaEditor) -> str:
        (field,) = self._columns(model)
        label = f"{type(self).__name__} {self.name}: {field}"
        kind, dimensions = column_type(field, schema_editor.connection)
        most = MAX_DIMENSIONS.get(kind)
        if most is None:
            raise ConfigurationError(f"{label} is a column of {kind}, not of vectors.")
        if dimensions is None or dimensions > most:
            raise ConfigurationError(
                f"{label} needs a number of dimensions, dimensions=…, and {kind} is indexed up "
                f"to {most:,}."
            )
        return f"{kind}_{OPERATOR_CLASSES[self.distance]}"

    def _empty_sql(self, model: type[Model], schema_editor: BaseDatabaseSchemaEditor) -> Any:
        return schema_editor._create_index_sql(  # type: ignore[attr-defined]
            model, fields=self._columns(model), name=self.name, condition="0"
        )

    def _columns(self, model: type[Model]) -> list[Any]:
        return [model._meta.get_field(name) for name in self.fields]


class HnswIndex(VectorIndex):
    """A graph of neighbours: quick to search, slow to build, current with every write.

    Args:
        m: Neighbours that a row is linked to.
        ef_construction: Candidates looked at for them; higher builds longer and
            finds more.
    """

    method = "hnsw"
    suffix = "hnsw"
    defaults = {"m": 16, "ef_construction": 64}  # pgvector's own


class IvfFlatIndex(VectorIndex):
    """Lists of rows that are near each other: quick to build, on a table that has its rows.

    Args:
        lists: How many; about a thousandth of the rows.
    """

    method = "ivfflat"
    suffix = "ivf"
    defaults = {"lists": 100}  # pgvector's own
