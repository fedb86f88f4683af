"""Models with vectors of their own, apart from the tests' apps."""

from __future__ import annotations

from django.db import models
from django.test.utils import isolate_apps
from pgvector import django as pgvector

from django_services.vectors import HnswIndex, IvfFlatIndex, VectorField

DIMENSIONS = 8

with isolate_apps("tests.testapp"):

    class Photo(models.Model):
        """A field of ours, and its index."""

        album = models.IntegerField(default=0)
        vector = VectorField(dimensions=DIMENSIONS, null=True)

        class Meta:
            app_label = "testapp"
            indexes = [HnswIndex(fields=["vector"], name="photo_vector")]

    class Comment(models.Model):
        """Comes to the vector over a relation, which may be none."""

        photo = models.ForeignKey(Photo, models.CASCADE, null=True)

        class Meta:
            app_label = "testapp"

    class Loose(models.Model):
        """Vectors of any length: an index serves an expression."""

        vector = VectorField()

        class Meta:
            app_label = "testapp"

    class Peer(models.Model):
        """Fields of pgvector-python; on PostgreSQL only."""

        full = pgvector.VectorField(dimensions=DIMENSIONS, null=True)
        half = pgvector.HalfVectorField(dimensions=DIMENSIONS, null=True)
        loose = pgvector.VectorField(null=True)

        class Meta:
            app_label = "testapp"
            indexes = [
                HnswIndex(fields=["full"], name="peer_full", distance="l2"),
                IvfFlatIndex(fields=["half"], name="peer_half", distance="inner product", lists=1),
            ]
