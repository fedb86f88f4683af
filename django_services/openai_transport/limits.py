"""Requests and tokens per minute: when a call may start, over all processes.

Calls are booked. A booking counts in one of the buckets that time is cut into, 60
to a window, and is granted in the first bucket where any `_RUN` buckets in a row
hold no more than the limit: now, or in the future, after those that were booked
before it. As a window reaches into 61 buckets, and one more is counted for starts
that are late, no window, wherever it begins, holds more than the limit, as long
as a call starts no later than in the bucket after its own: a second at least,
for a minute's window.

    booking = limiter.book(model, tokens=900, limit=settings.limit_of(model), patience=20.0)
    while booking.delay > 0:
        time.sleep(booking.delay)
        booking = limiter.confirm(booking, patience=deadline.remaining)
    if not booking.is_granted:
        ...  # booking.reason, booking.retry_after
    ...
    limiter.settle(booking, tokens=712)
"""

from __future__ import annotations

import math
from typing import NamedTuple

from .. import conf
from .shared import PAUSE, Answer, Arguments, Keys, Memory, Step, store

_MINUTE = 60.0  # seconds
#: To a window.
_BUCKETS = 60
#: Buckets in a row that hold no more than the limit.
_RUN = _BUCKETS + 2
_SECOND = 1_000_000  # microseconds
#: The part of a limit that a process may hold back until its next booking.
_FEW = 0.01
#: Corrections held back; beyond that they are sent.
_MOST_OWED = 100


class Booking(NamedTuple):
    """When a call may start, or why it may not."""

    is_granted: bool
    delay: float  # seconds to wait before the call starts; 0.0 where it is refused
    retry_after: float | None  # seconds after which another attempt may be granted; None: never
    reason: str  # of a refusal: a sentence for who reads the error; else ""
    model: str
    requests: int
    tokens: int
    limit: conf.Limit
    bucket: int = 0  # where it counts
    start: float = 0.0  # seconds, on the clock of the store
    is_shared: bool = False  # booked in Redis


