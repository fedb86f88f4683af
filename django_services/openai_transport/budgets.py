"""Budgets: what an alias, a tenant or a feature may spend in a UTC day or month.

A call reserves the most that it may cost, and settles what it did cost. A budget
is never overspent by calls that cost no more than they reserved, however many
processes share it. What a killed process had reserved lapses in time.

    reservation = budgets.reserve(most, attribution(), lapses_after=120.0)
    ...
    budgets.settle(reservation, cost)

The sums are in Redis where one is configured, else in this process, which forgets
them when it ends. While Redis is down each process goes on from what it saw last,
or calls are refused (``REFUSE_WITHOUT_REDIS``). Amounts are whole nano-dollars.
"""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Iterator
from decimal import ROUND_CEILING, Context, Decimal
from typing import NamedTuple

from .. import conf
from ..exceptions import BudgetExceeded, ServiceUnavailable
from .context import Attribution
from .shared import PAUSE, Answer, Arguments, Keys, Memory, Step, store

_NANO = Decimal(10) ** 9  # to a dollar
_CONTEXT = Context(prec=50, rounding=ROUND_CEILING)
_SECOND = 1_000_000  # microseconds
_DAY = 24 * 60 * 60  # seconds

#: How long the sums of a period are kept after the last call in it, seconds.
_KEPT = {"day": 3 * _DAY, "month": 40 * _DAY}


class Claim(NamedTuple):
    """A budget that applies to a call, and what it allows."""

    period: str  # "day" or "month"
    field: str  # whose: "alias", "tenant:acme"
    allowed: int  # nano-dollars


class Reservation(NamedTuple):
    """What a call may cost, taken out of every budget that applies to it."""

    id: str = ""
    amount: int = 0  # nano-dollars
    claims: tuple[Claim, ...] = ()
    keys: tuple[str, ...] = ()
    is_shared: bool = False  # in Redis


class Spent(NamedTuple):
    """What was spent of a budget in the period that runs."""

    per: str  # "alias", "tenant" or "feature"
    name: str  # of the tenant or feature, else ""
    period: str  # "day" or "month"
    usd: Decimal
    reserved: Decimal  # US dollars, by calls under way
    allowed: Decimal | None  # US dollars; None: no budget holds any more


