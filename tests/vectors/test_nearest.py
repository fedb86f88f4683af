"""The nearest rows of any model with vectors: equal to brute force, and by its index."""

from __future__ import annotations

import numpy as np
import pytest
from django.db import connection, connections, transaction
from django.db.models import F, Q

from django_services.exceptions import ConfigurationError, DimensionMismatch, InvalidInput
from django_services.vectors import (
    CosineDistance,
    L2Distance,
    NegativeInnerProduct,
    nearest,
    tuned,
)
from tests.embeddings.stored import random_vectors

from .models import DIMENSIONS, Comment, Loose, Peer, Photo

VECTORS = random_vectors(40, seed=2, dimensions=DIMENSIONS) * 2
QUERY = random_vectors(1, seed=7, dimensions=DIMENSIONS)[0] * 3
EXPECTED = {
    CosineDistance: lambda v: 1 - v @ QUERY / (np.linalg.norm(v) * np.linalg.norm(QUERY)),
    L2Distance: lambda v: np.linalg.norm(v - QUERY),
    NegativeInnerProduct: lambda v: -(v @ QUERY),
}


@pytest.fixture
def photos(alias):
    """As many photos as vectors, and one without."""
    objects = Photo._default_manager.using(alias)
    objects.bulk_create(Photo(album=n % 10, vector=vector) for n, vector in enumerate(VECTORS))
    objects.create(vector=None)
    return objects.order_by("pk")


def plan(rows):
    """Return how PostgreSQL gets the rows, where sorting and reading all cost dearly."""
    with transaction.atomic(using=rows.db), connections[rows.db].cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")
        return rows.explain()


# The same on both databases -------------------------------------------------------------


@pytest.mark.parametrize("distance", EXPECTED)
def test_nearest_is_brute_force(photos, distance):
    found = nearest(photos, "vector", QUERY, distance=distance)

    stored = photos.filter(vector__isnull=False)
    expected = sorted(stored, key=lambda photo: EXPECTED[distance](photo.vector))
    assert list(found) == expected
    assert [photo.distance for photo in found] == pytest.approx(
        [EXPECTED[distance](photo.vector) for photo in expected], abs=0.01
    )


def test_filters_before_and_after_are_the_same(photos):
    before = nearest(photos.filter(album=3), "vector", QUERY)
    after = nearest(photos, "vector", QUERY).filter(album=3)

    assert list(before) == list(after)
    assert len(before) == 4


def test_a_vector_over_a_relation(photos, alias):
    Comment._default_manager.using(alias).bulk_create(
        [Comment(photo=photo) for photo in photos[:5]] + [Comment(photo=None)]
    )

    found = nearest(Comment._default_manager.using(alias), "photo__vector", QUERY)

    expected = list(nearest(photos.filter(pk__in=photos[:5].values("pk")), "vector", QUERY))
    assert [comment.photo for comment in found] == expected
    assert "INNER JOIN" in str(found.query)
    assert "OUTER JOIN" not in str(found.query)


def test_the_inner_join_holds_after_an_outer_one(photos, alias):
    comments = Comment._default_manager.using(alias)
    outer = comments.filter(Q(photo__album=1) | Q(photo=None)).annotate(album=F("photo__album"))

    found = nearest(outer, "photo__vector", QUERY)

    assert list(found) == []
    assert "OUTER JOIN" not in str(found.query)


def test_vectors_of_a_field_without_dimensions(alias):
    objects = Loose._default_manager.using(alias)
    objects.bulk_create(Loose(vector=vector) for vector in VECTORS)

    nearest_one = nearest(objects.all(), "vector", QUERY).first()

    assert nearest_one.distance == pytest.approx(
        min(EXPECTED[CosineDistance](vector) for vector in VECTORS), abs=1e-3
    )


def test_a_distance_between_two_columns(photos):
    distances = photos.filter(vector__isnull=False).annotate(
        d=CosineDistance("vector", F("vector"))
    )

    assert [photo.d for photo in distances] == pytest.approx([0.0] * 40, abs=1e-6)


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_the_length_of_the_query_does_not_matter_to_cosine(photos, scale):
    found = nearest(photos, "vector", QUERY.astype("f8") * scale)

    assert list(found) == list(nearest(photos, "vector", QUERY))


def test_a_row_changes_its_vector(photos):
    photo = photos.first()
    photo.vector = QUERY
    photo.save()

    assert nearest(photos, "vector", QUERY).first() == photo
    assert photos.first().vector == pytest.approx(QUERY, rel=1e-3)


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        ([0.0] * DIMENSIONS, "zero vector"),
        ([float("nan")] * DIMENSIONS, "NaN"),
        ([], "one row of numbers"),
        ("text", "not a str"),
        (None, "one row of numbers"),
    ],
)
def test_what_has_no_distance_is_refused(vector, message):
    with pytest.raises(InvalidInput, match=message):
        nearest(Photo._default_manager.all(), "vector", vector)


def test_zero_has_a_length():
    nearest(Photo._default_manager.all(), "vector", [0.0] * DIMENSIONS, distance=L2Distance)