class Limiter:
    """Books the calls of an alias, for each model by itself.

    The bookings are in Redis where one is configured, and the clock is Redis's.
    Without, they are this process's. While Redis is down they are too, so that each
    process has the whole limit, or none is granted (``REFUSE_WITHOUT_REDIS``).

    Args:
        alias: The service's name in ``DJANGO_SERVICES["OPENAI"]``.
        window: Seconds in which a limit may be used up; for tests.
    """

    def __init__(self, alias: str, *, window: float = _MINUTE) -> None:
        self._prefix = f"django_services:limits:{{{alias}}}:"
        self._window = window
        self._width = round(window * _SECOND / _BUCKETS)  # of a bucket, microseconds
        self._refuses = conf.openai_section(alias).refuse_without_redis

    def is_open(self, model: str | None, limit: conf.Limit) -> bool:
        """Tell whether a call may start with nothing to count: no limit, no Redis, no block."""
        is_unlimited = limit.requests is None and limit.tokens is None
        return is_unlimited and store().is_blank(self._blocked(model or ""))

    def book(
        self,
        model: str | None,
        *,
        requests: int = 1,
        tokens: int,
        limit: conf.Limit,
        patience: float,
    ) -> Booking:
        """Book the start of a call: one round trip to Redis.

        Bookings are served in their order; one that is refused leaves no trace.

        Args:
            model: Whose limit it is.
            requests: How many count.
            tokens: How many are expected, at the most: `settle` corrects them.
            limit: What may be sent in a window.
            patience: Seconds that the call may wait, at the most.
        """
        asked = Booking(True, 0.0, 0.0, "", model or "", requests, tokens, limit)
        refused = self._too_large(asked)
        if refused:
            return refused
        keys, arguments = self._request(asked, patience)
        arguments += self._owed(asked)
        answer = store().run(BOOK, keys, arguments, refuses=self._needs_redis(asked))
        return self._booking(asked, answer)

    async def abook(
        self,
        model: str | None,
        *,
        requests: int = 1,
        tokens: int,
        limit: conf.Limit,
        patience: float,
    ) -> Booking:
        """Do as `book`."""
        asked = Booking(True, 0.0, 0.0, "", model or "", requests, tokens, limit)
        refused = self._too_large(asked)
        if refused:
            return refused
        keys, arguments = self._request(asked, patience)
        arguments += self._owed(asked)
        answer = await store().arun(BOOK, keys, arguments, refuses=self._needs_redis(asked))
        return self._booking(asked, answer)

    def confirm(self, booking: Booking, *, patience: float) -> Booking:
        """Return what holds after the wait for a booking; its delay says if more is to come.

        The model may have been blocked meanwhile, or the wait was longer than told:
        then the call is booked anew.

        Args:
            booking: As granted, with a delay.
            patience: Seconds that the call may wait, from now.
        """
        keys, arguments = self._request(booking, patience, bucket=booking.bucket)
        answer = store().follow(BOOK, keys, arguments, is_shared=booking.is_shared)
        return self._booking(booking, answer) if answer else booking._replace(delay=0.0)

    async def aconfirm(self, booking: Booking, *, patience: float) -> Booking:
        """Do as `confirm`."""
        keys, arguments = self._request(booking, patience, bucket=booking.bucket)
        answer = await store().afollow(BOOK, keys, arguments, is_shared=booking.is_shared)
        return self._booking(booking, answer) if answer else booking._replace(delay=0.0)

    def settle(self, booking: Booking, tokens: int) -> None:
        """Count the tokens that the call really used, in place of those booked.

        A few that are given back travel with the process's next booking.
        """
        correction = self._correction(booking, tokens=tokens - booking.tokens)
        if correction and not self._travels(booking, booking.tokens - tokens):
            store().follow(CORRECT, *correction, is_shared=booking.is_shared)

    async def asettle(self, booking: Booking, tokens: int) -> None:
        """Do as `settle`."""
        correction = self._correction(booking, tokens=tokens - booking.tokens)
        if correction and not self._travels(booking, booking.tokens - tokens):
            await store().afollow(CORRECT, *correction, is_shared=booking.is_shared)

    def cancel(self, booking: Booking) -> None:
        """Give back a booking whose call was never sent."""
        correction = self._correction(booking, -booking.requests, -booking.tokens)
        if correction:
            store().follow(CORRECT, *correction, is_shared=booking.is_shared)

    async def acancel(self, booking: Booking) -> None:
        """Do as `cancel`."""
        correction = self._correction(booking, -booking.requests, -booking.tokens)
        if correction:
            await store().afollow(CORRECT, *correction, is_shared=booking.is_shared)

    def block(self, model: str | None, seconds: float) -> None:
        """Let no call to a model start before so many seconds: the service asked for it."""
        if seconds > 0:
            keys, arguments = [self._blocked(model or "")], [_microseconds(seconds)]
            # Here too: whoever was told obeys, whatever becomes of Redis.
            store().run_here(BLOCK, keys, arguments)
            store().follow(BLOCK, keys, arguments, is_shared=True)

    async def ablock(self, model: str | None, seconds: float) -> None:
        """Do as `block`."""
        if seconds > 0:
            keys, arguments = [self._blocked(model or "")], [_microseconds(seconds)]
            store().run_here(BLOCK, keys, arguments)
            await store().afollow(BLOCK, keys, arguments, is_shared=True)

    # What is asked ---------------------------------------------------------------

    def _request(
        self, asked: Booking, patience: float, *, bucket: int = -1
    ) -> tuple[list[str], list[int]]:
        """Return keys and arguments of `BOOK`."""
        keys = [self._blocked(asked.model)]
        arguments = [self._width, _microseconds(patience), bucket]
        for kind, limit, amount in _meters(asked):
            keys.append(f"{self._prefix}{asked.model}:{kind}")
            arguments += (limit, amount)
        return keys, arguments

    def _correction(
        self, booking: Booking, requests: int = 0, tokens: int = 0
    ) -> tuple[list[str], list[int]] | None:
        """Return keys and arguments of `CORRECT`; None if nothing changes."""
        changes = {"requests": requests, "tokens": tokens}
        kinds = [kind for kind, _, _ in _meters(booking) if changes[kind]]
        if not kinds or not booking.is_granted:
            return None
        keys = [f"{self._prefix}{booking.model}:{kind}" for kind in kinds]
        return keys, [booking.bucket, *(changes[kind] for kind in kinds)]

    def _travels(self, booking: Booking, surplus: int) -> bool:
        """Note tokens to give back with the next booking, if they are few; tell whether."""
        limit, waiting = booking.limit.tokens or 0, store().owed
        if not booking.is_shared or surplus < 0 or len(waiting) > _MOST_OWED:
            return False
        owed = waiting.setdefault(self._tokens_key(booking.model), [])
        if surplus - sum(owed[1::2]) > limit * _FEW or len(owed) > _MOST_OWED:
            return False
        owed += (booking.bucket, -surplus)
        return True

    def _owed(self, asked: Booking) -> list[int]:
        if asked.limit.tokens is None:
            return []
        return store().owed.pop(self._tokens_key(asked.model), [])

    def _tokens_key(self, model: str) -> str:
        return f"{self._prefix}{model}:tokens"

    def _needs_redis(self, asked: Booking) -> bool:
        # What has no limit needs no Redis: all that it would tell is a block.
        return self._refuses and bool(_meters(asked))

    def _blocked(self, model: str) -> str:
        return f"{self._prefix}{model}:blocked"

    # What is answered ------------------------------------------------------------

    def _booking(self, asked: Booking, answer: Answer | None) -> Booking:
        if answer is None:
            return _refused(
                asked, PAUSE, "Redis, which shares the limits, is down (REFUSE_WITHOUT_REDIS)."
            )
        granted, wait, bucket, start, cause = answer.values
        if not granted:
            return _refused(asked, wait / _SECOND, self._reason(asked, wait / _SECOND, cause))
        return asked._replace(
            delay=wait / _SECOND,
            bucket=bucket,
            start=start / _SECOND,
            is_shared=answer.is_shared,
        )

    def _too_large(self, asked: Booking) -> Booking | None:
        for kind, limit, amount in _meters(asked):
            if amount > limit:
                reason = f"The call needs {amount:,} {kind}: more than {self._named(kind, limit)}."
                return _refused(asked, None, reason)
        return None

    def _reason(self, asked: Booking, wait: float, cause: int) -> str:
        if not cause:
            return f"The service asked to send nothing to {asked.model!r} for {wait:.1f} s."
        kind, limit, _ = _meters(asked)[cause - 1]
        return (
            f"{asked.model!r} has used {self._named(kind, limit)}: "
            f"the next call may start in {wait:.1f} s."
        )

    def _named(self, kind: str, limit: int) -> str:
        each = "minute" if self._window == _MINUTE else f"{self._window:g} s"
        return f"the limit of {limit:,} {kind} each {each} ({kind.upper()}_PER_MINUTE)"


