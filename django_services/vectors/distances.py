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
        operator = OPERATORS.get((connection.vendor, self.metric))
        if operator is None:
            raise ConfigurationError(
                f"{type(self).__name__} needs PostgreSQL or SQLite, not {connection.vendor}."
            )
        operands: list[str] = []
        params: list[Any] = []
        for source in self.get_source_expressions():
            sql, source_params = compiler.compile(source)
            operands.append(self._cast(sql, connection.vendor))
            params += source_params
        return operator.format(*operands), params

    def _cast(self, operand: str, vendor: str) -> str:
        # An index on one number of dimensions serves only the expression that names it.
        right = self.get_source_expressions()[1]
        if vendor not in CASTS or not isinstance(right, Value):
            return operand
        dimensions = encoding.dimensions_of(right.value)
        return CASTS[vendor].format(operand=operand, dimensions=dimensions)


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
