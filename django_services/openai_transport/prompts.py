"""What a verb asks of a model: from what a caller gives to the body of a request.

Decides and does no I/O. What is private comes in as `Asked` and leaves as `Private`;
faults are raised where no variable of a frame holds a text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from ..exceptions import InvalidInput
from ..privacy import Private
from .texts import Limits, plain_text, text_fault

M = TypeVar("M")

#: The largest context has 1,050,000 tokens, and prose at most 8 bytes for each.
LIMITS = Limits(text_tokens=1_050_000, text_bytes=8 * 1_048_576, verb="complete")

#: Options of the SDK's methods that are no part of the body, and what its requests call them.
_REQUEST_OPTIONS = {
    "extra_headers": "headers",
    "extra_query": "params",
    "extra_body": "extra_json",
    "timeout": "timeout",
}

#: Options that the verbs decide themselves, and what to do instead.
_RESERVED = {
    "messages": "Pass the messages as the first argument.",
    "stream": "Use complete() for a whole answer and stream() for its pieces.",
    "n": "The verbs return one answer: take n of them, or get_openai_client().",
}

#: Roles whose message may be without words: it tells of calls of tools, or of their results.
_WORDLESS_ROLES = frozenset({"assistant", "tool", "function"})

#: What may stand in an assistant's message in place of words.
_INSTEAD_OF_WORDS = ("tool_calls", "function_call", "audio", "refusal")


class Asked:
    """What a caller asked; its ``repr`` shows none of it.

    Args:
        prompt: A text, or messages as the API takes them.
        instructions: What the model is told before it.
        tools: As the API takes them.
        options: Of the SDK's ``chat.completions.create()``.
    """

    __slots__ = ("instructions", "options", "prompt", "tools")

    def __init__(
        self, prompt: object, instructions: object, tools: object, options: Mapping[str, Any]
    ) -> None:
        self.prompt = prompt
        self.instructions = instructions
        self.tools = tools
        self.options = options


class Target(NamedTuple, Generic[M]):
    """What a completion is sent to, and what is to come back."""

    alias: str
    model: str
    response_model: type[M] | None
    max_output_tokens: int | None
    temperature: float | None


class Request(NamedTuple):
    """What is sent."""

    path: str
    body: Private[dict[str, Any]]
    #: Of the SDK's request: headers, query, timeout.
    options: Private[dict[str, Any]]


class _UnsoundError(Exception):
    """Which part of what was asked cannot be sent, and why; caught in this module."""


def request_of(asked: Asked, target: Target[Any], *, is_stream: bool = False) -> Request:
    """Return the request for what was asked.

    Raises:
        InvalidInput: Something cannot be sent; names its position.
    """
    try:
        return _request(asked, target, is_stream)
    except _UnsoundError as unsound:
        fault = InvalidInput(f"{unsound}")
    except RecursionError:
        fault = InvalidInput("What was asked is nested too deeply, or holds itself.")
    raise fault


def _request(asked: Asked, target: Target[Any], is_stream: bool) -> Request:
    given = {name: value for name, value in asked.options.items() if value is not None}
    _check_options(given, target)
    options = {
        name: given.pop(option) for option, name in _REQUEST_OPTIONS.items() if option in given
    }
    if "extra_json" in options:
        options["extra_json"] = _json(options["extra_json"], "extra_body")
    body = {
        "model": target.model,
        "messages": _messages(asked),
        **_limits_of(target),
        **_json(given, "options"),
    }
    if asked.tools is not None:
        body["tools"] = _json(asked.tools, "tools")
    if target.response_model is not None:
        body["response_format"] = response_format(target.response_model)
    if is_stream:
        body["stream"] = True
        # Else nobody is told what it used; `stream_options=None` leaves it out.
        if "stream_options" not in asked.options:
            body["stream_options"] = {"include_usage": True}
    return Request("/chat/completions", Private(body), Private(options))


def _check_options(options: Mapping[str, Any], target: Target[Any]) -> None:
    for name, remedy in _RESERVED.items():
        if name in options and not (name == "n" and options[name] == 1):
            raise _UnsoundError(f"{name} is not an option of the verbs. {remedy}")
    if target.response_model is not None and "response_format" in options:
        raise _UnsoundError("Give response_model or response_format, not both.")


def _limits_of(target: Target[Any]) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    tokens: object = target.max_output_tokens
    temperature: object = target.temperature
    if tokens is not None:
        if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
            raise _UnsoundError(f"max_output_tokens must be a whole number above 0, not {tokens!r}")
        limits["max_completion_tokens"] = tokens
    if temperature is not None:
        is_number = isinstance(temperature, (int, float)) and not isinstance(temperature, bool)
        if not (is_number and 0 <= temperature < math.inf):  # type: ignore[operator]
            raise _UnsoundError(f"temperature must be a number from 0 on, not {temperature!r}")
        limits["temperature"] = temperature
    return limits


def response_format(model: object) -> dict[str, Any]:
    """Return how the API is asked for an answer in the shape of a Pydantic model."""
    import openai
    from pydantic import BaseModel

    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise _UnsoundError("response_model must be a subclass of pydantic.BaseModel")
    function = openai.pydantic_function_tool(model)["function"]
    schema = {"name": function["name"], "schema": function["parameters"], "strict": True}
    return {"type": "json_schema", "json_schema": schema}


# Messages


def _messages(asked: Asked) -> list[dict[str, Any]]:
    messages = _told(asked.prompt)
    if asked.instructions is None:
        return messages
    # "system" is what compatible servers know; OpenAI takes it as "developer" where it must.
    return [
        {"role": "system", "content": _text(asked.instructions, "instructions")},
        *messages,
    ]


def _told(prompt: object) -> list[dict[str, Any]]:
    if plain_text(prompt) is not None:
        return [{"role": "user", "content": _text(prompt, "prompt")}]
    if not isinstance(prompt, Sequence) or isinstance(prompt, (bytes, bytearray)):
        kind = "None" if prompt is None else f"of type {type(prompt).__name__}"
        raise _UnsoundError(f"prompt is {kind}; give a text or a list of messages")
    if not prompt:
        raise _UnsoundError("prompt is an empty list; give a text or a list of messages")
    return [_message(each, f"messages[{position}]") for position, each in enumerate(prompt)]


def _message(given: Any, path: str) -> dict[str, Any]:
    given = _dumped(given)
    if not isinstance(given, Mapping):
        raise _UnsoundError(
            f'{path} is of type {type(given).__name__}, not a dict with "role" and "content"'
        )
    role = given.get("role")
    if not isinstance(role, str) or not role:
        raise _UnsoundError(f'{path}["role"] must be a word such as "user"')
    rest = {key: value for key, value in given.items() if key != "content"}
    content = _content(given, role, f'{path}["content"]')
    return {**_json(rest, path), "content": content}


def _content(message: Mapping[str, Any], role: str, path: str) -> Any:
    content = message.get("content")
    if content is None and any(message.get(key) for key in _INSTEAD_OF_WORDS):
        return None
    if isinstance(content, (list, tuple)):
        if not content:
            raise _UnsoundError(f"{path} is an empty list")
        return [_part(part, f"{path}[{position}]") for position, part in enumerate(content)]
    if role in _WORDLESS_ROLES and content == "":
        return content
    return _text(content, path)


def _part(given: Any, path: str) -> Any:
    part = _json(given, path)
    if not isinstance(part, dict):
        raise _UnsoundError(f'{path} is of type {type(given).__name__}, not a dict with "type"')
    if part.get("type") == "text":
        _text(part.get("text"), f'{path}["text"]')
    return part


def _text(given: object, path: str) -> str:
    text = plain_text(given)
    fault = text_fault(text, given, LIMITS)
    if fault is not None or text is None:
        raise _UnsoundError(f"{path} {fault}")
    return text


# JSON


def _json(value: Any, path: str) -> Any:
    """Return a value as what JSON knows; raises for what it cannot carry."""
    value = _dumped(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        raise _UnsoundError(f"{path} is not finite, which JSON cannot carry")
    if isinstance(value, Mapping):
        return {_word(key, path): _json(each, f"{path}[{key!r}]") for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(each, f"{path}[{position}]") for position, each in enumerate(value)]
    return _word(value, path)


def _word(value: object, path: str) -> str:
    text = plain_text(value)
    if text is None:
        raise _UnsoundError(f"{path} holds a {type(value).__name__}, which JSON cannot carry")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _UnsoundError(f"{path} holds a lone surrogate, which no text can carry") from None
    return text


def _dumped(value: Any) -> Any:
    # The SDK's own messages are Pydantic's: an answer may follow a question as it is.
    if hasattr(value, "model_dump") and not isinstance(value, type):
        return value.model_dump(mode="json", exclude_unset=True)
    return value