def _meters(asked: Booking) -> list[tuple[str, int, int]]:
    """Return what is limited: its name, the limit and the amount asked for."""
    limits = (
        ("requests", asked.limit.requests, asked.requests),
        ("tokens", asked.limit.tokens, asked.tokens),
    )
    return [(kind, limit, amount) for kind, limit, amount in limits if limit is not None]


def _refused(asked: Booking, retry_after: float | None, reason: str) -> Booking:
    return asked._replace(is_granted=False, delay=0.0, retry_after=retry_after, reason=reason)


def _microseconds(seconds: float) -> int:
    """Return a time in whole microseconds; one without end as a century."""
    return math.ceil(min(seconds, 100 * 365 * 86_400.0) * _SECOND)


# The steps: each a script and its twin ----------------------------------------------------
#
# All times are whole microseconds. A meter is a hash: what was booked in each bucket.

_BOOK_LUA = f"""
local RUN = {_RUN}

-- The first bucket, from those that were booked on, where the amount keeps the limit.
local function earliest(meter, limit, amount, current, first)
  local booked, last, past = {{}}, first, {{}}
  local entries = redis.call('HGETALL', meter)
  for i = 1, #entries, 2 do
    local bucket = tonumber(entries[i])
    if bucket > current - RUN then
      booked[bucket] = tonumber(entries[i + 1])
      last = math.max(last, bucket)
    else
      past[#past + 1] = entries[i]
    end
  end
  if #past > 0 then redis.call('HDEL', meter, unpack(past)) end
  local total = amount
  for bucket = last, first - RUN + 1, -1 do
    total = total + (booked[bucket] or 0)
    if total > limit then return math.max(last, bucket + RUN) end
  end
  return last
end

-- KEYS: what blocks the model, then the meters.
-- ARGV: width, patience, bucket booked before or -1; limit and amount for each meter; then
-- buckets of the last meter, each with what to add to it.
local width, patience, before = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local current = math.floor(now / width)
local start = math.max(now, tonumber(redis.call('GET', KEYS[1]) or 0))
if before >= 0 then
  if start == now and current <= before then
    start = math.max(now, before * width)
    return {{1, start - now, before, start, 0}}
  end
  for i = 2, #KEYS do
    if redis.call('HEXISTS', KEYS[i], ARGV[3]) == 1 then
      redis.call('HINCRBY', KEYS[i], ARGV[3], -tonumber(ARGV[2 * i + 1]))
    end
  end
end
for i = 2 * #KEYS + 2, #ARGV, 2 do
  if redis.call('HEXISTS', KEYS[#KEYS], ARGV[i]) == 1 then
    redis.call('HINCRBY', KEYS[#KEYS], ARGV[i], ARGV[i + 1])
  end
end
local first = math.floor(start / width)
local chosen, cause = first, 0
for i = 2, #KEYS do
  local limit, amount = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
  local bucket = earliest(KEYS[i], limit, amount, current, first)
  if bucket > chosen then chosen, cause = bucket, i - 1 end
end
if chosen > first then start = chosen * width end
if start - now > patience then return {{0, start - now, chosen, start, cause}} end
for i = 2, #KEYS do
  redis.call('HINCRBY', KEYS[i], string.format('%.0f', chosen), ARGV[2 * i + 1])
  redis.call('PEXPIRE', KEYS[i], math.ceil((chosen - current + RUN) * width / 1000))
end
return {{1, start - now, chosen, start, cause}}
"""


