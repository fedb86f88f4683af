"""Distances as ORM expressions, and the rows of a queryset nearest to a vector."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F, Field, FloatField, Func, Model, QuerySet, Value
from django.db.models.expressions import Combinable
from django.db.models.sql.compiler import SQLCompiler

from ..exceptions import ConfigurationError, DimensionMismatch, InvalidInput
from . import encoding
from .field import VectorField, column_type

M = TypeVar("M", bound=Model)

#: (vendor, metric) -> SQL of the distance between two operands.
OPERATORS = {
    ("postgresql", "cosine"): "({} <=> {})",
    ("postgresql", "l2"): "({} <-> {})",
    ("postgresql", "negative inner product"): "({} <#> {})",
    ("sqlite", "cosine"): "vector_cosine_distance({}, {})",
    ("sqlite", "l2"): "vector_l2_distance({}, {})",
    ("sqlite", "negative inner product"): "vector_negative_inner_product({}, {})",
}

#: vendor -> SQL of an operand whose number of dimensions is known.
CASTS = {"postgresql": "{operand}::halfvec({dimensions})"}


def distance_sql(
    metric: str, vendor: str, left: str, right: str, dimensions: int | None = None
) -> str:
    """Return the SQL of the distance between two operands.

    Args:
        metric: ``cosine``, ``l2`` or ``negative inner product``.
        vendor: The connection's.
        left: SQL of the one vector.
        right: SQL of the other.
        dimensions: Their length, if known: an index serves only the expression
            that names it.

    Raises:
        ConfigurationError: The database has no such distance.
    """
    operator = OPERATORS.get((vendor, metric))
    if operator is None:
        raise ConfigurationError(f"Distances need PostgreSQL or SQLite, not {vendor}.")
    cast = CASTS.get(vendor)
    if cast is not None and dimensions is not None:
        left = cast.format(operand=left, dimensions=dimensions)
        right = cast.format(operand=right, dimensions=dimensions)
    return operator.format(left, right)


class Distance(Func):
    """Base of the distances; the smaller, the nearer. Not used directly.

    Serves every column of vectors: on PostgreSQL `VectorField` and the vector and
    half-vector fields of pgvector-python, on SQLite `VectorField`.

    Args:
        expression: Field or expression of vectors.
        vector: Array, sequence of numbers, or expression.

    Raises:
        InvalidInput: ``vector`` is none, or has no such distance.
        DimensionMismatch: The field holds vectors of another length.
    """

    metric: ClassVar[str]
    arity = 2
    output_field = FloatField()

    def __init__(self, expression: Any, vector: Any, **extra: Any) -> None:
        if not hasattr(vector, "resolve_expression"):
            vector = Value(self.encode(vector), output_field=VectorField())
        super().__init__(expression, vector, **extra)

    @classmethod
    def encode(cls, vector: Any) -> bytes:
        """Return a vector that has such distances, as bytes."""
        return encoding.encode(vector)

    def resolve_expression(self, *args: Any, **options: Any) -> Distance:
        resolved: Distance = super().resolve_expression(*args, **options)
        left, right = resolved.get_source_expressions()
        column = getattr(left, "output_field", None)
        wanted, got = getattr(column, "dimensions", None), _dimensions(right)
        if wanted is not None and got is not None and wanted != got:
            raise DimensionMismatch(
                f"{column} holds vectors of {wanted} dimensions, this one has {got}: "
                "take vectors of the same model."
            )
        return resolved

    def as_sql(  # type: ignore[override]
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **_: Any
    ) -> tuple[str, list[Any]]:
        left, right = self.get_source_expressions()
        column = _column_type(left.output_field, connection)
        left_sql, left_params = compiler.compile(left)
        dimensions = _dimensions(right)
        right_params: Sequence[Any]
        if dimensions is None or column.write is None:
            right_sql, right_params = compiler.compile(right)
        else:
            right_sql = f"%s::{column.name}({dimensions})"
            right_params = [column.write(self.to_operand(right.value))]
            if column.dimensions is None:
                left_sql = f"{left_sql}::{column.name}({dimensions})"
        sql = distance_sql(self.metric, connection.vendor, left_sql, right_sql)
        return sql, [*left_params, *right_params]

    def to_operand(self, vector: bytes) -> bytes:
        """Return a vector of the same distances, that fits a column of any precision."""
        return vector


class CosineDistance(Distance):
    """1 - cosine of the angle: 0 same direction, 1 right angle, 2 opposite."""

    metric = "cosine"

    @classmethod
    def encode(cls, vector: Any) -> bytes:
        encoded = encoding.encode(vector)
        if not any(encoding.decode(encoded)):
            raise InvalidInput("A zero vector has no direction, so no cosine distance.")
        return encoded

    def to_operand(self, vector: bytes) -> bytes:
        # The length does not matter here, and may be beyond float16.
        numbers = encoding.decode(vector).astype("<f8")
        return encoding.encode(numbers / math.sqrt(numbers @ numbers))


class L2Distance(Distance):
    """Length of the difference."""

    metric = "l2"


class NegativeInnerProduct(Distance):
    """Inner product times -1, so that the smallest is the nearest."""

    metric = "negative inner product"


def nearest(
    queryset: QuerySet[M],
    field: str,
    vector: Any,
    *,
    distance: type[Distance] = CosineDistance,
    annotation: str = "distance",
) -> QuerySet[M]:
    """Return the queryset ordered by the distance of a field to a vector.

    Args:
        queryset: Rows to order; those without a vector are left out.
        field: Name of a field of vectors, or a lookup to one.
        vector: Array or sequence of numbers.
        distance: Which distance; that of the index, where there is one.
        annotation: Attribute of the rows that holds it.

    An approximate index looks at a few rows and only then at the filters: where
    these leave few rows, let it go on, inside `tuned`.

    Raises:
        InvalidInput: ``vector`` is none, or has no such distance.
        DimensionMismatch: The field holds vectors of another length.
    """
    # The filter first, and over a relation by an inner join: no index serves an outer one.
    reference: Combinable = F(field)
    rows: QuerySet[M] = queryset.filter(**{f"{field}__isnull": False})
    rows = rows.annotate(**{annotation: distance(reference, vector)})
    return rows.order_by(annotation, "pk")


class _ColumnType(NamedTuple):
    """How a column's distances are asked for."""

    name: str
    dimensions: int | None
    write: Callable[[bytes], str] | None  # an operand; None: as its own field writes it


#: PostgreSQL's type -> the text of an operand.
_WRITERS = {"vector": encoding.to_text, "halfvec": encoding.to_halfvec_text}


def _column_type(field: Field[Any, Any], connection: BaseDatabaseWrapper) -> _ColumnType:
    kind, dimensions = column_type(field, connection)
    if connection.vendor != "postgresql" and isinstance(field, VectorField):
        return _ColumnType(kind, dimensions, None)
    if connection.vendor != "postgresql" or kind not in _WRITERS:
        raise ConfigurationError(
            f"{field} is a column of {kind} on {connection.vendor}, which has no distances: use "
            "VectorField, or on PostgreSQL a vector field of pgvector-python."
        )
    return _ColumnType(kind, dimensions, _WRITERS[kind])


def _dimensions(expression: Any) -> int | None:
    """Return how long a vector is that was given as a value."""
    if isinstance(expression, Value) and isinstance(expression.value, bytes):
        return encoding.dimensions_of(expression.value)
    return None