class Budgets:
    """The budgets of an alias.

    Those of tenants and features apply to calls that say theirs. A budget for one
    of them by name holds in place of the one for each of them.

    Args:
        alias: The service's name in ``DJANGO_SERVICES["OPENAI"]``.
    """

    def __init__(self, alias: str) -> None:
        settings = conf.openai_section(alias)
        self._alias = alias
        self._refuses = settings.refuse_without_redis
        self._allowed = _table(alias, settings)
        self._kinds = sorted({(period, per) for period, per, _ in self._allowed})

    @property
    def has_budgets(self) -> bool:
        """Whether any call needs a reservation."""
        return bool(self._kinds)

    def reserve(
        self, cost: Decimal, attribution: Attribution, *, lapses_after: float
    ) -> Reservation:
        """Take the most that a call may cost out of its budgets: one round trip to Redis.

        Args:
            cost: US dollars, at the most.
            attribution: For whom the call is made.
            lapses_after: Seconds after which an unsettled reservation is given back.

        Raises:
            BudgetExceeded: Names the budget, and when it renews (``retry_after``).
            ServiceUnavailable: Redis is down, and the project refuses calls without it.
        """
        asked = self._asked(cost, attribution)
        if not asked.claims:
            return asked
        arguments = _reserving(asked, lapses_after)
        answer = store().run(RESERVE, asked.keys, arguments, refuses=self._refuses)
        return self._reserved(asked, answer)

    async def areserve(
        self, cost: Decimal, attribution: Attribution, *, lapses_after: float
    ) -> Reservation:
        """Do as `reserve`."""
        asked = self._asked(cost, attribution)
        if not asked.claims:
            return asked
        arguments = _reserving(asked, lapses_after)
        answer = await store().arun(RESERVE, asked.keys, arguments, refuses=self._refuses)
        return self._reserved(asked, answer)

    def settle(self, reservation: Reservation, cost: Decimal | None) -> None:
        """Put what a call did cost in the place of what it reserved; once for each reservation.

        Args:
            reservation: As `reserve` returned it.
            cost: US dollars; None: nobody knows, so it counts as what was reserved.
        """
        if reservation.claims:
            arguments = _settling(reservation, cost)
            store().follow(SETTLE, reservation.keys, arguments, is_shared=reservation.is_shared)

    async def asettle(self, reservation: Reservation, cost: Decimal | None) -> None:
        """Do as `settle`."""
        if reservation.claims:
            arguments = _settling(reservation, cost)
            await store().afollow(
                SETTLE, reservation.keys, arguments, is_shared=reservation.is_shared
            )

    def spent(self) -> list[Spent]:
        """Return what was spent in the day and the month that run, by budget."""
        found = []
        for period in ("day", "month"):
            keys = _keys(self._alias, (period,))
            answer = store().run(REPORT, keys, (), refuses=False)
            sums = _sums(answer.values if answer else [])
            found += [self._spent(period, field, sums) for field in _fields(sums)]
        return found

    def claims(self, attribution: Attribution) -> list[Claim]:
        """Return the budgets that apply to a call."""
        names = {"alias": "", "tenant": attribution.tenant, "feature": attribution.feature}
        return [
            Claim(period, _field(per, names[per]), allowed)
            for period, per in self._kinds
            if per == "alias" or names[per]
            if (allowed := self._allowance(period, per, names[per])) is not None
        ]

    def _allowance(self, period: str, per: str, name: str) -> int | None:
        own = self._allowed.get((period, per, name))
        return self._allowed.get((period, per, "")) if own is None else own

    def _asked(self, cost: Decimal, attribution: Attribution) -> Reservation:
        claims = tuple(self.claims(attribution))
        if not claims:
            return Reservation()
        # In the order of the claims, which is that of their numbers in the scripts.
        periods = tuple(dict.fromkeys(claim.period for claim in claims))
        keys = tuple(_keys(self._alias, periods))
        return Reservation(secrets.token_hex(8), _nano(cost), claims, keys)

    def _reserved(self, asked: Reservation, answer: Answer | None) -> Reservation:
        if answer is None:
            raise ServiceUnavailable(
                "Redis, which holds the budgets, is down (REFUSE_WITHOUT_REDIS). Nothing was sent.",
                retry_after=PAUSE,
            )
        granted, *told = answer.values
        if not granted:
            number, spent, reserved = told
            raise _exceeded(asked.claims[number], spent, reserved, asked.amount)
        if answer.is_shared:
            # What a process goes on from if Redis fails it.
            store().run_here(NOTE, asked.keys, _numbered(asked.claims, told))
        return asked._replace(is_shared=answer.is_shared)

    def _spent(self, period: str, field: str, sums: dict[str, int]) -> Spent:
        per, _, name = field.partition(":")
        allowed = self._allowance(period, per, name)
        return Spent(
            per=per,
            name=name,
            period=period,
            usd=sums.get(f"spent {field}", 0) / _NANO,
            reserved=sums.get(f"reserved {field}", 0) / _NANO,
            allowed=None if allowed is None else allowed / _NANO,
        )


def spent(alias: str = "default") -> list[Spent]:
    """Return what was spent of an alias's budgets in the day and the month that run."""
    return Budgets(alias).spent()


def _table(alias: str, settings: conf.OpenAISettings) -> dict[tuple[str, str, str], int]:
    """Return what is allowed by period, per and name; of two for the same the lower."""
    table: dict[tuple[str, str, str], int] = {}
    for budget in _budgets(settings):
        is_alias = budget.per == "alias"
        if is_alias and budget.name not in ("", alias):
            continue
        key = (budget.period, budget.per, "" if is_alias else budget.name)
        # By its digits: 0.1 dollars are 100,000,000 nano-dollars.
        allowed = _nano(Decimal(str(budget.usd)))
        table[key] = min(allowed, table.get(key, allowed))
    return table


def _budgets(settings: conf.OpenAISettings) -> Iterator[conf.Budget]:
    yield from settings.budgets
    for period, usd in (("day", settings.daily_budget), ("month", settings.monthly_budget)):
        if usd is not None:
            yield conf.Budget(per="alias", period=period, usd=usd)


def _field(per: str, name: str) -> str:
    return f"{per}:{name}" if name else per


