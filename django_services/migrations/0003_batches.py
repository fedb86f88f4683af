"""The tables of batch jobs."""

import uuid

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("django_services", "0002_usage"),
    ]

    operations = [
        migrations.CreateModel(
            name="BatchJob",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("uuid", models.UUIDField(default=uuid.uuid4, editable=False, unique=True)),
                ("purpose", models.CharField(blank=True, default="", max_length=300)),
                ("alias", models.CharField(max_length=100)),
                ("endpoint", models.CharField(max_length=100)),
                ("model", models.CharField(max_length=255)),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("prepared", "prepared"),
                            ("uploaded", "uploaded"),
                            ("submitted", "submitted"),
                            ("fetching", "fetching"),
                            ("done", "done"),
                            ("failed", "failed"),
                            ("cancelled", "cancelled"),
                        ],
                        default="prepared",
                        max_length=16,
                    ),
                ),
                ("keeps_bodies", models.BooleanField(default=True)),
                ("tenant", models.CharField(blank=True, default="", max_length=255)),
                ("user", models.CharField(blank=True, default="", max_length=255)),
                ("feature", models.CharField(blank=True, default="", max_length=255)),
                ("input_file", models.CharField(blank=True, default="", max_length=255)),
                ("batch", models.CharField(blank=True, default="", max_length=255)),
                ("output_file", models.CharField(blank=True, default="", max_length=255)),
                ("error_file", models.CharField(blank=True, default="", max_length=255)),
                ("status", models.CharField(blank=True, default="", max_length=32)),
                ("error", models.CharField(blank=True, default="", max_length=100)),
                ("total", models.PositiveIntegerField(default=0)),
                ("completed", models.PositiveIntegerField(default=0)),
                ("failed", models.PositiveIntegerField(default=0)),
                ("input_tokens", models.BigIntegerField(blank=True, null=True)),
                ("output_tokens", models.BigIntegerField(blank=True, null=True)),
                ("fetches", models.PositiveIntegerField(default=0)),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                ("attempted_at", models.DateTimeField(blank=True, null=True)),
                ("submitted_at", models.DateTimeField(blank=True, null=True)),
                ("checked_at", models.DateTimeField(blank=True, null=True)),
                ("finished_at", models.DateTimeField(blank=True, null=True)),
                ("owner", models.CharField(blank=True, default="", max_length=32)),
                ("leased_until", models.DateTimeField(blank=True, null=True)),
                (
                    "parent",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="retries",
                        to="django_services.batchjob",
                    ),
                ),
            ],
            options={
                "default_permissions": ("view",),
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("keeps_bodies", False), ("state", "prepared")),
                        fields=("purpose",),
                        name="django_services_one_prepared",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="BatchLine",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("custom_id", models.CharField(max_length=255)),
                ("body", models.TextField(blank=True, default="")),
                ("inputs", models.PositiveIntegerField(default=1)),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("waiting", "waiting"),
                            ("succeeded", "succeeded"),
                            ("failed", "failed"),
                        ],
                        default="waiting",
                        max_length=16,
                    ),
                ),
                ("result", models.BinaryField(blank=True, null=True)),
                ("error", models.CharField(blank=True, default="", max_length=100)),
                ("is_retryable", models.BooleanField(default=False)),
                (
                    "job",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="lines",
                        to="django_services.batchjob",
                    ),
                ),
            ],
            options={
                "default_permissions": (),
                "constraints": [
                    models.UniqueConstraint(
                        fields=("custom_id", "job"), name="django_services_one_line"
                    )
                ],
            },
        ),
    ]
