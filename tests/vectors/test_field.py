"""The vector field: how vectors are written, read and refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from django.core import serializers
from django.db import connection, models

from django_services.exceptions import ConfigurationError, DimensionMismatch, InvalidInput
from django_services.vectors import VectorField, encoding
from tests.embeddings.stored import new_space, store
from tests.testapp.models import Product

VALUES = [0.25, -1.5, 3e-8]


@pytest.fixture
def chunk(db):
    product = Product.objects.create(description="d", sku="s")
    index = Product.embeddings.index
    return store(index, new_space(index, dimensions=3), {product: [VALUES]})[0]


def test_a_stored_vector_comes_back_as_float32(chunk):
    stored = type(chunk).objects.get(pk=chunk.pk).vector

    assert stored.dtype == np.dtype("<f4")
    assert stored.tolist() == np.array(VALUES, dtype="<f4").tolist()


def test_sqlite_stores_little_endian_float32(chunk):
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT vector FROM {chunk._meta.db_table}")
        assert cursor.fetchone()[0] == np.array(VALUES, dtype="<f4").tobytes()


def test_dumped_vectors_load_again(chunk):
    dumped = serializers.serialize("json", [chunk])
    (loaded,) = serializers.deserialize("json", dumped)

    assert json.loads(json.loads(dumped)[0]["fields"]["vector"]) == pytest.approx(VALUES)
    assert loaded.object.vector.tobytes() == encoding.encode(VALUES)


@pytest.mark.parametrize(
    "value", [VALUES, tuple(VALUES), np.array(VALUES), encoding.encode(VALUES)]
)
def test_vectors_may_be_given_in_any_form(value):
    assert VectorField().get_prep_value(value) == encoding.encode(VALUES)


@pytest.mark.parametrize(
    "value",
    [[], [[1.0]], ["x"], "x", "[1, oops]", 5, b"123", [float("nan")], [float("inf")], [1e39]],
    ids=str,
)
def test_what_is_no_vector_is_refused(value):
    with pytest.raises(InvalidInput):
        VectorField().get_prep_value(value)


def test_another_length_is_refused_with_both():
    with pytest.raises(DimensionMismatch, match="has 3 dimensions, 2 are wanted"):
        VectorField(dimensions=2).get_prep_value(VALUES)


@pytest.mark.parametrize("dimensions", [0, -1, 4_001, True, "5", 2.0])
def test_dimensions_must_be_indexable(dimensions):
    with pytest.raises(ConfigurationError, match="from 1 to 4,000"):
        VectorField(dimensions=dimensions)


@pytest.mark.parametrize("options", [{}, {"dimensions": 8}, {"editable": True}, {"null": True}])
def test_the_field_deconstructs_to_its_public_path(options):
    _, path, args, found = VectorField(**options).deconstruct()

    assert (path, args, found) == ("django_services.vectors.VectorField", [], options)


@pytest.mark.parametrize(
    ("vendor", "dimensions", "expected"),
    [("sqlite", 8, "BLOB"), ("postgresql", None, "halfvec"), ("postgresql", 8, "halfvec(8)")],
)
def test_the_column_type_follows_the_vendor(vendor, dimensions, expected):
    class Connection:
        pass

    fake = Connection()
    fake.vendor = vendor

    assert VectorField(dimensions=dimensions).db_type(fake) == expected


def test_postgresql_gets_text_that_brings_every_float16_back():
    class Connection:
        vendor = "postgresql"

    vector = np.random.default_rng(0).normal(size=50).astype("<f2").astype("<f4")

    text = VectorField().get_db_prep_value(vector, Connection())

    read = VectorField().from_db_value(text).astype("<f2")
    assert read.astype("<f4").tobytes() == vector.tobytes()


def test_none_stays_none():
    field = VectorField(null=True)

    assert field.get_prep_value(None) is None
    assert field.from_db_value(None) is None
    assert field.to_python(None) is None


def test_expressions_pass_through():
    expression = models.F("vector")

    assert VectorField().get_prep_value(expression) is expression


# Many vectors at once -------------------------------------------------------------------


def test_rows_are_encoded_as_each_of_them_is():
    rows = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)

    assert encoding.encode_rows(list(rows)) == [encoding.encode(row) for row in rows]
    assert {type(row) for row in encoding.encode_rows(list(rows))} == {bytes}


def test_no_rows_are_no_vectors():
    assert encoding.encode_rows([]) == []


def test_rows_of_several_lengths_are_encoded_each():
    assert encoding.encode_rows([[1.0], [1.0, 2.0]]) == [
        encoding.encode([1.0]),
        encoding.encode([1.0, 2.0]),
    ]


@pytest.mark.parametrize("bad", [[1.0, np.nan], [1.0, np.inf]])
def test_a_row_that_is_not_finite_is_refused(bad):
    with pytest.raises(InvalidInput, match="NaN nor infinity"):
        encoding.encode_rows([[1.0, 2.0], bad])


def test_rows_of_another_length_are_refused():
    with pytest.raises(DimensionMismatch, match="3 are wanted"):
        encoding.encode_rows([[1.0, 2.0]], dimensions=3)
