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
    written_tokens: int = 0  # of the input, to the prompt cache, at a higher price
    written_12h_tokens: int = 0  # of the input, to be kept for twelve hours
    output_tokens: int | None = None
    service_tier: str = ""  # how it was processed, such as "flex" or "priority"
    is_estimated: bool = False


#: What an answer without usage came to.
UNKNOWN = Usage()


def usage_in(body: Any) -> Usage | None:
    """Return the usage that a decoded answer of any endpoint tells; None if it tells none."""
    told = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(told, dict):
        return None
    given = _count(told, "prompt_tokens", "input_tokens")
    details = _dict(told.get("prompt_tokens_details") or told.get("input_tokens_details"))
    written = _count(details, "cache_write_tokens") or 0
    kept = _count(_dict(details.get("cache_write_tokens_details")), "ttl_12h_tokens") or 0
    tier = body.get("service_tier")
    return Usage(
        input_tokens=given,
        cached_tokens=_count(details, "cached_tokens") or 0,
        written_tokens=max(written - kept, 0),
        written_12h_tokens=kept,
        output_tokens=_count(told, "completion_tokens", "output_tokens"),
        service_tier=tier if isinstance(tier, str) else "",
    )


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(told: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = told.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    return None
