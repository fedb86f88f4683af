"""Adding the ledger up."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal

import pytest
from django.utils import timezone

from django_services.exceptions import InvalidInput
from django_services.ledger.report import KEYS, Totals, totals, usage
from django_services.models import Usage

from .calls import end_call

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("database")]

NOON = datetime.datetime(2026, 11, 2, 12, tzinfo=datetime.UTC)


def call_at(moment: datetime.datetime, **told: object) -> None:
    known = set(Usage.objects.values_list("pk", flat=True))
    end_call(**told)
    Usage.objects.exclude(pk__in=known).update(at=moment)


def lines(report) -> dict[tuple[str, ...], int]:
    """Return how many operations each line counts."""
    return {tuple(line.keys.values()): line.totals.operations for line in report.lines}


def test_the_sums_are_those_of_the_rows():
    end_call(cost=Decimal("0.25"), attempts=3)
    end_call(cost=Decimal("0.000000000001"), outcome="RateLimited")
    end_call(cost=None, input_tokens=None, cached_tokens=None, output_tokens=None)

    assert usage().total == Totals(
        operations=3,
        failed=1,
        attempts=5,
        input_tokens=2_000,
        cached_tokens=800,
        output_tokens=100,
        cost=Decimal("0.250000000001"),
        unknown_cost=1,
    )


def test_a_cost_that_nobody_knows_is_not_0():
    end_call(cost=None)

    report = usage()

    assert report.total.cost is None
    assert report.as_dict()["total"]["cost"] is None


def test_nothing_used_cost_nothing():
    report = usage()

    assert report.lines == []
    assert report.total == Totals()


@pytest.mark.parametrize("key", sorted(set(KEYS) - {"day"}))
def test_there_is_a_line_for_each_value(key):
    for value in ("a", "b", "b", ""):
        end_call(**{key: value})

    report = usage([key])

    assert lines(report) == {("b",): 2, ("a",): 1, ("",): 1}
    assert report.lines[0].keys == {key: "b"}


def test_days_are_in_order_and_those_of_utc(settings):
    settings.TIME_ZONE = "Asia/Tokyo"
    with timezone.override("America/Los_Angeles"):
        for hours in (36, 0, 11, -12):
            call_at(NOON + datetime.timedelta(hours=hours))

        report = usage(["day"])

    assert list(lines(report).items()) == [(("2026-11-02",), 3), (("2026-11-04",), 1)]


def test_a_line_for_each_combination():
    call_at(NOON, model="a", cost=Decimal(1))
    call_at(NOON, model="b", cost=Decimal(2))
    call_at(NOON - datetime.timedelta(days=1), model="a")

    report = usage(["day", "model"])

    assert list(lines(report)) == [("2026-11-01", "a"), ("2026-11-02", "b"), ("2026-11-02", "a")]


def test_the_first_and_the_last_day_are_included():
    for day in range(-2, 3):
        call_at(NOON + datetime.timedelta(days=day))
    call_at(NOON.replace(hour=0))
    call_at(NOON.replace(day=3, hour=23, minute=59))

    report = usage(since=NOON.date(), until=datetime.date(2026, 11, 3))

    assert lines(report) == {("2026-11-02",): 2, ("2026-11-03",): 2}
    assert report.total.operations == 4


def test_it_is_one_statement_for_lines_and_one_for_the_total(django_assert_num_queries):
    end_call()

    with django_assert_num_queries(2):
        usage(["day", "model"])


def test_the_shape_of_json():
    call_at(NOON, cost=Decimal("0.000125"))

    told = usage(["day", "tenant"], since=NOON.date()).as_dict()

    sums = {
        "operations": 1,
        "failed": 0,
        "attempts": 1,
        "input_tokens": 1_000,
        "cached_tokens": 400,
        "output_tokens": 50,
        "cost": 0.000125,
        "unknown_cost": 0,
    }
    assert json.loads(json.dumps(told)) == {
        "since": "2026-11-02",
        "until": None,
        "by": ["day", "tenant"],
        "rows": [{"day": "2026-11-02", "tenant": "acme", **sums}],
        "total": sums,
    }


def test_some_rows_can_be_added_up():
    end_call(model="a")
    end_call(model="b")

    assert totals(Usage.objects.filter(model="a").order_by("-at")).operations == 1


@pytest.mark.parametrize("by", [["colour"], ["day", "day"]])
def test_unknown_and_repeated_keys_are_refused(by):
    with pytest.raises(InvalidInput):
        usage(by)
