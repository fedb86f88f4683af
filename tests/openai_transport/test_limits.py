"""Requests and tokens per minute, in this process and in a real Redis."""

from __future__ import annotations

import asyncio
import heapq
import json
import math
import random
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from django.conf import settings as django_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from django_services.conf import Limit
from django_services.openai_transport import shared
from django_services.openai_transport.limits import Booking, Limiter, _book
from tests.processes import PythonRunner

from .shared_state import Clock, Configure

RUN = 62  # seconds from one full bucket to the next


@pytest.fixture
def limiter(alias: str, configure: Configure, place: str, clock: Clock) -> Limiter:
    configure(redis=place)
    return Limiter(alias)


def book(
    limiter: Limiter,
    *,
    requests: int | None = None,
    of_tokens: int | None = None,
    tokens: int = 0,
    patience: float = 0.0,
) -> Booking:
    limit = Limit(requests=requests, tokens=of_tokens)
    return limiter.book("gpt", tokens=tokens, limit=limit, patience=patience)


def worst(starts: list[tuple[float, int]], window: float) -> int:
    """Return the most that any window holds; a fullest one ends with a start."""
    starts = sorted(starts)
    most = held = first = 0
    for at, amount in starts:
        held += amount
        while starts[first][0] <= at - window:
            held -= starts[first][1]
            first += 1
        most = max(most, held)
    return most


# Booking -----------------------------------------------------------------------------


def test_calls_within_the_limit_go_at_once(limiter):
    bookings = [book(limiter, requests=3) for _ in range(3)]

    assert [(booking.is_granted, booking.delay) for booking in bookings] == [(True, 0.0)] * 3


def test_the_call_beyond_the_limit_is_refused_and_told_when_to_come_back(limiter, clock):
    for _ in range(3):
        book(limiter, requests=3)

    refused = book(limiter, requests=3)

    assert not refused.is_granted
    assert refused.reason.startswith(
        "'gpt' has used the limit of 3 requests each minute (REQUESTS_PER_MINUTE): "
    )
    clock.advance(refused.retry_after - 0.001)
    assert not book(limiter, requests=3).is_granted
    clock.advance(0.001)
    assert book(limiter, requests=3).is_granted


def test_tokens_are_limited_beside_requests(limiter):
    book(limiter, requests=100, of_tokens=1_000, tokens=900)

    refused = book(limiter, requests=100, of_tokens=1_000, tokens=101)

    assert "limit of 1,000 tokens each minute (TOKENS_PER_MINUTE)" in refused.reason
    assert book(limiter, requests=100, of_tokens=1_000, tokens=100).is_granted


def test_patient_calls_are_booked_into_the_future_one_after_the_other(limiter, clock):
    book(limiter, requests=1)

    waiting = [book(limiter, requests=1, patience=1_000) for _ in range(3)]

    first = waiting[0].start
    assert first == pytest.approx(clock.seconds + waiting[0].delay, abs=1e-6)
    assert [booking.start - first for booking in waiting] == [0, RUN, 2 * RUN]


def test_a_refused_call_takes_nothing_from_those_after_it(limiter):
    book(limiter, requests=1)
    for _ in range(5):
        book(limiter, requests=1, patience=5)

    assert book(limiter, requests=1, patience=RUN).is_granted


def test_nobody_overtakes_who_waits(limiter):
    book(limiter, of_tokens=100, tokens=60)
    large = book(limiter, of_tokens=100, tokens=60, patience=90)

    small = book(limiter, of_tokens=100, tokens=1, patience=90)

    assert small.start == large.start
    assert small.delay > 0


def test_a_call_that_no_window_can_hold_is_refused_for_good(limiter):
    refused = book(limiter, of_tokens=100, tokens=101, patience=1_000)

    assert refused.retry_after is None
    assert refused.reason == (
        "The call needs 101 tokens: more than the limit of 100 tokens each minute "
        "(TOKENS_PER_MINUTE)."
    )


def test_models_have_limits_of_their_own(limiter):
    book(limiter, requests=1)

    other = limiter.book("other", tokens=0, limit=Limit(requests=1), patience=0)

    assert other.is_granted


def test_without_limits_every_call_goes(limiter):
    assert all(book(limiter, tokens=10**9).delay == 0 for _ in range(200))


# What becomes of a booking -----------------------------------------------------------


def test_tokens_that_were_not_used_are_given_back(limiter):
    booking = book(limiter, of_tokens=1_000, tokens=1_000)

    limiter.settle(booking, 300)

    assert book(limiter, of_tokens=1_000, tokens=700).is_granted
    assert not book(limiter, of_tokens=1_000, tokens=1).is_granted


