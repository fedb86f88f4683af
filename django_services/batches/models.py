"""The tables of batch jobs: what was sent, how far it is, and what came back."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

if TYPE_CHECKING:
    import numpy as np

EMBEDDINGS = "/v1/embeddings"


class BatchJob(models.Model):
    """One batch at OpenAI, from the first note of it to its last result.

    Its state says what is done for certain. ``attempted_at`` says that the next step
    may be done too, by a process that did not live to note it.
    """

    class State(models.TextChoices):
        PREPARED = "prepared", _("prepared")  # its lines stand here
        UPLOADED = "uploaded", _("uploaded")  # and in a file at OpenAI
        SUBMITTED = "submitted", _("submitted")  # OpenAI works on it
        FETCHING = "fetching", _("fetching")  # OpenAI has ended
        DONE = "done", _("done")
        FAILED = "failed", _("failed")  # it was refused as a whole
        CANCELLED = "cancelled", _("cancelled")

    FINISHED = (State.DONE, State.FAILED, State.CANCELLED)

    id = models.BigAutoField(primary_key=True)
    #: Stands in the batch's metadata and in the name of its file.
    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    #: What it is for, in the caller's words, by which he finds it.
    purpose = models.CharField(max_length=300, blank=True, default="")
    alias = models.CharField(max_length=100)
    endpoint = models.CharField(max_length=100)
    model = models.CharField(max_length=255)
    state = models.CharField(max_length=16, choices=State, default=State.PREPARED)
    #: Whether the requests stand in the lines. Else only who made them can do so again,
    #: and of one purpose one job is filled at a time, so that none is sent twice.
    keeps_bodies = models.BooleanField(default=True)
    parent = models.ForeignKey(
        "self", models.SET_NULL, null=True, blank=True, related_name="retries"
    )

    tenant = models.CharField(max_length=255, blank=True, default="")
    user = models.CharField(max_length=255, blank=True, default="")
    feature = models.CharField(max_length=255, blank=True, default="")

    input_file = models.CharField(max_length=255, blank=True, default="")
    batch = models.CharField(max_length=255, blank=True, default="")
    output_file = models.CharField(max_length=255, blank=True, default="")
    error_file = models.CharField(max_length=255, blank=True, default="")
    status = models.CharField(max_length=32, blank=True, default="")  # OpenAI's word
    error = models.CharField(max_length=100, blank=True, default="")  # a short code

    total = models.PositiveIntegerField(default=0)  # lines
    completed = models.PositiveIntegerField(default=0)  # lines
    failed = models.PositiveIntegerField(default=0)  # lines
    input_tokens = models.BigIntegerField(null=True, blank=True)
    output_tokens = models.BigIntegerField(null=True, blank=True)
    fetches = models.PositiveIntegerField(default=0)  # that brought fewer lines than told

    created_at = models.DateTimeField(auto_now_add=True)
    attempted_at = models.DateTimeField(null=True, blank=True)
    submitted_at = models.DateTimeField(null=True, blank=True)
    checked_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    owner = models.CharField(max_length=32, blank=True, default="")
    leased_until = models.DateTimeField(null=True, blank=True)

    class Meta:
        app_label = "django_services"
        default_permissions = ("view",)
        constraints = (
            models.UniqueConstraint(
                fields=["purpose"],
                condition=Q(state="prepared", keeps_bodies=False),
                name="django_services_one_prepared",
            ),
        )

    def __str__(self) -> str:
        return f"{self.uuid}: {self.total} lines for {self.model}, {self.state}"

    @property
    def is_finished(self) -> bool:
        return self.state in self.FINISHED

    @property
    def database(self) -> str:
        return str(self._state.db)


class BatchLine(models.Model):
    """One request of a job, and what came back for it."""

    class State(models.TextChoices):
        WAITING = "waiting", _("waiting")
        SUCCEEDED = "succeeded", _("succeeded")
        FAILED = "failed", _("failed")

    id = models.BigAutoField(primary_key=True)
    job = models.ForeignKey(BatchJob, models.CASCADE, related_name="lines")
    custom_id = models.CharField(max_length=255)
    #: The request as JSON, until it has succeeded; a text, since jsonb refuses NUL.
    body = models.TextField(blank=True, default="")
    inputs = models.PositiveIntegerField(default=1)  # texts to embed
    state = models.CharField(max_length=16, choices=State, default=State.WAITING)
    result = models.BinaryField(null=True, blank=True)
    error = models.CharField(max_length=100, blank=True, default="")
    is_retryable = models.BooleanField(default=False)

    class Meta:
        app_label = "django_services"
        default_permissions = ()
        constraints = (
            # The id first: it is looked for in many jobs at once.
            models.UniqueConstraint(fields=["custom_id", "job"], name="django_services_one_line"),
        )

    def __str__(self) -> str:
        return f"{self.custom_id}: {self.state}"

    @property
    def answer(self) -> Any:
        """The decoded body of the answer; of embeddings see `vectors`."""
        return None if self.result is None else json.loads(bytes(self.result))

    @property
    def vectors(self) -> np.ndarray:
        """``float32`` array of shape ``(inputs, dimensions)``, rows of L2 norm 1."""
        import numpy as np

        return np.frombuffer(bytes(self.result or b""), "<f4").reshape(self.inputs, -1)
