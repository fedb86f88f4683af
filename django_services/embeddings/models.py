"""The tables of stored embeddings.

They live in the source's own database, so that a change is noted in the
writer's own transaction. `Chunk` is the abstract base of the models that
`declaration.Embeddings` adds to the declaring app; its columns stand in users'
migrations and are frozen.
"""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from ..vectors import VectorField

LABEL_LENGTH = 255  # "app_label.ModelName.attribute"
HASH_LENGTH = 32  # bytes of SHA-256

#: PostgreSQL's channel on which a transaction that noted changes says so.
CHANNEL = "django_services_changes"


class Space(models.Model):
    """One version of a declaration: which model made the vectors, of which text."""

    class State(models.TextChoices):
        BUILDING = "building", _("building")
        ACTIVE = "active", _("active")
        RETIRED = "retired", _("retired")

    index = models.CharField(max_length=LABEL_LENGTH)
    model = models.CharField(max_length=255)
    dimensions = models.PositiveIntegerField()
    recipe = models.CharField(max_length=64)
    state = models.CharField(max_length=16, choices=State, default=State.BUILDING)
    #: The last change of the backfill: the space is built when none up to it is left.
    backfill_to = models.BigIntegerField(default=0)
    created_at = models.DateTimeField(auto_now_add=True)
    activated_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        app_label = "django_services"
        constraints = (
            models.UniqueConstraint(
                fields=["index"], condition=Q(state="active"), name="django_services_one_active"
            ),
            models.UniqueConstraint(
                fields=["index", "model", "dimensions", "recipe"], name="django_services_one_space"
            ),
        )

    def __str__(self) -> str:
        return f"{self.index}: {self.model}, {self.dimensions} dimensions, {self.state}"


class Change(models.Model):
    """A note that a source was written; appended by trigger, never updated."""

    id = models.BigAutoField(primary_key=True)
    index = models.CharField(max_length=LABEL_LENGTH)
    source = models.TextField()

    class Meta:
        app_label = "django_services"

    def __str__(self) -> str:
        return f"{self.index} {self.source}"


class Lease(models.Model):
    """Who works on a source, and until when by the database's clock."""

    index = models.CharField(max_length=LABEL_LENGTH)
    source = models.TextField()
    owner = models.CharField(max_length=32)
    expires_at = models.FloatField()  # seconds since the epoch

    class Meta:
        app_label = "django_services"
        constraints = (
            models.UniqueConstraint(fields=["index", "source"], name="django_services_one_lease"),
        )
        # Not db_index, which makes a second index for LIKE on PostgreSQL.
        indexes = (models.Index(fields=["owner"], name="django_services_lease_owner"),)

    def __str__(self) -> str:
        return f"{self.index} {self.source} until {self.expires_at}"


class Failure(models.Model):
    """A source that could not be embedded: how often, why, and when next."""

    index = models.CharField(max_length=LABEL_LENGTH)
    source = models.TextField()
    attempts = models.PositiveIntegerField(default=0)
    retry_at = models.FloatField()  # seconds since the epoch
    set_aside = models.BooleanField(default=False)
    error = models.CharField(max_length=100)  # the error's class
    message = models.TextField()

    class Meta:
        app_label = "django_services"
        constraints = (
            models.UniqueConstraint(fields=["index", "source"], name="django_services_one_failure"),
        )

    def __str__(self) -> str:
        return f"{self.index} {self.source}: {self.error} after {self.attempts} attempts"


class ChunkChange(models.Model):
    """A note that a chunk was written; by trigger on SQLite, for the cached matrix.

    The log only grows at its end, and a rollback takes back its end: so the
    random token of the newest row stands for all that came before it.
    """

    id = models.BigAutoField(primary_key=True)
    space = models.BigIntegerField()
    chunk = models.BigIntegerField()
    token = models.BinaryField(max_length=8)

    class Meta:
        app_label = "django_services"
        indexes = (models.Index(fields=["space", "id"], name="django_services_chunk_log"),)

    def __str__(self) -> str:
        return f"chunk {self.chunk} of space {self.space}"


class Chunk(models.Model):
    """A piece of a source's text and its vector.

    ``start`` and ``end`` are character offsets in the source's text. The vector
    is that of ``context`` and ``text`` together, and ``content_hash`` theirs.
    """

    id = models.BigAutoField(primary_key=True)
    space = models.ForeignKey(
        Space, models.DO_NOTHING, db_constraint=False, db_index=False, related_name="+"
    )
    number = models.PositiveIntegerField()
    start = models.PositiveIntegerField()
    end = models.PositiveIntegerField()
    text = models.TextField()
    context = models.TextField(blank=True, default="")
    content_hash = models.BinaryField(max_length=HASH_LENGTH)
    vector = VectorField()

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return f"chunk {self.number} of {self.source_id}"  # type: ignore[attr-defined]
