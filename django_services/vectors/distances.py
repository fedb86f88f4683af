"""Distances as ORM expressions, and the rows of a queryset nearest to a vector."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F, FloatField, Func, Model, QuerySet, Value
from django.db.models.expressions import Combinable
from django.db.models.sql.compiler import SQLCompiler

from ..exceptions import ConfigurationError
from . import encoding
from .field import VectorField

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

    Args:
        expression: Field or expression of vectors.
        vector: Array, sequence of numbers, or expression.
    """

    metric: ClassVar[str]
    arity = 2
    output_field = FloatField()

    def __init__(self, expression: Any, vector: Any, **extra: Any) -> None:
        if not hasattr(vector, "resolve_expression"):
            vector = Value(encoding.encode(vector), output_field=VectorField())
        super().__init__(expression, vector, **extra)

    def as_sql(  # type: ignore[override]
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **_: Any
    ) -> tuple[str, list[Any]]:
        left, right = self.get_source_expressions()
        left_sql, left_params = compiler.compile(left)
        right_sql, right_params = compiler.compile(right)
        known = encoding.dimensions_of(right.value) if isinstance(right, Value) else None
        sql = distance_sql(self.metric, connection.vendor, left_sql, right_sql, known)
        return sql, [*left_params, *right_params]


class CosineDistance(Distance):
    """1 - cosine of the angle: 0 same direction, 1 right angle, 2 opposite."""

    metric = "cosine"


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
        field: Name of a `VectorField`, or a lookup to one.
        vector: Array or sequence of numbers.
        distance: Which distance.
        annotation: Attribute of the rows that holds it.

    Raises:
        InvalidInput: ``vector`` is none.
    """
    reference: Combinable = F(field)
    rows: QuerySet[M] = queryset.filter(**{f"{field}__isnull": False})
    rows = rows.annotate(**{annotation: distance(reference, vector)})
    return rows.order_by(annotation, "pk")
