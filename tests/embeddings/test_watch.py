"""Keeping in step for ever, and what ends it not."""

from __future__ import annotations

import pytest
from django.db import OperationalError

from django_services.embeddings.sync import Report
from django_services.embeddings.watch import ERROR_INTERVAL, POLL_INTERVAL, watch
from django_services.exceptions import QuotaExhausted, RateLimited


class Sleeper:
    def __init__(self) -> None:
        self.waits: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.waits.append(seconds)


def step(outcome: object) -> tuple[object, float]:
    """Return what a watch yields for a sync that ends so, and how long it then waits."""

    def sync() -> Report:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    sleeper = Sleeper()
    watching = watch(sync, sleep=sleeper)
    first = next(watching)
    next(watching)
    return first, sleeper.waits[0]


def test_looks_again_after_a_short_while():
    report = Report(sources=3)

    assert step(report) == (report, POLL_INTERVAL)


def test_waits_as_long_as_the_service_says():
    error = RateLimited("Too many requests.", retry_after=7.0)

    assert step(error) == (error, 7.0)


def test_does_not_sleep_through_a_long_wait_of_one_service():
    error = RateLimited("Too many requests.", retry_after=3_600.0)

    assert step(error) == (error, ERROR_INTERVAL)


@pytest.mark.parametrize("error", [QuotaExhausted("No credit."), OperationalError("gone")])
def test_waits_longer_for_what_cannot_be_used(error):
    assert step(error) == (error, ERROR_INTERVAL)


def test_an_error_of_the_code_ends_it():
    with pytest.raises(ZeroDivisionError):
        step(ZeroDivisionError())
