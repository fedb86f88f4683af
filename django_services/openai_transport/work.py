"""One call of ``embed()``: which requests are due, and what their replies mean.

Decides and does no I/O, so that the sync and the async verb share all of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ..exceptions import (
    DimensionMismatch,
    InvalidInput,
    InvalidResponse,
    ServiceError,
)
from ..privacy import Private
from . import embedding_cache
from .texts import LIMITS, Limits, collection_fault, plan_requests, sort_out

if TYPE_CHECKING:
    import numpy as np

    from .reading import Reading


class Refusal(NamedTuple):
    """A request without vectors."""

    error: ServiceError
    #: Whether one text alone may be the reason, so that the others are worth another request.
    is_about_one_text: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a call is sent to, and what is to come back."""

    alias: str
    model: str
    #: Length of the vectors to come.
    dimensions: int
    #: Whether the request says so, or leaves it to the model.
    sends_dimensions: bool
    is_embedded: bool
    #: Base URL: two servers may name two models alike.
    server: str = ""
    #: Tokens a minute that may be sent: no request has more, or it never had its turn.
    tokens_per_minute: int | None = None

    @property
    def limits(self) -> Limits:
        """What one request may hold."""
        most = self.tokens_per_minute
        return replace(LIMITS, request_bytes=min(most, LIMITS.request_bytes)) if most else LIMITS


class EmbeddingWork:
    """One call of a verb: which requests are due, and what their replies mean; no I/O."""

    #: A request of a harmless text: is it the texts that are refused, or any request?
    PROBE = range(-1, 0)

    def __init__(self, texts: Private[Sequence[str]], target: Target) -> None:
        import numpy as np

        fault = collection_fault(texts.reveal())
        if fault:
            raise InvalidInput(fault)
        self.target = target
        self._texts = sort_out(texts)
        self._vectors = np.zeros((len(self._texts.unique), target.dimensions), np.float32)
        self._faults: dict[int, ServiceError] = {}
        #: The places in `unique` of the texts that are sent: a request is a range of these.
        self._sent: Sequence[int] = range(len(self._texts.unique))
        self._due = plan_requests(self._texts.unique, target.limits)[::-1]
        self._digests: list[str] = []
        self._learned: dict[str, bytes] = {}
        self._refused_alone = 0
        self._accepted = 0

    def raise_invalid(self) -> None:
        """Raise for the first text that is none."""
        for fault in self._texts.faults.values():
            raise fault

    def digests(self) -> list[str]:
        """Return the texts' keys in a cache of embeddings, each once; from now on `learned` has."""
        target = self.target
        self._digests = embedding_cache.digests(
            self._texts.unique,
            server=target.server,
            model=target.model,
            dimensions=target.dimensions if target.sends_dimensions else None,
        )
        return self._digests

    def recall(self, known: Mapping[str, bytes]) -> None:
        """Take the vectors that a cache knows by their digests; the other texts are sent."""
        from .reading import assemble

        places = [place for place, digest in enumerate(self._digests) if digest in known]
        if places:
            rows = [known[self._digests[place]] for place in places]
            self._vectors[places] = assemble(rows, self.target.dimensions).vectors
            self._sent = [n for n, digest in enumerate(self._digests) if digest not in known]
            texts = [self._texts.unique[place] for place in self._sent]
            self._due = plan_requests(texts, self.target.limits)[::-1]

    def learned(self) -> dict[str, bytes]:
        """Return what a cache may keep of the replies since the last time."""
        learned, self._learned = self._learned, {}
        return learned

    def requests(self) -> Iterator[range]:
        """Yield what to send next; `take` its reply before the next step."""
        while self._due:
            yield self._due.pop()

    def body(self, request: range) -> dict[str, Any]:
        """Return the request's JSON body."""
        is_probe = request == self.PROBE
        texts = [self._texts.unique[place] for place in self._places(request)]
        body: dict[str, Any] = {
            "input": ["test"] if is_probe else texts,
            "model": self.target.model,
            "encoding_format": "base64",
        }
        if self.target.sends_dimensions:
            body["dimensions"] = self.target.dimensions
        return body

    def take(self, request: range, reply: Reading | Refusal) -> None:
        """Store the reply's vectors or faults; raises what concerns every text."""
        if isinstance(reply, Refusal):
            self._take_refusal(request, reply)
            return
        self._accepted += len(request)
        if request != self.PROBE:
            self._store(request, reply)

    def matrix(self) -> np.ndarray:
        """Return all vectors in the order given; raises for the first text without."""
        positions = [place for place in self._texts.positions if place is not None]
        if self._faults:
            given = next(n for n, place in enumerate(positions) if place in self._faults)
            raise _at(given, self._faults[positions[given]])
        # Without doubled texts the rows stand in the order given already.
        return self._vectors if len(positions) == len(self._vectors) else self._vectors[positions]

    def outcomes(self) -> list[np.ndarray | ServiceError]:
        """Return each text's vector or its own error, in the order given."""
        return [
            self._texts.faults[given]
            if position is None
            else self._faults.get(position, self._vectors[position])
            for given, position in enumerate(self._texts.positions)
        ]

    def _take_refusal(self, request: range, refusal: Refusal) -> None:
        if isinstance(refusal.error, InvalidResponse) and request != self.PROBE:
            self._faults.update(dict.fromkeys(self._places(request), refusal.error))
        elif request == self.PROBE or not refusal.is_about_one_text:
            raise refusal.error
        elif len(request) == 1:
            self._refuse(self._sent[request.start], refusal.error)
        else:
            middle = (request.start + request.stop) // 2
            self._due += [range(middle, request.stop), range(request.start, middle)]

    def _store(self, request: range, reading: Reading) -> None:
        if reading.dimensions != self.target.dimensions:
            reading = self._at_expected_length(request, reading)
        places = self._places(request)
        # A slice is stored in one go.
        rows = slice(places.start, places.stop) if isinstance(places, range) else places
        self._vectors[rows] = reading.vectors
        for row, fault in reading.faults.items():
            self._faults[places[row]] = InvalidResponse(
                f"OpenAI ({self.target.alias}) returned an unusable vector: {fault}. Try again; "
                "if it stays, use another model or server."
            )
        if self._digests:
            for row, place in enumerate(places):
                if row not in reading.faults:
                    self._learned[self._digests[place]] = reading.row(row)

    def _places(self, request: range) -> Sequence[int]:
        return self._sent[request.start : request.stop]

    def _at_expected_length(self, request: range, reading: Reading) -> Reading:
        expected = reading.at(self.target.dimensions)
        # One odd row is that row's fault; where all agree it is the model's length.
        if len(request) > 1 and len(expected.faults) == len(request):
            setting = f'DJANGO_SERVICES["OPENAI"]["{self.target.alias}"]["DIMENSIONS"]'
            raise DimensionMismatch(
                f"Model {self.target.model!r} returned vectors of {reading.dimensions} dimensions, "
                f"not {self.target.dimensions}. Set {setting} to {reading.dimensions}, or use "
                f"another model."
            )
        return expected

    def _refuse(self, position: int, error: ServiceError) -> None:
        self._faults[position] = error
        self._refused_alone += 1
        # Were the request itself at fault, halving would go on for every text in vain.
        if self._refused_alone == 2 and not self._accepted:
            self._due.append(self.PROBE)


def _at(position: int, error: ServiceError) -> ServiceError:
    return type(error)(
        f"texts[{position}]: {error}",
        status=error.status,
        code=error.code,
        request_id=error.request_id,
        retry_after=error.retry_after,
    )