def test_tokens_beyond_those_booked_count_too(limiter):
    booking = book(limiter, of_tokens=1_000, tokens=100)

    limiter.settle(booking, 950)

    assert not book(limiter, of_tokens=1_000, tokens=51).is_granted


def test_a_few_tokens_are_given_back_with_the_next_booking(alias, configure, redis_url):
    configure(redis=redis_url)
    limiter = Limiter(alias)
    bookings = [book(limiter, of_tokens=1_000, tokens=500) for _ in range(2)]

    limiter.settle(bookings[0], 496)
    limiter.settle(bookings[1], 494)
    elsewhere = book(Limiter(alias), of_tokens=1_000, tokens=11)

    assert not elsewhere.is_granted
    assert book(limiter, of_tokens=1_000, tokens=10).is_granted
    assert not book(limiter, of_tokens=1_000, tokens=1).is_granted


def test_what_a_process_holds_back_is_a_hundredth_of_the_limit_at_most(alias, configure, redis_url):
    configure(redis=redis_url)
    limiter = Limiter(alias)
    bookings = [book(limiter, of_tokens=1_000, tokens=100) for _ in range(10)]
    for booking in bookings:
        limiter.settle(booking, 95)

    shared.forget()  # as another process, which knows nothing of what this one holds back

    assert book(limiter, of_tokens=1_000, tokens=40).is_granted


def test_settling_when_the_window_has_passed_changes_nothing(limiter, clock):
    booking = book(limiter, of_tokens=1_000, tokens=1_000)
    clock.advance(120)
    book(limiter, of_tokens=1_000, tokens=1_000)

    limiter.settle(booking, 1)

    assert not book(limiter, of_tokens=1_000, tokens=1).is_granted


def test_a_call_that_was_never_sent_gives_back_its_request(limiter):
    booking = book(limiter, requests=1, of_tokens=100, tokens=100)

    limiter.cancel(booking)

    assert book(limiter, requests=1, of_tokens=100, tokens=100).is_granted


def test_a_refused_booking_has_nothing_to_give_back(limiter):
    book(limiter, requests=1)
    refused = book(limiter, requests=1)

    limiter.cancel(refused)

    assert not book(limiter, requests=1).is_granted


def test_who_waited_as_told_may_go(limiter, clock):
    book(limiter, requests=1)
    waiting = book(limiter, requests=1, patience=90)
    clock.advance(waiting.delay)

    confirmed = limiter.confirm(waiting, patience=0)

    assert confirmed.is_granted
    assert confirmed.delay == 0


def test_who_wakes_too_early_waits_for_the_rest(limiter, clock):
    book(limiter, requests=1)
    waiting = book(limiter, requests=1, patience=90)
    clock.advance(waiting.delay - 0.25)

    confirmed = limiter.confirm(waiting, patience=90)

    assert confirmed.delay == pytest.approx(0.25, abs=1e-5)


def test_who_wakes_too_late_is_booked_anew(limiter, clock):
    book(limiter, requests=1)
    late = book(limiter, requests=1, patience=90)
    behind = book(limiter, requests=1, patience=900)
    clock.advance(late.delay + 5)

    confirmed = limiter.confirm(late, patience=900)

    # Its place was given back, so it stands behind the one that waits already.
    assert confirmed.start == behind.start + RUN


# Blocks ------------------------------------------------------------------------------


def test_nobody_sends_to_a_blocked_model_before_the_end(limiter, clock):
    limiter.block("gpt", 20)

    assert book(limiter, patience=30).delay == 20
    clock.advance(20)
    assert book(limiter).delay == 0


def test_an_impatient_call_to_a_blocked_model_is_refused(limiter):
    limiter.block("gpt", 3_600)

    refused = book(limiter, patience=30)

    assert refused.retry_after == 3_600
    assert refused.reason == "The service asked to send nothing to 'gpt' for 3600.0 s."


def test_another_model_is_not_blocked(limiter):
    limiter.block("other", 20)

    assert book(limiter).is_granted


def test_a_shorter_block_does_not_end_a_longer_one(limiter):
    limiter.block("gpt", 20)
    limiter.block("gpt", 5)

    assert book(limiter, patience=30).delay == 20


@pytest.mark.parametrize("seconds", [0, -1, 1e300, math.inf])
def test_any_number_of_seconds_may_be_asked_for(limiter, seconds):
    limiter.block("gpt", seconds)

    assert book(limiter, patience=30).is_granted == (seconds <= 0)


