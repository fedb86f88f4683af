"""Distances in SQL: equal to numpy's, and equal to the bit wherever computed."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from django.db import OperationalError, connection
from django.db.models import F

from django_services.exceptions import ConfigurationError, InvalidInput
from django_services.vectors import (
    CosineDistance,
    L2Distance,
    NegativeInnerProduct,
    arithmetic,
    nearest,
)
from django_services.vectors.distances import distance_sql
from tests.embeddings.stored import new_space, random_vectors, store
from tests.testapp.models import Product

QUERY = random_vectors(1, seed=7)[0] * 3
EXPECTED = {
    CosineDistance: lambda v: 1 - v @ QUERY / (np.linalg.norm(v) * np.linalg.norm(QUERY)),
    L2Distance: lambda v: np.linalg.norm(v - QUERY),
    NegativeInnerProduct: lambda v: -(v @ QUERY),
}


@pytest.fixture
def chunks(db):
    index = Product.embeddings.index
    rows = {
        Product.objects.create(description=str(n), sku=str(n)): [vector]
        for n, vector in enumerate(random_vectors(20, seed=2) * 2)
    }
    store(index, new_space(index), rows)
    return index.chunk_model.objects.all()


@pytest.mark.parametrize("distance", EXPECTED)
def test_each_distance_is_numpys(chunks, distance):
    for chunk in chunks.annotate(distance=distance("vector", QUERY)):
        expected = EXPECTED[distance](chunk.vector.astype(np.float64))
        assert chunk.distance == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("distance", EXPECTED)
def test_nearest_orders_by_the_distance(chunks, distance):
    ordered = nearest(chunks, "vector", QUERY, distance=distance)

    expected = sorted(chunks, key=lambda chunk: EXPECTED[distance](chunk.vector))
    assert list(ordered) == expected
    assert ordered.filter(distance__lt=ordered[5].distance).count() == 5


def test_a_distance_between_two_columns(chunks):
    distances = chunks.annotate(d=CosineDistance("vector", F("vector"))).values_list("d", flat=True)

    assert list(distances) == pytest.approx([0.0] * 20, abs=1e-9)


def test_null_has_no_distance(db):
    with connection.cursor() as cursor:
        cursor.execute("SELECT vector_l2_distance(NULL, %s)", [QUERY.tobytes()])
        assert cursor.fetchone() == (None,)


def test_a_zero_vector_is_farther_than_all(db):
    with connection.cursor() as cursor:
        cursor.execute("SELECT vector_cosine_distance(%s, %s)", [bytes(64), QUERY.tobytes()])
        assert cursor.fetchone() == (float("inf"),)


def test_vectors_of_two_lengths_are_an_error(db):
    with connection.cursor() as cursor, pytest.raises(OperationalError):
        cursor.execute("SELECT vector_cosine_distance(%s, %s)", [bytes(60), QUERY.tobytes()])


def test_a_vector_is_checked_where_it_is_given():
    with pytest.raises(InvalidInput):
        CosineDistance("vector", [float("nan")])


@pytest.mark.parametrize("dimensions", [1, 3, 8, 129, 256, 1536])
def test_a_row_has_the_same_distance_alone_and_among_others(dimensions):
    rows = random_vectors(300, seed=dimensions, dimensions=dimensions)
    query = random_vectors(1, seed=0, dimensions=dimensions)[0]

    together = arithmetic.cosine_distances(arithmetic.widened(rows), arithmetic.widened(query))
    alone = [arithmetic.cosine_distance(row.tobytes(), query.tobytes()) for row in rows]

    assert together.tolist() == alone


def test_another_vendor_is_refused_by_name():
    with pytest.raises(ConfigurationError, match="not oracle"):
        distance_sql("cosine", "oracle", "a", "b")


@pytest.mark.parametrize("name", ["VectorField", "HnswIndex", "tuned"])
def test_models_with_vectors_load_neither_numpy_nor_psycopg(name):
    code = (
        f"import sys; from django_services.vectors import {name};"
        "sys.exit(bool({'numpy', 'psycopg'} & set(sys.modules)))"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
