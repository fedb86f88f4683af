"""The package's own verbs over the fake: what a project's tests see of them."""

from __future__ import annotations

import asyncio

import pydantic
import pytest

from django_services.exceptions import InvalidResponse, ServiceUnavailable
from django_services.openai_service import acomplete, astream, complete, moderate, stream
from django_services.testing.replies import DEFAULT_TEXT


class Person(pydantic.BaseModel):
    name: str


def test_a_completion_is_text_or_a_model(fake):
    fake.replies("Ada", Person(name="Ada"))

    assert complete("Who?").text == "Ada"
    assert complete("Who?", response_model=Person).parsed == Person(name="Ada")


def test_a_stream_is_its_pieces(fake):
    fake.reply("one two three")

    assert list(stream("Count.")) == ["one", " two", " three"]


@pytest.mark.parametrize(
    ("disconnects", "error"), [(False, InvalidResponse), (True, ServiceUnavailable)]
)
def test_a_stream_that_is_cut_is_an_error(fake, disconnects, error):
    fake.reply("one two three", cut_after=2, disconnects=disconnects)
    pieces = []

    with pytest.raises(error):
        pieces.extend(stream("Count."))

    fake.assert_called(times=1)


def test_moderation_is_told_what_to_flag(fake):
    fake.flag("violence", when="knife")

    verdicts = moderate(["a bread", "a knife"])

    assert [verdict.is_flagged for verdict in verdicts] == [False, True]


def test_the_async_twins_are_answered(fake):
    async def call():
        return (await acomplete("Who?")).text, [piece async for piece in astream("Count.")]

    text, pieces = asyncio.run(call())

    assert text == "".join(pieces) == DEFAULT_TEXT
