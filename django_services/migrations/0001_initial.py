"""The tables of stored embeddings; on PostgreSQL also the extension for vectors."""

import django.db.models.deletion
from django.db import migrations, models

import django_services.vectors
from django_services.vectors.extension import CreateVectorExtension


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        CreateVectorExtension(),
        migrations.CreateModel(
            name="Change",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("index", models.CharField(max_length=255)),
                ("source", models.TextField()),
            ],
        ),
        migrations.CreateModel(
            name="Document",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("name", models.CharField(max_length=500, unique=True, verbose_name="name")),
                ("title", models.CharField(blank=True, max_length=500, verbose_name="title")),
                ("text", models.TextField(verbose_name="text")),
                ("metadata", models.JSONField(blank=True, default=dict, verbose_name="metadata")),
                ("added_at", models.DateTimeField(auto_now_add=True, verbose_name="added at")),
                ("changed_at", models.DateTimeField(auto_now=True, verbose_name="changed at")),
            ],
            options={
                "verbose_name": "document",
                "verbose_name_plural": "documents",
                "ordering": ("name",),
            },
        ),
        migrations.CreateModel(
            name="ChunkChange",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("space", models.BigIntegerField()),
                ("chunk", models.BigIntegerField()),
                ("token", models.BinaryField(max_length=8)),
            ],
            options={
                "indexes": [models.Index(fields=["space", "id"], name="django_services_chunk_log")],
            },
        ),
        migrations.CreateModel(
            name="Failure",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("index", models.CharField(max_length=255)),
                ("source", models.TextField()),
                ("attempts", models.PositiveIntegerField(default=0)),
                ("retry_at", models.FloatField()),
                ("set_aside", models.BooleanField(default=False)),
                ("error", models.CharField(max_length=100)),
                ("message", models.TextField()),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("index", "source"), name="django_services_one_failure"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="Lease",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("index", models.CharField(max_length=255)),
                ("source", models.TextField()),
                ("owner", models.CharField(max_length=32)),
                ("expires_at", models.FloatField()),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("index", "source"), name="django_services_one_lease"
                    )
                ],
                "indexes": [models.Index(fields=["owner"], name="django_services_lease_owner")],
            },
        ),
        migrations.CreateModel(
            name="Space",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("index", models.CharField(max_length=255)),
                ("model", models.CharField(max_length=255)),
                ("dimensions", models.PositiveIntegerField()),
                ("recipe", models.CharField(max_length=64)),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("building", "building"),
                            ("active", "active"),
                            ("retired", "retired"),
                        ],
                        default="building",
                        max_length=16,
                    ),
                ),
                ("backfill_to", models.BigIntegerField(default=0)),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                ("activated_at", models.DateTimeField(blank=True, null=True)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("state", "active")),
                        fields=("index",),
                        name="django_services_one_active",
                    ),
                    models.UniqueConstraint(
                        fields=("index", "model", "dimensions", "recipe"),
                        name="django_services_one_space",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="DocumentEmbeddingsChunk",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("number", models.PositiveIntegerField()),
                ("start", models.PositiveIntegerField()),
                ("end", models.PositiveIntegerField()),
                ("text", models.TextField()),
                ("context", models.TextField(blank=True, default="")),
                ("content_hash", models.BinaryField(max_length=32)),
                ("vector", django_services.vectors.VectorField()),
                (
                    "source",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        related_name="+",
                        related_query_name="embeddings_chunk",
                        to="django_services.document",
                    ),
                ),
                (
                    "space",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        related_name="+",
                        to="django_services.space",
                    ),
                ),
            ],
            options={
                "default_permissions": (),
                "indexes": [
                    models.Index(
                        fields=["space", "content_hash"], name="django_serv_space_i_555285_idx"
                    )
                ],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("source", "space", "number"),
                        name="django_services_documentembeddingschunk_1a520016_uniq",
                    )
                ],
            },
        ),
    ]
