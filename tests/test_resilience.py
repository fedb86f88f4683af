from __future__ import annotations

import threading

import pytest

from django_services import resilience
from django_services.resilience import Backoff, Breaker, Deadline


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until a test moves it."""
    now = [100.0]
    monkeypatch.setattr(resilience.time, "monotonic", lambda: now[0])
    return now


def test_deadline_counts_down_to_zero(clock):
    deadline = Deadline.after(5)

    clock[0] += 3
    assert (deadline.remaining, deadline.has_passed) == (2, False)

    clock[0] += 3
    assert (deadline.remaining, deadline.has_passed) == (0, True)


@pytest.mark.parametrize(("timeout", "limited"), [(2, 2), (9, 5), (None, 5)])
def test_timeout_is_cut_to_what_is_left(clock, timeout, limited):
    assert Deadline.after(5).limit(timeout) == limited


def test_delays_are_drawn_from_zero_to_a_doubling_bound(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        resilience.random, "uniform", lambda low, high: drawn.append((low, high)) or high
    )
    backoff = Backoff(attempts=6, first=1, longest=5)

    delays = [backoff.delay(failures) for failures in range(1, 6)]

    assert delays == [1, 2, 4, 5, 5]
    assert {low for low, _ in drawn} == {0}


def test_no_delay_once_the_attempts_are_used_up():
    assert Backoff(attempts=2).delay(1) is not None
    assert Backoff(attempts=2).delay(2) is None


def test_a_delay_asked_for_is_never_shortened():
    delays = [Backoff(spread=0.1).delay(1, retry_after=10) for _ in range(50)]

    assert all(10 <= delay <= 11 for delay in delays)
    assert len(set(delays)) > 1


def test_many_failures_do_not_overflow():
    assert 0 <= Backoff(attempts=10_000).delay(5_000) <= 8


# Breaker -----------------------------------------------------------------------------


def _opened(failures: int = 1, pause: float = 10) -> Breaker:
    breaker = Breaker(failures, pause)
    for _ in range(failures):
        breaker.failed()
    return breaker


def test_breaker_opens_at_the_last_allowed_failure_in_a_row(clock):
    breaker = Breaker(3, pause=10)

    refused = []
    for _ in range(4):
        refused.append(breaker.refused_for())
        breaker.failed()

    assert refused == [None, None, None, 10]


def test_a_success_between_failures_starts_the_count_anew(clock):
    breaker = Breaker(2, pause=10)

    breaker.failed()
    breaker.succeeded()
    breaker.failed()

    assert breaker.refused_for() is None


def test_open_breaker_tells_the_seconds_left(clock):
    breaker = _opened(pause=10)

    clock[0] += 4

    assert breaker.refused_for() == 6


def test_after_the_pause_exactly_one_probe_goes(clock):
    breaker = _opened(pause=10)

    clock[0] += 10
    refused = [breaker.refused_for() for _ in range(3)]

    assert refused == [None, 10, 10]


def test_of_many_threads_one_is_the_probe(clock):
    breaker = _opened(pause=10)
    clock[0] += 10
    barrier, answers = threading.Barrier(16), []

    def ask() -> None:
        barrier.wait()
        answers.append(breaker.refused_for())

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert answers.count(None) == 1


def test_a_probe_that_succeeds_closes(clock):
    breaker = _opened(failures=2, pause=10)
    clock[0] += 10
    breaker.refused_for()

    breaker.succeeded()
    breaker.failed()

    assert breaker.refused_for() is None  # the count began anew


def test_a_probe_that_fails_opens_for_another_pause(clock):
    breaker = _opened(failures=3, pause=10)
    clock[0] += 10
    breaker.refused_for()

    breaker.failed()

    assert breaker.refused_for() == 10


def test_a_probe_without_verdict_makes_room_for_another(clock):
    breaker = _opened(pause=10)
    clock[0] += 10
    breaker.refused_for()

    breaker.released()

    assert [breaker.refused_for(), breaker.refused_for()] == [None, 10]


def test_a_probe_that_never_reports_is_given_up_after_a_pause(clock):
    breaker = _opened(pause=10)
    clock[0] += 10
    breaker.refused_for()

    clock[0] += 10

    assert [breaker.refused_for(), breaker.refused_for()] == [None, 10]


def test_trip_opens_without_any_failure(clock):
    breaker = Breaker(100, pause=10)

    breaker.trip()

    assert breaker.refused_for() == 10


def test_calls_from_before_it_opened_neither_close_it_nor_prolong_the_pause(clock):
    breaker = _opened(pause=10)
    clock[0] += 4

    breaker.succeeded()
    breaker.failed()

    assert breaker.refused_for() == 6


def test_a_child_forked_while_the_lock_is_held_is_not_stuck(run_python):
    result = run_python(
        """
        import os
        from django_services import resilience

        breaker = resilience.Breaker(1, pause=60)
        breaker.failed()
        with resilience._breakers_lock:
            child = os.fork()
            if not child:
                os._exit(0 if breaker.refused_for() else 1)
        print(os.waitpid(child, 0)[1])
        """,
        setup=False,
        timeout=30,
    )

    assert result.stdout.split() == ["0"]
