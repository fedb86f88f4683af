"""What happens to changes once they are committed: ``EMBED_ON_COMMIT``.

``inline`` embeds a few sources at the end of the request that wrote them,
``task`` hands them to a worker through Django's Tasks, ``off`` leaves them to
``manage.py embeddings sync``. A remote API is never called inside a request
unless the project says so.
"""

from __future__ import annotations

import logging

from django.core.cache import caches
from django.db import DatabaseError

from .. import conf
from ..exceptions import ConfigurationError, ServiceError
from .declaration import indexes_on
from .models import Change
from .sync import sync_pending

logger = logging.getLogger(__name__)

_DEBOUNCE = 60  # seconds that one task may wait in the queue before another is added


def work_on_changes(alias: str) -> None:
    """Do with a database's changes what the settings say."""
    chosen = mode(alias)
    if chosen == "inline":
        embed_inline(alias)
    elif chosen == "task":
        enqueue_task(alias)


def mode(alias: str) -> str:
    """Return what happens to a database's changes after a commit.

    Without a setting: ``inline`` where the embedded model answers, which costs a
    fraction of a millisecond a text, ``task`` where tasks run elsewhere, else ``off``.
    """
    chosen = conf.embeddings().on_commit
    if chosen is not None:
        return chosen
    try:
        services = {conf.openai(index.alias).is_embedded for index in indexes_on(alias)}
    except ConfigurationError:
        return "off"
    if services == {True}:
        return "inline"
    from .tasks import run_elsewhere

    return "task" if services and run_elsewhere() else "off"


def embed_inline(alias: str) -> None:
    """Embed up to ``INLINE_LIMIT`` pending sources; the writer never sees an error of it."""
    limit = conf.embeddings().inline_limit
    try:
        sync_pending(alias, limit=limit)
        left = Change.objects.using(alias).exists()
    except (ServiceError, DatabaseError) as error:
        logger.warning(
            "The write is saved, its embeddings are pending (%s). "
            "Once that is mended, run: manage.py embeddings sync",
            type(error).__name__,
        )
        return
    if left:
        logger.info("More than %s sources are pending: run manage.py embeddings sync", limit)


def enqueue_task(alias: str) -> None:
    """Hand a database's changes to a worker; one waiting task serves many commits."""
    from .tasks import embed_changes

    if caches[conf.embeddings().query_cache].add(debounce_key(alias), 1, timeout=_DEBOUNCE):
        embed_changes.enqueue(alias)


def debounce_key(alias: str) -> str:
    return f"django_services:embed:{alias}"
