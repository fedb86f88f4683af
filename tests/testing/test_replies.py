from __future__ import annotations

from typing import Literal

import pydantic
import pytest

from django_services.testing.replies import count_tokens, example_of, pieces_of


class Address(pydantic.BaseModel):
    street: str
    number: int = pydantic.Field(ge=1)


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(min_length=8)
    born: str = pydantic.Field(json_schema_extra={"format": "date"})
    height: float
    is_member: bool
    kind: Literal["teacher", "pupil"]
    address: Address
    others: list[Address] = pydantic.Field(min_length=2)
    partner: Person | None


@pytest.mark.parametrize("text", ["", "word", "two words", " edges \n", "a\n\nb  c", "日本語"])
def test_pieces_make_up_the_text(text):
    assert "".join(pieces_of(text)) == text


def test_a_piece_is_a_word():
    assert pieces_of("one two, three") == ["one", " two,", " three"]
    assert count_tokens("one two, three") == 3


def test_the_example_of_a_models_schema_is_valid():
    example = example_of(Person.model_json_schema())

    assert Person.model_validate(example)


@pytest.mark.parametrize(
    ("schema", "example"),
    [
        ({"type": "string"}, "text"),
        ({"type": "string", "format": "date"}, "2026-01-01"),
        ({"type": "string", "minLength": 6}, "text--"),
        ({"type": "integer"}, 0),
        ({"type": "integer", "minimum": 3}, 3),
        ({"type": "integer", "exclusiveMinimum": 3}, 4),
        ({"type": "number", "maximum": -2}, -2),
        ({"type": "boolean"}, False),
        ({"type": ["string", "null"]}, None),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, None),
        ({"enum": ["first", "second"]}, "first"),
        ({"const": 7}, 7),
        ({"type": "array", "items": {"type": "integer"}}, []),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 2}, [0, 0]),
        ({"type": "object", "properties": {"a": {"type": "string"}}}, {"a": "text"}),
        ({"type": "object"}, {}),
    ],
)
def test_an_example_is_the_plainest_that_is_allowed(schema, example):
    assert example_of(schema) == example
