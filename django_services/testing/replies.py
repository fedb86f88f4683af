"""What a fake model says: a text, structured output, tool calls, a refusal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

#: What is said where the test programmed nothing.
DEFAULT_TEXT = "This is a fake answer."

_pieces = re.compile(r"\s*\S+|\s+$").findall

#: Strings of a JSON Schema's formats.
_EXAMPLES = {
    "date": "2026-01-01",
    "date-time": "2026-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "duration": "P1D",
    "email": "name@example.com",
    "hostname": "example.com",
    "ipv4": "127.0.0.1",
    "ipv6": "::1",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


class ToolCall(NamedTuple):
    """A tool that the model asks for."""

    id: str
    name: str
    arguments: str  # JSON


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Reply:
    """What the model says to one request."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    refusal: str = ""
    finish_reason: str = ""  # of a chat completion; "": as the rest has it
    cut_after: int | None = None  # pieces of a stream, after which it ends without its end
    is_disconnected: bool = False  # the connection breaks there

    @property
    def reason(self) -> str:
        return self.finish_reason or ("tool_calls" if self.tool_calls else "stop")

    @property
    def tokens(self) -> int:
        spoken = [self.text, self.refusal, *(call.arguments for call in self.tool_calls)]
        return sum(map(count_tokens, spoken))


def reply_of(
    content: Any = "",
    *,
    tool_calls: Iterable[tuple[str, Mapping[str, Any] | str]] = (),
    refusal: str = "",
    finish_reason: str = "",
    cut_after: int | None = None,
    disconnects: bool = False,
) -> Reply:
    """Return the reply that a test programs; see `FakeOpenAI.reply`."""
    return Reply(
        text=_text_of(content),
        tool_calls=tuple(
            ToolCall(f"call_fake_{position}", name, _text_of(arguments))
            for position, (name, arguments) in enumerate(tool_calls, 1)
        ),
        refusal=refusal,
        finish_reason=finish_reason,
        cut_after=cut_after,
        is_disconnected=disconnects,
    )


def default_reply(schema: Mapping[str, Any] | None) -> Reply:
    """Return what is said where nothing was programmed: an example of the schema asked for."""
    return Reply(text=DEFAULT_TEXT if schema is None else json.dumps(example_of(schema)))


def pieces_of(text: str) -> list[str]:
    """Return the text cut where a stream cuts it: a word to a piece."""
    found: list[str] = _pieces(text)
    return found


def count_tokens(text: str) -> int:
    """Return how many tokens a fake counts: the pieces of a stream."""
    return len(pieces_of(text))


def example_of(schema: Mapping[str, Any]) -> Any:
    """Return the plainest value that a JSON Schema allows, as far as the fake reads it.

    Read are the types, ``enum``, ``const``, ``$ref``, ``anyOf``, formats and minima. Where
    ``null`` is allowed it is taken, so that a schema may contain itself.
    """
    return _example(schema, schema)


def _example(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    if "$ref" in schema:
        return _example(_referred(schema["$ref"], root), root)
    for keyword, pick in _SIMPLE.items():
        if keyword in schema:
            return pick(schema[keyword])
    for keyword in ("anyOf", "oneOf", "allOf"):
        if choices := schema.get(keyword):
            return _example(min(choices, key=lambda each: each.get("type") != "null"), root)
    kinds = schema.get("type", "object" if "properties" in schema else "string")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    return _BY_TYPE["null" if "null" in kinds else kinds[0]](schema, root)


def _referred(reference: str, root: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Any = root
    for name in reference.removeprefix("#").split("/")[1:]:
        found = found[name.replace("~1", "/").replace("~0", "~")]
    return found  # type: ignore[no-any-return]


def _object(schema: Mapping[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    properties = schema.get("properties", {})
    names = schema.get("required", properties)
    return {name: _example(properties[name], root) for name in names if name in properties}


def _array(schema: Mapping[str, Any], root: Mapping[str, Any]) -> list[Any]:
    return [_example(schema.get("items", {}), root)] * schema.get("minItems", 0)


def _string(schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:  # noqa: ARG001
    return _EXAMPLES.get(schema.get("format", "")) or "text".ljust(schema.get("minLength", 0), "-")


def _number(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:  # noqa: ARG001
    if "exclusiveMinimum" in schema:
        return schema["exclusiveMinimum"] + 1
    return schema.get("minimum", min(0, schema.get("maximum", 0)))


_SIMPLE: dict[str, Callable[[Any], Any]] = {
    "const": lambda value: value,
    "enum": lambda values: values[0],
    "default": lambda value: value,
}

_BY_TYPE: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], Any]] = {
    "object": _object,
    "array": _array,
    "string": _string,
    "integer": _number,
    "number": _number,
    "boolean": lambda schema, root: False,  # noqa: ARG005
    "null": lambda schema, root: None,  # noqa: ARG005
}


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    if hasattr(content, "model_dump_json"):  # a Pydantic model
        return str(content.model_dump_json(by_alias=True))
    return json.dumps(content, ensure_ascii=False)