def test_who_waits_when_the_model_is_blocked_waits_longer(limiter, clock):
    book(limiter, requests=1)
    waiting = book(limiter, requests=1, patience=90)
    clock.advance(waiting.delay)
    limiter.block("gpt", 30)

    confirmed = limiter.confirm(waiting, patience=90)

    assert confirmed.delay == 30


def test_limits_hold_after_a_block(limiter):
    limiter.block("gpt", 20)

    delays = [book(limiter, requests=1, patience=100).delay for _ in range(2)]

    assert delays[0] == 20
    assert delays[1] > 80


# The guarantee -----------------------------------------------------------------------


class Simulated(NamedTuple):
    """What became of calls that come, wait, oversleep, are blocked and settle, all at random."""

    bookings: list[Booking]
    starts: list[tuple[float, int, int]]  # when, requests, tokens
    end_of_blocks: float


def simulate(limiter: Limiter, clock: Clock, seed: int, calls: int) -> Simulated:
    """Let calls happen as `Limiter` says that they should be made.

    A call starts at the latest in the bucket after that in which it was let go.
    """
    draw = random.Random(seed)
    limit = Limit(requests=20, tokens=1_000)
    clock.set(1_800_000_000 + seed * 100_000 + draw.random())
    found = Simulated([], [], 0.0)
    waiting: list[tuple[float, int, Booking | None]] = []  # a heap of moments
    at = clock.seconds
    for number in range(calls):
        at += draw.choice([0, 0, 0.01, 1.5, 4, 30 * draw.random()])
        heapq.heappush(waiting, (at, number, None))
    while waiting:
        moment, number, booking = heapq.heappop(waiting)
        clock.set(moment)
        if booking is None:
            tokens = draw.randint(0, 400)
            booking = limiter.book(
                "gpt", requests=draw.randint(1, 3), tokens=tokens, limit=limit, patience=200
            )
        else:
            booking = limiter.confirm(booking, patience=200)
        found.bookings.append(booking)
        if booking.delay > 0:
            slept = booking.delay + draw.choice([0, 0, 0.3, 0.99, 2.5])
            heapq.heappush(waiting, (clock.seconds + slept, number, booking))
        elif booking.is_granted:
            used = draw.choice([booking.tokens, draw.randint(0, booking.tokens)])
            late = math.floor(clock.seconds) + 2 - clock.seconds  # the end of the next bucket
            start = clock.seconds + draw.choice([0, 0, late * draw.random()])
            found.starts.append((start, booking.requests, used))
            limiter.settle(booking, used)
        if draw.random() < 0.01:
            limiter.block("gpt", 10 * draw.random())
    return found


@pytest.fixture
def in_memory(alias: str, configure: Configure, clock: Clock) -> Iterator[Limiter]:
    configure()
    return Limiter(alias)


@pytest.mark.parametrize("seed", range(4))
def test_no_window_holds_more_than_the_limit_whatever_calls_do(in_memory, clock, seed):
    simulated = simulate(in_memory, clock, seed, calls=400)

    assert len(simulated.starts) > 100
    assert worst([(at, requests) for at, requests, _ in simulated.starts], 60) <= 20
    assert worst([(at, tokens) for at, _, tokens in simulated.starts], 60) <= 1_000


def test_redis_and_memory_decide_alike(alias, configure, clock, redis_url):
    found = []
    for place in ("", redis_url):
        configure(redis=place)
        found.append(simulate(Limiter(alias), clock, seed=7, calls=120))

    here, there = found
    assert [booking._replace(is_shared=False) for booking in there.bookings] == here.bookings
    assert all(booking.is_shared for booking in there.bookings if booking.is_granted)


