"""What embedding the pending sources would come to, in tokens and in dollars; writes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal

from .. import conf, openai_service
from ..openai_transport import catalogue
from ..openai_transport.tokens import count_many
from ..openai_transport.usage import Usage
from . import spaces
from .batch import SOURCES_AT_ONCE, pending, unclaimed
from .batch_results import not_to_send
from .declaration import Embeddings
from .models import Space
from .sources import pages_of_keys
from .work import calls_for

#: Texts whose tokens are counted, a few seconds' worth; of more their bytes tell.
COUNTED = 10_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one model is to do for a declaration."""

    label: str
    database: str
    model: str
    dimensions: int
    sources: int  # that have a text
    chunks: int  # to be stored
    texts: int  # to be embedded: equal ones once, and none whose vector is stored
    tokens: int | None  # None for the embedded model
    is_exact: bool  # whether all tokens were counted
    cost: Decimal | None  # US dollars; None if the price is not known
    batch_cost: Decimal | None  # the same through the Batch API


def estimate(index: Embeddings, alias: str) -> list[Estimate]:
    """Return what bringing a declaration in step would come to, of each of its spaces."""
    return [_estimate(index, alias, space, pages) for space, pages in _due(index, alias)]


class _Tokens:
    """Counts the tokens of many texts: the first ones exactly, the rest by their bytes."""

    def __init__(self, model: str) -> None:
        self.texts = 0
        self._model = model
        self._counted = self._counted_bytes = self._bytes = 0

    def add(self, texts: Sequence[str]) -> None:
        counted = texts[: max(0, COUNTED - self.texts)]
        self._counted += sum(count_many(counted, self._model))
        self._counted_bytes += sum(len(text.encode()) for text in counted)
        self._bytes += sum(len(text.encode()) for text in texts[len(counted) :])
        self.texts += len(texts)

    @property
    def is_exact(self) -> bool:
        return not self._bytes

    @property
    def total(self) -> int:
        by_bytes = self._bytes * self._counted / self._counted_bytes if self._bytes else 0
        return self._counted + round(by_bytes)


class _Count:
    """Counts what a space lacks, page by page."""

    def __init__(self, index: Embeddings, alias: str, space: Space) -> None:
        self.sources = self.chunks = self.texts = 0
        self.is_embedded = openai_service.is_embedded(index.alias, space.model)
        self.tokens = _Tokens(space.model)
        self._place = index, alias, space
        self._keys: set[str] = set()
        self._hashes: set[int] = set()

    def add(self, page: Sequence[str]) -> None:
        keys = [key for key in page if key not in self._keys]
        self._keys.update(keys)
        work = unclaimed(*self._place, keys)
        self.sources += len(keys) - len(work.without_text)
        self.chunks += sum(len(diff.missing) for diff in work.diffs)
        for call in calls_for(work):
            names = [content_hash.hex() for content_hash in call.hashes]
            known = not_to_send(*self._place, names)
            pairs = zip(call.hashes, names, call.texts, strict=True)
            new = [text for key, name, text in pairs if name not in known and self._is_new(key)]
            self.texts += len(new)
            if not self.is_embedded:
                self.tokens.add(new)

    def _is_new(self, content_hash: bytes) -> bool:
        """Tell whether no page before held the text; eight bytes of its hash are enough."""
        mark = int.from_bytes(content_hash[:8])
        is_new = mark not in self._hashes
        self._hashes.add(mark)
        return is_new


def _estimate(index: Embeddings, alias: str, space: Space, pages: Iterable[list[str]]) -> Estimate:
    count = _Count(index, alias, space)
    for page in pages:
        count.add(page)
    tokens = None if count.is_embedded else count.tokens.total
    return Estimate(
        label=index.label,
        database=alias,
        model=space.model,
        dimensions=space.dimensions,
        sources=count.sources,
        chunks=count.chunks,
        texts=count.texts,
        tokens=tokens,
        is_exact=count.tokens.is_exact,
        cost=_cost(index, space, tokens, is_batch=False),
        batch_cost=_cost(index, space, tokens, is_batch=True),
    )


def _cost(index: Embeddings, space: Space, tokens: int | None, *, is_batch: bool) -> Decimal | None:
    if tokens is None:
        return None if is_batch else Decimal(0)  # the embedded model is free, and has no batches
    usage = Usage(input_tokens=tokens, output_tokens=0)
    prices = conf.openai(index.alias).prices
    return catalogue.cost(space.model, usage, prices=prices, is_batch=is_batch)


def _due(index: Embeddings, alias: str) -> Iterator[tuple[Space, Iterator[list[str]]]]:
    """Yield each space that a sync would fill, with the keys that it would look at."""
    wanted = asdict(spaces.declared(index))
    known = Space.objects.using(alias).filter(index=index.label)
    declared = known.filter(**wanted).first()
    active = spaces.active(index, alias)
    if declared is None or declared.state == Space.State.RETIRED:
        if declared is None:
            declared = Space(index=index.label, **wanted)
            declared._state.db = alias
        yield declared, pages_of_keys(index, alias, SOURCES_AT_ONCE)
    else:
        yield declared, pending(index, alias)
    if active is None or active == declared:
        return
    if spaces.can_be_embedded(active, index):
        yield active, pending(index, alias)
