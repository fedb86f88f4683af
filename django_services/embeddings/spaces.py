"""Spaces: the versions of a declaration, of which one is active.

A declaration that changed (another model, other dimensions, another text) gets a
new space. It is built beside the active one, which goes on answering searches,
and takes over when every source that stood at its beginning has been brought in.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

from django.db import transaction
from django.db.models import Max
from django.utils import timezone

from .. import conf, embedded
from .capture import backlog
from .declaration import Embeddings
from .models import Change, ChunkChange, Space

logger = logging.getLogger(__name__)

LOG_LENGTH = 10_000  # notes of written chunks that are kept


@dataclass(frozen=True, slots=True)
class Declared:
    """What the declaration asks for now."""

    model: str
    dimensions: int
    recipe: str


def declared(index: Embeddings) -> Declared:
    """Return the space that the code and the settings ask for; no I/O."""
    from .. import openai_service  # not loaded by every process that has the app

    model, dimensions = openai_service.embedding_space(
        index.alias, index.embedding_model, index.dimensions
    )
    return Declared(model, dimensions, index.recipe())


def active(index: Embeddings, alias: str) -> Space | None:
    """Return the space that answers searches, or None before the first sync."""
    return Space.objects.using(alias).filter(index=index.label, state=Space.State.ACTIVE).first()


def live(index: Embeddings, alias: str) -> list[Space]:
    """Return the spaces that are kept in step: the active one, and one being built."""
    found = Space.objects.using(alias).filter(index=index.label)
    return list(found.exclude(state=Space.State.RETIRED).order_by("id"))


def alike(space: Space) -> list[int]:
    """Return the ids of the spaces whose vectors this one may take over.

    Equal text has an equal vector wherever model and dimensions are the same, so
    a change of the text's recipe does not pay again for what stayed.
    """
    found = Space.objects.using(space._state.db).filter(
        index=space.index, model=space.model, dimensions=space.dimensions
    )
    return list(found.values_list("id", flat=True))


def can_be_embedded(space: Space, index: Embeddings) -> bool:
    """Tell whether the alias can still make vectors of the space's model."""
    return space.model == embedded.MODEL or not conf.openai(index.alias).is_embedded


def ensure(index: Embeddings, alias: str) -> Space:
    """Return the declared space, made now where it is new.

    The first space of a declaration is active from its beginning: an incomplete
    search beats none. A retired one that is asked for again is built up from the
    vectors that it still has.
    """
    wanted = asdict(declared(index))
    spaces = live(index, alias)
    space = next((space for space in spaces if _is_declared(space, wanted)), None)
    if space is None:
        space = _begin(index, alias, wanted)
    if any(other.pk != space.pk and other.state == Space.State.BUILDING for other in spaces):
        _retire_unfinished(index, alias, space)
    return space


def built(index: Embeddings, alias: str) -> list[Space]:
    """Return the live spaces whose sources have all been brought in once."""
    return [space for space in live(index, alias) if not _is_backfilling(space, alias)]


def activate_if_built(index: Embeddings, alias: str) -> Space | None:
    """Switch to the space being built if its backfill is done; returns it then."""
    with transaction.atomic(using=alias):
        spaces = Space.objects.using(alias).filter(index=index.label)
        building = spaces.filter(state=Space.State.BUILDING).first()
        if building is None or _is_backfilling(building, alias):
            return None
        # The space that retires now is kept for the way back.
        garbage = list(spaces.filter(state=Space.State.RETIRED).values_list("pk", flat=True))
        spaces.filter(state=Space.State.ACTIVE).update(state=Space.State.RETIRED)
        building.state, building.activated_at = Space.State.ACTIVE, timezone.now()
        building.save(using=alias)
    logger.info("%s: switched to space %s of %s", index.label, building.pk, building.model)
    # Not in the transaction of the switch: nobody should wait for so much.
    for space in garbage:
        _remove_chunks(index, alias, space)
    return building


def _is_declared(space: Space, wanted: dict[str, Any]) -> bool:
    return all(getattr(space, name) == value for name, value in wanted.items())


def _begin(index: Embeddings, alias: str, wanted: dict[str, Any]) -> Space:
    with transaction.atomic(using=alias):
        space, is_new = Space.objects.using(alias).get_or_create(index=index.label, **wanted)
        if not is_new and space.state != Space.State.RETIRED:
            return space  # another process was faster
        if active(index, alias) is None:
            space.state, space.activated_at = Space.State.ACTIVE, timezone.now()
            backlog.enqueue_unnoted(index, alias)
        else:
            space.state = Space.State.BUILDING
            backlog.enqueue_all(index, alias)
        space.backfill_to = Change.objects.using(alias).aggregate(last=Max("id"))["last"] or 0
        space.save(using=alias)
    logger.info("%s: new space %s of %s", index.label, space.pk, space.model)
    return space


def trim_log(alias: str) -> None:
    """Delete old notes of written chunks, but the newest of each space.

    Who has not followed the log for so long reads the space anew.
    """
    log = ChunkChange.objects.using(alias)
    last = log.aggregate(last=Max("id"))["last"] or 0
    if last > LOG_LENGTH:
        newest = log.values("space").annotate(newest=Max("id")).values_list("newest", flat=True)
        log.filter(id__lte=last - LOG_LENGTH).exclude(id__in=list(newest)).delete()


def _is_backfilling(space: Space, alias: str) -> bool:
    backfill = Change.objects.using(alias).filter(index=space.index, id__lte=space.backfill_to)
    return backfill.exists()


def _retire_unfinished(index: Embeddings, alias: str, wanted: Space) -> None:
    """Stop building what nobody declares any more."""
    building = Space.objects.using(alias).filter(index=index.label, state=Space.State.BUILDING)
    building.exclude(pk=wanted.pk).update(state=Space.State.RETIRED)


def _remove_chunks(index: Embeddings, alias: str, space: int) -> None:
    from . import ann_index  # not loaded where nothing is removed

    ann_index.drop(index, space, alias)
    index.chunk_model._default_manager.using(alias).filter(space=space).delete()