@settings(max_examples=150, deadline=None)
@given(
    limit=st.integers(1, 50),
    calls=st.lists(
        st.tuples(st.floats(0, 40), st.integers(1, 20), st.sampled_from([0, 5, 70, 10_000])),
        max_size=60,
    ),
)
def test_each_call_starts_as_soon_as_limit_and_order_allow(limit, calls):
    memory, booked = shared.Memory(), []
    for pause, amount, patience in calls:
        memory.now += round(pause * 1_000_000)
        asked = min(amount, limit)

        granted, wait, bucket, *_ = _book(
            memory, ("blocked", "meter"), (1_000_000, patience * 1_000_000, -1, limit, asked)
        )

        assert bucket == _first_free(booked, memory.now // 1_000_000, asked, limit)
        assert granted == (wait <= patience * 1_000_000)
        if granted:
            booked.append((bucket, asked))


def _first_free(booked: list[tuple[int, int]], current: int, amount: int, limit: int) -> int:
    """Return where the next call belongs, by trying one bucket after the other."""
    bucket = max(current, max((earlier for earlier, _ in booked), default=current))
    while sum(held for earlier, held in booked if bucket - RUN < earlier) + amount > limit:
        bucket += 1
    return bucket


# Threads and processes ---------------------------------------------------------------

# Four processes at once; each writes when its calls start.
PROCESSES = """
    import os, time
    import redis  # once, not in each process
    from django_services.conf import Limit
    from django_services.openai_transport.limits import Limiter

    ready, go = os.pipe()
    for _ in range(4):
        if not os.fork():
            os.close(go)
            limiter, limit = Limiter("{alias}", window={window}), Limit(requests=60)
            os.read(ready, 1)
            for _ in range(200):
                {call}
                assert booking.is_shared
                os.write(1, b"%f " % start)  # at once, unlike print()
            os._exit(0)
    os.close(go)
    for _ in range(4):
        assert os.wait()[1] == 0
"""

BOOKS = """
                booking = limiter.book("gpt", tokens=0, limit=limit, patience=10_000)
                start = booking.start
"""

WAITS = """
                booking = limiter.book("gpt", tokens=0, limit=limit, patience=100)
                while booking.delay > 0:
                    time.sleep(booking.delay)
                    booking = limiter.confirm(booking, patience=100)
                start = time.time()
"""


def starts_of_processes(
    run_python: PythonRunner, alias: str, call: str, window: int
) -> list[float]:
    """Return when the calls of four processes start."""
    result = run_python(
        PROCESSES.format(alias=alias, window=window, call=call.strip()),
        env={"DJANGO_SERVICES_TEST_SERVICES": json.dumps(django_settings.DJANGO_SERVICES)},
        setup=False,
    )
    return [float(line) for line in result.stdout.split()]


def in_threads(work: Callable[[int], None], count: int) -> None:
    threads = [threading.Thread(target=work, args=[number]) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_four_processes_never_exceed_the_limit_in_any_window(
    alias, configure, redis_url, run_python
):
    configure(redis=redis_url)

    starts = starts_of_processes(run_python, alias, BOOKS, window=60)

    assert len(starts) == 800
    assert worst([(start, 1) for start in starts], 60) == 60
    assert max(starts) - min(starts) <= 13 * RUN  # and the limit is used


@pytest.mark.fault
def test_four_processes_that_wait_never_exceed_the_limit_in_any_window(
    alias, configure, redis_url, run_python
):
    configure(redis=redis_url)

    starts = starts_of_processes(run_python, alias, WAITS, window=3)

    assert len(starts) == 800
    assert worst([(start, 1) for start in starts], 3) <= 60


def test_threads_never_exceed_the_limit_in_any_window_without_redis(alias, configure):
    configure()
    limiter, bookings = Limiter(alias), []

    in_threads(
        lambda _: bookings.extend(book(limiter, requests=60, patience=10_000) for _ in range(100)),
        8,
    )

    assert len(bookings) == 800
    assert worst([(booking.start, 1) for booking in bookings], 60) == 60


# Async -------------------------------------------------------------------------------


def test_the_async_twins_do_the_same(limiter, clock):
    limit = Limit(requests=1, tokens=100)

    async def use() -> list[Booking]:
        first = await limiter.abook("gpt", tokens=100, limit=limit, patience=0)
        await limiter.asettle(first, 40)
        refused = await limiter.abook("gpt", tokens=60, limit=limit, patience=0)
        large = await limiter.abook("gpt", tokens=101, limit=limit, patience=0)
        waiting = await limiter.abook("gpt", tokens=60, limit=limit, patience=90)
        clock.advance(waiting.delay)
        await limiter.ablock("gpt", 5)
        confirmed = await limiter.aconfirm(waiting, patience=90)
        await limiter.acancel(confirmed)
        again = await limiter.abook("gpt", tokens=100, limit=limit, patience=90)
        return [first, refused, large, waiting, confirmed, again]

    first, refused, large, waiting, confirmed, again = asyncio.run(use())

    assert [booking.is_granted for booking in (first, refused, large)] == [True, False, False]
    assert 60 < waiting.delay <= RUN
    assert (confirmed.delay, again.delay) == (5, 5)
