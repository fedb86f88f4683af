"""The table of usage."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("django_services", "0001_initial"),
    ]

    operations = [
        migrations.CreateModel(
            name="Usage",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ("at", models.DateTimeField(verbose_name="at")),
                ("alias", models.CharField(max_length=100, verbose_name="alias")),
                (
                    "model",
                    models.CharField(blank=True, default="", max_length=255, verbose_name="model"),
                ),
                ("endpoint", models.CharField(max_length=255, verbose_name="endpoint")),
                (
                    "tenant",
                    models.CharField(blank=True, default="", max_length=255, verbose_name="tenant"),
                ),
                (
                    "user",
                    models.CharField(blank=True, default="", max_length=255, verbose_name="user"),
                ),
                (
                    "feature",
                    models.CharField(
                        blank=True, default="", max_length=255, verbose_name="feature"
                    ),
                ),
                (
                    "input_tokens",
                    models.BigIntegerField(blank=True, null=True, verbose_name="input tokens"),
                ),
                (
                    "cached_tokens",
                    models.BigIntegerField(blank=True, null=True, verbose_name="cached tokens"),
                ),
                (
                    "output_tokens",
                    models.BigIntegerField(blank=True, null=True, verbose_name="output tokens"),
                ),
                ("is_estimated", models.BooleanField(default=False, verbose_name="estimated")),
                (
                    "cost",
                    models.DecimalField(
                        blank=True, decimal_places=12, max_digits=24, null=True, verbose_name="cost"
                    ),
                ),
                ("attempts", models.PositiveIntegerField(default=0, verbose_name="attempts")),
                ("outcome", models.CharField(max_length=100, verbose_name="outcome")),
                (
                    "status",
                    models.PositiveIntegerField(blank=True, null=True, verbose_name="HTTP status"),
                ),
                ("ms", models.FloatField(verbose_name="ms")),
                (
                    "request_id",
                    models.CharField(
                        blank=True, default="", max_length=255, verbose_name="request id"
                    ),
                ),
            ],
            options={
                "verbose_name": "usage",
                "verbose_name_plural": "usage",
                "default_permissions": ("view",),
                "indexes": [models.Index(fields=["at"], name="django_services_usage_at")],
            },
        ),
    ]