def _nano(usd: Decimal) -> int:
    """Return nano-dollars, rounded up: a budget is never overspent by what was cut off."""
    # Not in the thread's own context, which may round.
    return max(0, int(_CONTEXT.to_integral_value(_CONTEXT.multiply(usd, _NANO))))


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _keys(alias: str, periods: tuple[str, ...]) -> list[str]:
    """Return two keys for each period: the sums, and the reservations that are open."""
    now, keys = _now(), []
    for period in periods:
        since = now.strftime("%Y-%m-%d" if period == "day" else "%Y-%m")
        sums = f"django_services:budgets:{{{alias}}}:{since}"
        keys += [sums, f"{sums}:open"]
    return keys


def _renewal(period: str) -> datetime.datetime:
    """Return when the next period begins."""
    today = _now().replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        return today + datetime.timedelta(days=1)
    return (today.replace(day=1) + datetime.timedelta(days=32)).replace(day=1)


def _exceeded(claim: Claim, spent: int, reserved: int, amount: int) -> BudgetExceeded:
    per, _, name = claim.field.partition(":")
    whose = f"of {per} {name!r}" if name else "of the alias"
    renewal = _renewal(claim.period)
    return BudgetExceeded(
        f"The budget {whose} is {_dollars(claim.allowed)} a {claim.period}: {_dollars(spent)} are "
        f"spent and {_dollars(reserved)} reserved, and this call may cost {_dollars(amount)}. "
        f"Nothing was sent. It renews at {renewal:%Y-%m-%d %H:%M} UTC.",
        status=429,
        code="budget_exceeded",
        retry_after=(renewal - _now()).total_seconds(),
    )


def _dollars(nano: int) -> str:
    usd = nano / _NANO
    return f"${usd:,.2f}" if not nano % 10_000_000 else f"${usd.normalize():,f}"


def _reserving(asked: Reservation, lapses_after: float) -> list[int | str]:
    """Return the arguments of `RESERVE`."""
    microseconds = int(lapses_after * _SECOND)
    allowed = [claim.allowed for claim in asked.claims]
    return [asked.id, asked.amount, microseconds, *_numbered(asked.claims, allowed)]


def _settling(reservation: Reservation, cost: Decimal | None) -> list[int | str]:
    """Return the arguments of `SETTLE`."""
    spent = reservation.amount if cost is None else _nano(cost)
    costs = [spent] * len(reservation.claims)
    return [reservation.id, reservation.amount, *_numbered(reservation.claims, costs)]


def _numbered(claims: tuple[Claim, ...], amounts: list[int]) -> list[int | str]:
    """Return four arguments for each claim: its sums by number, their keeping, field, amount."""
    periods = list(dict.fromkeys(claim.period for claim in claims))
    return [
        argument
        for claim, amount in zip(claims, amounts, strict=True)
        for argument in (periods.index(claim.period), _KEPT[claim.period], claim.field, amount)
    ]


def _sums(values: list[bytes | str | int]) -> dict[str, int]:
    texts = [value.decode() if isinstance(value, bytes) else value for value in values]
    return {str(name): int(value) for name, value in zip(texts[::2], texts[1::2], strict=True)}


def _fields(sums: dict[str, int]) -> list[str]:
    return sorted({name.partition(" ")[2] for name in sums})


# The steps: each a script and its twin ----------------------------------------------------
#
# KEYS are pairs, one for each period: a hash of sums, "spent <whose>" and "reserved
# <whose>" in nano-dollars; and a sorted set of open reservations by when they lapse.

_RELEASE_LUA = """
local function release()
  for i = 2, #KEYS, 2 do
    for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[i], '-inf', now)) do
      local amount, field = string.match(member, '^(%d+) %x+ (.*)$')
      redis.call('HINCRBY', KEYS[i - 1], 'reserved ' .. field, '-' .. amount)
      redis.call('ZREM', KEYS[i], member)
    end
  end
end
"""


def _release(memory: Memory, keys: Keys) -> None:
    for sums_key, open_key in zip(keys[::2], keys[1::2], strict=True):
        sums, reservations = memory.entry(sums_key), memory.entry(open_key)
        for opened in [opened for opened, lapses in reservations.items() if lapses <= memory.now]:
            amount, _, field = opened
            sums[f"reserved {field}"] -= amount
            del reservations[opened]


