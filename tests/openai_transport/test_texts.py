from __future__ import annotations

import re

import pytest
from django.utils.safestring import mark_safe
from django.utils.translation import gettext_lazy

from django_services.openai_transport.texts import (
    LIMITS,
    Limits,
    collection_fault,
    plan_requests,
    sort_out,
)
from django_services.privacy import Private, Texts


def sort(*texts):
    return sort_out(Private(list(texts)))


@pytest.mark.parametrize(
    ("sizes", "plan"),
    [
        ([], []),
        ([1], [1]),
        ([4, 4, 4], [2, 1]),
        ([10, 1], [1, 1]),
        ([11, 11], [1, 1]),
        ([1, 11, 1], [1, 1, 1]),
        ([1] * 7, [3, 3, 1]),
    ],
)
def test_requests_are_packed_up_to_the_limits(sizes, plan):
    texts = ["x" * size for size in sizes]

    requests = plan_requests(texts, Limits(texts=3, request_bytes=10))

    assert [len(request) for request in requests] == plan
    assert [position for request in requests for position in request] == list(range(len(texts)))


def test_bytes_are_counted_not_characters():
    assert len(plan_requests(["文" * 4] * 2, Limits(request_bytes=12))) == 2


def test_the_apis_limits_hold_for_any_number_of_texts():
    texts = ["x"] * 5_000 + ["word " * 400] * 400

    requests = plan_requests(texts)

    assert max(map(len, requests)) <= 2_048
    assert max(sum(len(texts[position]) for position in each) for each in requests) <= 300_000


@pytest.mark.parametrize("texts", [["a"], ("a",), [], Texts(["a"])])
def test_sequences_of_texts_are_accepted(texts):
    assert collection_fault(texts) is None


@pytest.mark.parametrize(
    ("texts", "remedy"),
    [
        ("a", r"\[text\]"),
        (gettext_lazy("Yes"), r"\[text\]"),
        (b"a", "Decode"),
        (bytearray(b"a"), "Decode"),
        ((text for text in "ab"), r"list\(texts\)"),
        ({"a"}, r"list\(texts\)"),
        ({"a": 1}, r"list\(texts\)"),
        (None, r"list\(texts\)"),
        (7, r"list\(texts\)"),
    ],
)
def test_what_is_no_sequence_of_texts_is_told_how_to_become_one(texts, remedy):
    fault = collection_fault(texts)

    assert fault is not None
    assert re.search(remedy, fault)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "is None"),
        (7, "type int"),
        (b"bytes", "type bytes"),
        (["a"], "type list"),
        ("", "blank"),
        (" \n\t\u3000", "blank"),
        ("a\ud800b", "lone surrogate"),
        ("x" * 10_000_000, "8,192 tokens"),
        ("文" * (LIMITS.text_bytes // 3 + 1), "8,192 tokens"),
    ],
)
def test_a_text_that_cannot_be_embedded_is_named_by_position(text, fault):
    found = sort("fine", text, "fine too")

    assert found.unique == ["fine", "fine too"]
    assert found.positions == [0, None, 1]
    assert str(found.faults[1]).startswith("texts[1] ")
    assert fault in str(found.faults[1])


@pytest.mark.parametrize(
    "text", ["a\x00b", "😀", "مرحبا بالعالم", "x" * 9_000, "e\u0301", "\u200b", "."]
)
def test_any_other_text_passes_unchanged(text):
    assert sort(text).unique == [text]


def test_lazy_and_safe_strings_become_plain_ones():
    found = sort(gettext_lazy("Yes"), mark_safe("<b>bold</b>"))

    assert found.unique == ["Yes", "<b>bold</b>"]
    assert {type(text) for text in found.unique} == {str}


def test_equal_texts_stand_once():
    found = sort("a", "b", "a", mark_safe("b"))

    assert found.unique == ["a", "b"]
    assert found.positions == [0, 1, 0, 1]


def test_repr_shows_no_text():
    assert "secret" not in repr(sort("a secret"))
