"""Budgets, in this process and in a real Redis."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import json
import pickle
import threading
from decimal import Decimal

import pytest
from django.conf import settings as django_settings

from django_services.exceptions import BudgetExceeded
from django_services.openai_transport import budgets as budgets_module
from django_services.openai_transport.budgets import Budgets, Claim, Reservation, Spent
from django_services.openai_transport.context import Attribution

from .shared_state import Clock

NOBODY = Attribution()
ACME = Attribution(tenant="acme", feature="search")
NOON = datetime.datetime(2026, 11, 30, 12, tzinfo=datetime.UTC).timestamp()
DAY = 24 * 60 * 60  # seconds


@pytest.fixture(autouse=True)
def noon(clock: Clock) -> Clock:
    """Noon of the last day of a month."""
    clock.set(NOON)
    return clock


def reserve(
    budgets: Budgets, usd: str, attribution: Attribution = NOBODY, lapses_after: float = 60
) -> Reservation:
    return budgets.reserve(Decimal(usd), attribution, lapses_after=lapses_after)


def is_refused(budgets: Budgets, usd: str, attribution: Attribution = NOBODY) -> bool:
    try:
        budgets.settle(reserve(budgets, usd, attribution), Decimal(0))
    except BudgetExceeded:
        return True
    return False


def tenants(usd: float, **more: object) -> dict[str, object]:
    return {"PER": "tenant", "PERIOD": "day", "USD": usd, **more}


# Reserving and settling --------------------------------------------------------------


def test_a_budget_holds_what_is_reserved_and_what_is_spent(alias, configure, place):
    configure(redis=place, DAILY_BUDGET=1)
    budgets = Budgets(alias)

    budgets.settle(reserve(budgets, "0.5"), Decimal("0.4"))
    reserve(budgets, "0.3")

    assert is_refused(budgets, "0.300000001")
    assert not is_refused(budgets, "0.3")


def test_the_refusal_says_what_is_allowed_and_spent_and_when_it_renews(alias, configure, place):
    configure(redis=place, DAILY_BUDGET=1)
    budgets = Budgets(alias)
    budgets.settle(reserve(budgets, "0.5"), Decimal("0.4004"))
    reserve(budgets, "0.3")

    with pytest.raises(BudgetExceeded) as refused:
        reserve(budgets, "0.45")

    assert str(refused.value) == (
        "The budget of the alias is $1.00 a day: $0.4004 are spent and $0.30 reserved, and "
        "this call may cost $0.45. Nothing was sent. It renews at 2026-12-01 00:00 UTC."
    )
    assert refused.value.retry_after == DAY / 2
    assert pickle.loads(pickle.dumps(refused.value)).retry_after == DAY / 2


def test_a_cost_that_nobody_knows_counts_as_what_was_reserved(alias, configure, place):
    configure(redis=place, DAILY_BUDGET=1)
    budgets = Budgets(alias)

    budgets.settle(reserve(budgets, "0.7"), None)

    assert is_refused(budgets, "0.31")
    assert not is_refused(budgets, "0.3")


def test_a_cost_above_what_was_reserved_counts_in_full(alias, configure, place):
    configure(redis=place, DAILY_BUDGET=1)
    budgets = Budgets(alias)

    budgets.settle(reserve(budgets, "0.1"), Decimal("0.9"))

    assert is_refused(budgets, "0.11")


def test_fractions_of_a_nano_dollar_are_never_lost(alias, configure, place):
    configure(redis=place, DAILY_BUDGET=0.000000010)
    budgets = Budgets(alias)

    granted = 0
    with pytest.raises(BudgetExceeded):
        for _ in range(11):
            budgets.settle(reserve(budgets, "0.0000000005"), Decimal("0.0000000005"))
            granted += 1

    assert granted == 10


def test_a_thread_that_rounds_decimals_changes_no_sum(alias, configure):
    configure(DAILY_BUDGET=1)
    budgets = Budgets(alias)

    with decimal.localcontext(prec=2, rounding=decimal.ROUND_DOWN):
        budgets.settle(reserve(budgets, "0.123456789"), None)

    assert budgets.spent()[0].usd == Decimal("0.123456789")


def test_large_sums_are_exact(alias, configure, place):
    configure(redis=place, MONTHLY_BUDGET=5_000_000)
    budgets = Budgets(alias)
    budgets.settle(reserve(budgets, "4999999.999999998"), None)

    assert not is_refused(budgets, "0.000000002")
    assert is_refused(budgets, "0.000000003")


def test_a_reservation_of_a_killed_process_lapses(alias, configure, place, clock):
    configure(redis=place, DAILY_BUDGET=1)
    budgets = Budgets(alias)
    reserve(budgets, "1", lapses_after=60)

    clock.advance(59)
    before = is_refused(budgets, "1")
    clock.advance(1)

    assert before
    assert not is_refused(budgets, "1")


def test_what_is_settled_after_it_lapsed_is_spent_once(alias, configure, place, clock):
    configure(redis=place, DAILY_BUDGET=1)
    budgets = Budgets(alias)
    late = reserve(budgets, "0.5", lapses_after=60)
    clock.advance(61)
    reserve(budgets, "0.1")

    budgets.settle(late, Decimal("0.4"))

    assert not is_refused(budgets, "0.5")
    assert is_refused(budgets, "0.51")


def test_without_budgets_there_is_nothing_to_reserve(alias, configure, place):
    configure(redis=place)
    budgets = Budgets(alias)

    reservation = reserve(budgets, "1000000")
    budgets.settle(reservation, Decimal(1))

    assert not budgets.has_budgets
    assert reservation == Reservation()


def test_a_budget_of_nothing_lets_through_what_costs_nothing(alias, configure, place):
    configure(redis=place, DAILY_BUDGET=0)
    budgets = Budgets(alias)

    assert budgets.has_budgets
    assert is_refused(budgets, "0.000000001")
    assert not is_refused(budgets, "0")


# Periods -----------------------------------------------------------------------------


def test_a_day_renews_at_midnight_and_a_month_on_its_first(alias, configure, place, clock):
    configure(redis=place, DAILY_BUDGET=1, MONTHLY_BUDGET=1.5)
    budgets = Budgets(alias)
    clock.advance(-DAY)
    budgets.settle(reserve(budgets, "1"), None)
    same_day = is_refused(budgets, "0.4")
    clock.advance(DAY / 2)
    next_day = is_refused(budgets, "0.4")
    same_month = is_refused(budgets, "0.6")
    clock.advance(DAY)

    assert [same_day, next_day, same_month] == [True, False, True]
    assert not is_refused(budgets, "1")


def test_a_call_over_midnight_is_spent_on_the_day_that_it_began(alias, configure, place, clock):
    configure(redis=place, DAILY_BUDGET=1)
    budgets = Budgets(alias)
    clock.advance(DAY / 2 - 1)
    reservation = reserve(budgets, "1")
    clock.advance(2)

    budgets.settle(reservation, Decimal(1))

    assert not is_refused(budgets, "1")


@pytest.mark.parametrize(
    ("month", "renewal"), [(1, "2026-02-01"), (2, "2026-03-01"), (12, "2027-01-01")]
)
def test_a_month_renews_on_the_first_of_the_next(alias, configure, clock, month, renewal):
    configure(MONTHLY_BUDGET=1)
    clock.set(datetime.datetime(2026, month, 28, tzinfo=datetime.UTC).timestamp())

    with pytest.raises(BudgetExceeded, match=f"a month: .* renews at {renewal} 00:00 UTC"):
        reserve(Budgets(alias), "2")


# Whose -------------------------------------------------------------------------------


def test_each_tenant_has_the_budget_by_itself(alias, configure, place):
    configure(redis=place, BUDGETS=[tenants(1)])
    budgets = Budgets(alias)

    reserve(budgets, "0.8", ACME)

    assert is_refused(budgets, "0.3", ACME)
    assert not is_refused(budgets, "0.3", Attribution(tenant="other"))
    assert not is_refused(budgets, "1000")  # of no tenant


def test_the_refusal_names_the_tenant(alias, configure, place):
    configure(redis=place, DAILY_BUDGET=50, BUDGETS=[tenants(1)])

    with pytest.raises(BudgetExceeded, match=r"The budget of tenant 'acme' is \$1.00 a day"):
        reserve(Budgets(alias), "2", ACME)


def test_what_one_budget_refuses_is_reserved_in_none(alias, configure, place):
    configure(redis=place, DAILY_BUDGET=5, BUDGETS=[tenants(1)])
    budgets = Budgets(alias)

    assert is_refused(budgets, "2", ACME)
    assert not is_refused(budgets, "5")


def test_a_tenant_by_name_has_its_own_budget_instead(alias, configure):
    configure(BUDGETS=[tenants(1), tenants(5, NAME="acme")])

    assert not is_refused(Budgets(alias), "4", ACME)
    assert is_refused(Budgets(alias), "4", Attribution(tenant="other"))


def test_of_two_budgets_for_the_same_the_lower_holds(alias, configure):
    configure(
        DAILY_BUDGET=3,
        BUDGETS=[
            {"PER": "alias", "PERIOD": "day", "USD": 2},
            {"PER": "alias", "PERIOD": "day", "USD": 1, "NAME": "another"},
        ],
    )

    assert Budgets(alias).claims(NOBODY) == [Claim("day", "alias", 2_000_000_000)]


def test_features_are_counted_beside_tenants(alias, configure, place):
    configure(redis=place, BUDGETS=[{"PER": "feature", "PERIOD": "month", "USD": 1}])
    budgets = Budgets(alias)
    reserve(budgets, "1", ACME)

    assert is_refused(budgets, "0.1", Attribution(feature="search"))
    assert not is_refused(budgets, "0.1", Attribution(feature="chat"))


@pytest.mark.parametrize("name", ["a b", "a:b c", "line\nbreak", "müller", "{x}", "9 ff alias"])
def test_any_name_will_do(alias, configure, place, clock, name):
    configure(redis=place, BUDGETS=[tenants(1)])
    budgets, whose = Budgets(alias), Attribution(tenant=name)
    reserve(budgets, "1", whose, lapses_after=1)
    clock.advance(1)  # what lapses is told apart from its name

    budgets.settle(reserve(budgets, "1", whose), Decimal("0.5"))

    assert [(entry.name, entry.usd, entry.reserved) for entry in budgets.spent()] == [
        (name, Decimal("0.5"), 0)
    ]


# Reports -----------------------------------------------------------------------------


def test_the_report_tells_what_is_spent_reserved_and_allowed(alias, configure, place):
    configure(redis=place, MONTHLY_BUDGET=20, BUDGETS=[tenants(1)])
    budgets = Budgets(alias)
    budgets.settle(reserve(budgets, "0.5", ACME), Decimal("0.25"))
    reserve(budgets, "0.125", ACME)

    report = budgets_module.spent(alias)

    spent = {"usd": Decimal("0.25"), "reserved": Decimal("0.125")}
    assert report == [
        Spent(per="tenant", name="acme", period="day", allowed=Decimal(1), **spent),
        Spent(per="alias", name="", period="month", allowed=Decimal(20), **spent),
    ]


def test_the_report_of_a_day_without_calls_is_empty(alias, configure, place):
    configure(redis=place, DAILY_BUDGET=1)

    assert budgets_module.spent(alias) == []


# Processes and threads ---------------------------------------------------------------

SPEND = """
    import os, random
    import redis  # once, not in each process
    from decimal import Decimal
    from django_services.exceptions import BudgetExceeded
    from django_services.openai_transport.budgets import Budgets
    from django_services.openai_transport.context import Attribution

    ready, go = os.pipe()
    for number in range(8):
        if not os.fork():
            os.close(go)
            budgets, spent, draw = Budgets("{alias}"), Decimal(0), random.Random(number)
            os.read(ready, 1)
            try:
                while True:
                    reservation = budgets.reserve(
                        Decimal("0.02"), Attribution(), lapses_after=60
                    )
                    assert reservation.is_shared
                    cost = Decimal(draw.randint(5_000, 20_000)) / 1_000_000
                    budgets.settle(reservation, cost)
                    spent += cost
            except BudgetExceeded:
                os.write(1, b"%s " % str(spent).encode())
                os._exit(0)
    os.close(go)
    for _ in range(8):
        assert os.wait()[1] == 0
