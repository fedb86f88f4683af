from __future__ import annotations

import asyncio
import pickle

import pytest

from django_services.exceptions import AuthenticationFailed, InvalidInput, InvalidResponse
from django_services.openai_service import amoderate, moderate


@pytest.fixture(
    params=[moderate, lambda texts, **options: asyncio.run(amoderate(texts, **options))],
    ids=["sync", "async"],
)
def judge(request, fake_openai):
    return request.param


def test_each_text_is_judged_in_the_order_given(judge):
    found = judge(["fine", "a bad word", "fine"])

    assert [each.is_flagged for each in found] == [False, True, False]
    assert found[1].categories == {"harassment"}
    assert found[1].scores == {"harassment": 0.9, "violence": 0.0}


def test_equal_texts_are_sent_once_to_the_settings_model(judge, fake_openai, settings):
    settings.DJANGO_SERVICES = fake_openai.settings(MODERATION_MODEL="a-judge")

    found = judge(["one", "two", "one"])

    assert [call.path for call in fake_openai.calls] == ["/v1/moderations"]
    assert fake_openai.calls[0].body == {"model": "a-judge", "input": ["one", "two"]}
    assert {each.model for each in found} == {"a-judge"}


def test_many_texts_are_packed_into_requests(judge, fake_openai):
    texts = [f"text {number}" for number in range(70)]

    assert len(judge(texts)) == 70
    assert [len(call.texts) for call in fake_openai.calls] == [32, 32, 6]


def test_no_texts_need_no_call(judge, fake_openai):
    assert judge([]) == []
    assert not fake_openai.calls


def test_another_model_may_judge(judge, fake_openai):
    judge(["one"], model="another")

    assert fake_openai.calls[0].body["model"] == "another"


@pytest.mark.parametrize("texts", ["a text", b"bytes", None, 7, {"a"}])
def test_what_is_no_list_of_texts_is_refused(judge, texts):
    with pytest.raises(InvalidInput, match="list or tuple"):
        judge(texts)


@pytest.mark.parametrize("text", [None, 7, b"bytes", "", " \n", "\ud800", "x" * 10_000_000])
def test_a_bad_text_is_named_by_position(judge, fake_openai, text):
    with pytest.raises(InvalidInput, match=r"texts\[1\]"):
        judge(["fine", text])

    assert not fake_openai.calls


@pytest.mark.parametrize(
    "content",
    [
        "null",
        "<html>",
        "{}",
        '{"results": null}',
        '{"results": []}',
        '{"results": [null]}',
        '{"results": [{"flagged": "no"}]}',
        '{"results": [{"flagged": true, "categories": null}]}',
    ],
)
def test_what_is_no_judgement_is_our_error(judge, fake_openai, content):
    fake_openai.answer(content, times=9)

    with pytest.raises(InvalidResponse) as caught:
        judge(["one"])

    assert caught.value.retryable


def test_a_service_that_refuses_raises_our_error(judge, fake_openai):
    fake_openai.fail(401)

    with pytest.raises(AuthenticationFailed):
        judge(["one"])


def test_a_judgement_survives_a_pickle(judge):
    found = judge(["a bad word"])

    assert pickle.loads(pickle.dumps(found)) == found
