from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from django_services.exceptions import (
    AuthenticationFailed,
    InvalidRequest,
    QuotaExhausted,
    RateLimited,
    ServiceUnavailable,
)
from django_services.openai_transport.faults import Fault, error_class, fault_in, retry_after


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (400, None, InvalidRequest),
        (401, None, AuthenticationFailed),
        (403, None, AuthenticationFailed),
        (404, "model_not_found", InvalidRequest),
        (422, None, InvalidRequest),
        (429, None, RateLimited),
        (429, "rate_limit_exceeded", RateLimited),
        (429, "insufficient_quota", QuotaExhausted),
        (402, None, QuotaExhausted),
        (408, None, ServiceUnavailable),
        (500, None, ServiceUnavailable),
        (503, None, ServiceUnavailable),
        (599, None, ServiceUnavailable),
    ],
)
def test_status_and_code_tell_the_error(status, code, error):
    assert error_class(status, code) is error


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "2"}, 2),
        ({"retry-after": "-1"}, 0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, 86_400),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers, seconds):
    assert retry_after(headers) == seconds


def test_retry_after_may_be_a_date():
    headers = {"retry-after": formatdate(time.time() + 30, usegmt=True)}

    assert retry_after(headers) == pytest.approx(30, abs=2)


@pytest.mark.parametrize("body", [None, [], "text", {}, {"error": None}, {"error": "text"}])
def test_a_body_without_error_says_nothing(body):
    assert fault_in(body) == Fault(None, None)


def test_quota_is_seen_where_only_the_type_names_it():
    assert fault_in({"error": {"type": "insufficient_quota", "code": None}}).code == (
        "insufficient_quota"
    )


@pytest.mark.parametrize("code", ["two words", "x" * 41, "sk-key", "line\n", "é", {}, ""])
def test_only_a_plain_word_passes_as_code(code):
    assert fault_in({"error": {"code": code, "param": code}}) == Fault(None, None)
