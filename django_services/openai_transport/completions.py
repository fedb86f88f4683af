"""Chat completions: from what a caller gives to a request, from an answer to a `Completion`.

Decides and does no I/O. What is private comes in as `Asked` or `Private` and leaves
as `Private`; faults are returned or raised where no variable of a frame holds a text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from ..exceptions import InvalidInput, InvalidRequest, InvalidResponse, ServiceError
from ..privacy import Private
from .faults import ADVICE, error_class, fault_in
from .reading import decode_json
from .texts import Limits, plain_text, text_fault
from .usage import UNKNOWN, Usage, usage_in

if TYPE_CHECKING:
    from pydantic import BaseModel

    from .sending import Reply

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


# What comes out


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A tool that the model wants to be called."""

    id: str
    name: str
    arguments: str = field(repr=False)  # JSON, as the model wrote it
    kind: str = "function"  # or "custom", whose arguments are any text

    def parsed_arguments(self) -> dict[str, Any]:
        """Return the arguments decoded.

        Raises:
            InvalidResponse: The model wrote no JSON object.
        """
        decoded = decode_json(self.arguments.encode())
        if isinstance(decoded, dict):
            return decoded
        raise InvalidResponse(
            f"The model's arguments for the tool {self.name!r} are no JSON object. Try again, or "
            'give the tool "strict": true.',
            code="invalid_arguments",
        )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Completion(Generic[M]):
    """What a model answered. Its ``repr`` shows none of it; it can be pickled."""

    text: str
    #: The answer as `response_model`; None without one, or where tools are to be called.
    parsed: M | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    #: "stop", "length" (cut off at the limit of tokens) or "tool_calls".
    finish_reason: str = ""
    model: str = ""  # that answered, often a dated one
    usage: Usage = UNKNOWN
    request_id: str | None = None

    @property
    def is_cut_off(self) -> bool:
        """Whether the answer ended at the limit of tokens."""
        return self.finish_reason == "length"

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message, to be followed by results of tools or the next question."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text or None}
        if self.tool_calls:
            message["tool_calls"] = [_message_of(call) for call in self.tool_calls]
        elif not self.text:
            message["content"] = ""
        return message

    def __repr__(self) -> str:
        calls = f", {len(self.tool_calls)} tool calls" if self.tool_calls else ""
        return (
            f"<Completion of {len(self.text)} characters{calls}, model={self.model!r}, "
            f"finish_reason={self.finish_reason!r}>"
        )


def _message_of(call: ToolCall) -> dict[str, Any]:
    words = "arguments" if call.kind == "function" else "input"
    return {
        "id": call.id,
        "type": call.kind,
        call.kind: {"name": call.name, words: call.arguments},
    }


# What goes in


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


# Answers


