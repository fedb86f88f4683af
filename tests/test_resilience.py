from __future__ import annotations

import pytest

from django_services import resilience
from django_services.resilience import Backoff, Deadline


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
