"""How many tokens a call used, as the service told it, or estimated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """The tokens of one operation; None where nobody knows."""

    input_tokens: int | None = None
    cached_tokens: int = 0  # of the input, at a lower price
    output_tokens: int | None = None
    is_estimated: bool = False


#: What an answer without usage came to.
UNKNOWN = Usage()


def usage_in(body: Any) -> Usage | None:
    """Return the usage that a decoded answer of any endpoint tells; None if it tells none."""
    told = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(told, dict):
        return None
    given = _count(told, "prompt_tokens", "input_tokens")
    details = told.get("prompt_tokens_details") or told.get("input_tokens_details")
    return Usage(
        input_tokens=given,
        cached_tokens=(_count(details, "cached_tokens") or 0) if isinstance(details, dict) else 0,
        output_tokens=_count(told, "completion_tokens", "output_tokens"),
    )


def _count(told: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = told.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    return None
