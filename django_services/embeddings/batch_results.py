"""What batches at OpenAI have brought, or will bring, for the texts of a declaration.

Vectors are found by their text's hash, so whatever became of the sources meanwhile,
a sync takes the right ones; a text that no source has any more is simply not asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

from django.db import connections
from django.db.models import Q, QuerySet

from .. import embedded
from ..batches.models import BatchJob, BatchLine
from .declaration import Embeddings
from .models import Space
from .statements import Statements
from .storage import FORMS

_ITEM_SIZE = 4  # bytes of the float32 numbers that a job keeps


def purpose(index: Embeddings, space: Space) -> str:
    """Return what the jobs are for: vectors of a declaration, of one length."""
    return f"{index.label} {space.dimensions}"


def jobs_of(index: Embeddings, alias: str, space: Space) -> QuerySet[BatchJob]:
    """Return the jobs whose vectors a space can take."""
    return BatchJob.objects.using(alias).filter(
        purpose=purpose(index, space), alias=index.alias, model=space.model
    )


def fetched(
    index: Embeddings, alias: str, space: Space, hashes: Sequence[bytes]
) -> dict[bytes, bytes]:
    """Return the vectors that batches have brought of these texts, as they are written."""
    if space.model == embedded.MODEL or not hashes:
        return {}
    jobs = list(jobs_of(index, alias, space).values_list("pk", flat=True))
    if not jobs:
        return {}
    lines = Statements(alias)
    table = lines.connection.ops.quote_name(BatchLine._meta.db_table)
    found = lines.run_in(
        f"SELECT custom_id, result FROM {table} WHERE state = %s "
        f"AND job_id IN ({', '.join(['%s'] * len(jobs))}) AND custom_id {{among}}",
        [content_hash.hex() for content_hash in hashes],
        [BatchLine.State.SUCCEEDED.value, *jobs],
    )
    return _encoded(alias, {bytes.fromhex(name): bytes(result) for name, result in found}, space)


def not_to_send(index: Embeddings, alias: str, space: Space, names: Sequence[str]) -> set[str]:
    """Return those of the lines' names that are under way, or were refused for good."""
    jobs = jobs_of(index, alias, space)
    state = BatchLine.State
    lines = BatchLine.objects.using(alias).filter(
        Q(state=state.WAITING) | Q(state=state.FAILED, is_retryable=False), job__in=jobs
    )
    if not jobs.exists():
        return set()
    return set(lines.filter(custom_id__in=names).values_list("custom_id", flat=True))


def _encoded(alias: str, found: dict[bytes, bytes], space: Space) -> dict[bytes, bytes]:
    import numpy as np

    size = space.dimensions * _ITEM_SIZE
    usable = {key: np.frombuffer(row, "<f4") for key, row in found.items() if len(row) == size}
    encode = FORMS[connections[alias].vendor].encode
    return dict(zip(usable, encode(list(usable.values())), strict=True))