"""


def test_eight_processes_do_not_overspend_a_dollar(alias, configure, redis_url, run_python):
    configure(redis=redis_url, MONTHLY_BUDGET=1)

    result = run_python(
        SPEND.format(alias=alias),
        env={"DJANGO_SERVICES_TEST_SERVICES": json.dumps(django_settings.DJANGO_SERVICES)},
        setup=False,
    )

    spent = [Decimal(text) for text in result.stdout.split()]
    assert len(spent) == 8
    assert Decimal("0.8") < sum(spent) <= 1


def test_eight_threads_do_not_overspend_a_dollar_without_redis(alias, configure):
    configure(MONTHLY_BUDGET=1)
    budgets, spent = Budgets(alias), []

    def spend() -> None:
        while not is_full.is_set():
            try:
                reservation = reserve(budgets, "0.002")
            except BudgetExceeded:
                is_full.set()
            else:
                budgets.settle(reservation, Decimal("0.001"))
                spent.append(Decimal("0.001"))

    is_full = threading.Event()
    threads = [threading.Thread(target=spend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert Decimal("0.98") < sum(spent) <= 1


def test_while_redis_is_down_a_process_goes_on_from_what_it_saw(alias, configure, redis_server):
    configure(redis=redis_server.url, DAILY_BUDGET=1)
    budgets = Budgets(alias)
    budgets.settle(reserve(budgets, "0.9"), None)
    reserve(budgets, "0.05")
    redis_server.stop()

    assert is_refused(budgets, "0.06")
    assert not is_refused(budgets, "0.05")


# Async -------------------------------------------------------------------------------


def test_the_async_twins_do_the_same(alias, configure, place):
    configure(redis=place, DAILY_BUDGET=1)
    budgets = Budgets(alias)

    async def use() -> None:
        reservation = await budgets.areserve(Decimal("0.8"), NOBODY, lapses_after=60)
        await budgets.asettle(reservation, Decimal("0.3"))
        await budgets.areserve(Decimal("0.7"), NOBODY, lapses_after=60)
        with pytest.raises(BudgetExceeded, match=r"\$0.30 are spent and \$0.70 reserved"):
            await budgets.areserve(Decimal("0.01"), NOBODY, lapses_after=60)

    asyncio.run(use())
    assert [(entry.usd, entry.reserved) for entry in budgets.spent()] == [
        (Decimal("0.3"), Decimal("0.7"))
    ]
