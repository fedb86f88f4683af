"""Chat completions: what an answer says, whole or in pieces; decides and does no I/O.

Faults are returned, or raised where no variable of a frame holds a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from ..exceptions import InvalidRequest, InvalidResponse, ServiceError
from .faults import ADVICE, error_class, fault_in
from .prompts import Target
from .reading import decode_json
from .usage import UNKNOWN, Usage, usage_in

if TYPE_CHECKING:
    from pydantic import BaseModel

    from .sending import Reply

M = TypeVar("M")

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
