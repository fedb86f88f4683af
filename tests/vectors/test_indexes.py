"""Index classes for Meta.indexes: pgvector's on PostgreSQL, an empty one on SQLite."""

from __future__ import annotations

import pytest
from django.contrib.postgres.operations import AddIndexConcurrently, RemoveIndexConcurrently
from django.db import connections, models
from django.db.migrations.state import ModelState, ProjectState
from django.db.migrations.writer import MigrationWriter
from django.test.utils import isolate_apps
from pgvector import django as pgvector

from django_services.exceptions import ConfigurationError
from django_services.vectors import HnswIndex, IvfFlatIndex, VectorField

from .models import Photo


def definition(name):
    with connections["postgres"].cursor() as cursor:
        cursor.execute("SELECT indexdef FROM pg_indexes WHERE indexname = %s", [name])
        return cursor.fetchone()[0].partition(" USING ")[2]


def names(alias):
    connection = connections[alias]
    with connection.cursor() as cursor:
        return set(connection.introspection.get_constraints(cursor, Photo._meta.db_table))


# On PostgreSQL --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("photo_vector", "hnsw (vector halfvec_cosine_ops) WITH (m='16', ef_construction='64')"),
        ("peer_full", "hnsw (\"full\" vector_l2_ops) WITH (m='16', ef_construction='64')"),
        ("peer_half", "ivfflat (half halfvec_ip_ops) WITH (lists='1')"),
    ],
)
def test_the_operator_class_follows_column_and_distance(postgres, name, expected):
    assert definition(name) == expected


def test_options_and_a_condition_are_those_given(postgres):
    index = HnswIndex(
        fields=["vector"],
        name="photo_few",
        m=8,
        ef_construction=32,
        condition=models.Q(album=1),
    )

    with connections["postgres"].schema_editor() as editor:
        editor.add_index(Photo, index)

    assert definition("photo_few") == (
        "hnsw (vector halfvec_cosine_ops) WITH (m='8', ef_construction='32') WHERE (album = 1)"
    )


def test_an_index_is_added_and_removed_concurrently(postgres):
    state = ProjectState()
    state.add_model(ModelState.from_model(Photo))
    index = HnswIndex(fields=["vector"], name="photo_later", distance="l2")
    add, remove = AddIndexConcurrently("photo", index), RemoveIndexConcurrently("photo", index.name)
    after = state.clone()
    add.state_forwards("testapp", after)
    connection = connections["postgres"]

    with connection.schema_editor(atomic=False) as editor:
        add.database_forwards("testapp", editor, state, after)
    added = names("postgres")
    with connection.schema_editor(atomic=False) as editor:
        remove.database_forwards("testapp", editor, after, state)

    assert {"photo_later"} == added - names("postgres")


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (VectorField(), "needs a number of dimensions, dimensions=…, and halfvec is .* 4,000"),
        (pgvector.VectorField(dimensions=2_001), "vector is indexed up to 2,000"),
        (models.IntegerField(), "column of integer, not of vectors"),
    ],
)
def test_what_cannot_be_indexed_is_refused(postgres, field, message):
    with isolate_apps("tests.testapp"):

        class Thing(models.Model):
            vector = field

            class Meta:
                app_label = "testapp"

    index = HnswIndex(fields=["vector"], name="thing_vector")

    with (
        pytest.raises(
            ConfigurationError, match=f"HnswIndex thing_vector: .*Thing.vector.*{message}"
        ),
        connections["postgres"].schema_editor() as editor,
    ):
        editor.add_index(Thing, index)


def test_a_database_without_pgvector_is_told_what_to_ask_for(postgres_connection):
    with postgres_connection.cursor() as cursor:
        cursor.execute("DROP EXTENSION IF EXISTS vector CASCADE")

    with (
        pytest.raises(ConfigurationError, match="CREATE EXTENSION vector;"),
        postgres_connection.schema_editor() as editor,
    ):
        editor.add_index(Photo, Photo._meta.indexes[0])


# On SQLite ------------------------------------------------------------------------------


def test_sqlite_has_an_empty_index_of_the_name(sqlite):
    with connections[sqlite].cursor() as cursor:
        cursor.execute("SELECT sql FROM sqlite_master WHERE name = 'photo_vector'")
        (sql,) = cursor.fetchone()

    assert sql.endswith('("vector") WHERE 0')


def test_migrations_of_the_table_run_on_sqlite(sqlite):
    with connections[sqlite].schema_editor() as editor:
        editor.alter_field(Photo, Photo._meta.get_field("album"), _renamed("album_number"))
        editor.alter_field(Photo, _renamed("album_number"), Photo._meta.get_field("album"))
    Photo._default_manager.using(sqlite).create(vector=[1.0] * 8)

    assert "photo_vector" in names(sqlite)
    with connections[sqlite].schema_editor() as editor:
        editor.remove_index(Photo, Photo._meta.indexes[0])
    assert "photo_vector" not in names(sqlite)
    with connections[sqlite].schema_editor() as editor:
        editor.add_index(Photo, Photo._meta.indexes[0])


def _renamed(name):
    field = models.IntegerField(default=0)
    field.set_attributes_from_name(name)
    field.model = Photo
    return field


# In migrations --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "written"),
    [
        (
            HnswIndex(fields=["vector"], name="a"),
            "django_services.vectors.HnswIndex(fields=['vector'], name='a')",
        ),
        (
            HnswIndex(fields=["vector"], name="a", m=32, distance="l2"),
            "django_services.vectors.HnswIndex(distance='l2', fields=['vector'], m=32, name='a')",
        ),
        (
            IvfFlatIndex(fields=["vector"], name="a", lists=1_000),
            "django_services.vectors.IvfFlatIndex(fields=['vector'], lists=1000, name='a')",
        ),
    ],
)
def test_a_migration_names_the_public_path_and_what_is_given(index, written):
    assert MigrationWriter.serialize(index) == (written, {"import django_services.vectors"})
    assert index.clone() == index


@pytest.mark.parametrize(
    "options",
    [
        {"distance": "manhattan"},
        {"fields": ["a", "b"]},
        {"fields": ["-a"]},
        {"m": "16"},
        {"m": True},
        {"m": 0},
        {"lists": 5},
    ],
    ids=str,
)
def test_what_an_index_does_not_take_is_refused(options):
    with pytest.raises(ConfigurationError, match="HnswIndex"):
        HnswIndex(**{"fields": ["vector"], "name": "a", **options})