_RESERVE_LUA = (
    _RELEASE_LUA
    + """
-- ARGV: id, amount, lapse; for each claim: number of its pair, keeping, field, allowed.
release()
local amount, told = tonumber(ARGV[2]), {1}
for i = 4, #ARGV, 4 do
  local sums = redis.call('HMGET', KEYS[2 * ARGV[i] + 1],
    'spent ' .. ARGV[i + 2], 'reserved ' .. ARGV[i + 2])
  local spent, reserved = tonumber(sums[1] or 0), tonumber(sums[2] or 0)
  if spent + reserved + amount > tonumber(ARGV[i + 3]) then
    return {0, i / 4 - 1, spent, reserved}
  end
  told[#told + 1] = spent + reserved + amount
end
for i = 4, #ARGV, 4 do
  local sums, open = KEYS[2 * ARGV[i] + 1], KEYS[2 * ARGV[i] + 2]
  redis.call('HINCRBY', sums, 'reserved ' .. ARGV[i + 2], ARGV[2])
  redis.call('ZADD', open, now + ARGV[3], ARGV[2] .. ' ' .. ARGV[1] .. ' ' .. ARGV[i + 2])
  redis.call('EXPIRE', sums, ARGV[i + 1])
  redis.call('EXPIRE', open, ARGV[i + 1])
end
return told
"""
)


def _reserve(memory: Memory, keys: Keys, arguments: Arguments) -> list[int]:
    id_, amount, lapse, *rest = arguments
    _release(memory, keys)
    told = [1]
    for position, (number, _, field, allowed) in enumerate(_fours(rest)):
        sums = memory.entry(keys[2 * number])
        spent, reserved = sums.get(f"spent {field}", 0), sums.get(f"reserved {field}", 0)
        if spent + reserved + amount > allowed:
            return [0, position, spent, reserved]
        told.append(spent + reserved + amount)
    for number, kept, field, _ in _fours(rest):
        _add(memory, keys[2 * number], kept, f"reserved {field}", amount)
        _add(memory, keys[2 * number + 1], kept, (amount, id_, field), memory.now + lapse)
    return told


_SETTLE_LUA = """
-- ARGV: id, amount reserved; for each claim: number of its pair, keeping, field, cost.
for i = 3, #ARGV, 4 do
  local sums, open, field = KEYS[2 * ARGV[i] + 1], KEYS[2 * ARGV[i] + 2], ARGV[i + 2]
  if redis.call('ZREM', open, ARGV[2] .. ' ' .. ARGV[1] .. ' ' .. field) == 1 then
    redis.call('HINCRBY', sums, 'reserved ' .. field, '-' .. ARGV[2])
  end
  redis.call('HINCRBY', sums, 'spent ' .. field, ARGV[i + 3])
  redis.call('EXPIRE', sums, ARGV[i + 1])
end
return {}
"""


def _settle(memory: Memory, keys: Keys, arguments: Arguments) -> list[int]:
    id_, amount, *rest = arguments
    for number, kept, field, cost in _fours(rest):
        sums, reservations = keys[2 * number], memory.entry(keys[2 * number + 1])
        if reservations.pop((amount, id_, field), None) is not None:
            _add(memory, sums, kept, f"reserved {field}", -amount)
        _add(memory, sums, kept, f"spent {field}", cost)
    return []


_REPORT_LUA = _RELEASE_LUA + "release() return redis.call('HGETALL', KEYS[1])"


def _report(memory: Memory, keys: Keys, arguments: Arguments) -> list[str | int]:  # noqa: ARG001  # as all twins
    _release(memory, keys)
    return [part for pair in memory.entry(keys[0]).items() for part in pair]


def _note(memory: Memory, keys: Keys, arguments: Arguments) -> list[int]:
    """Take what Redis told to be spent and reserved as spent."""
    for number, kept, field, committed in _fours(arguments):
        sums = memory.entry(keys[2 * number])
        missing = committed - sums.get(f"spent {field}", 0)
        _add(memory, keys[2 * number], kept, f"spent {field}", missing)
    return []


def _add(memory: Memory, key: str, kept: int, name: object, amount: int) -> None:
    entry = memory.entry(key)
    entry[name] = entry.get(name, 0) + amount
    memory.keep(key, entry, memory.now + kept * _SECOND)


def _fours(arguments: Arguments) -> Iterator[tuple[int, int, str, int]]:
    return zip(arguments[::4], arguments[1::4], arguments[2::4], arguments[3::4], strict=True)


RESERVE = Step(_RESERVE_LUA, _reserve)
SETTLE = Step(_SETTLE_LUA, _settle)
REPORT = Step(_REPORT_LUA, _report)
NOTE = Step("", _note)  # of this process only
