"""The shared state when Redis restarts, forgets, freezes or is not there, and over forks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from decimal import Decimal

import pytest
import redis

from django_services.conf import Limit
from django_services.exceptions import ServiceUnavailable
from django_services.openai_transport import shared
from django_services.openai_transport.budgets import Budgets
from django_services.openai_transport.context import Attribution
from django_services.openai_transport.limits import Booking, Limiter
from django_services.resilience import Breaker

LOGGER = "django_services.openai_transport.shared"
LIMIT = Limit(requests=2)


def book(limiter: Limiter, limit: Limit = LIMIT) -> Booking:
    return limiter.book("gpt", tokens=0, limit=limit, patience=0)


def reserve(budgets: Budgets) -> None:
    budgets.reserve(Decimal("0.3"), Attribution(), lapses_after=60)


@pytest.fixture
def failures(caplog) -> pytest.LogCaptureFixture:
    """Its records: one for each time that Redis was asked in vain."""
    caplog.set_level(logging.WARNING, LOGGER)
    return caplog


# A Redis that comes back -------------------------------------------------------------


def test_redis_that_forgot_the_scripts_is_told_them_again(alias, configure, redis_server, failures):
    configure(redis=redis_server.url)
    limiter = Limiter(alias)
    book(limiter)
    with redis.Redis.from_url(redis_server.url) as admin:
        admin.script_flush()

    second, third = book(limiter), book(limiter)

    assert second.is_shared
    assert not third.is_granted
    assert failures.records == []


def test_a_restart_of_redis_starts_the_window_anew(alias, configure, redis_server, failures):
    configure(redis=redis_server.url)
    limiter = Limiter(alias)
    earlier = [book(limiter) for _ in range(2)]
    redis_server.stop()
    redis_server.start()

    limiter.settle(earlier[0], 5)  # of what is no longer known
    bookings = [book(limiter) for _ in range(3)]

    assert [booking.is_granted for booking in bookings] == [True, True, False]
    assert bookings[0].is_shared
    assert failures.records == []


def test_keys_do_not_stay_for_ever(alias, configure, redis_server):
    configure(redis=redis_server.url, DAILY_BUDGET=1)
    limiter, budgets = Limiter(alias), Budgets(alias)

    limiter.book("gpt", tokens=1, limit=Limit(requests=2, tokens=2), patience=0)
    limiter.block("gpt", 30)
    budgets.settle(budgets.reserve(Decimal("0.1"), Attribution(), lapses_after=60), None)
    reserve(budgets)

    with redis.Redis.from_url(redis_server.url) as admin:
        left = {key.decode(): admin.ttl(key) for key in admin.scan_iter(f"*{{{alias}}}*")}
    assert len(left) == 5
    assert all(key.startswith("django_services:") and ttl > 0 for key, ttl in left.items())


# A Redis that does not answer --------------------------------------------------------


def test_a_frozen_redis_costs_one_timeout_and_each_process_has_the_limit(
    alias, configure, redis_server, failures
):
    configure(redis=redis_server.url, DAILY_BUDGET=1)
    limiter, budgets = Limiter(alias), Budgets(alias)
    redis_server.freeze()

    bookings = [book(limiter) for _ in range(3)]
    reserve(budgets)

    assert [booking.is_granted for booking in bookings] == [True, True, False]
    assert not bookings[0].is_shared
    assert len(failures.records) == 1


def test_without_redis_calls_are_refused_where_the_project_says_so(
    alias, configure, redis_server, failures
):
    configure(redis=redis_server.url, DAILY_BUDGET=1, REFUSE_WITHOUT_REDIS=True)
    limiter, budgets = Limiter(alias), Budgets(alias)
    redis_server.freeze()

    refused = book(limiter)

    assert (refused.is_granted, refused.retry_after) == (False, shared.PAUSE)
    assert "REFUSE_WITHOUT_REDIS" in refused.reason
    with pytest.raises(ServiceUnavailable, match="REFUSE_WITHOUT_REDIS"):
        reserve(budgets)
    assert len(failures.records) == 1


def test_what_has_no_limit_goes_without_redis_all_the_same(alias, configure, redis_server):
    configure(redis=redis_server.url, REFUSE_WITHOUT_REDIS=True)
    limiter = Limiter(alias)
    redis_server.stop()

    assert book(limiter, Limit()).is_granted


def test_refusing_without_redis_is_about_one_that_is_configured(alias, configure):
    configure(REFUSE_WITHOUT_REDIS=True)

    assert book(Limiter(alias)).is_granted


def test_the_async_twin_of_a_frozen_redis(alias, configure, redis_server, failures):
    configure(redis=redis_server.url, DAILY_BUDGET=1)
    limiter, budgets = Limiter(alias), Budgets(alias)
    redis_server.freeze()

    async def use() -> list[Booking]:
        await budgets.areserve(Decimal("0.3"), Attribution(), lapses_after=60)
        return [await limiter.abook("gpt", tokens=0, limit=LIMIT, patience=0) for _ in range(3)]

    bookings = asyncio.run(use())

    assert [booking.is_granted for booking in bookings] == [True, True, False]
    assert len(failures.records) == 1


def test_redis_is_asked_again_after_the_pause(alias, configure, redis_server, monkeypatch):
    monkeypatch.setattr(shared, "PAUSE", 0.001)
    configure(redis=redis_server.url)
    limiter = Limiter(alias)
    redis_server.stop()
    lost = book(limiter)
    redis_server.start()
    threading.Event().wait(0.002)

    found = book(limiter)

    assert (lost.is_shared, found.is_shared) == (False, True)


def test_a_booking_is_corrected_where_it_was_made(alias, configure, redis_server, monkeypatch):
    monkeypatch.setattr(shared, "PAUSE", 0.001)
    configure(redis=redis_server.url)
    limiter = Limiter(alias)
    redis_server.stop()
    here = book(limiter, Limit(requests=1))
    redis_server.start()
    threading.Event().wait(0.002)
    there = book(limiter, Limit(requests=1))

    limiter.cancel(here)

    assert there.is_shared
    assert not book(limiter, Limit(requests=1)).is_granted
    redis_server.stop()
    assert book(limiter, Limit(requests=1)).is_granted


def test_a_block_holds_for_who_was_told_when_redis_fails(alias, configure, redis_server):
    configure(redis=redis_server.url)
    limiter = Limiter(alias)
    limiter.block("gpt", 60)
    redis_server.stop()

    assert not book(limiter, Limit()).is_granted


def test_who_waited_for_a_redis_that_failed_meanwhile_goes(alias, configure, redis_server):
    configure(redis=redis_server.url)
    limiter = Limiter(alias)
    for _ in range(2):
        book(limiter)
    waiting = limiter.book("gpt", tokens=0, limit=LIMIT, patience=90)
    redis_server.stop()

    confirmed = limiter.confirm(waiting, patience=90)

    assert waiting.delay > 0
    assert (confirmed.is_granted, confirmed.delay) == (True, 0)


def test_an_answer_that_nobody_waits_for_is_no_verdict_on_redis(
    alias, configure, redis_server, failures, monkeypatch
):
    released = []

    class Recorded(Breaker):
        def released(self) -> None:
            released.append(True)

    monkeypatch.setattr(shared, "Breaker", Recorded)
    configure(redis=redis_server.url)
    limiter = Limiter(alias)

    async def use() -> Booking:
        await limiter.abook("gpt", tokens=0, limit=LIMIT, patience=0)  # connects
        redis_server.freeze()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await limiter.abook("gpt", tokens=0, limit=LIMIT, patience=0)
        redis_server.thaw()
        return await limiter.abook("gpt", tokens=0, limit=Limit(), patience=0)

    assert asyncio.run(use()).is_shared
    assert released == [True]
    assert failures.records == []


# Forks -------------------------------------------------------------------------------


def test_a_child_forked_while_the_memory_is_in_use_is_not_stuck(run_python):
    result = run_python(
        """
        import os
        from django_services.conf import Limit
        from django_services.openai_transport import limits, shared

        limiter = limits.Limiter("default")
        with shared.store()._lock:
            child = os.fork()
            if not child:
                booking = limiter.book("gpt", tokens=0, limit=Limit(requests=1), patience=0)
                os._exit(0 if booking.is_granted else 1)
        print(os.waitpid(child, 0)[1])
        """,
        setup=False,
        timeout=30,
    )

    assert result.stdout.split() == ["0"]


def test_a_forked_child_shares_the_limit_through_redis(run_python, redis_url, alias):
    result = run_python(
        f"""
        import os
        from django.conf import settings
        from django_services.conf import Limit
        from django_services.openai_transport.limits import Limiter

        settings.DJANGO_SERVICES = {{
            "OPENAI": {{"{alias}": {{}}}}, "REDIS": {{"default": {{"URL": "{redis_url}"}}}}
        }}
        limiter = Limiter("{alias}")
        print(limiter.book("gpt", tokens=0, limit=Limit(requests=2), patience=0).is_granted)
        for _ in range(2):
            child = os.fork()
            if not child:
                booking = limiter.book("gpt", tokens=0, limit=Limit(requests=2), patience=0)
                os._exit(0 if booking.is_granted else 1)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
        setup=False,
    )

    assert result.stdout.split() == ["True", "0", "1"]


# Memory ------------------------------------------------------------------------------


def test_memory_forgets_what_has_ended(alias, configure, clock):
    configure()
    limiter = Limiter(alias)

    for model in range(3_000):
        limiter.book(f"gpt-{model}", tokens=0, limit=LIMIT, patience=0)
        clock.advance(1)

    assert len(shared.store()._memory) <= 1_000


def test_memory_keeps_what_has_not_ended(alias, configure, clock):
    configure()
    limiter = Limiter(alias)

    for model in range(1_500):
        limiter.book(f"gpt-{model}", tokens=0, limit=Limit(requests=1), patience=0)

    again = [
        limiter.book(f"gpt-{model}", tokens=0, limit=Limit(requests=1), patience=0).is_granted
        for model in range(1_500)
    ]
    assert not any(again)


def test_without_redis_nothing_of_it_is_imported(run_python):
    result = run_python(
        """
        import sys
        from django_services.conf import Limit
        from django_services.openai_transport.limits import Limiter

        Limiter("default").book("gpt", tokens=0, limit=Limit(requests=1), patience=0)
        print("redis" in sys.modules)
        """,
        setup=False,
    )

    assert result.stdout.split() == ["False"]
