"""Finding what capture could not see: sources out of step that no change notes.

Triggers do not see a restore without them, a writer that switched them off, or
what happened while they were missing. Reconciling reads every source, compares
the pieces of its text with the stored chunks, and notes a change where they
differ; the next sync does the work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import claims, spaces
from .chunking import chunk
from .declaration import Embeddings
from .models import Space
from .sources import Keys, existing_keys, pages_of_keys, read_texts
from .statements import Statements
from .work import stored_chunks

PAGE = 500  # sources


@dataclass(slots=True)
class Reconciled:
    """What was found, in sources; those already noted are not counted again."""

    checked: int = 0
    stale: int = 0  # text and chunks differ
    orphaned: int = 0  # chunks whose row is gone


def reconcile(
    index: Embeddings, alias: str, *, progress: Callable[[int], object] | None = None
) -> Reconciled:
    """Note a change for every source that is out of step; memory stays bounded.

    Args:
        index: The declaration.
        alias: The database.
        progress: Called with the number of sources checked, page by page.
    """
    found = Reconciled()
    live = spaces.live(index, alias)
    for keys in pages_of_keys(index, alias, PAGE):
        stale = _stale(index, alias, live, _unnoted(index, alias, keys))
        claims.append(index, alias, stale)
        found.checked += len(keys)
        found.stale += len(stale)
        if progress is not None:
            progress(found.checked)
    orphans = _orphans(index, alias, live)
    claims.append(index, alias, orphans)
    found.orphaned = len(orphans)
    return found


def _unnoted(index: Embeddings, alias: str, keys: list[str]) -> list[str]:
    noted = {
        key
        for table in ("change", "failure")
        for (key,) in Statements(alias).run_in(
            f'SELECT source FROM {{{table}}} WHERE "index" = %s AND source {{among}}',
            keys,
            [index.label],
        )
    }
    return [key for key in keys if key not in noted]


def _stale(index: Embeddings, alias: str, live: list[Space], keys: list[str]) -> list[str]:
    texts = read_texts(index, alias, keys)
    # Before the first sync there is no space, and every text is out of step with nothing.
    stored = [stored_chunks(index, alias, space, keys) for space in live] or [{}]
    stale = []
    for key in keys:
        text = texts.get(key)
        wanted: dict[int, tuple[int, int, bytes]] | None = {}
        if isinstance(text, tuple):
            pieces = chunk(text, size=index.chunk_size, overlap=index.chunk_overlap)
            wanted = {
                piece.number: (piece.start, piece.end, piece.content_hash) for piece in pieces
            }
        elif text is not None:
            wanted = None  # a text that cannot be made is in step with nothing
        if any(_in_step(chunks.get(key, {})) != wanted for chunks in stored):
            stale.append(key)
    return stale


def _in_step(chunks: dict[int, tuple[int, int, int, bytes]]) -> dict[int, tuple[int, int, bytes]]:
    return {number: row[1:] for number, row in chunks.items()}


def _orphans(index: Embeddings, alias: str, live: list[Space]) -> list[str]:
    """Return the keys of chunks whose row is gone."""
    translate = Keys(index, alias)
    chunks = index.chunk_model._default_manager.using(alias).filter(space__in=live)
    sources = chunks.order_by("source_id").values_list("source_id", flat=True).distinct()
    orphans: list[str] = []
    page = list(sources[:PAGE])
    while page:
        keys = [translate.to_text(key) for key in page]
        existing = existing_keys(index, alias, keys)
        orphans += [key for key in keys if key not in existing]
        page = list(sources.filter(source_id__gt=page[-1])[:PAGE])
    return orphans