def _book(memory: Memory, keys: Keys, arguments: Arguments) -> list[int]:
    blocked, *meters = keys
    width, patience, before, *pairs = arguments[: 3 + 2 * len(meters)]  # the rest is Redis's
    now = memory.now
    asked = list(zip(meters, pairs[::2], pairs[1::2], strict=True))
    current = now // width
    start = max(now, memory.entry(blocked).get("until", 0))
    if before >= 0:
        if start == now and current <= before:
            start = max(now, before * width)
            return [1, start - now, before, start, 0]
        _correct(memory, meters, [before, *(-amount for amount in pairs[1::2])])
    first = start // width
    chosen, cause = first, 0
    for number, (meter, limit, amount) in enumerate(asked, start=1):
        bucket = _earliest(memory.entry(meter), limit, amount, current, first)
        if bucket > chosen:
            chosen, cause = bucket, number
    if chosen > first:
        start = chosen * width
    if start - now > patience:
        return [0, start - now, chosen, start, cause]
    for meter, _, amount in asked:
        booked = memory.entry(meter)
        booked[chosen] = booked.get(chosen, 0) + amount
        memory.keep(meter, booked, now + (chosen - current + _RUN) * width)
    return [1, start - now, chosen, start, cause]


def _earliest(booked: dict[int, int], limit: int, amount: int, current: int, first: int) -> int:
    """Return the first bucket, from those that were booked on, where the amount keeps the limit."""
    for bucket in [bucket for bucket in booked if bucket <= current - _RUN]:
        del booked[bucket]
    last = max(first, max(booked, default=first))
    total = amount
    for bucket in range(last, first - _RUN, -1):
        total += booked.get(bucket, 0)
        if total > limit:
            return max(last, bucket + _RUN)
    return last


_CORRECT_LUA = """
-- KEYS: the meters. ARGV: the bucket, then what to add to each meter.
for i, meter in ipairs(KEYS) do
  if redis.call('HEXISTS', meter, ARGV[1]) == 1 then
    redis.call('HINCRBY', meter, ARGV[1], ARGV[i + 1])
  end
end
return {}
"""


def _correct(memory: Memory, keys: Keys, arguments: Arguments) -> list[int]:
    bucket, *changes = arguments
    for meter, change in zip(keys, changes, strict=True):
        booked = memory.entry(meter)
        if bucket in booked:
            booked[bucket] += change
    return []


_BLOCK_LUA = """
-- KEYS: what blocks the model. ARGV: for how long.
local till = now + tonumber(ARGV[1])
if till > tonumber(redis.call('GET', KEYS[1]) or 0) then
  redis.call('SET', KEYS[1], string.format('%.0f', till), 'PX', math.ceil(ARGV[1] / 1000))
end
return {}
"""


def _block(memory: Memory, keys: Keys, arguments: Arguments) -> list[int]:
    until = max(memory.now + arguments[0], memory.entry(keys[0]).get("until", 0))
    memory.keep(keys[0], {"until": until}, until)
    return []


BOOK = Step(_BOOK_LUA, _book)
CORRECT = Step(_CORRECT_LUA, _correct)
BLOCK = Step(_BLOCK_LUA, _block)