def test_another_length_is_refused_with_both():
    with pytest.raises(
        DimensionMismatch, match=r"Photo.vector holds vectors of 8 .* this one has 3"
    ):
        nearest(Photo._default_manager.all(), "vector", [1.0, 2.0, 3.0])
    with pytest.raises(DimensionMismatch, match=r"Peer.full holds vectors of 8 .* this one has 3"):
        nearest(Peer._default_manager.all(), "full", [1.0, 2.0, 3.0])
    with pytest.raises(DimensionMismatch):
        nearest(Comment._default_manager.all(), "photo__vector", [1.0, 2.0, 3.0])


def test_a_field_of_no_vectors_is_refused(alias):
    with pytest.raises(ConfigurationError, match=r"Photo.album is a column of integer on"):
        list(nearest(Photo._default_manager.using(alias), "album", QUERY))


def test_sqlite_knows_only_our_field(db):
    with pytest.raises(ConfigurationError, match=r"Peer.full is a column of vector on sqlite"):
        list(nearest(Peer._default_manager.all(), "full", QUERY))


# By the index, on PostgreSQL ------------------------------------------------------------


@pytest.fixture
def peers(postgres):
    objects = Peer._default_manager.using(postgres)
    objects.bulk_create(Peer(full=vector, half=vector, loose=vector) for vector in VECTORS)
    return objects.all()


@pytest.mark.parametrize(
    ("field", "distance", "index"),
    [
        ("full", L2Distance, "peer_full"),
        ("half", NegativeInnerProduct, "peer_half"),
        ("loose", CosineDistance, "peer_loose"),
    ],
)
def test_the_index_of_a_field_of_pgvector_python_serves(peers, field, distance, index):
    with connections[peers.db].cursor() as cursor:
        cursor.execute(
            "CREATE INDEX peer_loose ON testapp_peer"
            f" USING hnsw ((loose::vector({DIMENSIONS})) vector_cosine_ops)"
        )

    found = nearest(peers, field, QUERY, distance=distance)

    expected = sorted(VECTORS, key=EXPECTED[distance])
    assert f"Index Scan using {index}" in plan(found[:5])
    for row, vector in zip(found, expected, strict=True):
        assert np.asarray(row.full) == pytest.approx(vector)


def test_a_query_for_full_precision_keeps_it(peers):
    peers.filter(pk=peers[0].pk).update(full=QUERY)

    assert nearest(peers, "full", QUERY, distance=L2Distance)[0].distance == 0


def test_the_index_of_our_field_serves(postgres):
    photos = Photo._default_manager.using(postgres)
    photos.bulk_create(Photo(album=n % 10, vector=vector) for n, vector in enumerate(VECTORS))

    found = nearest(photos.filter(album=3), "vector", QUERY)[:5]

    assert "Index Scan using photo_vector" in plan(found)


def test_the_index_serves_over_a_relation(postgres):
    photos = Photo._default_manager.using(postgres)
    photos.bulk_create(Photo(vector=vector) for vector in VECTORS)
    comments = Comment._default_manager.using(postgres)
    comments.bulk_create(Comment(photo=photo) for photo in photos.all())

    found = nearest(comments, "photo__vector", QUERY)[:5]

    assert "Index Scan using photo_vector" in plan(found)


# Tuning ---------------------------------------------------------------------------------


def setting(alias, name):
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT NULL::vector <-> NULL::vector")
        cursor.execute(f"SHOW {name}")
        return cursor.fetchone()[0]


def test_a_selective_filter_finds_enough_rows_when_tuned(postgres):
    near = QUERY + random_vectors(200, seed=3, dimensions=DIMENSIONS) / 100
    far = -QUERY + random_vectors(20, seed=4, dimensions=DIMENSIONS) / 100
    photos = Photo._default_manager.using(postgres)
    photos.bulk_create([Photo(vector=vector) for vector in near])
    photos.bulk_create([Photo(album=1, vector=vector) for vector in far])
    found = nearest(photos.filter(album=1), "vector", QUERY)

    with tuned(postgres), connections[postgres].cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")
        with tuned(postgres, iterative_scan="off"):
            few = len(found.all()[:10])
        enough = len(found.all()[:10])

    assert (few, enough) == (0, 10)


def test_settings_hold_in_the_block_only(postgres):
    with transaction.atomic(using=postgres):
        with tuned(postgres, ef_search=200, max_scan_tuples=50):
            inside = setting(postgres, "hnsw.ef_search"), setting(postgres, "hnsw.max_scan_tuples")
            scan = setting(postgres, "hnsw.iterative_scan")
        outside = setting(postgres, "hnsw.ef_search")

    assert (inside, scan, outside) == (("200", "50"), "relaxed_order", "40")


def test_settings_end_with_an_error(postgres):
    with transaction.atomic(using=postgres):
        with pytest.raises(ZeroDivisionError), tuned(postgres, ef_search=200):
            raise ZeroDivisionError

        assert setting(postgres, "hnsw.ef_search") == "40"


def test_sqlite_has_nothing_to_tune(db, django_assert_num_queries):
    with django_assert_num_queries(0), tuned(connection.alias, ef_search=200):
        pass


@pytest.mark.parametrize(
    "options",
    [
        {"ef_search": 0},
        {"ef_search": 1_001},
        {"ef_search": True},
        {"ef_search": "5"},
        {"max_scan_tuples": -1},
        {"iterative_scan": "on"},
    ],
    ids=str,
)
def test_what_pgvector_does_not_take_is_refused(options):
    (name,) = options
    with pytest.raises(InvalidInput, match=f"^{name}="), tuned(**options):
        pass
