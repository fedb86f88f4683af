"""How many calls a server lets through at once, by what its answers say of its limits.

By Little's law: as many are in flight as begin in the time that one of them takes.
More would only meet the rate limit, fewer would not use it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from .. import conf

_MINUTE = 60.0  # seconds
#: What a new answer counts in the mean of a call's time and size.
_WEIGHT = 0.2

#: "1s", "6m0s", "20ms": how long until a limit is whole again.
_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_UNITS = (60 * 60.0, 60.0, 1.0, 0.001)  # seconds

_REQUESTS = "x-ratelimit-limit-requests"  # a minute
_TOKENS = "x-ratelimit-limit-tokens"  # a minute


@dataclass(frozen=True, slots=True)
class Pace:
    """The limits of one alias and model, and what a call of theirs is like."""

    requests: int | None  # a minute; None: not told
    tokens: int | None  # a minute; None: not told
    seconds: float  # of a call, mean
    size: float  # tokens of a call, mean

    @property
    def in_flight(self) -> float:
        """Calls that are in flight at the limit; infinite if there is none."""
        calls = [float(self.requests)] if self.requests else []
        if self.tokens and self.size:
            calls.append(self.tokens / self.size)
        return min(calls, default=math.inf) / _MINUTE * self.seconds


# Replaced as a whole by whichever thread was last: no lock is needed.
_paces: dict[tuple[str, str | None], Pace] = {}


def learn(
    alias: str, model: str | None, headers: Mapping[str, str], *, seconds: float, tokens: int | None
) -> None:
    """Note what an answer says of the limits, how long it took and how large it was."""
    requests, allowed = _number(headers.get(_REQUESTS)), _number(headers.get(_TOKENS))
    if requests is None and allowed is None:
        return
    size = float(tokens or 0)
    before = _paces.get((alias, model))
    if before is not None:
        seconds = before.seconds + _WEIGHT * (seconds - before.seconds)
        size = before.size + _WEIGHT * (size - before.size)
    _paces[alias, model] = Pace(requests, allowed, seconds, size)


def in_flight(alias: str, model: str | None, most: int) -> int:
    """Return how many calls may be in flight, from 1 to ``most``; that if nothing was told."""
    pace = _paces.get((alias, model))
    return most if pace is None else max(1, min(most, math.ceil(min(pace.in_flight, most))))


def limit_of(alias: str, model: str | None) -> conf.Limit:
    """Return what the service told that it lets through each minute."""
    pace = _paces.get((alias, model))
    return _UNTOLD if pace is None else conf.Limit(requests=pace.requests, tokens=pace.tokens)


_UNTOLD = conf.Limit()


def used_up_for(headers: Mapping[str, str]) -> float | None:
    """Return the seconds for which an answer says that nothing more is let through."""
    waits = [
        _seconds(headers.get(f"x-ratelimit-reset-{kind}", ""))
        for kind in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{kind}") == "0"
    ]
    return max(waits, default=0.0) or None


def _seconds(text: str) -> float:
    found = _DURATION.fullmatch(text)
    parts = found.groups(default="0") if found else ()
    return sum(float(part) * unit for part, unit in zip(parts, _UNITS, strict=False))


def forget() -> None:
    """Forget what was learned, as for a test."""
    _paces.clear()


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() else None
