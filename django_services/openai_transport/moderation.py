"""Moderation: which texts go in a request, and what the service found in each; no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..exceptions import InvalidInput, InvalidResponse
from ..privacy import Private
from .faults import ADVICE
from .prompts import Request
from .reading import decode_json
from .texts import Limits, collection_fault, plan_requests, sort_out

if TYPE_CHECKING:
    from .sending import Reply

#: A text: the context of omni-moderation. A request: what is answered well within a timeout.
LIMITS = Limits(
    texts=32,
    request_bytes=128 * 1024,
    text_tokens=32_768,
    text_bytes=32_768 * 128,  # of which no token has more than 128
    verb="moderate",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moderation:
    """What was found in one text."""

    is_flagged: bool
    #: The categories that it falls under, such as "harassment".
    categories: frozenset[str]
    #: How likely each category is, from 0 to 1.
    scores: Mapping[str, float] = field(repr=False)
    model: str  # that judged


class ModerationWork:
    """One call of the verb: which requests are due, and what their answers mean; no I/O."""

    def __init__(self, texts: Private[Sequence[str]], alias: str, model: str) -> None:
        if fault := collection_fault(texts.reveal()):
            raise InvalidInput(fault)
        self._texts = sort_out(texts, LIMITS)
        for unsound in self._texts.faults.values():
            raise unsound
        self.alias = alias
        self._model = model
        self._found: list[Moderation] = []

    def requests(self) -> list[Request]:
        """Return what to send, in order; `take` each answer."""
        return [
            Request(
                "/moderations",
                Private(
                    {"model": self._model, "input": self._texts.unique[each.start : each.stop]}
                ),
                Private({}),
            )
            for each in plan_requests(self._texts.unique, LIMITS)
        ]

    def take(self, request: Request, reply: Reply) -> None:
        """Take the reply to a request.

        Raises:
            ServiceError: It says nothing that can be used.
        """
        if reply.error:
            raise reply.error
        found = read_moderations(decode_json(reply.content.reveal()), self._model)
        if len(found) != len(request.body.reveal()["input"]):
            raise InvalidResponse(
                f"OpenAI ({self.alias}): its answer does not hold one result for each text. "
                f"{ADVICE[InvalidResponse]}",
                status=200,
                code="no_results",
                request_id=reply.request_id,
            )
        self._found += found

    def results(self) -> list[Moderation]:
        """Return what was found, in the order of the texts given."""
        return [self._found[place] for place in self._texts.positions if place is not None]


def read_moderations(body: Any, model: str) -> list[Moderation]:
    """Return what a decoded answer says of each text; fewer where it does not say it.

    Args:
        body: The answer.
        model: That was asked, where the answer does not name the one that judged.
    """
    results = body.get("results") if isinstance(body, dict) else None
    if not isinstance(results, list):
        return []
    named = body.get("model")
    judge = named if isinstance(named, str) else model
    return [found for each in results if (found := _moderation(each, judge))]


def _moderation(result: Any, model: str) -> Moderation | None:
    if not isinstance(result, dict) or not isinstance(result.get("flagged"), bool):
        return None
    categories, scores = result.get("categories"), result.get("category_scores")
    if not isinstance(categories, dict) or not isinstance(scores, dict):
        return None
    return Moderation(
        is_flagged=result["flagged"],
        categories=frozenset(str(name) for name, falls in categories.items() if falls is True),
        scores={
            str(name): float(score)
            for name, score in scores.items()
            if isinstance(score, (int, float))
        },
        model=model,
    )