class Answer(NamedTuple):
    """What was read of an answer, whole or from the pieces of a stream."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str = ""
    refusal: str = ""
    model: str = ""
    usage: Usage = UNKNOWN

    def __repr__(self) -> str:
        return f"<Answer of {len(self.text)} characters>"


def completion_of(reply: Reply, target: Target[M]) -> Completion[M]:
    """Return what a reply says.

    Raises:
        ServiceError: It says nothing that can be used.
    """
    made = reply.error or _completion_in(reply, target)
    if isinstance(made, ServiceError):
        raise made
    return made


def _completion_in(reply: Reply, target: Target[M]) -> Completion[M] | ServiceError:
    answer = read_answer(decode_json(reply.content.reveal()))
    if answer is None:
        reason = "its answer holds no message"
        return _unusable(target.alias, reason, "no_message", reply.request_id)
    return completed(answer, target, reply.request_id)


def read_answer(body: Any) -> Answer | None:
    """Return what a decoded answer says; None if it is no completion."""
    choices = body.get("choices") if isinstance(body, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return None
    content = message.get("content")
    if content is not None and not isinstance(content, str):
        return None
    tools = message.get("tool_calls")
    return Answer(
        text=content or "",
        tool_calls=tuple(map(_tool_call, _dicts(tools))),
        finish_reason=_string(choice.get("finish_reason")),
        refusal=_string(message.get("refusal")),
        model=_string(body.get("model")),
        usage=usage_in(body) or UNKNOWN,
    )


def completed(
    answer: Answer, target: Target[M], request_id: str | None
) -> Completion[M] | ServiceError:
    """Return the completion that an answer is, or the error that it amounts to."""
    if refused := _refused(answer, target, request_id):
        return refused
    parsed: M | None = None
    if target.response_model is not None and not answer.tool_calls:
        found = _parsed(answer, target, request_id)
        if isinstance(found, ServiceError):
            return found
        parsed = found
    return Completion(
        text=answer.text,
        parsed=parsed,
        tool_calls=answer.tool_calls,
        finish_reason=answer.finish_reason,
        model=answer.model or target.model,
        usage=answer.usage,
        request_id=request_id,
    )


def _refused(answer: Answer, target: Target[Any], request_id: str | None) -> ServiceError | None:
    """Return the error for an answer that is none, such as a refusal.

    These are `InvalidRequest`, which nobody retries: the same question would cost the
    same again, and most likely come to the same.
    """
    reason, code = "", ""
    if answer.refusal:
        reason, code = "the model refused to answer. Ask otherwise", "refusal"
    elif answer.finish_reason == "content_filter":
        reason, code = "a content filter stopped the answer. Ask otherwise", "content_filter"
    elif answer.finish_reason == "length" and target.response_model is not None:
        reason, code = "the answer was cut off before its end. Raise max_output_tokens", "length"
    if not reason:
        return None
    return InvalidRequest(
        f"OpenAI ({target.alias}): {reason}.", status=200, code=code, request_id=request_id
    )


def _parsed(answer: Answer, target: Target[M], request_id: str | None) -> M | ServiceError:
    from pydantic import ValidationError

    model: type[BaseModel] = target.response_model  # type: ignore[assignment]
    try:
        return model.model_validate_json(answer.text)  # type: ignore[return-value]
    except ValidationError as error:
        places = [each["loc"][0] for each in error.errors(include_input=False) if each["loc"]]
    except (ValueError, RecursionError):  # a text that is too deep, or a validator's own
        places = []
    # Fields are the model's own; what stands in them, and below, is the answer's.
    names = [repr(name) for name in model.model_fields if name in places]
    at = f" at {', '.join(names)}" if names else ""
    reason = f"its answer does not fit {model.__name__}{at}"
    return _unusable(target.alias, reason, "invalid_output", request_id)


def _unusable(alias: str, reason: str, code: str, request_id: str | None) -> InvalidResponse:
    return InvalidResponse(
        f"OpenAI ({alias}): {reason}. {ADVICE[InvalidResponse]}",
        status=200,
        code=code,
        request_id=request_id,
    )


def _tool_call(call: Mapping[str, Any]) -> ToolCall:
    kind = _string(call.get("type")) or "function"
    told = call.get(kind)
    details = told if isinstance(told, dict) else {}
    return ToolCall(
        id=_string(call.get("id")),
        name=_string(details.get("name")),
        arguments=_string(details.get("arguments", details.get("input"))),
        kind=kind,
    )


def _dicts(given: object) -> list[dict[str, Any]]:
    return [each for each in given if isinstance(each, dict)] if isinstance(given, list) else []


def _string(given: object) -> str:
    return given if isinstance(given, str) else ""


# Streams


class Assembly(Generic[M]):
    """The answer of a stream, put together as its bytes come; no I/O.

    Args:
        target: What the stream was asked of.
    """

    def __init__(self, target: Target[M]) -> None:
        self.completion: Completion[M] | None = None
        self.is_over = False  # nothing more is to be read
        self._target = target
        self._rest = b""
        self._texts: list[str] = []
        self._refusals: list[str] = []
        self._calls: dict[int, dict[str, str]] = {}
        self._answer = Answer()
        self._is_ended = False  # the service said that its answer is whole
        self._fault: ServiceError | None = None

    def take(self, raw: bytes) -> list[str]:
        """Take bytes as they came, and return the pieces of text that they complete."""
        # Bytes, since a text's own line separators are none of the stream's.
        *lines, self._rest = (self._rest + raw).split(b"\n")
        found: list[str] = []
        for line in lines:
            if line.startswith(b"data:") and not self.is_over:
                found += self._take_data(line[5:].strip())
        return found

    def fail(self, fault: ServiceError) -> None:
        """Take why nothing more comes."""
        self._fault = self._fault or fault

    def end(self, request_id: str | None) -> None:
        """Make the completion, now that nothing more comes."""
        made = self._made(request_id)
        if isinstance(made, ServiceError):
            made.request_id = made.request_id or request_id
            self._fault = made
        else:
            self.completion, self._fault = made, None

    def raise_fault(self) -> None:
        """Raise, once, why there is no completion.

        Raises:
            ServiceError: As the verbs raise it.
        """
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault

    def _made(self, request_id: str | None) -> Completion[M] | ServiceError:
        # A connection may break after the answer's end: what is whole is good.
        if self._fault and not self._is_ended:
            return self._fault
        if not self._is_ended:
            reason = "the stream ended before its answer did"
            return _unusable(self._target.alias, reason, "cut_off", request_id)
        answer = self._answer._replace(
            text="".join(self._texts),
            refusal="".join(self._refusals),
            tool_calls=tuple(ToolCall(**call) for _, call in sorted(self._calls.items())),
        )
        return completed(answer, self._target, request_id)

    def _take_data(self, data: bytes) -> list[str]:
        if not data:
            return []
        if data == b"[DONE]":
            self.is_over = self._is_ended = True
            return []
        chunk = decode_json(data)
        if not isinstance(chunk, dict) or chunk.get("error"):
            self.is_over, self._is_ended = True, False
            self.fail(_error_in(chunk, self._target.alias))
            return []
        self._answer = self._answer._replace(
            model=_string(chunk.get("model")) or self._answer.model,
            usage=usage_in(chunk) or self._answer.usage,
        )
        return [piece for choice in _dicts(chunk.get("choices")) for piece in self._take(choice)]

    def _take(self, choice: Mapping[str, Any]) -> list[str]:
        if reason := _string(choice.get("finish_reason")):
            self._answer = self._answer._replace(finish_reason=reason)
            self._is_ended = True
        delta = choice.get("delta")
        if choice.get("index", 0) != 0 or not isinstance(delta, dict):
            return []
        for call in _dicts(delta.get("tool_calls")):
            self._take_call(call)
        if refusal := _string(delta.get("refusal")):
            self._refusals.append(refusal)
        text = _string(delta.get("content"))
        self._texts.append(text)
        return [text] if text else []

    def _take_call(self, delta: Mapping[str, Any]) -> None:
        index = delta.get("index")
        place = index if isinstance(index, int) else len(self._calls)
        call = self._calls.setdefault(place, {"id": "", "kind": "", "name": "", "arguments": ""})
        part = _tool_call({**delta, "type": _string(delta.get("type")) or call["kind"]})
        call["id"] = part.id or call["id"]
        call["kind"] = part.kind
        call["name"] += part.name
        call["arguments"] += part.arguments


def _error_in(chunk: object, alias: str) -> ServiceError:
    """Return our error for an event that tells of one, or that is no JSON object."""
    if not isinstance(chunk, dict):
        return _unusable(alias, "an event of the stream is no JSON", "invalid_event", None)
    code, _ = fault_in(chunk)
    # Compatible servers put the HTTP status here that they can no longer send.
    status = int(code) if code and code.isdigit() and 400 <= int(code) < 600 else 500
    kind = error_class(status, code)
    told = f" ({code})" if code else ""
    return kind(
        f"OpenAI ({alias}) broke off its answer with an error{told}. "
        f"{ADVICE[kind].format(alias=alias)}",
        code=code,
    )
